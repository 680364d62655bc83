"""Teachers that a run makes for itself: the average of its weights, snapshots
of its past, a second student.
"""

import jax
import numpy as np
import pytest
from helpers import random_splits, save_npz
from steps import MODES, largest_difference, run_of, start
from steps import train as train_steps
from studies import config_of, train

from configs import common
from kd_jax.checkpoint import Checkpoints
from kd_jax.errors import UserError
from kd_jax.initialization import initial_state
from kd_jax.teacher_outputs import EMA, PEER, SELF_TEACHERS, SNAPSHOT, outside
from kd_jax.train import Stopped

VIEWS = {'crop': 1, 'flip': True}
EPOCH = 60 / 16  # steps


def alone(
    kind, mode='jit on 1', *, steps, snapshot_steps=2, objective=None, model='cnn', **changes
):
    """(executor, its last state, the metrics of each step) of a run without other teachers."""
    changes = {
        'teachers': (kind,),
        'snapshot_epochs': snapshot_steps / EPOCH,
        'optim.weight_decay': 0.0,
        **changes,
    }
    objective = objective or common.distillation(0.5, 2.0)
    executor, _ = start(
        run_of(changes, objective, VIEWS, model), random_splits(), *MODES[mode], steps=1
    )
    history = train_steps(executor, (1,) * steps)
    return executor, jax.device_get(executor.states()[0]), history and history[0]


def states_at(executor, steps):
    """The states of an executor's job after so many steps each."""
    executor.load(executor.jobs, [initial_state(job) for job in executor.jobs])
    states, at = [], 0
    for step in steps:
        train_steps(executor, (1,) * (step - at), begin=at)
        at = step
        states.append(jax.device_get(executor.states()[0]))
    return states


@pytest.mark.parametrize('mode', ['pmap on 4', pytest.param('jit on 4', marks=pytest.mark.slow)])
@pytest.mark.parametrize('kind', SELF_TEACHERS)
def test_one_device_and_four_give_the_same(kind, mode):
    changes = {'model': 'resnet8', 'optim.ema_decay': 0.9, 'steps': 5}
    (_, state, history), (_, other, other_history) = (
        alone(kind, key, **changes) for key in ('jit on 1', mode)
    )
    assert history['kl'][-1] > 1e-5
    for mine, theirs in (
        (state.params, other.params),
        (state.model_state, other.model_state),
        (history, other_history),
    ):
        assert largest_difference(mine, theirs) <= 2e-5
    assert largest_difference((state.snapshot, state.ema), (other.snapshot, other.ema)) <= 2e-5


def test_the_snapshot_is_what_the_student_was_and_teaches_from_then_on():
    executor, _, history = alone(SNAPSHOT, snapshot_steps=3, steps=6)
    first = initial_state(executor.jobs[0])
    second, third, fifth, sixth = states_at(executor, (2, 3, 5, 6))
    assert largest_difference(second.snapshot['params'], first.params['student']) == 0
    assert largest_difference(third.snapshot['params'], third.params['student']) == 0
    assert largest_difference(fifth.snapshot['params'], third.params['student']) == 0
    assert largest_difference(sixth.snapshot['params'], sixth.params['student']) == 0
    assert largest_difference(third.params, first.params) > 1e-3
    # At step 3 the student is its own snapshot, in the steps before there is none: the
    # divergence is 0, then it is not.
    assert [kl > 1e-6 for kl in history['kl']] == [False, False, False, False, True, True]


def test_before_there_is_a_snapshot_training_is_that_without_a_teacher():
    _, taught, _ = alone(
        SNAPSHOT, snapshot_steps=5, steps=5, objective=common.distillation(0.5, 2.0)
    )
    run = run_of({'optim.weight_decay': 0.0}, common.labels(weight=0.5), VIEWS)
    executor, _ = start(run, random_splits(), steps=1)
    train_steps(executor, (1,) * 5)
    assert (
        largest_difference(taught.params['student'], executor.states()[0].params['student']) <= 1e-6
    )


def test_the_average_teaches_what_it_predicts():
    """At the first step it is the student; then the divergence is
    that from the average, by hand.
    """
    changes = {'optim.ema_decay': 0.99, 'optim.learning_rate': 1.0}
    executor, _, history = alone(EMA, steps=5, **changes)
    assert history['kl'][0] == pytest.approx(0, abs=1e-6) and history['kl'][3] > 1e-4
    (state,) = states_at(executor, (4,))
    network, batch = executor.run.step.students['student'], executor._order.at(4)
    images = executor.run.dataset.train.image[batch['index']]
    image = executor.run.step.views.augment(
        jax.random.key(0), images, batch['index'], batch['view']
    )
    student, teacher = (
        np.float64(network.predict({'params': params}, image).logits)
        for params in (state.params['student'], state.ema['params'])
    )
    p, q = (np.exp(z / 2) / np.exp(z / 2).sum(1, keepdims=True) for z in (teacher, student))
    # The divergence is a sum of differences of logarithms near log 1/3;
    # float32 rounds each of the two.
    rounding = 4 * 2 * np.finfo(np.float32).eps * np.abs(np.log(q)).max()
    assert rounding < 2e-3 * history['kl'][4]
    assert history['kl'][4] == pytest.approx(4 * (p * np.log(p / q)).sum(1).mean(), abs=rounding)


