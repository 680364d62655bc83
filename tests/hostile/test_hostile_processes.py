"""Two processes in one workdir, and locks that a killed one left."""

import itertools
import json
import signal
import socket
import time

import commands
import pytest
from helpers import TINY, environment, random_splits, save_npz
from refusals import refused
from studies import search_of

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
    folder = tmp_path / 'alone/seed0'
    says = (
        f'{folder} is in use by process {first.pid} on {socket.gethostname()}',
        '(training alone seed 0); wait for it, or choose another --workdir',
    )
    refused('kd_jax.main', *LONG, f'--workdir={tmp_path}', says=says)
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
    folder = tmp_path / 'alone/seed0'
    with locked(folder, 'testing'):
        (folder / HOLDER).write_bytes(HOLDERS[name])
        says = f'{folder} is in use by another process; wait for it'
        flags = (*TINY, f'--workdir={tmp_path}')
        refused('kd_jax.main', *flags, says=[says], keeps=[tmp_path])
    with locked(folder, 'testing again'):
        assert json.loads((folder / HOLDER).read_text())['doing'] == 'testing again'


@pytest.mark.parametrize('kind', ['folder', 'loop'])
def test_a_lock_that_is_no_file(tmp_path, kind):
    lock = tmp_path / 'alone/seed0' / LOCK
    lock.parent.mkdir(parents=True)
    {'folder': lock.mkdir, 'loop': lambda: lock.symlink_to(LOCK)}[kind]()
    says = (f'cannot lock {lock}: ', '; choose another --workdir')
    refused('kd_jax.main', *TINY, f'--workdir={tmp_path}', says=says, keeps=[tmp_path])


def test_workers_of_a_search_wait_for_the_teacher(tmp_path, capsys):
    data = save_npz(tmp_path / 'three.npz', random_splits())
    search, asked = search_of(data, tmp_path / 'w', together=2), iter([False, True])
    with locked(tmp_path / 'w', 'training what a search needs'), pytest.raises(Stopped):
        search.go(2, lambda: next(asked))
    assert capsys.readouterr().out.count('is in use by process') == 1
    assert not (tmp_path / 'w/teacher').exists()
