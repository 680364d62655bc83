"""What a teacher says: live networks, stored targets, and the teachers that a run makes
for itself; all `TeacherSpec`s.

Those of its own are the average of its weights (`self:ema`), the student of some epochs
ago (`self:snapshot`), and a second student that learns at the same time, each the
other's teacher (`self:peer`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.models.common import Output
from kd_jax.networks import Network, variables_of
from kd_jax.spec import Arrays, TeacherSpec, TrainState
from kd_jax.target_store import decoded

Outputs = Mapping[str, Output]  # what the students say, by role

EMA, SNAPSHOT, PEER = SELF_TEACHERS = ('self:ema', 'self:snapshot', 'self:peer')


def live(name: str, weight: float, network: Network) -> TeacherSpec:
    """A network that runs in every step."""

    def output(
        variables: Any, batch: Arrays, state: TrainState | None, outputs: Outputs, role: str
    ) -> Output:
        return network.predict(variables, batch['image'])

    return TeacherSpec(name, weight, output, shared=True, network=network)


def stored(name: str, weight: float, num_classes: int) -> TeacherSpec:
    """Logits that were computed beforehand: a table `[N, V, ...]` on the devices, or
    columns `targets` of the batch.
    """

    def output(
        table: Any, batch: Arrays, state: TrainState | None, outputs: Outputs, role: str
    ) -> Output:
        if name in batch.get('targets', {}):
            rows = batch['targets'][name]
        else:
            rows = jax.tree.map(lambda column: column[batch['index'], batch['slot']], table)
        return Output(decoded(rows, num_classes), {})

    return TeacherSpec(name, weight, output, shared=True)


def ema(weight: float, student: Network) -> TeacherSpec:
    """The average of the student's weights."""

    def output(
        variables: Any, batch: Arrays, state: TrainState | None, outputs: Outputs, role: str
    ) -> Output:
        assert state is not None and state.ema is not None
        return _of(student, state.ema, batch)

    return TeacherSpec(EMA, weight, output, shared=False)


def snapshot(weight: float, student: Network, every: int) -> TeacherSpec:
    """The student as it was at the last multiple of `every` steps; before the first the
    student agrees with its teacher.
    """

    def output(
        variables: Any, batch: Arrays, state: TrainState | None, outputs: Outputs, role: str
    ) -> Output:
        assert state is not None and state.snapshot is not None
        then = _of(student, state.snapshot, batch)
        return jax.tree.map(
            lambda x, now: jnp.where(state.step >= every, x, now), then, outputs[role]
        )

    return TeacherSpec(SNAPSHOT, weight, output, shared=False)


def peer(weight: float) -> TeacherSpec:
    """The other one of two students."""

    def output(
        variables: Any, batch: Arrays, state: TrainState | None, outputs: Outputs, role: str
    ) -> Output:
        return outputs['peer' if role == 'student' else 'student']

    return TeacherSpec(PEER, weight, output, shared=False)


def _of(student: Network, kept: dict[str, Any], batch: Arrays) -> Output:
    return student.predict(variables_of(kept['params'], kept['model_state']), batch['image'])


def outside(names: Sequence[str]) -> tuple[str, ...]:
    """The teachers that are runs, imported or workdirs; not those that a run makes for itself."""
    return tuple(name for name in names if name not in SELF_TEACHERS)
