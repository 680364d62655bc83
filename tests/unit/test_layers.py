"""The shared layers against float64 numpy, and their independence of
how devices share the batch.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quickly
from model_reference import conv_reference

from kd_jax.models import layers
from kd_jax.models.common import ConvBN, Dropout


def image_of(*shape):
    return np.float32(np.random.default_rng(0).normal(size=shape))


def random_variables(layer, x):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape)), shapes)


@pytest.mark.parametrize(
    ('kernel', 'stride', 'groups', 'side'),
    [
        (3, 2, 1, 8),
        (3, 2, 1, 7),
        (3, 2, 6, 8),
        (3, 2, 2, 8),
        (1, 2, 1, 8),
        (5, 2, 1, 8),
        (3, 1, 6, 5),
        (7, 2, 1, 9),
    ],
)
def test_convolution_pads_as_pytorch(kernel, stride, groups, side):
    conv = layers.Conv(12, kernel, stride, groups)
    x = image_of(2, side, side, 6)
    variables = random_variables(conv, x)
    expected = conv_reference(x, variables['params']['kernel'], stride, groups)
    y = conv.apply(variables, x)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, atol=1e-5)
    if (kernel, stride, side) == (3, 2, 8):  # the case where TensorFlow's SAME differs
        weights, order = variables['params']['kernel'], ('NHWC', 'HWIO', 'NHWC')
        convolve = partial(
            jax.lax.conv_general_dilated, dimension_numbers=order, feature_group_count=groups
        )
        same = convolve(x, weights, (2, 2), 'SAME')
        assert np.abs(same - expected).max() > 0.1


def test_explicit_padding_and_bias_of_a_convolution():
    conv = layers.Conv(4, kernel=3, padding=0, use_bias=True)
    x = image_of(2, 6, 6, 3)
    variables = random_variables(conv, x)
    expected = (
        conv_reference(x, variables['params']['kernel'])[:, 1:-1, 1:-1]
        + variables['params']['bias']
    )
    np.testing.assert_allclose(conv.apply(variables, x), expected, atol=1e-5)


def test_batch_norm_normalises_and_averages_as_pytorch_says():
    norm = layers.BatchNorm()
    x = 3 * image_of(4, 5, 5, 2) + 1
    variables = {
        'params': {'scale': np.float32([1.5, 0.5]), 'bias': np.float32([0.1, -0.2])},
        'batch_stats': {'mean': np.float32([1.0, 2.0]), 'var': np.float32([4.0, 9.0])},
    }
    y, new = norm.apply(variables, x, train=True, mutable=['batch_stats'])
    mean, var = np.float64(x).mean(axis=(0, 1, 2)), np.float64(x).var(axis=(0, 1, 2))
    np.testing.assert_allclose(
        y, (x - mean) / np.sqrt(var + 1e-5) * [1.5, 0.5] + [0.1, -0.2], atol=1e-5
    )
    np.testing.assert_allclose(
        new['batch_stats']['mean'], 0.9 * np.array([1.0, 2.0]) + 0.1 * mean, rtol=1e-5
    )
    np.testing.assert_allclose(
        new['batch_stats']['var'], 0.9 * np.array([4.0, 9.0]) + 0.1 * var, rtol=1e-5
    )
    tiny = {
        'params': variables['params'],
        'batch_stats': {'mean': np.float32([0, 0]), 'var': np.float32([0, 0])},
    }
    y = norm.apply(tiny, np.ones((1, 1, 1, 2), np.float32), train=False)
    np.testing.assert_allclose(
        y[0, 0, 0], np.array([1.5, 0.5]) / math.sqrt(1e-5) + [0.1, -0.2], rtol=1e-6
    )


def test_initial_values_are_torchvisions():
    x = jnp.zeros((1, 2, 2, 32))
    modules = {
        'conv': layers.Conv(256),
        'depthwise': layers.Conv(4096, groups=32),
        'unit': partial(ConvBN(8).init, train=False),
        'bias': layers.Conv(8, use_bias=True),
    }

    def start(key):
        found = {name: getattr(module, 'init', module)(key, x) for name, module in modules.items()}
        return found | {'dense': layers.Dense(4000).init(key, jnp.zeros((1, 64)))}

    found = jax.device_get(quickly(start)(jax.random.key(0)))
    kernel = found['conv']['params']['kernel']
    # fan-out, not fan-in
    assert kernel.std() == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.02)
    beyond = np.abs(kernel) > 2.5 * kernel.std()
    assert beyond.mean() == pytest.approx(0.0124, abs=0.003)  # normal, not truncated
    depthwise = found['depthwise']['params']['kernel']
    assert depthwise.std() == pytest.approx(math.sqrt(2 / (9 * 4096)), rel=0.02)
    unit = found['unit']
    np.testing.assert_array_equal(unit['params']['norm']['scale'], np.ones(8))
    np.testing.assert_array_equal(unit['params']['norm']['bias'], np.zeros(8))
    np.testing.assert_array_equal(unit['batch_stats']['norm']['mean'], np.zeros(8))
    np.testing.assert_array_equal(unit['batch_stats']['norm']['var'], np.ones(8))
    np.testing.assert_array_equal(found['bias']['params']['bias'], np.zeros(8))
    for value in found['dense']['params'].values():  # U(-1/8, 1/8)
        assert 0.124 < np.abs(value).max() <= 0.125
        assert value.std() == pytest.approx(0.125 / math.sqrt(3), rel=0.03)
        assert value.mean() == pytest.approx(0.0, abs=0.004)


def test_the_dropout_mask_does_not_depend_on_the_number_of_devices():
    x, key = np.ones((16, 50), np.float32), jax.random.key(3)

    def drop(axis_name, x):
        return Dropout(0.4, axis_name).apply({}, x, train=True, rngs={'dropout': key})

    one = jax.jit(partial(drop, None))(x)
    four = jax.pmap(partial(drop, 'batch'), axis_name='batch')(x.reshape(4, 4, 50))
    np.testing.assert_array_equal(np.asarray(four).reshape(16, 50), one)
    np.testing.assert_array_equal(np.unique(one), [0.0, np.float32(1 / 0.6)])
    assert (np.asarray(one) == 0).mean() == pytest.approx(0.4, abs=0.06)
    assert len(np.unique(one, axis=0)) == 16  # every example has a mask of its own
    np.testing.assert_array_equal(Dropout(0.4).apply({}, x, train=False), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, train=True), x)
