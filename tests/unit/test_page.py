"""What goes into report.html; no browser."""

import json
import os
import re

import jax
import numpy as np
import pytest
from etils import epath

from kd_jax import metrics, page, report
from kd_jax.data import ArraySource
from kd_jax.page import charts, document, figures, predictions, runs
from kd_jax.page.charts import Figure
from kd_jax.page.runs import Seed
from kd_jax.workdir import RunDirectory, log_checksum, write_json

INTRUDER = '</script><img src=x onerror="alert(1)">'
DATA = {'num_classes': 3, 'image_shape': [2, 2, 1], 'mean': [0.5], 'std': [0.5]}


def config(**fields):
    return {'model': {'name': 'cnn'}, 'data': {'source': 'digits'}, 'objective': {}} | fields


def line(epoch, split, **scalars):
    return {'step': int(10 * epoch), 'epoch': epoch, 'split': split, **scalars}


def seed_of(run='alone', seed=0, lines=(), top1=None, classes=(), **fields):
    """One that was read from its directory."""
    recorded = {'data': DATA | {'class_names': list(classes)}, 'config': config(**fields)}
    of = {'teachers': (), 'init': '', 'epochs': 5.0, 'batch_size': 8} | recorded['config']
    split = None if top1 is None else {'top1': top1}
    result = split and {'val': split, 'test': split, 'params': 10, 'seconds': 1.0}
    return Seed(run, seed, RunDirectory('nowhere'), recorded, of, result, list(lines))


def write_run(workdir, run, seed=0, lines=(), result=True, **fields):
    directory = RunDirectory(workdir / run / f'seed{seed}')
    recorded = {'run': run, 'seed': seed, 'data': DATA, 'config': config(**fields)}
    directory.start(recorded)
    (directory.path / 'metrics.jsonl').write_text(''.join(json.dumps(x) + '\n' for x in lines))
    if result:
        numbers = {'val': {'top1': 0.5}, 'test': {'top1': 0.5}, 'log': log_checksum(lines)}
        directory.finish({'run': run, 'seed': seed, 'model': 'cnn', 'checkpoint': 1} | numbers)
    return directory


def predicted_of(share, label, teacher=None):
    share, picture = np.asarray(share, np.float32), np.zeros((len(share), 2, 2, 1), np.uint8)
    return {
        'key': np.array(''),
        'label': np.asarray(label, np.int32),
        **predictions._largest(share),
        **predictions._pictures(share, teacher, ArraySource(picture, np.zeros(len(share)))),
    }


def some_predictions(count=200, classes=4, seed=0):
    generator = np.random.default_rng(seed)
    share = generator.dirichlet(np.ones(classes), count).astype(np.float32)
    return share, generator.integers(0, classes, count)


def test_a_curve_is_the_mean_of_the_seeds_with_their_spread():
    lines = [[line(1.0, 'val', top1=top1), line(1.0, 'train', loss=9.0)] for top1 in (0.5, 0.7)]
    (point,) = figures.curve([seed_of(lines=of) for of in lines], 'val', 'top1', 100.0)
    assert point['epoch'] == 1.0 and point['n'] == 2 and point['mean'] == 60.0
    assert point['high'] - point['mean'] == pytest.approx(np.std([50, 70], ddof=1), abs=0.01)


def test_a_single_validation_is_a_point_that_can_be_seen():
    seeds = [seed_of(lines=[line(3.0, 'train', loss=1.0, kl=2.0), line(3.0, 'val', top1=0.5)])]
    of = {figure.title: figure for figure in figures.learning_curves(seeds)}
    assert list(of) == ['Validation top-1', 'Training loss', 'Training kl']
    assert of['Validation top-1'].columns['mean'] == [50.0]
    assert of['Validation top-1'].chart['layer'][-1]['mark']['opacity'] == 1


