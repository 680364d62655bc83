"""Two processes in one workdir, and locks that a killed one left."""

import itertools
import json
import signal
import socket
import subprocess
import sys
import time

import commands
import pytest
from helpers import REPOSITORY, TINY, assert_refused, environment, random_splits, save_npz
from studies import search_of

from kd_jax.errors import UserError
from kd_jax.locking import HOLDER, LOCK, locked
from kd_jax.train import Stopped

LONG = (*TINY, '--config.runs.alone.epochs=300.', '--config.runs.alone.eval_every=5.')


def begun(workdir):
    """A command that trains `alone`, and holds it."""
    command = commands.Command('kd_jax.main', *LONG, f'--workdir={workdir}', env=environment())
    end, metrics = time.monotonic() + 60, workdir / 'alone/seed0/metrics.jsonl'
    before = metrics.read_text() if metrics.exists() else ''
    while not (metrics.exists() and len(metrics.read_text()) > len(before)):
        assert command.poll() is None and time.monotonic() < end, command.output()
        time.sleep(0.01)
    return command


def test_the_second_gets_one_sentence_and_the_first_loses_nothing(tmp_path):
    first = begun(tmp_path)
    second = commands.run('kd_jax.main', *LONG, f'--workdir={tmp_path}', env=environment())
    folder = tmp_path / 'alone/seed0'
    assert_refused(second, f'{folder} is in use by process {first.pid} on {socket.gethostname()}')
    assert '(training alone seed 0); wait for it, or choose another --workdir' in second.stderr
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 143
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    steps = [line['step'] for line in lines if line['split'] == 'val']
    gaps = [after - before for before, after in itertools.pairwise([0, *steps])]
    assert set(gaps) <= {79, 80}  # five epochs: none is missing


def test_a_lock_does_not_outlive_its_process(tmp_path):
    first = begun(tmp_path)
    first.send_signal(signal.SIGKILL)
    assert first.wait(60) == -signal.SIGKILL
    assert (tmp_path / 'alone/seed0' / HOLDER).exists()
    again = begun(tmp_path)
    about = json.loads((tmp_path / 'alone/seed0' / HOLDER).read_text())
    assert (about['process'], about['host']) == (again.pid, socket.gethostname())
    again.send_signal(signal.SIGTERM)
    assert again.wait(60) == 143 and not (tmp_path / 'alone/seed0' / HOLDER).exists()


HOLDERS = {
    'nothing': b'',
    'half': b'{"host": "a"',
    'text': b'\xff\xfe',
    'a list': b'[]',
    'without a process': b'{"host": "a"}',
    'deep': b'[' * 100_000,
}


@pytest.mark.parametrize('name', HOLDERS)
def test_whatever_stands_in_the_record_of_a_lock(tmp_path, name):
    with locked(tmp_path, 'testing'):
        (tmp_path / HOLDER).write_bytes(HOLDERS[name])
        told = in_another_process(tmp_path)
        assert told.count('\n') == 1 and 'is in use by another process; wait for it' in told
    assert in_another_process(tmp_path) == 'inside\n'


INTRUDER = """
import sys
from kd_jax.errors import UserError
from kd_jax.locking import locked
try:
    with locked(sys.argv[1], 'intruding'):
        print('inside')
except UserError as error:
    print(error)
"""


def in_another_process(folder):
    """What it says that tries to be there, too."""
    command = [sys.executable, '-c', INTRUDER, str(folder)]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=REPOSITORY
    ).stdout


@pytest.mark.parametrize('kind', ['folder', 'loop'])
def test_a_lock_that_is_no_file(tmp_path, kind):
    {'folder': (tmp_path / LOCK).mkdir, 'loop': lambda: (tmp_path / LOCK).symlink_to(LOCK)}[kind]()
    with pytest.raises(UserError, match='cannot lock .*; choose another --workdir') as caught:
        locked(tmp_path, 'testing').__enter__()
    assert '\n' not in str(caught.value)


def test_workers_of_a_search_wait_for_the_teacher(tmp_path, capsys):
    data = save_npz(tmp_path / 'three.npz', random_splits())
    search, asked = search_of(data, tmp_path / 'w', together=2), iter([False, True])
    with locked(tmp_path / 'w', 'training what a search needs'), pytest.raises(Stopped):
        search.go(2, lambda: next(asked))
    assert capsys.readouterr().out.count('is in use by process') == 1
    assert not (tmp_path / 'w/teacher').exists()
