"""ShuffleNet: the papers' figures, features, float64 numpy forward passes,
overrides, refusals, PyTorch's names.
"""

import re
from functools import partial

import flax
import jax
import numpy as np
import pytest
from model_checks import assert_equal_to_reference
from model_facts import EXPECTED
from shufflenet_reference import Shuffled
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
from kd_jax.models.shufflenet import ShuffleNetV1, ShuffleNetV2
from kd_jax.pretrained import shufflenet as names

COUNTS = (4, 8, 4)  # units in each stage, the striding one included
# Channels of the stages and of the last convolution, as published.
V2 = {
    'imagenet_shufflenet_v2_x0_5': (48, 96, 192, 1024),
    'imagenet_shufflenet_v2_x1_0': (116, 232, 464, 1024),
    'imagenet_shufflenet_v2_x1_5': (176, 352, 704, 1024),
    'imagenet_shufflenet_v2_x2_0': (244, 488, 976, 2048),
    'cifar_shufflenet_v2_x0_2': (40, 80, 160, 512),
    'cifar_shufflenet_v2_x0_3': (40, 80, 160, 512),
    'cifar_shufflenet_v2_x0_5': (48, 96, 192, 1024),
    'cifar_shufflenet_v2': (116, 232, 464, 1024),
    'cifar_shufflenet_v2_x1_5': (176, 352, 704, 1024),
    'cifar_shufflenet_v2_x2_0': (224, 488, 976, 2048),
}
V2_WIDTHS = {widths: name for name, widths in V2.items()}.values()  # one name of each
V1 = ('imagenet_shufflenet_v1', 'cifar_shufflenet_v1')


def test_odd_and_tiny_images():
    shapes = feature_shapes(
        build('imagenet_shufflenet_v1', 10, width=0.25), 1, 75, 33, 1
    )  # 75, 38, 19, 10, 5, 3; 33, 17, 9, 5, 3, 2
    stages = {'stage1': (10, 5, 60), 'stage2': (5, 3, 120), 'stage3': (3, 2, 240)}
    assert shapes == {'stem': (19, 9, 6), **stages, 'pooled': (240,)}
    for name in (*V1, 'imagenet_shufflenet_v2_x0_5', 'cifar_shufflenet_v2'):
        assert feature_shapes(build(name, 10), 1, 1, 1, 3)['stage3'][:2] == (1, 1)