def peers(exchanged=False, equal=False):
    """An executor of two students, and its first state with the two exchanged or equal."""
    executor, (job,) = start(
        run_of({'teachers': (PEER,)}, common.distillation(0.5, 2.0), VIEWS),
        random_splits(),
        steps=1,
    )
    state = initial_state(job)
    params = dict(state.params)
    if exchanged:
        params |= {'student': params['peer'], 'peer': params['student']}
    if equal:
        params['peer'] = params['student']
    executor.load([job], [state.replace(params=params)])
    return executor


def test_equal_peers_stay_equal_and_have_nothing_to_tell_each_other():
    executor = peers(equal=True)
    (history,) = train_steps(executor, (1,) * 4)
    params = executor.states()[0].params
    assert largest_difference(params['student'], params['peer']) <= 1e-7
    assert max(history['kl']) <= 1e-6
    assert history['loss'][2] == pytest.approx(history['peer_loss'][2], rel=1e-6)


def test_peers_are_each_others_teachers():
    """Exchanged at the start, they are exchanged at the end; on KL alone they come closer."""
    executors = [peers(), peers(exchanged=True)]
    (history,), _ = (train_steps(executor, (1,) * 6) for executor in executors)
    one, two = (executor.states()[0].params for executor in executors)
    assert largest_difference(one['student'], two['peer']) <= 1e-6
    assert largest_difference(one['peer'], two['student']) <= 1e-6
    assert largest_difference(one['student'], one['peer']) > 1e-2
    assert history['kl'][0] > 1e-4
    only = common.distillation(1.0, 1.0)
    _, _, closer = alone(
        PEER, steps=10, objective=only, **{'optim.learning_rate': 0.5, 'optim.momentum': 0.0}
    )
    assert closer['kl'][-1] < 0.5 * closer['kl'][0]


def test_freezing_is_the_students_own():
    """A peer trains as a whole, its running statistics too."""
    executor, state, _ = alone(
        PEER, steps=1, model='resnet8', **{'optim.freeze': ('stem', 'stage')}
    )
    first = initial_state(executor.jobs[0])
    assert largest_difference(first.model_state['student'], state.model_state['student']) == 0
    assert largest_difference(first.model_state['peer'], state.model_state['peer']) > 1e-3


def study_of(data, **changes):
    return config_of(
        data, own=(common.distillation(0.5, 2.0), {'epochs': 6.0, 'eval_every': 1.0, **changes})
    )


@pytest.mark.parametrize('kind', SELF_TEACHERS)
def test_a_study_trains_it_and_continues_where_it_was_cut_off(tmp_path, kind):
    data = save_npz(tmp_path / 'three.npz', random_splits())
    changes = {
        'teachers': (kind,),
        'optim.ema_decay': 0.9 if kind == EMA else 0.0,
        'snapshot_epochs': 0.5,
    }
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


def test_a_teacher_and_a_snapshot_share_by_weight(tmp_path):
    data = save_npz(tmp_path / 'three.npz', random_splits())
    both = {
        'teachers': ('self:snapshot', 'teacher'),
        'teacher_weights': (0.0, 1.0),
        'snapshot_epochs': 0.5,
    }
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
    changes = {'teachers': ('first', 'second', 'self:ema'), 'teacher_weights': (2.0, 1.0, 1.0)}
    changes |= {'optim.ema_decay': 0.9, 'data.labels_per_class': 12}
    runs = {
        'first': (None, {}),
        'second': (None, {'model.name': 'resnet8'}),
        'own': (objective, changes),
    }
    result = train(config_of(data, **runs), tmp_path / 'w')['own', 0]
    assert result['test']['top1'] > 0.8 and result['teacher']['agreement'] > 0.6
    with Checkpoints(tmp_path / 'w/own/seed0/checkpoints') as checkpoints:
        state = checkpoints.read(result['checkpoint'])[0]
    # a set for each teacher
    learned = {f'{name}_{k}' for name in ('crd', 'fitnet') for k in range(3)}
    assert set(state['params']['objective']) == learned
    assert set(state['model_state']['objective']['memory']) == {f'crd_{k}' for k in range(3)}


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (
            {'teachers': ('self:mean',)},
            "unknown teacher of runs.own 'self:mean'.*known: self:ema, self:peer, self:snapshot",
        ),
        ({'teachers': ('self:snapshot', 'self:snapshot')}, 'names self:snapshot twice'),
        (
            {'teachers': ('self:ema',)},
            'learns from self:ema, but keeps no average; set optim.ema_decay',
        ),
        ({'teachers': ('self:peer', 'self:snapshot')}, 'self:peer does not go with the others'),
        ({'teachers': ('self:peer',), 'peer': 'resnet7'}, "unknown model 'resnet7'"),
        (
            {'peer': 'resnet8', 'teachers': ('self:snapshot',)},
            "peer is 'resnet8', but self:peer is not among its teachers",
        ),
        (
            {'teachers': ('self:snapshot',), 'snapshot_epochs': 0.0},
            'snapshot_epochs is 0.0; it must be greater than 0',
        ),
        (
            {'teachers': ('self:peer',), 'init': 'other'},
            'starts from other, but its peer would start at random',
        ),
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
    runs = {
        'teacher': (None, {}),
        'own': (objective, {'teachers': ('teacher',), 'soft_targets': 'exact'}),
    }
    words = (
        "objective 'at' learns from the features of the teacher, but with "
        "runs.own.soft_targets='exact' only its logits"
    )
    with pytest.raises(UserError, match=words):
        train(config_of(data, **runs), tmp_path / 'w')


def test_self_teachers_are_not_looked_for_elsewhere():
    assert set(SELF_TEACHERS) == {EMA, SNAPSHOT, PEER}
    assert outside(('a', *SELF_TEACHERS, 'self/seed0')) == ('a', 'self/seed0')
