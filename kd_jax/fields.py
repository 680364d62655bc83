"""Fields whose default, range and meaning stand on the field itself, and the
one function that checks them.

    tau: float = number(4.0, above=0, sweep=True)  # the temperature

is a field of a dataclass (a Flax module is one). `check(Class, given, path)` returns all
fields of the class with what is given, in the type of the default, or says in one sentence
what is wrong with which value.
"""

import dataclasses
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from kd_jax.errors import UserError, unknown

# What float32 and int32 can hold, with room.
MOST, MOST_WHOLE = 1e30, 2**31 - 1
# Fields by the names that they had in earlier versions.
RENAMED = {'past_epochs': 'snapshot_epochs', 'population': 'sweep'}


class Limit(NamedTuple):
    """What a field allows: `allowed(value)`, and the same in words, which follow 'it must be'.
    known: the names of a choice.
    """

    allowed: Callable[[Any], bool]
    words: str
    known: tuple[str, ...] = ()


def field(
    default: Any,
    allowed: Callable[[Any], bool],
    words: str = '',
    *,
    sweep: bool = False,
    example: Any = None,
    known: tuple[str, ...] = (),
) -> Any:
    """A field with a range of its own.

    sweep: its value may be a number that only a running step knows, so that
      another value compiles nothing.
    known: names that it allows, among others; words follow from them.
    example: a value of its type, where the default (None, or an empty tuple) does not tell it.
    """
    words = words or ' or '.join(map(repr, known))
    return _field(default, Limit(allowed, words, known), sweep, example)


def _field(default: Any, limit: Limit, sweep: bool = False, example: Any = None) -> Any:
    return dataclasses.field(
        default=default, metadata={'limit': limit, 'sweep': sweep, 'example': example}
    )


def number(
    default: float | None,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    words: str = '',
    sweep: bool = False,
    example: float | None = None,
) -> Any:
    """A finite number within bounds; whole where the default is.

    words: in place of those that follow from the bounds. example: where the default is None;
    whole if the number must be.
    """
    low = -math.inf if above is None else above
    high = math.inf if below is None else below
    example = 1.0 if default is None and example is None else example
    kind = 'whole' if isinstance(example if default is None else default, int) else 'finite'

    def allowed(value: float) -> bool:
        return (
            low < value < high
            and (at_least is None or value >= at_least)
            and (at_most is None or value <= at_most)
        )

    return _field(
        default,
        Limit(allowed, words or _words(kind, above, at_least, below, at_most)),
        sweep,
        example,
    )


def _words(
    kind: str,
    above: float | None,
    at_least: float | None,
    below: float | None,
    at_most: float | None,
) -> str:
    lower = (
        f'greater than {above}'
        if above is not None
        else f'at least {at_least}'
        if at_least is not None
        else ''
    )
    upper = (
        f'less than {below}'
        if below is not None
        else f'at most {at_most}'
        if at_most is not None
        else ''
    )
    if upper:
        return f'{lower} and {upper}' if lower else upper
    if above is None and at_least is not None:
        return f'a {kind} number, {at_least} or more'
    return f'a {kind} number {lower}'.rstrip()


def choice(default: str, *known: str) -> Any:
    """One of the names `known` and the default."""
    known = known if default in known else (default, *known)
    return _field(
        default, Limit(lambda value: value in known, ' or '.join(map(repr, known)), known)
    )


def flag(default: bool) -> Any:
    """True or False."""
    return _field(default, Limit(lambda value: isinstance(value, bool), 'True or False'))


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and not any(unicodedata.category(c) == 'Cc' for c in value)


def text(default: str = '') -> Any:
    """Any text; what it must name is known only where it is used."""
    return _field(default, Limit(_is_line, 'text on one line, without control characters'))


def several(default: tuple[Any, ...], each: Callable[[Any], bool], words: str) -> Any:
    """A tuple, of which every item is allowed; an empty one is. words: of the items, such
    as 'numbers greater than 0'.
    """
    return _field(default, Limit(lambda values: all(each(value) for value in values), words))


def names(default: tuple[str, ...] = (), words: str = 'names') -> Any:
    """A tuple of texts, none of them empty."""
    return several(default, lambda value: isinstance(value, str) and bool(value), words)


