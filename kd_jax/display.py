"""Where a command shows how far it is: on a terminal, in a notebook, or in plain lines.

`with showing(): study.run(...)` takes what fits; `showing(Notebook())` takes that one.
"""

import contextlib
import html
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from kd_jax.progress import Status, Tracker

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

WIDEST_BAR = 60
BESIDE = 41  # columns for what stands beside the bar
LITTLE = 0.05  # share of waiting for images that is worth no word
PATIENCE = 0.5  # seconds after which a validation is worth a word
REDRAWS = 4  # a second, at most


def clock(seconds: float) -> str:
    """`75 -> '1:15'`, `3700 -> '1:01:40'`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'


def layout(status: Status, width: int, now: float) -> list[str]:
    """The lines of a status, none wider than `width`; as many at every moment of a training."""
    if not status.total:
        text = f'{status.doing} {clock(now - status.since)}'
        return [_fitting([status.title, *status.place, text], width)]
    epochs = status.epochs and f'epoch {status.share * status.epochs:.1f}/{status.epochs:.1f}'
    head = _fitting([status.title, *status.place, epochs or ''], width)
    facts, beside = _fitting(facts_of(status), width), times_of(status, now)
    percent = f'{math.floor(100 * status.share):>3} %'
    if width >= BESIDE + 19:
        bar = bar_of(status.share, min(WIDEST_BAR, width - BESIDE))
        return [head, _fitting([f'{bar} {percent}', beside], width), facts]
    bar = bar_of(status.share, max(width - 6, 1))
    return [head, _fitting([f'{bar} {percent}'], width), facts, _fitting([beside], width)]


def facts_of(status: Status) -> list[str]:
    """The latest numbers, the most important first."""
    return [
        '' if status.loss is None else f'loss {status.loss:.4g}',
        status.val and f'val top-1 {status.val}',
        f'{status.rate:,.0f} images/s' if status.rate else '',
        waiting(status.waits),
    ]


def waiting(share: float) -> str:
    """`waits 12 % for images`; '' if that is little."""
    return f'waits {100 * share:.0f} % for images' if share >= LITTLE else ''


def times_of(status: Status, now: float) -> str:
    """`run 0:12 · study ≈ 0:58 left`, or what is done instead of training."""
    waiting = status.doing and (status.doing != 'validating' or now - status.since > PATIENCE)
    if waiting:
        return f'{status.doing} {clock(now - status.since)}'
    if status.ends is None:
        return ''
    run, study = (max(end - now, 0.0) for end in status.ends)
    if study - run < 1:
        return f'{clock(run)} left'
    return f'run {clock(run)} · study {"≈ " if status.guessed else ""}{clock(study)} left'


def bar_of(share: float, width: int) -> str:
    """`━━━━╸─────`."""
    halves = int(2 * width * min(max(share, 0.0), 1.0))
    done = '━' * (halves // 2) + '╸' * (halves % 2)
    return done + '─' * (width - len(done))


def _fitting(parts: Sequence[str], width: int) -> str:
    """The parts with dots between them, without the last ones if they would be wider; the
    first is cut.
    """
    from rich.cells import cell_len, set_cell_size

    kept = [part for part in parts if part]
    while len(kept) > 1 and cell_len(' · '.join(kept)) > width:
        kept.pop()
    text = ' · '.join(kept)
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1).rstrip() + '…' if width > 1 else '…'
    return text


class Plain:
    """Lines on stdout and stderr, nothing that moves. The others are kinds of it."""

    live = False  # whether there is more to see than lines

    def __init__(self) -> None:
        self.tracker = Tracker(changed=self._changed)

    def say(self, text: str) -> None:
        """A line for the user, on stdout."""
        print(text, flush=True)

    def warn(self, text: str) -> None:
        """A line for the user, on stderr."""
        print(f'warning: {text}', file=sys.stderr, flush=True)

    def _changed(self) -> None:
        """The tracker was told something."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.tracker.idle()


