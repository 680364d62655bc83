"""The fast forms of convolution equal the plain one, in values and gradients, for one small
convolution of each form; every kind in the zoo is in zoo/.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolutions import assert_fast_equals_plain, assert_one_layout, case, convolutions
from helpers import FASTEST_COMPILE, quickly
from model_reference import conv_reference

from kd_jax.models import convolution

CASES = {  # batch, sides, kernel, stride, padding, groups
    'few channels, in pairs': case(2, (5, 8), (3, 3, 5, 7), (1, 1), (1, 1), 1),
    'a row of odd length': case(2, (8, 7), (3, 3, 5, 7), (1, 1), (1, 1), 1),
    'many channels and examples': case(18, (4, 5), (3, 3, 20, 18), (2, 2), (1, 1), 1),
    'without padding': case(2, (7, 6), (3, 3, 5, 4), (2, 2), (0, 0), 1),
    'a row': case(2, (5, 8), (1, 7, 4, 4), (1, 1), (0, 3), 1),
    'few groups': case(2, (6, 5), (3, 3, 18, 36), (1, 1), (1, 1), 2),
    'many groups': case(2, (7, 6), (3, 3, 2, 16), (2, 2), (1, 1), 8),
    'pointwise': case(2, (5, 4), (1, 1, 6, 9), (1, 1), (0, 0), 1),
    'pointwise in groups': case(2, (5, 4), (1, 1, 2, 9), (2, 2), (0, 0), 3),
    'depthwise': case(2, (5, 6), (3, 3, 1, 6), (1, 1), (1, 1), 6),
    'depthwise, strided': case(2, (8, 7), (5, 5, 1, 6), (2, 2), (2, 2), 6),
    'more outputs than inputs': case(2, (8, 7), (3, 3, 2, 9), (2, 2), (1, 1), 3),
}


def test_fast_equals_plain_and_a_float64_sum():
    found = assert_fast_equals_plain(CASES)
    for name, (x, kernel, arguments) in CASES.items():
        (height, width), padding = kernel.shape[:2], arguments['padding']
        if height == width and padding == (height // 2, width // 2):
            want = conv_reference(x, kernel, arguments['stride'][0], arguments['groups'])
            np.testing.assert_allclose(found[name], want, atol=2e-5, err_msg=name)


def test_gradients_are_convolutions_of_one_layout():
    names = [name for name in CASES if name != 'more outputs than inputs']  # left plain
    fast = {name for name in names if assert_one_layout(*CASES[name])}
    assert fast == {name for name in names if not name.startswith(('pointwise', 'depthwise'))}


@pytest.mark.parametrize(
    ('channels', 'sides', 'paired'), [(16, (5, 8), True), (16, (8, 5), False), (17, (5, 8), False)]
)
def test_few_channels_go_in_pairs_where_a_row_is_even(channels, sides, paired):
    x, kernel = np.zeros((1, *sides, channels)), np.zeros((3, 3, channels, 16))
    (forward,) = convolutions(
        jax.make_jaxpr(lambda *a: convolution.fast(*a, (1, 1), (1, 1), 1))(x, kernel).jaxpr
    )
    assert forward.outvars[0].aval.shape == (
        1,
        sides[0],
        sides[1] // (1 + paired),
        16 * (1 + paired),
    )


def test_half_precision_stays_half_and_sums_in_float32():
    rng = np.random.default_rng(5)
    x, kernel = (rng.normal(size=s).astype(jnp.bfloat16) for s in ((2, 8, 8, 16), (5, 5, 1, 16)))

    def summed(x, kernel):
        y = convolution.fast(x, kernel, (1, 1), (2, 2), 16)
        return y.astype(jnp.float32).sum(), y

    run = quickly(jax.grad(summed, argnums=(0, 1), has_aux=True), FASTEST_COMPILE)
    (dx, dkernel), got = run(x, kernel)
    assert got.dtype == dx.dtype == dkernel.dtype == jnp.bfloat16
    exact = conv_reference(np.float32(x), np.float32(kernel), groups=16)
    np.testing.assert_allclose(np.float32(got), exact, rtol=2**-8, atol=1e-6)  # rounded once
