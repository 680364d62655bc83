"""The wheel, without the checkout: in a folder of its own or, `long`, in a fresh environment."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import own_things
import pytest
import torchvision_weights
from helpers import REPOSITORY, random_splits, save_npz

import kd_jax

STUDY = """
from kd_jax import config, methods


def get_config():
    c = config.study()
    c.data.source, c.data.path = 'npz', 'mine.npz'
    c.runs.alone = config.run(c, 'cnn')
    c.runs.alone.epochs, c.runs.alone.model.width = 1.0, 0.25
    assert 'at' in methods.METHODS
    return c
"""
# An own module with BatchNorm learns from a torchvision file, by an own loss too.
OWN = """
from kd_jax import config


def get_config():
    c = config.study()
    c.data.source, c.data.path, c.tensorboard = 'npz', 'colour.npz', False
    model = {'name': 'resnet18', 'width': 0.0625}
    c.teachers.teacher = config.imported('weights.pth', model)
    c.teachers.teacher.size = 32
    objective = config.distillation()
    objective.mine = config.term('mine:jsd', weight=0.5)
    c.runs.alone = config.run(c, {'name': 'mine:Net', 'hidden': 4})
    c.runs.student = config.run(c, {'name': 'mine:Net', 'hidden': 4}, objective)
    c.runs.student.teachers = ('teacher',)
    for run in c.runs.values():
        run.epochs, run.batch_size = 2.0, 20
    return c
"""
SCRIPT = """
import json

import mine

import kd_jax as kd

