"""What the overrides of a model change in its layers, over the families, and how impossible ones
are refused. From shapes alone.
"""

import re

import pytest
from mobilenet_reference import FAMILIES, V1
from model_checks import flat
from model_facts import EXPECTED
from small_models import feature_shapes, shapes_of, size

from kd_jax.errors import UserError
from kd_jax.models import build
from kd_jax.models.resnet import CifarResNet

LONG = pytest.mark.long


def kernels_of(model, *sides):
    """{path: shape} of the kernels of all layers."""
    params = flat(shapes_of(model, (1, *(sides or (32, 32)), 3))['params'])
    return {
        path.removesuffix('/kernel'): leaf.shape
        for path, leaf in params.items()
        if path.endswith('/kernel')
    }


# Name, overrides, side of the image, kernels of some layers.
WIDTHS = [
    (
        'resnext50_32x4d',
        {'width': 0.5},
        32,
        {
            'stem/conv': (7, 7, 3, 32),
            'stage1_block1/conv1/conv': (1, 1, 32, 64),  # 32 groups of 2
            'stage1_block1/conv2/conv': (3, 3, 2, 64),
            'stage4_block3/conv3/conv': (1, 1, 512, 1024),
            'head': (1024, 10),
        },
    ),
    # the narrowest that is allowed
    ('resnext50_32x4d', {'width': 0.25}, 32, {'stage1_block1/conv2/conv': (3, 3, 1, 32)}),
    ('wrn_16_2', {'width': 0.5}, 32, {'stem': (3, 3, 3, 8), 'stage3_block2/conv2': (3, 3, 64, 64)}),
    (
        'imagenet_shufflenet_v2_x1_0',
        {'width': 0.25},
        32,
        {
            'stem/conv': (3, 3, 3, 6),
            'stage1_block2/conv1/conv': (1, 1, 15, 15),  # 116 / 4 = 29, made even
            'stage3_block1/conv1/conv': (1, 1, 58, 58),
            'top/conv': (1, 1, 116, 256),
        },
    ),
    (
        'cifar_shufflenet_v1',
        {'width': 0.1},
        32,
        {
            'stem/conv': (1, 1, 3, 3),  # 2.4
            'stage1_block1/conv1/conv': (1, 1, 3, 6),  # a quarter of 24 - 3 is 5
            'stage1_block1/conv3/conv': (1, 1, 2, 21),
            'stage2_block2/conv1/conv': (1, 1, 16, 12),
            'head': (96, 10),
        },
    ),
    (
        'imagenet_vgg11',
        {'width': 0.4, 'depth': 1.5, 'kernel': 5},
        32,
        {
            **{  # 25.6, 51.2, 102.4, 204.8
                f'stage{stage}_block{count}/conv': (5, 5, n, n)
                for stage, count, n in zip(
                    range(1, 6), (2, 2, 3, 3, 3), (26, 51, 102, 205, 205), strict=True
                )
            },
            'top_dense1': (7 * 7 * 205, 1638),  # 1638.4
            'top_dense2': (1638, 1638),
            'head': (1638, 10),
        },
    ),
    ('cifar_vgg19', {'width': 0.5, 'depth': 0.5}, 32, {'head': (256, 10)}),
    (
        'inception_v3',
        {'width': 0.3},
        75,
        {
            'stem1/conv': (3, 3, 3, 10),  # 9.6
            'stage2_block3/seven2/conv': (1, 7, 48, 48),  # 160 * 0.3
            'head_aux/conv1/conv': (5, 5, 38, 230),  # 38.4, 230.4
            'head': (96 + 4 * 115 + 58, 10),  # 96, 115.2, 57.6
        },
    ),
    (
        'googlenet',
        {'width': 0.25, 'aux': True},
        32,
        {
            'head_aux2/conv/conv': (1, 1, 132, 32),
            'head_aux2/dense1': (512, 256),
            'head': (256, 10),
        },
    ),
]


