"""The fast forms of convolution equal the plain one, in values and gradients, for
every kind of shape in the zoo.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FASTEST_COMPILE, quickly
from model_facts import EXPECTED
from model_reference import conv_reference
from small_models import image_of, narrow, predict, random_variables, side_of

from kd_jax import evaluation, networks
from kd_jax.models import MODELS, build, convolution


def convolutions(jaxpr):
    """The convolutions of a jaxpr, those inside its calls too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == 'conv_general_dilated':
            yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(inner, 'jaxpr'):
                    yield from convolutions(inner.jaxpr)
                elif hasattr(inner, 'eqns'):
                    yield from convolutions(inner)


def calls(name):
    """The convolutions of a model: (kernel [kh, kw, in / groups, out], stride, padding, groups)."""
    model = build(name, 10).clone(fast=False)
    image = jnp.zeros((1, *[max(side_of(name), 32)] * 2, 3))
    init = jax.make_jaxpr(partial(model.init, train=False))(jax.random.key(0), image)
    found = set()
    for eqn in convolutions(init.jaxpr):
        pads = tuple(low for low, _ in eqn.params['padding'])
        found.add(
            (
                eqn.invars[1].aval.shape,
                tuple(eqn.params['window_strides']),
                pads,
                eqn.params['feature_group_count'],
            )
        )
    return found


@cache
def kinds():
    """One small example for each (kernel size, stride, padding, kind of grouping)
    that any model of the zoo has.
    """
    examples = {}
    for name in EXPECTED:
        for (height, width, inputs, outputs), stride, padding, groups in calls(name):
            channels = inputs * groups
            if groups == 1:
                key, small = 'dense', (5, 7, 1)
            elif groups == channels == outputs:
                key, small = 'depthwise', (6, 6, 6)
            else:
                key, small = (
                    f'{groups} groups of {inputs} to {outputs // groups}',
                    (channels, outputs, groups),
                )
            examples[height, width, stride, padding, key] = small
    return examples


