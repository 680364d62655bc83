"""The fast forms of convolution equal the plain one, in values and gradients, for every kind of
shape in the zoo; one of each form is in unit/test_convolution.py. That no model has another kind is
in test_table.py.
"""

from functools import partial

import jax
import pytest
from convolutions import (
    KINDS,
    assert_fast_equals_plain,
    assert_one_layout,
    case,
    relative,
)
from small_models import image_of, predict, random_variables, side_of

from kd_jax import evaluation, networks
from kd_jax.models import build


def cases(sides, most=32):
    """A small example of every kind, by its name; with at most so many groups.

    Dense ones twice: at most 16 channels go in pairs where a row is even; more do not, and 18
    examples come in several parts in the gradient of the kernel.
    """
    found = {}
    for height, width, stride, padding, group in KINDS:
        if group == 'dense':
            examples = [(3, 1, 5, 7), (18, 1, 20, 18)]
        elif group == 'depthwise':
            examples = [(3, 6, 1, 6)]
        else:
            groups, inputs, outputs = group
            groups = min(groups, most)
            examples = [(3, groups, inputs, groups * outputs)]
        for batch, groups, inputs, outputs in examples:
            kernel = (height, width, inputs, outputs)
            found[height, width, stride, padding, group, batch] = case(
                batch, sides, kernel, stride, padding, groups
            )
    return found


@pytest.mark.parametrize(
    ('sides', 'most'), [((9, 8), 4), pytest.param((7, 10), 32, marks=pytest.mark.long)], ids=str
)
def test_fast_equals_plain_for_every_kind_in_the_zoo(sides, most):
    every = cases(sides, most)
    for some in range(0, len(every), 20):  # kinds a program
        assert_fast_equals_plain(dict(list(every.items())[some : some + 20]))


def test_gradients_are_convolutions_of_one_layout():
    found = {
        (arguments['groups'] > 1, assert_one_layout(x, kernel, arguments))
        for x, kernel, arguments in cases((9, 8)).values()
    }
    assert found >= {(False, True), (True, True)}


@pytest.mark.parametrize('name', ['cifar_shufflenet_v1', 'cifar_mobilenet_v2_x0.5'])
def test_a_model_gives_the_same_with_fast_convolutions_and_without(name):
    model = build(name, 10, width=0.25, depth=0.3)
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
