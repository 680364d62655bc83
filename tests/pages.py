"""The documentation as its tests read it: pages in their order, blocks, commands and links.

The commands of a block are run by test_docs_commands.py, unless `<!-- not run: REASON -->` stands
above it.
"""

import copy
import importlib
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from absl import flags
from helpers import REPOSITORY
from ml_collections import config_flags

from kd_jax import models, objectives, optim
from kd_jax.study import Study

DOCS = REPOSITORY / 'docs'
ROOT_PAGES = tuple(REPOSITORY / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'))
FENCE = re.compile(r'^(?P<indent> *)(?P<fence>```+)(?P<info>.*)$')
NOT_RUN = re.compile(r'<!-- not run: (.+) -->')
CONFIG_FLAGS = {'kd_jax.main': 'config', 'kd_jax.search': 'config', 'kd_jax.soft_targets': 'data'}


class Block(NamedTuple):
    """A fenced block. reason: why its commands are not run; '' if they are."""

    page: Path
    line: int
    language: str
    text: str
    reason: str

    @property
    def place(self) -> str:
        return f'{self.page.relative_to(REPOSITORY)}:{self.line}'


def pages() -> list[Path]:
    """The README, the site's pages in the order of its contents, then the others of the root."""
    found = [ROOT_PAGES[0]]

    def visit(page):
        found.append(page)
        for block in blocks(page):
            if block.language == '{toctree}':
                lines = [
                    line for line in block.text.splitlines() if line and not line.startswith(':')
                ]
                for line in lines:
                    visit(page.parent / f'{line}.md')

    visit(DOCS / 'index.md')
    return [*found, *ROOT_PAGES[1:]]


def blocks(page: Path) -> list[Block]:
    found, lines = [], page.read_text(encoding='utf-8').splitlines()
    start = None
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if fence and start is None:
            start, opened = number, fence
        elif fence and fence['fence'].startswith(opened['fence']) and not fence['info'].strip():
            above = next((text for text in reversed(lines[:start]) if text.strip()), '')
            reason = NOT_RUN.fullmatch(above.strip())
            text = '\n'.join(
                line.removeprefix(opened['indent']) for line in lines[start + 1 : number]
            )
            language = opened['info'].strip()
            found.append(Block(page, start + 1, language, text, reason[1] if reason else ''))
            start = None
    assert start is None, f'{page} has a block that does not end'
    return found


def commands(text: str) -> list[str]:
    """The commands of a block, one a line, without comments."""
    joined = re.sub(r'\\\n\s*', ' ', text)
    lines = [re.sub(r'(^|\s+)# .*$', '', line).strip() for line in joined.splitlines()]
    return [part.strip() for line in lines if line for part in line.split(' && ')]


def installs(command: str) -> bool:
    """The command brings packages, which the tests have already."""
    return bool(
        re.match(r'(\S+/)?(python3? -m )?(pip install|venv)\b|(sudo )?apt-get install', command)
    )


def module_of(command: str) -> tuple[str, list[str]]:
    """(module, arguments) of `python -m MODULE ...` and of launch scripts; ('', []) for others."""
    words = shlex.split(command)
    for number, word in enumerate(words):
        if word == '-m' and words[number - 1].endswith('python'):
            return words[number + 1], words[number + 2 :]
        if word == 'launch/local.sh':
            return 'kd_jax.main', words[number + 2 :]
        if word == 'launch/cloud_tpu.sh' and '--' in words:
            return 'kd_jax.main', words[words.index('--') + 1 :]
    return '', []


def parsed(module: str, arguments: list[str]) -> flags.FlagValues:
    """The flags of a command of kd_jax, read as the command itself reads them."""
    importlib.import_module(module)
    values, own = flags.FlagValues(), CONFIG_FLAGS[module]
    argv = [module, *arguments]
    config_flags.DEFINE_config_file(own, lock_config=True, flag_values=values, sys_argv=argv)
    for where, known in flags.FLAGS.flags_by_module_dict().items():
        if where.startswith('kd_jax') or where == '__main__':
            for flag in known:
                if flag.name not in CONFIG_FLAGS.values() and flag.name not in values:
                    values[flag.name] = copy.deepcopy(flag)
    rest = values(argv)
    assert rest == [module], f'{module} takes no argument {rest[1:]}'
    return values


def check_study(config, only=()) -> None:
    """What a study checks before it reads data; its networks, objectives, optimisers are built."""
    study = Study(config, '/nowhere', list(only))
    for name, run in study.plan.runs.items():
        model = dict(run.model)
        models.build(model.pop('name'), 10, **model)
        objectives.build(run.objective, run.teacher_weights or (1.0,) * len(run.teachers), 10)
        optim.read(run.optim, f'runs.{name}.optim')


def anchors(page: Path) -> set[str]:
    """What a link to a part of a page may name, as GitHub makes it of the headings."""
    text = re.sub(
        r'^```.*?^```', '', page.read_text(encoding='utf-8'), flags=re.DOTALL | re.MULTILINE
    )
    headings = re.findall(r'^#{1,6} (.+?)\s*$', text, re.MULTILINE)
    words = (re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading) for heading in headings)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in words}


def links(page: Path) -> list[str]:
    """The targets of the links and images of a page."""
    text = re.sub(
        r'^```.*?^```', '', page.read_text(encoding='utf-8'), flags=re.DOTALL | re.MULTILINE
    )
    text = re.sub(r'`[^`\n]*`', '', text)
    return re.findall(r'\]\(([^)\s]+)\)', text)
