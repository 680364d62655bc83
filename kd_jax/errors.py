"""The one exception for mistakes in the user's input, and the sentence for a name that is not in a table."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the user's input. `str(error)` is one sentence: the value, what is allowed, the fix."""


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """`unknown model 'resnet19'; did you mean 'resnet18'? known: ...` as a `UserError` to raise."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    return UserError(f'unknown {kind} {name!r}; {hint}known: {", ".join(known)}')
