"""The steps: pure functions of a `StepSpec`, the same for one device, jit over a mesh, and pmap.

    prepare     what a step learns from: views of the images, mixtures, what the shared teachers say
    update      a student's step of what was prepared
    train step  both, one after the other
    evaluation  sums of `kd_jax.metrics`
    prediction  logits

Under `axis_name` a function sees one device's share of the batch; gradients, running statistics and
metrics are those of the whole.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kd_jax import metrics, optim
from kd_jax.data import mixing
from kd_jax.data.columns import read
from kd_jax.data.views import Views
from kd_jax.models.common import Output, mean_probabilities
from kd_jax.networks import Ensemble, Network, variables_of
from kd_jax.objectives import Objective
from kd_jax.parallel import Collectives
from kd_jax.spec import OBJECTIVE_OF, Arrays, Hparams, StepSpec, TrainState

Step = Callable[..., tuple[TrainState, Arrays]]  # (state, ...) -> (state, metrics)
Teachers = Mapping[str, Any]  # name -> what the executor gives the step for that teacher

NEGATIVES = 0x4E65  # of the random numbers that objectives draw


def _step_key(seed: jax.Array, step: jax.Array | np.ndarray) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 0x5EED), step)


def make_prepare(spec: StepSpec) -> Callable[..., Arrays]:
    """`prepare(seed, teachers, arrays, batch) -> batch`: what a step learns from, the same
    for every student of a sweep.

    seed: of views. teachers: name -> variables. arrays: the columns of a resident data set,
    `[N, ...]`. batch: `index`, `view` `[B]` int32 and, with mixtures, `partner_index`,
    `partner_view` and what `_mixed` adds; `targets`: stored rows, where they come with the batch.
    The result has `image` `[B, H, W, C]` float32 in 0..255, `label` `[B]` int32, `mask`
    `[B]`, with mixtures also `mixed_label` `[B]` and `mix`, a scalar; and `teachers`,
    name -> `Output` of those that need no state.
    """
    views = spec.views

    def prepare(seed: jax.Array, teachers: Teachers, arrays: Arrays, batch: Arrays) -> Arrays:
        key = jax.random.key(seed)
        batch = read(arrays, batch)
        index, view = batch['index'], batch['view']
        image = views.augment(key, batch['image'], index, view)
        if spec.mixing.on:
            partner = views.augment(
                key, batch['partner_image'], batch['partner_index'], batch['partner_view']
            )
            image = mixing.mixed(image, partner, batch)
        batch = without_partners(batch) | {'image': image}
        if any(teacher.network is None and teacher.shared for teacher in spec.teachers):
            batch['slot'] = views.slot(key, index, view)
        said = {
            t.name: t.output(teachers[t.name], batch, None, {}, 'student')
            for t in spec.teachers
            if t.shared
        }
        return {
            name: column for name, column in batch.items() if name not in ('cut', 'slot', 'targets')
        } | {'teachers': said}

    return prepare


def _mixed(
    spec: StepSpec, arrays: Arrays, seed: jax.Array, step: jax.Array | np.ndarray, batch: Arrays
) -> Arrays:
    """The batch and, with mixtures, what they are, see `mixing.draw`: the same for all of it."""
    if not spec.mixing.on:
        return batch
    sides = read(arrays, batch)['image'].shape[1:3]
    return batch | mixing.draw(_step_key(seed, step), spec.mixing, *sides)


def without_partners(batch: Arrays) -> Arrays:
    """A batch whose `partner_label` is its `mixed_label`, and in which
    nothing else is left of partners.
    """
    rest = {name: column for name, column in batch.items() if not name.startswith('partner_')}
    return rest | ({'mixed_label': batch['partner_label']} if 'partner_label' in batch else {})


def make_update(spec: StepSpec, axis_name: str | None = None) -> Step:
    """`update(state, seed, hparams, labels, part) -> (state, metrics)`: a
    student's step of what was prepared.

    seed: int32 scalar, of the student's own randomness (dropout). hparams: see
    `make_train_step`. labels: the batch without its images; part(number): all that was prepared
    of the examples `number::spec.accumulate`.
    """
    over = Collectives(axis_name)
    loss_fn = make_loss(spec, axis_name)

    def update(
        state: TrainState,
        seed: jax.Array,
        hparams: Hparams,
        labels: Arrays,
        part: Callable[[int], Arrays],
    ) -> tuple[TrainState, Arrays]:
        objective = on_axis(spec.objective.with_hparams(hparams), axis_name)
        key = _step_key(seed, state.step)
        shares = _shares(objective, labels, over)
        weights = objective.weights(state.step / spec.steps_per_epoch)

        @jax.jit  # traced once, though used for every part
        def gradients(
            model_state: Any, shares: Arrays, batch: Arrays, number: jax.Array | int
        ) -> tuple[Any, Any, Arrays]:
            given = state, objective, weights, shares, batch, key, number
            loss = jax.value_and_grad(loss_fn, has_aux=True)
            (_, (model_state, sums)), grads = loss(state.params, model_state, *given)
            return model_state, grads, sums

        def of_part(model_state: Any, number: int) -> tuple[Any, Any, Arrays]:
            mine = {label: share[number :: spec.accumulate] for label, share in shares.items()}
            return gradients(model_state, mine, part(number), number)

        model_state, grads, sums = of_part(state.model_state, 0)
        # Unrolled: convolution gradients in a loop body are slow on CPU.
        for number in range(1, spec.accumulate):
            model_state, *more = of_part(model_state, number)
            grads, sums = jax.tree.map(jnp.add, (grads, sums), tuple(more))
        right = over.total(sums.pop('right'))
        (grads, sums), model_state = over.mean((grads, sums)), _synchronised(model_state, over)
        known = over.total((labels['label'] >= 0).sum().astype(jnp.float32))
        sums['top1'] = right / jnp.maximum(known, 1.0)
        return _updated(spec, state, hparams, grads, model_state), sums

    return update


def on_axis(objective: Objective, axis_name: str | None) -> Objective:
    """This objective for a batch that is split over the devices of an axis."""
    return objective.clone(
        losses=tuple((label, loss.clone(axis_name=axis_name)) for label, loss in objective.losses)
    )


def make_loss(spec: StepSpec, axis_name: str | None) -> Callable[..., tuple[Any, Any]]:
    """`loss(params, model_state, state, objective, weights, shares, batch, key,
    number) -> (loss, (model_state, sums))`.

    Of the students together. weights: label -> the loss's weight now. shares: label -> `[B]`, what
    each example counts in the mean. number: which part of the batch this is. sums: every loss
    unweighted, `loss`, and `right`, how many examples the student classifies rightly.
    """
    frozen = {'student': spec.freeze}  # the peer trains as a whole
    networks = {
        role: network.training(axis_name, frozen.get(role, ()))
        for role, network in spec.students.items()
    }

    def loss(
        params: Mapping[str, Any],
        model_state: Mapping[str, Any],
        state: TrainState,
        objective: Objective,
        weights: Arrays,
        shares: Arrays,
        batch: Arrays,
        key: jax.Array,
        number: jax.Array | int,
    ) -> tuple[Any, tuple[Any, Arrays]]:
        outputs: dict[str, Output] = {}
        new_state: dict[str, Any] = {}
        losses: Arrays = {}
        terms: Arrays = {}  # in the end those of the student
        for k, (role, network) in enumerate(networks.items()):
            outputs[role], new_state[role] = network.model.apply(
                variables_of(params[role], model_state[role]),
                network.normalize(batch['image']),
                train=True,
                mutable=list(model_state[role]),
                rngs={'dropout': jax.random.fold_in(key, number + k * spec.accumulate)},
            )
        for role in reversed(networks):
            learned = OBJECTIVE_OF[role]
            values, new_state[learned] = objective.apply(
                {'params': params[learned], **model_state[learned]},
                outputs[role],
                teacher_outputs(spec, state, outputs, role, batch),
                dict(batch, image=networks[role].normalize(batch['image'])),
                mutable=list(model_state[learned]),
                rngs={'negatives': jax.random.fold_in(key, NEGATIVES)},
            )
            terms = {label: (values[label] * shares[label]).sum() for label in values}
            losses[role] = sum(weights[label] * terms[label] for label in terms)
        right = (batch['label'] >= 0) & (outputs['student'].logits.argmax(-1) == batch['label'])
        sums = terms | {
            f'{role}_loss': value for role, value in losses.items() if role != 'student'
        }
        sums |= {'loss': losses['student'], 'right': right.sum().astype(jnp.float32)}
        return sum(losses.values()), (new_state, sums)

    return loss


def teacher_outputs(
    spec: StepSpec, state: TrainState, outputs: Mapping[str, Output], role: str, batch: Arrays
) -> tuple[Output, ...]:
    """What each teacher says to the student `role`, in the config's order, without gradient."""
    said = (
        batch['teachers'][t.name] if t.shared else t.output((), batch, state, outputs, role)
        for t in spec.teachers
    )
    return tuple(map(jax.lax.stop_gradient, said))


