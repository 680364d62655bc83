"""Training steps of every family reach every parameter; those of every model at full depth are
`long`. The plain CNN and the small ResNets are in unit/.
"""

from functools import partial

import jax
import model_checks as checks
import numpy as np
import pytest
from helpers import quickly
from small_models import NAMES, image_of, narrow, random_variables, side_of

from kd_jax.models import build

# Every kind of block, and where stages have several, one behind the first.
SHORT = {
    'resnet18': 0.5,
    'resnet50': 0.3,
    'resnext50_32x4d': 0.1,
    'wrn_16_2': 0.5,
    'cifar_mobilenet_v2_x0.5': 0.3,
    'imagenet_mobilenet_v2': 0.3,
    'mobilenet_v1': 0.3,
    'mobilenet_v3_small': 0.4,
    'efficientnet_b0': 0.3,
    'cifar_shufflenet_v1': 0.25,
    'cifar_shufflenet_v2': 0.25,
    'imagenet_vgg11': None,
    'imagenet_vgg11_bn': None,
    'cifar_vgg8': None,
    'inception_v3': None,
    'googlenet': None,
}


@pytest.mark.parametrize('name', SHORT)
def test_training_reaches_every_parameter_and_changes_only_running_statistics(name):
    """The plain forms are fewer operations."""
    own = narrow(name) or {'width': 0.25}
    if name == 'googlenet':
        own |= {'aux': True}
    model = build(name, 10, fast=False, depth=SHORT[name], **own)
    half = name not in (
        'resnet50',
        'resnext50_32x4d',
        'inception_v3',
        'googlenet',
        'imagenet_vgg11',
    )
    checks.assert_training_reaches_everything(model, max(side_of(name), 16), half)


@pytest.mark.long
@pytest.mark.parametrize('name', NAMES)
def test_training_reaches_every_parameter_at_full_depth(name):
    model = build(name, 10, fast=False, **narrow(name))
    checks.assert_training_reaches_everything(model, max(side_of(name), 16))


def test_bfloat16_keeps_parameters_logits_and_pooled_in_float32_and_stays_close():
    checks.assert_bfloat16_stays_close('cifar_mobilenet_v2_x0.5', depth=0.3)


def test_batch_norm_over_four_devices_equals_one_device():
    image = image_of(16, 8, 8, 3)
    one, four = (
        build('resnet8', 10, width=0.5, fast=False, axis_name=axis) for axis in (None, 'batch')
    )
    variables = random_variables(one, image.shape)

    def forward(model, image):
        return model.apply(variables, image, train=True, mutable=['batch_stats'])

    expected, expected_state = quickly(partial(forward, one))(image)
    shards = image.reshape(4, 4, 8, 8, 3)
    output, state = jax.pmap(partial(forward, four), axis_name='batch')(shards)
    for key, value in {**expected.features, 'logits': expected.logits}.items():
        sharded = output.logits if key == 'logits' else output.features[key]
        np.testing.assert_allclose(
            np.asarray(sharded).reshape(value.shape), value, atol=1e-5, err_msg=key
        )
    for device in range(4):
        jax.tree.map(
            lambda a, b, d=device: np.testing.assert_allclose(a[d], b, atol=1e-5),
            state,
            expected_state,
        )
    local, _ = jax.pmap(partial(forward, one), axis_name='batch')(shards)
    # the axis name matters
    assert np.abs(np.asarray(local.logits).reshape(16, 10) - expected.logits).max() > 1e-2
