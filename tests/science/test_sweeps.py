"""Sweeps: every member is what it would have been alone, and none depends on the others."""

import json
import sys
import types

import numpy as np
import pytest
from helpers import random_splits, save_npz
from studies import final_params, sweep_study, train

from kd_jax import extraction, jobs
from kd_jax.errors import UserError
from kd_jax.train import Stopped
from kd_jax.workdir import RunDirectory


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return save_npz(tmp_path_factory.mktemp('data') / 'three.npz', random_splits(train=200))


def alone(workdir, config, name):
    """A study of that member only, with the same teacher, as an ordinary run called student."""
    (run,) = (
        member
        for member_name, member in jobs.members_of('student', config.runs.student).items()
        if member_name == name
    )
    with config.unlocked():
        del config.runs['student']
        del config.runs['teacher']
        run.teachers = (str(workdir / 'teacher'), *run.teachers[1:])
        config.runs.student = run
    return config


def largest_difference(one, other):
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


CASES = {
    'tau and seed': ('objective.kl.tau=1,4; seed=0,3', {}, {}),
    'weights': ('objective.kl.weight=0.5,0.9; objective.cross_entropy.weight=0.1,0.5', {}, {}),
    'optimiser': (
        'optim.learning_rate=0.005,0.02; optim.weight_decay=0.,0.01',
        {'optim.schedule': 'cosine'},
        {},
    ),
    'dropout, average, mixup': (
        'seed=2,5; objective.kl.tau=2',
        {'model.dropout': 0.2, 'optim.ema_decay': 0.9, 'optim.warmup_epochs': 1.0},
        {'augment.mixup': 0.3},
    ),
    'average as a teacher': (
        'objective.kl.tau=1,4',
        {'teachers': ('teacher', 'self:ema'), 'optim.ema_decay': 0.9},
        {},
    ),
    'a peer': ('objective.kl.weight=0.5,1', {'teachers': ('teacher', 'self:peer')}, {}),
    'features and memory': (
        'objective.at.weight=1,10; seed=0,1',
        {},
        {'terms': {'at': {}, 'fitnet': {}, 'crd': {'weight': 0.05, 'negatives': 8, 'dim': 8}}},
    ),
    'stored and in parts': (
        'objective.kl.tau=1,4,8',
        {'soft_targets': 'exact', 'optim.accumulate': 2, 'batch_size': 16},
        {},
    ),
}


# on one device they are slow tests
ON_FOUR = ('average as a teacher', 'a peer', 'features and memory')


@pytest.mark.parametrize(
    ('case', 'mode', 'devices'),
    [
        pytest.param(
            case, *how, marks=[pytest.mark.long] if case in ON_FOUR and how[1] == 1 else []
        )
        for case in CASES
        for how in (('jit', 1), ('pmap', 4))
    ],
    ids=str,
)
def test_a_member_is_what_it_would_be_alone(data, tmp_path, case, mode, devices):
    """50 steps: parameters to 1e-4, and the files of a run: the same
    validations, result and table.
    """
    text, changes, fields = CASES[case]
    config = sweep_study(data, text, changes, parallel=mode, devices=devices, **fields)
    results = train(config, tmp_path / 'all')
    members = jobs.members_of('student', config.runs.student)
    assert {
        (name, seed) for name, run in members.items() for seed in run.seeds
    } == results.keys() - {('teacher', 0)}
    for name, seed in (
        min(results.keys() - {('teacher', 0)}),
        max(results.keys() - {('teacher', 0)}),
    ):
        own = train(
            alone(tmp_path / 'all', config.copy_and_resolve_references(), name), tmp_path / name
        )['student', seed]
        together = results[name, seed]
        one, other = (
            final_params(tmp_path / name, 'student', seed),
            final_params(tmp_path / 'all', name, seed),
        )
        assert one.keys() == other.keys()
        assert largest_difference(one, other) <= 1e-4
        assert together['test'] == pytest.approx(own['test'], abs=1e-3)
        assert together['teacher'] == pytest.approx(own['teacher'], abs=1e-3)
        lines = [
            [
                json.loads(line)
                for line in (run / f'seed{seed}/metrics.jsonl').read_text().splitlines()
            ]
            for run in (tmp_path / name / 'student', tmp_path / 'all' / name)
        ]
        assert [(line['step'], line['split']) for line in lines[0]] == [
            (line['step'], line['split']) for line in lines[1]
        ]
        for mine, theirs in zip(*lines, strict=True):
            assert mine == pytest.approx(theirs, abs=2e-3)
    distinct = [
        final_params(tmp_path / 'all', name, seed)['params/head/kernel']
        for name, seed in results
        if name != 'teacher'
    ]
    for k, one in enumerate(distinct):
        assert all(np.abs(one - other).max() > 1e-4 for other in distinct[:k])