def _shares(objective: Objective, labels: Arrays, over: Collectives) -> dict[str, jax.Array]:
    """What each example counts in the mean of each loss: label -> `[B]`.

    The mean is over the examples that a loss can judge, wherever they are; the mean over
    devices undoes their number.
    """
    devices = over.total(1)
    masks = objective.masks(labels)
    return {
        label: mask * (devices / jnp.maximum(over.total(mask.sum()), 1.0))
        for label, mask in masks.items()
    }


def _synchronised(model_state: Mapping[str, Any], over: Collectives) -> dict[str, Any]:
    """Running statistics become those of all devices; memory banks are the
    same on all already, and large.
    """
    return {
        role: {
            name: tree if name == 'memory' else over.mean(tree)
            for name, tree in collections.items()
        }
        for role, collections in model_state.items()
    }


def _updated(
    spec: StepSpec, state: TrainState, hparams: Hparams, grads: Any, model_state: Any
) -> TrainState:
    """The state after the update with these gradients."""
    assert spec.optimizer is not None
    updates, opt_state = spec.optimizer(hparams).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    now = {'params': params['student'], 'model_state': model_state['student']}
    ema, snapshot = state.ema, state.snapshot
    if spec.ema_decay:
        ema = optim.ema(ema, now, spec.ema_decay, state.step)
    if spec.snapshot_steps:
        due = (state.step + 1) % spec.snapshot_steps == 0
        snapshot = jax.tree.map(lambda old, new: jnp.where(due, new, old), snapshot, now)
    return TrainState(state.step + 1, params, model_state, opt_state, ema, snapshot)


