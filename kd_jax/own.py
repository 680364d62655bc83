"""Models, losses and data of the user's own, by the name 'package.module:attribute'.

A config that the user gives is code, so what it names is imported. A workdir is data: what it
names is imported only if the user's config names it too, or where the user trusts it.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kd_jax.errors import UserError, unknown

_NAME = re.compile(r'[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*')
EXAMPLE = "'package.module:name', such as 'mynets:TinyNet'"

_trusted: set[str] = set()
_everything = [False]  # is trusted
_here: dict[str, Any] = {}  # objects of this process, under names that cannot be imported
_told: set[str] = set()  # names of what was imported
_imported: list[str] = []  # sentences about it that nobody was told yet


def is_own(name: object) -> bool:
    """Whether it is written as the name of something of the user's own."""
    return isinstance(name, str) and ':' in name


def trust(names: Iterable[str]) -> None:
    """What has these names may be imported in this process: the user named them."""
    _trusted.update(names)


def trust_workdirs() -> None:
    """What workdirs name may be imported in this process: the user said so."""
    _everything[0] = True


def keep(name: str, thing: Any) -> None:
    """`thing` is what `name` means in this process from now on, such as a class of a notebook."""
    _here[name] = thing
    _trusted.add(name)


def search_in(folder: Path) -> None:
    """Modules of the user's are looked for in `folder` too, after all other places."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def load(name: str, kind: str) -> Any:
    """What `name` means. kind: 'model', 'loss', 'data source', for sentences.

    Raises:
      UserError: for a name that is not written so, is not trusted, or cannot be imported.
    """
    if name in _here:
        return _here[name]
    if not _NAME.fullmatch(name):
        raise UserError(f'{kind} {name!r} is no name of your own; write {EXAMPLE}')
    module, _, path = name.partition(':')
    if not (_everything[0] or name in _trusted):
        raise UserError(
            f'{kind} {name!r} is code outside of kd_jax, which a workdir names; if you trust it, '
            'say --trust (in Python, trust=True)'
        )
    if module == '__main__' and not hasattr(sys.modules['__main__'], path.partition('.')[0]):
        raise UserError(
            f'{kind} {name!r} was made in a notebook or a script, which is gone; put it into a '
            'module of its own'
        )
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module may raise anything
        if isinstance(error, ModuleNotFoundError) and (error.name or '') in _parents(module):
            raise UserError(
                f'{kind} {name!r} cannot be imported: there is no module {error.name!r} in the '
                "config's directory, the current one or the environment; name another, or set "
                'PYTHONPATH'
            ) from None
        raise UserError(
            f'{kind} {name!r} cannot be imported: {type(error).__name__}: {error}; mend {module}'
        ) from error
    if name not in _told:
        _told.add(name)
        _imported.append(f'{kind} {name} is imported from {getattr(found, "__file__", module)}')
    for part in path.split('.'):
        if not hasattr(found, part):
            raise unknown(f'{kind} of module {module}', path, _named(found))
        found = getattr(found, part)
    return found


def _parents(module: str) -> list[str]:
    parts = module.split('.')
    return ['.'.join(parts[: k + 1]) for k in range(len(parts))]


def _named(module: Any) -> list[str]:
    return [name for name, value in vars(module).items() if callable(value) and name[0] != '_']


def tell(say: Callable[[str], object]) -> None:
    """Says what was imported and not told yet, a sentence each."""
    while _imported:
        say(_imported.pop(0))


def parameters(of: Any) -> dict[str, inspect.Parameter]:
    """Name -> parameter of what `of` can be called with, `self` apart."""
    # the metaclass of nnx hides what its classes take
    called: Any = of.__init__ if isinstance(of, type) else of  # type: ignore[misc]
    found = inspect.signature(called).parameters
    return {name: one for name, one in found.items() if name != 'self'}
