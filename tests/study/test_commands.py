"""The commands as a user calls them: a distillation with its number, kills, signals, and what
reads the result.
"""

import json
import signal
import time

import commands
import flax
import numpy as np
import pytest
from helpers import environment, run_main

from kd_jax.checkpoint import load_variables
from kd_jax.workdir import RunDirectory

DIGITS = (
    '--config=configs/digits.py',
    '--config.seeds=(0,)',
    '--config.tensorboard=False',
    '--config.runs.teacher.model.name=cnn',
    '--config.runs.teacher.model.width=0.5',
    '--config.runs.teacher.epochs=6.',
    '--config.runs.alone.epochs=12.',
    '--config.runs.student.epochs=12.',
    '--config.runs.student.optim.learning_rate=0.05',
)
# What must survive a kill: averages, momentum, random views, dropout, a ramp, counts of patience.
STUDENT = (
    '--only=student',
    '--config.runs.student.model.dropout=0.2',
    '--config.runs.student.optim.ema_decay=0.9',
    '--config.runs.student.objective.kl.ramp_epochs=1.5',
    '--config.runs.student.eval_every=0.5',
    '--config.runs.student.epochs=2.5',
    '--config.runs.student.patience=4',
    '--config.log_every=3',
)


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """(its workdir, what the command printed) of teacher, student alone and student."""
    workdir = tmp_path_factory.mktemp('digits')
    done = run_main(*DIGITS, f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_a_student_with_five_labels_a_class_gains_from_its_teacher(digits):
    workdir, shown = digits
    saved = json.loads((workdir / 'results.json').read_text())
    top1 = {result['run']: 100 * result['test']['top1'] for result in saved['results']}
    assert top1['teacher'] > 90
    assert top1['student'] - top1['alone'] > 6
    assert f'{top1["student"]:.2f}' in shown.split('top-1 %')[1].splitlines()[0]
    assert f'{top1["student"] - top1["alone"]:+.2f} points of test top-1' in shown


def test_again_nothing_is_trained_and_the_table_is_shown(digits):
    workdir, shown = digits
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob('result.json')}
    done = run_main(*DIGITS, f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('finished earlier') == 3
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob('result.json')} == before
    assert done.stdout.split('\nrun ')[1] == shown.split('\nrun ')[1]


def test_what_reads_a_result(digits):
    workdir, shown = digits
    table = commands.run('kd_jax.report', str(workdir), env=environment())
    assert table.returncode == 0 and table.stdout.split('\nrun ')[-1].strip() in shown
    run = f'{workdir}/student/seed0'
    evaluated = commands.run('kd_jax.evaluate', run, '--split=val', env=environment())
    assert evaluated.returncode == 0, evaluated.stderr
    expected = json.loads((workdir / 'student/seed0/result.json').read_text())['val']
    assert json.loads(evaluated.stdout)['top1'] == pytest.approx(expected['top1'])


def test_soft_targets_are_extracted_once(digits):
    workdir, _ = digits
    flags = (f'--teacher={workdir}/teacher', '--data=configs/digits.py', '--views=2')
    done = commands.run('kd_jax.soft_targets', *flags, env=environment(2))
    assert done.returncode == 0, done.stderr
    assert 'soft targets of 1020 images in 2 views' in done.stdout
    (manifest,) = workdir.glob('teacher/seed0/soft_targets/*/manifest.json')
    made = json.loads(manifest.read_text())
    assert (made['dtype'], made['splits']['train'][:2]) == ('float16', [1020, 2])
    wrong = commands.run('kd_jax.soft_targets', *flags[:2], '--views=none', env=environment())
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: --views is 'none'")


def test_a_search_ends_with_its_best_trial(digits, tmp_path):
    workdir, _ = digits
    flags = (
        *DIGITS,
        f'--config.runs.student.teachers=("{workdir}/teacher",)',
        '--config.runs.student.epochs=1.',
        f'--workdir={tmp_path}',
        '--trials=2',
        '--together=2',
        '--space=objective.kl.tau=1..16 log',
    )
    done = commands.run('kd_jax.search', *flags, env=environment())
    assert done.returncode == 0, done.stderr
    assert '2 trials complete, 0 pruned, 0 failed' in done.stdout
    found = json.loads((tmp_path / 'search.json').read_text())
    assert 1 <= found['best']['params']['objective.kl.tau'] <= 16
    assert list(tmp_path.glob('*_best.py'))


def student(workdir, teacher):
    flags = (f'--config.runs.student.teachers=("{teacher}/teacher",)', f'--workdir={workdir}')
    return commands.Command('kd_jax.main', *DIGITS, *STUDENT, *flags, env=environment())


def ended(command):
    out, error = command.communicate()
    assert command.returncode == 0, error
    return out


@pytest.fixture(scope='module')
def undisturbed(digits, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('undisturbed')
    ended(student(workdir, digits[0]))
    return workdir


def wait_for(found, command):
    """Until found() is true, while the command runs."""
    end = time.monotonic() + 120
    while not found():
        assert command.poll() is None and time.monotonic() < end, command.output()
        time.sleep(0.002)


def assert_same(one, other):
    """Parameters to the bit, result and metrics of two workdirs' students."""
    results = [RunDirectory(workdir / 'student/seed0').result() for workdir in (one, other)]
    for key in ('steps', 'checkpoint', 'test', 'val', 'teacher'):
        assert results[0][key] == results[1][key]
    a, b = (
        flax.traverse_util.flatten_dict(
            load_variables(workdir / 'student/seed0', results[0]['checkpoint']), sep='/'
        )
        for workdir in (one, other)
    )
    assert a and a.keys() == b.keys()
    for name in a:
        assert np.array_equal(a[name], b[name]), name
    lines = [(workdir / 'student/seed0/metrics.jsonl').read_text() for workdir in (one, other)]
    assert lines[0] == lines[1]


def test_stopped_and_killed_it_ends_bit_for_bit_the_same(digits, undisturbed, tmp_path):
    """SIGTERM, which saves and exits with 143; then SIGKILL in the middle of writing a
    checkpoint; the same command continues.
    """
    checkpoints, metrics = (
        tmp_path / 'student/seed0' / n for n in ('checkpoints', 'metrics.jsonl')
    )
    command = student(tmp_path, digits[0])
    wait_for(lambda: metrics.exists() and metrics.read_text(), command)
    command.send_signal(signal.SIGTERM)
    assert command.wait(60) == 143
    assert 'stopped by SIGTERM; the same command continues' in ''.join(command.output())
    command = student(tmp_path, digits[0])
    wait_for(lambda: any('tmp' in path.name for path in checkpoints.glob('*')), command)
    command.send_signal(signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    assert not (tmp_path / 'student/seed0/result.json').exists()
    assert 'student seed 0 · resumed at step' in ended(student(tmp_path, digits[0]))
    assert_same(tmp_path, undisturbed)