def test_a_member_that_diverges_leaves_the_others_alone(data, tmp_path):
    with pytest.raises(
        UserError, match=r'the loss of student-learning_rate=1e\+30 seed 0 became (nan|inf) at step'
    ):
        train(sweep_study(data, 'optim.learning_rate=0.02,1e30,0.01'), tmp_path / 'three')
    two = train(sweep_study(data, 'optim.learning_rate=0.02,0.01'), tmp_path / 'two')
    results = json.loads((tmp_path / 'three/results.json').read_text())['results']
    assert sorted(r['run'] for r in results) == [
        'student-learning_rate=0.01',
        'student-learning_rate=0.02',
        'teacher',
    ]
    for result in results:
        assert result['test'] == pytest.approx(two[result['run'], 0]['test'], abs=1e-4)
    assert not RunDirectory(tmp_path / 'three/student-learning_rate=1e+30/seed0').finished()


@pytest.mark.parametrize('devices', [1, 4])
def test_a_sweep_that_is_stopped_goes_on_bit_for_bit(data, tmp_path, devices):
    def config():
        return sweep_study(
            data, 'objective.kl.tau=1,2,4; seed=0,1', devices=devices, parallel='pmap'
        )

    train(config(), tmp_path / 'whole')
    asked = iter(range(1000))
    with pytest.raises(Stopped):
        train(config(), tmp_path / 'cut', should_stop=lambda: next(asked) == 20)
    assert not list((tmp_path / 'cut').glob('student*/*/result.json'))
    results = train(config(), tmp_path / 'cut')
    assert len(results) == 7
    for name, seed in results:
        one, other = (final_params(tmp_path / folder, name, seed) for folder in ('whole', 'cut'))
        for path in one:
            np.testing.assert_array_equal(one[path], other[path])


def test_members_saved_at_different_steps_all_get_to_the_end(data, tmp_path):
    import shutil

    config = sweep_study(data, 'objective.kl.tau=1,2,4')
    whole = train(config, tmp_path / 'whole')
    shutil.copytree(tmp_path / 'whole', tmp_path / 'part')
    lost = tmp_path / 'part/student-kl.tau=1/seed0'
    shutil.rmtree(lost)
    cut = tmp_path / 'part/student-kl.tau=2/seed0'
    (cut / 'result.json').unlink()
    shutil.rmtree(cut / 'checkpoints/50')
    results = train(config, tmp_path / 'part')
    for key in whole:
        assert results[key]['test'] == pytest.approx(whole[key]['test'], abs=1e-4)


def test_seeds_with_teachers_of_their_own_learn_from_those(data, tmp_path):
    config = sweep_study(data, 'objective.kl.tau=1,4')
    with config.unlocked():
        config.seeds = (0, 1)
    results = train(config, tmp_path)
    assert len(results) == 6
    made = jobs.members_of('student', config.runs.student)['student-kl.tau=4']
    assert (made.seeds, made.order_seed, made.sweep) == ((0, 1), 0, '')
    own = train(
        alone(tmp_path, config.copy_and_resolve_references(), 'student-kl.tau=4'), tmp_path / 'own'
    )
    for seed in (0, 1):
        found = (
            final_params(tmp_path, 'student-kl.tau=4', seed),
            final_params(tmp_path / 'own', 'student', seed),
        )
        assert largest_difference(*found) <= 1e-4
        assert own['student', seed]['teacher'] == pytest.approx(
            results['student-kl.tau=4', seed]['teacher'], abs=1e-3
        )


def test_streamed_targets_serve_a_sweep(data, tmp_path, monkeypatch):
    config = sweep_study(data, 'objective.kl.tau=1,4', {'soft_targets': '4'})
    one = train(config, tmp_path / 'one')
    monkeypatch.setattr(extraction, 'fits', lambda *_: False)
    two = train(config, tmp_path / 'two')
    assert {key: r['test'] for key, r in one.items()} == {key: r['test'] for key, r in two.items()}


