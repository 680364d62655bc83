"""Stopping, killing and resuming: the run that was cut off ends as the run that was not."""

import json
import signal
import time

import commands
import numpy as np
import pytest
from helpers import SMALL, environment, run_main

from kd_jax.checkpoint import load_variables
from kd_jax.workdir import RunDirectory

# Everything that must survive: averages, momentum, random augmentation, dropout,
# early-stopping counts, a ramp.
FLAGS = (
    *SMALL,
    '--config.augment.rotate=10.',
    '--config.augment.mixup=0.5',
    '--config.runs.student.model.dropout=0.2',
    '--config.runs.student.optim.ema_decay=0.9',
    '--config.runs.student.objective.kl.ramp_epochs=1.5',
    '--config.runs.student.eval_every=0.3',
    '--config.runs.student.epochs=6.',
    '--config.runs.student.patience=15',
    '--config.runs.alone.epochs=0.1',
)


def arrays(workdir, run):
    directory = workdir / run / 'seed0'
    result = RunDirectory(directory).result()
    variables = load_variables(directory, result['checkpoint'])
    import flax

    return flax.traverse_util.flatten_dict(variables, sep='/'), result


def assert_same(one, other, run):
    (a, a_result), (b, b_result) = arrays(one, run), arrays(other, run)
    assert a.keys() == b.keys() and a
    for name in a:
        assert np.array_equal(a[name], b[name]), name
    for key in ('steps', 'checkpoint', 'test', 'val', 'teacher'):
        assert a_result[key] == b_result[key]


def start(workdir):
    return commands.Command('kd_jax.main', *FLAGS, f'--workdir={workdir}', env=environment())


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('undisturbed')
    done = run_main(*FLAGS, f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    return workdir


def wait_for(path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, process.output()
        time.sleep(0.002)


def test_killed_at_random_moments_and_resumed_it_ends_bit_for_bit_the_same(tmp_path, undisturbed):
    """SIGKILL at random moments of the student's training, one of them while a
    checkpoint is being written.
    """
    rng = np.random.default_rng(0)
    workdir = tmp_path / 'killed'
    kills = []
    for attempt in range(4):
        process = start(workdir)
        wait_for(workdir / 'student' / 'seed0' / 'checkpoints', process)
        known = set((workdir / 'student' / 'seed0' / 'checkpoints').iterdir())
        if attempt == 1:  # in the middle of a save: its temporary directory is there
            end = time.monotonic() + 60
            while not any(
                'tmp' in p.name for p in (workdir / 'student' / 'seed0' / 'checkpoints').iterdir()
            ):
                assert time.monotonic() < end and process.poll() is None
        else:
            while (
                set((workdir / 'student' / 'seed0' / 'checkpoints').iterdir()) <= known
                and process.poll() is None
            ):
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills.append(process.returncode)
    assert kills.count(-signal.SIGKILL) >= 2  # that it really was cut off
    done = run_main(*FLAGS, f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    assert 'teacher seed 0 · finished earlier' in done.stdout
    for run in ('teacher', 'alone', 'student'):
        assert_same(workdir, undisturbed, run)
    lines = [
        json.loads(line)
        for line in (workdir / 'student/seed0/metrics.jsonl').read_text().splitlines()
    ]
    reference = [
        json.loads(line)
        for line in (undisturbed / 'student/seed0/metrics.jsonl').read_text().splitlines()
    ]
    assert lines == reference


def test_sigterm_saves_and_exits_143_and_the_same_command_continues(tmp_path, undisturbed):
    workdir = tmp_path / 'stopped'
    process = start(workdir)
    wait_for(workdir / 'student' / 'seed0' / 'metrics.jsonl', process)
    while (
        not (workdir / 'student' / 'seed0' / 'metrics.jsonl').read_text() and process.poll() is None
    ):
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert output.strip().endswith('stopped by SIGTERM; the same command continues')
    assert not (workdir / 'student' / 'seed0' / 'result.json').exists()
    done = run_main(*FLAGS, f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    assert 'student seed 0 · resumed at step' in done.stdout
    assert_same(workdir, undisturbed, 'student')


def test_a_finished_study_is_shown_again_without_training(undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob('result.json')}
    done = run_main(*FLAGS, f'--workdir={undisturbed}')
    assert done.returncode == 0
    assert done.stdout.count('finished earlier') == 3
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob('result.json')} == before
    top1 = 100 * RunDirectory(undisturbed / 'student' / 'seed0').result()['test']['top1']
    assert f'{top1:.2f}' in done.stdout.split('top-1 %')[1].splitlines()[0]
