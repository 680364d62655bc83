"""What a study says before it trains."""

import json

import pytest
from helpers import random_splits, save_npz
from studies import config_of

from configs import common
from kd_jax import overview
from kd_jax.study import Study


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return save_npz(tmp_path_factory.mktemp('data') / 'three.npz', random_splits())


def checked(config, workdir, only=()):
    study = Study(config, workdir, only)
    study.check()
    return study


def lines_of(config, workdir, only=()):
    return overview.overview(checked(config, workdir, only)).splitlines()


def test_about_ten_lines_have_the_runs_the_data_the_devices_and_what_is_there(data, tmp_path):
    student = {'teachers': ('teacher',), 'seeds': (0, 1, 2), 'data.labels_per_class': 5}
    config = config_of(
        data,
        teacher=(None, {'epochs': 2.5, 'seeds': (0, 3)}),
        student=(common.distillation(alpha=0.75), student),
    )
    (tmp_path / 'student/seed1/checkpoints/12').mkdir(parents=True)
    finished = tmp_path / 'student/seed2'
    finished.mkdir(parents=True)
    assert lines_of(config, tmp_path) == [
        'run      model  params  epochs  seeds  teachers  objective',
        'teacher  cnn     3,427     2.5  0, 3             cross_entropy',
        'student  cnn     3,427       8  0-2    teacher   0.25 cross_entropy + 0.75 kl',
        '',
        'data     three: 60 train, 22 val, 26 test; 3 classes; 8 × 8 × 1',
        '         student: 15 of 60 have a label',
        'devices  4 × cpu (jit)',
        f'workdir  {tmp_path}',
        'so far   0 of 5 trainings are finished, student seed 1 has begun',
    ]


def test_a_sweep_is_one_line_and_only_what_is_chosen_is_shown(data, tmp_path):
    sweep = {'sweep': 'optim.learning_rate=0.01,0.02; seed=0,1'}
    config = config_of(data, alone=(None, {}), many=(None, sweep))
    _, many, _, *_ = lines_of(config, tmp_path, ['many'])
    assert many.split('  ')[0] == 'many' and '4 students' in many


def test_of_many_runs_the_first_ones_are_shown(data, tmp_path):
    config = config_of(data, **{f'run{k}': (None, {}) for k in range(15)})
    lines = lines_of(config, tmp_path)
    assert len([line for line in lines if line.startswith('run')]) == 1 + 12
    assert lines[13].startswith('and 3 more, which study.json') and lines[14] == ''


def test_verbose_adds_what_differs_from_the_defaults(data, tmp_path):
    shown = overview.fields(checked(config_of(data, alone=(None, {})), tmp_path))
    assert f'path: {json.dumps(str(data))[1:-1]}' in shown and 'batch_size: 20' in shown
    assert shown.endswith(
        'The other fields are the defaults; all are in config.json of each run.\n'
    )


def test_words():
    assert overview.numbers((0, 1, 2)) == '0-2' and overview.numbers((0, 1)) == '0, 1'
    assert overview.numbers(tuple(range(1, 99, 2))) == '1, 3, 5, 7, 9, …'
