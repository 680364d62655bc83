"""Several steps in one dispatch, overlapped validations, precision, cores as devices: what changes
speed and nothing else.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dispatches import DEEP, dispatched, executor_of, run_of
from helpers import random_splits, save_npz
from steps import largest_difference
from studies import config_of

from kd_jax import build, parallel, study
from kd_jax.data import batches
from kd_jax.errors import UserError
from kd_jax.executors import Dispatch, selected
from kd_jax.monitor import Monitor
from kd_jax.parallel import Parallel
from kd_jax.spec import TeacherData
from kd_jax.train_log import Progress, Recorder


def test_how_steps_are_dispatched_makes_no_difference():
    parallel = Parallel('jit', 1)
    single, history = dispatched(executor_of(parallel, 1), [1, 1, 1, 1])
    assert int(single.step) == len(history) == 4
    assert len({float(metrics['loss']) for metrics in history}) == 4
    four = executor_of(parallel, 4)
    for counts in ([4], [2, 2], [3, 1]):
        state, other = dispatched(four, counts)
        assert largest_difference(state, single) <= 1e-6
        assert largest_difference(other, history) <= 1e-6


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return save_npz(tmp_path_factory.mktemp('data') / 'three.npz', random_splits())


@pytest.mark.parametrize('counts', [(1, 1, 1, 1, 1), (4, 1), (2, 3), (5,)], ids=str)
def test_the_step_at_which_a_loss_breaks_is_named_however_steps_are_dispatched(tmp_path, counts):
    """The fifth is the first; what pads a dispatch does not count."""
    monitor = Monitor(
        'alone seed 0', tmp_path, total_steps=9, steps_per_epoch=3.0, batch_size=20, active=False
    )
    run = run_of(**{'optim.learning_rate': 0.5})
    spec = build.run_spec('alone', run, random_splits(), {}, Parallel('jit', 1))
    job = build.job_of(spec, 'alone', run, 0, tmp_path)
    recorder, step = Recorder(job, Progress(), monitor, None, lambda step: 0.5, 0.0), 0
    losses = np.float32([1, 1, 1, 1, -np.inf, np.nan])
    message = 'the loss of alone seed 0 became inf at step 5'
    with pytest.raises(UserError) as caught:
        for count in counts:
            metrics = np.full(6, np.nan, np.float32)
            metrics[:count] = losses[step : step + count]
            step += count
            recorder.dispatched(Dispatch(step, count, {'loss': metrics}))
        recorder.collect()
    assert str(caught.value) == message


def logged(folder, counts, log_every):
    """The lines of the training's losses of 11 steps, with validations after 6 and 11."""
    folder.mkdir()
    sizes = {'total_steps': 11, 'steps_per_epoch': 5.5, 'batch_size': 20}
    run = run_of()
    spec = build.run_spec('alone', run, random_splits(), {}, Parallel('jit', 1))
    job = build.job_of(spec, 'alone', run, 0, folder)
    losses, step, progress = np.random.default_rng(0).random(11).astype(np.float32), 0, Progress()
    with Monitor('alone seed 0', folder, tensorboard=False, shown=False, **sizes) as monitor:
        recorder = Recorder(job, progress, monitor, None, float, 0.0, log_every)
        for count in counts:
            metrics = np.pad(losses[step : step + count], (0, 6 - count))
            step += count
            recorder.dispatched(Dispatch(step, count, {'loss': metrics}))
            if step in (6, 11):
                recorder.collect()
                recorder._log_losses(step)
    return [
        json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()
    ], losses


@pytest.mark.parametrize(
    'log_every, steps',
    [(0, [6, 11]), (1, [*range(1, 12)]), (3, [3, 6, 9, 11]), (4, [4, 6, 8, 11]), (50, [6, 11])],
)
def test_losses_are_logged_at_equal_intervals_however_steps_are_dispatched(
    tmp_path, log_every, steps
):
    lines, losses = logged(tmp_path / 'one by one', (1,) * 11, log_every)
    assert [line['step'] for line in lines] == steps
    for line, first in zip(lines, [0, *steps], strict=False):
        mean = losses[first : line['step']].astype(float).mean()
        assert line['split'] == 'train' and line['loss'] == pytest.approx(mean)
        assert line['learning_rate'] == line['step'] - 1
    for counts in ((6, 5), (4, 2, 4, 1)):
        assert logged(tmp_path / f'{counts}', counts, log_every)[0] == lines


