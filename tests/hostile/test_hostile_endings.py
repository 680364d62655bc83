"""How commands end that are told to, or whose other processes are lost."""

import signal
import socket
import subprocess
import sys
import time

import commands
import pytest
from helpers import REPOSITORY, TINY, assert_refused, environment, run_main

STOPS = ('SIGTERM', 'SIGINT', 'SIGHUP')
# Python with the arguments that follow, which hears SIGHUP also where the tests do not (nohup)
HEARD = (
    'import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); '
    'os.execv(sys.executable, [sys.executable, *sys.argv[1:]])'
)
COMMANDS = ('main', 'search', 'soft_targets', 'evaluate', 'report', 'zoo', 'data.tfds')


@pytest.mark.parametrize('command', COMMANDS)
def test_a_signal_during_imports_ends_with_its_number_and_one_line(command):
    name = STOPS[COMMANDS.index(command) % len(STOPS)]
    # `-v` of Python tells what is imported, when
    process = subprocess.Popen(
        [sys.executable, '-c', HEARD, '-v', '-m', f'kd_jax.{command}'],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    before = ''
    while "import 'kd_jax'" not in before:
        before = process.stderr.readline()
        assert before
    process.send_signal(signal.Signals[name])
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.Signals[name]
    assert out == '' and 'Traceback' not in errors and 'KeyboardInterrupt' not in errors
    assert errors.endswith(f'stopped by {name}\n')


def test_what_nohup_lets_go_on_goes_on():
    command = (
        'import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); '
        'from kd_jax import signals; signals.end_at_once(); '
        'os.kill(os.getpid(), signal.SIGHUP); received = signals.note(); '
        'os.kill(os.getpid(), signal.SIGHUP); os.kill(os.getpid(), signal.SIGTERM); print(received)'
    )
    done = subprocess.run(
        [sys.executable, '-c', command], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == f'[{int(signal.SIGTERM)}]\n'


@pytest.mark.parametrize('lost', [0, 1])
def test_the_others_end_with_one_sentence_soon_after_a_process_is_lost(tmp_path, lost):
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    flags = [*TINY, '--config.runs.alone.epochs=2000.', '--config.runs.alone.eval_every=1.']
    flags += [f'--workdir={tmp_path}', f'--coordinator=localhost:{port}', '--processes=2']
    both = [
        commands.Command(
            'kd_jax.main',
            *flags,
            f'--process={number}',
            '--process_timeout=5',
            env=environment(JAX_NUM_CPU_DEVICES='1'),
        )
        for number in range(2)
    ]
    metrics, end = tmp_path / 'alone/seed0/metrics.jsonl', time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert time.monotonic() < end, [process.output() for process in both]
        assert all(process.poll() is None for process in both), [p.output() for p in both]
        time.sleep(0.05)
    both[lost].send_signal(signal.SIGKILL)
    both[lost].wait()
    end, survivor = time.monotonic() + 30, both[1 - lost]
    while survivor.poll() is None:
        assert time.monotonic() < end, survivor.output()
        time.sleep(0.05)
    _, errors = survivor.output()
    assert survivor.poll() == 2
    told = [line for line in errors.splitlines() if not line.startswith('[Gloo]')]
    assert len(told) == 1 and told[0].startswith('error: another process has ended, or gave no')


LIMITED = (
    'import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600)); '
    "module = sys.argv.pop(1); runpy.run_module(module, run_name='__main__', alter_sys=True)"
)


def test_commands_that_may_write_little_say_so(tmp_path):
    done = run_main(*TINY, f'--workdir={tmp_path}')
    assert done.returncode == 0, done.stderr
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    for module, *flags in (
        ('kd_jax.report', tmp_path, '--plot'),
        (
            'kd_jax.soft_targets',
            f'--teacher={tmp_path}/alone',
            '--data=configs/digits.py',
            '--views=exact',
        ),
    ):
        done = subprocess.run(
            [sys.executable, '-c', LIMITED, module, *map(str, flags)],
            cwd=REPOSITORY,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert_refused(done, 'cannot be written: it would be larger than files may be')
    assert all(path.read_bytes() == content for path, content in before.items())
