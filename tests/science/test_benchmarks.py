"""The benchmarks' arithmetic, and that each command runs and writes what it says."""

import json
import subprocess
import sys

import pytest
from helpers import REPOSITORY

from benchmarks import check, race, step
from kd_jax import runtime


def lap(*seconds):
    return race.Lap({}, list(seconds), 0.0)


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    middle, low, high = race.ratio(lap(2.0, 4.0, 3.0), lap(1.0, 4.0, 1.0))
    assert middle == 2.0  # of 2, 1, 3; the ratio of the medians would be 3
    assert low <= middle <= high
    assert race.ratio(lap(3.0), lap(2.0)) == (1.5, 1.5, 1.5)


def test_a_table_is_markdown_that_can_be_read_as_it_is():
    assert race.table([('', 'ms'), ('eager', '1.5')]).splitlines() == [
        '|       | ms  |',
        '|-------|-----|',
        '| eager | 1.5 |',
    ]


def test_the_stored_ratios_are_of_the_races_that_are_checked():
    stored = json.loads(check.STORED.read_text())
    assert set(stored['ratios']) == set(check.RACES)
    assert all(0.1 < value < 100 for value in stored['ratios'].values())


def test_the_images_are_the_same_for_every_contender():
    spec = {'size': 8, 'classes': 5, 'batch': 4}
    (images, labels), (again, _) = step.data(spec), step.data(spec)
    assert (
        (images == again).all() and images.shape[1:] == (8, 8, 3) and set(labels) == set(range(5))
    )


def test_the_peers_get_the_allocator_setting_that_kd_jax_gives_itself():
    assert list(step.ALLOCATOR.values()) == [str(value) for value in runtime._KEEP_MEMORY.values()]


def command(*arguments):
    done = subprocess.run(
        [sys.executable, '-m', *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_steps_side_by_side(tmp_path):
    """A tiny network in two forms; FLOPs of its two convolutions and dense
    layers, forward and backward.
    """
    out = command(
        'benchmarks.step', '--pair=cnn,cnn', '--teacher=none', '--peers=',
        '--ours=kd_jax,plain_flax', '--size=8', '--batch=32', '--classes=10',
        '--rounds=2', '--steps=2', f'--json={tmp_path / "f.json"}',
    )  # fmt: skip
    assert 'student alone cnn, batch 32, 8 px' in out and '| plain_flax |' in out
    figures = json.loads((tmp_path / 'f.json').read_text())
    forward = 32 * 2 * (8 * 8 * 9 * 3 * 32 + 4 * 4 * 9 * 32 * 64 + 256 * 128 + 1280)
    assert 2 * forward < figures['flops'] < 3.5 * forward
    for contender in figures['contenders'].values():
        assert len(contender['seconds']) == 2 and contender['peak_mb'] > 100
    assert figures['contenders']['kd_jax']['ratio'][0] == 1.0


def turns(module, spec):
    """The facts of a contender, and the seconds of two of its turns."""
    contender = race.Contender(module, spec, {'KD_JAX_CACHE': 'off'})
    facts = contender.ready()
    seconds = [contender.run(2), contender.run(3)]
    assert contender.stop() > 100
    return facts, seconds


@pytest.mark.parametrize('kind', ['extraction', 'live', '5 stored'])
def test_students_of_one_teacher(kind):
    """One with its teacher, and a sweep of more students than there
    are devices, with kept targets.
    """
    spec = {
        'teacher': 'cnn',
        'student': 'cnn',
        'batch': 64,
        'size': 8,
        'classes': 10,
        'precision': 'float32',
        'steps': 0,
    }
    facts, seconds = turns('students', spec | {'kind': kind})
    assert all(0 < taken < 60 for taken in seconds) and 0 < facts['first_s'] < facts['start_s']
    if kind != 'extraction':
        assert facts['devices'] == 4 and facts['steps_per_dispatch'] == 4


def test_pipelines_make_the_same_images():
    """On average: those that are drawn differ."""
    spec = {'images': 512, 'size': 16, 'batch': 64}
    means = [turns('input', spec | {'kind': kind})[0]['mean'] for kind in ('numpy', 'kd_jax')]
    assert means[0] == pytest.approx(means[1], abs=0.02) and means[0] < 0


@pytest.mark.parametrize(
    ('flags', 'sentence'),
    [
        (
            ('benchmarks.step', '--peers=lightning'),
            "unknown contender 'lightning'; known: eager, channels_last",
        ),
        (
            ('benchmarks.students', '--populations=4,8'),
            '--populations is called --sweeps now; write --sweeps=4,8\n',
        ),
    ],
)
def test_what_is_unknown_or_renamed_is_refused(flags, sentence):
    done = subprocess.run(
        [sys.executable, '-m', *flags], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode != 0 and done.stderr.startswith(sentence)


@pytest.mark.long
@pytest.mark.usefixtures('optimised')
def test_the_regression_check_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'benchmarks.check', '--rounds=2', f'--json={tmp_path / "f.json"}'],
        capture_output=True, text=True, cwd=REPOSITORY, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr  # 1: slower, which a busy machine can be
    assert (
        json.loads((tmp_path / 'f.json').read_text())['ratios']['resnet56 alone against plain Flax']
        > 0.5
    )


def test_a_table_of_methods_takes_the_results_of_all_of_them_only(tmp_path):
    """Refused before anything is measured."""
    (tmp_path / 'results.json').write_text(
        json.dumps({'results': [], 'table': [{'run': 'alone'}], 'gains': []})
    )
    for flags, sentence in (
        ([f'--results={tmp_path}/nothing.json'], 'nothing.json does not exist'),
        (
            [f'--results={tmp_path}/results.json'],
            'is of another study: it has no runs ab, ab_before, assistant',
        ),
        (['--only=dkk'], "unknown run 'dkk'; did you mean 'dkd'?"),
        (['--arguments=method=dkd'], "unknown run 'kl'"),
    ):
        done = subprocess.run(
            [sys.executable, '-m', 'benchmarks.methods', *flags],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            check=False,
        )
        assert done.returncode == 2 and sentence in done.stderr and 'ready' not in done.stdout, (
            done.stderr
        )


def test_steps_of_methods(tmp_path):
    """Two runs of one method beside plain distillation, whose own cost is 1."""
    few = ('--count=512', '--rounds=2', '--steps=1', f'--json={tmp_path / "f.json"}')
    out = command('benchmarks.methods', '--only=fsp,fsp_before', *few)
    lines = [
        [cell.strip() for cell in line.split('|')[1:-1]]
        for line in out.splitlines()
        if line.startswith('|')
    ]
    assert [line[0] for line in lines[2:]] == ['`kl`', '`fsp_before`', '`fsp`']
    assert lines[2][2] == '0.1 CE + 0.9 kl' and lines[2][6:] == ['1.00', '1.00 – 1.00']
    seconds = json.loads((tmp_path / 'f.json').read_text())['seconds']
    assert {name: len(taken) for name, taken in seconds.items()} == {
        'kl': 2,
        'fsp': 2,
        'fsp_before': 2,
    }
    assert all(0 < value < 60 for taken in seconds.values() for value in taken)
