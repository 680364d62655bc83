"""Which checkpoint is tested, and what is left where the latest is damaged."""

import json

import numpy as np
import pytest
from helpers import random_splits, save_npz
from studies import config_of, final_params, train

from kd_jax.train import Stopped


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """60 training images in 3 classes that a small network learns in a few epochs."""
    return save_npz(tmp_path_factory.mktemp('data') / 'three.npz', random_splits())


def test_early_stopping_and_the_best_checkpoint(data, tmp_path):
    """With a hopeless learning rate nothing improves after the first validations, and
    the best one is what is tested.
    """
    changes = {'optim.learning_rate': 1e-12, 'epochs': 12.0, 'patience': 2}
    results = train(config_of(data, alone=(None, changes)), tmp_path)
    assert results['alone', 0]['steps'] < 36
    lines = [
        json.loads(line)
        for line in (tmp_path / 'alone/seed0/metrics.jsonl').read_text().splitlines()
    ]
    val = {m['step']: (m['top1'], -m['nll']) for m in lines if m['split'] == 'val'}
    best = max(val, key=lambda step: (val[step], -step))
    assert results['alone', 0]['checkpoint'] == best
    assert results['alone', 0]['steps'] == best + 2 * 3
    assert results['alone', 0]['val']['nll'] == pytest.approx(-val[best][1], abs=1e-6)


def test_a_damaged_latest_checkpoint_costs_the_steps_since_the_one_before(data, tmp_path, capsys):
    asked = iter([False] * 4 + [True] * 1000)
    config = config_of(data, alone=(None, {'epochs': 5.0}))
    with pytest.raises(Stopped):
        train(config, tmp_path / 'cut', should_stop=lambda: next(asked))
    checkpoints = tmp_path / 'cut/alone/seed0/checkpoints'
    latest = max(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit())
    files = [p for p in (checkpoints / str(latest) / 'state').rglob('*') if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    train(config, tmp_path / 'cut')
    assert f'the checkpoint of step {latest} in' in capsys.readouterr().err
    train(config, tmp_path / 'whole')
    cut, whole = final_params(tmp_path / 'cut', 'alone'), final_params(tmp_path / 'whole', 'alone')
    for name in whole:
        assert np.array_equal(cut[name], whole[name])
