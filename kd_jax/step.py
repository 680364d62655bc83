"""The train step and the evaluation step: pure functions, the same for one device, jit over a mesh, and pmap."""

from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from kd_jax import metrics, optim
from kd_jax.data import augment
from kd_jax.data.views import Views, look_up
from kd_jax.models import Output
from kd_jax.models.common import mean_probabilities
from kd_jax.networks import Network, Stored, variables_of
from kd_jax.objectives import WeightedSum, ensemble_logits

# Teachers that a run makes for itself: the average of its weights (`optim.ema_decay`), the student of some epochs ago, and
# a second student that learns at the same time, each the other's teacher.
AVERAGE, PAST, PEER = COMPANIONS = ('self:average', 'self:past', 'self:peer')


@flax.struct.dataclass
class TrainState:
    """What training changes. It never holds the teacher and never has a device axis."""

    step: jax.Array  # int32 scalar: updates done
    params: dict[str, Any]  # {'student', 'objective'} and, with a peer, {'peer', 'peer_objective'}
    model_state: dict[str, Any]  # likewise: running statistics, memory banks
    opt_state: Any
    ema: dict[str, Any] | None = None  # averaged {'params', 'model_state'} of the student
    past: dict[str, Any] | None = None  # {'params', 'model_state'} that the student had


OBJECTIVE_OF = {'student': 'objective', 'peer': 'peer_objective'}  # what holds the learned parts of its objective
NEGATIVES = 0x4E65  # of the random numbers that objectives draw


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
    companions: Sequence[str] = (),
    peer: Network | None = None,
    past_steps: int = 0,
    axis_name: str | None = None,
) -> Callable:
    """`update(state, seed, hyper, whole, part) -> (state, metrics)`: a student's step, of what `make_look`'s function saw.

    seed: int32 scalar, of the student's own randomness (dropout). hyper: given to `objective` and `tx`, which make the
    objective and the optimiser of it. whole: `labels_of` the batch; part(number): all that was `seen` of the examples
    `number::accumulate`. The other arguments are those of `make_train_step`.
    """
    networks = {'student': student.training(axis_name, freeze)}
    if peer is not None:
        networks['peer'] = peer.training(axis_name)
    pmean = (lambda tree: jax.lax.pmean(tree, axis_name)) if axis_name else (lambda tree: tree)

    def total(x):  # over the global batch
        return jax.lax.psum(x, axis_name) if axis_name else x

    def synchronised(model_state):
        """Running statistics become those of all devices; memory banks are the same on all already, and large."""
        return {
            role: {name: tree if name == 'memory' else pmean(tree) for name, tree in collections.items()}
            for role, collections in model_state.items()
        }

    def beside(state, role, outputs, pixels):
        """What the companions of a student say."""

        def said(kind):
            if kind == PEER:
                return outputs['peer' if role == 'student' else 'student']
            kept = state.ema if kind == AVERAGE else state.past
            output = student.predict(variables_of(kept['params'], kept['model_state']), pixels)
            if kind == AVERAGE:
                return output
            # While there is no past to learn from, the student agrees with its teacher.
            return jax.tree.map(lambda x, own: jnp.where(state.step >= past_steps, x, own), output, outputs[role])

        return tuple(jax.lax.stop_gradient(said(kind)) for kind in companions)

    def update(state, seed, hyper, whole, part):
        step_key = _step_key(seed, state.step)
        terms_of = objective(hyper)
        masks = terms_of.masks(whole)
        devices = jax.lax.psum(1, axis_name) if axis_name else 1
        # The mean over the examples that a term can judge, wherever they are; pmean undoes the factor `devices`.
        scale = {name: devices / jnp.maximum(total(mask.sum()), 1.0) for name, mask in masks.items()}
        weights = terms_of.weights(state.step / steps_per_epoch)

        def loss_of(params, model_state, number, seen, part_masks):
            outputs, new_state, losses = {}, {}, {}
            for k, (role, network) in enumerate(networks.items()):
                outputs[role], new_state[role] = network.model.apply(
                    variables_of(params[role], model_state[role]),
                    network.normalize(seen['pixels']),
                    train=True,
                    mutable=list(model_state[role]),
                    rngs={'dropout': jax.random.fold_in(step_key, number + k * accumulate)},
                )
            for role in reversed(networks):
                learned = OBJECTIVE_OF[role]
                values, new_state[learned] = terms_of.apply(
                    {'params': params[learned], **model_state[learned]},
                    outputs[role],
                    (*seen['teachers'], *beside(state, role, outputs, seen['pixels'])),
                    dict(seen, image=networks[role].normalize(seen['pixels'])),
                    mutable=list(model_state[learned]),
                    rngs={'negatives': jax.random.fold_in(step_key, NEGATIVES)},
                )
                terms = {name: (values[name] * part_masks[name]).sum() * scale[name] for name in values}
                losses[role] = sum(weights[name] * terms[name] for name in terms)
            known = seen['label'] >= 0
            right = (known & (outputs['student'].logits.argmax(-1) == seen['label'])).sum().astype(jnp.float32)
            others = {f'{role}_loss': loss for role, loss in losses.items() if role != 'student'}
            return sum(losses.values()), (new_state, dict(terms, loss=losses['student'], **others), right)

        model_state, grads, sums, right = state.model_state, None, None, jnp.float32(0)
        for number in range(accumulate):  # unrolled: convolution gradients in a loop body are slow on CPU
            part_masks = {name: x[number::accumulate] for name, x in masks.items()}
            (_, (model_state, part_sums, part_right)), part_grads = jax.value_and_grad(loss_of, has_aux=True)(
                state.params, model_state, number, part(number), part_masks
            )
            grads = part_grads if grads is None else jax.tree.map(jnp.add, grads, part_grads)
            sums = part_sums if sums is None else jax.tree.map(jnp.add, sums, part_sums)
            right += part_right
        (grads, sums), model_state = pmean((grads, sums)), synchronised(model_state)
        known = total((whole['label'] >= 0).sum().astype(jnp.float32))
        sums['top1'] = total(right) / jnp.maximum(known, 1.0)

        updates, opt_state = tx(hyper).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema, past, now = state.ema, state.past, {'params': params['student'], 'model_state': model_state['student']}
        if ema_decay:
            ema = optim.ema(ema, now, ema_decay, state.step)
        if past is not None:
            past = jax.tree.map(lambda old, new: jnp.where((state.step + 1) % past_steps == 0, new, old), past, now)
        state = TrainState(state.step + 1, params, model_state, opt_state, ema, past)
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
    companions: Sequence[str] = (),
    peer: Network | None = None,
    past_steps: int = 0,
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
    `companions` are `COMPANIONS` that teach after the `teachers`: with 'self:average' the state keeps an average, with
    'self:past' the student as it was at the last multiple of `past_steps`, with 'self:peer' a second student, `peer`, that
    learns by the same objective, of the same teachers and of the first.
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
        companions=companions,
        peer=peer,
        past_steps=past_steps,
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
