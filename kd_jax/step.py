"""The train step and the evaluation step: pure functions, the same for one device, jit over a mesh, and pmap."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from kd_jax import metrics, optim
from kd_jax.data import augment
from kd_jax.data.views import Views, look_up
from kd_jax.models import Output
from kd_jax.models.common import mean_probabilities
from kd_jax.objectives import WeightedSum, ensemble_logits

# (the compute type of the networks, the least precision of float32 products: 'highest' means float32 on every backend)
PRECISIONS = {
    'float32': (jnp.float32, 'highest'),
    'tf32': (jnp.float32, 'tensorfloat32'),
    'bfloat16': (jnp.bfloat16, 'highest'),
}


@flax.struct.dataclass
class TrainState:
    """What training changes. It never holds the teacher and never has a device axis."""

    step: jax.Array  # int32 scalar: updates done
    params: dict[str, Any]  # {'student', 'objective'}
    model_state: dict[str, Any]  # {'student', 'objective'}: running statistics, memory banks
    opt_state: Any
    ema: dict[str, Any] | None = None  # averaged {'params', 'model_state'} of the student


class Network(NamedTuple):
    """A model with the normalisation and the image shape it was trained with; it takes pixels in 0..255."""

    model: nn.Module
    mean: tuple[float, ...]  # per channel, for images in 0..1
    std: tuple[float, ...]
    image_shape: tuple[int, int, int] | None = None  # (H, W, C) of its input; None: that of what it gets

    def computing(self, precision: str, fast: bool) -> 'Network':
        """This with the compute type of a precision, and with `fast` in the forms that are fast on a CPU."""
        return self._replace(model=self.model.clone(dtype=PRECISIONS[precision][0], fast=fast))

    def normalize(self, pixels: jax.Array) -> jax.Array:
        """`[B, H, W, C]` pixels in 0..255 -> the model's input: resized (bilinear, antialiased), grey as three channels."""
        if self.image_shape is not None:
            height, width, channels = self.image_shape
            if pixels.shape[-1] == 1 and channels > 1:
                pixels = jnp.repeat(pixels, channels, axis=-1)
            if pixels.shape[1:3] != (height, width):
                pixels = jax.image.resize(pixels, (pixels.shape[0], height, width, channels), 'bilinear')
        shape = (1, 1, 1, -1)
        return (pixels / 255.0 - jnp.reshape(jnp.float32(self.mean), shape)) / jnp.reshape(jnp.float32(self.std), shape)

    def predict(self, variables: dict[str, Any], pixels: jax.Array) -> Output:
        """The model's output in evaluation mode, without gradient."""
        return jax.lax.stop_gradient(self.model.apply(variables, self.normalize(pixels), train=False))


class Stored(NamedTuple):
    """A teacher whose logits were computed beforehand, in place of its network; see `kd_jax.soft_targets`."""

    num_classes: int

    def output(self, rows: dict[str, jax.Array]) -> Output:
        """What the teacher said. rows: {'logits' [B, K]}, or of the k likeliest classes {'index', 'log' [B, k], 'rest' [B]}:
        their log-probabilities, and the logarithm of what remains, which the other classes share equally.
        """
        if 'logits' in rows:
            return Output(rows['logits'].astype(jnp.float32), {})
        index, log, rest = rows['index'].astype(jnp.int32), rows['log'].astype(jnp.float32), rows['rest'].astype(jnp.float32)
        others = max(self.num_classes - index.shape[1], 1)
        logits = jnp.broadcast_to(rest[:, None] - jnp.log(jnp.float32(others)), (len(index), self.num_classes))
        return Output(logits.at[jnp.arange(len(index))[:, None], index].set(log), {})


def exactly(function: Callable, precision: str) -> Callable:
    """`function` traced with the products of a precision."""

    def traced(*arguments):
        with jax.default_matmul_precision(PRECISIONS[precision][1]):
            return function(*arguments)

    return traced


