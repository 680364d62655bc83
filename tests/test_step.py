"""The train and evaluation step: the same numbers on one and on several devices, under jit and under pmap."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import random_splits

from kd_jax import evaluate, models, objectives, optim
from kd_jax.data import batches
from kd_jax.data.views import Views
from kd_jax.errors import UserError
from kd_jax.networks import Network, variables_of
from kd_jax.parallel import Parallel
from kd_jax.step import PEER, TrainState, make_eval_step, make_train_step

MODES = {'jit on 1': ('jit', 1), 'jit on 4': ('jit', 4), 'pmap on 4': ('pmap', 4)}
BATCH = 16


def network(name, splits, **overrides):
    return Network(models.build(name, splits.num_classes, **overrides), splits.mean, splits.std)


def init(net, splits, seed):
    return jax.device_get(
        jax.jit(net.model.init, static_argnames='train')(jax.random.key(seed), jnp.float32(splits.train.image[:2]), train=False)
    )


def learned_parts(loss, student, variables, teachers, teacher_variables, splits):
    """The objective's own variables."""
    image = jnp.float32(splits.train.image[:2])
    outputs = tuple(net.predict(v, image) for net, v in zip(teachers, teacher_variables, strict=True))
    zeros = jnp.zeros(2, jnp.int32)
    batch = {'image': image, 'label': zeros, 'index': zeros, 'mask': jnp.ones(2), 'train_label': splits.train.label}
    whole = loss.clone(terms=tuple((name, term.clone(axis_name=None)) for name, term in loss.terms))
    return jax.device_get(whole.init(jax.random.key(5), student.predict(variables, image), outputs, batch))


def run(splits, mode, devices, *, steps=10, model='resnet8', dropout=0.1, mixup=0.0, accumulate=1, freeze=(), ema=0.0,
        objective=None, tx=None, count_teachers=1, companions=(), past_steps=0, seeds=(0, 1), peer_seed=None):  # fmt: skip
    """Trains a small student; (state, metrics of each step, validation metrics, teachers after, teachers before)."""
    par = Parallel(mode, devices)
    student = network(model, splits, width=0.25, **({'dropout': dropout} if dropout else {}))
    teachers = (network('cnn', splits, width=0.25),) * count_teachers
    teacher_variables = tuple(init(net, splits, 7 + k) for k, net in enumerate(teachers))
    config = objective or {'cross_entropy': {'weight': 0.3}, 'kl': {'weight': 0.7, 'tau': 4.0}}
    loss = objectives.build(config, (1.0,) * (count_teachers + len(companions)), splits.num_classes, par.axis_name)
    tx = tx or optax.sgd(0.05, momentum=0.9)
    variables = init(student, splits, seeds[0])
    learned = learned_parts(
        loss,
        student,
        variables,
        teachers + (student,) * len(companions),
        (*teacher_variables, *(variables for _ in companions)),
        splits,
    )
    params = {'student': variables.pop('params'), 'objective': learned.pop('params', {})}
    model_state = {'student': variables, 'objective': learned}
    now = {'params': params['student'], 'model_state': variables}
    if PEER in companions:
        second = init(student, splits, seeds[1] if peer_seed is None else peer_seed)
        params |= {'peer': second.pop('params'), 'peer_objective': params['objective']}
        model_state |= {'peer': second, 'peer_objective': learned}
    kept = [now if wanted else None for wanted in (ema, past_steps)]
    state = TrainState(np.zeros((), np.int32), params, model_state, tx.init(params), *kept)
    train_step = make_train_step(
        student=student,
        teachers=teachers,
        objective=loss,
        tx=tx,
        views=Views(crop=1, flip=True, rotate=10.0, cutout=2, fill=(127.5,)),
        steps_per_epoch=60 / BATCH,
        mixup=mixup,
        accumulate=accumulate,
        ema_decay=ema,
        freeze=freeze,
        companions=companions,
        peer=student if PEER in companions else None,
        past_steps=past_steps,
        axis_name=par.axis_name,
    )
    train_step = par.compile(train_step, arguments=5, donate_first=True)
    weights = (1.0,) * count_teachers
    eval_step = make_eval_step(student=student, teachers=teachers, teacher_weights=weights, axis_name=par.axis_name)
    eval_step = par.compile(eval_step, arguments=4)

    placed = par.replicate(teacher_variables)
    data = evaluate.on_device(par, splits.train)
    state = par.replicate(jax.device_get(state))
    order = batches.TrainOrder(np.arange(len(splits.train.label)), len(splits.train.label), BATCH, seed=3)
    history = []
    for step in range(steps):
        batch = order.at(step)
        if mixup:
            batch |= {f'partner_{k}': np.roll(v, 1) for k, v in batch.items()}
        state, sums = train_step(state, np.int32(3), placed, data, par.divide(batch))
        history.append(jax.device_get(sums))
    state_variables = variables_of(state.params['student'], state.model_state['student'])
    val = evaluate.evaluate(eval_step, par, state_variables, placed, evaluate.on_device(par, splits.val))
    return jax.device_get(state), history, val, jax.device_get(placed), teacher_variables