def test_counts_of_version_2_follow_from_arithmetic():
    for name, (*widths, last) in V2.items():
        imagenet, facts = name.startswith('imagenet'), EXPECTED[name]
        side, kernel = (112, 3) if imagenet else (32, 1)
        convs, inputs = [(kernel, 3, 24, side)], 24  # kernel, inputs of an output, outputs, side
        side = 56 if imagenet else 32
        for stage, outputs in enumerate(widths):
            half = outputs // 2
            convs += [
                (3, 1, inputs, side // 2),
                (1, inputs, half, side // 2),
                (1, inputs, half, side),
            ]
            side //= 2
            convs += [(3, 1, half, side), (1, half, half, side)]
            count = 4 if name.endswith('x0_2') else COUNTS[stage]
            convs += (count - 1) * [
                (1, half, half, side),
                (3, 1, half, side),
                (1, half, half, side),
            ]
            inputs = outputs
        convs.append((1, inputs, last, side))
        dense, channels = last * facts.classes, sum(out for _, _, out, _ in convs)
        params = sum(k * k * i * o for k, i, o, _ in convs) + 2 * channels + dense + facts.classes
        macs = sum(k * k * i * o * s * s for k, i, o, s in convs) + dense
        assert (params, 2 * channels, macs, last) == (
            facts.params,
            facts.statistics,
            facts.macs,
            facts.width,
        ), name


def version_1(groups, base, small):
    """(parameters, running statistics, multiply-accumulates) without the dense layer."""
    side = 32 if small else 112
    convs, inputs = [(1 if small else 3, 3, 24, side)], 24
    side = 32 if small else 56
    for stage, count in enumerate(COUNTS):
        outputs = base * 2**stage
        for number in range(count):
            new = outputs - inputs if number == 0 else outputs
            hidden = (new if small else outputs) // 4
            first = inputs if stage == number == 0 else inputs // groups
            convs.append((1, first, hidden, side))
            side //= 2 if number == 0 else 1
            convs += [(3, 1, hidden, side), (1, hidden // groups, new, side)]
            inputs = outputs
    channels = sum(out for _, _, out, _ in convs)
    return (
        sum(k * k * i * o for k, i, o, _ in convs) + 2 * channels,
        2 * channels,
        sum(k * k * i * o * s * s for k, i, o, s in convs),
    )


@pytest.mark.parametrize('name', V1)
def test_counts_of_version_1_follow_from_arithmetic(name):
    facts = EXPECTED[name]
    params, statistics, macs = version_1(3, 240, small=name.startswith('cifar'))
    expected = (params + 961 * facts.classes, statistics, macs + 960 * facts.classes)
    assert (facts.params, facts.statistics, facts.macs) == expected


@pytest.mark.parametrize(
    ('groups', 'base', 'millions'),
    [(1, 144, 143), (2, 200, 140), (3, 240, 137), (4, 272, 133), (8, 384, 137)],
)
def test_version_1_costs_what_its_papers_first_table_says(groups, base, millions):
    model, image = (
        build('imagenet_shufflenet_v1', 1000, groups=groups, fast=False),
        (1, 224, 224, 3),
    )
    init = partial(model.init_with_output, train=False)
    forward, (_, variables) = jax.make_jaxpr(init, return_shape=True)(
        jax.random.key(0), jax.ShapeDtypeStruct(image, 'float32')
    )
    macs = macs_of(forward.jaxpr) - 4 * base * 1000
    assert round(macs / 1e6) == millions  # the paper leaves the dense layer out
    params, statistics, expected = version_1(groups, base, small=False)
    assert macs == expected and size(variables['batch_stats']) == statistics
    assert size(variables['params']) == params + (4 * base + 1) * 1000


SHORT = {'num_classes': 5, 'stage_sizes': (2, 1, 2)}
FORWARD = {
    'v1': (
        ShuffleNetV1(width=0.125, **SHORT),
        (2, 35, 50, 3),
        partial(Shuffled.v1, groups=3, small=False),
    ),
    'v1 small': (
        ShuffleNetV1(width=0.125, small=True, **SHORT),
        (2, 9, 8, 3),
        partial(Shuffled.v1, groups=3, small=True),
    ),
    'v1 of 8 groups': (
        ShuffleNetV1(width=0.125, groups=8, **SHORT),
        (2, 37, 33, 1),
        partial(Shuffled.v1, groups=8, small=False),
    ),
    'v2': (ShuffleNetV2(width=0.125, **SHORT), (2, 35, 50, 3), partial(Shuffled.v2, small=False)),
    'v2 small': (
        ShuffleNetV2(width=0.25, small=True, stem_kernel=1, kernel=5, **SHORT),
        (2, 9, 8, 1),
        partial(Shuffled.v2, small=True),
    ),
}


@pytest.mark.parametrize(('model', 'image', 'reference'), FORWARD.values(), ids=FORWARD)
def test_logits_and_features_equal_a_float64_forward_pass(model, image, reference):
    variables, x = random_variables(model, image), image_of(*image)
    assert_equal_to_reference(
        predict(model, variables, x), reference(Shuffled(variables), np.float64(x))
    )


@pytest.mark.parametrize('name', [*V1, *V2_WIDTHS])
def test_no_width_leaves_channels_that_groups_do_not_divide(name):
    """With one unit a stage, the striding one, and one more in the first."""

    def params(width):
        model = build(name, 10, width=width, stage_sizes=(2, 1, 1))
        return size(shapes_of(model)['params'])

    ours = params(1.0)
    for width in (0.25, 0.33, 1.7):
        narrow = params(width)
        assert (narrow < ours) == (width < 1) and narrow != ours


def torch_names(rule, model):
    flat = flax.traverse_util.flatten_dict(shapes_of(model), sep='/')
    modules = sorted({path.split('/', 1)[1].rsplit('/', 1)[0] for path in flat})
    result = [rule(module, ()) for module in modules]
    assert len(result) == len(set(result))
    return set(result)


def test_the_rules_give_the_published_module_names():
    units = [
        (stage, index) for stage, count in enumerate(COUNTS, start=1) for index in range(count)
    ]
    found = {'conv1.0', 'conv1.1', 'conv5.0', 'conv5.1', 'fc'}
    found |= {
        f'stage{stage + 1}.{index}.branch2.{i}'
        for stage, index in units
        for i in (0, 1, 3, 4, 5, 6)
    }
    found |= {f'stage{stage}.0.branch1.{i}' for stage in (2, 3, 4) for i in range(4)}
    assert torch_names(names.torchvision, build('imagenet_shufflenet_v2_x0_5', 10)) == found
    pairs = [(kind, i) for kind in ('conv', 'bn') for i in (1, 2, 3)]
    found = {f'layer{stage}.{index}.{kind}{i}' for stage, index in units for kind, i in pairs} | {
        'conv1',
        'bn1',
        'linear',
    }
    assert torch_names(names.repdistiller_v1, build('cifar_shufflenet_v1', 10)) == found
    found |= {
        f'layer{stage}.0.{kind}{i}'
        for stage in (1, 2, 3)
        for kind in ('conv', 'bn')
        for i in (4, 5)
    } | {'conv2', 'bn2'}
    assert torch_names(names.repdistiller_v2, build('cifar_shufflenet_v2', 10)) == found


def test_layers_are_not_confused():
    # depthwise
    assert names.torchvision('stage1_block1/shortcut1/conv', ()) == 'stage2.0.branch1.0'
    assert names.torchvision('stage1_block1/shortcut2/norm', ()) == 'stage2.0.branch1.3'
    assert names.torchvision('stage2_block8/conv2/conv', ()) == 'stage3.7.branch2.3'
    assert names.torchvision('stage2_block8/conv3/norm', ()) == 'stage3.7.branch2.6'
    assert names.repdistiller_v1('stage3_block1/conv1/norm', ()) == 'layer3.0.bn1'
    assert names.repdistiller_v2('stage3_block1/conv1/norm', ()) == 'layer3.0.bn3'
    assert names.repdistiller_v2('stage3_block2/conv1/norm', ()) == 'layer3.1.bn1'
    assert names.repdistiller_v2('stage3_block1/shortcut2/conv', ()) == 'layer3.0.conv2'


@pytest.mark.parametrize(
    ('rule', 'module', 'source'),
    [
        (names.torchvision, 'stage1_block1_adapter/down', 'torchvision'),
        (names.torchvision, 'stage1_block2/shortcut1/conv', 'torchvision'),
        (names.repdistiller_v2, 'head_stage2/dense', 'RepDistiller'),
        (names.repdistiller_v1, 'top/conv', 'RepDistiller'),
        (names.repdistiller_v1, 'stage1_block1/shortcut1/conv', 'RepDistiller'),
    ],
)
def test_a_module_without_a_counterpart_is_named(rule, module, source):
    sentence = (
        f'module {module!r} has no counterpart in the ShuffleNets of '
        f'{source}; leave it as initialised'
    )
    with pytest.raises(UserError, match=f'^{re.escape(sentence)}$'):
        rule(module, ())
