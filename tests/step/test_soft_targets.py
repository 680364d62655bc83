"""Soft targets: cached training equals live training, extraction resumes to the same
bytes, nothing wrong is used.
"""

import dataclasses
import json
import shutil

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import environment, random_splits, save_npz
from studies import config_of, final_params, train

from configs import common
from kd_jax import checkpoint, extraction, library, target_store, trained
from kd_jax.data import augment
from kd_jax.data.views import Views
from kd_jax.errors import UserError
from kd_jax.parallel import Parallel
from kd_jax.train import Stopped
from kd_jax.workdir import RunDirectory


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return save_npz(tmp_path_factory.mktemp('data') / 'three.npz', random_splits(train=400))


# With larger steps training would amplify rounding until nothing could be compared.
CHANGES = {
    'teachers': ('teacher',),
    'epochs': 2.0,
    'select': 'last',
    'optim.name': 'sgd',
    'optim.learning_rate': 0.01,
}


def study_of(data, teachers=('teacher',), **runs):
    """Students that differ in `runs`: name -> changes; two epochs
    with crop 1 and flip, 18 views.
    """
    taught = {
        name: (common.distillation(), CHANGES | {'teachers': teachers} | changes)
        for name, changes in runs.items()
    }
    config = config_of(data, **{name: (None, {}) for name in teachers}, **taught)
    with config.unlocked():
        config.augment.crop, config.augment.flip = 1, True
    return config


def differences(workdir, one, other):
    a, b = (final_params(workdir, name) for name in (one, other))
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def test_a_view_is_found_again_by_its_slot():
    index, number = jnp.arange(40), jnp.arange(40) * 7
    images = jnp.asarray(random_splits(size=6).train.image)[index]
    for views, count in (
        (Views(crop=1, flip=True), 18),
        (Views(crop=2), 25),
        (Views(flip=True), 2),
        (Views(), 1),
        (Views(crop=2, flip=True, rotate=20.0, cutout=2, fill=(9.0,), repeated=5, seed=3), 5),
    ):
        assert (views.count, views.countable) == (count, True)
        key = jax.random.key(11)
        slot = views.slot(key, index, number)
        assert set(np.unique(slot)) <= set(range(count))
        np.testing.assert_array_equal(
            views.augment(key, images, index, number), views.of_slot(images, index, slot)
        )
    assert not Views(crop=1, rotate=5.0).countable
    repeated = views.augment(jax.random.key(0), images, index, number)
    np.testing.assert_array_equal(
        repeated, views.augment(jax.random.key(1), images, index, number + 5)
    )


def test_all_windows_are_drawn_and_differ():
    image = jnp.asarray(np.random.default_rng(0).uniform(1, 255, (5, 5, 2)), jnp.float32)
    numbers = jnp.arange(augment.windows(crop=2, flip=True))
    made = jax.vmap(lambda n: augment.window(image, n, crop=2, flip=True))(numbers)
    assert len(np.unique(np.asarray(made).reshape(50, -1), axis=0)) == 50
    drawn = jax.vmap(lambda key: augment.draw_window(key, crop=2, flip=True))(
        jax.random.split(jax.random.key(0), 1000)
    )
    assert set(np.asarray(drawn).tolist()) == set(range(50))


