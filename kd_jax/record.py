"""What a training run knows of itself: metrics of finished steps, the best validation, checkpoints, the time it took."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax import evaluate
from kd_jax.checkpoint import Checkpoints
from kd_jax.errors import Diverged
from kd_jax.monitor import Monitor

SYNC_EVERY = 50  # steps between looks at the metrics; those of the newest dispatch are left out, so that no device waits


@dataclasses.dataclass
class Progress:
    """What a resumed run must know besides the state; saved as JSON in every checkpoint."""

    best_step: int | None = None
    best: list[float] | None = None  # [top-1, -NLL] on validation: the NLL decides between equal accuracies
    since_best: int = 0  # validations
    interval_steps: int = 0  # since the last validation
    interval_sums: dict[str, float] = dataclasses.field(default_factory=dict)
    images: int = 0  # trained on, and the seconds that took: no compilation, no evaluation
    train_seconds: float = 0.0
    seconds: float = 0.0  # of everything

    def add(self, metrics: dict[str, np.ndarray]) -> None:
        """The metrics `[S]` of S steps."""
        self.interval_steps += len(metrics['loss'])
        for name, values in metrics.items():
            for value in values.tolist():  # one by one: how the steps were dispatched makes no difference
                self.interval_sums[name] = self.interval_sums.get(name, 0.0) + value

    def close_interval(self) -> dict[str, float]:
        """The mean metrics of the steps since the last call."""
        means = {name: value / self.interval_steps for name, value in self.interval_sums.items()}
        self.interval_steps, self.interval_sums = 0, {}
        return means

    def judge(self, step: int, val: dict[str, float]) -> None:
        """Notes whether the validation at `step` is the best so far."""
        value = [val['top1'], -val['nll']]
        if self.best is None or value > self.best:
            self.best, self.best_step, self.since_best = value, step, 0
        else:
            self.since_best += 1


class Dispatch(NamedTuple):
    """Steps that were handed to the devices: `step` updates are done after them."""

    step: int
    count: int
    metrics: dict[str, jax.Array]  # `[S]`, of which the first `count` mean something; of several runs `[D, S]`
    place: int | None = None  # which of them is meant


class Due(NamedTuple):
    """A validation and a checkpoint that the devices may still be working on."""

    step: int
    sums: list[dict[str, jax.Array]] | None  # of `kd_jax.evaluate.start`; None: a checkpoint only
    state: Any


class Recorder:
    """Takes in what the devices give, in order, and writes it down, without making them wait.

    learning_rate: of each step; peak: its highest value, for messages. begin: `time.perf_counter()` when the run began.
    """

    def __init__(
        self,
        title: str,
        progress: Progress,
        monitor: Monitor,
        checkpoints: Checkpoints,
        *,
        batch_size: int,
        learning_rate: Callable[[int], float],
        peak: float,
        begin: float,
    ):
        self.title, self.progress, self.monitor, self.checkpoints = title, progress, monitor, checkpoints
        self.batch_size, self.learning_rate, self.peak = batch_size, learning_rate, peak
        self._begin, self._before = begin, progress.seconds
        self.val: dict[str, Any] = {}  # the last validation
        self._pending: list[Dispatch] = []
        self._due: Due | None = None
        self._first = True

    def seconds(self) -> float:
        """That the run has taken, those before it was resumed included."""
        return self._before + time.perf_counter() - self._begin

    def dispatched(self, dispatch: Dispatch) -> float | None:
        """Notes steps that were handed to the devices. The first time it waits for them, and returns the seconds they took."""
        self.settle()  # while the devices are busy with these
        self._pending.append(dispatch)
        if self._first:
            self._first = False
            self.collect()
            return time.perf_counter() - self._begin
        if sum(earlier.count for earlier in self._pending[:-1]) >= SYNC_EVERY:
            self.collect(keep=1)
        return None

    def due(self, due: Due) -> None:
        """Notes a validation; `settle` writes it down."""
        self._due = due

    def settle(self) -> None:
        """Waits for the validation that is due, if any, logs it and saves the checkpoint."""
        if self._due is None:
            return
        (step, sums, state), self._due = self._due, None
        self.collect()
        if sums is not None:
            self.monitor.write(step, 'train', self.progress.close_interval() | {'learning_rate': self.learning_rate(step - 1)})
            val = self.val = evaluate.finish(sums)
            self.monitor.write(step, 'val', _flat(val))
            self.monitor.evaluated(step, val)
            self.progress.judge(step, val)
        self.progress.seconds = self.seconds()
        self.checkpoints.save(step, state, dataclasses.asdict(self.progress))
        self.monitor.pause()

    def collect(self, keep: int = 0) -> None:
        """Waits for all dispatches but the last `keep`, and takes in their metrics and the time they took."""
        split = len(self._pending) - keep
        done, self._pending = self._pending[:split], self._pending[split:]
        if not done:
            return
        for dispatch in done:
            metrics = jax.device_get(dispatch.metrics)
            if dispatch.place is not None:
                metrics = {name: x[dispatch.place] for name, x in metrics.items()}
            metrics = {name: x[: dispatch.count] for name, x in metrics.items()}
            self._refuse_infinite(dispatch.step - dispatch.count, metrics['loss'])
            self.progress.add(metrics)
        seconds = self.monitor.advance(done[-1].step, float(metrics['loss'][-1]))
        self.progress.images += self.batch_size * sum(dispatch.count for dispatch in done) * (seconds > 0)
        self.progress.train_seconds += seconds

    def _refuse_infinite(self, before: int, losses: np.ndarray) -> None:
        wrong = np.flatnonzero(~np.isfinite(losses))
        if len(wrong):
            loss = 'inf' if math.isinf(losses[wrong[0]]) else 'nan'
            raise Diverged(
                f'the loss of {self.title} became {loss} at step {before + wrong[0] + 1}; the last good checkpoint is kept; '
                f'lower optim.learning_rate (now {self.peak:g}) or set optim.clip_norm, in a new --workdir'
            )


def _flat(metrics: dict[str, Any]) -> dict[str, float]:
    """Metrics for a log line: the groups 'teacher' and 'heads' become names with a prefix."""
    flat = {name: value for name, value in metrics.items() if name not in ('teacher', 'heads')}
    for group, prefix in (('teacher', 'teacher_'), ('heads', 'top1_')):
        flat |= {f'{prefix}{name}': value for name, value in (metrics.get(group) or {}).items()}
    return flat
