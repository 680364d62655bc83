"""Workdirs and stored targets that version 0.1 made: they count as finished,
teach, are evaluated, and resume.

golden/version_0_1.zip has two studies of it on the digits: `finished` (a teacher, a student that
learned from stored targets, and these), and `unfinished`, a run that learns from its own past and
its average, stopped after two of four epochs.
"""

import importlib
import json
import shutil

import numpy as np
import pytest
from helpers import TESTS
from studies import final_params, train

from configs import common
from kd_jax import config as config_lib
from kd_jax import study
from kd_jax.checkpoint import Checkpoints
from kd_jax.errors import UserError
from kd_jax.evaluate import evaluate_run

ARCHIVE = TESTS / 'golden' / 'version_0_1.zip'
STUDENT = {'teachers': ('teacher',), 'soft_targets': '2'}
OWN = {'teachers': ('self:snapshot', 'self:ema'), 'snapshot_epochs': 0.5, 'optim.ema_decay': 0.9}


@pytest.fixture
def workdir(tmp_path):
    shutil.unpack_archive(ARCHIVE, tmp_path)
    return tmp_path


def study_of(**runs):
    """The config that made them, as it is written today."""
    config = common.study()
    config.data.source, config.tensorboard, config.parallel, config.devices, config.augment.crop = (
        'digits',
        False,
        'jit',
        1,
        1,
    )
    for name, (objective, changes) in runs.items():
        run = common.run(config, 'cnn', objective)
        run.model.width, run.batch_size, run.epochs, run.eval_every, run.optim.learning_rate = (
            0.25,
            64,
            4.0,
            2.0,
            0.1,
        )
        run.update_from_flattened_dict(changes)
        config.runs[name] = run
    return config.lock()


def test_finished_runs_are_not_trained_again_and_are_evaluated(workdir):
    config = study_of(teacher=(None, {}), student=(common.distillation(), STUDENT))
    before = {
        path: path.read_bytes()
        for path in (workdir / 'finished').glob('*/seed0/**/*')
        if path.is_file()
    }
    results = train(config, workdir / 'finished')
    assert {path: path.read_bytes() for path in before} == before
    for name in ('teacher', 'student'):
        found = evaluate_run(workdir / 'finished' / name)
        assert found == pytest.approx(results[name, 0]['test'], abs=1e-4)


def test_a_finished_run_teaches_and_its_stored_targets_are_used(workdir, capsys):
    changes = STUDENT | {'teachers': (str(workdir / 'finished/teacher'),), 'epochs': 1.0}
    result = train(study_of(student=(common.distillation(), changes)), workdir / 'new')[
        'student', 0
    ]
    assert 0 < result['teacher']['agreement'] <= 1
    assert len(list((workdir / 'finished/teacher/seed0/soft_targets').iterdir())) == 1
    assert 'soft targets of' not in capsys.readouterr().out  # nothing was extracted


def test_a_run_that_was_cut_off_resumes(workdir, capsys):
    directory = workdir / 'unfinished/own/seed0'
    with Checkpoints(directory / 'checkpoints') as checkpoints:
        (step,) = checkpoints.steps()
        before = checkpoints.read(step)[0]
    assert 'past' in before and step == 34
    result = train(study_of(own=(common.distillation(0.5, 2.0), OWN)), workdir / 'unfinished')[
        'own', 0
    ]
    assert 'own seed 0 · resumed at step 34 of 68' in capsys.readouterr().out
    assert (result['steps'], result['teacher']) == (68, None)
    with Checkpoints(directory / 'checkpoints') as checkpoints:
        after = checkpoints.read(68)[0]
    assert set(after) == set(before) - {'past'} | {'snapshot'}
    moved = np.abs(
        after['snapshot']['params']['head']['kernel'] - before['past']['params']['head']['kernel']
    )
    assert 0 < moved.max() < 1


@pytest.mark.parametrize(
    'change', [{'batch_size': 32}, {'optim.momentum': 0.8}, {'objective.kl.tau': 3.0}], ids=str
)
def test_another_config_is_still_another_config(workdir, change):
    (field, value) = next(iter(change.items()))
    with pytest.raises(
        UserError, match=f'holds a run with another config \\({field}: .* there, {value} here'
    ):
        train(
            study_of(teacher=(None, {}), student=(common.distillation(), STUDENT | change)),
            workdir / 'finished',
        )


def test_a_field_that_a_version_did_not_know_is_its_default(workdir):
    """Whatever field is taken out of the record of a finished run: it is still the same run."""
    config = study_of(teacher=(None, {}))
    path = workdir / 'finished/teacher/seed0/config.json'
    record = json.loads(path.read_text())
    usual, checked = json.loads(json.dumps(config_lib.run(config_lib.study(), 'cnn').to_dict())), 0
    for group in ('', 'optim', 'data', 'augment', 'model'):
        recorded = record['config'][group] if group else config_lib.upgraded(record['config'])
        for name in {name for name in recorded if name != 'name'} & set(
            usual[group] if group else usual
        ):
            default = usual[group][name] if group else usual[name]
            if isinstance(default, dict) or recorded[name] != default:
                continue
            without = json.loads(json.dumps(record))
            (without['config'][group] if group else without['config']).pop(name, None)
            path.write_text(json.dumps(without))
            study.Study(config, workdir / 'finished', ('teacher',)).check()
            checked += 1
    assert checked > 30


def test_old_names_are_told_by_their_new_ones():
    for field, new in (('population', 'sweep'), ('past_epochs', 'snapshot_epochs')):
        config = study_of(own=(None, {}))
        with config.unlocked():
            config.runs.own[field] = ''
        with pytest.raises(
            UserError, match=f'runs.own.{field} is called {new} now; write runs.own.{new}'
        ):
            study.Study(config, 'nowhere')
    for teacher, new in (('self:average', 'self:ema'), ('self:past', 'self:snapshot')):
        with pytest.raises(UserError, match=f"has '{teacher}', which is called '{new}' now"):
            study.Study(
                study_of(
                    own=(common.distillation(), {'teachers': (teacher,), 'optim.ema_decay': 0.9})
                ),
                'nowhere',
            )


def test_the_parameters_of_a_finished_run_are_as_they_were(workdir):
    assert final_params(workdir / 'finished', 'teacher')['params/head/kernel'].shape == (32, 10)


@pytest.mark.parametrize(
    ('module', 'name', 'now'),
    [
        ('kd_jax', 'population', 'kd_jax.jobs'),
        ('kd_jax', 'program', 'kd_jax.build'),
        ('kd_jax', 'record', 'kd_jax.train_log'),
        ('kd_jax', 'tables', 'kd_jax.target_store'),
        ('kd_jax', 'teachers', 'kd_jax.trained'),
        ('kd_jax.objectives', 'Term', 'Loss'),
        ('kd_jax.objectives', 'WeightedSum', 'Objective'),
        ('kd_jax.objectives', 'TRACED', 'swept'),
        ('kd_jax.data', 'Splits', 'Dataset'),
        ('kd_jax.data', 'Split', 'ArraySource'),
    ],
)
def test_old_modules_and_functions_are_told_by_their_new_names(module, name, now):
    with pytest.raises(ImportError, match=f'{module}.{name} is called {now}.* now; import that'):
        exec(f'from {module} import {name}')
    with pytest.raises(AttributeError):
        hasattr(importlib.import_module(module), 'nothing') or importlib.import_module(
            module
        ).__getattr__('nothing')
