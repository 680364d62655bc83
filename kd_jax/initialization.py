"""How the variables of a run start: their plans, for shapes and values, and the state
before the first step.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import trained
from kd_jax.errors import UserError
from kd_jax.models import Foreign, Output, initial
from kd_jax.models.common import param_count
from kd_jax.monitor import warn, warn_once
from kd_jax.networks import Network, variables_of
from kd_jax.spec import OBJECTIVE_OF, Job, StepSpec, TeacherSpec, TrainState

# Of the streams of random numbers that initial values are drawn from.
NUMBERS = {'student': 1, 'objective': 2, 'peer': 3, 'peer_objective': 4}


def example(image_shape: Sequence[int], **more: Any) -> dict[str, Any]:
    """A batch of two examples, for shapes only. more: what losses need beside it, such as
    `train_label`, the labels of the whole training split.
    """
    image, zeros = jnp.zeros((2, *image_shape), jnp.float32), jnp.zeros(2, jnp.int32)
    return {'image': image, 'label': zeros, 'index': zeros, 'mask': jnp.ones(2), **more}


def student_plans(step: StepSpec, batch: Mapping[str, Any]) -> dict[str, initial.Plan]:
    """How the students' variables start: role -> plan. batch: see `example`."""
    image = batch['image']

    def plan(network: Network) -> initial.Plan:
        seen = jax.eval_shape(network.normalize, image)
        zeros = jnp.zeros(seen.shape, seen.dtype)
        return initial.Plan(lambda key: network.model.init_with_output(key, zeros, train=False))

    return {role: plan(network) for role, network in step.students.items()}


def check_foreign(
    step: StepSpec, plans: Mapping[str, initial.Plan], freeze: Sequence[str], axis_name: str | None
) -> None:
    """Tells what models of the user's own lack that those of the zoo have."""
    for role, network in step.students.items():
        model = network.model
        if not isinstance(model, Foreign) or 'batch_stats' not in plans[role].shapes:
            continue
        if axis_name and 'axis_name' not in model.takes:
            warn_once(
                f'{model.title} has BatchNorm but no field axis_name: each device normalises with '
                "its share of the batch; give it one, or set config.parallel='jit'"
            )
        if freeze:
            warn_once(
                f'{model.title} has BatchNorm that optim.freeze and optim.train cannot stop: its '
                'running statistics go on changing'
            )


def check_memory(name: str, shapes: Mapping[str, Any]) -> None:
    """Raises `UserError` for a student that this machine cannot hold, before it is made."""
    count = param_count(shapes)
    need = 3 * 4 * count  # float32: parameters, gradients, momentum
    there = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    if need > there:
        raise UserError(
            f'runs.{name}.model has {count:,} parameters, which take {need / 2**30:,.0f} GiB with '
            f'gradients and momentum; this machine has {there / 2**30:,.0f}: take a smaller width '
            'or depth'
        )


def objective_plans(
    step: StepSpec, batch: Mapping[str, Any], students: Mapping[str, initial.Plan]
) -> dict[str, initial.Plan]:
    """How the variables of the students' objectives start, as in `TrainState.params`. batch: see
    `example`.
    """

    def says(teacher: TeacherSpec, other: Output) -> Output:
        if teacher.network is not None:
            net = teacher.network

            def start() -> tuple[Output, Any]:
                image = net.normalize(batch['image'])
                return net.model.init_with_output(jax.random.key(0), image, train=False)

            return jax.eval_shape(start)[0]
        return Output(jnp.zeros(other.logits.shape), {}) if teacher.shared else other

    def plan(role: str) -> initial.Plan:
        other = students['peer' if role == 'student' and 'peer' in students else 'student'].output
        outputs = [students[role].output, *(says(teacher, other) for teacher in step.teachers)]

        def init(key: jax.Array) -> Any:
            # Inside, where they are traced and take no memory.
            first, *rest = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), outputs)
            return step.objective.init(key, first, tuple(rest), batch)

        return initial.Plan(init)

    return {OBJECTIVE_OF[role]: plan(role) for role in students}


def drawn(plans: Mapping[str, initial.Plan], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params, model_state) by role, as in `TrainState`, for one seed."""
    model_state = {role: plan.draw((seed, NUMBERS[role])) for role, plan in plans.items()}
    return {role: of.pop('params', {}) for role, of in model_state.items()}, model_state


def initial_state(job: Job) -> TrainState:
    """The state before the first step, as host arrays."""
    spec = job.run.step
    params, model_state = drawn(job.run.plans, job.seed)
    if job.start is not None:
        variables = trained.start_from(
            job.start, variables_of(params['student'], model_state['student']), warn
        )
        params['student'], model_state['student'] = variables.pop('params'), variables
    now = {'params': params['student'], 'model_state': model_state['student']}
    opt_state = jax.device_get(job.run.init_optimizer(params))
    ema, snapshot = (now if wanted else None for wanted in (spec.ema_decay, spec.snapshot_steps))
    return TrainState(np.zeros((), np.int32), params, model_state, opt_state, ema, snapshot)
