"""Studies: what references mean, what a run can be made of, and what comes out."""

import json

import numpy as np
import pytest
from helpers import random_splits, save_npz
from studies import config_of, final_params, train

from configs import common
from kd_jax import trained
from kd_jax.errors import UserError
from kd_jax.evaluate import evaluate_run, evaluate_together
from kd_jax.workdir import RunDirectory


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """60 training images in 3 classes that a small network learns in a few epochs."""
    return save_npz(tmp_path_factory.mktemp('data') / 'three.npz', random_splits())


def test_teacher_assistant_student_in_one_study(data, tmp_path):
    """Three runs, two seeds: each student's teacher is the one of its seed; results,
    table and files are complete.
    """
    config = config_of(
        data,
        teacher=(None, {'seeds': (0, 1)}),
        assistant=(common.distillation(), {'teachers': ('teacher',), 'seeds': (0, 1)}),
        student=(
            common.distillation(),
            {'teachers': ('teacher', 'assistant'), 'teacher_weights': (1.0, 3.0), 'seeds': (0, 1)},
        ),
    )
    results = train(config, tmp_path)
    assert sorted(results) == [
        (run, seed) for run in ('assistant', 'student', 'teacher') for seed in (0, 1)
    ]
    for (run, seed), result in results.items():
        directory = tmp_path / run / f'seed{seed}'
        assert json.loads((directory / 'result.json').read_text()) == result
        assert set(result) >= {
            'run',
            'seed',
            'model',
            'params',
            'flops',
            'steps',
            'seconds',
            'test',
            'val',
            'teacher',
        }
        assert set(result['test']) >= {'top1', 'top5', 'f1_macro', 'nll', 'ece', 'count'}
        assert result['test']['count'] == 26
        assert result['val']['count'] == 22
        assert result['steps'] == 24
        assert result['params'] == 72 + 8 + 8 * 16 * 9 + 16 + (64 * 32 + 32) + (32 * 3 + 3)
        assert result['test']['top1'] > 0.8
        assert (result['teacher'] is None) == (run == 'teacher')
    expected = np.mean([results['student', s]['test']['top1'] for s in (0, 1)]) * 100
    saved = json.loads((tmp_path / 'results.json').read_text())
    row = next(row for row in saved['table'] if row['run'] == 'student')
    assert row['top-1 %']['mean'] == pytest.approx(expected)
    assert {(g['run'], g['against']) for g in saved['gains']} == {
        ('assistant', 'teacher'),
        ('student', 'teacher'),
    }
    assert f'{expected:.2f} ± ' in (tmp_path / 'report.md').read_text()
    lines = [
        json.loads(line)
        for line in (tmp_path / 'student/seed0/metrics.jsonl').read_text().splitlines()
    ]
    assert [(m['step'], m['split']) for m in lines] == [
        (s, k) for s in range(3, 25, 3) for k in ('train', 'val')
    ]
    assert {'loss', 'kl', 'cross_entropy', 'top1', 'learning_rate'} <= set(lines[0])
    assert {'top1', 'teacher_agreement', 'teacher_kl'} <= set(lines[1])
    again = evaluate_run(tmp_path / 'student/seed1')
    assert again == pytest.approx(results['student', 1]['test'], abs=1e-6)


def test_several_students_are_evaluated_as_one(data, tmp_path):
    """The average of probabilities: accuracy and negative log-likelihood by hand;
    models may differ, data may not.
    """
    changes = {'epochs': 2.0, 'eval_every': 1.0}
    train(
        config_of(
            data,
            cnn=(None, changes | {'seeds': (0, 1)}),
            resnet=(None, changes | {'model.name': 'resnet8'}),
        ),
        tmp_path,
    )
    runs = [tmp_path / name for name in ('cnn/seed0', 'cnn/seed1', 'resnet/seed0')]
    with np.load(data) as arrays:
        images, labels = arrays['test_image'], arrays['test_label']
    models = [trained.load(RunDirectory(run)) for run in runs]
    logits = [np.float64(m.network.predict(m.variables, np.float32(images)).logits) for m in models]
    probabilities = np.mean([np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in logits], axis=0)
    together = evaluate_together(runs)
    assert together['top1'] == pytest.approx((probabilities.argmax(1) == labels).mean())
    nll = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    assert together['nll'] == pytest.approx(nll, rel=1e-5)
    # of the same examples: Jensen
    assert together['nll'] < np.mean([evaluate_run(run)['nll'] for run in runs])
    other = save_npz(tmp_path / 'other.npz', random_splits(seed=1))
    train(config_of(other, cnn=(None, {'epochs': 0.5})), tmp_path / 'other')
    with pytest.raises(
        UserError, match='was trained on other data than .*; take runs of the same data'
    ):
        evaluate_together([runs[0], tmp_path / 'other/cnn'])
    with pytest.raises(UserError, match='cnn/seed0 is given twice'):
        evaluate_together([*runs, tmp_path / 'cnn'])


def test_teachers_and_starts_may_come_from_another_study(data, tmp_path):
    config = config_of(data, big=(None, {'seeds': (3,)}))
    train(config, tmp_path / 'first')
    before = {p: p.read_bytes() for p in (tmp_path / 'first').rglob('*') if p.is_file()}
    elsewhere = str(tmp_path / 'first' / 'big')
    config = config_of(
        data,
        taught=(common.distillation(), {'teachers': (elsewhere,)}),
        started=(None, {'init': f'{elsewhere}/seed3', 'optim.learning_rate': 1e-9, 'epochs': 0.3}),
    )
    results = train(config, tmp_path / 'second')
    assert results['taught', 0]['teacher']['agreement'] > 0.8
    old, new = (
        final_params(tmp_path / 'first', 'big', 3),
        final_params(tmp_path / 'second', 'started'),
    )
    for name in old:
        np.testing.assert_allclose(new[name], old[name], atol=1e-6)
    assert {p: p.read_bytes() for p in (tmp_path / 'first').rglob('*') if p.is_file()} == before