def cases(sides=(9, 8)):
    """An example of every kind: (key, x, kernel, the other arguments).

    Dense ones twice: at most 16 channels go in pairs where a row is even; more do not, and 18
    examples come in several parts in the gradient of the kernel.
    """
    for key, (channels, outputs, groups) in sorted(kinds().items()):
        height, width, stride, padding, _ = key
        for batch, c, o in [(3, channels, outputs), *([(18, 20, 18)] if groups == 1 else [])]:
            rng = np.random.default_rng(1)
            x, kernel = (
                rng.normal(size=s) for s in ((batch, *sides, c), (height, width, c // groups, o))
            )
            yield (
                key,
                np.float32(x),
                np.float32(kernel),
                {'stride': stride, 'padding': padding, 'groups': groups},
            )


def both(fn, x, kernel):
    """Value and gradients of a sum that weighs every output differently."""
    weights = np.float32(np.random.default_rng(2).normal(size=jax.eval_shape(fn, x, kernel).shape))

    def weighted(x, kernel):
        y = fn(x, kernel)
        return (y * weights).sum(), y

    (_, y), grads = jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True)(x, kernel)
    return y, *grads


def relative(got, want):
    return float(np.abs(np.float64(got) - np.float64(want)).max() / np.abs(want).max())


def test_the_zoo_has_all_kinds_of_convolutions():
    kernels = {
        (key[0], (key[4].split()[-1] in ('dense', 'depthwise') and key[4]) or 'grouped')
        for key in kinds()
    }
    assert kernels >= {(k, kind) for k in (1, 3) for kind in ('dense', 'grouped')} | {
        (3, 'depthwise'),
        (5, 'depthwise'),
    }
    assert len(kinds()) > 25
    assert set(EXPECTED) == set(MODELS)


@pytest.mark.parametrize('sides', [(9, 8), pytest.param((7, 10), marks=pytest.mark.slow)], ids=str)
def test_fast_equals_plain_for_every_kind_in_the_zoo(sides):
    for key, x, kernel, arguments in cases(sides):
        forms = [
            partial(both, partial(fn, **arguments)) for fn in (convolution.fast, convolution.plain)
        ]
        got, want = quickly(
            lambda *inputs, forms=forms: [form(*inputs) for form in forms], FASTEST_COMPILE
        )(x, kernel)
        for part, a, b in zip(('value', 'dx', 'dkernel'), got, want, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            assert relative(a, b) <= 1e-5, (key, x.shape, part)


def test_gradients_are_convolutions_of_one_layout():
    """XLA's CPU backend is slow in loops with any other; plain gradients have
    others, even those without groups.
    """
    layout = jax.lax.conv_dimension_numbers((1,) * 4, (1,) * 4, convolution.LAYOUT)
    checked = set()
    for key, x, kernel, arguments in cases():
        plain, fast = (
            [
                eqn.params['dimension_numbers']
                for eqn in convolutions(jax.make_jaxpr(partial(both, fn))(x, kernel).jaxpr)
            ]
            for fn in (partial(form, **arguments) for form in (convolution.plain, convolution.fast))
        )
        assert set(plain) > {layout}
        if kernel.shape[:2] == (1, 1) or key[-1] == 'depthwise':
            assert not fast  # neither is a convolution
        else:
            assert len(fast) >= 3 and set(fast) == {layout}
            checked.add(arguments['groups'] > 1)
    assert checked == {False, True}


@pytest.mark.parametrize(
    ('channels', 'sides', 'paired'), [(16, (5, 8), True), (16, (8, 5), False), (17, (5, 8), False)]
)
def test_few_channels_go_in_pairs_where_a_row_is_even(channels, sides, paired):
    x, kernel = jnp.zeros((1, *sides, channels)), jnp.zeros((3, 3, channels, 16))
    (forward,) = convolutions(
        jax.make_jaxpr(lambda *a: convolution.fast(*a, (1, 1), (1, 1), 1))(x, kernel).jaxpr
    )
    assert forward.outvars[0].aval.shape == (
        1,
        sides[0],
        sides[1] // (1 + paired),
        16 * (1 + paired),
    )


@pytest.mark.parametrize(
    ('kernel', 'stride', 'groups'),
    [((3, 3, 1, 6), 2, 6), ((5, 5, 1, 6), 1, 6), ((1, 1, 2, 9), 2, 3), ((3, 3, 2, 9), 2, 3)],
)
def test_fast_equals_a_float64_sum(kernel, stride, groups):
    rng = np.random.default_rng(3)
    x, k = np.float32(rng.normal(size=(2, 8, 7, 6))), np.float32(rng.normal(size=kernel))
    got = convolution.fast(x, k, (stride, stride), (kernel[0] // 2,) * 2, groups)
    np.testing.assert_allclose(got, conv_reference(x, k, stride, groups), atol=1e-5)


def test_half_precision_stays_half_and_sums_in_float32():
    rng = np.random.default_rng(5)
    x, kernel = (
        jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((2, 8, 8, 16), (5, 5, 1, 16))
    )
    exact = convolution.plain(np.float32(x), np.float32(kernel), (1, 1), (2, 2), 16)
    got = convolution.fast(x, kernel, (1, 1), (2, 2), 16)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(got), exact, rtol=2**-8, atol=1e-6)  # rounded once
    dx, dk = jax.grad(
        lambda *a: convolution.fast(*a, (1, 1), (2, 2), 16).astype(jnp.float32).sum(),
        argnums=(0, 1),
    )(x, kernel)
    assert dx.dtype == dk.dtype == jnp.bfloat16


@pytest.mark.parametrize('name', ['cifar_shufflenet_v1', 'cifar_mobilenet_v2_x0.5'])
def test_a_model_gives_the_same_with_fast_convolutions_and_without(name):
    model = build(name, 10, **narrow(name))
    assert model.fast
    image = image_of(2, *[max(side_of(name), 16)] * 2, 3)
    variables = random_variables(model, image.shape)
    fast, plain = (
        predict(model, variables, image),
        predict(model.clone(fast=False), variables, image),
    )
    assert relative(fast.logits, plain.logits) <= 2e-5
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
    # those of the plain form
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, variables)


def test_the_flops_of_a_report_are_the_models_not_those_of_its_fast_forms():
    model = build('resnet8', 10)
    variables = random_variables(model, (1, 8, 8, 3))
    found = []
    for fast in (True, False):
        network = networks.Network(model.clone(fast=fast), (0.5,) * 3, (0.5,) * 3)
        found.append(evaluation.forward_cost(network, variables, (8, 8, 3), 'float32')['flops'])
    # Multiplications and additions of the stem and of the first stage's convolutions
    # alone, without those with padding.
    assert found[0] == found[1] > 2 * 9 * 6 * 6 * 16 * (3 + 2 * 16)
