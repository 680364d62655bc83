"""BatchNorm's fast form: values, statistics and gradients are those of the
plain form and of float64 numpy.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models import layers, normalization

EPSILON = 1e-5
FORMS = {'plain': normalization.plain, 'fast': normalization.fast}
NAMES = ('y', 'mean', 'var', 'dx', 'dscale', 'dbias')


def case(shape=(8, 5, 6, 7), mean=0.5, std=2.0):
    """x, scale, bias, and the weights of the outputs in the loss."""
    rng = np.random.default_rng(0)
    x, weights = rng.normal(mean, std, shape), rng.normal(size=shape)
    return tuple(
        np.float32(v)
        for v in (x, rng.uniform(0.5, 1.5, shape[-1]), rng.normal(size=shape[-1]), weights)
    )


def all_of(form, x, scale, bias, weights, axis_name=None):
    """(y, mean, variance, dx, dscale, dbias) of the loss sum(weights * y)."""

    def loss(x, scale, bias):
        y, mean, var = form(x, scale, bias, EPSILON, axis_name)
        return (weights * y).sum(), (y, mean, var)

    grads, values = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(x, scale, bias)
    return *values, *grads


def reference(x, scale, bias, weights):
    """The same in float64 numpy, by the formulas of the paper."""
    x, scale, bias, dy = (np.float64(v) for v in (x, scale, bias, weights))
    axes = (0, 1, 2)
    mean, var = x.mean(axes), x.var(axes)
    normalized = (x - mean) / np.sqrt(var + EPSILON)
    dscale, dbias = (dy * normalized).sum(axes), dy.sum(axes)
    dx = (
        scale
        / np.sqrt(var + EPSILON)
        * (dy - dy.mean(axes) - normalized * (dy * normalized).mean(axes))
    )
    return normalized * scale + bias, mean, var, dx, dscale, dbias


def assert_same(got, want, tolerances=None):
    for name, a, b in zip(NAMES, got, want, strict=True):
        assert a.shape == b.shape, name
        assert (
            np.abs(np.float64(a) - b).max() <= (tolerances or {}).get(name, 1e-5) * np.abs(b).max()
        ), name


@pytest.mark.parametrize('shape', [(8, 5, 6, 7), (64, 1, 1, 3), (2, 9, 8, 1)], ids=str)
def test_fast_equals_plain_and_float64(shape):
    plain, fast = (jax.jit(partial(all_of, form))(*case(shape)) for form in FORMS.values())
    assert_same(fast, plain)
    assert_same(fast, reference(*case(shape)))


@pytest.mark.parametrize('form', FORMS.values(), ids=FORMS)
def test_four_devices_give_what_one_gives_for_the_whole_batch(form):
    """The loss is the sum over the devices; each holds its share of x, and its part of
    the gradient of scale and bias.
    """
    x, scale, bias, weights = case()
    mapped = jax.pmap(
        partial(all_of, form, axis_name='batch'), axis_name='batch', in_axes=(0, None, None, 0)
    )
    parts = mapped(
        *(v.reshape(4, 2, *v.shape[1:]) if v.ndim > 1 else v for v in (x, scale, bias, weights))
    )
    y, mean, var, dx, dscale, dbias = map(np.asarray, parts)
    for statistic in (mean, var):
        np.testing.assert_array_equal(statistic, statistic[:1].repeat(4, 0))
    whole = y.reshape(x.shape), mean[0], var[0], dx.reshape(x.shape), dscale.sum(0), dbias.sum(0)
    assert_same(whole, reference(x, scale, bias, weights))
    assert np.abs(dscale[0] - dscale[1]).max() > 1  # the parts differ


@pytest.mark.parametrize('form', FORMS.values(), ids=FORMS)
def test_a_large_mean_and_a_small_spread(form):
    """The variance is a difference of numbers near 10000, which float32 knows to 2**-10 each."""
    given = case((16, 8, 8, 4), mean=100.0, std=1.0)
    got = jax.jit(partial(all_of, form))(*given)
    assert_same(got, reference(*given), dict.fromkeys(NAMES, 1e-3) | {'var': 2**-9})


@pytest.mark.parametrize('form', FORMS.values(), ids=FORMS)
def test_a_channel_without_spread_stays_finite(form):
    _, scale, bias, weights = case()
    y, _, var, dx, dscale, dbias = jax.jit(partial(all_of, form))(
        np.full(weights.shape, 0.1, np.float32), scale, bias, weights
    )
    assert (np.asarray(var) >= 0).all() and var.max() < 1e-8
    assert all(np.isfinite(v).all() for v in (y, dx, dscale))
    np.testing.assert_allclose(dbias, weights.sum((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize('form', FORMS.values(), ids=FORMS)
def test_half_precision_is_summed_in_float32(form):
    x, *rest = case()
    half = jnp.asarray(x, jnp.bfloat16)
    got = jax.jit(partial(all_of, form))(half, *rest)
    assert [v.dtype for v in got] == [jnp.float32] * 3 + [jnp.bfloat16] + [jnp.float32] * 2
    assert_same(got, reference(half, *rest), {'dx': 2**-8})  # the gradient is rounded, nothing else


def test_the_layer_gives_the_same_in_its_fast_form():
    """Value, running statistics and gradients, in training; in evaluation the very same."""
    x, scale, bias, weights = case()
    variables = {
        'params': {'scale': scale, 'bias': bias},
        'batch_stats': {'mean': bias + 1, 'var': scale + 1},
    }

    def run(fast):
        norm = layers.BatchNorm(layers.Setting(fast=fast))

        def loss(params, x):
            y, new = norm.apply(
                dict(variables, params=params), x, train=True, mutable=['batch_stats']
            )
            return (weights * y).sum(), (y, new)

        result = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables['params'], x)
        return jax.device_get(result), norm.apply(variables, x, train=False)

    (plain, plain_evaluated), (fast, fast_evaluated) = run(False), run(True)
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()
    np.testing.assert_array_equal(fast_evaluated, plain_evaluated)


def test_the_layer_uses_the_form_that_its_setting_names(monkeypatch):
    for name in FORMS:
        monkeypatch.setattr(
            normalization, name, lambda x, *_, name=name: (x, name == 'fast', name == 'fast')
        )
    for fast in (False, True):
        norm = layers.BatchNorm(layers.Setting(fast=fast, momentum=1.0))
        variables = norm.init(jax.random.key(0), jnp.zeros((1, 1, 1, 1)), train=False)
        new = norm.apply(variables, jnp.zeros((1, 1, 1, 1)), train=True, mutable=['batch_stats'])[1]
        assert float(new['batch_stats']['mean'][0]) == fast
