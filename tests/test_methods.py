"""The methods as wholes: every objective has an oracle, and trains the same on one device and on four."""

import jax
import numpy as np
import optax
import pytest
import test_features
import test_heads
import test_objectives
import test_relations
from helpers import random_splits
from test_step import MODES, largest_difference, run

from kd_jax.objectives import OBJECTIVES

ORACLES = [test_objectives.ORACLES, test_heads.ORACLES, test_features.ORACLES, test_relations.ORACLES]


def test_every_objective_has_one_oracle():
    names = [name for oracles in ORACLES for name in oracles]
    assert sorted(names) == sorted(OBJECTIVES)


# Large weights, so that a wrong gradient cannot hide behind that of the labels.
WEIGHTS = {
    'ab': 0.1, 'at': 100.0, 'cc': 0.02, 'crd': 0.5, 'fsp': 10.0, 'ft': 10.0, 'nst': 10.0, 'ofd': 1e-3, 'pkt': 1000.0,
    'reviewkd': 0.5, 'rkd': 0.1, 'sp': 100.0,
}  # fmt: skip
FIELDS = {'crd': {'negatives': 8, 'dim': 8}}


@pytest.mark.parametrize('mode', ['pmap on 4', pytest.param('jit on 4', marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', sorted(name for name in OBJECTIVES if not OBJECTIVES[name].needs_heads))
def test_one_device_and_four_give_the_same_after_three_steps(name, mode):
    """Parameters and state of student and objective, and every step's metrics; relations see the whole batch."""
    objective = {'cross_entropy': {'weight': 0.3}, name: {'weight': WEIGHTS.get(name, 1.0), **FIELDS.get(name, {})}}
    taught = int(OBJECTIVES[name].needs_teacher)
    splits = random_splits(unlabelled=20, size=16)
    how = {'objective': objective, 'steps': 3, 'dropout': 0.0, 'count_teachers': taught, 'tx': optax.sgd(0.01, momentum=0.9)}
    (state, history, *_), (other, other_history, *_) = (run(splits, *MODES[key], **how) for key in ('jit on 1', mode))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, state.model_state, history)))
    start, *_ = run(splits, 'jit', 1, **how | {'steps': 0})
    assert largest_difference(start.params['student'], state.params['student']) > 1e-4
    learned = jax.tree.leaves(state.params['objective'])
    assert not learned or largest_difference(start.params['objective'], state.params['objective']) > 0
    assert largest_difference(state.params, other.params) <= 2e-5
    assert relative(state.model_state, other.model_state) <= 2e-5
    assert relative(history, other_history) <= 1e-4


def relative(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return max(np.max(np.abs(np.float64(a) - np.float64(b)) / (1 + np.abs(np.float64(a)))) for a, b in pairs)
