"""Initial values drawn on the host. That every layer says how it starts is in test_models.py and,
for all models, in zoo/.
"""

import math

import flax
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models import build, initial, layers


def plan(name, **overrides):
    """From the plain forms of the layers: they are traced in half the time."""
    model = build(name, 100, fast=False, **overrides)
    image = np.zeros((2, 32, 32, 3), np.float32)
    return initial.Plan(lambda key: model.init(key, image, train=False))


def drawn(start, seed=(0,)):
    return flax.traverse_util.flatten_dict(start.draw(seed), sep='/')


def test_the_values_have_pytorchs_distributions():
    got = drawn(plan('resnet14', heads=(1,), adapter=2))
    kernel = got['params/stage3_block2/conv1/conv/kernel']
    assert kernel.std() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)  # fan-out
    assert kernel.mean() == pytest.approx(0.0, abs=float(3 * kernel.std() / math.sqrt(kernel.size)))
    # normal, not truncated
    assert (np.abs(kernel) > 2.5 * kernel.std()).mean() == pytest.approx(0.0124, abs=0.004)
    # U(-1/8, 1/8)
    for path in ('params/head/kernel', 'params/head/bias', 'params/head_stage1/dense/kernel'):
        x = got[path]
        assert 0.115 < np.abs(x).max() <= 0.125 and x.std() == pytest.approx(
            0.125 / math.sqrt(3), rel=0.12
        )
    values = {path: np.unique(x) for path, x in got.items() if '/norm/' in path or '/up/' in path}
    for path, value in values.items():
        assert value == (1.0 if path.endswith(('scale', 'var')) else 0.0), path


def test_values_depend_on_the_seed_and_the_path_alone():
    start = plan('resnet8')
    one, again, other = drawn(start), drawn(plan('resnet8')), drawn(start, (1,))
    deeper = drawn(plan('resnet14', adapter=1))
    for path, x in one.items():
        np.testing.assert_array_equal(x, again[path])
        np.testing.assert_array_equal(x, deeper[path])
        assert ('/norm/' in path) == np.array_equal(x, other[path])
    kernels = [x.ravel()[:8] for path, x in one.items() if path.endswith('kernel')]
    assert len({x.tobytes() for x in kernels}) == len(kernels)


def test_a_module_of_another_kind_is_initialised_by_itself():
    got = initial.draw(lambda key: nn.Dense(3).init(key, jnp.zeros((1, 4))), (5,))
    assert got['params']['kernel'].std() > 0.1
    conv = initial.draw(lambda key: layers.Conv(4).init(key, jnp.zeros((1, 4, 4, 3))), (5,))
    assert conv['params']['kernel'].shape == (3, 3, 3, 4)
