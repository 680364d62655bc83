"""The CNN and the small ResNets and MobileNets of the published tables: arithmetic, and float64
numpy. Smaller ones are in unit/test_models.py.
"""

from functools import partial

import numpy as np
import pytest
from model_checks import assert_equal_to_reference
from model_facts import EXPECTED, Facts
from model_reference import Reference
from small_models import image_of, predict, random_variables

from kd_jax.models import build


def conv_cost(side, kernel, inputs, outputs):
    """(weights, BatchNorm channels, multiply-accumulates) of a convolution with
    BatchNorm on a square output.
    """
    weights = kernel * kernel * inputs * outputs
    return np.array([weights, outputs, weights * side * side])


def resnet_facts(blocks, stem, widths):
    total, inputs = conv_cost(32, 3, 3, stem), stem
    for side, width in zip((32, 16, 8), widths, strict=True):
        total += conv_cost(side, 3, inputs, width) + (2 * blocks - 1) * conv_cost(
            side, 3, width, width
        )
        if side < 32 or inputs != width:
            total += conv_cost(side, 1, inputs, width)
        inputs = width
    return total, inputs, 3


def mobilenet_facts(width):
    stem = int(32 * width)
    total, inputs = conv_cost(16, 3, 3, stem), stem
    # channels, output side, expansion of the blocks of the published structure, one entry a block
    blocks = [(16, 16, 1)] + [(24, 16, 6)] * 2 + [(32, 8, 6)] * 3 + [(64, 4, 6)] * 4
    blocks += [(96, 4, 6)] * 3 + [(160, 2, 6)] * 3 + [(320, 2, 6)]
    before = 16
    for channels, side, expansion in blocks:
        outputs, hidden = int(channels * width), inputs * expansion
        total += conv_cost(before, 1, inputs, hidden)
        total += conv_cost(side, 3, 1, hidden) + conv_cost(side, 1, hidden, outputs)
        inputs, before = outputs, side
    return total + conv_cost(2, 1, inputs, 1280), 1280, 7


ARITHMETIC = {
    **{f'resnet{6 * n + 2}': resnet_facts(n, 16, (16, 32, 64)) for n in (1, 2, 3, 5, 7, 9, 18)},
    **{f'resnet{6 * n + 2}x4': resnet_facts(n, 32, (64, 128, 256)) for n in (1, 5)},
    'cifar_mobilenet_v2': mobilenet_facts(1.0),
    'cifar_mobilenet_v2_x0.5': mobilenet_facts(0.5),
}


@pytest.mark.parametrize('name', ['cnn', *sorted(ARITHMETIC)])
def test_the_expected_counts_follow_from_arithmetic(name):
    if name == 'cnn':
        convs = (9 * 3 * 32 + 32) + (9 * 32 * 64 + 64)
        dense = 8 * 8 * 64 * 128 + 128
        macs = 32 * 32 * 27 * 32 + 16 * 16 * 288 * 64 + 8 * 8 * 64 * 128 + 128 * 100
        facts = Facts(convs + dense + 129 * 100, 0, macs, 2, 128)
    else:
        (weights, channels, macs), pooled, stages = ARITHMETIC[name]
        body = weights + 2 * channels
        facts = Facts(body + (pooled + 1) * 100, 2 * channels, macs + pooled * 100, stages, pooled)
    assert facts == EXPECTED[name]


@pytest.mark.parametrize(
    ('name', 'width', 'image', 'reference'),
    [
        ('resnet14', None, (2, 8, 8, 3), partial(Reference.resnet, blocks=2)),
        ('resnet8x4', 0.25, (2, 8, 8, 3), partial(Reference.resnet, blocks=1)),
        ('cifar_mobilenet_v2', 0.25, (2, 16, 16, 3), Reference.mobilenet),
    ],
)
def test_logits_and_features_equal_a_float64_forward_pass(name, width, image, reference):
    model = build(name, 5, width=width)
    variables, x = random_variables(model, image), image_of(*image)
    assert_equal_to_reference(
        predict(model, variables, x), reference(Reference(variables), np.float64(x))
    )