@pytest.mark.parametrize(
    ('seeds', 'precision'), [((0,), 'float32'), ((3,), 'float32'), ((0,), 'bfloat16')], ids=str
)
def test_training_with_all_views_kept_is_training_with_the_teacher(
    data, tmp_path, seeds, precision
):
    """The same parameters after two epochs, and the same comparison with the
    teacher; half precision is near it.

    In bfloat16 two programs may round the teacher's logits differently: there a few steps are
    compared, in which targets of the wrong views would already be another divergence by more than a
    fiftieth, and another hundredth in the parameters.
    """
    kept = {'soft_targets': 'exact', 'soft_targets_dtype': 'float32'}
    config = study_of(data, live={}, kept=kept, half={'soft_targets': 'exact'})
    with config.unlocked():
        config.seeds, config.precision = seeds, precision
        if precision == 'bfloat16':
            for run in ('live', 'kept', 'half'):
                config.runs[run].epochs = 0.25
    results = train(config, tmp_path)
    seed = seeds[0]
    params = {name: final_params(tmp_path, name, seed) for name in ('live', 'kept', 'half')}
    difference = {
        name: max(
            float(np.abs(params['live'][key] - params[name][key]).max()) for key in params['live']
        )
        for name in ('kept', 'half')
    }
    divergence = {}
    for name in params:
        lines = (tmp_path / name / f'seed{seed}' / 'metrics.jsonl').read_text().splitlines()
        divergence[name] = [line['kl'] for line in map(json.loads, lines) if 'kl' in line]
    assert divergence['live']
    # Beside the teacher's checkpoints: one folder for each type, and the second
    # student did not extract again.
    folders = list((tmp_path / 'teacher' / f'seed{seed}' / 'soft_targets').iterdir())
    tables = {
        json.loads((folder / 'manifest.json').read_text())['dtype']: folder for folder in folders
    }
    assert len(folders) == len(tables) == 2
    logits = {dtype: np.fromfile(folder / 'train.rows', dtype) for dtype, folder in tables.items()}
    assert logits['float32'].shape == (400 * 18 * 3,)
    if precision == 'bfloat16':
        assert difference['kept'] <= 2e-3
        assert divergence['kept'] == pytest.approx(divergence['live'], rel=2**-6)
        return
    # What half precision keeps are the same targets, rounded once, and training with
    # them is near because of that.
    np.testing.assert_allclose(logits['float16'], logits['float32'], rtol=1.01 * 2**-11, atol=1e-6)
    assert difference['kept'] <= 5e-7 < 1e-6 < difference['half'] <= 1e-4
    live, kept, half = (results[name, seed] for name in ('live', 'kept', 'half'))
    assert half['test']['nll'] == pytest.approx(live['test']['nll'], abs=1e-3)
    assert kept['teacher'] == pytest.approx(live['teacher'], abs=1e-5) and kept[
        'test'
    ] == pytest.approx(live['test'], abs=1e-5)


def test_streamed_targets_give_the_same_bits(data, tmp_path, monkeypatch):
    config = study_of(data, teachers=('a', 'b'), student={'soft_targets': '3', 'epochs': 3.0})
    train(config, tmp_path / 'one')
    shutil.copytree(tmp_path / 'one', tmp_path / 'two', ignore=shutil.ignore_patterns('student'))
    monkeypatch.setattr(extraction, 'fits', lambda *_: False)
    train(config, tmp_path / 'two')
    one, two = (final_params(tmp_path / name, 'student') for name in ('one', 'two'))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize('streamed', [False, True])
def test_one_device_and_four_learn_the_same_from_kept_targets(
    data, tmp_path, monkeypatch, streamed
):
    if streamed:
        monkeypatch.setattr(extraction, 'fits', lambda *_: False)
    for mode, devices in (('jit', 1), ('pmap', 4), ('jit', 4)):
        config = study_of(data, student={'soft_targets': 'exact', 'batch_size': 20})
        with config.unlocked():
            config.parallel, config.devices = mode, devices
        train(config, tmp_path / f'{mode}{devices}', only=())
    one = final_params(tmp_path / 'jit1', 'student')
    for other in ('pmap4', 'jit4'):
        found = final_params(tmp_path / other, 'student')
        # the teachers differ by 1e-6 too
        assert max(float(np.abs(one[name] - found[name]).max()) for name in one) <= 2e-4


