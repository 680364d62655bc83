"""Extraction of soft targets: it resumes to the same bytes, and nothing wrong is used."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from helpers import random_splits
from steps import largest_difference, run_of, start, teachers_of, train

from kd_jax import extraction, target_store
from kd_jax.data.views import Views
from kd_jax.errors import UserError
from kd_jax.parallel import Parallel


@pytest.fixture(scope='module')
def teacher():
    """(a random teacher, the data)."""
    splits = random_splits()
    run = run_of({'teachers': ('teacher',)})
    return teachers_of(run, splits.info)['teacher'], splits


def obtain(
    model, splits, directory, kept=None, precision='float32', should_stop=lambda: False, devices=1
):
    kept = kept or extraction.Kind(Views(crop=1, flip=True))
    wanted = extraction.Extraction([model], splits, kept, Parallel('auto', devices), precision, 't')
    rows = extraction.obtain(wanted, [directory], should_stop)
    return rows and rows[0]


@pytest.fixture(scope='module')
def whole(teacher, tmp_path_factory):
    """A folder with the targets of the teacher."""
    folder = tmp_path_factory.mktemp('whole')
    obtain(*teacher, folder)
    return folder


def contents(directory):
    return {
        path.relative_to(directory).name: path.read_bytes()
        for path in directory.rglob('*')
        if path.is_file()
    }


def test_a_step_from_stored_targets_is_the_step_with_the_teacher(tiny_model, tmp_path):
    """To float32's rounding; half precision is near it, and not the same."""
    params = {}
    for kind, dtype in (('live', 'float32'), ('exact', 'float32'), ('exact', 'float16')):
        stored = {'soft_targets': kind, 'soft_targets_dtype': dtype, 'optim.learning_rate': 0.01}
        run = run_of({'teachers': ('teacher',), **stored}, augment={'crop': 1}, model='tiny')
        executor, _ = start(run, steps=1, workdir=tmp_path / dtype)
        train(executor, (1,) * 4)
        params[kind, dtype] = jax.device_get(executor.states()[0].params)
    live = params.pop(('live', 'float32'))
    assert largest_difference(live, params['exact', 'float32']) <= 5e-7
    assert 0 < largest_difference(live, params['exact', 'float16']) <= 1e-4


class Killed(BaseException):
    pass


def test_an_extraction_that_was_killed_ends_with_the_same_bytes(teacher, tmp_path, monkeypatch):
    """Killed at random between any two writes, also in the middle of one,
    and once stopped by a signal.
    """
    model, splits = teacher
    monkeypatch.setattr(target_store, 'CHUNK', 64)
    monkeypatch.setattr(extraction, 'CHUNK', 64)
    rows = obtain(model, splits, tmp_path / 'whole')
    assert {name: table.shape for name, table in rows.items()} == {
        'train': (60, 18),
        'val': (22, 1),
        'test': (26, 1),
    }
    whole = contents(tmp_path / 'whole')
    chunks = whole['chunks.jsonl'].count(b'\n')
    assert chunks == 17 + 1 + 1

    rng = np.random.default_rng(0)
    fsync, kills = target_store.os.fsync, 0
    while True:
        left = [int(rng.integers(1, 9))]

        def fsync_or_die(descriptor, left=left):
            left[0] -= 1
            if not left[0]:
                raise Killed
            fsync(descriptor)

        monkeypatch.setattr(target_store.os, 'fsync', fsync_or_die)
        try:
            obtain(model, splits, tmp_path / 'killed')
            break
        except Killed:
            kills += 1
            # A kill may also leave half a line.
            done = next((tmp_path / 'killed').rglob('chunks.jsonl'), None)
            if done is not None and kills % 2:
                with open(done, 'a') as file:
                    file.write('["train", 1')
    assert kills >= 4
    assert contents(tmp_path / 'killed') == whole
    monkeypatch.setattr(target_store.os, 'fsync', fsync)

    count = iter(range(100))
    assert obtain(model, splits, tmp_path / 'stopped', should_stop=lambda: next(count) == 5) is None
    assert 0 < contents(tmp_path / 'stopped')['chunks.jsonl'].count(b'\n') < chunks
    obtain(model, splits, tmp_path / 'stopped')
    assert contents(tmp_path / 'stopped') == whole


def test_any_damage_is_found(teacher, tmp_path):
    model, splits = teacher
    obtain(model, splits, tmp_path)
    (folder,) = (tmp_path / 'soft_targets').iterdir()
    rng = np.random.default_rng(1)
    for name in ('train.rows', 'val.rows', 'test.rows'):
        good = (folder / name).read_bytes()
        for place in [0, len(good) - 1, *rng.integers(0, len(good), 3).tolist()]:
            (folder / name).write_bytes(
                good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :]
            )
            with pytest.raises(UserError, match='damaged'):
                obtain(model, splits, tmp_path)
        (folder / name).write_bytes(good[:-1])
        with pytest.raises(UserError, match='another size'):
            obtain(model, splits, tmp_path)
        (folder / name).write_bytes(good)
    assert obtain(model, splits, tmp_path)['train'].shape == (60, 18)


def changed(splits):
    image = splits.train.image.copy()
    image[5, 1, 1, 0] ^= 1
    return dataclasses.replace(splits, train=type(splits.train)(image, splits.train.label))


MISMATCHES = {
    'another teacher': ({'trained': 1}, 'teacher.checksum'),
    'other images': ({'splits': changed}, 'data.checksum'),
    'another crop': (
        {'kept': extraction.Kind(Views(crop=2, flip=True))},
        r'augment.crop: 1 there, 2 here',
    ),
    'views': (
        {'kept': extraction.Kind(Views(crop=1, flip=True, repeated=4))},
        r'augment.repeated: 0 there, 4 here',
    ),
    'dtype': ({'kept': extraction.Kind(Views(crop=1, flip=True), 'float32')}, 'dtype'),
    'top-k': (
        {'kept': extraction.Kind(Views(crop=1, flip=True), top_k=1)},
        'top_k: 0 there, 1 here',
    ),
    'precision': ({'precision': 'bfloat16'}, "precision: 'float32' there, 'bfloat16' here"),
}


@pytest.mark.parametrize('name', MISMATCHES)
def test_targets_of_anything_else_are_refused_in_one_sentence(teacher, whole, tmp_path, name):
    model, splits = teacher
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (folder,) = (tmp_path / 'soft_targets').iterdir()
    changes, words = MISMATCHES[name]
    other = (
        model._replace(variables=jax.tree.map(lambda x: x * 1.5, model.variables))
        if 'trained' in changes
        else model
    )
    used = changes['splits'](splits) if 'splits' in changes else splits
    with pytest.raises(UserError, match=words) as caught:
        obtain(other, used, folder, changes.get('kept'), changes.get('precision', 'float32'))
    assert 'are not for this run' in str(caught.value) and 'extract them again' in str(caught.value)
    # Where the directory is not named, such a run gets targets of its own.
    obtain(other, used, tmp_path, changes.get('kept'), changes.get('precision', 'float32'))
    assert len(list((tmp_path / 'soft_targets').iterdir())) == 2
