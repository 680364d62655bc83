"""What SIGTERM, SIGINT (Ctrl-C) and SIGHUP (a closed terminal) do to a command."""

import os
import signal
from collections.abc import Callable
from types import FrameType

_Handler = Callable[[int, FrameType | None], object] | signal.Handlers
STOPS = tuple(
    getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGHUP') if hasattr(signal, name)
)


def end_at_once() -> None:
    """From now on they end this process with one line and exit status 128 + number; for imports,
    and for work that another start repeats.
    """
    _handle(_end)


def end_by_default() -> None:
    """From now on the system ends this process, also inside a call that blocks Python's handlers;
    a shell shows the same exit status.
    """
    _handle(signal.SIG_DFL)


def note() -> list[int]:
    """From now on the list gets the number of each that is received, and nothing else happens."""
    received: list[int] = []
    _handle(lambda number, _: received.append(number))
    return received


def _handle(handler: _Handler) -> None:
    for number in STOPS:
        # nohup has it ignored
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _end(number: int, _: FrameType | None) -> None:
    os.write(2, f'stopped by {signal.Signals(number).name}\n'.encode())
    os._exit(128 + number)