@pytest.mark.parametrize(('name', 'overrides', 'side', 'kernels'), WIDTHS)
def test_width_scales_every_layer_and_rounds(name, overrides, side, kernels):
    found = kernels_of(build(name, 10, **overrides), side, side)
    assert {path: found[path] for path in kernels} == kernels


# Parameters with 1000 classes: of torchvision's models with that width_mult, and of its
# efficientnet_b1 ... efficientnet_b7.
PARAMETERS = [
    ('imagenet_mobilenet_v2', {'width': 0.35}, 1_677_128),
    ('imagenet_mobilenet_v2', {'width': 0.75}, 2_636_424),
    ('imagenet_mobilenet_v2', {'width': 1.4}, 6_108_776),
    ('mobilenet_v3_large', {'width': 0.35}, 997_064),
    ('mobilenet_v3_large', {'width': 1.25}, 8_164_744),
    ('mobilenet_v3_small', {'width': 0.5}, 917_264),
    ('mobilenet_v3_small', {'width': 0.75}, 1_653_920),
    ('efficientnet_b0', {'width': 1.0, 'depth': 1.1}, 7_794_184),
    pytest.param(
        'efficientnet_b0', {'width': 1.1, 'depth': 1.2}, 9_109_994, marks=pytest.mark.long
    ),
    ('efficientnet_b0', {'width': 1.2, 'depth': 1.4}, 12_233_232),
    pytest.param(
        'efficientnet_b0', {'width': 1.4, 'depth': 1.8}, 19_341_616, marks=pytest.mark.long
    ),
    ('efficientnet_b0', {'width': 1.6, 'depth': 2.2}, 30_389_784),
    pytest.param(
        'efficientnet_b0', {'width': 1.8, 'depth': 2.6}, 43_040_704, marks=pytest.mark.long
    ),
    pytest.param(
        'efficientnet_b0', {'width': 2.0, 'depth': 3.1}, 66_347_960, marks=pytest.mark.long
    ),
]


@pytest.mark.parametrize(('name', 'overrides', 'params'), PARAMETERS)
def test_width_and_depth_round_as_torchvisions(name, overrides, params):
    assert size(shapes_of(build(name, 1000, **overrides))['params']) == params


@pytest.mark.parametrize(
    ('name', 'depth', 'blocks'),
    [
        ('resnet50', 0.5, (2, 2, 3, 2)),
        ('cifar_resnet18', 0.1, (1, 1, 1, 1)),
        ('wrn_16_2', 1.5, (3, 3, 3)),
        *(
            (name, depth, blocks)
            for name in ('imagenet_shufflenet_v2_x0_5', 'cifar_shufflenet_v1')
            for depth, blocks in ((0.1, (1, 1, 1)), (0.5, (2, 4, 2)), (1.3, (6, 11, 6)))
        ),
        ('imagenet_mobilenet_v2', 2.0, (2, 4, 6, 8, 6, 6, 2)),
        ('mobilenet_v3_large', 0.5, (1, 1, 2, 2, 1, 2)),
        ('mobilenet_v1', 1.5, (2, 3, 3, 9, 3)),
        ('imagenet_vgg11', 1.5, (2, 2, 3, 3, 3)),  # 1.5, 1.5, 3, 3, 3 rounded up
        ('cifar_vgg19', 0.5, (1, 1, 2, 2, 2)),
    ],
)
def test_depth_scales_the_blocks_of_each_stage(name, depth, blocks):
    found = {
        re.match(r'stage\d+_block\d+', path)[0]
        for path in kernels_of(build(name, 10, width=0.25, depth=depth))
        if path.startswith('stage')
    }
    assert found == {
        f'stage{i}_block{j}' for i, count in enumerate(blocks, start=1) for j in range(1, count + 1)
    }


def depthwise(name):
    """Kernels of the depthwise convolutions of a published table, in order."""
    return [3] * len(V1) if name == 'mobilenet_v1' else [row.kernel for row in FAMILIES[name][0]]


