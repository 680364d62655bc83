"""The training loop: jobs from their latest checkpoints (or from nothing) to their
result.json, one or several at once.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from kd_jax import evaluation, following, parallel
from kd_jax.display import tracker
from kd_jax.divergence import explained
from kd_jax.errors import Diverged
from kd_jax.executors import Dispatch, Executor
from kd_jax.monitor import detail, warn
from kd_jax.runtime import Trace
from kd_jax.spec import Job, TrainState
from kd_jax.train_log import Due, JobLog


class Stopped(Exception):
    """The jobs were asked to stop, and have saved their states."""


# (step, {(run, seed): its validation}) -> those that are to end there, unfinished.
Prune = Callable[[int, dict[tuple[str, int], dict[str, Any]]], set[tuple[str, int]]]


def train(
    executor: Executor,
    jobs: Sequence[Job],
    *,
    should_stop: Callable[[], bool],
    options: Mapping[str, Any],
    profile: tuple[int, ...] = (),
    prune: Prune | None = None,
    test: bool = True,
) -> list[str]:
    """Trains jobs of the executor's run, with the teachers it has, to the end; returns what is
    to say of those that diverged.

    Jobs that were saved at different steps, which a kill can do, are trained in groups of the same
    step. options: see `JobLog`. profile: (first, last) step of which a trace is written. Without
    `test` the test split is not read.

    Raises:
      Stopped: when `should_stop()`; everything is saved.
      UserError: when nothing can be saved; the last good checkpoints stay.
    """
    failures: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.callback(executor.placement.close)
        logs = [
            stack.enter_context(JobLog(job, dict(options, shown=len(jobs) == 1))) for job in jobs
        ]
        for step in sorted({log.step for log in logs}):
            level = [log for log in logs if log.step == step]
            failures += Training(executor, level, should_stop, prune, test).run(profile)
    tracker().trained()
    return failures


class Training:
    """Jobs at the same step, on their way to the end."""

    def __init__(
        self,
        executor: Executor,
        logs: Sequence[JobLog],
        should_stop: Callable[[], bool],
        prune: Prune | None,
        test: bool,
    ):
        self.executor, self.should_stop, self.prune, self.test = executor, should_stop, prune, test
        self.active, self.first = list(logs), logs[0].step
        self.failures: dict[str, str] = {}  # title -> why it goes no further

    def run(self, profile: tuple[int, ...]) -> list[str]:
        """Trains the jobs; returns why some of them did not get to the end."""
        leader, timing, evaluated = self.active[0], self.executor.run.timing, False
        step = leader.step
        following.begins(self.active, step)
        self._load(self.active, [log.state for log in self.active])
        if self.prune and step in timing.eval_steps:  # a kill may have come before it was asked
            self._keep(_unpruned(self.prune, self.active, step), self.executor.states())
        with Trace(leader.directory.path / 'profile', profile) as trace:
            while self._finish(step):
                trace.at(step)
                count = timing.count_at(step)
                dispatches = self.executor.train(step, count)
                step += count
                self._record(dispatches)
                due = step in timing.eval_steps
                stopping = self._asked_to_stop(due)
                if due or stopping:
                    self._save(
                        step, due, wait=not (self.executor.overlap and evaluated), settle=stopping
                    )
                    evaluated = True
                if stopping:
                    raise Stopped
        if profile and not trace.begun and parallel.is_main():
            warn(
                f'no trace of {leader.job.title}: profile={profile} lies outside of what was '
                f'trained now, up to step {step}'
            )
        return list(self.failures.values())

    def _asked_to_stop(self, due: bool) -> bool:
        # Several processes must agree to stop, which costs a message: they ask at evaluations only.
        if jax.process_count() == 1:
            return self.should_stop()
        return due and parallel.in_any_process(self.should_stop())

    def _load(self, logs: Sequence[JobLog], states: Sequence[TrainState]) -> None:
        self.active = list(logs)
        self.executor.load([log.job for log in logs], states)

    def _sound(self) -> list[JobLog]:
        """Those that have not diverged."""
        return [log for log in self.active if log.job.title not in self.failures]

    def _record(self, dispatches: Sequence[Dispatch]) -> None:
        for number, (log, dispatch) in enumerate(zip(self.active, dispatches, strict=True)):
            if log.job.title in self.failures:
                continue
            with self._guard(log):
                waited = log.recorder.dispatched(dispatch)
                if waited is not None and number == 0 and parallel.is_main():
                    more = (
                        f'{log.job.name} and {len(self.active) - 1} more'
                        if len(self.active) > 1
                        else log.job.title
                    )
                    detail(f'{more} · first step after {waited:.1f} s')
        if staying := self._sound():
            following.stepped(staying, dispatches[0].step)

    @contextlib.contextmanager
    def _guard(self, log: JobLog) -> Iterator[None]:
        """A job whose loss is not finite leaves the others alone."""
        try:
            yield
        except Diverged as found:
            error = explained(found, self.executor, log.job, self.first)
            self.failures[log.job.title] = str(error)
            if len(self.active) > 1:
                warn(f'{error} (the others of its sweep go on)')

    def _save(self, step: int, due: bool, *, wait: bool, settle: bool) -> None:
        """Validates, where that is due, and saves; those that diverged or are pruned leave."""
        if due:
            tracker().doing('validating')
        if wait:  # evaluating, and compiling that, is no training
            for log in self._sound():
                with self._guard(log):
                    log.recorder.collect()
        sums = self.executor.evaluate('val') if due else [None] * len(self.active)
        states = self.executor.states()
        for log, pending, state in zip(self.active, sums, states, strict=True):
            if log.job.title not in self.failures:
                log.recorder.due(Due(step, pending, state))
        if settle or not self.executor.overlap or self.prune or self.active[0].job.config.patience:
            for log in self._sound():
                with self._guard(log):
                    log.recorder.settle()
            for log in self.active:
                log.recorder.monitor.pause()  # saving the others was no training either
            self._leave(step, due, states)
        if due:
            tracker().validated()

    def _leave(self, step: int, due: bool, states: Sequence[TrainState]) -> None:
        """Those that diverged leave, and after a validation those that are pruned."""
        staying = self._sound()
        if due and len(self.active) > 1 and staying:
            following.tell_middle(step, staying)
        self._keep(_unpruned(self.prune, staying, step) if due else staying, states)

    def _keep(self, staying: Sequence[JobLog], states: Sequence[TrainState]) -> None:
        if len(staying) == len(self.active):
            return
        state_of = {log.job.title: state for log, state in zip(self.active, states, strict=True)}
        if staying:
            self._load(staying, [state_of[log.job.title] for log in staying])
        else:
            self.active = []

    def _finish(self, step: int) -> bool:
        """Concludes the jobs that are at their end; whether others are left."""
        if any(log.has_enough(step) for log in self.active):
            for log in self._sound():
                with self._guard(log):
                    log.recorder.settle()
        if len(self._sound()) < len(self.active):
            self._keep(self._sound(), self.executor.states())
        done = [log for log in self.active if log.has_enough(step)]
        if not done:
            return bool(self.active)
        states = dict(
            zip((log.job.title for log in self.active), self.executor.states(), strict=True)
        )
        others = [log for log in self.active if not log.has_enough(step)]
        self._conclude(done, step, states)
        self.active = []
        if others:
            self._load(others, [states[log.job.title] for log in others])
        return bool(self.active)

    def _conclude(
        self, logs: Sequence[JobLog], step: int, states: Mapping[str, TrainState]
    ) -> None:
        """Evaluates what was selected of each job, and writes its result.json."""
        tracker().doing('testing')
        chosen = [log.chosen(step) for log in logs]
        last = [states[log.job.title] for log in logs]
        if len(logs) < len(self.active) or any(saved is not None for _, saved in chosen):
            self._load(
                logs,
                [
                    state if saved is None else saved
                    for (_, saved), state in zip(chosen, last, strict=True)
                ],
            )
        roles, splits = self.executor.run.step.students, ('val', 'test') if self.test else ('val',)
        sums = {
            role: {split: self.executor.evaluate(split, role) for split in splits} for role in roles
        }
        cost = self.executor.cost(last[0])
        for k, log in enumerate(logs):
            measured = {
                role: {split: evaluation.finish(of[k]) for split, of in by_split.items()}
                for role, by_split in sums.items()
            }
            log.conclude(step, chosen[k][0], cost, measured)


def _unpruned(prune: Prune | None, logs: Sequence[JobLog], step: int) -> list[JobLog]:
    """Those that go on after their validation at `step`."""
    if prune is None or not logs or step >= logs[0].job.run.timing.total_steps:
        return list(logs)
    of = {(log.job.name, log.job.seed): log for log in logs}
    ending = prune(step, {key: log.recorder.val for key, log in of.items() if log.recorder.val})
    return [log for key, log in of.items() if key not in ending]
