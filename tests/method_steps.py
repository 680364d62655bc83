"""A few steps with a method's loss: on one device and on four."""

import jax
import numpy as np
from helpers import random_splits
from steps import MODES, largest_difference, run_of, start, train

from kd_jax import config
from kd_jax.initialization import initial_state
from kd_jax.objectives import OBJECTIVES

NAMES = sorted(name for name in OBJECTIVES if not OBJECTIVES[name].needs_heads)
# Large weights, so that a wrong gradient cannot hide behind that of the labels.
WEIGHTS = {
    'ab': 0.1, 'at': 100.0, 'cc': 0.02, 'crd': 0.5, 'fsp': 10.0, 'ft': 10.0,
    'nst': 10.0, 'ofd': 1e-3, 'pkt': 1000.0, 'reviewkd': 0.5, 'rkd': 0.1, 'sp': 100.0,
}  # fmt: skip
FIELDS = {'crd': {'negatives': 8, 'dim': 8}}
VIEWS = {'crop': 1, 'flip': True, 'rotate': 10.0, 'cutout': 2}


def one_and_four_agree(names, mode, model='resnet8'):
    """Parameters and state of student and objective, and every step's metrics;
    relations see the whole batch.
    """
    objective = config.labels(weight=0.3)
    for name in names:
        objective[name] = config.term(name, weight=WEIGHTS.get(name, 1.0), **FIELDS.get(name, {}))
    changes = {'optim.learning_rate': 0.01, 'optim.weight_decay': 0.0}
    if any(OBJECTIVES[name].needs_teacher for name in names):
        changes |= {'teachers': ('teacher',)}
    run = run_of(changes, objective, VIEWS, model)
    splits, states, histories = random_splits(unlabelled=20, size=16), [], []
    for key in ('jit on 1', mode):
        executor, (job,) = start(run, splits, *MODES[key], steps=1)
        histories += train(executor, (1, 1, 1))
        states += jax.device_get(executor.states())
    (state, other), (history, other_history) = states, histories
    first = initial_state(job)
    assert all(
        np.isfinite(x).all() for x in jax.tree.leaves((state.params, state.model_state, history))
    )
    assert largest_difference(first.params['student'], state.params['student']) > 1e-4
    assert set(names) <= set(history)
    for name, own in state.params['objective'].items():
        assert largest_difference(first.params['objective'][name], own) > 0
    assert largest_difference(state.params, other.params) <= 2e-5
    assert relative(state.model_state, other.model_state) <= 2e-5
    assert relative(history, other_history) <= 1e-4


def relative(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return max(
        (
            np.max(np.abs(np.float64(a) - np.float64(b)) / (1 + np.abs(np.float64(a))))
            for a, b in pairs
        ),
        default=0.0,
    )
