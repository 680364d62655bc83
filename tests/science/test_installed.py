"""The wheel, without the checkout."""

import os
import subprocess
import sys
import zipfile

import pytest
from helpers import REPOSITORY

import kd_jax

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """A command in a folder from which only the wheel can be imported."""
    folder = tmp_path_factory.mktemp('installed')
    pip = (sys.executable, '-m', 'pip', '-q')
    wheel = (*pip, 'wheel', '--no-deps', REPOSITORY, '-w', folder)
    subprocess.run(wheel, check=True)
    (built,) = folder.glob('kd_jax-*.whl')
    install = (*pip, 'install', '--no-deps', '--no-compile', '--target', folder / 'packages', built)
    subprocess.run(install, check=True)
    (folder / 'elsewhere').mkdir()

    def run(*command):
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=folder / 'elsewhere',
            env=os.environ | {'PYTHONPATH': str(folder / 'packages')},
            capture_output=True,
            text=True,
            check=False,
        )
        assert 'Traceback' not in done.stderr
        return done

    run.folder, run.wheel = folder, built
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
    command = installed.folder / 'packages/bin/kd_jax'
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
    from helpers import random_splits, save_npz

    save_npz(installed.folder / 'elsewhere/mine.npz', random_splits())
    (installed.folder / 'elsewhere/study.py').write_text(STUDY)
    done = installed('-m', 'kd_jax', '--config=study.py', '--workdir=w')
    assert done.returncode == 0, done.stderr
    assert (installed.folder / 'elsewhere/w/alone/seed0/result.json').exists()
