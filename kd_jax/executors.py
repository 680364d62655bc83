"""Where the steps of a run's jobs are computed: one job over all devices, or several
jobs, each device one at a time.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import evaluation, runtime
from kd_jax.data.batches import Order
from kd_jax.dispatch import scan_steps
from kd_jax.networks import variables_of
from kd_jax.parallel import Parallel
from kd_jax.placement import Placement, order_of
from kd_jax.spec import Arrays, Job, RunSpec, TeacherData, TrainState
from kd_jax.step import make_eval_step, make_member_step, make_prepare_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """Steps of one job that were handed to the devices: `step` updates are done after them."""

    step: int
    count: int
    # `[S]`, of which the first `count` mean something; of several jobs `[D, S]`
    metrics: dict[str, jax.Array]
    place: int | None = None  # which of them is meant
    waited: float = 0.0  # seconds in which the devices had to wait for the images of these


def selected(state: TrainState, role: str = 'student') -> dict[str, Any]:
    """The variables that are evaluated and teach: the student's average if it keeps one."""
    if role == 'student' and state.ema is not None:
        return variables_of(state.ema['params'], state.ema['model_state'])
    return variables_of(state.params[role], state.model_state[role])


class Executor:
    """The steps of a run's jobs. First `teach`, then `load`, then `train`
    and `evaluate` in any order.

    overlap: whether the devices go on training while the host writes a validation down.
    """

    overlap = False

    def __init__(self, run: RunSpec, parallel: Parallel):
        self.run, self.parallel = run, parallel
        self.placement = Placement(run, parallel)
        self.jobs: list[Job] = []
        self._teachers = TeacherData({}, lambda split: None)
        self._order: Order | None = None
        self._cost: dict[str, float] | None = None
        self._last: dict[str, jax.Array] = {}  # metrics of the last dispatch

    def clear(self) -> None:
        """Forgets jobs and teachers: nothing of them lies on the devices any more, and nothing is
        read ahead.
        """
        self.placement.close()
        self.jobs, self._teachers = [], TeacherData({}, lambda split: None)

    def teach(self, teachers: TeacherData) -> None:
        """From now on the jobs learn from these."""
        self._teachers = teachers

    def load(self, jobs: Sequence[Job], states: Sequence[TrainState]) -> None:
        """From now on these jobs are trained, from these states, as `states`
        gave them or as host arrays.
        """
        self.jobs = list(jobs)
        self.placement.close()
        self._order = order_of(self.run, self.jobs[0].order_seed)

    def train(self, step: int, count: int) -> list[Dispatch]:
        """Hands `count` steps of every job, after `step` updates, to the devices."""
        assert self._order is not None  # `load` comes first
        before = self.placement.waited
        busy = functools.partial(_busy, self._last)
        batch = self.placement.batches(self._order, step, count, self._teachers, busy)
        dispatches = self._train(step, count, batch)
        self._last = dispatches[-1].metrics
        waited = self.placement.waited - before
        return [dataclasses.replace(dispatch, waited=waited) for dispatch in dispatches]

    def _train(self, step: int, count: int, batch: Arrays) -> list[Dispatch]:
        raise NotImplementedError

    def prepared(self, step: int) -> Arrays:
        """What the step after `step` updates learned from, see `make_prepare`; `[D, 1, B, ...]` or
        `[1, B, ...]`.
        """
        assert self._order is not None  # `load` comes first
        batch = self.placement.batches(self._order, step, 1, self._teachers)
        _, prepared = self._prepare(step, 1, batch)
        return prepared

    @functools.cached_property
    def prepare(self) -> Callable[..., Any]:
        steps = scan_steps(make_prepare_step(self.run.step, self.parallel.axis_name))
        sharded = 3 if self.run.images.placement == 'sharded' else None
        return self.parallel.compile(
            steps, self.run.step.precision, arguments=6, axis=1, sharded=sharded
        )

    def _prepare(self, step: int, count: int, batch: Arrays) -> Any:
        return self.prepare(
            np.int32(step),
            np.int32(self.jobs[0].order_seed),
            self._teachers.variables,
            self.placement.training(),
            np.int32(count),
            batch,
        )

    def evaluate(self, split: str, role: str = 'student') -> list[Any]:
        """Of each job what `kd_jax.evaluation.finish` takes."""
        raise NotImplementedError

    def states(self) -> list[TrainState]:
        """Of each job its state now, which the next steps do not change."""
        raise NotImplementedError

    def cost(self, state: TrainState) -> dict[str, Any]:
        """`kd_jax.evaluation.forward_cost` of the student, measured once, and the hardware."""
        if self._cost is None:
            student, precision = self.run.step.students['student'], self.run.step.precision
            variables = jax.device_get(selected(state))
            self._cost = evaluation.forward_cost(
                student, variables, self.run.dataset.info.image_shape, precision
            )
        hardware = {
            'device': runtime.device_kind(self.parallel.devices[0]),
            'devices': len(self.parallel),
        }
        return self._cost | hardware


