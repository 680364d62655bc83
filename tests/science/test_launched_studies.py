"""launch/: a study in several processes, the notebook from top to bottom."""

import json
import signal
import subprocess
import sys

import flax
import nbformat
import numpy as np
import pytest
from helpers import REPOSITORY, environment, run_main
from launches import LOCAL, NOTEBOOK, local

from kd_jax.checkpoint import load_variables

TRAIN_IMAGES, BATCH = 1020, 64  # of the digits


def epochs(steps):
    return steps * BATCH / TRAIN_IMAGES


# A teacher without, and a student with BatchNorm. Rounding differs with the number of devices, and
# after some ten steps resnet8 amplifies it (as it does, on one device, a change of 1e-7 in its
# first weights): hence the student's few steps.
STUDY = (
    '--config=configs/digits.py',
    '--config.seeds=(0,)',
    '--config.tensorboard=False',
    '--only=teacher,student',
    '--config.runs.teacher.model.name=cnn',
    f'--config.runs.teacher.epochs={epochs(48)}',
    '--config.runs.teacher.optim.learning_rate=0.2',
    '--config.runs.teacher.select=last',
    '--config.runs.student.model.name=resnet8',
    '--config.runs.student.model.width=0.25',
    f'--config.runs.student.epochs={epochs(8)}',
    '--config.runs.student.optim.learning_rate=0.05',
    '--config.runs.student.select=last',
)


def trained(directory):
    """(all variables by path, result.json) of a run."""
    result = json.loads((directory / 'result.json').read_text())
    return flax.traverse_util.flatten_dict(
        load_variables(directory, result['checkpoint']), sep='/'
    ), result


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """The study on one device of one process."""
    workdir = tmp_path_factory.mktemp('one')
    done = run_main(*STUDY, f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.parametrize(
    'mode, placement',
    [
        ('auto', 'resident'),
        ('auto', 'host'),  # each process reads its share of a batch
        pytest.param('auto', 'sharded', marks=pytest.mark.long),
        pytest.param('jit', 'resident', marks=pytest.mark.long),
        pytest.param('jit', 'host', marks=pytest.mark.long),
        pytest.param('jit', 'sharded', marks=pytest.mark.long),
    ],
)
def test_two_processes_of_two_devices_train_the_same_parameters_as_one(
    alone, tmp_path, mode, placement
):
    how = f'--config.parallel={mode}', f'--config.data.placement={placement}'
    done = local(2, *STUDY, f'--workdir={tmp_path}', *how, devices=2)
    assert done.returncode == 0, done.stderr
    assert f'8 steps of 64 ({"pmap" if mode == "auto" else mode} on 4 devices)' in done.stdout
    for run, steps in (('teacher', 48), ('student', 8)):
        (one, expected), (two, result) = (trained(d / run / 'seed0') for d in (alone, tmp_path))
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_allclose(
                two[name], one[name], rtol=0, atol=1e-5, err_msg=f'{run} {name}'
            )
        assert result['steps'] == expected['steps'] == steps
        assert result['test']['top1'] == expected['test']['top1']
        assert result['test']['count'] == expected['test']['count'] == 597
    # there was something to learn
    assert trained(alone / 'teacher' / 'seed0')[1]['test']['top1'] > 0.7


@pytest.mark.long
def test_sigterm_stops_all_processes_and_the_same_command_continues(tmp_path):
    lengths = ('--config.runs.teacher.epochs=20.', '--config.runs.teacher.eval_every=1.')
    command = [*STUDY[:3], '--only=teacher', '--config.runs.teacher.model.name=cnn', *lengths]
    whole = local(2, *command, f'--workdir={tmp_path / "whole"}', devices=2)
    assert whole.returncode == 0, whole.stderr
    env = environment(PYTHON=sys.executable, KD_JAX_DEVICES='2')
    cut = [str(LOCAL), '2', *command, f'--workdir={tmp_path / "cut"}']
    with subprocess.Popen(
        cut, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY, env=env
    ) as process:
        text = ''
        for line in process.stdout:
            text += line
            if 'epoch 3.0/20.0' in line:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 143, text
    assert text.count('stopped by SIGTERM') == 2
    assert 'epoch 20.0/20.0' not in text
    again = local(2, *command, f'--workdir={tmp_path / "cut"}', devices=2)
    assert again.returncode == 0, again.stderr
    assert 'resumed at step' in again.stdout
    one, two = (trained(tmp_path / d / 'teacher' / 'seed0')[0] for d in ('whole', 'cut'))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_a_mistake_ends_all_processes_with_its_sentence_and_status_2(tmp_path):
    done = local(2, '--config=configs/digits.py', '--only=tracher', f'--workdir={tmp_path}')
    assert done.returncode == 2
    assert "error: unknown run 'tracher'; did you mean 'teacher'?" in done.stderr
    assert 'Traceback' not in done.stdout + done.stderr


@pytest.mark.long
def test_the_notebook_runs_from_top_to_bottom_and_distillation_pays(tmp_path):
    from nbclient import NotebookClient

    for name in ('kd_jax', 'configs', 'requirements.txt'):  # what it trains stays in tmp_path
        (tmp_path / name).symlink_to(REPOSITORY / name)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    names = 'result.table, result.gains, other.table, student_curve, package_curve'
    found = nbformat.v4.new_code_cell(f'import json\nprint(json.dumps([{names}]))')
    notebook.cells.append(found)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name='python3',
        resources={'metadata': {'path': str(tmp_path)}},
    )
    client.execute(env=environment())
    table, gains, other, by_hand, of_package = json.loads(found.outputs[0].text)

    top1 = {row['run']: row['top-1 %'] for row in table}
    assert list(top1) == ['teacher', 'alone', 'student']
    assert top1['student'] > top1['alone'] + 5
    assert [gain['n'] for gain in gains] == [3]
    assert [row['run'] for row in other] == ['teacher', 'student']
    assert other[1]['NLL'] != table[2]['NLL']  # another temperature
    np.testing.assert_allclose(of_package, by_hand, atol=0.03)  # of 240 images

    pictures = {
        cell.id: sum('image/png' in output.get('data', {}) for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == 'code'
    }
    assert [cell for cell, count in pictures.items() if count] == [
        *('toy', 'tau2', 'data', 'curves', 'pairs', 'look', 'reliability', 'compare')
    ]
    assert max(pictures.values()) == 1
    said = [o.data for cell in notebook.cells if cell.id == 'table' for o in cell.outputs]
    assert f'{gains[0]["top-1 points"]:+.1f} points' in said[-1]['text/markdown']