# Name, the kernel to set, the layers that it is of, and their kernels without it.
KERNELS = [
    ('resnet18', 5, r'.*/conv[12]/conv', [3] * 16),
    ('resnet50', 5, r'.*/conv2/conv', [3] * 16),
    ('cifar_resnet18', 5, r'.*/conv[12]/conv', [3] * 16),
    ('wrn_16_1', 5, r'.*/conv[12]', [3] * 12),
    ('imagenet_shufflenet_v1', 5, r'.*/conv2/conv', [3] * 16),
    ('cifar_shufflenet_v1', 5, r'.*/conv2/conv', [3] * 16),
    ('cifar_shufflenet_v2', 5, r'.*/(conv2|shortcut1)/conv', [3] * (16 + 3)),
    ('cifar_vgg8', 5, r'stage.*/conv', [3] * 5),
    *(
        (name, 7, r'.*/depthwise/conv', depthwise(name))
        for name in ('mobilenet_v1', *sorted(FAMILIES))
    ),
    # 5 of the paper's are 5x5
    (
        'efficientnet_b0',
        3,
        r'stage[356]_.*/depthwise/conv',
        [5] * (2 + 3 + 4),
    ),
]


@pytest.mark.parametrize(('name', 'kernel', 'layers', 'before'), KERNELS)
def test_kernel_replaces_that_of_these_layers_and_of_no_other(name, kernel, layers, before):
    plain, other = build(name, 10), build(name, 10, kernel=kernel)
    assert feature_shapes(plain, 1, 40, 33, 3) == feature_shapes(other, 1, 40, 33, 3)
    plain, other = (kernels_of(model, 40, 33) for model in (plain, other))
    assert plain.keys() == other.keys()
    changed = {path: plain[path] for path in plain if plain[path] != other[path]}
    assert {other[path] for path in changed} == {(kernel, kernel, *x[2:]) for x in changed.values()}
    assert all(re.fullmatch(layers, path) for path in changed)
    assert sorted(x[:2] for x in changed.values()) == sorted((k, k) for k in before)


@pytest.mark.parametrize(
    ('name', 'blocks', 'widths'),
    [
        ('resnet50', (3, 4, 6, 3), (256, 512, 1024, 2048)),
        ('wrn_40_2', (6, 6, 6), (32, 64, 128)),
        ('imagenet_shufflenet_v1', (4, 8, 4), (240, 480, 960)),
        ('cifar_shufflenet_v2', (4, 8, 4), (116, 232, 464)),
        ('mobilenet_v3_small', (1, 2, 3, 2, 3), (16, 24, 40, 48, 96)),
    ],
)
def test_every_block_gets_its_adapter(name, blocks, widths):
    added = sum(count * (2 * 4 * c + 4 + c) for count, c in zip(blocks, widths, strict=True))
    params = shapes_of(build(name, EXPECTED[name].classes, adapter=4))['params']
    assert size(params) == EXPECTED[name].params + added
    adapters = {key.removesuffix('_adapter') for key in params if key.endswith('_adapter')}
    assert adapters == {key for key in params if '_block' in key and not key.endswith('_adapter')}
    assert params[f'stage{len(blocks)}_block{blocks[-1]}_adapter']['down']['kernel'].shape == (
        *(1, 1, widths[-1], 4),
    )


