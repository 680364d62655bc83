"""report.html of workdirs: what is predicted, what is kept, what is said where it cannot be."""

import shutil

import pytest
from helpers import TESTS, random_splits, save_npz
from studies import config_of, train

from configs import common
from kd_jax import report
from kd_jax.page import predictions, runs


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp('study')
    config = config_of(
        save_npz(folder / 'data.npz', random_splits()),
        teacher=(None, {'epochs': 1.0}),
        student=(common.distillation(), {'teachers': ('teacher',), 'epochs': 1.0}),
    )
    train(config, folder / 'w')
    return folder


def test_the_test_images_are_predicted_once(study, capsys):
    page = study / 'w/report.html'
    assert 'not predicted one by one' in page.read_text()  # as the study wrote it
    assert report.write_page(study / 'w', 12)
    assert capsys.readouterr().out.count('predicting') == 2
    first = page.read_text()
    assert first.count('<figure class="card">') == 12
    assert report.write_page(study / 'w', 12)
    assert 'predicting' not in capsys.readouterr().out and page.read_text() == first
    for seed in runs.found(study / 'w'):
        of = predictions.kept(seed)
        right = (of['classes'][:, 0] == of['label']).mean()
        assert right == pytest.approx(seed.result['test']['top1'])
    assert 'python' in runs.command(study / 'w')['command']
    assert all(seed.result['devices'] > 0 for seed in runs.found(study / 'w'))


def test_without_the_data_everything_else_stands(study, tmp_path):
    workdir = shutil.copytree(study / 'w', tmp_path / 'w')
    for path in workdir.rglob(predictions.FILE):
        path.unlink()
    (study / 'data.npz').rename(study / 'away')
    try:
        assert report.write_page(workdir, 12)
    finally:
        (study / 'away').rename(study / 'data.npz')
    written = (workdir / 'report.html').read_text()
    assert written.count('Not predicted: ') == 2 and 'data.npz' in written
    assert 'curve-val-0' in written


def test_without_the_weights_everything_else_stands(study, tmp_path):
    workdir = shutil.copytree(study / 'w', tmp_path / 'w')
    (workdir / 'student/seed0' / predictions.FILE).unlink(missing_ok=True)
    shutil.rmtree(workdir / 'student/seed0/checkpoints')
    assert report.write_page(workdir, 12)
    written = (workdir / 'report.html').read_text()
    assert 'Not predicted: student seed 0: ' in written and 'chart-reliability' in written


def test_a_workdir_of_an_earlier_version(tmp_path):
    shutil.unpack_archive(TESTS / 'golden' / 'version_0_1.zip', tmp_path)
    assert report.write_page(tmp_path / 'finished', 12)
    written = (tmp_path / 'finished/report.html').read_text()
    assert 'was not recorded' in written and 'not recorded</td>' in written
    assert written.count('<figure class="card">') == 12
    assert not report.write_page(tmp_path / 'unfinished', 12)
