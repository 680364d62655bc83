"""Sweeps in a config: what may vary, and what is refused before anything trains."""

import pytest
from helpers import random_splits, save_npz
from studies import sweep_study, train

from configs import common
from kd_jax import jobs, study
from kd_jax.errors import UserError


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return save_npz(tmp_path_factory.mktemp('data') / 'three.npz', random_splits(train=200))


@pytest.mark.parametrize(
    ('text', 'changes', 'words'),
    [
        (
            'objective.kl.tua=1,2',
            {},
            (
                "unknown field in runs.student.sweep 'objective.kl.tua'; "
                "did you mean 'objective.kl.tau'"
            ),
        ),
        ('objective.kl.tau', {}, 'write it as'),
        ('objective.kl.tau=1; objective.kl.tau=2', {}, 'each field once'),
        (
            'epochs=1,2',
            {},
            "unknown field in runs.student.sweep 'epochs'; known: .*objective.cross_entropy.weight",
        ),
        ('objective.kl.tau=1,warm', {}, 'not all values are numbers'),
        ('seed=0.5', {}, 'not all values are numbers'),
        ('objective.kl.tau=2,2', {}, 'names a value twice'),
        ('objective.kl.tau=2,inf', {}, 'must be finite'),
        ('objective.kl.weight=0,1', {}, 'a weight of 0 takes the term away'),
        (
            'objective.kl.tau=2,-1',
            {},
            'objective.kl.tau is -1.0; it must be greater than 0',
        ),
        ('optim.learning_rate=0.1,0', {}, 'optim.learning_rate is 0.0; it must be'),
        (
            'optim.learning_rate=0.1,0.1000000001',
            {},
            'equal in six digits, student-learning_rate=0.1',
        ),
        ('seed=-1', {}, r'seeds is \(-1,\); it must be one or more different whole numbers'),
        (
            'optim.learning_rate=2,4',
            {'optim.teacher_factor': 0.1},
            'which optim.teacher_factor sets',
        ),
    ],
    ids=str,
)
def test_bad_sweeps_are_refused_in_one_sentence(data, tmp_path, text, changes, words):
    with pytest.raises(UserError, match=words) as caught:
        train(sweep_study(data, text, changes), tmp_path)
    assert '\n' not in str(caught.value)


def test_whole_numbers_may_be_swept_to_others(data):
    config = sweep_study(data, 'objective.cross_entropy.weight=0.5,1')
    with config.unlocked():
        config.runs.student.objective = common.labels(weight=1)
    weights = [
        run.objective.cross_entropy.weight
        for run in jobs.members_of('student', config.runs.student).values()
    ]
    assert weights == [0.5, 1.0]


def test_a_member_that_teaches_has_its_own_learning_rate(data, tmp_path):
    config = sweep_study(data, 'optim.learning_rate=0.05,0.2')
    with config.unlocked():
        config.runs.small = config.runs.student.copy_and_resolve_references()
        changes = {
            'sweep': '',
            'teachers': ('student-learning_rate=0.2',),
            'optim.teacher_factor': 0.5,
        }
        config.runs.small.update_from_flattened_dict(changes)
    checked = study.Study(config, tmp_path)
    checked.check()
    assert checked.specs['small'].peak == 0.1


def test_in_several_processes_a_sweep_is_refused_before_its_teacher_is_trained(
    data, tmp_path, monkeypatch
):
    checked = study.Study(sweep_study(data, 'objective.kl.tau=1,4'), tmp_path)
    monkeypatch.setattr(study.jax, 'process_count', lambda: 2)
    with pytest.raises(
        UserError,
        match='student is a sweep, which trains in one process; make its members runs of their own',
    ):
        checked.check()
    assert not list(tmp_path.glob('teacher/seed0/config.json'))