def optional(kind: type, limit: Limit | None = None) -> Any:
    """A field of type `kind` or None, which means what is usual
    there. limit: of what is not None.
    """
    limit = limit or Limit(lambda value: isinstance(value, kind), f'{kind.__name__} or None')
    return _field(None, limit, example=kind())


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def own(cls: type, but: Iterable[str] = ()) -> dict[str, dataclasses.Field[Any]]:
    """Name -> field of a dataclass: those with a limit, except `but`; the others are set by
    the program, not by the user.
    """
    return {
        f.name: f for f in dataclasses.fields(cls) if 'limit' in f.metadata and f.name not in but
    }


def defaults(cls: type) -> dict[str, Any]:
    """Name -> default of the fields with a limit."""
    return {name: f.default for name, f in own(cls).items()}


def swept(cls: type) -> tuple[str, ...]:
    """The fields that may be numbers which only a running step knows."""
    return tuple(name for name, f in own(cls).items() if f.metadata['sweep'])


def check(cls: type, given: Mapping[str, Any], path: str, kind: str = 'field') -> dict[str, Any]:
    """All fields of `cls` with what is `given` (None: the default), each in
    its type and within its limit.

    path: where they stand in a config, such as 'runs.student.optim', for the sentence.

    Raises:
      UserError: for a field that `cls` does not have, or a value of
        another type or outside its limit.
    """
    fields = own(cls)
    if not hasattr(given, 'keys'):
        raise UserError(
            f'{path} is {given!r}; it must be a mapping of its fields: {", ".join(fields)}'
        )
    values = defaults(cls)
    for name in given:
        if name not in fields:
            raise unknown(f'{kind} of {path}', name, fields)
        if given[name] is not None:
            values[name] = checked(f'{path}.{name}' if path else name, given[name], fields[name])
    return values


def checked(path: str, value: Any, of: dataclasses.Field[Any]) -> Any:
    """`value` in the type of a field, if it is allowed there; `UserError` otherwise."""
    fitted, words = fit(value, of)
    if not words:
        return fitted
    known = of.metadata['limit'].known
    if known and isinstance(value, str):
        raise unknown(f'value of {path}', value, known)
    raise UserError(f'{path} is {fitted!r}; it must be {words}')


def fit(value: Any, of: dataclasses.Field[Any]) -> tuple[Any, str]:
    """`value` in the type of a field, and '' if it is allowed there; otherwise as it is,
    and what it must be, in words.
    """
    limit, default = of.metadata['limit'], of.default
    fitted, words = _typed(value, of.metadata['example'] if default is None else default, limit)
    if words:
        return fitted, words
    for item in fitted if isinstance(fitted, tuple) else (fitted,):
        if not _is_sound(item):
            return fitted, f'{_soundness(item, limit.words)}{limit.words}'
    return fitted, '' if limit.allowed(fitted) else limit.words


def _soundness(value: Any, words: str) -> str:
    if isinstance(value, Integral):
        return f'at most {MOST_WHOLE} in size, and '
    if math.isfinite(value):
        return f'at most {MOST:g} in size, and '
    return '' if 'finite' in words else 'finite, and '


def _is_sound(value: Any) -> bool:
    """Whether a number, if it is one, is finite and one that float32, or int32, can hold."""
    if not is_number(value):
        return True
    if isinstance(value, Integral):
        return abs(int(value)) <= MOST_WHOLE
    return math.isfinite(value) and abs(value) <= MOST


def _typed(value: Any, example: Any, limit: Limit) -> tuple[Any, str]:
    """As `fit`, by the type of `example` alone: a tuple, a bool, an int, a float or a str."""
    if isinstance(example, tuple):
        return (
            (tuple(value), '')
            if isinstance(value, (tuple, list))
            else (value, f'a list of {limit.words}')
        )
    if isinstance(example, bool):
        fits, words = isinstance(value, bool), 'True or False'
    elif isinstance(example, int):
        fits = is_number(value) and isinstance(value, Integral)
        words = f'a whole number, such as {example!r}'
        value = int(value) if fits else value
    elif isinstance(example, float):
        fits, words = is_number(value), f'a number, such as {example!r}'
        value = float(value) if fits and _is_sound(value) else value
    elif limit.known:
        fits, words = isinstance(value, str), limit.words
    else:
        fits, words = isinstance(value, str), 'text'
    return value, '' if fits else words