def test_a_long_curve_is_thinned_out_and_keeps_its_ends():
    lines = [line(float(k), 'train', loss=float(k)) for k in range(5000)]
    points = figures.curve([seed_of(lines=lines)], 'train', 'loss', 1.0)
    assert len(points) == figures.MOST_POINTS
    assert (points[0]['epoch'], points[-1]['epoch']) == (0.0, 4999.0)


def test_what_is_no_number_is_left_out():
    lines = [line(1.0, 'val', top1=float('nan')), line(2.0, 'val', top1=True, nll=None)]
    assert figures.learning_curves([seed_of(lines=lines)]) == []


def test_pairs_are_of_the_same_seed():
    seeds = [seed_of('alone', 0, top1=0.5), seed_of('alone', 1, top1=0.6)]
    seeds += [seed_of('student', 1, top1=0.9), seed_of('student', 2, top1=0.9)]
    paired, _ = figures.paired(seeds, [{'run': 'student', 'against': 'alone'}])
    assert paired.columns['seed'] == [1] and paired.columns['gain'] == [30.0]
    assert figures.paired(seeds, []) == []


def test_a_measure_that_no_run_has_is_named():
    of, missing = figures.costs([seed_of(top1=0.5)])
    assert [figure.name for figure in of] == ['cost-params']
    assert len(missing) == 3 and any('latency' in name for name in missing)


def test_the_reliability_diagram_has_the_bins_of_the_calibration_error():
    share, label = some_predictions()
    diagram, histogram = figures.reliability({'a': (seed_of(), predicted_of(share, label))})
    batch = {'label': label, 'mask': np.ones(len(label), np.float32)}
    sums = jax.device_get(metrics.sums(np.log(share), batch))
    ece = metrics.finalize(metrics.add(None, sums))['ece']
    of = {name: np.array(values) for name, values in diagram.columns.items() if name != 'run'}
    mine = (of['images'] * np.abs(of['accuracy'] - of['confidence'])).sum() / len(label)
    assert mine == pytest.approx(ece, abs=1e-3)
    assert sum(histogram.columns['images']) == len(label)


def test_the_confusion_matrix_counts_every_image_once():
    share, label = some_predictions(classes=3)
    named = seed_of(classes=('a', 'b', INTRUDER))
    (figure,) = figures.confusion({'x': (named, predicted_of(share, label))})
    assert sum(figure.columns['images']) == len(label)
    right = zip(*(figure.columns[k] for k in ('label', 'predicted', 'images')), strict=True)
    assert sum(n for a, b, n in right if a == b) == (share.argmax(1) == label).sum()
    assert set(figure.columns['label']) == {'a', 'b', INTRUDER}


def test_of_many_classes_those_that_are_mistaken_most_are_shown():
    share, label = np.eye(50, dtype=np.float32).repeat(2, 0), np.arange(50).repeat(2)
    label[-2:] = 0  # the last class is taken for the first
    (figure,) = figures.confusion({'x': (seed_of(), predicted_of(share, label))})
    assert len(figure.columns['run']) == figures.MOST_CLASSES**2 and '20 of 50' in figure.title
    assert {'0', '49'} <= set(figure.columns['label'])


def test_pictures_are_of_the_images_that_differ_most():
    share, label = some_predictions(30)
    teacher = share.copy()
    teacher[17] = np.roll(np.eye(4)[share[17].argmax()], 1)
    of = predicted_of(share, label, teacher)
    assert of['picked'][0] == 17 and of['distance'][0] > 0.25 and not of['distance'][1:].any()
    assert len(predicted_of(share, label)['picked']) == 0


def test_a_sweep_is_shown_by_the_fields_that_vary():
    seeds = [
        seed_of(f'student-kl.tau={tau}', s, top1=0.5, objective={'kl': {'tau': tau}})
        for tau in (1.0, 2.0)
        for s in (0, 1)
    ]
    study = {'runs': {'student': {'sweep': 'objective.kl.tau=1,2'}, 'alone': {'sweep': ''}}}
    (figure,) = figures.sweeps(seeds, study)
    assert figure.title == 'student: validation top-1 by objective.kl.tau'
    assert figure.columns['value'] == [1.0, 1.0, 2.0, 2.0]
    assert figures.sweeps(seeds, None) == []


