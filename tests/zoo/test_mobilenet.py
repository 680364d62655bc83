"""MobileNets: the published tables, counts of torchvision's models, float64 forward
passes, overrides, PyTorch's names.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FASTEST_COMPILE, quickly
from mobilenet_reference import (
    FAMILIES,
    V1,
    Net,
    arithmetic,
    dense,
    named,
    sequence,
)
from model_checks import assert_equal_to_reference
from model_facts import EXPECTED, Facts, expected_shapes
from model_reference import conv_reference, rectified
from small_models import (
    feature_shapes,
    image_of,
    macs_of,
    predict,
    random_variables,
    shapes_of,
    size,
)

from kd_jax.errors import UserError
from kd_jax.models import build
from kd_jax.models.layers import Setting
from kd_jax.models.mobilenet import InvertedResidual
from kd_jax.pretrained import mobilenet as names


@pytest.mark.parametrize('name', sorted(FAMILIES))
def test_the_expected_counts_follow_from_the_published_tables(name):
    rows, stages, stem, top, dense, _ = FAMILIES[name]
    assert EXPECTED[name] == Facts(
        *arithmetic(rows, stem, top, dense), len(stages), dense or top, 1000, 224
    )


def test_the_expected_counts_of_mobilenet_v1_follow_from_its_table():
    weights, channels, macs, side = 27 * 32, 32, 27 * 32 * 112**2, 112
    for inputs, outputs, stride in V1:
        side //= stride
        weights += 9 * inputs + inputs * outputs
        channels += inputs + outputs
        macs += (9 * inputs + inputs * outputs) * side**2
    params = weights + 2 * channels + 1025 * 1000
    assert EXPECTED['mobilenet_v1'] == Facts(
        params, 2 * channels, macs + 1024 * 1000, 5, 1024, 1000, 224
    )
    # the paper's table 8: 569 million, 4.2 million parameters
    assert round(macs / 1e6 + 1.024) == 569


@pytest.mark.parametrize(
    ('width', 'millions', 'macs'), [(0.75, 2.6, 325), (0.5, 1.3, 149), (0.25, 0.5, 41)]
)
def test_the_widths_of_mobilenet_v1_have_the_papers_cost(width, millions, macs):
    model, image = build('mobilenet_v1', 1000, width=width, fast=False), jnp.zeros((1, 224, 224, 3))
    variables = shapes_of(model, image.shape)
    assert round(size(variables['params']) / 1e6, 1) == millions
    counted = macs_of(jax.make_jaxpr(partial(model.apply, train=False))(variables, image).jaxpr)
    assert abs(counted / 1e6 - macs) < 1  # to the paper's rounding


def test_strides_make_mobilenet_v2_one_for_small_images():
    model = build('imagenet_mobilenet_v2', 10, strides=(1, 1, 1, 2, 2, 1, 2, 1))
    maps = [(32, 32), (32, 16), (32, 24), (16, 32), (8, 64), (8, 96), (4, 160), (4, 320), 1280]
    assert feature_shapes(model, 1, 32, 32, 3) == expected_shapes(maps)


@pytest.mark.parametrize(
    ('name', 'width', 'image'),
    [
        ('imagenet_mobilenet_v2', 0.35, (2, 33, 47, 3)),
        ('mobilenet_v3_large', 0.35, (2, 32, 41, 1)),
        ('mobilenet_v3_small', 0.5, (2, 40, 40, 3)),
    ],
)
def test_logits_and_features_equal_a_float64_forward_pass(name, width, image):
    rows, stages, _, _, _, act = FAMILIES[name]
    model = build(name, 5, width=width)
    variables, x = random_variables(model, image), image_of(*image)
    net = Net(variables, 1e-3 if 'v3' in name else 1e-5)
    expected = net.run(np.float64(x), rows, stages, act, ('relu', 'hard_sigmoid'))
    assert_equal_to_reference(predict(model, variables, x), expected)


def test_mobilenet_v1_equals_a_float64_forward_pass():
    image = (2, 33, 40, 3)
    model = build('mobilenet_v1', 5, width=0.25)
    variables, x = random_variables(model, image), image_of(*image)
    net = Net(variables, 1e-5)
    y = net.stem(np.float64(x), 'relu')
    expected, rows = {'stem': y}, iter(V1)
    for stage, count in enumerate((1, 2, 2, 6, 2), start=1):
        for block in range(1, count + 1):
            name = f'stage{stage}_block{block}'
            y = net.depthwise(f'{name}/depthwise', y, 3, next(rows)[2], 'relu')
            expected |= rectified(stage, net.pointwise(f'{name}/pointwise', y, None))
            y = expected[f'stage{stage}']
    expected['pooled'] = y.mean(axis=(1, 2))
    assert_equal_to_reference(
        predict(model, variables, x), expected | {'logits': net.linear('head', expected['pooled'])}
    )


def test_dropout_is_torchvisions_and_the_batch_norm_of_v3_moves_by_a_hundredth():
    rates = {name: build(name, 10).dropout for name in ('mobilenet_v1', *FAMILIES)}
    assert rates == {
        'imagenet_mobilenet_v2': 0.2,
        'mobilenet_v1': 0,
        'mobilenet_v3_large': 0.2,
        'mobilenet_v3_small': 0.2,
    }
    for name, momentum in (('mobilenet_v3_small', 0.01), ('imagenet_mobilenet_v2', 0.1)):
        model, image = (
            build(name, 3, width=0.125, depth=0.1, fast=False),
            image_of(2, 8, 8, 3),
        )
        variables = random_variables(model, image.shape)
        rngs = {'dropout': jax.random.key(0)}
        _, new = quickly(
            partial(model.apply, train=True, mutable=['batch_stats'], rngs=rngs), FASTEST_COMPILE
        )(variables, image)
        mean = conv_reference(image, variables['params']['stem']['conv']['kernel'], 2).mean(
            axis=(0, 1, 2)
        )
        old = variables['batch_stats']['stem']['norm']['mean']
        got = new['batch_stats']['stem']['norm']['mean']
        np.testing.assert_allclose(got, (1 - momentum) * old + momentum * mean, atol=1e-6)


def test_a_deeper_stage_repeats_the_last_of_its_published_blocks():
    params = shapes_of(build('mobilenet_v3_small', 10, depth=2.0))['params']
    hidden = [params[f'stage3_block{i}']['project']['conv']['kernel'].shape[2] for i in range(1, 7)]
    assert hidden == [96, 240, 240, 240, 240, 240]


def test_stochastic_depth_leaves_whole_examples_out_and_scales_the_others():
    x = jnp.asarray(image_of(64, 2, 2, 8))
    plain, dropping = (
        InvertedResidual(8, 16, drop=rate, setting=Setting()) for rate in (0.0, 0.25)
    )
    variables = plain.init(jax.random.key(0), x, train=False)
    np.testing.assert_array_equal(
        dropping.apply(variables, x, train=False), plain.apply(variables, x, train=False)
    )
    branch, _ = plain.apply(variables, x, train=True, mutable=True)
    rngs = {'dropout': jax.random.key(3)}
    y, _ = dropping.apply(variables, x, train=True, mutable=True, rngs=rngs)
    branch, y = np.asarray(branch - x), np.asarray(y - x)
    kept = np.abs(y).max(axis=(1, 2, 3)) > 0
    assert 36 <= kept.sum() <= 60  # 48 expected, standard deviation 3.5
    np.testing.assert_allclose(y[kept], branch[kept] / 0.75, atol=1e-5)
    # Where the shape changes there is no way past the block.
    strided = InvertedResidual(8, 16, stride=2, drop=0.99, setting=Setting())
    y, _ = strided.apply(variables, x, train=True, mutable=True)
    assert np.abs(y).max(axis=(1, 2, 3)).min() > 0


def test_torchvisions_names_of_mobilenet_v2():
    places = named('imagenet_mobilenet_v2', names.torchvision_v2)
    expected = sequence('features.0', 'c', 'n') + sequence('features.1.conv', 'cn', 'c', 'n')
    expected += [
        name for i in range(2, 18) for name in sequence(f'features.{i}.conv', 'cn', 'cn', 'c', 'n')
    ]
    expected += sequence('features.18', 'c', 'n') + dense('classifier.1')
    assert sorted(places.values()) == sorted(expected)
    assert places['stage1_block1/depthwise/conv/kernel'] == 'features.1.conv.0.0.weight'
    assert places['stage2_block1/expand/norm/mean'] == 'features.2.conv.0.1.running_mean'
    assert places['stage4_block2/project/norm/scale'] == 'features.8.conv.3.weight'
    assert places['stage7_block1/depthwise/conv/kernel'] == 'features.17.conv.1.0.weight'


@pytest.mark.parametrize('name', ['mobilenet_v3_large', 'mobilenet_v3_small'])
def test_torchvisions_names_of_mobilenet_v3(name):
    places = named(name, names.torchvision_v3)
    rows = FAMILIES[name][0]
    expected = sequence('features.0', 'c', 'n')
    for i, row in enumerate(rows, start=1):
        kinds = ['cn'] * (1 if i == 1 else 2) + ['s'] * bool(row.squeeze) + ['cn']
        expected += sequence(f'features.{i}.block', *kinds)
    expected += (
        sequence(f'features.{len(rows) + 1}', 'c', 'n')
        + dense('classifier.0')
        + dense('classifier.3')
    )
    assert sorted(places.values()) == sorted(expected)
    assert (
        places['top_dense/kernel'] == 'classifier.0.weight'
        and places['head/bias'] == 'classifier.3.bias'
    )
    if name == 'mobilenet_v3_large':
        assert places['stage3_block1/se/expand/bias'] == 'features.4.block.2.fc2.bias'
        assert places['stage5_block2/project/conv/kernel'] == 'features.12.block.3.0.weight'
    else:
        assert places['stage1_block1/se/reduce/kernel'] == 'features.1.block.1.fc1.weight'
        assert places['stage2_block2/depthwise/norm/bias'] == 'features.3.block.1.1.bias'


def test_the_names_behind_the_distillation_tables():
    places = named('cifar_mobilenet_v2_x0.5', names.repdistiller)
    expected = sequence('conv1', 'c', 'n') + sequence('conv2', 'c', 'n') + dense('classifier.0')
    for i, count in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for j in range(count):
            expected += sequence(f'blocks.{i}.{j}.conv', 'c', 'n', '', 'c', 'n', '', 'c', 'n')
    assert sorted(places.values()) == sorted(expected)
    assert places['stage4_block3/depthwise/norm/var'] == 'blocks.3.2.conv.4.running_var'
    places = named('mobilenet_v1', names.mdistiller_v1)
    expected = sequence('model.0', 'c', 'n') + dense('fc')
    expected += [
        name for i in range(1, 14) for name in sequence(f'model.{i}', 'c', 'n', '', 'c', 'n')
    ]
    assert sorted(places.values()) == sorted(expected)
    assert places['stage2_block2/pointwise/conv/kernel'] == 'model.3.3.weight'


RULES = (
    names.torchvision_v2,
    names.torchvision_v3,
    names.torchvision_efficientnet,
    names.repdistiller,
    names.mdistiller_v1,
)


@pytest.mark.parametrize('rule', RULES)
def test_a_module_that_pytorch_does_not_have_is_refused(rule):
    for module in ('stage1_block1_adapter/down', 'head_stage1/dense'):
        with pytest.raises(
            UserError,
            match=r"^module '\w+' has no counterpart in PyTorch; leave it as initialised$",
        ):
            rule(module, ['stage1_block1'])
    with pytest.raises(
        UserError,
        match=r"^a block of .*depthwise.* in PyTorch has no 'conv1'; leave it as initialised$",
    ):
        rule('stage1_block1/conv1/conv', ['stage1_block1'])
