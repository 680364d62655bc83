"""Dispatches of steps: an executor without a study, and what pads a dispatch is nonsense."""

from pathlib import Path

import jax
from helpers import random_splits
from steps import metrics_of
from studies import config_of

from kd_jax import build, executors
from kd_jax.initialization import initial_state
from kd_jax.placement import Placement

# A run in which most things depend on the step: views, an average, a schedule, dropout.
CHANGES = {
    'model.dropout': 0.1,
    'augment.crop': 1,
    'optim.name': 'sgd',
    'optim.learning_rate': 0.05,
    'optim.ema_decay': 0.9,
}


MIXED = CHANGES | {'augment.mixup': 0.5}


DEEP = {'model.name': 'resnet8'}


def run_of(**changes):
    """A run like `MIXED`; with 60 images an epoch is 3 steps of 20."""
    return config_of('none', alone=(None, MIXED | changes)).runs.alone.copy_and_resolve_references()


def executor_of(parallel, steps_per_dispatch=0, **changes):
    """Of a run like `MIXED`, with its first state."""
    run = run_of(**changes)
    spec = build.run_spec('alone', run, random_splits(), {}, parallel, steps_per_dispatch)
    executor = executors.DataParallel(spec, parallel)
    job = build.job_of(spec, 'alone', run, 0, Path())
    executor.load([job], [initial_state(job)])
    return executor


def dispatched(executor, counts):
    """The state after dispatches of `counts` steps, and the metrics of each step; what
    pads a dispatch is nonsense.
    """
    history, real = [], Placement.batches.__get__(executor.placement)
    executor.load(executor.jobs, [initial_state(job) for job in executor.jobs])

    def padded(order, step, count, teachers, busy):
        batch = real(order, step, count, teachers, busy)
        for value in batch.values():
            assert len(value) == executor.run.timing.steps_per_dispatch
            value[count:] = 59
        return batch

    executor.placement.batches = padded
    step = 0
    for count in counts:
        (metrics,) = metrics_of(executor.train(step, count))
        history += [{name: x[k] for name, x in metrics.items()} for k in range(count)]
        step += count
    (state,) = executor.states()
    return jax.device_get(state), history