def every(tree: Any, number: int, accumulate: int) -> Any:
    """The examples `number::accumulate` of arrays `[B, ...]`; what has no examples stays."""
    return jax.tree.map(lambda x: x[number::accumulate] if x.ndim else x, tree)


def make_train_step(spec: StepSpec, axis_name: str | None = None) -> Step:
    """The step `(state, seeds, hparams, teachers, arrays, batch) -> (state, metrics)`.

    state: `TrainState`; its buffers may be donated.
    seeds: int32 `[2]`: that of views and mixtures, and the student's own, of dropout. All
      randomness derives from them, the step number and each example's (index, view).
    hparams: 'objective.<label>.<field>', 'optim.learning_rate', 'optim.weight_decay' -> float32
      scalar, the numbers that may change without another program.
    teachers, arrays, batch: see `make_prepare`; read only.
    metrics: float32 scalars: `loss`, `top1` of the training batch (labelled
      examples), and each loss unweighted.
    """
    prepare, update = make_prepare(spec), make_update(spec, axis_name)

    def train_step(
        state: TrainState,
        seeds: jax.Array,
        hparams: Hparams,
        teachers: Teachers,
        arrays: Arrays,
        batch: Arrays,
    ) -> tuple[TrainState, Arrays]:
        labels = without_partners(read(arrays, batch))
        batch = _mixed(spec, arrays, seeds[0], state.step, batch)

        def part(number: int) -> Arrays:
            return prepare(seeds[0], teachers, arrays, every(batch, number, spec.accumulate))

        return update(state, seeds[1], hparams, labels, part)

    return train_step


