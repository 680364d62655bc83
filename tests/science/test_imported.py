"""PyTorch weights in a study: as teachers whose input differs from
the student's, and as a start.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_files
from helpers import random_splits, save_npz
from model_reference import Reference
from small_models import flat, state_of
from studies import config_of, final_params, train

from configs import common
from kd_jax import imported, report, trained
from kd_jax.errors import UserError
from kd_jax.evaluate import evaluate_run
from kd_jax.workdir import RunDirectory

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)


@pytest.fixture
def data(tmp_path):
    return save_npz(tmp_path / 'three.npz', random_splits(train=100))  # 8 x 8, grey


@pytest.fixture
def weights(tmp_path):
    state, variables = state_of(3)
    path = tmp_path / 'weights.pth'
    path.write_bytes(torch_files.state_dict(state))
    return path, variables


def study_of(data, path, **fields):
    config = config_of(data, student=(common.distillation(), {'teachers': ('big',)}))
    with config.unlocked():
        config.teachers.big = {
            'torch': str(path),
            'model': 'resnet8',
            'size': 12,
            'mean': MEAN,
            'std': STD,
        } | fields
    return config


def test_an_imported_teacher_sees_the_students_view_in_its_own_way(data, weights, tmp_path):
    """28 x 28 grey pixels become 12 x 12 in three channels, with the teacher's mean
    and std; the table has its row.
    """
    path, variables = weights
    results = train(study_of(data, path), tmp_path / 'w')
    teacher, student = results['big', 0], results['student', 0]
    splits = random_splits(train=100)
    pixels = np.repeat(np.float64(splits.test.image), 3, axis=-1)
    resized = np.asarray(jax.image.resize(jnp.float32(pixels), (26, 12, 12, 3), 'bilinear'))
    expected = Reference(variables).resnet((resized / 255 - MEAN) / STD, blocks=1)['logits']
    assert teacher['test']['top1'] == pytest.approx(
        (expected.argmax(1) == splits.test.label).mean()
    )
    log_p = expected - np.log(np.exp(expected).sum(1, keepdims=True))
    nll = -log_p[np.arange(26), splits.test.label].mean()
    assert teacher['test']['nll'] == pytest.approx(nll, rel=1e-4)
    assert student['teacher']['agreement'] > 0.5
    assert teacher['params'] == 78_042 - 7 * 65 and teacher['flops'] > 1e5
    loaded = trained.load(imported.RunDirectory(tmp_path / 'w/big/seed0'))
    assert loaded.network.image_shape == (12, 12, 3)
    np.testing.assert_allclose(
        loaded.network.predict(loaded.variables, jnp.float32(splits.test.image)).logits,
        expected,
        rtol=1e-3,
        atol=1e-3,
    )
    table = json.loads((tmp_path / 'w/results.json').read_text())['table']
    assert [row['run'] for row in table] == ['big', 'student']


def test_again_nothing_is_read_or_written_and_other_weights_are_refused(data, weights, tmp_path):
    path, _ = weights
    train(study_of(data, path), tmp_path / 'w')
    before = {p: p.read_bytes() for p in (tmp_path / 'w/big').rglob('*') if p.is_file()}
    moved = path.rename(tmp_path / 'elsewhere.pth')
    more = study_of(data, path)
    more.runs.student.seeds = (0, 1)
    assert ('student', 1) in train(more, tmp_path / 'w')  # the weights are in the workdir
    assert {p: p.read_bytes() for p in (tmp_path / 'w/big').rglob('*') if p.is_file()} == before
    moved.write_bytes(torch_files.state_dict(state_of(3, seed=1)[0]))
    other = study_of(data, moved)
    other.runs.student.seeds = (0, 1, 2)
    with pytest.raises(UserError, match='holds a run with another config .*sha256'):
        train(other, tmp_path / 'w')


def test_what_cannot_teach_is_one_sentence_before_anything_trains(data, weights, tmp_path):
    path, _ = weights
    cases = [
        (
            {'mean': ()},
            (
                r'teachers\.big\.mean and \.std are missing: small-image '
                r'models have no usual normalisation'
            ),
        ),
        ({'mean': (0.5,)}, r'teachers\.big\.mean has 1 numbers, but the model sees 3 channel\(s\)'),
        ({'torch': ''}, r'teachers\.big\.torch is missing'),
        (
            {'sise': 3},
            (
                r"unknown field of teachers\.big 'sise'; did you mean 'size'\? "
                r'known: function, mean, model, size, std, torch'
            ),
        ),
        ({'size': -1}, r'teachers\.big\.size is -1; it must be 0'),
        (
            {'model': 'resnet14'},
            r"does not hold the weights of 'resnet14'.* these are the weights of 'resnet8'",
        ),
        (
            {'model': 'mobilenet_v2'},
            r"'mobilenet_v2' has several forms: imagenet_mobilenet_v2, cifar_mobilenet_v2",
        ),
        ({'torch': str(tmp_path / 'none.pth')}, r'none\.pth'),
    ]
    for fields, message in cases:
        with pytest.raises(UserError, match=message):
            train(study_of(data, path, **fields), tmp_path / 'w')
    assert not (tmp_path / 'w').exists() or not any((tmp_path / 'w').iterdir())
    five = tmp_path / 'five.pth'
    five.write_bytes(torch_files.state_dict(state_of(5)[0]))
    with pytest.raises(
        UserError, match=r"the teacher .*five\.pth has 5 classes, the student's data \(three\) 3"
    ):
        train(study_of(data, five), tmp_path / 'w')
    config = study_of(data, path)
    config.runs.student.optim.teacher_factor = 0.1
    with pytest.raises(
        UserError,
        match=r'teacher_factor=0\.1 needs the learning rate of the teacher .* which is imported',
    ):
        train(config, tmp_path / 'w')
    config = study_of(data, path)
    with config.unlocked():
        config.teachers.student = config.teachers.big
    with pytest.raises(UserError, match="'student' is both an imported teacher and a run"):
        train(config, tmp_path / 'w')


def test_a_run_starts_from_pytorch_weights_with_a_new_head(tmp_path, capsys):
    path = tmp_path / 'five.pth'
    state, variables = state_of(5)
    path.write_bytes(torch_files.state_dict(state))
    colour = save_npz(tmp_path / 'colour.npz', random_splits(channels=3, train=100))
    changes = {
        'model.name': 'resnet8',
        'model.width': None,
        'init': str(path),
        'model.heads': (1,),
        'epochs': 0.3,
    }
    changes |= {'optim.train': ('head',)}
    objective = common.labels()
    objective.deep_supervision = common.term('deep_supervision')
    train(config_of(colour, tuned=(objective, changes)), tmp_path / 'w')
    said = capsys.readouterr().err
    assert 'five.pth has another number of classes (5): the head starts afresh' in said
    assert 'these start afresh: head_stage1' in said
    after = final_params(tmp_path / 'w', 'tuned')
    for collection in ('params', 'batch_stats'):
        for p, x in flat(variables[collection]):
            if p[0] != 'head':
                np.testing.assert_array_equal(after[f'{collection}/{"/".join(p)}'], x)
    assert after['params/head/kernel'].shape == (64, 3)
    grey = save_npz(tmp_path / 'grey.npz', random_splits(train=100))
    found = train(config_of(grey, tuned=(objective, changes)), tmp_path / 'x')['tuned', 0]
    info = RunDirectory(tmp_path / 'x/tuned/seed0').info()['data']
    assert info['image_shape'] == [8, 8, 3] and len(info['mean']) == 3  # grey, three times
    again = evaluate_run(tmp_path / 'x/tuned')
    assert again['nll'] == pytest.approx(found['test']['nll'], rel=1e-5)


def test_the_command_makes_a_teacher_that_a_study_can_name(data, weights, tmp_path, capsys):
    path, _ = weights
    flags = [
        str(path),
        '--model=resnet8',
        f'--workdir={tmp_path}/t',
        '--size=8',
        '--mean=0.3,0.4,0.5',
        '--std=0.2,0.25,0.3',
    ]
    from kd_jax.pretrained.__main__ import main

    main(flags)
    assert 'resnet8: 77,587 parameters, 3 classes; teacher:' in capsys.readouterr().out
    config = config_of(
        data, student=(common.distillation(), {'teachers': (f'{tmp_path}/t/resnet8',)})
    )
    assert train(config, tmp_path / 'w')['student', 0]['teacher']['agreement'] > 0.5
    with pytest.raises(UserError, match='was imported and names no data'):
        evaluate_run(tmp_path / 't/resnet8')


def test_weights_of_other_classes_teach_by_their_features(data, tmp_path):
    """They keep their head, and are measured on nothing."""
    path = tmp_path / 'seven.pth'
    path.write_bytes(torch_files.state_dict(state_of(7)[0]))
    with pytest.raises(UserError, match='has 7 classes, .* kl learns from logits$'):
        train(study_of(data, path), tmp_path / 'w')
    config = study_of(data, path)
    config.runs.student.objective = common.labels()
    config.runs.student.objective.at = common.term('at', weight=100.0)
    results = train(config, tmp_path / 'w')
    teacher, student = results['big', 0], results['student', 0]
    assert teacher['test'] is teacher['val'] is student['teacher'] is None
    assert student['test']['top1'] > 0.5
    assert len(trained.load(RunDirectory(tmp_path / 'w/big/seed0')).info.class_names) == 7
    assert report.write_page(tmp_path / 'w', predict=2)
    assert (tmp_path / 'w/student/seed0/predictions.npz').exists()
    before = (tmp_path / 'w/student/seed0/result.json').read_bytes()
    train(config, tmp_path / 'w')
    assert (tmp_path / 'w/student/seed0/result.json').read_bytes() == before
