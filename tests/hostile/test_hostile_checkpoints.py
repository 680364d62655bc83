"""Checkpoints that are damaged, gone, or another run's: the same command goes on, says what was
lost, and ends with the same parameters, bit for bit.
"""

import json
import os
import shutil

import numpy as np
import pytest
from helpers import random_splits, save_npz
from refusals import refused, refused_here
from studies import config_of, final_params, train

from kd_jax.checkpoint import Checkpoints
from kd_jax.train import Stopped

# Nothing improves: the best validation is an early one.
CHANGES = {'optim.learning_rate': 1e-12, 'epochs': 6.0, 'eval_every': 1.0}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return save_npz(tmp_path_factory.mktemp('data') / 'three.npz', random_splits())


@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    """(parameters, result) of the run that nothing happened to."""
    workdir = tmp_path_factory.mktemp('whole')
    result = train(config_of(data, alone=(None, CHANGES)), workdir)['alone', 0]
    return final_params(workdir, 'alone'), result


@pytest.fixture(scope='module')
def finished(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('finished')
    train(config_of(data, alone=(None, {'epochs': 1.0})), workdir)
    return workdir


@pytest.fixture(scope='module')
def stopped(data, tmp_path_factory):
    """The workdir of the same run, stopped after the fifth of six epochs."""
    workdir = tmp_path_factory.mktemp('stopped')
    steps = iter(range(1000))
    with pytest.raises(Stopped):
        train(config_of(data, alone=(None, CHANGES)), workdir, should_stop=lambda: next(steps) == 5)
    return workdir


@pytest.fixture
def checkpoints(stopped, tmp_path):
    """Of a copy: {step: its folder}, of which the smallest is the best one."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / 'alone/seed0/checkpoints'
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    with Checkpoints(folder, read_only=True) as found:
        meta = found.read(steps[-1])[1]
    assert meta['best_step'] == steps[0] < steps[-2] < steps[-1] == 15
    return {step: folder / str(step) for step in steps}


def largest(folder):
    return max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


def flip(folder):
    content = bytearray(largest(folder).read_bytes())
    content[len(content) // 2] ^= 1
    largest(folder).write_bytes(content)


def cut(folder):
    os.truncate(largest(folder), largest(folder).stat().st_size // 2)


def empty(folder):
    for path in folder.rglob('*'):
        if path.is_file():
            os.truncate(path, 0)


def meta_with(**changes):
    """Other values in the record beside the state; as earlier versions wrote it, without a
    checksum of its own.
    """

    def change(folder):
        path = folder / 'meta/metadata'
        meta = json.loads(path.read_text())
        del meta['meta_checksum']
        path.write_text(json.dumps({**meta, **changes}))

    return change


def meta_of(content):
    return lambda folder: (folder / 'meta/metadata').write_bytes(content)


DAMAGE = {
    'a bit': flip,
    'half a file': cut,
    'empty files': empty,
    'no files': shutil.rmtree,
    'no state': lambda folder: shutil.rmtree(folder / 'state'),
    'no record': lambda folder: shutil.rmtree(folder / 'meta'),
    'a record of text': meta_of(b'hello'),
    'a record of a list': meta_of(b'[1]'),
    'a record of nothing': meta_of(b''),
    'a deep record': meta_of(b'[' * 100_000),
    'a binary record': meta_of(bytes(range(256))),
    'a best step that is not there': meta_with(best_step=12345),
    'a best step in words': meta_with(best_step='best'),
    'a best step below zero': meta_with(best_step=-1),
    'a best step that is a half': meta_with(best_step=1.5),
    'sums in words': meta_with(interval_sums={'loss': 'high'}),
    'seconds in words': meta_with(seconds='long'),
    'a best of three': meta_with(best='0.5'),
}


def goes_on(data, folder, whole, capsys):
    """The same command; what it says on stderr."""
    result = train(config_of(data, alone=(None, CHANGES)), folder)['alone', 0]
    params = final_params(folder, 'alone')
    assert result['checkpoint'] == whole[1]['checkpoint'] and result['test'] == whole[1]['test']
    for name, value in whole[0].items():
        np.testing.assert_array_equal(params[name], value)
    lines = [
        json.loads(line) for line in (folder / 'alone/seed0/metrics.jsonl').read_text().splitlines()
    ]
    assert [line['step'] for line in lines] == sorted([3, 6, 9, 12, 15, 18] * 2)
    return capsys.readouterr().err


# What a checkpoint says of others does not matter where it is the best one itself.
OF_OTHERS = {'a best step that is not there', 'a best step below zero'}
CASES = [(name, 'latest') for name in DAMAGE]
CASES += [(name, 'best') for name in DAMAGE if name not in OF_OTHERS]
CASES += [('a bit', 'all'), ('no record', 'all'), ('seconds in words', 'all')]


@pytest.mark.parametrize(('name', 'which'), CASES)
def test_it_goes_on_and_ends_the_same(data, checkpoints, tmp_path, whole, capsys, name, which):
    steps = sorted(checkpoints)
    for step in {'best': steps[:1], 'latest': steps[-1:], 'all': steps}[which]:
        DAMAGE[name](checkpoints[step])
    said = goes_on(data, tmp_path, whole, capsys)
    if (name, which) != ('no files', 'latest'):  # as if it had never been saved
        assert 'going back to the one before it' in said and str(tmp_path) in said
        assert all(len(line) < 700 for line in said.splitlines())


def test_the_state_of_another_run(data, checkpoints, tmp_path, whole, capsys):
    other = {**CHANGES, 'model.width': 0.5, 'epochs': 5.0}
    train(config_of(data, alone=(None, other)), tmp_path / 'other')
    shutil.rmtree(checkpoints[15])
    shutil.copytree(tmp_path / 'other/alone/seed0/checkpoints/15', checkpoints[15])
    assert 'is that of another run' in goes_on(data, tmp_path, whole, capsys)


def test_what_may_not_be_read_is_left_alone(data, checkpoints, tmp_path, monkeypatch):
    """It may be there again tomorrow."""

    def denied(*_, **__):
        raise ValueError('UNKNOWN: Permission denied; reading')

    monkeypatch.setattr('orbax.checkpoint.CheckpointManager.restore', denied)
    refused_here(
        lambda: train(config_of(data, alone=(None, CHANGES)), tmp_path),
        says=('cannot be read: permission denied; mend that',),
        keeps=[tmp_path],
    )


# An evaluation needs the state, and the checksum of it in the record.
NEEDED = [name for name, damage in DAMAGE.items() if damage.__name__ != 'change']


@pytest.mark.parametrize('name', NEEDED)
def test_an_evaluation_of_a_damaged_one(finished, tmp_path, name):
    """There is none before it that would do."""
    shutil.copytree(finished, tmp_path / 'w')
    run = tmp_path / 'w/alone'
    step = json.loads((run / 'seed0/result.json').read_text())['checkpoint']
    DAMAGE[name](run / 'seed0/checkpoints' / str(step))
    says = (run / 'seed0', f'checkpoint of step {step}', 'delete ', 'run its study again')
    refused('kd_jax.evaluate', run, says=says, keeps=[tmp_path])
