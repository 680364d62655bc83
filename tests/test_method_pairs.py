"""Every method of configs/methods.py, with its paper's weights, from one command: within a family and across, on real digits."""

import json
import math

import numpy as np
import pytest
from helpers import run_main
from sklearn.datasets import load_digits

from configs import cifar100
from kd_jax.objectives import OBJECTIVES

# Pair of configs/cifar100.py -> (width, depth) of its teacher and of its student.
PAIRS = {
    'resnet56-resnet20': ((0.5, 1 / 3), (0.5, 1 / 3)),  # resnet20 and resnet8, at half of their widths
    'cifar_vgg13-cifar_mobilenet_v2_x0.5': ((0.25, 1.0), (0.5, 0.25)),
}
SHARE = 12 / 240  # of the protocol's epochs


def study(pair):
    return cifar100.get_config(f'method=all,pair={pair}')


def shortened(run):
    """field -> value: all that the protocol counts in epochs, in proportion; four validations."""
    fields = {'epochs': run.epochs * SHARE, 'eval_every': run.epochs * SHARE / 4, 'past_epochs': run.past_epochs * SHARE}
    fields['optim.step_epochs'] = tuple(epoch * SHARE for epoch in run.optim.step_epochs)
    ramps = {f'objective.{name}.ramp_epochs': term.ramp_epochs * SHARE for name, term in run.objective.items()}
    return fields | {name: epochs for name, epochs in ramps.items() if epochs}


def numbers(tree):
    """All numbers in what JSON gave."""
    if isinstance(tree, dict | list):
        return [x for value in (tree.values() if isinstance(tree, dict) else tree) for x in numbers(value)]
    return [tree] if isinstance(tree, int | float) else []


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """A file of 500 training and 200 test digits, magnified to 32x32."""
    images, labels = load_digits(return_X_y=True)
    large = np.uint8(255 * images.reshape(-1, 8, 8, 1) / 16).repeat(4, axis=1).repeat(4, axis=2)
    path = tmp_path_factory.mktemp('digits') / 'digits.npz'
    parts = {'train': slice(0, 500), 'val': slice(500, 600), 'test': slice(600, 800)}
    arrays = {f'{name}_image': large[part] for name, part in parts.items()}
    np.savez(path, **arrays, **{f'{name}_label': labels[part] for name, part in parts.items()})
    return path


def test_every_objective_is_in_some_method():
    used = {term for run in study('resnet56-resnet20').runs.values() for term in run.objective}
    assert used == {name for name, term in OBJECTIVES.items() if not term.needs_heads}


@pytest.mark.slow
@pytest.mark.parametrize('pair', PAIRS)
def test_every_method_trains_end_to_end(pair, digits, tmp_path):
    config = study(pair)
    flags = [f'--config=configs/cifar100.py:method=all,pair={pair}', f'--workdir={tmp_path}/w', '--config.seeds=(0,)']
    flags += ['--config.data.source=npz', f'--config.data.path={digits}', '--config.augment.flip=False']
    flags += ['--config.augment.crop=2', '--config.tensorboard=False']
    for name, run in config.runs.items():
        width, depth = PAIRS[pair][run.model.name != config.runs.teacher.model.name]
        fields = {'model.width': width * (run.model.width or 1), 'model.depth': depth, 'batch_size': 25}
        fields |= {'optim.learning_rate': 0.05} | shortened(run)
        flags += [f'--config.runs.{name}.{field}={value}' for field, value in fields.items()]
    done = run_main(*flags, timeout=3600)
    assert done.returncode == 0, done.stderr
    results = {r['run']: r for r in json.loads((tmp_path / 'w/results.json').read_text())['results']}
    assert set(results) == set(config.runs)
    assert all(map(math.isfinite, numbers(results)))
