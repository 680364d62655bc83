"""How far a study is, and the time that is left: what the training tells, and a display reads."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

SURE = 0.5  # seconds of steps after which their pace counts as known


@dataclasses.dataclass
class Part:
    """A run, a sweep or an extraction: `trainings`, one after the other and this one included, of
    `steps` with `validations` each; and what they took in this process, compiling left out.
    """

    steps: int
    validations: int = 0
    trainings: int = 1
    timed: int = 0  # steps, and the seconds they took
    seconds: float = 0.0
    validated: int = 0  # validations, and the seconds they took; the first one compiles
    validation_seconds: float = 0.0

    def stepped(self, count: int, seconds: float) -> None:
        self.timed, self.seconds = self.timed + count, self.seconds + seconds

    def has_validated(self, seconds: float) -> None:
        self.validated += 1
        if self.validated > 1:
            self.validation_seconds += seconds

    def takes(self, steps: int, validations: int) -> float | None:
        """Seconds of so many; None: not known yet."""
        if not self.timed or self.seconds < SURE:
            return None
        each = self.validation_seconds / max(self.validated - 1, 1)
        return steps * self.seconds / self.timed + validations * each


@dataclasses.dataclass
class Status:
    """What there is to show. Times are on the tracker's clock."""

    title: str
    place: Sequence[str] = ()  # such as 'run 2 of 3'
    doing: str = ''  # instead of training, such as 'compiling'
    since: float = 0.0  # when that began
    step: int = 0
    total: int = 0  # steps; 0: nobody knows how many
    epochs: float = 0.0  # in all of them; 0: these are no epochs
    loss: float | None = None
    val: str = ''
    rate: float = 0.0  # images a second; 0: not known yet
    waits: float = 0.0  # the share of the time in which the devices wait for images
    ends: tuple[float, float] | None = None  # when the run does, and the study
    guessed: bool = False  # the end of the study, for some of its runs have no pace yet

    @property
    def share(self) -> float:
        return self.step / self.total if self.total else 0.0


class Tracker:
    """What the main process does now; it is told by the code that does it.

    changed: is called after each change, in the thread of the training.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        changed: Callable[[], None] = lambda: None,
    ):
        self.clock, self.changed = clock, changed
        self.status: Status | None = None  # None: there is nothing to show
        self.heading: tuple[str, ...] = ()  # places that come before, such as of a search
        self._parts: dict[str, Part] = {}  # of the study
        self._title, self._run = '', Part(0)  # the run or sweep
        self._place: tuple[str, ...] = ()
        self._part = self._run  # what is counted now: that, or an extraction for it
        self._mark: float | None = None  # until when time has been counted; None: it compiles
        self._due = 0  # validations to come in this training

    def plan(self, parts: Mapping[str, Part]) -> None:
        """The runs and sweeps of a study in their order; those that are finished have no
        trainings.
        """
        self._parts = dict(parts)

    def busy(self, title: str, doing: str) -> None:
        """Something of which nobody knows how long it takes."""
        self._show(Status(title, self.heading, doing, self.clock()))

    def begin(self, title: str, part: Part) -> None:
        """A run or a sweep begins."""
        names = list(self._parts)
        self._title, self._run, self._place = title, part, self.heading
        if title in names:
            self._parts[title] = part
            if len(names) > 1:
                self._place += (f'run {names.index(title) + 1} of {len(names)}',)
        self._show(Status(title, self._place, 'starting', self.clock()))

    def counting(self, title: str, total: int) -> None:
        """Something for this run begins that has so many steps."""
        self._part, self._mark = Part(total), None
        self._show(Status(title, self.heading, 'compiling', self.clock(), 0, total))

    def training(self, place: str, step: int, total: int, epochs: float, due: int) -> None:
        """A training of this run begins after `step` of `total` steps, with `due` validations
        to come.
        """
        doing = 'starting' if self._run.timed else 'compiling'
        self._part, self._mark, self._due = self._run, None, due
        places = (*self._place, place)
        self._show(Status(self._title, places, doing, self.clock(), step, total, epochs))

    def stepped(
        self,
        step: int,
        loss: float | None = None,
        val: str = '',
        rate: float = 0.0,
        waits: float = 0.0,
    ) -> None:
        """So many steps are handed to the devices; the first of them waited for the compiler."""
        status, now = self.status, self.clock()
        if status is None:
            return
        if self._mark is not None:
            self._part.stepped(step - status.step, now - self._mark)
        self._mark = now
        status.step, status.loss, status.doing, status.rate = step, loss, '', rate
        status.waits = waits
        status.val = val or status.val
        others = self._parts.values() if self._part is self._run else ()
        estimate(status, self._part, self._due, others, now)
        self.changed()

    def doing(self, what: str) -> None:
        """Instead of the next step."""
        if self.status is not None:
            self.status.doing, self.status.since = what, self.clock()
            self.changed()

    def validated(self) -> None:
        """What began with `doing('validating')` is over."""
        now = self.clock()
        if self._mark is not None:
            self._part.has_validated(now - self._mark)
            self._mark = now
        self._due = max(self._due - 1, 0)
        self.doing('')

    def trained(self) -> None:
        """A training of this run ended."""
        self._run.trainings -= 1

    def idle(self) -> None:
        """There is nothing to show: others may write on the terminal."""
        self._show(None)

    def _show(self, status: Status | None) -> None:
        self.status = status
        self.changed()


def estimate(status: Status, part: Part, due: int, parts: Iterable[Part], now: float) -> None:
    """Notes when the run and the study end, once the pace of the run is known. Runs that have no
    pace yet are taken to have the same.

    part: of the run; due: validations to come in this training; parts: of the study.
    """
    here = part.takes(status.total - status.step, due)
    if here is None:
        return
    more = part.takes(part.steps, part.validations) or 0.0
    run = study = here + max(part.trainings - 1, 0) * more
    status.guessed = False
    for other in parts:
        if other is not part and other.trainings > 0:
            takes = other.takes(other.steps, other.validations)
            if takes is None:
                status.guessed = True
                takes = part.takes(other.steps, other.validations) or 0.0
            study += other.trainings * takes
    status.ends = now + run, now + study
