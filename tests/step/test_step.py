"""The train and evaluation step: the same numbers on one and on several
devices, under jit and under pmap.
"""

import itertools
from functools import partial
from operator import itemgetter

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import FASTEST_COMPILE, quickly, random_splits
from steps import BATCH, MODES, drawn, largest_difference, run_of, start, train

from kd_jax import config, evaluation, models
from kd_jax.data import batches, mixing
from kd_jax.data.mixing import Mixing
from kd_jax.data.views import Views
from kd_jax.errors import UserError
from kd_jax.initialization import initial_state
from kd_jax.networks import Network
from kd_jax.parallel import Parallel
from kd_jax.step import make_eval_step, make_prepare_step

VIEWS = {'crop': 1, 'cutout': 2}
pytestmark = pytest.mark.usefixtures('tiny_model')
TAUGHT = {'teachers': ('teacher',), 'model.dropout': 0.1}


def trained(
    splits, mode='jit on 1', *, steps=10, model='tiny', augment=VIEWS, objective=None, **changes
):
    """(executor, its state, metrics of each step) of a small student and a random teacher."""
    objective = config.distillation(0.7, 4.0) if objective is None else objective
    executor, _ = start(
        run_of(TAUGHT | changes, objective, augment, model), splits, *MODES[mode], steps=1
    )
    history = train(executor, (1,) * steps)
    return executor, jax.device_get(executor.states()[0]), history and history[0]


def test_loss_is_the_weighted_sum_over_the_examples_each_loss_can_judge():
    splits = random_splits(unlabelled=30)
    _, _, sums = trained(splits, steps=1)
    assert sums['loss'] == pytest.approx(0.3 * sums['cross_entropy'] + 0.7 * sums['kl'], rel=1e-6)
    known = (
        splits.train.label[batches.TrainOrder(np.arange(60), 60, BATCH, seed=0).at(0)['index']] >= 0
    )
    assert 0 < known.sum() < BATCH  # the case is a mixed batch
    _, _, sums = trained(random_splits(unlabelled=60), steps=1)
    assert sums['cross_entropy'] == 0.0
    assert sums['top1'] == 0.0
    assert sums['loss'] == pytest.approx(0.7 * sums['kl'], rel=1e-6)


def test_a_loss_is_its_mean_over_the_examples_that_it_can_judge():
    splits = random_splits(unlabelled=30)
    executor, _ = start(run_of({'teachers': ('teacher',)}), splits, steps=1)
    state, batch = jax.device_get(executor.states()[0]), executor._order.at(0)
    images, label = splits.train.image[batch['index']], splits.train.label[batch['index']]
    student = executor.run.step.students['student']
    predict = quickly(student.predict, FASTEST_COMPILE)
    logits = np.float64(predict({'params': state.params['student']}, np.float32(images)).logits)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    known = label >= 0
    assert 0 < known.sum() < BATCH
    expected = -log_p[known, label[known]].mean()
    (sums,) = train(executor, (1,))
    assert sums['cross_entropy'][0] == pytest.approx(expected, rel=1e-5)


def test_a_mixture_has_the_larger_share_of_its_own_image_and_names_its_partners_label():
    splits = random_splits()
    executor, _ = start(run_of(augment={'mixup': 1.0}, objective=config.labels()), splits, steps=1)
    arrays = {'image': splits.train.image, 'label': splits.train.label}
    one, other = np.arange(BATCH), np.roll(np.arange(BATCH), 1)
    passes = np.zeros(BATCH, np.int32)
    batch = {
        'index': one,
        'view': passes,
        'partner_index': other,
        'partner_view': passes,
    }
    prepare = quickly(make_prepare_step(executor.run.step), FASTEST_COMPILE)
    _, prepared = prepare(0, 0, {}, arrays, batch)
    share = float(prepared['mix'])
    assert 0.5 < share < 0.99
    assert float(prepare(1, 0, {}, arrays, batch)[1]['mix']) != share  # of another step
    image = np.float32(splits.train.image)
    expected = share * image[one] + (1 - share) * image[other]
    np.testing.assert_allclose(prepared['image'], expected, rtol=1e-5)
    np.testing.assert_array_equal(prepared['label'], splits.train.label[one])
    np.testing.assert_array_equal(prepared['mixed_label'], splits.train.label[other])