def test_half_precision_keeps_parameters_and_logits_in_float32_and_learns_the_same():
    half = {'precision': 'bfloat16', 'augment.mixup': 0.0}
    deep = executor_of(Parallel('jit', 1), 4, **DEEP | half)
    student, dataset = deep.run.step.students['student'], deep.run.dataset
    assert student.model.dtype == jnp.bfloat16
    state, history = dispatched(executor_of(Parallel('jit', 1), 4, **half), [4])
    leaves = jax.tree.leaves((state.params, state.model_state, state.ema, deep.states()))
    assert {leaf.dtype for leaf in leaves if leaf.ndim} == {np.dtype('float32')}
    (first,) = deep.states()
    variables = {'params': first.params['student'], **first.model_state['student']}
    output = jax.eval_shape(student.predict, variables, np.float32(dataset.val.image))
    types = {name: feature.dtype for name, feature in output.features.items()}
    stages = [f'stage{i}{end}' for i in (1, 2, 3) for end in ('', '_pre')]
    assert types == dict.fromkeys(('stem', *stages), jnp.bfloat16) | {'pooled': jnp.float32}
    assert output.logits.dtype == jnp.float32
    exact = executor_of(Parallel('jit', 1), 4, **half | {'precision': 'float32'})
    _, exact = dispatched(exact, [4])
    losses, exact_losses = ([float(metrics['loss']) for metrics in h] for h in (history, exact))
    assert losses != exact_losses
    assert losses == pytest.approx(exact_losses, abs=0.05)


@pytest.mark.parametrize(
    ('precision', 'found', 'fast', 'model', 'layers'),
    [
        ('float32', {'HIGHEST'}, True, 'resnet8', 10),
        ('float32', {'HIGHEST'}, False, 'tiny', 3),
        ('tf32', {'HIGH'}, True, 'tiny', 3),
        ('bfloat16', {'HIGHEST'}, True, 'tiny', 3),
    ],
)
def test_products_have_the_precision_that_was_asked(
    tiny_model, precision, found, fast, model, layers
):
    """Every product and convolution of the compiled programs, those of gradients too: for the
    output, the parameters, and but for the first layer the input.
    """
    changes = {'model.name': model, 'precision': precision}
    executor = executor_of(Parallel('jit', 1, fast=fast), 2, **changes)
    placement, (state,) = executor.placement, executor.states()
    evaluated = {'index': np.zeros(4, np.int32), 'mask': np.ones(4, np.float32)}
    order = batches.TrainOrder(executor.run.pool, 60, 20, 0)
    step = executor.steps.lower(
        state, *executor.arguments(2), placement.batches(order, 0, 2, TeacherData({}, None))
    )
    evaluation = executor.evaluators['student'].lower(
        selected(state), placement.split('val').arrays, evaluated
    )
    for lowered, least in ((step, 3 * layers - 1), (evaluation, layers)):
        lines = re.findall(r'stablehlo\.(?:dot_general|convolution).*', lowered.as_text())
        assert len(lines) >= least
        assert {tuple(re.findall(r'\b(?:DEFAULT|HIGHEST|HIGH)\b', line)) for line in lines} == {
            2 * tuple(found)
        }


@pytest.mark.parametrize(
    ('batch_size', 'parts', 'devices'),
    [
        (64, 1, 4),
        (63, 1, 3),
        (50, 1, 2),
        (48, 1, 3),
        (47, 1, 1),
        (31, 1, 1),
        (62, 2, 1),
        (60, 2, 3),
        (64, 3, 1),
        (4, 1, 1),
    ],
)
def test_cores_share_a_batch_if_each_gets_16_examples(monkeypatch, batch_size, parts, devices):
    par = Parallel('auto')
    assert par.for_batch(batch_size, parts) is par
    monkeypatch.setattr(parallel, '_cores_are_devices', lambda: True)
    chosen = par.for_batch(batch_size, parts)
    assert (len(chosen), chosen.mode) == (devices, 'pmap' if devices > 1 else 'jit')
    assert chosen.devices == jax.devices()[:devices]
    assert len(Parallel('auto', 2).for_batch(batch_size, parts)) <= 2


def test_fewer_cores_keep_the_mode_and_the_options(monkeypatch):
    monkeypatch.setattr(parallel, '_cores_are_devices', lambda: True)
    for mode in ('jit', 'pmap'):
        for fast in (False, True):
            chosen = Parallel(mode, fast=fast).for_batch(16)
            assert (len(chosen), chosen.mode, chosen.fast) == (1, mode, fast)


def test_each_run_of_a_study_has_the_devices_that_its_batch_can_feed(data, tmp_path, monkeypatch):
    config = config_of(
        data, small=(None, {}), large=(None, {'batch_size': 32, 'optim.accumulate': 2})
    )
    monkeypatch.setattr(parallel, '_cores_are_devices', lambda: True)
    devices, run_spec = {}, build.run_spec

    def noted(name, run, dataset, teachers, parallel, *rest):
        devices[name] = len(parallel)
        return run_spec(name, run, dataset, teachers, parallel, *rest)

    monkeypatch.setattr(build, 'run_spec', noted)
    study.Study(config, tmp_path).check()
    assert devices == {'small': 1, 'large': 2}