def variables_of(params: dict, model_state: dict) -> dict:
    """The student's Flax variables."""
    return {'params': params, **model_state}


def make_look(*, teachers: Sequence[Network | Stored], views: Views, mixup: float = 0.0) -> Callable:
    """`look(seed, step, teacher_variables, data, batch) -> seen`: what a step learns from, the same for every student.

    Arguments as for `make_train_step`. seen: {'pixels' [B, H, W, C] float32 in 0..255, 'teachers': their outputs, 'index',
    'label' [B] int32, 'mask' [B]} and, with mixup, {'mixed_label' [B], 'mix': scalar}.
    """

    def taught(key, teacher_variables, pixels, batch):
        if not any(isinstance(teacher, Stored) for teacher in teachers):
            return tuple(net.predict(v, pixels) for net, v in zip(teachers, teacher_variables, strict=True))
        rows = batch.get('stored')
        if rows is None:
            slot = views.slot(key, batch['index'], batch['view'])
            rows = jax.tree.map(lambda table: table[batch['index'], slot], teacher_variables)
        return tuple(teacher.output(row) for teacher, row in zip(teachers, rows, strict=True))

    def look(seed, step, teacher_variables, data, batch):
        key = jax.random.key(seed)
        pixels = views.pixels(key, data, batch['index'], batch['view'])
        seen = labels_of(data, batch)
        if mixup:
            share = seen['mix'] = augment.mixup_share(_step_key(seed, step), mixup)
            pixels = share * pixels + (1 - share) * views.pixels(key, data, batch['partner_index'], batch['partner_view'])
        return seen | {'pixels': pixels, 'teachers': taught(key, teacher_variables, pixels, batch)}

    return look


def labels_of(data: dict[str, jax.Array], batch: dict[str, Any]) -> dict[str, jax.Array]:
    """What `seen` says of the examples besides their pixels."""
    found = {'index': batch['index'], 'label': look_up(data, batch['index'], 'label')}
    found['mask'] = jnp.ones(batch['index'].shape, jnp.float32)
    if 'partner_index' in batch:
        found['mixed_label'] = look_up(data, batch['partner_index'], 'label')
    return found


def _step_key(seed, step):
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 0x5EED), step)


def make_update(
    *,
    student: Network,
    objective: Callable[[Any], WeightedSum],
    tx: Callable[[Any], optax.GradientTransformation],
    steps_per_epoch: float,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    freeze: Sequence[str] = (),
    axis_name: str | None = None,
) -> Callable:
    """`update(state, seed, hyper, whole, part) -> (state, metrics)`: a student's step, of what `make_look`'s function saw.

    seed: int32 scalar, of the student's own randomness (dropout). hyper: given to `objective` and `tx`, which make the
    objective and the optimiser of it. whole: `labels_of` the batch; part(number): all that was `seen` of the examples
    `number::accumulate`. The other arguments are those of `make_train_step`.
    """
    student = student._replace(model=student.model.clone(axis_name=axis_name, frozen=tuple(freeze)))
    pmean = (lambda tree: jax.lax.pmean(tree, axis_name)) if axis_name else (lambda tree: tree)

    def total(x):  # over the global batch
        return jax.lax.psum(x, axis_name) if axis_name else x

    def update(state, seed, hyper, whole, part):
        step_key = _step_key(seed, state.step)
        terms_of = objective(hyper)
        masks = terms_of.masks(whole)
        devices = jax.lax.psum(1, axis_name) if axis_name else 1
        # The mean over the examples that a term can judge, wherever they are; pmean undoes the factor `devices`.
        scale = {name: devices / jnp.maximum(total(mask.sum()), 1.0) for name, mask in masks.items()}
        weights = terms_of.weights(state.step / steps_per_epoch)

        def loss_of(params, model_state, number, seen, part_masks):
            seen = dict(seen, image=student.normalize(seen['pixels']))
            output, student_state = student.model.apply(
                variables_of(params['student'], model_state['student']),
                seen['image'],
                train=True,
                mutable=list(model_state['student']),
                rngs={'dropout': jax.random.fold_in(step_key, number)},
            )
            values, objective_state = terms_of.apply(
                {'params': params['objective'], **model_state['objective']},
                output,
                seen['teachers'],
                seen,
                mutable=list(model_state['objective']),
            )
            terms = {name: (values[name] * part_masks[name]).sum() * scale[name] for name in values}
            loss = sum(weights[name] * terms[name] for name in terms)
            known = seen['label'] >= 0
            right = (known & (output.logits.argmax(-1) == seen['label'])).sum().astype(jnp.float32)
            new_state = {'student': student_state, 'objective': objective_state}
            return loss, (new_state, dict(terms, loss=loss), right)

        model_state, grads, sums, right = state.model_state, None, None, jnp.float32(0)
        for number in range(accumulate):  # unrolled: convolution gradients in a loop body are slow on CPU
            part_masks = {name: x[number::accumulate] for name, x in masks.items()}
            (_, (model_state, part_sums, part_right)), part_grads = jax.value_and_grad(loss_of, has_aux=True)(
                state.params, model_state, number, part(number), part_masks
            )
            grads = part_grads if grads is None else jax.tree.map(jnp.add, grads, part_grads)
            sums = part_sums if sums is None else jax.tree.map(jnp.add, sums, part_sums)
            right += part_right
        grads, model_state, sums = pmean((grads, model_state, sums))
        known = total((whole['label'] >= 0).sum().astype(jnp.float32))
        sums['top1'] = total(right) / jnp.maximum(known, 1.0)

        updates, opt_state = tx(hyper).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay:
            ema = optim.ema(ema, {'params': params['student'], 'model_state': model_state['student']}, ema_decay, state.step)
        state = state.replace(step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state, ema=ema)
        return state, sums

    return update


