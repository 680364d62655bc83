"""A run is evaluated as it was trained: in its precision, and with the result
that stands in its result.json.
"""

import json

import numpy as np
import pytest
from helpers import random_splits, save_npz
from studies import config_of, train

from configs import common
from kd_jax import trained
from kd_jax.evaluate import evaluate_run, evaluate_together
from kd_jax.networks import PRECISIONS
from kd_jax.workdir import RunDirectory


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return save_npz(
        tmp_path_factory.mktemp('data') / 'three.npz', random_splits(train=200, test=101)
    )


@pytest.mark.parametrize('precision', PRECISIONS)
def test_evaluating_again_gives_the_result(data, tmp_path, precision):
    """Also what a bfloat16 run got, which float32 arithmetic would not give."""
    changes = {'model.name': 'resnet8', 'epochs': 1.0}
    config = config_of(
        data,
        teacher=(None, changes),
        student=(common.distillation(), changes | {'teachers': ('teacher',)}),
    )
    with config.unlocked():
        config.precision = precision
    results = train(config, tmp_path)
    for name in ('teacher', 'student'):
        for split in ('val', 'test'):
            assert evaluate_run(tmp_path / name, split) == pytest.approx(
                results[name, 0][split], abs=1e-6
            )
    model = trained.load(RunDirectory(tmp_path / 'student/seed0'))
    assert (model.precision, model.network.model.dtype) == (precision, PRECISIONS[precision][0])
    if precision == 'bfloat16':
        path = tmp_path / 'student/seed0/config.json'
        record = json.loads(path.read_text())
        record['config']['precision'] = 'float32'
        path.write_text(json.dumps(record))
        assert (
            abs(evaluate_run(tmp_path / 'student')['nll'] - results['student', 0]['test']['nll'])
            > 1e-5
        )


def test_several_runs_of_one_precision_are_evaluated_in_it(data, tmp_path):
    config = config_of(data, alone=(None, {'epochs': 1.0, 'seeds': (0, 1)}))
    with config.unlocked():
        config.precision = 'bfloat16'
    train(config, tmp_path)
    runs = [tmp_path / f'alone/seed{seed}' for seed in (0, 1)]
    models = [trained.load(RunDirectory(run)) for run in runs]
    with np.load(data) as arrays:
        images, labels = arrays['test_image'], arrays['test_label']
    logits = [np.float64(m.network.predict(m.variables, np.float32(images)).logits) for m in models]
    probabilities = np.mean([np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in logits], axis=0)
    expected = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    assert evaluate_together(runs)['nll'] == pytest.approx(expected, rel=1e-3)
