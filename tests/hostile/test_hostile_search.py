"""Journals of a search that a crash left, or that are none."""

import os

import pytest
import refusals
from helpers import SMALL, random_splits, save_npz
from refusals import refused_here
from studies import SPACE, search_of

FOREIGN = {
    'text': b'hello\n',
    'half a line of text': b'hello',
    'binary': bytes(range(256)) * 100,
    'zeros': bytes(4096),
    'a list': b'[1, 2]\n',
    'an object of another kind': b'{"a": 1}\n',
    'an operation in words': b'{"op_code": "create"}\n',
    'deep': b'[' * 100_000 + b'\n',
    'not a number': b'NaN\n',
    'one line of 20 MB': b' ' * 20 * 2**20 + b'\n',
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return save_npz(tmp_path_factory.mktemp('data') / 'three.npz', random_splits())


@pytest.fixture
def journal(data, tmp_path):
    """Of a search that has two trials."""
    search = search_of(data, tmp_path, together=2)
    for trial in search._ask(2):
        search.study.tell(trial, 0.5)
    return tmp_path / 'search.journal'


def refused(data, folder):
    says = f'{folder / "search.journal"} is not the journal of a search'
    refused_here(lambda: search_of(data, folder), says=[says], keeps=[folder])


@pytest.mark.parametrize('name', FOREIGN)
def test_another_file(data, tmp_path, name):
    (tmp_path / 'search.journal').write_bytes(FOREIGN[name])
    refused(data, tmp_path)


@pytest.mark.parametrize('kind', ['folder', 'fifo', 'device', 'loop'])
def test_no_file(data, tmp_path, kind):
    path = tmp_path / 'search.journal'
    {
        'folder': path.mkdir,
        'fifo': lambda: os.mkfifo(path),
        'device': lambda: path.symlink_to('/dev/zero'),
        'loop': lambda: path.symlink_to(path.name),
    }[kind]()
    refused(data, tmp_path)


@pytest.mark.parametrize('name', ['text', 'deep', 'one line of 20 MB', 'fifo'])
def test_a_command(tmp_path, name):
    path = tmp_path / 'search.journal'
    if name in FOREIGN:
        path.write_bytes(FOREIGN[name])
    else:
        os.mkfifo(path)
    flags = (*SMALL, f'--space={SPACE}', '--trials=1', f'--workdir={tmp_path}')
    says = f'{path} is not the journal of a search'
    told = refusals.refused('kd_jax.search', *flags, says=[says], keeps=[tmp_path])
    assert 'choose another --workdir, or move it away' in told


@pytest.mark.parametrize('left', [1, 0.5, 0])
def test_a_last_line_that_was_cut_short_is_dropped(data, journal, left):
    """Also one that lacks no more than its end of line."""
    whole = journal.read_bytes()
    *lines, last, _ = whole.split(b'\n')
    journal.write_bytes(b'\n'.join([*lines, last[: round(left * len(last))]]))
    search = search_of(data, journal.parent, together=2)
    trials = search.study.get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == [0, 1]
    assert journal.read_bytes().startswith(b'\n'.join(lines) + b'\n')
    (trial,) = search._ask(3)[:1]
    search.study.tell(trial, 0.25)
    assert search_of(data, journal.parent).study.get_trials(deepcopy=False)[1].state.is_finished()


@pytest.mark.parametrize('number', [0, 2, 5])
def test_a_line_in_the_middle_that_is_damaged(data, journal, number):
    lines = journal.read_bytes().split(b'\n')
    lines[number] = lines[number][:-3]
    journal.write_bytes(b'\n'.join(lines))
    refused(data, journal.parent)