def test_a_sweep_cannot_teach_but_its_members_can(data, tmp_path):
    config = sweep_study(data, 'objective.kl.tau=1,4')
    with config.unlocked():
        config.runs.small = config.runs.student.copy_and_resolve_references()
        config.runs.small.update_from_flattened_dict(
            {'sweep': '', 'teachers': ('student',), 'epochs': 1.0}
        )
    with pytest.raises(
        UserError,
        match="names the sweep 'student'; name one of its members, such as 'student-kl.tau=1'",
    ):
        train(config, tmp_path)
    with config.unlocked():
        config.runs.small.teachers = ('student-kl.tau=4',)
    assert ('small', 0) in train(config, tmp_path)


def test_a_sweep_learns_from_several_teachers_and_its_own_average(data, tmp_path):
    """Each teacher has one weight, for training and for the comparison
    with the teachers that are runs.
    """
    changes = {
        'teachers': ('teacher', 'second', 'self:ema'),
        'optim.ema_decay': 0.9,
        'epochs': 1.0,
        'eval_every': 0.5,
    }
    config = sweep_study(data, 'objective.kl.tau=1,2', changes)
    with config.unlocked():
        config.runs.second = config.runs.teacher.copy_and_resolve_references()
        config.runs.second.model.name = 'resnet8'
    results = train(config, tmp_path)
    assert len(results) == 4
    for tau in (1, 2):
        assert 0 < results[f'student-kl.tau={tau}', 0]['teacher']['agreement'] <= 1


def test_what_a_peer_achieved_is_in_each_members_result(data, tmp_path):
    changes = {'teachers': ('teacher', 'self:peer'), 'epochs': 1.0, 'eval_every': 0.5}
    results = train(sweep_study(data, 'objective.kl.weight=0.5,1', changes), tmp_path)
    own = train(
        alone(
            tmp_path, sweep_study(data, 'objective.kl.weight=0.5,1', changes), 'student-kl.weight=1'
        ),
        tmp_path / 'own',
    )
    peer, expected = results['student-kl.weight=1', 0]['peer'], own['student', 0]['peer']
    for split in ('val', 'test'):
        assert peer[split].pop('teacher') == pytest.approx(expected[split].pop('teacher'), abs=1e-3)
        assert peer[split] == pytest.approx(expected[split], abs=1e-3)
        assert peer[split] != results['student-kl.weight=1', 0][split]


def test_members_that_stop_early_leave_the_others_alone(data, tmp_path):
    """With a hopeless learning rate nothing improves, with a good one it does;
    patience is each member's own.
    """
    changes = {'patience': 2, 'epochs': 6.0, 'eval_every': 0.5, 'optim.schedule': 'constant'}
    results = train(sweep_study(data, 'optim.learning_rate=1e-12,0.05', changes), tmp_path)
    hopeless, good = (results[f'student-learning_rate={rate}', 0] for rate in ('1e-12', '0.05'))
    assert hopeless['steps'] < good['steps']
    assert good['test']['top1'] > 0.9 > hopeless['test']['top1']


class Wandb(types.ModuleType):
    """A module that notes what it is asked to log."""

    def __init__(self):
        super().__init__('wandb')
        self.runs = {}

    def init(self, name, reinit=None, **_):
        assert reinit == 'create_new'  # otherwise the next run ends the one before
        self.runs[name] = lines = []
        return types.SimpleNamespace(
            log=lambda scalars, step: lines.append(step), finish=lambda: lines.append('finished')
        )


def test_weights_and_biases_and_profiles_know_members_too(data, tmp_path, monkeypatch):
    module = Wandb()
    monkeypatch.setitem(sys.modules, 'wandb', module)
    config = sweep_study(data, 'objective.kl.tau=1,4', {'epochs': 1.0, 'eval_every': 0.5})
    with config.unlocked():
        config.wandb, config.profile = 'project', (4, 6)
    train(config, tmp_path)
    assert set(module.runs) == {
        'teacher seed 0',
        'student-kl.tau=1 seed 0',
        'student-kl.tau=4 seed 0',
    }
    assert module.runs['student-kl.tau=4 seed 0'] == [5, 5, 10, 10, 'finished']
    assert (tmp_path / 'student-kl.tau=1/seed0/profile').is_dir()
