"""Soft targets: cached training equals live training, extraction resumes to the same
bytes, nothing wrong is used.
"""

import json
import shutil

import commands
import numpy as np
import pytest
from helpers import environment, random_splits, save_npz
from studies import final_params, student_study, train

from kd_jax import checkpoint, extraction, library, target_store, trained
from kd_jax.errors import UserError
from kd_jax.train import Stopped
from kd_jax.workdir import RunDirectory


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return save_npz(tmp_path_factory.mktemp('data') / 'three.npz', random_splits(train=400))


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
    config = student_study(data, live={}, kept=kept, half={'soft_targets': 'exact'})
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
    config = student_study(data, teachers=('a', 'b'), student={'soft_targets': '3', 'epochs': 3.0})
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
        config = student_study(data, student={'soft_targets': 'exact', 'batch_size': 20})
        with config.unlocked():
            config.parallel, config.devices = mode, devices
        train(config, tmp_path / f'{mode}{devices}', only=())
    one = final_params(tmp_path / 'jit1', 'student')
    for other in ('pmap4', 'jit4'):
        found = final_params(tmp_path / other, 'student')
        # the teachers differ by 1e-6 too
        assert max(float(np.abs(one[name] - found[name]).max()) for name in one) <= 2e-4


def test_a_student_learns_from_the_likeliest_class_alone(data, tmp_path):
    changes = {'epochs': 8.0, 'optim.name': 'adam', 'optim.learning_rate': 0.05}
    config = student_study(data, student={'soft_targets': '2', 'soft_targets_top_k': 1, **changes})
    results = train(config, tmp_path)
    assert results['student', 0]['test']['top1'] > 0.8


def contents(directory):
    return {
        path.relative_to(directory).name: path.read_bytes()
        for path in directory.rglob('*')
        if path.is_file()
    }


def test_a_study_that_is_stopped_while_it_extracts_goes_on(data, tmp_path, monkeypatch):
    monkeypatch.setattr(target_store, 'CHUNK', 64)
    monkeypatch.setattr(extraction, 'CHUNK', 64)
    config = student_study(data, student={'soft_targets': 'exact'})

    def stop():
        done = list(tmp_path.glob('teacher/seed0/soft_targets/*/chunks.jsonl'))
        return bool(done) and done[0].read_bytes().count(b'\n') >= 3

    with pytest.raises(Stopped):
        train(config, tmp_path, should_stop=stop)
    assert not list(tmp_path.glob('student/seed0/result.json'))
    assert train(config, tmp_path)['student', 0]['teacher']['agreement'] > 0


def test_targets_of_a_teacher_that_cannot_be_written_to_are_kept_in_the_studys_workdir(
    data, tmp_path, monkeypatch
):
    train(student_study(data), tmp_path / 'theirs')
    monkeypatch.setattr(library.os, 'access', lambda path, _: 'theirs' not in str(path))
    before = contents(tmp_path / 'theirs')
    config = student_study(
        data,
        teachers=(),
        student={'teachers': (str(tmp_path / 'theirs/teacher'),), 'soft_targets': '2'},
    )
    train(config, tmp_path / 'mine')
    assert contents(tmp_path / 'theirs') == before
    assert len(list((tmp_path / 'mine/teachers/theirs-teacher-seed0/soft_targets').iterdir())) == 1


def test_a_teacher_of_other_classes_is_refused(data, tmp_path):
    other = save_npz(tmp_path / 'four.npz', random_splits(classes=4))
    train(student_study(data), tmp_path / 'three')
    config = student_study(
        other,
        teachers=(),
        student={'teachers': (str(tmp_path / 'three/teacher'),), 'soft_targets': 'exact'},
    )
    with pytest.raises(UserError, match=r'has 3 classes.*4; train a teacher on the same classes'):
        train(config, tmp_path / 'four')


def test_the_command_extracts_what_a_study_then_uses(data, tmp_path):
    """In a process of its own, on other devices; the study finds the
    targets and extracts nothing.
    """
    config = student_study(data, student={'soft_targets': '2'})
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
