"""A study of the user's own model, loss and data, from files outside of the package."""

import json
import re
import shutil
from pathlib import Path

import commands
import numpy as np
import own_things
import pytest
from helpers import environment
from studies import config_of, train

from kd_jax import config as common
from kd_jax.errors import UserError

CONFIG = """
from kd_jax import config as common


def get_config():
    c = common.study()
    c.data.source = 'mine:load'
    c.tensorboard = False
    c.seeds = (0,)
    model = {'name': 'mine:Net', 'hidden': 16}
    c.runs.teacher = common.run(c, model)
    objective = common.distillation()
    objective.mine = common.term('mine:jsd', beta=0.25)
    c.runs.student = common.run(c, model | {'hidden': 4}, objective)
    c.runs.student.teachers = ('teacher',)
    for run in c.runs.values():
        run.epochs, run.batch_size = 2.0, 20
    return c
"""
TAUGHT = """
from kd_jax import config as common


def get_config():
    c = common.study()
    c.data.source, c.tensorboard = 'mine:load', False
    c.teachers.bright = common.own_teacher('mine:bright')
    c.runs.student = common.run(c, 'mine:Linear', common.distillation())
    c.runs.student.teachers = ('bright',)
    c.runs.student.epochs, c.runs.student.batch_size = 1.0, 20
    return c
"""
AGAIN = """
from kd_jax import config as common


def get_config():
    c = common.study()
    c.data.source, c.tensorboard = 'mine:load', False
    c.runs.student = common.run(c, 'mine:Linear', common.distillation())
    c.runs.student.teachers = ('WORKDIR/teacher',)
    c.runs.student.epochs, c.runs.student.batch_size = 1.0, 20
    return c
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """With the user's files and, in `w`, what the command made of them, called from elsewhere."""
    folder = tmp_path_factory.mktemp('own')
    shutil.copy(own_things.__file__, folder / 'mine.py')
    (folder / 'study.py').write_text(CONFIG)
    (folder / 'again.py').write_text(AGAIN.replace('WORKDIR', str(folder / 'w')))
    return folder


def run(module, *arguments, cwd='/'):
    return commands.run(module, *arguments, env=environment(1), cwd=cwd)


@pytest.fixture(scope='module')
def first(folder):
    done = run('kd_jax.main', f'--config={folder}/study.py', f'--workdir={folder}/w')
    assert done.returncode == 0, done.stderr
    return done


def test_what_is_imported_is_told_and_its_name_is_recorded(folder, first):
    for kind, name in (('model', 'Net'), ('loss', 'jsd'), ('data source', 'load')):
        assert f'{kind} mine:{name} is imported from {folder}/mine.py' in first.stdout
    assert 'warning' not in first.stderr
    info = json.loads((folder / 'w/student/seed0/config.json').read_text())
    assert info['config']['model'] | {'name': 'mine:Net', 'hidden': 4} == info['config']['model']
    assert info['config']['objective']['mine']['beta'] == 0.25
    assert info['data']['class_names'] == ['a', 'b', 'c']


def test_the_same_command_knows_what_is_finished(folder, first):
    done = run('kd_jax.main', '--config=study.py', '--workdir=w', cwd=folder)
    assert done.returncode == 0 and 'student seed 0 · finished earlier' in done.stdout


def test_a_new_process_evaluates_it_if_the_workdir_is_trusted(folder, first):
    asked = ('kd_jax.evaluate', f'{folder}/w/student')
    refused = run(*asked, cwd=folder)
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert "model 'mine:Net' is code outside of kd_jax" in refused.stderr
    away = run(*asked, '--trust')
    assert away.returncode == 2 and "there is no module 'mine' in" in away.stderr
    done = run(*asked, '--trust', cwd=folder)
    assert done.returncode == 0, done.stderr
    recorded = json.loads((folder / 'w/student/seed0/result.json').read_text())['test']
    assert json.loads(done.stdout)['nll'] == pytest.approx(recorded['nll'], rel=1e-6)
    report = run('kd_jax.report', f'{folder}/w', cwd=folder)
    assert report.returncode == 0 and 'student' in report.stdout


def test_another_study_learns_from_it_if_the_workdir_is_trusted(folder, first):
    asked = ('kd_jax.main', '--config=again.py', '--workdir=w2')
    refused = run(*asked, cwd=folder)
    assert refused.returncode == 2 and "model 'mine:Net' is code outside" in refused.stderr
    assert not Path(folder, 'w2/student').exists()
    done = run(*asked, '--trust', cwd=folder)
    assert done.returncode == 0, done.stderr


