"""Run directories: same config or a sentence, whole files, and what a path means."""

import json
import os
from pathlib import Path
from typing import ClassVar

import pytest
from etils import epath
from etils.epath import backend, gpath
from fsspec.implementations.memory import MemoryFileSystem

from kd_jax import records, report, workdir
from kd_jax.errors import UserError
from kd_jax.monitor import Monitor
from kd_jax.workdir import (
    RunDirectory,
    differences,
    find_run,
    make_directory,
    write_json,
)

DATA = {'num_classes': 3, 'image_shape': [8, 8, 1], 'mean': [0.5], 'std': [0.25]}
INFO = {'run': 'r', 'seed': 0, 'data': DATA}


def read_json(path):
    return records.read(epath.Path(path), dict | list, 'write it again')


def make_run(path, config=None):
    RunDirectory(path).start({**INFO, 'config': {'model': {'name': 'cnn'}, **(config or {})}})
    return path


def test_differences_name_the_fields():
    there = {'epochs': 5.0, 'optim': {'lr': 0.1, 'name': 'sgd'}, 'old': 1}
    here = {'epochs': 5.0, 'optim': {'lr': 0.2, 'name': 'sgd'}, 'new': [1]}
    assert differences(here, there) == [
        'optim.lr: 0.1 there, 0.2 here',
        'old: 1 there, nothing here',
        'new: nothing there, [1] here',
    ]
    assert differences(here, here) == []


def test_another_config_is_refused_and_the_directory_untouched(tmp_path):
    run = RunDirectory(make_run(tmp_path / 'r', {'tau': [1, 2]}))
    before = (run.path / 'config.json').read_bytes()
    run.check_same({'model': {'name': 'cnn'}, 'tau': (1, 2)})
    with pytest.raises(
        UserError,
        match=r'another config \(tau: \[1, 2\] there, \[4\] here\); choose another --workdir',
    ):
        run.check_same({'model': {'name': 'cnn'}, 'tau': (4,)})
    assert (run.path / 'config.json').read_bytes() == before


def test_a_finished_run_without_its_config_is_one_sentence(tmp_path):
    run = RunDirectory(tmp_path / 'seed0')
    run.path.mkdir()
    run.check_same({'tau': 1})
    run.finish({'run': 'a'})
    with pytest.raises(UserError, match='seed0 holds a finished run without .* delete that direct'):
        run.check_same({'tau': 1})


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / 'x.json'
    write_json(path, {'a': 1})
    with pytest.raises(TypeError):
        write_json(path, {'a': object()})
    assert read_json(path) == {'a': 1}


def test_a_file_takes_its_name_when_it_is_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / 'x.json'
    write_json(path, [1])
    synced = []

    def full(number):
        synced.append(os.fstat(number).st_ino)
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        write_json(path, [2])
    assert synced == [(tmp_path / 'x.tmp').stat().st_ino] and read_json(path) == [1]


@pytest.mark.parametrize('kind', [str, Path, epath.Path])
def test_paths_of_every_kind_are_taken(kind, tmp_path):
    directory = kind(tmp_path / 'study' / 'a' / 'seed0')
    RunDirectory(directory).start(INFO | {'config': {}})
    write_json(kind(tmp_path / 'x.json'), [1])
    make_directory(kind(tmp_path / 'new' / 'one'))
    assert read_json(kind(tmp_path / 'x.json')) == [1] and (tmp_path / 'new' / 'one').is_dir()
    assert find_run(kind(tmp_path / 'study' / 'a'), 3).path == tmp_path / 'study' / 'a' / 'seed0'
    assert report.read_metrics(directory) == []


def test_brackets_in_a_path_mean_themselves(tmp_path):
    run = make_run(tmp_path / 'tau[1-4]*' / 'a' / 'seed0')
    make_run(tmp_path / 'tau1' / 'b' / 'seed0')
    assert find_run(tmp_path / 'tau[1-4]*' / 'a', 0).path == run
    assert workdir.matches(tmp_path / 'tau[1-4]*', '*/seed*') == [run]
    with pytest.raises(UserError, match=r'is a study, not a run.*it has a\)'):
        find_run(tmp_path / 'tau[1-4]*', 0)


class Bucket(MemoryFileSystem):
    """Objects in memory, named as Google's are."""

    store: ClassVar = {}
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix('gs://'))

    def glob(self, path, **options):
        return [name.removeprefix('/') for name in super().glob(path, **options)]


def test_a_run_may_be_in_a_bucket(monkeypatch):
    memory = Bucket()
    monkeypatch.setattr(gpath, '_is_tf_installed', lambda: False)
    monkeypatch.setattr(type(backend.fsspec_backend), '_get_filesystem', lambda self, name: memory)
    make_directory('gs://bucket/study')
    run = RunDirectory('gs://bucket/study/a/seed0')
    run.start({'config': {'tau': 4}})
    for step in (1, 2):  # the second goes on with the file
        with Monitor(
            'a', run.path, total_steps=2, steps_per_epoch=1.0, batch_size=1, tensorboard=False
        ) as monitor:
            monitor.write(step, 'train', {'loss': 0.5})
    assert [line['step'] for line in report.read_metrics(run.path)] == [1, 2]
    run.forget_after(1)
    assert [line['step'] for line in report.read_metrics(run.path)] == [1]
    result = {'run': 'a', 'seed': 0, 'model': 'cnn', 'checkpoint': 2, 'test': None}
    run.finish(result)
    assert (
        find_run('gs://bucket/study/a', 5).path == run.path
        and run.finished()
        and run.result() == result
    )
    assert str(run.path) == 'gs://bucket/study/a/seed0'
    files = ('config.json', 'metrics.jsonl', 'result.json')
    assert sorted(memory.store) == [f'/bucket/study/a/seed0/{name}' for name in files]


def test_damaged_json_is_one_sentence(tmp_path):
    (tmp_path / 'x.json').write_text('{"a": ')
    with pytest.raises(UserError, match='is not what it should be .*; write it again'):
        read_json(tmp_path / 'x.json')


def test_metrics_after_a_step_are_forgotten(tmp_path):
    run = RunDirectory(make_run(tmp_path / 'r'))
    lines = [json.dumps({'step': step, 'split': 'val'}) for step in (10, 20, 30)]
    run.metrics.write_text('\n'.join(lines) + '\n{"step": 4')  # cut short by a kill
    run.forget_after(20)
    assert run.metrics.read_text() == ''.join(line + '\n' for line in lines[:2])


def test_a_path_means_a_seed_or_the_same_seed_of_a_run(tmp_path):
    for seed in (0, 2, 11):
        make_run(tmp_path / 'study' / 'teacher' / f'seed{seed}')
    run = tmp_path / 'study' / 'teacher'
    assert find_run(run / 'seed11', 2).path == run / 'seed11'
    assert find_run(run, 2).path == run / 'seed2'
    assert find_run(run, 5).path == run / 'seed0'
    with pytest.raises(
        UserError,
        match=(
            r'is a study, not a run; name one of its runs, such as '
            r'.*/study/teacher \(it has teacher\)'
        ),
    ):
        find_run(tmp_path / 'study', 0)
    with pytest.raises(UserError, match='neither a run of this study nor the workdir of a run'):
        find_run(tmp_path / 'nothing', 0)


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(
        UserError, match='cannot write to .*/file/x: Not a directory; choose another --workdir'
    ):
        make_directory(tmp_path / 'file' / 'x')