def test_a_start_with_other_classes_gets_a_new_head(data, tmp_path, capsys):
    """Pretrained on five classes, trained further on three; another model is refused."""
    five = save_npz(tmp_path / 'five.npz', random_splits(classes=5, train=100))
    train(config_of(five, pretrained=(None, {})), tmp_path / 'first')
    start = str(tmp_path / 'first' / 'pretrained')
    config = config_of(
        data, tuned=(None, {'init': start, 'optim.learning_rate': 1e-9, 'epochs': 0.3})
    )
    train(config, tmp_path / 'second')
    assert 'has another number of classes (5): the head starts afresh' in capsys.readouterr().err
    old, new = (
        final_params(tmp_path / 'first', 'pretrained'),
        final_params(tmp_path / 'second', 'tuned'),
    )
    assert new['params/head/kernel'].shape == (32, 3)
    for name in old:
        if 'head' not in name:
            np.testing.assert_allclose(new[name], old[name], atol=1e-6)
    wide = config_of(data, tuned=(None, {'init': start, 'model.width': 0.5}))
    with pytest.raises(
        UserError, match='cannot initialise this model: .* arrays differ in name or shape'
    ):
        train(wide, tmp_path / 'third')


def test_a_students_learning_rate_as_a_factor_of_its_teachers(data, tmp_path):
    config = config_of(
        data,
        teacher=(None, {'optim.learning_rate': 0.04, 'epochs': 1.0}),
        student=(
            common.distillation(),
            {'teachers': ('teacher',), 'optim.teacher_factor': 0.1, 'optim.schedule': 'constant'},
        ),
    )
    train(config, tmp_path)
    lines = [
        json.loads(line)
        for line in (tmp_path / 'student/seed0/metrics.jsonl').read_text().splitlines()
    ]
    assert [m['learning_rate'] for m in lines if m['split'] == 'train'] == pytest.approx(
        [0.004] * 8
    )
    with pytest.raises(UserError, match='optim.teacher_factor=0.1 needs a teacher'):
        train(config_of(data, alone=(None, {'optim.teacher_factor': 0.1})), tmp_path / 'x')


def test_select_last_is_the_end_of_training(data, tmp_path):
    results = train(config_of(data, alone=(None, {'select': 'last'})), tmp_path)
    assert results['alone', 0]['checkpoint'] == results['alone', 0]['steps'] == 24


OPTIMISERS = (
    {'name': 'adam', 'learning_rate': 3e-3},
    {'name': 'adamw', 'learning_rate': 3e-3, 'ema_decay': 0.8},
    {'name': 'sgd', 'learning_rate': 0.05, 'nesterov': True, 'clip_norm': 1.0},
)


@pytest.mark.parametrize('optim', OPTIMISERS, ids=lambda o: o['name'])
def test_every_optimiser_trains(data, tmp_path, optim):
    changes = {f'optim.{key}': value for key, value in optim.items()} | {'epochs': 10.0}
    results = train(config_of(data, alone=(None, changes)), tmp_path)
    assert results['alone', 0]['test']['top1'] > 0.85


def test_seeds_differ_and_the_same_seed_repeats(data, tmp_path):
    for place in ('a', 'b'):
        train(config_of(data, alone=(None, {'seeds': (0, 1), 'epochs': 1.0})), tmp_path / place)
    one, same, other = (
        final_params(tmp_path / p, 'alone', s) for p, s in (('a', 0), ('b', 0), ('a', 1))
    )
    for name in one:
        assert np.array_equal(one[name], same[name])
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_stopping_between_steps_saves(data, tmp_path):
    asked = iter([False] * 4 + [True] * 1000)
    from kd_jax.train import Stopped

    with pytest.raises(Stopped):
        train(config_of(data, alone=(None, {})), tmp_path / 'cut', should_stop=lambda: next(asked))
    assert not (tmp_path / 'cut/alone/seed0/result.json').exists()
    train(config_of(data, alone=(None, {})), tmp_path / 'cut')
    train(config_of(data, alone=(None, {})), tmp_path / 'whole')
    cut, whole = final_params(tmp_path / 'cut', 'alone'), final_params(tmp_path / 'whole', 'alone')
    for name in whole:
        assert np.array_equal(cut[name], whole[name])


@pytest.mark.parametrize(('sweep', 'given_up'), [('', 2), ('objective.kl.tau=1,2', 3)])
def test_a_run_that_diverges_does_not_end_the_others(data, tmp_path, capsys, sweep, given_up):
    """What needs it is not trained either; everything else is, and the study
    ends with the sentences of both.
    """
    wild = {'optim.name': 'sgd', 'optim.learning_rate': 1e30}
    taught = common.distillation(), {'teachers': ('a_wild',), 'sweep': sweep}
    config = config_of(data, a_wild=(None, wild), b_taught=taught, c_other=(None, {'epochs': 1.0}))
    with pytest.raises(
        UserError,
        match=(
            r'the loss of a_wild seed 0 became .* b_taught\S* seed 0 was '
            r'not trained, for a_wild did not'
        ),
    ):
        train(config, tmp_path)
    results = json.loads((tmp_path / 'results.json').read_text())['results']
    assert [r['run'] for r in results] == ['c_other']
    assert capsys.readouterr().out.count('the study goes on') == given_up
