"""One study through everything: teachers of every kind, stored targets, a sweep, a start from
another run, and a run that diverges; and what is left of it.
"""

import json

import numpy as np
import pytest
import torch_files
from helpers import FASTEST_COMPILE, quickly, random_splits, save_npz
from model_reference import Reference
from small_models import state_of
from studies import config_of, final_params, train

from configs import common
from kd_jax import trained
from kd_jax.errors import UserError
from kd_jax.evaluate import evaluate_run, evaluate_together
from kd_jax.workdir import RunDirectory

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)
KEYS = {'run', 'seed', 'model', 'params', 'flops', 'steps', 'seconds', 'test', 'val', 'teacher'}


def taught(*teachers, **changes):
    return common.distillation(), {'teachers': teachers, 'epochs': 6.0, **changes}


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    """(workdir, its config, the sentence with which it ends, variables of the imported teacher)"""
    folder = tmp_path_factory.mktemp('study')
    data = save_npz(folder / 'three.npz', random_splits())
    state, variables = state_of(3)
    (folder / 'weights.pth').write_bytes(torch_files.state_dict(state))
    config = config_of(
        data,
        teacher=(None, {'seeds': (0, 1)}),
        student=taught('teacher', 'big', teacher_weights=(3.0, 1.0), seeds=(0, 1)),
        swept=taught(
            'teacher/seed1', 'self:ema', soft_targets='exact', sweep='objective.kl.tau=1,4'
        ),
        tuned=(None, {'init': 'teacher', 'epochs': 2.0}),
        wild=(None, {'optim.learning_rate': 1e30}),
        lost=taught('wild'),
    )
    with config.unlocked():
        for run in config.runs.values():
            run.eval_every = 2.0
        config.augment.flip = True
        config.teachers.big = {
            'torch': str(folder / 'weights.pth'),
            'model': 'resnet8',
            'size': 12,
            'mean': MEAN,
            'std': STD,
        }
        config.runs.swept.sweep, config.runs.swept.optim.ema_decay = 'objective.kl.tau=1,4', 0.9
        config.runs.tuned.optim.learning_rate = 1e-9
    with pytest.raises(UserError) as caught:
        train(config, folder / 'w')
    return folder / 'w', config, str(caught.value), variables


def results_of(workdir):
    found = json.loads((workdir / 'results.json').read_text())
    return {(result['run'], result['seed']): result for result in found['results']}


def lines_of(workdir, run, seed=0):
    text = (workdir / run / f'seed{seed}/metrics.jsonl').read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_every_run_but_what_diverged_has_its_result(study):
    workdir, _, sentence, _ = study
    assert 'the loss of wild seed 0 became' in sentence and 'lost' in sentence
    results = results_of(workdir)
    runs = {'big': 1, 'teacher': 2, 'student': 2, 'tuned': 1}
    runs |= {'swept-kl.tau=1': 1, 'swept-kl.tau=4': 1}
    assert set(results) == {(run, seed) for run, count in runs.items() for seed in range(count)}
    for (run, seed), result in results.items():
        directory = workdir / run / f'seed{seed}'
        assert json.loads((directory / 'result.json').read_text()) == result
        assert set(result) >= KEYS
        assert set(result['test']) >= {'top1', 'top5', 'f1_macro', 'nll', 'ece', 'count'}
        assert result['test']['count'] == 26
        if run != 'big':
            assert result['val']['count'] == 22
            assert result['test']['top1'] > 0.8, run
            assert result['params'] == 72 + 8 + 8 * 16 * 9 + 16 + (64 * 32 + 32) + (32 * 3 + 3)
        assert (result['teacher'] is None) == (run in ('big', 'teacher', 'tuned'))
    assert results['student', 0]['steps'] == 18
    assert 0.5 < results['swept-kl.tau=4', 0]['teacher']['agreement'] <= 1


def test_the_table_has_means_spreads_and_gains(study):
    workdir, *_ = study
    results, saved = results_of(workdir), json.loads((workdir / 'results.json').read_text())
    expected = 100 * np.mean([results['student', seed]['test']['top1'] for seed in (0, 1)])
    row = next(row for row in saved['table'] if row['run'] == 'student')
    assert row['top-1 %']['mean'] == pytest.approx(expected)
    assert ('student', 'teacher') in {(gain['run'], gain['against']) for gain in saved['gains']}
    assert f'{expected:.2f} ± ' in (workdir / 'report.md').read_text()
    lines = lines_of(workdir, 'student')
    steps = [(line['step'], line['split']) for line in lines]
    assert steps == [(step, split) for step in range(6, 19, 6) for split in ('train', 'val')]
    assert {'loss', 'kl', 'cross_entropy', 'top1', 'learning_rate'} <= set(lines[0])
    assert {'top1', 'teacher_agreement', 'teacher_kl'} <= set(lines[1])


def test_evaluating_again_gives_the_result_and_several_are_averaged_by_their_probabilities(study):
    workdir, *_ = study
    results = results_of(workdir)
    for name in ('student', 'swept-kl.tau=4'):
        for split in ('val', 'test'):
            expected = results[name, 0][split]
            assert evaluate_run(workdir / name, split) == pytest.approx(expected, abs=1e-6)
    runs = [workdir / f'student/seed{seed}' for seed in (0, 1)]
    splits = random_splits()
    images, labels = np.float32(splits.test.image), splits.test.label
    models = [trained.load(RunDirectory(run)) for run in runs]
    predict = quickly(models[0].network.predict, FASTEST_COMPILE)
    logits = [np.float64(predict(model.variables, images).logits) for model in models]
    probabilities = np.mean([np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in logits], axis=0)
    together = evaluate_together(runs)
    assert together['top1'] == pytest.approx((probabilities.argmax(1) == labels).mean())
    nll = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    assert together['nll'] == pytest.approx(nll, rel=1e-5)


def test_an_imported_teacher_sees_the_students_view_in_its_own_way(study):
    """8 x 8 grey pixels become 12 x 12 in three channels, with the teacher's mean and std."""
    import jax

    workdir, _, _, variables = study
    splits = random_splits()
    pixels = np.repeat(np.float32(splits.test.image), 3, axis=-1)
    resized = np.asarray(jax.image.resize(pixels, (26, 12, 12, 3), 'bilinear'), np.float64)
    logits = Reference(variables).resnet((resized / 255 - MEAN) / STD, blocks=1)['logits']
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    found = results_of(workdir)['big', 0]['test']
    assert found['top1'] == pytest.approx((logits.argmax(1) == splits.test.label).mean())
    nll = -log_p[np.arange(26), splits.test.label].mean()
    assert found['nll'] == pytest.approx(nll, rel=1e-4)


def test_a_start_is_what_the_other_run_ended_with(study):
    workdir, *_ = study
    old, new = final_params(workdir, 'teacher'), final_params(workdir, 'tuned')
    for name in old:
        np.testing.assert_allclose(new[name], old[name], atol=1e-6)


def test_seeds_differ(study):
    workdir, *_ = study
    one, other = (final_params(workdir, 'teacher', seed) for seed in (0, 1))
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_again_only_what_diverged_is_tried_and_nothing_else_is_written(study, capsys):
    workdir, config, sentence, _ = study
    files = [
        path
        for path in workdir.rglob('*')
        if path.is_file() and workdir in path.parents and 'wild' not in path.parts
    ]
    kept = {path: path.stat().st_mtime_ns for path in files if path.parent != workdir}
    with pytest.raises(UserError) as caught:
        train(config, workdir)
    assert str(caught.value) == sentence
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if 'first step after' in line} <= {'wild'}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
