"""Teachers and students of different families, from one command: the networks of
ImageNet, narrow, on real digits.
"""

import json

import numpy as np
import pytest
from helpers import run_main
from sklearn.datasets import load_digits

# (image side, learning rates of the teacher and of the students): at 0.002 VGG's dense layers may
# die, and MobileNets are slow.
PAIRS = {
    'inception_v3-imagenet_shufflenet_v2_x0_5': (80, 0.002, 0.002),
    'imagenet_vgg11_bn-imagenet_mobilenet_v2': (32, 0.0005, 0.005),
    'resnet50-mobilenet_v1': (32, 0.002, 0.005),
}


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """side -> a file of 500 training and 200 test digits, magnified to that side."""
    images, labels = load_digits(return_X_y=True)
    images = np.uint8(255 * images.reshape(-1, 8, 8, 1) / 16)
    directory = tmp_path_factory.mktemp('digits')

    def make(side):
        large = images.repeat(side // 8, axis=1).repeat(side // 8, axis=2)
        path = directory / f'{side}.npz'
        parts = {'train': slice(0, 500), 'val': slice(500, 600), 'test': slice(600, 800)}
        arrays = {f'{name}_image': large[part] for name, part in parts.items()}
        np.savez(path, **arrays, **{f'{name}_label': labels[part] for name, part in parts.items()})
        return path

    return make


@pytest.mark.long
@pytest.mark.parametrize('pair', PAIRS)
def test_a_pair_of_families_trains_end_to_end(pair, digits, tmp_path):
    teacher, student = pair.split('-')
    side, *rates = PAIRS[pair]
    flags = [
        '--config=configs/digits.py:all',
        '--config.data.source=npz',
        f'--config.data.path={digits(side)}',
    ]
    flags += [
        '--config.seeds=(0,)',
        f'--config.runs.teacher.model.name={teacher}',
        f'--workdir={tmp_path}/w',
    ]
    for run in ('teacher', 'alone', 'student'):
        name = teacher if run == 'teacher' else student
        flags += [f'--config.runs.{run}.model.name={name}', f'--config.runs.{run}.model.width=0.25']
        flags += [
            f'--config.runs.{run}.{field}'
            for field in ('epochs=16.', 'eval_every=4.', 'batch_size=25', 'select=last')
        ]
        flags += [
            f'--config.runs.{run}.optim.{field}'
            for field in (
                'name=adam',
                f'learning_rate={rates[run != "teacher"]}',
                'weight_decay=0.',
            )
        ]
        flags += [f'--config.runs.{run}.model.dropout=0.']
    if teacher == 'inception_v3':
        flags += ['--config.runs.teacher.model.aux=False']
    done = run_main(*flags, timeout=1800)
    assert done.returncode == 0, done.stderr
    results = {
        r['run']: r for r in json.loads((tmp_path / 'w/results.json').read_text())['results']
    }
    top1 = {name: r['test']['top1'] for name, r in results.items()}
    assert top1['teacher'] > 0.6, top1  # chance is 0.1
    assert top1['student'] > 0.4, top1
    assert results['student']['teacher']['agreement'] > 0.4