REFUSED_WHEN_CALLED = [
    (
        build('resnet18', 10, groups=2),
        (32, 32),
        'groups 2 with group_width 64 need bottleneck blocks, this model has basic ones '
        '(groups 1, group_width 64); set bottleneck, or take resnet50 or cifar_resnet50',
    ),
    (
        build('resnext50_32x4d', 10, width=0.2),
        (32, 32),
        'width 0.2 leaves no channel in the groups of 4; use 0.25 or more',
    ),
    (
        CifarResNet(num_classes=10, stage_sizes=(1, 1)),
        (32, 32),
        'stage_sizes (1, 1) are 2 stages, but widths (16, 32, 64) are 3; '
        'give one number a stage in both',
    ),
    (
        build('imagenet_shufflenet_v2_x1_0', 10, widths=(116, 232)),
        (32, 32),
        'stage_sizes (4, 8, 4) are 3 stages, but widths (116, 232) are 2; '
        'give one number a stage in both',
    ),
    (
        build('cifar_shufflenet_v1', 10, groups=8, width=0.0209),
        (32, 32),
        'width 0.0209 with 8 groups leaves stage 1 no more channels than it receives; '
        'use a greater width or fewer groups',
    ),
    (
        build('imagenet_mobilenet_v2', 10, strides=(2, 1)),
        (32, 32),
        'strides (2, 1) of MobileNetV2 are 2; give 8: of the stem and of each of the 7 stages',
    ),
    *(
        (
            build(name, 10, width=width),
            (75, 75),
            f'width {width} leaves none of a layer of {channels} channels; use {least} or more',
        )
        for name, width, channels, least in (
            ('cifar_resnet18', 0.001, 64, 0.0156),
            ('cifar_shufflenet_v1', 0.02, 24, 0.0417),
            ('cifar_vgg8', 0.005, 64, 0.0156),
            ('inception_v3', 0.01, 32, 0.0312),
        )
    ),
    *(
        (
            build(name, 10),
            sides,
            f'{title} needs images of at least {least} x {least} pixels, '
            f'these have {sides[0]} x {sides[1]}',
        )
        for name, title, least, sides in (
            ('imagenet_vgg11', 'VGG', 32, (31, 40)),
            ('cifar_vgg8', 'this VGG', 8, (8, 7)),
            ('cifar_vgg8', 'this VGG, for images 64 pixels high,', 16, (64, 15)),
            ('inception_v3', 'Inception-v3', 75, (75, 74)),
            ('googlenet', 'GoogLeNet', 15, (15, 14)),
            ('cnn', 'cnn', 4, (4, 3)),
        )
    ),
]


@pytest.mark.parametrize(('model', 'sides', 'sentence'), REFUSED_WHEN_CALLED)
def test_the_impossible_is_refused_in_one_sentence_when_a_model_is_called(model, sides, sentence):
    with pytest.raises(UserError) as error:
        shapes_of(model, (1, *sides, 3))
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ('name', 'field', 'value', 'words'),
    [
        ('resnet50', 'groups', 0, 'a whole number, 1 or more'),
        ('resnet50', 'group_width', 0, 'a whole number, 1 or more'),
        ('wrn_16_2', 'widen', 0, 'a whole number, 1 or more'),
        ('imagenet_shufflenet_v1', 'groups', 5, 'one of 1, 2, 3, 4, 8'),
        *(
            (name, field, value, f'at least 0 and less than 1: the share to drop, such as {such}')
            for name, field, value, such in (
                ('wrn_16_2', 'block_dropout', 1.0, 0.3),
                ('efficientnet_b0', 'stochastic_depth', -0.1, 0.2),
                ('efficientnet_b0', 'stochastic_depth', 1.0, 0.2),
            )
        ),
    ],
)
def test_overrides_outside_their_range_are_refused(name, field, value, words):
    with pytest.raises(UserError) as error:
        build(name, 10, **{field: value})
    assert (
        str(error.value) == f'{field} {value} of model {name!r} is not possible; it must be {words}'
    )


@pytest.mark.parametrize('name', ['inception_v3', 'googlenet'])
@pytest.mark.parametrize(('field', 'value'), [('depth', 2.0), ('kernel', 5)])
def test_the_number_of_modules_and_their_kernels_are_fixed(name, field, value):
    with pytest.raises(
        UserError, match=f"^model '{name}' has no field '{field}'; its fields: adapter, aux, "
    ):
        build(name, 10, **{field: value})
