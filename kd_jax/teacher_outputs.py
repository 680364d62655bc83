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
from ml_collections import ConfigDict

from kd_jax.errors import UserError, unknown
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


def check_teachers(name: str, run: ConfigDict) -> None:
    """Raises `UserError` for teachers that are unknown, named twice, or do not
    go with the rest of the run.
    """
    path, names = f'runs.{name}', tuple(run.teachers)
    for teacher in names:
        if teacher.startswith('self:') and teacher not in SELF_TEACHERS:
            raise unknown(f'teacher of {path}', teacher, SELF_TEACHERS)
        if names.count(teacher) > 1:
            raise UserError(
                f'{path}.teachers {names} names {teacher} twice; once is '
                'enough, teacher_weights weighs it'
            )
    from_itself = [teacher for teacher in names if teacher in SELF_TEACHERS]
    if run.teacher_weights and len(run.teacher_weights) != len(names):
        raise UserError(
            f'teacher_weights {tuple(run.teacher_weights)} of {path} has '
            f'{len(run.teacher_weights)} entries for {len(names)} teachers; give one each'
        )
    if EMA in from_itself and not run.optim.ema_decay:
        raise UserError(
            f'{path} learns from {EMA}, but keeps no average; set optim.ema_decay, such as 0.999'
        )
    if PEER in from_itself and len(from_itself) > 1:
        raise UserError(
            f'{path}.teachers {names}: {PEER} does not go with the others; take one of them'
        )
    if PEER in from_itself and run.init:
        raise UserError(
            f'{path} starts from {run.init}, but its peer would start at '
            'random; take one of the two away'
        )
    if run.peer and PEER not in from_itself:
        raise UserError(
            f'{path}.peer is {run.peer!r}, but {PEER} is not among its teachers; name it there'
        )
