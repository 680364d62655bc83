"""EfficientNet: the published table, counts of torchvision's models, a float64 forward
pass, overrides, PyTorch's names.
"""

from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
from helpers import FASTEST_COMPILE, quickly
from mobilenet_reference import (
    Net,
    Row,
    arithmetic,
    dense,
    named,
    sequence,
)
from model_checks import assert_equal_to_reference
from model_facts import EXPECTED, Facts
from small_models import image_of, predict, random_variables

from kd_jax.models import build
from kd_jax.pretrained import mobilenet as names

STAGES = (1, 2, 2, 3, 3, 4, 1)


def b0_rows():
    """Table 1 of Tan and Le 2019; squeeze-and-excitation has a quarter
    of the block's input channels.
    """
    table = [
        (1, 16, 1, 3),
        (6, 24, 2, 3),
        (6, 40, 2, 5),
        (6, 80, 2, 3),
        (6, 112, 1, 5),
        (6, 192, 2, 5),
        (6, 320, 1, 3),
    ]
    rows, inputs = [], 32
    for (expansion, channels, stride, kernel), count in zip(table, STAGES, strict=True):
        for i in range(count):
            rows.append(
                Row(
                    expansion * inputs,
                    channels,
                    stride if i == 0 else 1,
                    kernel,
                    inputs // 4,
                    'silu',
                )
            )
            inputs = channels
    return rows


def test_the_expected_counts_follow_from_the_published_table():
    expected = Facts(*arithmetic(b0_rows(), 32, 1280, 0), 7, 1280, 1000, 224)
    assert EXPECTED['efficientnet_b0'] == expected
    # the paper's table 2
    assert round(expected.params / 1e6, 1) == 5.3 and round(expected.macs / 1e9, 2) == 0.39


def test_logits_and_features_equal_a_float64_forward_pass():
    image = (2, 33, 40, 3)
    model = build('efficientnet_b0', 5, width=0.25)
    variables, x = random_variables(model, image), image_of(*image)
    expected = Net(variables, 1e-5).run(
        np.float64(x), b0_rows(), STAGES, 'silu', ('silu', 'sigmoid')
    )
    assert_equal_to_reference(predict(model, variables, x), expected)


def drops(**overrides):
    """The drop rate of every block of the model, in order."""
    rates, model = [], build('efficientnet_b0', 10, **overrides)

    def record(call, args, kwargs, context):
        if (
            'drop' in getattr(context.module, '__dataclass_fields__', {})
            and context.method_name == '__call__'
        ):
            rates.append(context.module.drop)
        return call(*args, **kwargs)

    with flax.linen.intercept_methods(record):
        jax.eval_shape(
            partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 32, 32, 3))
        )
    return rates


def test_stochastic_depth_rises_by_the_same_step_in_every_block():
    np.testing.assert_allclose(drops(), [0.0125 * i for i in range(16)])  # 0.2 / 16
    np.testing.assert_allclose(
        drops(stochastic_depth=0.5, depth=2.0), [0.5 / 32 * i for i in range(32)]
    )
    assert build('efficientnet_b0', 10).dropout == 0.2


def test_training_drops_blocks_by_the_key_and_evaluation_none():
    """Without dropout before the classifier only stochastic depth is random."""
    image = image_of(4, 8, 8, 3)
    random, certain = (
        build(
            'efficientnet_b0',
            3,
            width=0.125,
            depth=0.4,
            dropout=0.0,
            stochastic_depth=rate,
            fast=False,
        )
        for rate in (0.9, 0.0)
    )
    variables = random_variables(random, image.shape)

    def stages(model, key):
        output, _ = model.apply(
            variables, image, train=True, mutable=['batch_stats'], rngs={'dropout': key}
        )
        return output.features

    drawn, whole = (quickly(partial(stages, model), FASTEST_COMPILE) for model in (random, certain))
    one, two, none = drawn(jax.random.key(1)), drawn(jax.random.key(2)), whole(jax.random.key(1))
    np.testing.assert_array_equal(one['stage1'], two['stage1'])  # the first block's rate is 0
    assert (one['stage6'] != two['stage6']).any() and (one['stage6'] != none['stage6']).any()
    np.testing.assert_array_equal(drawn(jax.random.key(1))['pooled'], one['pooled'])
    np.testing.assert_array_equal(
        *(predict(model, variables, image).logits for model in (random, certain))
    )


def test_torchvisions_names():
    places = named('efficientnet_b0', names.torchvision_efficientnet)
    expected = (
        sequence('features.0', 'c', 'n') + sequence('features.8', 'c', 'n') + dense('classifier.1')
    )
    expected += sequence('features.1.0.block', 'cn', 's', 'cn')
    for stage, count in enumerate(STAGES[1:], start=2):
        for block in range(count):
            expected += sequence(f'features.{stage}.{block}.block', 'cn', 'cn', 's', 'cn')
    assert sorted(places.values()) == sorted(expected)
    assert places['stage1_block1/se/reduce/bias'] == 'features.1.0.block.1.fc1.bias'
    assert places['stage6_block4/project/norm/var'] == 'features.6.3.block.3.1.running_var'
    assert places['top/conv/kernel'] == 'features.8.0.weight'