def test_of_many_runs_some_are_shown_first():
    seeds = [seed_of('teacher', top1=0.9), seed_of('alone', top1=0.1)]
    seeds += [seed_of(f's{k}', top1=k / 200, teachers=('teacher',)) for k in range(130)]
    assert runs.shown(seeds) == ['teacher', 'alone', *(f's{k}' for k in range(124, 130))]
    assert runs.shown(seeds[:5]) == [seed.run for seed in seeds[:5]]


@pytest.mark.parametrize(
    'objective, words',
    [
        ({}, '–'),
        ({'cross_entropy': {'weight': 1.0, 'only_where': 'always'}}, 'cross_entropy'),
        (
            {'cross_entropy': {'weight': 0.1}, 'late': {'loss': 'kl', 'weight': 0.9, 'tau': 4.0}},
            '0.1 cross_entropy + 0.9 kl(tau=4)',
        ),
    ],
)
def test_an_objective_in_words(objective, words):
    assert page.objective_of({'objective': objective}) == words


def test_what_is_data_cannot_end_its_element():
    share, label = some_predictions(30, 3)
    of = predicted_of(share, label, np.roll(share, 1, axis=1))
    named = seed_of(classes=(INTRUDER, 'b', 'c'))
    figure = Figure('confusion', INTRUDER, charts.confusion(angle=0), {'run': [INTRUDER]})
    parts = [
        document.pictures(named, of),
        document.cards([figure]),
        document.runs_table(['run', 'model'], [[INTRUDER, INTRUDER]]),
        document.table([INTRUDER], [[INTRUDER]]),
        document.code(INTRUDER) + document.paragraph(INTRUDER) + document.chooser([INTRUDER]),
        document.tiles([(INTRUDER, INTRUDER)]) + document.details(INTRUDER, ''),
    ]
    sections = [document.Section('x', INTRUDER, ''.join(parts))]
    written = document.document(INTRUDER, '', sections, {'x': INTRUDER}, finished=True)
    assert INTRUDER not in written and '<img src=x' not in written
    assert written.count('</script>') == 5
    held = re.search(r'id="data">(.*?)</script>', written, re.DOTALL)[1]
    assert json.loads(held) == {'x': INTRUDER}


def test_the_page_fetches_nothing_and_looks_again_while_it_is_not_finished():
    written = document.document('x', '', [document.Section('x', 'x', '')], {}, finished=True)
    assert not re.search(r'(src|href)=["\']?(https?:)?//', written)
    assert '@import' not in written and 'sourceMappingURL' not in written
    assert 'http-equiv="refresh"' not in written and "default-src 'none'" in written
    again = document.document('x', '', [document.Section('x', 'x', '')], {}, finished=False)
    assert 'http-equiv="refresh"' in again


def test_halves_of_characters_can_be_written():
    section = document.Section('x', '\ud800', '')
    assert '<h2>?</h2>' in document.document('x', '', [section], {'x': '\ud800'}, finished=True)


def test_what_charts_leave_open_is_filled_in():
    of = [charts.curves('x', '%', points=True), charts.paired(), charts.differences()]
    of += [charts.cost('x', '~s', named=True), charts.reliability(), charts.confidence()]
    of += [charts.confusion(angle=0), charts.swept('x')]
    left = set(re.findall(r'"(\$\w+)"', json.dumps(of)))
    script = document.asset('page.js')
    assert left and all(f'{name}:' in script for name in left)
    assert 'vega' in document.asset('vega/LICENSES.txt')