def largest_difference(a, b):
    leaves = jax.tree.leaves(jax.tree.map(lambda x, y: np.max(np.abs(np.float64(x) - np.float64(y)), initial=0.0), a, b))
    return max(leaves)


@pytest.mark.parametrize('mixup', [0.0, 1.0], ids=['plain', 'mixup'])
def test_one_device_and_four_give_the_same(mixup):
    """Parameters, batch statistics, every step's metrics and a ragged evaluation (22 examples) agree to 1e-5."""
    splits = random_splits(unlabelled=20)
    results = {name: run(splits, *how, mixup=mixup) for name, how in MODES.items()}
    state, history, val, *_ = results['jit on 1']
    assert int(state.step) == 10
    assert history[0]['loss'] != history[9]['loss']
    assert val['count'] == 22
    for name in ('jit on 4', 'pmap on 4'):
        other_state, other_history, other_val, *_ = results[name]
        assert largest_difference(state.params, other_state.params) <= 1e-5, name
        assert largest_difference(state.model_state, other_state.model_state) <= 1e-5, name
        assert largest_difference(history, other_history) <= 1e-5, name
        assert largest_difference(val, other_val) <= 1e-5, name


def test_the_teacher_is_bit_identical_after_training():
    *_, after, before = run(random_splits(), 'jit', 1)
    assert jax.tree.leaves(before)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        assert np.array_equal(a, b)


def test_loss_is_the_weighted_sum_over_the_examples_each_term_can_judge():
    splits = random_splits(unlabelled=30)
    _, history, *_ = run(splits, 'jit', 1, steps=1)
    sums = history[0]
    assert sums['loss'] == pytest.approx(0.3 * sums['cross_entropy'] + 0.7 * sums['kl'], rel=1e-6)

    order = batches.TrainOrder(np.arange(60), 60, BATCH, seed=3)
    known = splits.train.label[order.at(0)['index']] >= 0
    assert 0 < known.sum() < BATCH  # the case is a mixed batch
    none = random_splits(unlabelled=60)
    _, history, *_ = run(none, 'jit', 1, steps=1)
    assert history[0]['cross_entropy'] == 0.0
    assert history[0]['top1'] == 0.0
    assert history[0]['loss'] == pytest.approx(0.7 * history[0]['kl'], rel=1e-6)


@pytest.mark.parametrize('how', MODES.values(), ids=MODES)
def test_accumulating_in_parts_is_one_step_on_the_whole_batch(how):
    """Without BatchNorm and dropout the parts' gradients add up to the batch's, also with unlabelled examples."""
    splits = random_splits(unlabelled=20)
    whole, history, *_ = run(splits, *how, model='cnn', dropout=0.0, steps=4)
    parts, part_history, *_ = run(splits, *how, model='cnn', dropout=0.0, steps=4, accumulate=2)
    assert largest_difference(whole.params, parts.params) <= 1e-6
    assert largest_difference(history, part_history) <= 1e-5


def test_frozen_layers_keep_parameters_and_running_statistics():
    splits = random_splits()
    first, *_ = run(splits, 'jit', 1, steps=0)
    freeze = ('stem', 'stage1')
    params = {'student': first.params['student'], 'objective': {}}
    tx, _ = optim.build(params, total_steps=5, steps_per_epoch=2.0, learning_rate=0.1, weight_decay=5e-4, freeze=freeze)
    last, *_ = run(splits, 'jit', 1, steps=5, freeze=freeze, tx=tx)
    before = flax.traverse_util.flatten_dict({'params': first.params['student'], **first.model_state['student']}, sep='/')
    after = flax.traverse_util.flatten_dict({'params': last.params['student'], **last.model_state['student']}, sep='/')
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    frozen = {name for name in before if name.split('/')[1].startswith(freeze)}
    assert frozen and moved
    assert moved == set(before) - frozen


