"""The fast forms of convolution equal the plain one, in values and gradients, for every kind of
shape in the zoo; one of each form is in unit/test_convolution.py.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import pytest
from convolutions import (
    assert_fast_equals_plain,
    assert_one_layout,
    case,
    convolutions,
    relative,
)
from model_facts import EXPECTED
from small_models import image_of, narrow, predict, random_variables, side_of

from kd_jax import evaluation, networks
from kd_jax.models import build


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


def cases(sides):
    """An example of every kind, by its name.

    Dense ones twice: at most 16 channels go in pairs where a row is even; more do not, and 18
    examples come in several parts in the gradient of the kernel.
    """
    found = {}
    for key, (channels, outputs, groups) in sorted(kinds().items()):
        height, width, stride, padding, _ = key
        for batch, c, o in [(3, channels, outputs), *([(18, 20, 18)] if groups == 1 else [])]:
            kernel = (height, width, c // groups, o)
            found[*key, batch] = case(batch, sides, kernel, stride, padding, groups)
    return found


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


@pytest.mark.parametrize('sides', [(9, 8), pytest.param((7, 10), marks=pytest.mark.long)], ids=str)
def test_fast_equals_plain_for_every_kind_in_the_zoo(sides):
    every = cases(sides)
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