def test_a_study_is_finished_when_its_results_came_after_its_config(tmp_path):
    write_run(tmp_path, 'a')
    write_json(tmp_path / 'study.json', {})
    assert not runs.is_finished(tmp_path, runs.found(tmp_path))
    write_json(tmp_path / 'results.json', {})
    assert runs.is_finished(tmp_path, runs.found(tmp_path))
    write_run(tmp_path, 'b', result=False)
    later = (tmp_path / 'results.json').stat().st_mtime + 10
    os.utime(tmp_path / 'study.json', (later, later))
    assert not runs.is_finished(tmp_path, runs.found(tmp_path))


def test_a_study_that_trains_is_shown_as_far_as_it_is(tmp_path):
    write_run(tmp_path, 'teacher', lines=[line(1.0, 'val', top1=0.5)])
    write_run(tmp_path, 'student', lines=[line(2.0, 'val', top1=0.25)], result=False)
    assert not report.write_page(tmp_path, 5)
    written = (tmp_path / 'report.html').read_text()
    assert 'not finished' in written and '25.00' in written and 'was not recorded' in written


def test_the_table_alone_is_a_page(tmp_path):
    """Such as of a workdir from which the runs were deleted."""
    result = {'run': 'a', 'seed': 0, 'model': 'cnn', 'checkpoint': 1, 'test': {'top1': 0.5}}
    table = report.page_table(report.aggregate([result]), [])
    path = page.write(tmp_path, table, [], finished=True)
    assert '50.00' in path.read_text() and 'no log of a run' in path.read_text()


def test_132_runs_make_a_page_of_some_megabytes(tmp_path):
    lines = [line(k, split, loss=1 / k, kl=1.0, top1=0.5) for k in range(1, 61) for split in 'tv']
    lines = [of | {'split': {'t': 'train', 'v': 'val'}[of['split']]} for of in lines]
    seeds = [seed_of(f'student-{k}', s, lines, 0.5) for k in range(132) for s in range(3)]
    table = page.Table(['run', 'model'], [[f'student-{k}', 'cnn'] for k in range(132)], [])
    path = page.write(tmp_path, table, seeds, finished=True)
    assert path.stat().length < 4e6 and 'id="filter"' in path.read_text()


def test_predictions_that_are_damaged_or_of_another_training_are_not_used(tmp_path):
    directory = write_run(tmp_path, 'a')
    (seed,) = runs.found(tmp_path)
    path = epath.Path(directory.path / predictions.FILE)
    share, label = some_predictions(20, 3)
    of = predicted_of(share, label) | {'key': np.array(predictions.key_of(directory))}
    with path.open('wb') as file:
        np.savez(file, **of)
    assert len(predictions.kept(seed)['label']) == 20
    whole = path.read_bytes()
    for damage in (whole[:100], b'', b'text', whole[:-30]):
        path.write_bytes(damage)
        assert predictions.kept(seed) is None
    wrong = ('share', of['share'][:3]), ('classes', of['classes'] + 1), ('label', np.array('x'))
    for name, value in wrong:
        with path.open('wb') as file:
            np.savez(file, **of | {name: value})
        assert predictions.kept(seed) is None
    path.write_bytes(whole)
    directory.finish(directory.result() | {'seconds': 5.0})
    assert predictions.kept(seed) is None


def test_an_imported_teacher_has_its_row_and_is_not_one_that_others_are_compared_with(tmp_path):
    directory = write_run(tmp_path, 'resnet')
    recorded = {'run': 'resnet', 'seed': 0, 'data': DATA}
    write_json(directory.path / 'config.json', recorded | {'config': {'model': {'name': 'cnn'}}})
    write_run(tmp_path, 'student', teachers=['resnet'])
    seeds = runs.found(tmp_path)
    assert [seed.run for seed in seeds] == ['resnet', 'student'] and seeds[0].imported
    assert report.gains([seed.result for seed in seeds], runs.configs(seeds)) == []
    table = report.page_table(report.aggregate([seed.result for seed in seeds]), [])
    assert 'imported' in page.write(tmp_path, table, seeds, finished=True).read_text()
