"""The train step for a loop of one's own:

    step = make_train_step(student, teacher, {'kl': {'tau': 4.0}}, optax.adam(1e-3))
    state = step.init(0, batch)
    for batch in batches:
        state, metrics = step(state, batch)

where a batch is {'image': [B, H, W, C], 'label': [B]}.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from kd_jax import objectives
from kd_jax import step as steps
from kd_jax.config import distillation
from kd_jax.data.views import Views
from kd_jax.errors import UserError
from kd_jax.initialization import drawn, example, objective_plans, student_plans
from kd_jax.models import Classifier, Foreign, Output, foreign
from kd_jax.networks import Network, variables_of
from kd_jax.spec import Arrays, StepSpec, TeacherSpec, TrainState

TEACHER = 'teacher'


class _Plain(Network):
    """A network of images that are normalised already."""

    def normalize(self, pixels: jax.Array) -> jax.Array:
        return pixels


class TrainStep:
    """`step(state, batch) -> (state, metrics)`, compiled; see `make_train_step`."""

    def __init__(self, spec: StepSpec, optimizer: optax.GradientTransformation, teacher: Any):
        self._spec, self._optimizer, self._teacher = spec, optimizer, teacher
        step = steps.make_train_step(spec)

        def run(state: TrainState, seed: jax.Array, teacher: Any, batch: Arrays) -> Any:
            count = batch['label'].shape[0]
            numbers = jnp.arange(count, dtype=jnp.int32)
            of_batch = {'index': numbers, 'view': jnp.zeros(count, jnp.int32)}
            return step(state, jnp.stack([seed, seed]), {}, {TEACHER: teacher}, batch, of_batch)

        self._run = jax.jit(run, donate_argnums=0)

    def init(self, seed: int, batch: Arrays) -> TrainState:
        """The state before the first step; `batch`, for its shapes, may be any.

        Raises:
          UserError: for images, a model and an objective that do not go together.
        """
        of_batch = example(self._checked(batch)['image'].shape[1:])
        plans = student_plans(self._spec, of_batch)
        try:
            plans |= objective_plans(self._spec, of_batch, plans)
        except KeyError as error:
            raise UserError(
                f'a loss of the objective needs {error} of the whole data set; use kd_jax.distill'
            ) from error
        params, model_state = drawn(plans, seed)
        return TrainState(np.zeros((), np.int32), params, model_state, self._optimizer.init(params))

    def __call__(
        self, state: TrainState, batch: Arrays, seed: int = 0
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update. batch: `image` `[B, H, W, C]` as the models see it, `label` `[B]` int (-1:
        unlabelled). seed: of dropout. metrics: float32 scalars: `loss`, `top1` of the batch, and
        each term unweighted. The state that is given must not be used again.
        """
        batch = self._checked(batch)
        return self._run(state, jnp.int32(seed), self._teacher, batch)

    def variables(self, state: TrainState) -> dict[str, Any]:
        """The student's Flax variables."""
        return variables_of(state.params['student'], state.model_state['student'])

    def _checked(self, batch: Arrays) -> Arrays:
        if not {'image', 'label'} <= batch.keys():
            raise UserError(f'a batch has {", ".join(batch) or "nothing"}; give image and label')
        image, label = batch['image'], batch['label']
        if jnp.ndim(image) != 4 or jnp.shape(label) != jnp.shape(image)[:1]:
            raise UserError(
                f'a batch has images of shape {jnp.shape(image)} and labels of shape '
                f'{jnp.shape(label)}; they must be [B, H, W, C] and [B]'
            )
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise UserError(
                f'a batch has {image.dtype} images; give them as the models see them, such as '
                'image.astype(np.float32) / 255'
            )
        return {'image': image, 'label': label}


def make_train_step(
    student: nn.Module,
    teacher: Callable[[jax.Array], Any] | tuple[nn.Module, Mapping[str, Any]],
    objective: Mapping[str, Mapping[str, Any]] | objectives.Objective | None = None,
    optimizer: optax.GradientTransformation | None = None,
    *,
    num_classes: int | None = None,
    steps_per_epoch: float = 1.0,
) -> TrainStep:
    """A compiled step that learns from a teacher.

    student: a Flax module, of the zoo or any that returns logits `[B, K]`, called with `(image)` or
      `(image, train)`. teacher: a function of images, or (module, variables).
    objective: label -> fields, as `kd_jax.objectives.build` takes them; None: 0.1 cross entropy +
      0.9 KL at tau 4 (Hinton et al. 2015). optimizer: None: Adam, 1e-3.
    num_classes: K, where the student has no field of that name.
    steps_per_epoch: for terms that ramp up over epochs.

    Raises:
      UserError: for what makes no sense.
    """
    network = _network(student, num_classes)
    given: Any = teacher
    if not callable(given) and not (isinstance(given, tuple) and len(given) == 2):
        raise UserError(
            f'the teacher is {type(given).__name__}; it must be a function of images, or (module, '
            'variables)'
        )
    if isinstance(teacher, tuple):
        module, variables = teacher
        taught = _network(module, num_classes or network.model.num_classes)
    else:
        function = foreign.Function(
            make=teacher,
            title='the teacher',
            num_classes=network.model.num_classes,
        )
        taught, variables = _Plain(function, (), ()), {}

    def says(variables: Any, batch: Arrays, state: Any, outputs: Any, role: str) -> Output:
        return taught.predict(variables, batch['image'])

    if not isinstance(objective, objectives.Objective):
        objective = objectives.build(
            distillation() if objective is None else objective,
            teacher_weights=(1.0,),
            num_classes=network.model.num_classes,
        )
    optimizer = optax.adam(1e-3) if optimizer is None else optimizer
    spec = StepSpec(
        students={'student': network},
        teachers=(TeacherSpec(TEACHER, 1.0, says, shared=True, network=taught),),
        objective=objective,
        views=Views(),
        precision='float32',
        steps_per_epoch=steps_per_epoch,
        optimizer=lambda hparams: optimizer,
    )
    return TrainStep(spec, optimizer, variables)


def _network(module: nn.Module, num_classes: int | None) -> _Plain:
    if not isinstance(module, Classifier | Foreign):
        module = foreign.of_module(module, num_classes)
    return _Plain(module, (), ())
