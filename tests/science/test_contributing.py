"""The walks of CONTRIBUTING.md: their edits apply, one after another, to a copy of the repository,
where their own commands pass.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import REPOSITORY

TEXT = (REPOSITORY / 'CONTRIBUTING.md').read_text(encoding='utf-8')
COPIED = ('kd_jax', 'configs', 'tests', 'pyproject.toml')
KINDS = ('loss', 'model', 'augmentation', 'data source', 'metric', 'field of a run')


class Walk(NamedTuple):
    """A change of CONTRIBUTING.md: what it adds to, the name of what it adds, and its blocks."""

    kind: str
    name: str
    edit: str
    command: str

    @property
    def tests(self):
        """(files, the expression of -k) of its command."""
        words = shlex.split(self.command)
        assert words[:3] == ['python', '-m', 'pytest'], self.command
        assert words.count('-k') == 1, self.command
        files = [word for word in words if word.startswith('tests/')]
        assert files, self.command
        return files, words[words.index('-k') + 1]


def block(language, section):
    """The only block of a language."""
    (text,) = re.findall(rf'^```{language}\n(.*?)^```$', section, re.DOTALL | re.MULTILINE)
    return text


def walks():
    found = re.findall(r'^### An? ([\w ]+): `(\w+)`\n(.*?)(?=^##)', TEXT, re.DOTALL | re.MULTILINE)
    return [
        Walk(kind, name, block('diff', section), block('bash', section))
        for kind, name, section in found
    ]


@pytest.fixture(scope='module')
def changed(tmp_path_factory):
    """A copy of the repository with the edits of all walks."""
    root = tmp_path_factory.mktemp('changed')
    ignored = shutil.ignore_patterns('__pycache__', '*.npz', '*.pth')
    for name in COPIED:
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, root / name, ignore=ignored)
        else:
            shutil.copy(path, root)
    for walk in walks():
        done = subprocess.run(
            ['git', 'apply', '-C1', '-'],
            input=walk.edit,
            cwd=root,
            env=os.environ | {'GIT_CEILING_DIRECTORIES': str(root.parent)},
            capture_output=True,
            encoding='utf-8',
        )
        assert done.returncode == 0, f'the edit of {walk.name} does not apply: {done.stderr}'
    return root


def test_there_is_a_walk_for_every_usual_change():
    assert tuple(walk.kind for walk in walks()) == KINDS


def test_the_edits_touch_no_file_that_is_not_there(changed):
    """But for what they create; and every file is as the style asks."""
    touched = {
        line[6:] for walk in walks() for line in walk.edit.splitlines() if line[:4] == '+++ '
    }
    assert touched and all((changed / name).is_file() for name in touched)
    for command in (['check'], ['format', '--check']):
        done = subprocess.run(
            [Path(sys.executable).with_name('ruff'), *command, *sorted(touched)],
            cwd=changed,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_commands_of_all_walks_pass(changed):
    """In one process, which imports and compiles what they share once."""
    files = dict.fromkeys(file for walk in walks() for file in walk.tests[0])
    expression = ' or '.join(f'({walk.tests[1]})' for walk in walks())
    # neither a worker of this run, nor its flags twice
    env = {key: value for key, value in os.environ.items() if not key.startswith('PYTEST_')}
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-n', '0', '-rp', '-m', '', '-k', expression, *files],
        cwd=changed,
        env=env | {'XLA_FLAGS': ''},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    passed = re.findall(r'^PASSED (\S+)', done.stdout, re.MULTILINE)
    for walk in walks():
        own = [test for test in passed if test.partition('::')[0] in walk.tests[0]]
        assert {test.partition('::')[0] for test in own} == set(walk.tests[0]), walk.command
        assert any(walk.name in test for test in own), f'no test names {walk.name}'