def test_a_cut_mixture_has_a_box_of_its_partner_and_its_labels_count_by_the_true_area():
    splits = random_splits()
    spec = start(run_of(augment={'cutmix': 1.0}, objective=config.labels()), splits, steps=1)[0]
    arrays = {'image': splits.train.image, 'label': splits.train.label}
    one, other = np.arange(BATCH), np.roll(np.arange(BATCH), 1)
    passes = np.zeros(BATCH, np.int32)
    batch = {'index': one, 'view': passes, 'partner_index': other, 'partner_view': passes}
    prepare = quickly(make_prepare_step(spec.run.step), FASTEST_COMPILE)
    image, shares = np.float32(splits.train.image), []
    for step in range(6):
        _, prepared = prepare(step, 0, {}, arrays, batch)
        assert 'cut' not in prepared
        theirs = np.asarray(prepared['image'] != image[one]).any((0, 3))
        inside = np.ix_(theirs.any(1), theirs.any(0))
        assert theirs[inside].all()  # it is a box
        expected = np.where(theirs[None, :, :, None], image[other], image[one])
        np.testing.assert_array_equal(prepared['image'], expected)
        np.testing.assert_allclose(prepared['mix'], 1 - theirs.mean(), atol=1e-6)
        np.testing.assert_array_equal(prepared['mixed_label'], splits.train.label[other])
        shares.append(float(prepared['mix']))
    assert len(set(shares)) > 3


def test_of_two_kinds_of_mixtures_a_batch_has_either():
    keys = jax.random.split(jax.random.key(0), 1000)
    both, cuts, mixes = (
        jax.vmap(partial(mixing.draw, mixing=kind, height=32, width=32))
        for kind in (Mixing(mixup=0.2, cutmix=1.0), Mixing(cutmix=1.0), Mixing(mixup=0.2))
    )
    found, cut, mix = quickly(lambda k: (both(k), cuts(k), mixes(k)), FASTEST_COMPILE)(keys)
    area = np.asarray(found['cut']['box'][2] * found['cut']['box'][3])
    is_cut = np.asarray(found['cut']['own'] == 1.0) & (area > 0)
    assert 430 < is_cut.sum() < 570
    np.testing.assert_array_equal(area[~is_cut] * (found['mix'][~is_cut] < 1), 0)
    np.testing.assert_array_equal(found['mix'], np.where(is_cut, cut['mix'], mix['mix']))
    np.testing.assert_allclose(found['mix'][is_cut], 1 - area[is_cut] / 32**2, atol=1e-6)
    assert scipy.stats.kstest(cut['mix'], 'uniform').statistic > 0.1  # clipped boxes are smaller
    assert 'cut' not in mix and set(cut['cut']) == {'box'}
    images, others = np.ones((2, 32, 32, 1)), np.zeros((2, 32, 32, 1))
    for number in (int(is_cut.argmax()), int((~is_cut).argmax())):
        mixture = mixing.mixed(images, others, jax.tree.map(itemgetter(number), found))
        np.testing.assert_allclose(mixture.mean(), found['mix'][number], atol=1e-4)
        assert np.unique(mixture).size == (2 if is_cut[number] else 1)


def test_the_partner_of_a_repeated_image_is_another_image():
    executor, _ = start(run_of(None, config.labels(), {'mixup': 1.0, 'repeats': 3}), steps=2)
    batch = executor.placement.batches(executor._order, 5, 2, executor._teachers)
    assert batch['index'].shape == (2, BATCH)
    assert (batch['index'] != batch['partner_index']).all()
    np.testing.assert_array_equal(batch['partner_index'], np.roll(batch['index'], 3, axis=1))
    with pytest.raises(UserError, match=f'own.augment.repeats is {BATCH} in batches of {BATCH}'):
        start(run_of(None, config.labels(), {'repeats': BATCH}))


def test_accumulating_in_parts_is_one_step_on_the_whole_batch():
    """Without BatchNorm and dropout the parts' gradients add up to the batch's,
    also with unlabelled examples and mixtures.
    """
    whole, parts = (
        trained(
            random_splits(unlabelled=20),
            steps=4,
            model='cnn',
            augment=VIEWS | {'mixup': 0.5, 'cutmix': 1.0, 'repeats': 2},
            **{'model.dropout': 0.0, 'optim.accumulate': count},
        )
        for count in (1, 2)
    )
    assert largest_difference(whole[1].params, parts[1].params) <= 1e-6
    assert largest_difference(whole[2], parts[2]) <= 1e-5


def test_frozen_layers_keep_parameters_and_running_statistics():
    frozen = ('stage1',)
    changes = {'optim.freeze': frozen, 'optim.weight_decay': 5e-4, 'optim.ema_decay': 0.9}
    executor, last, _ = trained(random_splits(), steps=5, **changes)
    first = initial_state(executor.jobs[0])
    before, after, average = (
        flax.traverse_util.flatten_dict(tree, sep='/')
        for tree in (
            {'params': first.params['student'], **first.model_state['student']},
            {'params': last.params['student'], **last.model_state['student']},
            {'params': last.ema['params'], **last.ema['model_state']},
        )
    )
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    kept = {name for name in before if name.split('/')[1].startswith(frozen)}
    assert kept and moved
    assert moved == set(before) - kept
    # the average is where they are, or on its way there
    assert average.keys() == after.keys()
    for name in average:
        distance = np.abs(average[name] - after[name]).max()
        assert (distance > 1e-6) == (name in moved), name