def test_the_likeliest_classes_and_the_rest_make_logits():
    logits = np.random.default_rng(0).normal(0, 3, (7, 9)).astype(np.float32)
    kind = target_store.row_type(9, 'float32', 4)
    rows = target_store.rows_of(logits, kind)
    found = jax.nn.softmax(target_store.decoded(target_store.columns(rows), 9))
    exact = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for mine, theirs in zip(np.asarray(found), exact, strict=True):
        order = np.argsort(-theirs)
        np.testing.assert_allclose(mine[order[:4]], theirs[order[:4]], rtol=1e-5)
        np.testing.assert_allclose(mine[order[4:]], theirs[order[4:]].mean(), rtol=1e-5)
    sure = np.zeros((1, 9), np.float32)
    sure[0, 2] = 500.0
    likely = target_store.rows_of(sure, target_store.row_type(9, 'float16', 2))
    output = target_store.decoded(target_store.columns(likely), 9)
    assert np.isfinite(output).all() and output.argmax() == 2
    assert np.isfinite(jax.nn.log_softmax(output)).all()
    all_of_them = target_store.rows_of(logits, target_store.row_type(9, 'float16', 0))
    np.testing.assert_allclose(
        target_store.decoded(target_store.columns(all_of_them), 9), logits, rtol=1e-3
    )
    huge = target_store.rows_of(
        np.float32([[1e9, -1e9, 3.0]]), target_store.row_type(3, 'float16', 0)
    )
    assert huge['logits'].tolist() == [[65504.0, -65504.0, 3.0]]  # not infinite


def test_a_student_learns_from_the_likeliest_class_alone(data, tmp_path):
    changes = {'epochs': 8.0, 'optim.name': 'adam', 'optim.learning_rate': 0.05}
    config = study_of(data, student={'soft_targets': '2', 'soft_targets_top_k': 1, **changes})
    results = train(config, tmp_path)
    assert results['student', 0]['test']['top1'] > 0.8


@pytest.fixture(scope='module')
def teacher(data, tmp_path_factory):
    """(workdir of a study with a trained teacher, the teacher, the data)."""
    workdir = tmp_path_factory.mktemp('teacher')
    config = study_of(data)
    train(config, workdir)
    return workdir, trained.load(RunDirectory(workdir / 'teacher/seed0')), random_splits()


def obtain(
    model, splits, directory, kept=None, precision='float32', should_stop=lambda: False, devices=1
):
    kept = kept or extraction.Kind(Views(crop=1, flip=True))
    wanted = extraction.Extraction([model], splits, kept, Parallel('auto', devices), precision, 't')
    rows = extraction.obtain(wanted, [directory], should_stop)
    return rows and rows[0]


def contents(directory):
    return {
        path.relative_to(directory).name: path.read_bytes()
        for path in directory.rglob('*')
        if path.is_file()
    }


class Killed(BaseException):
    pass


def test_an_extraction_that_was_killed_ends_with_the_same_bytes(teacher, tmp_path, monkeypatch):
    """Killed at random between any two writes, also in the middle of one,
    and once stopped by a signal.
    """
    _, model, splits = teacher
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


def test_a_study_that_is_stopped_while_it_extracts_goes_on(data, tmp_path, monkeypatch):
    monkeypatch.setattr(target_store, 'CHUNK', 64)
    monkeypatch.setattr(extraction, 'CHUNK', 64)
    config = study_of(data, student={'soft_targets': 'exact'})

    def stop():
        done = list(tmp_path.glob('teacher/seed0/soft_targets/*/chunks.jsonl'))
        return bool(done) and done[0].read_bytes().count(b'\n') >= 3

    with pytest.raises(Stopped):
        train(config, tmp_path, should_stop=stop)
    assert not list(tmp_path.glob('student/seed0/result.json'))
    assert train(config, tmp_path)['student', 0]['teacher']['agreement'] > 0


def test_any_damage_is_found(teacher, tmp_path):
    _, model, splits = teacher
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
def test_targets_of_anything_else_are_refused_in_one_sentence(teacher, tmp_path, name):
    _, model, splits = teacher
    obtain(model, splits, tmp_path)
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


def test_targets_of_a_teacher_that_cannot_be_written_to_are_kept_in_the_studys_workdir(
    data, tmp_path, monkeypatch
):
    train(study_of(data), tmp_path / 'theirs')
    monkeypatch.setattr(library.os, 'access', lambda path, _: 'theirs' not in str(path))
    before = contents(tmp_path / 'theirs')
    config = study_of(
        data,
        teachers=(),
        student={'teachers': (str(tmp_path / 'theirs/teacher'),), 'soft_targets': '2'},
    )
    train(config, tmp_path / 'mine')
    assert contents(tmp_path / 'theirs') == before
    assert len(list((tmp_path / 'mine/teachers/theirs-teacher-seed0/soft_targets').iterdir())) == 1


