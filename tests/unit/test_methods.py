"""The methods as wholes: every objective has an oracle, and trains the
same on one device and on four.
"""

import jax
import numpy as np
import pytest
import test_features
import test_heads
import test_objectives
import test_relations
from helpers import random_splits
from steps import MODES, largest_difference, run_of, start, train

from kd_jax import config
from kd_jax.initialization import initial_state
from kd_jax.objectives import OBJECTIVES

ORACLES = [
    test_objectives.ORACLES,
    test_heads.ORACLES,
    test_features.ORACLES,
    test_relations.ORACLES,
]


def test_every_objective_has_one_oracle():
    names = [name for oracles in ORACLES for name in oracles]
    assert sorted(names) == sorted(OBJECTIVES)


# Large weights, so that a wrong gradient cannot hide behind that of the labels.
WEIGHTS = {
    'ab': 0.1, 'at': 100.0, 'cc': 0.02, 'crd': 0.5, 'fsp': 10.0, 'ft': 10.0,
    'nst': 10.0, 'ofd': 1e-3, 'pkt': 1000.0, 'reviewkd': 0.5, 'rkd': 0.1, 'sp': 100.0,
}  # fmt: skip
FIELDS = {'crd': {'negatives': 8, 'dim': 8}}
VIEWS = {'crop': 1, 'flip': True, 'rotate': 10.0, 'cutout': 2}


@pytest.mark.parametrize('mode', ['pmap on 4', pytest.param('jit on 4', marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    'name', sorted(name for name in OBJECTIVES if not OBJECTIVES[name].needs_heads)
)
def test_one_device_and_four_give_the_same_after_three_steps(name, mode):
    """Parameters and state of student and objective, and every step's metrics;
    relations see the whole batch.
    """
    objective = config.labels(weight=0.3)
    objective[name] = config.term(name, weight=WEIGHTS.get(name, 1.0), **FIELDS.get(name, {}))
    changes = {'optim.learning_rate': 0.01, 'optim.weight_decay': 0.0}
    if OBJECTIVES[name].needs_teacher:
        changes |= {'teachers': ('teacher',)}
    run, splits = (
        run_of(changes, objective, VIEWS, 'resnet8'),
        random_splits(unlabelled=20, size=16),
    )
    states, histories = [], []
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
    learned = jax.tree.leaves(state.params['objective'])
    assert (
        not learned or largest_difference(first.params['objective'], state.params['objective']) > 0
    )
    assert largest_difference(state.params, other.params) <= 2e-5
    assert relative(state.model_state, other.model_state) <= 2e-5
    assert relative(history, other_history) <= 1e-4


def relative(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return max(
        np.max(np.abs(np.float64(a) - np.float64(b)) / (1 + np.abs(np.float64(a))))
        for a, b in pairs
    )
