"""The fault drill finds what differs, and does what a sentence tells."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from drill import command, faults, outcome, processes, resuming
from helpers import random_splits, save_npz
from studies import search_of

from kd_jax.checkpoint import Checkpoints
from kd_jax.errors import UserError
from kd_jax.workdir import RunDirectory, write_json

STATE = {
    'params': {'student': {'head': np.arange(6.0, dtype=np.float32)}},
    'model_state': {'student': {}},
    'opt_state': {'momentum': np.ones(3, np.float32)},
}
RESULT = {'run': 'a', 'seed': 0, 'model': 'cnn', 'checkpoint': 1, 'steps': 2, 'seconds': 1.5}
RESULT['test'] = {'top1': 0.5}


def workdir_of(folder, result=None, last=None, lines=3):
    """A run that is finished, whose second state is `last`."""
    run = RunDirectory(folder / 'a/seed0')
    run.path.mkdir(parents=True)
    data = {'num_classes': 3, 'image_shape': [8, 8, 1], 'mean': [0.5], 'std': [0.5]}
    info = {'run': 'a', 'seed': 0, 'data': data, 'config': {'model': {'name': 'cnn'}}}
    write_json(run.path / 'config.json', info)
    with Checkpoints(run.checkpoints) as checkpoints:
        for step, state in ((1, STATE), (2, last or STATE)):
            checkpoints.save(step, state, {})
    text = ''.join(json.dumps({'step': k, 'split': 'val'}) + '\n' for k in range(lines))
    run.metrics.write_text(text)
    run.finish(RESULT | (result or {}))
    return folder


def test_the_same_is_the_same_whatever_time_it_took(tmp_path):
    one = outcome.outcome(workdir_of(tmp_path / 'one'))
    other = outcome.outcome(workdir_of(tmp_path / 'other', result={'seconds': 2.5}))
    assert len(one) == 5 and outcome.differences(one, other) == []


NEXT = np.nextafter(np.float32(1), np.float32(2))
UNLIKE = {
    'a line lost': ({'lines': 2}, 'metrics.jsonl: 3 undisturbed, 2 disturbed'),
    'a line doubled': ({'lines': 4}, 'metrics.jsonl: 3 undisturbed, 4 disturbed'),
    'a number': ({'result': {'test': {'top1': 0.25}}}, 'result.json: test: top1: 0.5 undisturbed'),
    'other weights tested': ({'result': {'checkpoint': 2}}, 'result.json: checkpoint: 1 undist'),
    'one bit of the momentum': (
        {'last': STATE | {'opt_state': {'momentum': np.array([1, NEXT, 1], np.float32)}}},
        'last state: ',
    ),
}


@pytest.mark.parametrize('name', UNLIKE)
def test_the_smallest_difference_is_found(tmp_path, name):
    changes, words = UNLIKE[name]
    one = outcome.outcome(workdir_of(tmp_path / 'one'))
    (line,) = outcome.differences(one, outcome.outcome(workdir_of(tmp_path / 'other', **changes)))
    assert line.startswith(f'a/seed0/{words}')


def test_a_run_that_is_not_there_is_a_difference(tmp_path):
    one = outcome.outcome(workdir_of(tmp_path / 'one'))
    assert len(outcome.differences(one, {})) == len(outcome.differences({}, one)) == len(one)


def test_a_damaged_state_that_no_command_reads_is_told_with_its_fix(tmp_path):
    folder = workdir_of(tmp_path / 'one')
    for path in (folder / 'a/seed0/checkpoints/2/state').rglob('d/*'):
        path.write_bytes(b'')
    with pytest.raises(UserError) as caught:
        outcome.outcome(folder)
    assert resuming.follow(str(caught.value), folder) == folder / 'a/seed0'
    assert not (folder / 'a/seed0').exists()


def test_trials_are_compared_in_their_order_with_what_they_validated(tmp_path):
    data = save_npz(tmp_path / 'three.npz', random_splits())
    found = []
    for folder, value in (('one', 0.5), ('other', 0.5), ('third', 0.25)):
        search = search_of(data, tmp_path / folder)
        for trial in search._ask(2):
            trial.report(value, 1)
            search.study.tell(trial, value)
        found.append(outcome.outcome(tmp_path / folder))
    one, other, third = found
    assert len(one['trials']) == 2 and outcome.differences(one, other) == []
    assert outcome.differences(one, third)[0].startswith('trials: 0: values: 0: 0.5 undisturbed')


RUN, METRICS = 'a/seed0', 'a/seed0/metrics.jsonl'
SENTENCES = {
    'delete': ('a is bad; delete {0}/a/seed0 and run its study again', RUN),
    'that': ('{0}/a/seed0 holds another run (x: 1); undo that or delete that directory', RUN),
    'away': ('line 2 of {0}/a/seed0/metrics.jsonl is bad; move it away and go on', METRICS),
    'nothing': ('{0}/a/seed0 is bad', None),
    'outside': ('delete /nowhere/else and run its study again', None),
}


@pytest.mark.parametrize('name', SENTENCES)
def test_what_a_sentence_tells_is_done(tmp_path, name):
    sentence, expected = SENTENCES[name]
    workdir = workdir_of(tmp_path / 'w')
    done = resuming.follow(sentence.format(workdir), workdir)
    assert done == (expected and workdir / expected)
    assert done is None or not done.exists()


def test_what_was_there_before_is_restored_by_the_command_that_made_it(tmp_path, monkeypatch):
    ran, found = [], iter([{'targets': 1}, {'targets': 1, 'study.json': 2}])
    subject = SimpleNamespace(command=lambda _: 'it', preparation=lambda _: 'study', before='study')
    monkeypatch.setattr(resuming, '_run', lambda commands: (ran.append(commands), ('', []))[1])
    monkeypatch.setattr(resuming, 'outcome', lambda *_: next(found))
    resumed = resuming.resume(subject, tmp_path, begun=['study.json'])
    assert ran == [['it'], ['study', 'it']] and resumed.outcome['study.json'] == 2
    assert len(resumed.mended) == 1 and resumed.mended[0].startswith('study.json is gone')


@pytest.mark.parametrize('kind', faults.DAMAGES)
def test_damage_changes_the_file(tmp_path, kind):
    path = tmp_path / 'log.jsonl'
    for seed in range(20):
        path.write_bytes(b'{"step": 1}\n{"step": 2}\n')
        faults.damage(path, kind, np.random.default_rng(seed))
        assert not path.exists() or path.read_bytes() != b'{"step": 1}\n{"step": 2}\n'
    if kind == 'half a last line':
        assert path.read_bytes() == b'{"step": 1}\n{"step'


def test_faults_follow_from_their_seed_and_all_kinds_hit_all_subjects():
    drawn = [faults.draw(k, command.SUBJECTS, 0) for k in range(13 * len(command.SUBJECTS))]
    assert drawn == [faults.draw(k, command.SUBJECTS, 0) for k in range(13 * len(command.SUBJECTS))]
    assert drawn != [faults.draw(k, command.SUBJECTS, 1) for k in range(13 * len(command.SUBJECTS))]
    assert len({(fault.kind, fault.subject) for fault in drawn}) == 13 * len(command.SUBJECTS)


def test_what_nohup_starts_gets_its_signals_all_the_same():
    shown = [sys.executable, '-c', 'import signal; print(int(signal.getsignal(signal.SIGHUP)))']
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ignored = subprocess.run(shown, capture_output=True, text=True, check=True)
        processes.unshield()
        reached = subprocess.run(shown, capture_output=True, text=True, check=True)
        os.kill(os.getpid(), signal.SIGHUP)  # nohup keeps this process
    finally:
        signal.signal(signal.SIGHUP, before)
    assert int(ignored.stdout) == signal.SIG_IGN and int(reached.stdout) == signal.SIG_DFL


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='needs /proc')
def test_a_signal_waits_for_the_handler_of_a_command():
    program = 'import signal, time; signal.signal(signal.SIGTERM, print); print(1); time.sleep(60)'
    with subprocess.Popen([sys.executable, '-uc', program], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        found = [processes.handles(process, n) for n in (signal.SIGTERM, signal.SIGHUP)]
        process.kill()
    assert found == [True, False]


def test_a_difference_stands_in_the_table_and_ends_with_status_1(tmp_path, monkeypatch, capsys):
    """The whole command, whose faults and commands are made up."""
    monkeypatch.setattr(command, 'subjects', lambda _: {'run': None, 'search': None})
    monkeypatch.setattr(command, 'prepared', lambda *_: None)
    usual = SimpleNamespace(
        named=[], outcome={'weights': 1}, seconds={True: 1.0, False: 1.0}, begun=tmp_path
    )
    monkeypatch.setattr(command, 'measure', lambda *_: usual)
    monkeypatch.setattr(faults, 'inject', lambda *_: faults.Injected([], True, 'done'))
    came = iter([{'weights': 1}] * 3 + [{'weights': 2}])
    monkeypatch.setattr(command, 'resume', lambda *_: resuming.Resumed(next(came), [], []))
    (tmp_path / 'w').mkdir()
    arguments = ['--only=run', '--together=1', f'--workdir={tmp_path / "w"}']
    monkeypatch.setattr(usual, 'begun', tmp_path / 'begun')
    usual.begun.mkdir()
    assert command.main(['--faults=3', *arguments]) == 0
    assert '0 differences' in capsys.readouterr().out
    assert command.main(['--faults=1', *arguments]) == 1
    told = capsys.readouterr().out
    assert '| all | 1 | 0 | 0 | 0 | 0 | 1 | 0 | 0 | 1 |' in told
    assert 'weights: 1 undisturbed, 2 disturbed' in told