def test_a_function_teaches_by_the_command(folder):
    (folder / 'taught.py').write_text(TAUGHT)
    done = run('kd_jax.main', '--config=taught.py', '--workdir=w3', cwd=folder)
    assert done.returncode == 0, done.stderr
    assert re.search(r'bright +mine:bright +given', done.stdout)
    missing = run('kd_jax.main', '--config=tought.py', '--config.seeds=(1,)', cwd=folder)
    assert missing.returncode == 2 and "cannot read the config 'tought.py'" in missing.stderr
    twice = run('kd_jax.main', '--config=taught.py', '--config=taught.py', cwd=folder)
    assert twice.returncode == 2 and '--config is given twice; give it once' in twice.stderr


def own_teachers(study, *names, **fields):
    """The student of a study, taught by these functions of `own_things`."""
    with study.unlocked():
        for name in names:
            study.teachers[name] = common.own_teacher(f'own_things:{name}', **fields)
        study.runs.student.teachers = names
    return study


@pytest.fixture
def data(tmp_path):
    found = own_things.load()
    pairs = {
        f'{k}_{w}': found[k][i] for k in ('train', 'test') for i, w in enumerate(('image', 'label'))
    }
    np.savez(tmp_path / 'data.npz', **pairs)
    return tmp_path / 'data.npz'


def test_functions_and_modules_teach(data, tmp_path):
    """One that is traced, one on the host, a module with its variables; all as rows of the table,
    and again from what they left.
    """
    student = (common.distillation(), {'epochs': 2.0})
    names = 'bright', 'on_host', 'with_variables'
    fields = {'mean': (0.0,), 'std': (1 / 255,)}
    study = own_teachers(config_of(data, student=student), *names, **fields)
    first = train(study, tmp_path / 'w')
    assert first['bright', 0]['test'] == first['on_host', 0]['test']
    assert first['bright', 0]['test']['top1'] > 0.9
    module, variables = own_things.with_variables
    logits = module.apply(variables, np.float32(own_things.load()['test'][0])[..., None])
    right = logits.argmax(-1) == own_things.load()['test'][1]
    assert first['with_variables', 0]['test']['top1'] == pytest.approx(right.mean())
    shutil.rmtree(tmp_path / 'w/student')
    again = train(study, tmp_path / 'w')
    assert again['student', 0]['test'] == first['student', 0]['test']


def test_a_teacher_that_is_none_is_refused_in_one_sentence(data, tmp_path):
    for name, fields, sentence in (
        ('with_variables', {}, 'teachers.with_variables.mean and .std are missing: give those wi'),
        ('bright', {'mean': (1.0,), 'std': (1.0, 2.0)}, 'std has 2 numbers for images of 1 chan'),
        ('jsd', {}, 'failed for images of shape .2, 8, 8, 1.: TypeError: jsd..'),
        ('load', {}, 'load.. takes 0 positional arguments but 1 was given'),
        ('of_one', {}, r'returned logits of shape \(2, 1\) for 2 images of 3 classes'),
        ('not_callable', {}, "'own_things:not_callable' is int; it must be a function"),
        ('bright', {'torch': 'x.pth'}, 'has a function and torch or model; it is the one or the'),
    ):
        study = config_of(data, student=(common.distillation(), {'epochs': 1.0}))
        with pytest.raises(UserError, match=sentence):
            train(own_teachers(study, name, **fields), tmp_path / 'refused')


@pytest.mark.parametrize('field', ['model', 'data', 'objective'])
def test_a_workdir_runs_no_code(folder, first, tmp_path, field):
    """Whatever of it names code, and wherever that code lies."""
    shutil.copytree(folder / 'w/student', tmp_path / 'w/student')
    (tmp_path / 'evil.py').write_text(f'open({str(tmp_path / "ran")!r}, "w")\n')
    path = tmp_path / 'w/student/seed0/config.json'
    info = json.loads(path.read_text())
    info['config']['model'] = {'name': 'cnn'}
    if field == 'model':
        info['config']['model'] = {'name': 'evil:Net'}
    if field == 'data':
        info['config']['data']['source'] = 'evil:load'
    if field == 'objective':
        info['config']['objective']['mine']['loss'] = 'evil:loss'
    path.write_text(json.dumps(info))
    for module in ('kd_jax.evaluate', 'kd_jax.report'):
        run(
            module,
            tmp_path / 'w' / ('student' if module == 'kd_jax.evaluate' else ''),
            cwd=tmp_path,
        )
    assert not (tmp_path / 'ran').exists()
