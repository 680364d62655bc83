"""What the user sees: lines or a bar, metrics.jsonl, TensorBoard, Weights & Biases."""

import json
import re
import sys
import types

import pytest

from kd_jax.errors import UserError
from kd_jax.monitor import Monitor, clock

SIZES = {'total_steps': 40, 'steps_per_epoch': 10.0, 'batch_size': 32}


def follow(monitor):
    """One evaluation in the life of a run."""
    with monitor:
        assert monitor.advance(1, 2.5) == 0.0  # the first step compiles: no pace from it
        assert monitor.advance(10, 1.25) > 0.0
        monitor.write(10, 'train', {'loss': 1.5})
        monitor.write(10, 'val', {'top1': 0.5})
        monitor.evaluated(10, {'top1': 0.5})


def test_without_a_terminal_a_line_at_every_evaluation(tmp_path, capsys):
    follow(Monitor('student seed 0', tmp_path, **SIZES, tensorboard=False))
    line = capsys.readouterr().out
    pattern = (
        r'student seed 0 · epoch 1\.0/4\.0 · loss 1\.25 · val top-1 50\.00 % · '
        r'\d+ images/s · \d+:\d\d left\n'
    )
    assert re.fullmatch(pattern, line)


def test_metrics_are_one_json_object_a_line(tmp_path):
    follow(Monitor('r', tmp_path, **SIZES, tensorboard=False))
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert lines == [
        {'step': 10, 'epoch': 1.0, 'split': 'train', 'loss': 1.5},
        {'step': 10, 'epoch': 1.0, 'split': 'val', 'top1': 0.5},
    ]


def test_tensorboard_gets_the_same_scalars(tmp_path):
    follow(Monitor('r', tmp_path, **SIZES))
    (events,) = (tmp_path / 'tensorboard').glob('events.out.tfevents.*')
    content = events.read_bytes()
    assert b'train/loss' in content and b'val/top1' in content


def test_weights_and_biases_gets_the_same_scalars_when_asked_for(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda scalars, step: calls.append((step, scalars)),
        finish=lambda: calls.append('finish'),
    )
    fake = types.ModuleType('wandb')
    fake.init = lambda **arguments: calls.append(arguments) or run
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    follow(
        Monitor(
            'student seed 0',
            tmp_path,
            **SIZES,
            tensorboard=False,
            wandb='project',
            config={'epochs': 4.0},
        )
    )
    assert (
        calls[0]['project'] == 'project'
        and calls[0]['name'] == 'student seed 0'
        and calls[0]['config'] == {'epochs': 4.0}
    )
    assert calls[1:] == [(10, {'train/loss': 1.5}), (10, {'val/top1': 0.5}), 'finish']


def test_weights_and_biases_missing_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)  # makes the import fail
    with pytest.raises(
        UserError,
        match='--config.wandb=p needs the package wandb; pip install wandb',
    ):
        Monitor('r', tmp_path, **SIZES, tensorboard=False, wandb='p')


def test_other_processes_write_nothing(tmp_path, capsys):
    follow(Monitor('r', tmp_path, **SIZES, active=False))
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ''


def test_time_is_written_for_people():
    assert [clock(s) for s in (5, 75, 3700)] == ['0:05', '1:15', '1:01:40']
