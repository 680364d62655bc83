"""Teachers that a run makes for itself: the average of its weights, snapshots
of its past, a second student.
"""

import pytest
from helpers import random_splits, save_npz
from own_teachers import VIEWS, alone, peers
from steps import largest_difference, run_of, start
from steps import train as train_steps
from studies import config_of, train

from configs import common
from kd_jax.checkpoint import Checkpoints
from kd_jax.errors import UserError
from kd_jax.initialization import initial_state
from kd_jax.teacher_outputs import EMA, PEER, SELF_TEACHERS, SNAPSHOT
from kd_jax.train import Stopped


@pytest.mark.parametrize('mode', ['pmap on 4', pytest.param('jit on 4', marks=pytest.mark.long)])
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
