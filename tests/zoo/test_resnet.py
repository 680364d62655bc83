"""The residual families: features, float64 numpy forward passes,
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
from model_reference import Reference, conv_reference, rectified
from small_models import feature_shapes, image_of, predict, random_variables, shapes_of

from kd_jax.errors import UserError
from kd_jax.models import build
from kd_jax.models.layers import Setting
from kd_jax.models.resnet import ResNet
from kd_jax.models.wide_resnet import PreactivationBlock, WideResNet
from kd_jax.pretrained import resnet as names

IMAGENET = (
    'resnet18',
    'resnet34',
    'resnet50',
    'resnet101',
    'resnet152',
    'wide_resnet50_2',
    'resnext50_32x4d',
)
SMALL = ('cifar_resnet18', 'cifar_resnet34', 'cifar_resnet50')
WIDE = ('wrn_16_1', 'wrn_16_2', 'wrn_40_1', 'wrn_40_2')
BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def test_odd_and_tiny_images_halve_as_torchvisions():
    model = build('resnet18', 10, width=0.125)
    # 75 -> 38 -> 19 -> 10 -> 5 -> 3; 33 -> 17 -> 9 -> 5 -> 3 -> 2
    shapes = feature_shapes(model, 1, 75, 33, 1)
    stages = {
        'stage1': (19, 9, 8),
        'stage2': (10, 5, 16),
        'stage3': (5, 3, 32),
        'stage4': (3, 2, 64),
    }
    assert shapes == {'stem': (19, 9, 8), **stages, 'pooled': (64,)}
    assert feature_shapes(model, 1, 1, 1, 3)['stage4'] == (1, 1, 64)


def counted(convs, norms, dense, bias):
    """(parameters, running statistics) of convolutions (k, in, out),
    BatchNorms and a dense layer.
    """
    channels = sum(norms)
    return sum(
        k * k * i * o for k, i, o in convs
    ) + 2 * channels + dense * bias + bias, 2 * channels


@pytest.mark.parametrize('name', [*IMAGENET, *SMALL])
def test_resnet_counts_follow_from_arithmetic(name):
    blocks = BLOCKS[int(re.search(r'res?ne[x]?t(\d+)', name)[1])]
    groups, base = {'wide_resnet50_2': (1, 128), 'resnext50_32x4d': (32, 4)}.get(name, (1, 64))
    convs, inputs = [(3 if name in SMALL else 7, 3, 64)], 64
    norms = [64]
    for stage, count in enumerate(blocks):
        planes = 64 * 2**stage
        for number in range(count):
            if name.endswith(('18', '34')):
                outputs, path = planes, [(3, inputs, planes), (3, planes, planes)]
            else:
                hidden, outputs = planes * base // 64 * groups, 4 * planes
                path = [(1, inputs, hidden), (3, hidden // groups, hidden), (1, hidden, outputs)]
            if number == 0 and (stage > 0 or inputs != outputs):
                path.append((1, inputs, outputs))
            convs += path
            norms += [out for _, _, out in path]
            inputs = outputs
    facts = EXPECTED[name]
    assert (facts.params, facts.statistics) == counted(convs, norms, inputs, facts.classes)
    assert facts.width == inputs and facts.stages == 4


@pytest.mark.parametrize('name', WIDE)
def test_wide_resnet_counts_follow_from_arithmetic(name):
    depth, k = (int(part) for part in name.split('_')[1:])
    convs, norms, inputs, side = [(3, 3, 16)], [], 16, 32
    macs = 32 * 32 * 9 * 3 * 16
    for stage in range(3):
        outputs = 16 * k * 2**stage
        for number in range((depth - 4) // 6):
            if stage > 0 and number == 0:
                side //= 2
            path = [(3, inputs, outputs), (3, outputs, outputs)]
            if inputs != outputs:
                path.append((1, inputs, outputs))
            norms += [inputs, outputs]
            convs += path
            macs += sum(k * k * i * o for k, i, o in path) * side * side
            inputs = outputs
    facts = EXPECTED[name]
    assert (facts.params, facts.statistics) == counted(
        convs, [*norms, inputs], inputs, facts.classes
    )
    assert facts.macs == macs + inputs * facts.classes
    assert len(convs) == {'wrn_16_1': 15, 'wrn_16_2': 16, 'wrn_40_1': 39, 'wrn_40_2': 40}[name]


class Residual(Reference):
    """Forward passes of `ResNet` and `WideResNet` in float64."""

    def norm_relu(self, name, x):
        x = (x - self.statistic(f'{name}/mean')) / np.sqrt(self.statistic(f'{name}/var') + 1e-5)
        return np.maximum(x * self.param(f'{name}/scale') + self.param(f'{name}/bias'), 0)

    def conv(self, name, x, stride=1):
        return conv_reference(x, self.param(f'{name}/kernel'), stride)

    def ended(self, features, x):
        features['pooled'] = x.mean(axis=(1, 2))
        return features | {'logits': self.linear('head', features['pooled'])}

    def each_block(self, blocks):
        for stage, count in enumerate(blocks, start=1):
            for number in range(1, count + 1):
                yield stage, f'stage{stage}_block{number}', 2 if stage > 1 and number == 1 else 1

    def net(self, x, blocks, small, groups=1):
        x = self.unit('stem', x, 1 if small else 2)
        if not small:  # after ReLU zeros stand for minus infinity
            height, width = (-(-n // 2) for n in x.shape[1:3])
            x = np.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)))
            shifts = [
                x[:, i : i + 2 * height : 2, j : j + 2 * width : 2]
                for i in range(3)
                for j in range(3)
            ]
            x = np.max(shifts, axis=0)
        features = {'stem': x}
        for stage, name, stride in self.each_block(blocks):
            if f'params/{name}/conv3/conv/kernel' in self.values:
                y = self.unit(f'{name}/conv2', self.unit(f'{name}/conv1', x), stride, groups)
                y = self.unit(f'{name}/conv3', y, relu=False)
            else:
                y = self.unit(f'{name}/conv2', self.unit(f'{name}/conv1', x, stride), relu=False)
            if f'params/{name}/shortcut/conv/kernel' in self.values:
                x = self.unit(f'{name}/shortcut', x, stride, relu=False)
            features |= rectified(stage, x + y)
            x = features[f'stage{stage}']
        return self.ended(features, x)

    def wide(self, x, blocks):
        features = {'stem': self.conv('stem', x)}
        x = features['stem']
        for stage, name, stride in self.each_block(blocks):
            y = self.norm_relu(f'{name}/norm1', x)
            if f'params/{name}/shortcut/kernel' in self.values:
                x = self.conv(f'{name}/shortcut', y, stride)
            y = self.norm_relu(f'{name}/norm2', self.conv(f'{name}/conv1', y, stride))
            features[f'stage{stage}'] = x = x + self.conv(f'{name}/conv2', y)
        return self.ended(features, self.norm_relu('top', x))


GROUPED = partial(ResNet, num_classes=5, bottleneck=True, groups=4, group_width=8, width=0.25)
WIDER = partial(WideResNet, num_classes=5)
FORWARD = {
    'basic': (
        ResNet(num_classes=5, stage_sizes=(1, 2), width=0.125),
        (2, 19, 26, 3),
        partial(Residual.net, blocks=(1, 2), small=False),
    ),
    'grouped': (
        GROUPED(stage_sizes=(2, 1, 1)),
        (2, 17, 16, 1),
        partial(Residual.net, blocks=(2, 1, 1), small=False, groups=4),
    ),
    'small': (
        GROUPED(stage_sizes=(1, 1), small_images=True, kernel=5),
        (2, 7, 10, 3),
        partial(Residual.net, blocks=(1, 1), small=True, groups=4),
    ),
    'wide': (
        WIDER(stage_sizes=(2, 1, 2), widen=2, width=0.25),
        (2, 9, 8, 3),
        partial(Residual.wide, blocks=(2, 1, 2)),
    ),
    'thin': (
        WIDER(stage_sizes=(1, 2, 1), width=0.5),
        (2, 8, 8, 1),
        partial(Residual.wide, blocks=(1, 2, 1)),
    ),
}


@pytest.mark.parametrize(('model', 'image', 'reference'), FORWARD.values(), ids=FORWARD)
def test_logits_and_features_equal_a_float64_forward_pass(model, image, reference):
    variables, x = random_variables(model, image), image_of(*image)
    assert_equal_to_reference(
        predict(model, variables, x), reference(Residual(variables), np.float64(x))
    )


def test_block_dropout_drops_half_of_what_the_second_convolution_sees_and_doubles_the_rest():
    # BatchNorm as in evaluation
    model = PreactivationBlock(8, dropout=0.5, setting=Setting(frozen=('.*',)))
    x = image_of(4, 6, 6, 8)
    variables = random_variables(model, x.shape)
    identity = np.zeros((3, 3, 8, 8), np.float32)
    identity[1, 1] = np.eye(8)
    variables['params']['conv2']['kernel'] = identity
    seen = model.apply(variables, x, train=False) - x
    dropped = model.apply(variables, x, train=True, rngs={'dropout': jax.random.key(0)}) - x
    np.testing.assert_array_less(np.minimum(np.abs(dropped), np.abs(dropped - 2 * seen)), 1e-5)
    alive = np.asarray(seen) > 1e-3
    assert alive.sum() > 300
    assert 0.4 < (np.abs(dropped)[alive] < 1e-5).mean() < 0.6
    assert 0.4 < (np.abs(dropped - 2 * seen)[alive] < 1e-5).mean() < 0.6


def torch_names(rule, model):
    flat = flax.traverse_util.flatten_dict(shapes_of(model), sep='/')
    modules = sorted({path.split('/', 1)[1].rsplit('/', 1)[0] for path in flat})
    blocks = [path.split('/')[0] for path in modules if path.startswith('stage')]
    result = [rule(module, blocks) for module in modules]
    assert len(result) == len(set(result))
    return set(result)


def layer_names(blocks, units, shortcut, shortened):
    """PyTorch's names in `layer1.0` ...; `shortened`: the stages
    whose first block has a shortcut.
    """
    found = set()
    for stage, count in enumerate(blocks, start=1):
        for index in range(count):
            found |= {
                f'layer{stage}.{index}.{kind}{i}'
                for i in range(1, units + 1)
                for kind in ('conv', 'bn')
            }
        if stage in shortened:
            found |= {f'layer{stage}.0.{shortcut}.0', f'layer{stage}.0.{shortcut}.1'}
    return found | {'conv1', 'bn1'}


def test_the_rules_give_the_published_module_names():
    basic, deep = (
        layer_names((2, 2, 2, 2), 2, 'downsample', (2, 3, 4)),
        layer_names((3, 4, 6, 3), 3, 'downsample', (1, 2, 3, 4)),
    )
    assert torch_names(names.torchvision, build('resnet18', 10)) == basic | {'fc'}
    assert torch_names(names.torchvision, build('resnext50_32x4d', 10)) == deep | {'fc'}
    small = layer_names((3, 4, 6, 3), 3, 'shortcut', (1, 2, 3, 4))
    assert torch_names(names.repdistiller_small, build('cifar_resnet50', 10)) == small | {'linear'}
    cifar = layer_names((3, 3, 3), 2, 'downsample', (2, 3)) | {'fc'}
    assert torch_names(names.repdistiller, build('resnet20', 10)) == cifar
    assert torch_names(names.chenyaofo, build('resnet20', 10)) == cifar
    wide = {
        f'block{i}.layer.{j}.{kind}{n}'
        for i in (1, 2, 3)
        for j in (0, 1)
        for n in (1, 2)
        for kind in ('conv', 'bn')
    }
    wide |= {'conv1', 'bn1', 'fc', 'block2.layer.0.convShortcut', 'block3.layer.0.convShortcut'}
    assert torch_names(names.repdistiller_wide, build('wrn_16_1', 10)) == wide


def test_convolutions_and_norms_are_not_confused():
    assert names.torchvision('stage2_block1/shortcut/conv', ()) == 'layer2.0.downsample.0'
    assert names.torchvision('stage2_block1/shortcut/norm', ()) == 'layer2.0.downsample.1'
    assert names.torchvision('stage3_block12/conv3/norm', ()) == 'layer3.11.bn3'
    assert names.repdistiller_small('stem/norm', ()) == 'bn1'
    assert names.repdistiller_wide('stage1_block2/norm2', ()) == 'block1.layer.1.bn2'
    assert names.repdistiller_wide('top', ()) == 'bn1'


@pytest.mark.parametrize(
    'module', ['stage1_block1_adapter/down', 'head_stage2/dense', 'stage1_block1/conv4/conv']
)
def test_a_module_without_a_counterpart_is_named(module):
    sentence = (
        f'module {module!r} has no counterpart in the ResNets of '
        'torchvision; leave it as initialised'
    )
    with pytest.raises(UserError, match=f'^{re.escape(sentence)}$'):
        names.torchvision(module, ())