class DataParallel(Executor):
    """One job; every device computes a share of each batch."""

    def __init__(self, run: RunSpec, parallel: Parallel):
        super().__init__(run, parallel)
        self.overlap = not parallel.on_cpu
        axis, precision = parallel.axis_name, run.step.precision
        steps = scan_steps(make_train_step(run.step, axis))
        sharded = 4 if run.images.placement == 'sharded' else None
        self.steps = parallel.compile(
            steps, precision, arguments=7, donate_first=True, axis=1, sharded=sharded
        )
        self.evaluators = {
            role: parallel.compile(make_eval_step(network, axis), precision, arguments=3)
            for role, network in run.step.students.items()
        }
        self._state: TrainState | None = None

    def clear(self) -> None:
        super().clear()
        self._state = None

    def load(self, jobs: Sequence[Job], states: Sequence[TrainState]) -> None:
        super().load(jobs, states)
        (state,) = states
        self._state = self.parallel.replicate(state)

    def arguments(self, count: int) -> tuple[Any, ...]:
        """Of `steps`, between the state and the batches."""
        (job,) = self.jobs
        seeds = np.array([job.order_seed, job.seed], np.int32)
        return (
            seeds,
            dict(job.hparams),
            self._teachers.variables,
            self.placement.training(),
            np.int32(count),
        )

    def _train(self, step: int, count: int, batch: Arrays) -> list[Dispatch]:
        self._state, metrics = self.steps(self._state, *self.arguments(count), batch)
        return [Dispatch(step + count, count, metrics)]

    def evaluate(self, split: str, role: str = 'student') -> list[Any]:
        assert self._state is not None  # `load` comes first
        of = self.placement.evaluated(split, self._teachers)
        variables = selected(self._state, role)
        return [evaluation.start(self.evaluators[role], self.parallel, variables, of)]

    def states(self) -> list[TrainState]:
        assert self._state is not None
        # Where the next steps may begin before this is read, they reuse its buffers.
        return [jax.tree.map(jnp.copy, self._state) if self.overlap else self._state]


class MemberParallel(Executor):
    """Several jobs that differ in numbers only. A batch is prepared once, every device
    a share; then each job takes its step, the jobs side by side on the devices, as many
    at once as there are devices.
    """

    def __init__(self, run: RunSpec, parallel: Parallel):
        super().__init__(run, parallel)
        precision = run.step.precision
        members = scan_steps(make_member_step(run.step))
        self.steps = parallel.compile_each(members, precision, own=3, shared=2, donate_first=True)
        self.evaluators = {
            role: parallel.compile_each(make_eval_step(network), precision, own=1, shared=2)
            for role, network in run.step.students.items()
        }
        # States, seeds and hparams of each group, `[D, ...]`.
        self._groups: list[tuple[Any, np.ndarray, dict[str, np.ndarray]]] = []
        self._metrics: list[Any] = []

    def clear(self) -> None:
        super().clear()
        self._groups, self._metrics = [], []

    def load(self, jobs: Sequence[Job], states: Sequence[TrainState]) -> None:
        super().load(jobs, states)
        wide, host = len(self.parallel), jax.device_get(list(states))
        self._groups = []
        for first in range(0, len(jobs), wide):
            group = list(jobs[first : first + wide]), host[first : first + wide]
            # The last group may repeat its first job.
            some, beside = (part + part[:1] * (wide - len(part)) for part in group)
            hparams = {
                path: np.array([job.hparams[path] for job in some], np.float32)
                for path in some[0].hparams
            }
            self._groups.append(
                (_stack(beside), np.array([job.seed for job in some], np.int32), hparams)
            )

    def _train(self, step: int, count: int, batch: Arrays) -> list[Dispatch]:
        # The devices meet here only: without a wait one could get so far ahead of another
        # that XLA takes it for stuck.
        jax.block_until_ready(self._metrics)
        _, prepared = self._prepare(step, count, batch)
        self._metrics = []
        for k, (state, seeds, hparams) in enumerate(self._groups):
            state, metrics = self.steps(state, seeds, hparams, np.int32(count), prepared)
            self._groups[k] = state, seeds, hparams
            self._metrics.append(metrics)
        return self._of_each(
            lambda k, place: Dispatch(step + count, count, self._metrics[k], place)
        )

    def evaluate(self, split: str, role: str = 'student') -> list[Any]:
        of = self.placement.evaluated(split, self._teachers)
        sums: list[list[Any]] = [[] for _ in self._groups]
        # each device has all of a batch
        for batch in evaluation.evaluated(self.parallel, of, whole=True):
            for k, (state, *_) in enumerate(self._groups):
                sums[k].append(self.evaluators[role](selected(state, role), of.arrays, batch))
            if of.source is not None:  # the images of all batches would fill the memory
                jax.block_until_ready(sums)
        return self._parts(jax.device_get(sums))

    def states(self) -> list[TrainState]:
        return self._parts(jax.device_get([state for state, *_ in self._groups]))

    def _parts(self, groups: Sequence[Any]) -> list[Any]:
        """Each job's part of what the groups have, host arrays `[D, ...]`."""
        return self._of_each(lambda k, place: jax.tree.map(lambda x: x[place], groups[k]))

    def _of_each(self, of: Callable[[int, int], Any]) -> list[Any]:
        """`of(group, place)` of each job."""
        wide = len(self.parallel)
        return [of(*divmod(number, wide)) for number in range(len(self.jobs))]


def _busy(metrics: dict[str, jax.Array]) -> bool:
    """Whether the devices still work on what these come from."""
    return not all(getattr(of, 'is_ready', bool)() for of in metrics.values())


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
