"""Teachers that a run makes for itself: the average of its weights, its own past, a second student."""

import jax
import numpy as np
import optax
import pytest
from helpers import random_splits, save_npz
from test_step import BATCH, MODES, largest_difference, network, run
from test_study import config_of, train

from configs import common
from kd_jax import program
from kd_jax.checkpoint import Checkpoints
from kd_jax.errors import UserError
from kd_jax.step import AVERAGE, COMPANIONS, PAST, PEER
from kd_jax.train import Stopped

ONLY_KL = {'kl': {'weight': 1.0, 'tau': 1.0}}
BOTH = {'cross_entropy': {}, 'kl': {'weight': 1.0, 'tau': 2.0}}


def alone(kind, how=MODES['jit on 1'], **more):
    """A run without other teachers."""
    given = {'model': 'cnn', 'dropout': 0.0, 'objective': BOTH, 'count_teachers': 0, 'companions': (kind,)} | more
    return run(random_splits(), *how, **given)


@pytest.mark.parametrize('mode', ['pmap on 4', pytest.param('jit on 4', marks=pytest.mark.slow)])
@pytest.mark.parametrize('kind', COMPANIONS)
def test_one_device_and_four_give_the_same(kind, mode):
    (state, history, *_), (other, other_history, *_) = (
        alone(kind, MODES[key], model='resnet8', ema=0.9, past_steps=2, steps=5) for key in ('jit on 1', mode)
    )
    assert history[-1]['kl'] > 1e-5
    for mine, theirs in ((state.params, other.params), (state.model_state, other.model_state), (history, other_history)):
        assert largest_difference(mine, theirs) <= 2e-5
    assert largest_difference((state.past, state.ema), (other.past, other.ema)) <= 2e-5


def test_the_past_is_what_the_student_was_and_teaches_from_then_on():
    states = [alone(PAST, past_steps=3, steps=steps)[0] for steps in (0, 2, 3, 5, 6)]
    start, _, third, fifth, sixth = states
    for state in states[:2]:
        assert largest_difference(state.past['params'], start.params['student']) == 0
    assert largest_difference(third.past['params'], third.params['student']) == 0
    assert largest_difference(fifth.past['params'], third.params['student']) == 0
    assert largest_difference(sixth.past['params'], sixth.params['student']) == 0
    assert largest_difference(third.params, start.params) > 1e-3
    history = alone(PAST, past_steps=3, steps=6)[1]
    # At step 3 the student is its own past, in the steps before there is none: the divergence is 0, then it is not.
    assert [sums['kl'] > 1e-6 for sums in history] == [False, False, False, False, True, True]


def test_before_there_is_a_past_training_is_that_without_a_teacher():
    (taught, *_), (plain, *_) = (
        alone(PAST, past_steps=5, steps=5),
        run(random_splits(), 'jit', 1, model='cnn', dropout=0.0, objective={'cross_entropy': {}}, count_teachers=0, steps=5),
    )
    assert largest_difference(taught.params['student'], plain.params['student']) <= 1e-6


def test_the_average_teaches_what_it_predicts():
    """At the first step it is the student; then the divergence is that from the average, by hand."""
    splits = random_splits()
    state, history, *_ = alone(AVERAGE, ema=0.99, steps=4, tx=optax.sgd(0.5))
    assert history[0]['kl'] == pytest.approx(0, abs=1e-6) and history[3]['kl'] > 1e-4
    _, after, *_ = alone(AVERAGE, ema=0.99, steps=5, tx=optax.sgd(0.5))
    net = network('cnn', splits, width=0.25)
    pixels = seen_at(4, splits)
    student, teacher = (
        np.float64(net.predict({'params': params}, pixels).logits) for params in (state.params['student'], state.ema['params'])
    )
    p, q = (np.exp(z / 2) / np.exp(z / 2).sum(1, keepdims=True) for z in (teacher, student))
    assert after[4]['kl'] == pytest.approx(4 * (p * np.log(p / q)).sum(1).mean(), rel=1e-4)


def seen_at(step, splits):
    """The pixels of a step of `run`."""
    from kd_jax.data import batches
    from kd_jax.data.views import Views

    batch = batches.TrainOrder(np.arange(60), 60, BATCH, seed=3).at(step)
    views = Views(crop=1, flip=True, rotate=10.0, cutout=2, fill=(127.5,))
    data = {'image': splits.train.image, 'label': splits.train.label}
    return views.pixels(jax.random.key(3), data, batch['index'], batch['view'])


def test_equal_peers_stay_equal_and_have_nothing_to_tell_each_other():
    state, history, *_ = alone(PEER, peer_seed=0, steps=4)
    assert largest_difference(state.params['student'], state.params['peer']) <= 1e-7
    assert max(sums['kl'] for sums in history) <= 1e-6
    assert history[2]['loss'] == pytest.approx(history[2]['peer_loss'], rel=1e-6)


def test_peers_are_each_others_teachers():
    """Exchanged at the start, they are exchanged at the end; on KL alone they come closer."""
    (one, history, *_), (two, *_) = (alone(PEER, seeds=seeds, steps=6) for seeds in ((0, 1), (1, 0)))
    assert largest_difference(one.params['student'], two.params['peer']) <= 1e-6
    assert largest_difference(one.params['peer'], two.params['student']) <= 1e-6
    assert largest_difference(one.params['student'], one.params['peer']) > 1e-2
    assert history[0]['kl'] > 1e-4
    _, closer, *_ = alone(PEER, seeds=(0, 1), steps=10, objective=ONLY_KL, tx=optax.sgd(0.5))
    assert closer[-1]['kl'] < 0.5 * closer[0]['kl']