def make_prepare_step(
    spec: StepSpec, axis_name: str | None = None
) -> Callable[..., tuple[jax.Array, Arrays]]:
    """`make_prepare`'s function for `scan_steps`: `(step, seed, teachers, arrays,
    batch) -> (step + 1, prepared)`.

    Every device gets what all of them prepared. Where no loss needs features, logits are
    all that is left of teachers.
    """
    prepare, over = make_prepare(spec), Collectives(axis_name)
    features = any(loss.needs_features for _, loss in spec.objective.losses)

    def prepare_step(
        step: jax.Array, seed: jax.Array, teachers: Teachers, arrays: Arrays, batch: Arrays
    ) -> tuple[jax.Array, Arrays]:
        prepared = prepare(seed, teachers, arrays, _mixed(spec, arrays, seed, step, batch))
        if not features:
            prepared['teachers'] = {
                name: Output(said.logits, {}) for name, said in prepared['teachers'].items()
            }
        return step + 1, over.gather(prepared)

    return prepare_step


def make_member_step(spec: StepSpec) -> Step:
    """`make_update`'s function for `scan_steps`, on one device:
    `(state, seed, hparams, prepared) -> (state, metrics)`.
    """
    update = make_update(spec)

    def member_step(
        state: TrainState, seed: jax.Array, hparams: Hparams, prepared: Arrays
    ) -> tuple[TrainState, Arrays]:
        labels = {
            name: value for name, value in prepared.items() if name not in ('image', 'teachers')
        }
        return update(
            state, seed, hparams, labels, lambda number: every(prepared, number, spec.accumulate)
        )

    return member_step


def make_eval_step(
    network: Network | Ensemble, axis_name: str | None = None
) -> Callable[[Any, Arrays, Arrays], Arrays]:
    """The step `(variables, arrays, batch) -> sums` of `kd_jax.metrics` over the global batch.

    arrays: `image`, `label` and perhaps `teacher_logits` of a split. batch: {'index' [B] int32,
    'mask' [B] float32}; examples with mask 0 count nowhere.
    """

    def eval_step(variables: Any, arrays: Arrays, batch: Arrays) -> Arrays:
        batch = read(arrays, batch)
        output = network.predict(variables, batch['image'].astype(jnp.float32))
        heads = {name: head.logits for name, head in output.heads.items()}
        if heads:
            heads['average'] = mean_probabilities(list(heads.values()))
        return Collectives(axis_name).total(
            metrics.sums(output.logits, batch, batch.get('teacher_logits'), heads)
        )

    return eval_step


def make_predict_step(
    networks: Sequence[Network], views: Views | None = None, axis_name: str | None = None
) -> Callable[[Sequence[Any], Arrays, Arrays], tuple[jax.Array, ...]]:
    """`(variables, arrays, batch) -> logits [B, K]` float32 of all devices, one a
    network. batch: {'index' [B]}.

    With `views` the images are seen as the batch's `slot` `[B]` says, otherwise as they are.
    """

    def predict_step(
        variables: Sequence[Any], arrays: Arrays, batch: Arrays
    ) -> tuple[jax.Array, ...]:
        batch = read({name: of for name, of in arrays.items() if name == 'image'}, batch)
        image = batch['image'].astype(jnp.float32)
        if views is not None:
            image = views.of_slot(image, batch['index'], batch['slot'])
        return Collectives(axis_name).gather(
            tuple(
                network.predict(v, image).logits
                for network, v in zip(networks, variables, strict=True)
            )
        )

    return predict_step
