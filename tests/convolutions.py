"""Convolutions for tests: those of a jaxpr, and both forms of one with their gradients."""

from functools import partial

import jax
import numpy as np
from helpers import FASTEST_COMPILE, quickly

from kd_jax.models import convolution

FORMS = {'fast': convolution.fast, 'plain': convolution.plain}


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


def kind_of(eqn):
    """Of a convolution of a jaxpr: (height, width, stride, padding, group); the group is 'dense',
    'depthwise', or (number, inputs, outputs).
    """
    height, width, inputs, outputs = eqn.invars[1].aval.shape
    stride, groups = tuple(eqn.params['window_strides']), eqn.params['feature_group_count']
    padding = tuple(low for low, _ in eqn.params['padding'])
    assert all(low == high for low, high in eqn.params['padding'])
    if groups == 1:
        group = 'dense'
    elif inputs == 1 and groups == outputs:
        group = 'depthwise'
    else:
        group = (groups, inputs, outputs // groups)
    return height, width, stride, padding, group


# Every kind that any model of the zoo has.
KINDS = [
    *((k, k, (s, s), (k // 2, k // 2), 'dense') for k, s in ((1, 1), (1, 2), (3, 1), (3, 2))),
    *((k, k, (s, s), (k // 2, k // 2), 'dense') for k, s in ((5, 1), (7, 2))),
    *((k, k, (s, s), (0, 0), 'dense') for k, s in ((3, 1), (3, 2), (5, 1))),
    *((h, w, (1, 1), (h // 2, w // 2), 'dense') for h, w in ((1, 3), (3, 1), (1, 7), (7, 1))),
    *((k, k, (s, s), (k // 2, k // 2), 'depthwise') for k in (3, 5) for s in (1, 2)),
    *((3, 3, (1, 1), (1, 1), (32, n, n)) for n in (4, 8, 16, 32)),
    *((3, 3, (2, 2), (1, 1), (32, n, n)) for n in (8, 16, 32)),
    *(
        (1, 1, (1, 1), (0, 0), (3, inputs, outputs))
        for inputs, outputs in (
            *((18, 72), (20, 72), (20, 80), (40, 80), (40, 160), (80, 20)),
            *((80, 40), (80, 160), (80, 320), (160, 40), (160, 80), (320, 80)),
        )
    ),
]


def case(batch, sides, kernel, stride, padding, groups):
    """(x, kernel, the other arguments); `kernel` is [kh, kw, in / groups, out]."""
    rng = np.random.default_rng(1)
    shapes = (batch, *sides, kernel[2] * groups), kernel
    x, weights = (np.float32(rng.normal(size=shape)) for shape in shapes)
    return x, weights, {'stride': stride, 'padding': padding, 'groups': groups}


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


def assert_fast_equals_plain(cases):
    """Values and gradients of `cases`, {name: case}, all in one program; returns the values."""

    def run(inputs):
        return [
            [both(partial(form, **arguments), x, kernel) for form in FORMS.values()]
            for (x, kernel), (*_, arguments) in zip(inputs, cases.values(), strict=True)
        ]

    found = jax.device_get(
        quickly(run, FASTEST_COMPILE)([(x, kernel) for x, kernel, _ in cases.values()])
    )
    for name, (got, want) in zip(cases, found, strict=True):
        for part, a, b in zip(('value', 'dx', 'dkernel'), got, want, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            assert relative(a, b) <= 1e-5, (name, part)
    return {name: got[0] for name, (got, _) in zip(cases, found, strict=True)}


def assert_one_layout(x, kernel, arguments):
    """The gradients of the fast form are convolutions of one layout, or none at all; returns
    whether there are any.

    XLA's CPU backend is slow in loops with any other; plain gradients have others, even those
    without groups.
    """
    layout = jax.lax.conv_dimension_numbers((1,) * 4, (1,) * 4, convolution.LAYOUT)
    fast, plain = (
        [
            eqn.params['dimension_numbers']
            for eqn in convolutions(
                jax.make_jaxpr(partial(both, partial(form, **arguments)))(x, kernel).jaxpr
            )
        ]
        for form in FORMS.values()
    )
    assert set(plain) > {layout}
    if kernel.shape[:2] == (1, 1) or kernel.shape[2] == 1 == kernel.shape[3] / arguments['groups']:
        assert not fast  # neither is a convolution
    else:
        assert len(fast) >= 3 and set(fast) == {layout}
    return bool(fast)
