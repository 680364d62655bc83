"""The table of a study."""

import math

import jax
import numpy as np
import pytest

from kd_jax import metrics, report


def test_every_metric_but_two_has_a_column():
    batch = {'label': np.zeros(1, np.int32), 'mask': np.ones(1, np.float32)}
    sums = jax.eval_shape(metrics.sums, np.zeros((1, 3), np.float32), batch)
    found = metrics.finalize(jax.tree.map(lambda x: np.zeros(x.shape), sums))
    columns = {path[1] for _, path, _, _ in report.COLUMNS if path[0] == 'test'}
    assert columns == set(found) - {'top5', 'count'}


def test_mean_and_spread_are_the_samples():
    assert report.mean_std([1.0, 2.0, 4.0]) == {
        'mean': pytest.approx(7 / 3),
        'std': pytest.approx(math.sqrt(7 / 3)),
        'n': 3,
    }
    assert report.mean_std([5.0])['std'] is None


def test_gains_are_paired_by_seed_and_only_against_the_same_model():
    def result(run, seed, top1):
        return {'run': run, 'seed': seed, 'test': {'top1': top1}}

    def run(model, teachers=(), init=''):
        return {
            'teachers': teachers,
            'init': init,
            'model': {'name': model, 'width': 1},
            'seeds': (0, 1),
        }

    runs = {
        'alone': run('cnn'),
        'teacher': run('resnet8'),
        'student': run('cnn', ('teacher',)),
        'first': run('cnn', ('teacher',)),
    }
    results = [
        result('alone', 0, 0.5),
        result('alone', 1, 0.7),
        result('student', 0, 0.6),
        result('student', 1, 0.9),
    ]
    results += [result('first', 0, 0.1), result('second', 0, 0.8), result('second', 1, 0.9)]
    (gain, other) = report.gains(results, runs | {'second': run('cnn', init='first')})
    # and what it started from is not compared
    assert (other['run'], other['against']) == ('second', 'alone')
    assert other['top-1 points']['mean'] == pytest.approx(25.0)
    assert (gain['run'], gain['against']) == ('student', 'alone')
    assert gain['top-1 points']['mean'] == pytest.approx(15.0)
    assert gain['top-1 points']['std'] == pytest.approx(math.sqrt(50))
    assert (
        report.gain_line(gain)
        == 'student against alone: +15.00 ± 7.07 points of test top-1 (n = 2, paired by seed)'
    )


def test_a_wide_table_is_shown_in_pieces(capsys):
    split = {'top1': 0.5, 'top5': None, 'f1_macro': 0.5, 'nll': 1.0, 'ece': 0.1, 'count': 10}
    names = [f'student-kl.tau={k}-learning_rate=0.05' for k in range(9)]
    shared = {
        'model': 'cnn',
        'params': 5,
        'flops': 1e6,
        'latency_ms': 1.0,
        'images_per_second': 9.0,
        'seconds': 1.0,
    }
    results = [
        {'run': name, 'seed': 0, 'test': split, 'val': split, 'teacher': None, **shared}
        for name in names
    ]
    report.show(report.aggregate(results), [])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 150
    heads = [line.split() for line in lines if line.startswith('run ')]
    assert len(heads) == 3 and [name for head in heads for name in head[1:]] == names
