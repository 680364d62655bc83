"""What a job knows of itself and writes down: metrics of finished steps, validations,
checkpoints, its result, its time.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import msgspec
import numpy as np

from kd_jax import evaluation, feed, optim, parallel
from kd_jax.checkpoint import Checkpoints, Damaged, restored
from kd_jax.errors import Diverged, UserError
from kd_jax.executors import Dispatch
from kd_jax.initialization import initial_state
from kd_jax.models.common import param_count
from kd_jax.monitor import Monitor, say, warn, warn_once
from kd_jax.spec import Job, TrainState
from kd_jax.workdir import RunDirectory, log_checksum, to_json

# Steps between looks at the metrics; those of the newest dispatch are left out, so that no device
# waits for it.
SYNC_EVERY = 50
LONG_ENOUGH, MUCH = 5.0, 0.2  # seconds of training, share of it: that much waiting is told


@dataclasses.dataclass
class Progress:
    """What a resumed job must know besides the state; saved as JSON in every checkpoint."""

    best_step: int | None = None
    # [top-1, -NLL] on validation: the NLL decides between equal accuracies
    best: list[float] | None = None
    since_best: int = 0  # validations
    interval_steps: int = 0  # since the last line of the training's losses
    interval_sums: dict[str, float] = dataclasses.field(default_factory=dict)
    images: int = 0  # trained on, and the seconds that took: no compilation, no evaluation
    train_seconds: float = 0.0
    waited: float = 0.0  # of the latter, for images, with nothing to do for the devices
    seconds: float = 0.0  # of everything
    # of metrics.jsonl until now, so that it can be mended; None: that of an earlier version
    lines: list[dict[str, Any]] | None = None

    @property
    def waits(self) -> float:
        """The share of the training in which the devices waited for images."""
        return self.waited / self.train_seconds if self.train_seconds else 0.0

    def add(self, metrics: dict[str, np.ndarray]) -> None:
        """The metrics `[S]` of S steps."""
        self.interval_steps += len(metrics['loss'])
        for name, values in metrics.items():
            # One by one: how the steps were dispatched makes no difference.
            for value in values.tolist():
                self.interval_sums[name] = self.interval_sums.get(name, 0.0) + value

    def close_interval(self) -> dict[str, float]:
        """The mean metrics of the steps since the last call."""
        means = {name: value / self.interval_steps for name, value in self.interval_sums.items()}
        self.interval_steps, self.interval_sums = 0, {}
        return means

    def logged(self, line: dict[str, Any]) -> None:
        if self.lines is not None:
            self.lines.append(line)

    def last_validation(self) -> dict[str, Any]:
        """As it was logged; empty if there was none, or if an earlier version trained until now."""
        logged = [line for line in self.lines or () if line['split'] == 'val']
        return logged[-1] if logged else {}

    def validated(self, step: int, val: dict[str, float]) -> None:
        """Notes whether the validation at `step` is the best so far."""
        value = [val['top1'], -val['nll']]
        if self.best is None or value > self.best:
            self.best, self.best_step, self.since_best = value, step, 0
        else:
            self.since_best += 1


class Due(NamedTuple):
    """A validation and a checkpoint that the devices may still be working on."""

    step: int
    sums: list[dict[str, jax.Array]] | None  # of `kd_jax.evaluation.start`; None: a checkpoint only
    state: Any


class Recorder:
    """Takes in what the devices give, in order, and writes it down, without making them wait.

    learning_rate: of each step. begin: `time.perf_counter()` when the job began. log_every: steps
    between lines of the training's losses; 0: at validations only.
    """

    def __init__(
        self,
        job: Job,
        progress: Progress,
        monitor: Monitor,
        checkpoints: Checkpoints,
        learning_rate: Callable[[int], float],
        begin: float,
        log_every: int = 0,
    ):
        self.job, self.progress = job, progress
        self.monitor, self.checkpoints = monitor, checkpoints
        self.val = progress.last_validation()
        self._learning_rate, self._begin, self._before = learning_rate, begin, progress.seconds
        self._log_every, self._pending = log_every, list[Dispatch]()
        self._due: Due | None = None
        self._first = True

    def seconds(self) -> float:
        """That the job has taken, those before it was resumed included."""
        return self._before + time.perf_counter() - self._begin

    def dispatched(self, dispatch: Dispatch) -> float | None:
        """Notes steps that were handed to the devices. The first time it waits for them, and
        returns the seconds they took.
        """
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
            self._log_losses(step)
            val = self.val = evaluation.finish(sums)
            self.progress.logged(self.monitor.write(step, 'val', _flat(val)))
            self.monitor.evaluated(step, val)
            self.progress.validated(step, val)
            self._tell_waiting()
        self.progress.seconds = self.seconds()
        self.checkpoints.save(step, state, dataclasses.asdict(self.progress))
        self.monitor.pause()

    def _tell_waiting(self) -> None:
        """Says once that the devices wait for images, and what may help."""
        progress = self.progress
        if progress.train_seconds > LONG_ENOUGH and progress.waits > MUCH and parallel.is_main():
            how = feed.advice(self.job.run.images, self.job.config.data.decode)
            warn_once(f'{progress.waits:.0%} of the training waits for images: {how}')

    def collect(self, keep: int = 0) -> None:
        """Waits for all dispatches but the last `keep`, and takes in their
        metrics and the time they took.
        """
        split = len(self._pending) - keep
        done, self._pending = self._pending[:split], self._pending[split:]
        if not done:
            return
        metrics: dict[str, np.ndarray] = {}
        for dispatch in done:
            metrics = jax.device_get(dispatch.metrics)
            if dispatch.place is not None:
                metrics = {name: x[dispatch.place] for name, x in metrics.items()}
            metrics = {name: x[: dispatch.count] for name, x in metrics.items()}
            self._refuse_infinite(dispatch.step - dispatch.count, metrics)
            self._take_in(dispatch.step - dispatch.count, metrics)
        waited = sum(dispatch.waited for dispatch in done)
        seconds = self.monitor.advance(done[-1].step, float(metrics['loss'][-1]), waited)
        steps = sum(dispatch.count for dispatch in done)
        self.progress.images += self.job.config.batch_size * steps * (seconds > 0)
        self.progress.train_seconds += seconds
        self.progress.waited += waited if seconds else 0.0

    def _take_in(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        """The metrics `[S]` of the steps after `step` updates, with a line at each multiple of
        `log_every`: how the steps were dispatched makes no difference.
        """
        first, count = 0, len(metrics['loss'])
        while first < count:
            left = self._log_every - (step + first) % self._log_every if self._log_every else count
            last = min(first + left, count)
            self.progress.add({name: values[first:last] for name, values in metrics.items()})
            if last - first == left and self._log_every:
                self._log_losses(step + last)
            first = last

    def _log_losses(self, step: int) -> None:
        """One line: the means since the last one, unless that was at this very step."""
        if self.progress.interval_steps:
            means = self.progress.close_interval()
            means['learning_rate'] = self._learning_rate(step - 1)
            self.progress.logged(self.monitor.write(step, 'train', means))

    def _refuse_infinite(self, before: int, metrics: Mapping[str, np.ndarray]) -> None:
        wrong = np.flatnonzero(~np.isfinite(metrics['loss']))
        if len(wrong):
            there = {name: float(values[wrong[0]]) for name, values in metrics.items()}
            loss, step = 'inf' if math.isinf(there['loss']) else 'nan', before + int(wrong[0])
            sentence = f'the loss of {self.job.title} became {loss} at step {step + 1}'
            raise Diverged(sentence, step, there)


def _flat(metrics: dict[str, Any]) -> dict[str, float]:
    """Metrics for a log line: the groups 'teacher' and 'heads' become names with a prefix."""
    flat = {name: value for name, value in metrics.items() if name not in ('teacher', 'heads')}
    for group, prefix in (('teacher', 'teacher_'), ('heads', 'top1_')):
        flat |= {f'{prefix}{name}': value for name, value in (metrics.get(group) or {}).items()}
    return flat


def _resume_log(directory: RunDirectory, step: int, lines: list[dict[str, Any]] | None) -> None:
    """metrics.jsonl as it was at `step`."""
    if directory.forget_after(step, lines):
        warn(f'{directory.metrics} had lost lines; they are those of the checkpoint of step {step}')


def mend_log(directory: RunDirectory) -> None:
    """Gives the log of a run, if that is finished, back what it has lost; its last checkpoint has
    it. Several processes leave that to a later one.

    Raises:
      UserError: if the log holds something else.
    """
    if jax.process_count() > 1 or not directory.finished() or directory.log_is_whole():
        return
    step = directory.result()['steps']
    with Checkpoints(directory.checkpoints, read_only=True, record=Progress) as checkpoints:
        try:
            lines = checkpoints.read(step)[1]['lines']
        except Damaged as error:
            raise UserError(
                f'{directory.metrics} is damaged, and the checkpoint of step {step} {error}; '
                f'delete {directory.path} and run its study again'
            ) from error
    _resume_log(directory, step, lines)


class JobLog:
    """A job on its way to result.json: its files, and its state as it was saved last.

    A context manager, in which metrics and checkpoints can be written. options: `tensorboard`,
    `wandb`, `shown` of `Monitor`, `log_every` of `Recorder`.
    """

    def __init__(self, job: Job, options: Mapping[str, Any]):
        self.job, self._options = job, dict(options)
        self._log_every: int = self._options.pop('log_every', 0)
        self.directory = RunDirectory(job.directory)
        self._stack = contextlib.ExitStack()
        self.state: TrainState  # as it was before this process trained on
        self.checkpoints: Checkpoints
        self.recorder: Recorder

    def __enter__(self) -> Self:
        begin, job = time.perf_counter(), self.job
        config, timing = to_json(job.config.to_dict()), job.run.timing
        with contextlib.ExitStack() as stack:
            stack.enter_context(parallel.only_here([self.directory.path], f'training {job.title}'))
            if parallel.is_main():
                about = {
                    'run': job.name,
                    'seed': job.seed,
                    'learning_rate': job.learning_rate,
                    'data': job.run.sees.to_json(),
                }
                self.directory.start(to_json(about | {'config': config}))
            parallel.barrier(f'{job.title} directory')
            fresh = initial_state(job)
            self.checkpoints = stack.enter_context(
                Checkpoints(self.directory.checkpoints, record=Progress)
            )
            with_best = job.config.select == 'best'
            latest = self.checkpoints.restore_latest(fresh, warn, with_best=with_best)
            self.state, meta = latest or (fresh, {'lines': []})
            if parallel.is_main():
                _resume_log(self.directory, self.step, meta.get('lines'))
                if self.step:
                    say(f'{job.title} · resumed at step {self.step} of {timing.total_steps}')
            monitor = stack.enter_context(
                Monitor(
                    job.title,
                    self.directory.path,
                    total_steps=timing.total_steps,
                    steps_per_epoch=timing.steps_per_epoch,
                    batch_size=job.config.batch_size,
                    active=parallel.is_main(),
                    config=config,
                    **self._options,
                )
            )
            relative = optim.relative_rate(
                optim.read(job.config.optim),
                total_steps=timing.total_steps,
                steps_per_epoch=timing.steps_per_epoch,
            )
            rate = lambda step: job.learning_rate * float(relative(step))  # noqa: E731
            progress = msgspec.convert(meta, Progress)
            self.recorder = Recorder(
                job, progress, monitor, self.checkpoints, rate, begin, self._log_every
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def step(self) -> int:
        """At which the state was saved."""
        return int(self.state.step)

    def has_enough(self, step: int) -> bool:
        """Whether the training is over after `step` updates."""
        patience = self.job.config.patience
        return step >= self.job.run.timing.total_steps or bool(
            patience and self.recorder.progress.since_best >= patience
        )

    def chosen(self, step: int) -> tuple[int, TrainState | None]:
        """The step whose weights count after the last one, and its state as it was saved;
        None: that is the last one's.
        """
        self.checkpoints.wait()
        chosen = self.recorder.progress.best_step if self.job.config.select == 'best' else step
        assert chosen is not None  # there is a validation at the end
        if chosen == step:
            return chosen, None
        try:
            return chosen, restored(self.state, self.checkpoints.read(chosen)[0])
        except Damaged as error:
            raise UserError(
                f'the checkpoint of step {chosen} in {self.checkpoints.directory}, the best one, '
                f'{error}; run the same command again: it trains again what is lost'
            ) from error

    def conclude(
        self,
        step: int,
        chosen: int,
        cost: Mapping[str, Any],
        splits: Mapping[str, Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Writes result.json and returns what is in it.

        chosen: the step whose weights were evaluated. splits: role -> 'val'
        and perhaps 'test' -> metrics.
        """
        job, progress = self.job, self.recorder.progress
        val, test = (dict(splits['student'].get(split, {})) for split in ('val', 'test'))
        teacher = [of.pop('teacher', None) for of in (val, test) if of][-1]
        result = {
            'run': job.name,
            'seed': job.seed,
            'model': job.config.model.name,
            'params': param_count(job.run.plans['student'].shapes),
            'trainable': job.run.trainable,
            **cost,
            'steps': step,
            'checkpoint': chosen,
            'seconds': self.recorder.seconds(),
            'images_per_second': progress.images / progress.train_seconds
            if progress.train_seconds
            else None,
            'data_wait': progress.waits if progress.train_seconds else None,
            'teacher': teacher,
            'val': val,
            'test': test or None,
            'log': None if progress.lines is None else log_checksum(progress.lines),
        } | ({'peer': splits['peer']} if 'peer' in splits else {})
        if parallel.is_main():
            self.directory.finish(to_json(result))
            if test:
                say(
                    f'{job.title} · test top-1 {100 * test["top1"]:.2f} '
                    f'% · {result["seconds"]:.0f} s'
                )
        parallel.barrier(f'{job.title} finished')
        return result