result = kd.distill(
    {'name': 'cnn', 'width': 0.25},
    mine.Net(3, hidden=4),
    mine.load(),
    {'cross_entropy': 0.5, 'kl': {'tau': 2.0}, 'mine': mine.jsd},
    epochs=1,
    batch_size=20,
    workdir='distilled',
)
predicted = result.model().probabilities(mine.load()['test'][0]).argmax(-1)
right = (predicted == mine.load()['test'][1]).mean()
print(json.dumps({'rows': result.runs, 'right': float(right)}))
"""


@pytest.fixture(scope='module', params=['folder', pytest.param('fresh', marks=pytest.mark.long)])
def installed(request, tmp_path_factory):
    """A command in a folder from which only the wheel can be imported; `fresh`: in an environment
    that holds what pip installs for it and nothing else.
    """
    folder = tmp_path_factory.mktemp('installed')
    pip = (sys.executable, '-m', 'pip', '-q')
    wheel = (*pip, 'wheel', '--no-deps', REPOSITORY, '-w', folder)
    subprocess.run(wheel, check=True)
    (built,) = folder.glob('kd_jax-*.whl')
    python, env = sys.executable, os.environ | {'PYTHONPATH': str(folder / 'packages')}
    if request.param == 'fresh':
        subprocess.run((sys.executable, '-m', 'venv', folder / 'venv'), check=True)
        python = folder / 'venv/bin/python'
        env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
        subprocess.run((python, '-m', 'pip', '-q', 'install', built), check=True)
        assert not list((folder / 'venv').glob('lib/*/site-packages/pytest'))
    else:
        target = ('--no-deps', '--no-compile', '--target', folder / 'packages')
        subprocess.run((*pip, 'install', *target, built), check=True)
    (folder / 'elsewhere').mkdir()

    def run(*command):
        done = subprocess.run(
            [python, *map(str, command)],
            cwd=folder / 'elsewhere',
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert 'Traceback' not in done.stderr
        return done

    run.folder, run.wheel = folder, built
    run.command = next(folder.glob('*/bin/kd_jax'))
    return run


def test_it_holds_the_package_and_its_configs_and_no_tests(installed):
    names = zipfile.ZipFile(installed.wheel).namelist()
    tops = {name.split('/')[0] for name in names}
    assert tops == {'kd_jax', f'kd_jax-{kd_jax.__version__}.dist-info'}
    ours = {str(p.relative_to(REPOSITORY)) for p in (REPOSITORY / 'kd_jax').rglob('*.py')}
    stock = {f'kd_jax/{p.relative_to(REPOSITORY)}' for p in (REPOSITORY / 'configs').glob('*.py')}
    weights = {'kd_jax/configs/weights/fashion_mnist_resnet20.pth'}
    scripts = ('vega', 'vega-lite', 'vega-embed')
    drawn = {f'kd_jax/page/vega/{name}.min.js' for name in scripts}
    drawn |= {f'kd_jax/page/{name}' for name in ('page.css', 'page.js', 'vega/LICENSES.txt')}
    assert {name for name in names if name.startswith('kd_jax/')} == (
        ours | stock | weights | drawn | {'kd_jax/py.typed'}
    )


def test_commands_train_stock_studies_and_own_ones_and_look_at_them(installed):
    command = installed.command
    assert installed(command, '--version').stdout == f'{kd_jax.__version__}\n'
    fast = ('--config.seeds=(0,)', '--config.tensorboard=False', '--config.runs.alone.epochs=1.')
    done = installed(command, '--config=digits', '--only=alone', *fast)
    assert done.returncode == 0, done.stderr
    workdir = installed.folder / 'elsewhere/runs/digits'
    assert (workdir / 'alone/seed0/result.json').exists()
    assert (workdir / 'report.html').exists()
    for word in ('evaluate', 'report'):
        done = installed(command, word, workdir / 'alone' if word == 'evaluate' else workdir)
        assert done.returncode == 0 and 'top' in done.stdout, done.stderr


def test_a_study_of_ones_own_needs_nothing_of_the_checkout(installed):
    save_npz(installed.folder / 'elsewhere/mine.npz', random_splits())
    (installed.folder / 'elsewhere/study.py').write_text(STUDY)
    done = installed('-m', 'kd_jax', '--config=study.py', '--workdir=w')
    assert done.returncode == 0, done.stderr
    assert (installed.folder / 'elsewhere/w/alone/seed0/result.json').exists()


def test_own_things_learn_from_a_torchvision_file(installed):
    """Trained, resumed and evaluated in processes of their own."""
    place = installed.folder / 'elsewhere'
    shutil.copy(own_things.__file__, place / 'mine.py')
    (place / 'own.py').write_text(OWN)
    save_npz(place / 'colour.npz', random_splits(channels=3))
    torchvision_weights.write(place / 'weights.pth', 3)
    asked = (installed.command, '--config=own.py', '--workdir=own')
    only = installed(*asked, '--only=alone')
    assert only.returncode == 0, only.stderr
    done = installed(*asked)
    assert done.returncode == 0, done.stderr
    assert 'alone seed 0 · finished earlier' in done.stdout
    results = json.loads((place / 'own/results.json').read_text())['results']
    assert {result['run'] for result in results} == {'teacher', 'alone', 'student'}
    refused = installed(installed.command, 'evaluate', 'own/student')
    assert refused.returncode == 2 and 'say --trust' in refused.stderr
    found = installed(installed.command, 'evaluate', 'own/student', '--trust')
    student = next(result for result in results if result['run'] == 'student')
    assert json.loads(found.stdout)['nll'] == pytest.approx(student['test']['nll'], rel=1e-5)


def test_a_script_distils_own_arrays(installed):
    place = installed.folder / 'elsewhere'
    shutil.copy(own_things.__file__, place / 'mine.py')
    (place / 'script.py').write_text(SCRIPT)
    first = installed('script.py')
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout.splitlines()[-1])
    student = next(row for row in found['rows'] if row['run'] == 'student')
    assert found['right'] == pytest.approx(student['test top1'])
    again = installed('script.py')
    assert 'student seed 0 · finished earlier' in again.stdout
    assert json.loads(again.stdout.splitlines()[-1]) == found
