"""The one exception for mistakes in the user's input, how a command tells it, and the
sentence for an unknown name.
"""

import argparse
import contextlib
import difflib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NoReturn

# What the operating system says when it is not our fault; anything else is
# a bug and stays a traceback.
_SYSTEM_REASONS = {
    'no space left': 'no space left on the device',
    'quota exceeded': 'the disk quota is used up',
    'file too large': 'it would be larger than files may be here (see ulimit -f)',
    'permission denied': 'permission denied',
    'read-only file system': 'the file system is read-only',
}


LONGEST = 1400  # characters of a sentence; what is in the middle of a longer one is left out


class UserError(Exception):
    """A mistake in the user's input. `str(error)` is one sentence, on one line: the
    value, what is allowed, the fix.
    """

    def __init__(self, sentence: object = ''):
        told = ' '.join(str(sentence).split())
        if len(told) > LONGEST:  # such as a list of a million numbers
            told = f'{told[: LONGEST // 2]} ... {told[-LONGEST // 3 :]}'
        super().__init__(told)


class Diverged(UserError):
    """A training whose loss is not finite any more. Others need not end with it.

    step: updates before the step of that loss. losses: label -> value there.
    """

    def __init__(self, sentence: object, step: int, losses: Mapping[str, float]):
        super().__init__(sentence)
        self.step, self.losses = step, losses


def fail(message: object) -> NoReturn:
    """One line on stderr, exit status 2."""
    print(f'error: {" ".join(str(message).split())}', file=sys.stderr, flush=True)
    sys.exit(2)


def called(program: str) -> str:
    """How the user calls this command: `kd_jax COMMAND` if that runs it, else `program`."""
    return sys.argv[0] if sys.argv[0].startswith('kd_jax ') else program


class Parser(argparse.ArgumentParser):
    """One whose mistakes are a sentence, not its usage. prog: see `called`."""

    def __init__(self, prog: str, description: str):
        super().__init__(prog=called(prog), description=description)

    def error(self, message: str) -> NoReturn:
        fail(f'{message}; see {self.prog} --help')


@contextlib.contextmanager
def told_to_the_user(where: object = 'a file') -> Iterator[None]:
    """A `UserError` inside ends the program with its sentence; so does a file system that is full
    or refuses, which names `where` if it names no file.
    """
    try:
        yield
    except UserError as error:
        fail(error)
    except OSError as error:
        fail_for_the_system(error, where)


def fail_for_the_system(error: OSError, where: object = 'a file') -> NoReturn:
    """`fail` where the system is the reason; any other error is raised again.

    where: is named if the error names no file.
    """
    if isinstance(error, BrokenPipeError):  # such as `| head`, which has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    reason = system_reason(error)
    if reason is None:
        raise error
    fail(
        f'{error.filename or where} cannot be written: {reason}; make room '
        'and run the same command again'
    )


def system_reason(error: BaseException) -> str | None:
    """The plain words for an error of the file system, or None for any other error."""
    text = str(error).lower()
    return next((words for sign, words in _SYSTEM_REASONS.items() if sign in text), None)


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], NoReturn]:
    """A module's `__getattr__` that tells what `names` of earlier versions are called now."""

    def getattribute(name: str) -> NoReturn:
        if name in names:
            raise ImportError(f'{module}.{name} is called {names[name]} now; import that')
        raise AttributeError(f'module {module!r} has no attribute {name!r}')

    return getattribute


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """`unknown model 'resnet19'; did you mean 'resnet18'? known: ...` as a `UserError` to raise."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    return UserError(f'unknown {kind} {name!r}; {hint}known: {", ".join(known)}')