def test_the_average_is_exponential():
    """With TensorFlow's smaller decay at the beginning: 2/11 at the second update."""
    executor, _, _ = trained(random_splits(), steps=1, **{'optim.ema_decay': 0.9})
    states = [jax.device_get(executor.states()[0])]
    for step in (1, 2):
        train(executor, (1,), begin=step)
        states.append(jax.device_get(executor.states()[0]))
    for step, (before, after) in enumerate(itertools.pairwise(states), 1):
        decay = (1 + step) / (10 + step)
        expected = jax.tree.map(
            lambda average, new, decay=decay: decay * average + (1 - decay) * new,
            before.ema['params'],
            after.params['student'],
        )
        assert largest_difference(expected, after.ema['params']) <= 1e-6
        assert largest_difference(before.ema['params'], after.ema['params']) > 1e-5


def test_another_temperature_or_learning_rate_is_the_same_program():
    """What a sweep may vary is an argument of the step, of every run."""
    programs = set()
    for tau, rate, weight in ((1.0, 0.1, 0.5), (4.0, 0.02, 0.9)):
        changes = {
            'objective.kl.tau': tau,
            'objective.kl.weight': weight,
            'optim.learning_rate': rate,
            'optim.weight_decay': rate,
        }
        executor, _ = start(run_of(TAUGHT | changes), steps=1)
        batch = executor.placement.batches(executor._order, 0, 1, executor._teachers)
        programs.add(
            executor.steps.lower(*executor.states(), *executor.arguments(1), batch).as_text()
        )
    assert len(programs) == 1


def test_views_depend_on_index_and_view_number_only():
    splits = random_splits()
    view = quickly(Views(crop=1, rotate=15.0).augment, FASTEST_COMPILE)
    images = jnp.asarray(splits.train.image)
    key = jax.random.key(5)
    together = view(key, images[:12], jnp.arange(12), jnp.full(12, 4))
    alone = view(key, images[7:8], jnp.array([7]), jnp.array([4]))
    other = view(key, images[7:8], jnp.array([7]), jnp.array([5]))
    np.testing.assert_allclose(together[7], alone[0], atol=1e-3)
    assert np.abs(alone - other).max() > 1


def test_normalisation_is_each_networks_own():
    net = Network(models.build('cnn', 3), (0.5, 0.25), (0.5, 0.125))
    out = net.normalize(jnp.full((1, 2, 2, 2), 255.0))
    np.testing.assert_allclose(out[0, 0, 0], [1.0, 6.0], rtol=1e-6)


@pytest.mark.parametrize('mode', ['jit', 'pmap'])
def test_a_batch_that_devices_cannot_share_is_refused(mode):
    with pytest.raises(
        UserError,
        match=(
            r'batch of 30 .* 4 devices; take a multiple of 4, such '
            r'as --config.runs.s.batch_size=32'
        ),
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
    net = Network(models.build('cnn', 3), splits.info.mean, splits.info.std)
    variables = drawn(net, splits.info, 1)
    predict = quickly(net.predict, FASTEST_COMPILE)
    logits = np.float64(predict(variables, np.float32(splits.val.image)).logits)
    expected = (logits.argmax(-1) == splits.val.label).mean()
    fn = par.compile(make_eval_step(net), 'float32', arguments=3)
    arrays = evaluation.on_devices(par, splits.val).arrays
    for most in (5, 22, 64):
        total = 0.0
        correct = 0.0
        for batch in batches.eval_batches(22, most):
            sums = fn(variables, arrays, batch)
            total, correct = total + float(sums['count']), correct + float(sums['top1'])
        assert total == 22
        assert correct / 22 == pytest.approx(expected)


@pytest.mark.parametrize('mode', ['jit', 'pmap'])
def test_several_cpu_devices_finish_a_call_that_the_next_one_does_not_wait_for(mode):
    """Otherwise a device may begin so many calls that no thread is left for the
    others to get to where they meet.
    """
    par = Parallel(mode, 4)

    def step(matrix, batch):
        for _ in range(20):
            matrix = jnp.tanh(matrix @ matrix)
        found = matrix[:4] * batch.sum()
        return jax.lax.pmean(found, par.axis_name) if par.axis_name else found

    matrix = par.replicate(np.eye(300, dtype=np.float32))
    run = par.compile(step, 'float32', arguments=2)
    for _ in range(5):
        assert run(matrix, par.divide(np.ones(8, np.float32))).is_ready()