def test_average_follows_the_weights():
    splits = random_splits()
    state, *_ = run(splits, 'jit', 1, steps=10, ema=0.99)
    start, *_ = run(splits, 'jit', 1, steps=0)
    distance = largest_difference(state.ema['params'], state.params['student'])
    assert 0 < distance < largest_difference(start.params, state.params)


def test_several_teachers_give_the_same_on_any_devices():
    splits = random_splits()
    one, history, val, *_ = run(splits, 'jit', 1, steps=3, count_teachers=2)
    four, other_history, other_val, *_ = run(splits, 'pmap', 4, steps=3, count_teachers=2)
    assert largest_difference(one.params, four.params) <= 1e-5
    assert largest_difference(history, other_history) <= 1e-5
    assert val['teacher']['agreement'] == other_val['teacher']['agreement']


def test_views_depend_on_index_and_view_number_only():
    splits = random_splits()
    view = Views(crop=1, flip=True, rotate=15.0, cutout=3).pixels
    data = {'image': jnp.asarray(splits.train.image)}
    key = jax.random.key(5)
    together = view(key, data, jnp.arange(12), jnp.full(12, 4))
    alone = view(key, data, jnp.array([7]), jnp.array([4]))
    other = view(key, data, jnp.array([7]), jnp.array([5]))
    np.testing.assert_allclose(together[7], alone[0], atol=1e-3)
    assert np.abs(alone - other).max() > 1


def test_normalisation_is_each_networks_own():
    net = Network(models.build('cnn', 3), (0.5, 0.25), (0.5, 0.125))
    out = net.normalize(jnp.full((1, 2, 2, 2), 255.0))
    np.testing.assert_allclose(out[0, 0, 0], [1.0, 6.0], rtol=1e-6)


@pytest.mark.parametrize('mode', ['jit', 'pmap'])
def test_a_batch_that_devices_cannot_share_is_refused(mode):
    with pytest.raises(
        UserError, match=r'batch of 30 .* 4 devices; take a multiple of 4, such as --config.runs.s.batch_size=32'
    ):
        Parallel(mode, 4).check_batch_size(30, 'runs.s.batch_size')


def test_auto_is_jit_on_one_device_and_pmap_on_several():
    assert Parallel('auto', 1).mode == 'jit'
    assert Parallel('auto', 4).mode == 'pmap'
    with pytest.raises(UserError, match="unknown parallel mode 'pmapp'; did you mean 'pmap'"):
        Parallel('pmapp')


def test_evaluation_counts_every_example_once_for_every_batch_size():
    splits = random_splits()
    par = Parallel('jit', 1)
    net = network('cnn', splits)
    variables = init(net, splits, 1)
    logits = np.float64(net.model.apply(variables, net.normalize(jnp.float32(splits.val.image)), train=False).logits)
    expected = (logits.argmax(-1) == splits.val.label).mean()
    fn = par.compile(make_eval_step(student=net, teachers=(), teacher_weights=()), arguments=4)
    data = evaluate.on_device(par, splits.val)
    for most in (5, 22, 64):
        total = 0.0
        correct = 0.0
        for batch in batches.eval_batches(22, most):
            sums = fn(variables, (), data, batch)
            total, correct = total + float(sums['count']), correct + float(sums['top1'])
        assert total == 22
        assert correct / 22 == pytest.approx(expected)


@pytest.mark.parametrize('mode', ['jit', 'pmap'])
def test_several_cpu_devices_finish_a_call_that_the_next_one_does_not_wait_for(mode):
    """Otherwise a device may begin so many calls that no thread is left for the others to get to where they meet."""
    par = Parallel(mode, 4)

    def step(matrix, batch):
        for _ in range(20):
            matrix = jnp.tanh(matrix @ matrix)
        found = matrix[:4] * batch.sum()
        return jax.lax.pmean(found, par.axis_name) if par.axis_name else found

    matrix = par.replicate(np.eye(600, dtype=np.float32))
    run = par.compile(step, arguments=2)
    for _ in range(20):
        assert run(matrix, par.divide(np.ones(8, np.float32))).is_ready()