def study_of(data, **changes):
    return config_of(data, own=(common.distillation(0.5, 2.0), {'epochs': 6.0, 'eval_every': 1.0, **changes}))


@pytest.mark.parametrize('kind', COMPANIONS)
def test_a_study_trains_it_and_continues_where_it_was_cut_off(tmp_path, kind):
    data = save_npz(tmp_path / 'three.npz', random_splits())
    changes = {'teachers': (kind,), 'optim.ema_decay': 0.9 if kind == AVERAGE else 0.0, 'past_epochs': 0.5}
    changes |= {'peer': 'resnet8'} if kind == PEER else {}
    whole = train(study_of(data, **changes), tmp_path / 'whole')['own', 0]
    assert whole['test']['top1'] > 0.5 and whole['teacher'] is None
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        train(study_of(data, **changes), tmp_path / 'cut', should_stop=lambda: next(asked, False))
    again = train(study_of(data, **changes), tmp_path / 'cut')['own', 0]
    for name in ('val', 'test', 'checkpoint', 'steps'):
        assert again[name] == whole[name]
    if kind == PEER:
        assert again['peer'] == whole['peer'] and 0.3 < whole['peer']['test']['top1'] <= 1
        with Checkpoints(tmp_path / 'whole/own/seed0/checkpoints') as checkpoints:
            kept = checkpoints.read(whole['steps'])[0]['params']
        assert 'stage3_block1' in kept['peer'] and 'stage3_block1' not in kept['student']


def test_a_teacher_and_a_companion_share_by_weight(tmp_path):
    data = save_npz(tmp_path / 'three.npz', random_splits())
    both = {'teachers': ('self:past', 'teacher'), 'teacher_weights': (0.0, 1.0), 'past_epochs': 0.5}
    runs = {'teacher': (None, {}), 'one': (common.distillation(), {'teachers': ('teacher',)})}
    results = train(config_of(data, **runs, two=(common.distillation(), both)), tmp_path / 'w')
    assert results['one', 0]['val'] == pytest.approx(results['two', 0]['val'], rel=1e-4)
    assert results['one', 0]['teacher'] == pytest.approx(results['two', 0]['teacher'], rel=1e-3)


def test_terms_of_all_kinds_and_several_teachers_from_config_alone(tmp_path):
    data = save_npz(tmp_path / 'three.npz', random_splits())
    objective = common.distillation(0.5, 2.0)
    chosen = {
        'at': {'weight': 10.0},
        'rkd': {'weight': 0.02, 'only_where': 'teacher_surer'},
        'fitnet': {},
        'dkd': {'weight': 0.1, 'ramp_epochs': 2.0},
        'crd': {'weight': 0.05, 'negatives': 8, 'dim': 8},
    }
    for name, fields in chosen.items():
        objective[name] = common.term(name, **fields)
    changes = {'teachers': ('first', 'second', 'self:average'), 'teacher_weights': (2.0, 1.0, 1.0)}
    changes |= {'optim.ema_decay': 0.9, 'data.labels_per_class': 12}
    runs = {'first': (None, {}), 'second': (None, {'model.name': 'resnet8'}), 'own': (objective, changes)}
    result = train(config_of(data, **runs), tmp_path / 'w')['own', 0]
    assert result['test']['top1'] > 0.8 and result['teacher']['agreement'] > 0.6
    with Checkpoints(tmp_path / 'w/own/seed0/checkpoints') as checkpoints:
        state = checkpoints.read(result['checkpoint'])[0]
    learned = {f'{name}_{k}' for name in ('crd', 'fitnet') for k in range(3)}  # a set for each teacher
    assert set(state['params']['objective']) == learned
    assert set(state['model_state']['objective']['memory']) == {f'crd_{k}' for k in range(3)}


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'teachers': ('self:ema',)}, "unknown teacher of runs.own 'self:ema'.*known: self:average, self:past, self:peer"),
        ({'teachers': ('self:past', 'self:past')}, 'names self:past twice'),
        ({'teachers': ('self:average',)}, 'learns from self:average, but keeps no average; set optim.ema_decay'),
        ({'teachers': ('self:peer', 'self:past')}, 'self:peer does not go with the others'),
        ({'teachers': ('self:peer',), 'peer': 'resnet7'}, "unknown model 'resnet7'"),
        ({'peer': 'resnet8', 'teachers': ('self:past',)}, "peer is 'resnet8', but self:peer is not among its teachers"),
        ({'teachers': ('self:past',), 'past_epochs': 0.0}, 'past_epochs is 0.0; it must be greater than 0'),
        ({'teachers': ('self:peer',), 'init': 'other'}, 'starts from other, but its peer would start at random'),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_in_one_sentence(tmp_path, changes, words):
    data = save_npz(tmp_path / 'three.npz', random_splits())
    config = config_of(data, own=(common.distillation(), changes), other=(None, {}))
    with pytest.raises(UserError, match=words):
        train(config, tmp_path / 'w')


def test_features_of_a_teacher_are_not_kept(tmp_path):
    data = save_npz(tmp_path / 'three.npz', random_splits())
    objective = common.labels()
    objective.at = common.term('at')
    runs = {'teacher': (None, {}), 'own': (objective, {'teachers': ('teacher',), 'soft_targets': 'exact'})}
    words = "objective 'at' learns from the features of the teacher, but with runs.own.soft_targets='exact' only its logits"
    with pytest.raises(UserError, match=words):
        train(config_of(data, **runs), tmp_path / 'w')


def test_every_companion_is_known_to_the_program():
    assert set(COMPANIONS) == {AVERAGE, PAST, PEER}
    assert program.named_teachers(common.run(common.study(), 'cnn')) == ()
