"""What a stage is before its last ReLU, in the models that have it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FAST_COMPILE
from model_facts import EXPECTED
from small_models import (
    RECTIFIED,
    image_of,
    random_variables,
    shapes_of,
    side_of,
)

from kd_jax.models import MODELS, build
from kd_jax.parallel import KEEP_BARRIERS

NAMES = {
    'cnn': {},
    'resnet8': {},
    'resnet18': {'width': 0.125, 'depth': 0.5},
    'mobilenet_v1': {'width': 0.125, 'depth': 0.3},
    'cifar_shufflenet_v1': {'width': 0.25, 'depth': 0.25},
    'imagenet_vgg11_bn': {'width': 0.0625},
    'cifar_vgg8': {'width': 0.25},
}


def test_one_model_of_each_family_that_has_it():
    assert NAMES.keys() <= RECTIFIED
    assert {MODELS[name].func for name in NAMES} == {MODELS[name].func for name in RECTIFIED}


@pytest.mark.parametrize('name', NAMES)
def test_the_relu_of_what_comes_before_is_the_stage(name):
    """Of one model of each family; test_table.py has the programs of all."""
    model = build(name, 10, fast=False, **NAMES[name])  # the plain forms are fewer operations
    image = image_of(2, *[side_of(name)] * 2, 3)
    # Op by op: one program may compute what comes before twice, and round it in two ways.
    features = model.apply(random_variables(model, image.shape), image, train=False).features
    for stage in range(1, EXPECTED[name].stages + 1):
        pre = features[f'stage{stage}_pre']
        assert (pre < 0).any()
        np.testing.assert_array_equal(jax.nn.relu(pre), features[f'stage{stage}'])


@pytest.mark.parametrize('options', [{}, KEEP_BARRIERS])
def test_gradients_pass_through_what_comes_before_a_relu(options):
    model, image = build('resnet8', 10, width=0.5), image_of(4, 8, 8, 3)
    variables = random_variables(model, image.shape)

    def loss(params, take):
        output, _ = model.apply(
            {**variables, 'params': params}, image, train=True, mutable=['batch_stats']
        )
        return sum((take(output.features, f'stage{i}') ** 2).mean() for i in (1, 2, 3))

    takes = (
        lambda features, stage: features[stage],
        lambda features, stage: jax.nn.relu(features[f'{stage}_pre']),
    )
    found = []
    for take in takes:
        gradient = jax.jit(partial(jax.grad(loss), take=take)).lower(variables['params'])
        found.append(gradient.compile(compiler_options=FAST_COMPILE | options)(variables['params']))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *found)


def test_a_stage_that_ends_in_an_adapter_has_nothing_before_a_relu():
    model, image = build('resnet8', 10, adapter=4), jnp.zeros((2, 8, 8, 3))
    features = jax.eval_shape(
        partial(model.apply, train=False), shapes_of(model, image.shape), image
    ).features
    assert set(features) == {'stem', 'stage1', 'stage2', 'stage3', 'pooled'}
