"""Input that is refused: all that SECURITY.md says of it, asserted.

`refused(...)` runs the real command in a process that is forked for it (`tests/commands.py`), which
measures itself: exit status 2, one line on stderr that names the value, soon, in little memory,
nothing imported that is not installed, and nothing changed. `refused_here(...)` asserts the same of
a function in this process, for the many inputs of a class of which `refused` has seen one.
"""

import contextlib
import gc
import hashlib
import importlib
import json
import os
import runpy
import stat
import sys
import sysconfig
import tempfile
import time
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
MEGABYTES, SECONDS = 200, 2.0  # that a refusal may take, beyond what importing took
LENGTH = 1500  # of the sentence
# Imported before anything is measured.
IMPORTED = (
    'kd_jax.data.tfds',
    'kd_jax.evaluate',
    'kd_jax.pretrained.run',
    'kd_jax.report',
    'safetensors.numpy',
)
INSTALLED = (str(TESTS.parent), *map(sysconfig.get_path, ('stdlib', 'purelib', 'platlib')))


def refused(module, *arguments, says=(), keeps=(), seconds=SECONDS, path=(), **environment):
    """The sentence with which `python -m MODULE ARGUMENTS` refuses.

    says: what it must hold. keeps: folders in which nothing may change; only an empty file
    `lock` may be new. path: folders from which the command could import.
    """
    import commands
    from helpers import assert_refused
    from helpers import environment as usual

    commands.preload(*IMPORTED)
    with tempfile.TemporaryDirectory() as folder, unchanged(keeps):
        used = Path(folder, 'used.json')
        places = os.pathsep.join(map(str, [TESTS, *path]))
        done = commands.run(
            'refusals', used, module, *arguments, env=usual(PYTHONPATH=places, **environment)
        )
        assert_refused(done)
        found = json.loads(used.read_text())
    assert done.stderr.endswith('\n')
    configs = {str(argument).partition('=')[2] for argument in arguments}  # which are code
    found['imported'] = [file for file in found['imported'] if file not in configs]
    _assert_good(done.stderr.strip(), says, found, seconds)
    return done.stderr


def refused_here(action, says=(), keeps=(), seconds=SECONDS, megabytes=MEGABYTES):
    """The same of `action()`, which raises a `UserError`, in this process."""
    sentence = refused_or_taken(action, says, keeps, seconds, megabytes)
    assert sentence is not None, 'it is not refused'
    return sentence


def refused_or_taken(action, says=(), keeps=(), seconds=SECONDS, megabytes=MEGABYTES):
    """`refused_here`, or None where the input makes sense after all: then it must be no dearer, and
    change nothing either.
    """
    from kd_jax.errors import UserError

    _import()
    sentence = None
    with unchanged(keeps), measured() as found:
        try:
            action()
        except UserError as error:
            sentence = str(error)
    _assert_good(sentence, says if sentence is not None else (), found, seconds, megabytes)
    return sentence


def _assert_good(sentence, says, found, seconds, megabytes=MEGABYTES):
    if sentence is not None:
        assert sentence and sentence.isprintable() and len(sentence) < LENGTH, sentence
    for part in says:
        assert str(part) in sentence, (part, sentence)
    assert found['seconds'] < seconds, (found, sentence)
    assert found['megabytes'] < megabytes, (found, sentence)
    assert not found['imported'], (found, sentence)


@contextlib.contextmanager
def unchanged(folders):
    """Asserts that nothing in the folders changes, but that an empty file `lock` may be new."""
    before = [snapshot(folder) for folder in folders]
    yield
    for folder, there in zip(folders, before, strict=True):
        now = snapshot(folder)
        locks = {name for name in now.keys() - there.keys() if Path(name).name == 'lock'}
        assert all(now.pop(lock) == _EMPTY for lock in locks), locks
        assert now == there


def snapshot(folder):
    """The files in a folder, byte for byte."""
    files = [p for p in sorted(Path(folder).rglob('*')) if p.is_symlink() or not p.is_dir()]
    return {str(path.relative_to(folder)): _content(path) for path in files}


def _content(path):
    about = path.lstat()
    if path.is_symlink():
        return os.readlink(path)
    if not stat.S_ISREG(about.st_mode):
        return stat.S_IFMT(about.st_mode)
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').digest()


_EMPTY = hashlib.sha256().digest()


@cache
def _import():
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()


@contextlib.contextmanager
def measured():
    """Gives a dict that at the end holds what was used: `seconds` of CPU, `megabytes` more than at
    first, and the modules `imported` from where nothing is installed.
    """
    used, modules = {}, set(sys.modules)
    Path('/proc/self/clear_refs').write_text('5')  # the peak is that of now
    memory, began = _status('VmRSS'), time.process_time()
    try:
        yield used
    finally:
        used['seconds'] = time.process_time() - began
        used['megabytes'] = (_status('VmHWM') - memory) / 2**10
        files = {getattr(sys.modules[name], '__file__', None) for name in {*sys.modules} - modules}
        used['imported'] = [
            file for file in files if file and not os.path.abspath(file).startswith(INSTALLED)
        ]


def _status(name):
    """A number of kB from what Linux says of this process."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f'{name}:'))


def _main():
    """`python -m refusals FILE MODULE ARGUMENTS`: as `python -m MODULE ARGUMENTS`, and FILE says
    what that used.
    """
    used, module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)  # what another one imported is not what is run
    try:
        with measured() as found:
            runpy.run_module(module, run_name='__main__', alter_sys=True)
    finally:
        Path(used).write_text(json.dumps(found))


if __name__ == '__main__':
    _main()
