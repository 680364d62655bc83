"""Every method of kd_jax/methods.py with its paper's weights, within a family and across,
from one command on real digits.
"""

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
    # resnet20 and resnet8, at half of their widths
    'resnet56-resnet20': ((0.5, 1 / 3), (0.5, 1 / 3)),
    'cifar_vgg13-cifar_mobilenet_v2_x0.5': ((0.25, 1.0), (0.5, 0.25)),
}
SHARE = 12 / 240  # of the protocol's epochs
INTERVALS = 4  # validations a run


def study(pair):
    return cifar100.get_config(f'method=all,pair={pair}')


def command(pair, config, path, workdir):
    """The protocol, shortened: whatever it counts in epochs shrinks in proportion."""
    flags = [
        f'--config=configs/cifar100.py:method=all,pair={pair}',
        f'--workdir={workdir}',
        '--config.seeds=(0,)',
    ]
    flags += [
        '--config.data.source=npz',
        f'--config.data.path={path}',
        '--config.augment.flip=False',
    ]
    flags += ['--config.augment.crop=2', '--config.tensorboard=False']
    for name, run in config.runs.items():
        width, depth = PAIRS[pair][run.model.name != config.runs.teacher.model.name]
        fields = {
            'model.width': width * (run.model.width or 1),
            'model.depth': depth,
            'batch_size': 25,
        }
        fields |= {'epochs': run.epochs * SHARE, 'eval_every': run.epochs * SHARE / INTERVALS}
        fields |= {'snapshot_epochs': run.snapshot_epochs * SHARE}
        fields |= {'optim.step_epochs': tuple(epoch * SHARE for epoch in run.optim.step_epochs)}
        fields |= {
            f'objective.{t}.ramp_epochs': term.ramp_epochs * SHARE
            for t, term in run.objective.items()
        }
        flags += [f'--config.runs.{name}.{field}={value}' for field, value in fields.items()]
    return flags


def numbers(tree):
    """All numbers in what JSON gave."""
    if isinstance(tree, dict | list):
        return [
            x
            for value in (tree.values() if isinstance(tree, dict) else tree)
            for x in numbers(value)
        ]
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


def test_every_run_of_every_method_follows_the_study():
    """Those that a method makes of the teacher too."""
    config = study('resnet56-resnet20')
    config.seeds, config.data.path = (7,), '/elsewhere'
    assert {(run.seeds, run.data.path) for run in config.runs.values()} == {((7,), '/elsewhere')}
    # can be given on the command line
    assert {run.model.get_type('depth') for run in config.runs.values()} == {float}


@pytest.mark.long
@pytest.mark.parametrize('pair', PAIRS)
def test_every_method_trains_end_to_end(pair, digits, tmp_path):
    config = study(pair)
    done = run_main(*command(pair, config, digits, tmp_path / 'w'), timeout=3600)
    assert done.returncode == 0, done.stderr
    check(config, tmp_path / 'w')


def check(config, workdir):
    """What the study of all methods left in its workdir: every run learned."""
    results = {r['run']: r for r in json.loads((workdir / 'results.json').read_text())['results']}
    assert set(results) == set(config.runs)
    assert all(map(math.isfinite, numbers(results)))
    top1 = {name: r['test']['top1'] for name, r in results.items()}  # chance is 0.1
    assert top1['teacher'] > 0.8, top1
    # those have seen no labels
    final = {name: value for name, value in top1.items() if not name.endswith('_before')}
    assert min(final.values()) > 0.4, top1
    assert results['kl']['teacher']['agreement'] > 0.6
    for name, run in config.runs.items():
        lines = [
            json.loads(line)
            for line in (workdir / name / 'seed0/metrics.jsonl').read_text().splitlines()
        ]
        assert all(map(math.isfinite, numbers(lines)))
        trained = [line for line in lines if line['split'] == 'train']
        assert len(trained) == INTERVALS
        # which agree at first, both ignorant
        if not any(teacher.startswith('self:') for teacher in run.teachers):
            # The virtual teacher is all but undecided (0.99 and 0.01, at temperature 20):
            # learning leads away from it.
            for term in set(run.objective) - {'virtual_teacher'}:
                assert trained[-1][term] < trained[0][term], (name, term)