def _every(tree, number, accumulate):
    """The examples `number::accumulate` of arrays `[B, ...]`; what has no examples stays."""
    return jax.tree.map(lambda x: x[number::accumulate] if x.ndim else x, tree)


def make_train_step(
    *,
    student: Network,
    teachers: Sequence[Network | Stored],
    objective: WeightedSum,
    tx: optax.GradientTransformation,
    views: Views,
    steps_per_epoch: float,
    mixup: float = 0.0,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    freeze: Sequence[str] = (),
    axis_name: str | None = None,
) -> Callable:
    """The step `(state, seed, teacher_variables, data, batch) -> (state, metrics)`.

    state: `TrainState`; its buffers may be donated.
    seed: int32 scalar; all randomness derives from it, the step number and each example's (index, view). Or two: that of
      the views and the mixtures, and the student's own, of dropout.
    teacher_variables: tuple of variables, one a teacher; read only. Of a `Stored` teacher its table: rows `[N, V, ...]` for
      each image and each of the `views.count` views; not read if the batch brings the rows.
    data: {'image' [N, H, W, C] uint8, 'label' [N] int32}.
    batch: {'index', 'view' [B] int32} and, with mixup, {'partner_index', 'partner_view'}; 'stored': rows `[B, ...]` for each
      teacher, where they do not lie on the device.
    metrics: float32 scalars: `loss`, `top1` of the training batch (labelled examples), and each term unweighted.

    `freeze`: see `optim.frozen_mask`; a frozen BatchNorm uses its running statistics, as in evaluation.
    `accumulate` processes the batch in that many parts, one after the other, and updates once. Under `axis_name` the
    function sees one device's share of the batch; gradients, running statistics and metrics are those of the whole.
    """
    look = make_look(teachers=teachers, views=views, mixup=mixup)
    update = make_update(
        student=student,
        objective=lambda _: objective,
        tx=lambda _: tx,
        steps_per_epoch=steps_per_epoch,
        accumulate=accumulate,
        ema_decay=ema_decay,
        freeze=freeze,
        axis_name=axis_name,
    )

    def train_step(state, seed, teacher_variables, data, batch):
        shared, own = jnp.broadcast_to(seed, (2,))

        def part(number):
            return look(shared, state.step, teacher_variables, data, _every(batch, number, accumulate))

        return update(state, own, None, labels_of(data, batch), part)

    return train_step