class _Gone:
    """A terminal's stream that may have been closed: what is written then is lost, not an error."""

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Terminal(Plain):
    """A few lines at the bottom of a terminal that a thread draws anew; what is said appears
    above them. When nothing is to be shown they are gone.

    stopping: whether the user asked to stop. The cursor is never hidden and rests on an empty
    line below, so that a process that is killed leaves a terminal in order.
    """

    live = True

    def __init__(self, stopping: Callable[[], bool] = lambda: False) -> None:
        from rich.console import Console

        class Visible(Console):
            def show_cursor(self, show: bool = True) -> bool:
                return False

        super().__init__()
        self._stopping = stopping
        stream: Any = _Gone(sys.stdout)
        self._console = Visible(file=stream, force_terminal=True, force_jupyter=False)
        self._live: Live | None = None
        self._drawn: list[int] = []  # how wide the lines are that stand there

    def say(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        if sys.stderr.isatty():
            self.say(f'warning: {text}')
        else:
            super().warn(text)

    def _changed(self) -> None:
        shown = self.tracker.status is not None
        if shown and self._live is None:
            self._live = _region(self)
            self._live.start(refresh=True)
        elif not shown and self._live is not None:
            live, self._live = self._live, None
            live.stop()
            self._drawn = []

    def lines(self) -> 'list[Text]':
        """What is drawn now; the last line is empty."""
        from rich.text import Text

        status, width = self.tracker.status, self._console.width
        lines = [] if status is None else layout(status, width, self.tracker.clock())
        if lines and self._stopping():
            lines[-1] = _fitting(['stopping: saves what it has', ''], width)
        self._drawn = [len(line) for line in lines]
        texts = [Text(line, no_wrap=True, overflow='crop') for line in lines]
        for text in texts[:1]:
            text.stylize('bold', 0, text.plain.find(' · ') if ' · ' in text.plain else len(text))
        for text in texts[1:]:
            text.highlight_regex('[━╸]+', 'green')
            text.highlight_regex('─+', 'bright_black')
        return [*texts, Text('')]

    def wrapped(self) -> int:
        """How many rows more than lines stand there, in a window that has become narrow."""
        width = max(self._console.width, 1)
        return sum(max(math.ceil(length / width) - 1, 0) for length in self._drawn)


def _region(terminal: Terminal) -> 'Live':
    """The lines at the bottom."""
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
    from rich.control import Control
    from rich.live import Live
    from rich.segment import ControlType

    class Lines:
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            yield from terminal.lines()

    class Region(Live):
        def process_renderables(
            self, renderables: list[ConsoleRenderable]
        ) -> list[ConsoleRenderable]:
            # what stands there, before it is drawn anew
            up = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
            rows = Control(*(up * terminal.wrapped()))
            return [rows, *super().process_renderables(renderables)]

    return Region(
        Lines(),
        console=terminal._console,
        refresh_per_second=REDRAWS,
        transient=True,
        redirect_stderr=sys.stderr.isatty(),
        vertical_overflow='crop',
    )


class Notebook(Plain):
    """A bar in the output of a notebook's cell, drawn anew at most twice a second."""

    live = True

    def __init__(self, show: Callable[[str], Any] | None = None) -> None:
        """show: html -> a handle whose `update` takes other html; None: IPython's."""
        super().__init__()
        self._show = show or _Cell
        self._handle: Any = None
        self._drawn = -math.inf

    def _changed(self) -> None:
        status, now = self.tracker.status, time.perf_counter()
        if status is None and self._handle is not None:
            self._handle.update('')
            self._handle = None
        elif status is not None and (now - self._drawn > 2 / REDRAWS or self._handle is None):
            self._drawn = now
            if self._handle is None:
                self._handle = self._show(page_of(status, self.tracker.clock()))
            else:
                self._handle.update(page_of(status, self.tracker.clock()))


def page_of(status: Status, now: float) -> str:
    """A status in HTML."""
    words = [*status.place, *facts_of(status), times_of(status, now)]
    text = html.escape(' · '.join(word for word in words if word))
    bar = f'<progress value="{status.step}" max="{status.total}"></progress> '
    return f'<div><b>{html.escape(status.title)}</b> {bar if status.total else ""}{text}</div>'


class _Cell:
    """A place in the output of a cell."""

    def __init__(self, text: str):
        from IPython.display import HTML, display

        self._html = HTML
        self._place = display(HTML(text), display_id=True)

    def update(self, text: str) -> None:
        self._place.update(self._html(text))


_current: list[Plain] = [Plain()]


def current() -> Plain:
    """What shows now."""
    return _current[-1]


def tracker() -> Tracker:
    """That of what shows now, which is to be told what is done."""
    return _current[-1].tracker


def choose(main: bool = True, stopping: Callable[[], bool] = lambda: False) -> Plain:
    """What fits to where stdout goes. main: whether this process is the one that shows."""
    if not main:
        return Plain()
    if _is_notebook():
        return Notebook()
    known = os.environ.get('TERM', 'dumb') not in ('', 'dumb', 'unknown')
    encoding = (getattr(sys.stdout, 'encoding', '') or '').lower().replace('-', '')
    return Terminal(stopping) if known and sys.stdout.isatty() and encoding == 'utf8' else Plain()


@contextlib.contextmanager
def showing(display: Plain | None = None) -> Iterator[Plain]:
    """Inside, everything is shown by `display`; None: by what fits."""
    with display or choose() as shown:
        _current.append(shown)
        try:
            yield shown
        finally:
            _current.pop()


def _is_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    module = sys.modules.get('IPython')
    shell = module.get_ipython() if module is not None else None
    return shell is not None and hasattr(shell, 'kernel')