def test_a_teacher_of_other_classes_is_refused(data, tmp_path):
    other = save_npz(tmp_path / 'four.npz', random_splits(classes=4))
    train(study_of(data), tmp_path / 'three')
    config = study_of(
        other,
        teachers=(),
        student={'teachers': (str(tmp_path / 'three/teacher'),), 'soft_targets': 'exact'},
    )
    with pytest.raises(UserError, match=r'has 3 classes.*4; train a teacher on the same classes'):
        train(config, tmp_path / 'four')


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (
            {'soft_targets': 'all'},
            r"runs.student.soft_targets is 'all'; it must be 'live', 'exact' or a number of views",
        ),
        ({'soft_targets': '0'}, "must be 'live', 'exact' or a number of views, such as '8'"),
        ({'soft_targets': '-2'}, 'a number of views'),
        (
            {'soft_targets': 'exact', 'soft_targets_dtype': 'float8'},
            "unknown value of .*soft_targets_dtype 'float8'",
        ),
        (
            {'soft_targets': 'exact', 'soft_targets_top_k': 3},
            'soft_targets_top_k is 3; it must be 0 .all classes. or less .* 3',
        ),
        ({'soft_targets': 'exact', 'soft_targets_top_k': -1}, 'soft_targets_top_k is -1'),
        (
            {'soft_targets': 'exact', 'augment.rotate': 5.0},
            "'exact', but augment.rotate makes more views",
        ),
        ({'soft_targets': 'exact', 'augment.cutout': 2}, 'augment.cutout makes more views'),
        ({'soft_targets': '4', 'augment.mixup': 0.2}, 'augment.mixup=0.2 every image is mixed'),
        (
            {'soft_targets': '4', 'teachers': (), 'objective.kl.weight': 0.0},
            'the run has no teacher',
        ),
        (
            {'soft_targets': '4', 'teachers': ('self:peer',)},
            r"its teachers \('self:peer',\) learn with it: name a trained run",
        ),
    ],
    ids=str,
)
def test_bad_values_are_refused_in_one_sentence(data, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        train(study_of(data, student=changes), tmp_path)


def test_the_command_extracts_what_a_study_then_uses(data, tmp_path):
    """In a process of its own, on other devices; the study finds the
    targets and extracts nothing.
    """
    config = study_of(data, student={'soft_targets': '2'})
    train(config, tmp_path, only=('teacher',))
    flags = [
        f'--teacher={tmp_path}/teacher',
        '--data=configs/digits.py',
        '--views=2',
        '--data.data.source=npz',
    ]
    flags += [f'--data.data.path={data}', '--data.augment.crop=1', '--data.augment.flip=True']

    def command(*more):
        return commands.run('kd_jax.soft_targets', *flags, *more, env=environment(2))

    done = command()
    assert done.returncode == 0, done.stderr
    assert 'soft targets of 400 images in 2 views' in done.stdout
    (folder,) = (tmp_path / 'teacher/seed0/soft_targets').iterdir()
    before = contents(folder)
    made = json.loads(before['manifest.json'])
    assert made['teacher']['checksum'] == checkpoint.checksum(
        trained.load(RunDirectory(tmp_path / 'teacher/seed0')).variables
    )
    assert (made['dtype'], made['augment']['repeated'], made['splits']['train'][:2]) == (
        'float16',
        2,
        [400, 2],
    )
    train(config, tmp_path)
    assert contents(folder) == before and len(list(folder.parent.iterdir())) == 1
    for wrong, words in (
        ('--views=none', "--views is 'none'"),
        ('--teacher=/nowhere', 'neither a run of this study nor'),
    ):
        failed = command(wrong)
        assert (
            failed.returncode == 2
            and words in failed.stderr
            and len(failed.stderr.splitlines()) == 1
        )
