"""The CIFAR-10 study from a directory of TensorFlow Datasets."""

import json

import pytest
from helpers import run_main
from tfds_sets import prepare_cifar10_like


@pytest.fixture(scope='module')
def cifar(tmp_path_factory):
    """A directory that holds `cifar10` as TensorFlow Datasets prepares it, with other images."""
    directory = tmp_path_factory.mktemp('tfds')
    prepare_cifar10_like(directory, train=600, test=120)
    return directory


def without_tensorflow(directory):
    """An environment in which `import tensorflow` fails even where it is installed."""
    package = directory / 'blocked' / 'tensorflow'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text("raise ImportError('this test runs without TensorFlow')\n")
    return {'PYTHONPATH': str(package.parent)}


def test_cifar10_trains_from_a_tfds_directory_without_tensorflow(cifar, tmp_path):
    """The CIFAR-10 study with small networks: 540/60/120 images, all
    three runs, above chance by far.
    """
    flags = [
        '--config=configs/cifar10.py',
        f'--config.data.path={cifar}',
        '--config.seeds=(0,)',
        '--config.tensorboard=False',
    ]
    for run, model in (('teacher', 'resnet8'), ('alone', 'cnn'), ('student', 'cnn')):
        flags += [
            f'--config.runs.{run}.model.name={model}',
            f'--config.runs.{run}.model.width=0.25',
        ]
        flags += [
            f'--config.runs.{run}.{field}'
            for field in ('epochs=8.', 'eval_every=4.', 'optim.warmup_epochs=1.')
        ]
        flags += [
            f'--config.runs.{run}.batch_size=30',
            f'--config.runs.{run}.optim.learning_rate=0.02',
        ]
    done = run_main(*flags, f'--workdir={tmp_path}/w', **without_tensorflow(tmp_path))
    assert done.returncode == 0, done.stderr
    results = {
        r['run']: r for r in json.loads((tmp_path / 'w/results.json').read_text())['results']
    }
    info = json.loads((tmp_path / 'w/teacher/seed0/config.json').read_text())
    assert info['data']['class_names'][:3] == ['airplane', 'automobile', 'bird']
    assert info['data']['count'] == {'train': 540, 'labelled': 540, 'val': 60, 'test': 120}
    assert results['student']['test']['count'] == 120
    assert results['teacher']['test']['top1'] > 0.5
    assert results['student']['test']['top1'] > 0.3


@pytest.mark.long
def test_cifar10_trains_its_own_networks(cifar, tmp_path):
    """resnet56 learns in four epochs; MobileNetV2 x0.5 runs for one, alone and with it."""
    flags = ['--config=configs/cifar10.py', f'--config.data.path={cifar}', '--config.seeds=(0,)']
    for run in ('teacher', 'alone', 'student'):
        flags += [
            f'--config.runs.{run}.{field}'
            for field in ('epochs=1.', 'batch_size=60', 'optim.warmup_epochs=0.')
        ]
    flags += [
        f'--config.runs.teacher.{field}'
        for field in ('epochs=4.', 'eval_every=1.', 'optim.learning_rate=0.02')
    ]
    done = run_main(*flags, f'--workdir={tmp_path}/w', timeout=1200)
    assert done.returncode == 0, done.stderr
    results = {
        r['run']: r for r in json.loads((tmp_path / 'w/results.json').read_text())['results']
    }
    assert results['teacher']['params'] == 855_770
    assert results['student']['params'] == results['alone']['params'] == 697_546
    assert {r['test']['count'] for r in results.values()} == {120}
    lines = [
        json.loads(line)
        for line in (tmp_path / 'w/teacher/seed0/metrics.jsonl').read_text().splitlines()
    ]
    # The running statistics of so many layers need more steps than these: what was
    # learnt shows in training mode.
    assert [m['top1'] for m in lines if m['split'] == 'train'][-1] > 0.3