def make_look_step(look: Callable, *, features: bool = True, axis_name: str | None = None) -> Callable:
    """`make_look`'s function for `several`: `(step, seed, teacher_variables, data, batch) -> (step + 1, seen)`.

    Under `axis_name` it sees one device's share of the batch, and every device gets what all of them saw. Without `features`
    the teachers' logits are all that is left of their outputs.
    """

    def look_step(step, seed, teacher_variables, data, batch):
        seen = look(seed, step, teacher_variables, data, batch)
        if not features:
            seen['teachers'] = tuple(Output(output.logits, {}) for output in seen['teachers'])
        if axis_name:
            seen = jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True) if x.ndim else x, seen)
        return step + 1, seen

    return look_step


def make_member_step(update: Callable, accumulate: int = 1) -> Callable:
    """`make_update`'s function for `several`: `(state, seed, hyper, _, seen) -> (state, metrics)`."""

    def member_step(state, seed, hyper, _, seen):
        whole = {name: value for name, value in seen.items() if name not in ('pixels', 'teachers')}
        return update(state, seed, hyper, whole, lambda number: _every(seen, number, accumulate))

    return member_step


def several(train_step: Callable) -> Callable:
    """Many steps in one program: `(state, a, b, c, count, batches) -> (state, metrics [S])` of `(state, a, b, c, batch)`.

    batches: as `train_step`'s, stacked `[S, B]`; only the first `count` (int32 scalar) of them are used, and only the
    first `count` metrics mean anything. One program thus serves every number of steps up to S. For S = 1 there is no loop.
    """

    step = jax.jit(train_step)  # traced once, though used twice

    def train_steps(state, a, b, c, count, batches):
        def one(state, number):
            batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), batches)
            return step(state, a, b, c, batch)

        size = jax.tree.leaves(batches)[0].shape[0]
        if size == 1:
            state, metrics = one(state, 0)
            return state, jax.tree.map(lambda x: x[None], metrics)
        empty = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), jax.eval_shape(one, state, 0)[1])

        def body(number, carry):
            state, metrics = carry
            state, new = one(state, number)
            return state, jax.tree.map(lambda all_, x: all_.at[number].set(x), metrics, new)

        return jax.lax.fori_loop(0, count, body, (state, empty))

    return train_steps


def make_eval_step(
    *, student: Network, teachers: Sequence[Network | Stored], teacher_weights: Sequence[float], axis_name: str | None = None
) -> Callable:
    """The step `(variables, teacher_variables, data, batch) -> sums` of `kd_jax.metrics` over the global batch.

    batch: {'index' [B] int32, 'mask' [B] float32}; examples with mask 0 count nowhere. Of a `Stored` teacher the first view
    counts.
    """

    def logits_of(teacher, variables, pixels, index):
        if isinstance(teacher, Stored):
            return teacher.output(jax.tree.map(lambda table: table[index, 0], variables)).logits
        return teacher.predict(variables, pixels).logits

    def eval_step(variables, teacher_variables, data, batch):
        pixels = look_up(data, batch['index'], 'image').astype(jnp.float32)
        batch = dict(batch, label=look_up(data, batch['index'], 'label'))
        output = student.predict(variables, pixels)
        heads = {name: head.logits for name, head in output.heads.items()}
        if heads:
            heads['average'] = mean_probabilities(list(heads.values()))
        pairs = zip(teachers, teacher_variables, strict=True)
        outputs = tuple(logits_of(teacher, v, pixels, batch['index']) for teacher, v in pairs)
        teacher_logits = ensemble_logits(outputs, teacher_weights) if outputs else None
        sums = metrics.sums(output.logits, batch, teacher_logits, heads)
        return jax.lax.psum(sums, axis_name) if axis_name else sums

    return eval_step
