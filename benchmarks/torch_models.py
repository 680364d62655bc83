"""The networks of the distillation tables in PyTorch, with the state-dict
names of the code behind them.

That code is RepDistiller (Tian et al. 2020, arXiv:1910.10699) for small images, and
mdistiller (Zhao et al. 2022, arXiv:2203.08679) for MobileNetV1. Each network returns its
features and logits as a dict.
"""

from collections import OrderedDict
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn


def conv(inputs, outputs, kernel=1, stride=1, groups=1, bias=False):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)


def shuffle(x, groups):
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class Chain(nn.Module):
    """Modules conv1, bn1, conv2, bn2 ...: `specs` are the arguments of each convolution."""

    def __init__(self, *specs):
        super().__init__()
        for i, spec in enumerate(specs, start=1):
            self.add_module(f'conv{i}', conv(*spec))
            self.add_module(f'bn{i}', nn.BatchNorm2d(spec[1]))

    def unit(self, i, x):
        return self.get_submodule(f'bn{i}')(self.get_submodule(f'conv{i}')(x))


class Residual(Chain):
    """Basic (two convolutions) or bottleneck (three) block; `project` is the
    name of the projection shortcut.
    """

    def __init__(self, inputs, width, stride, bottleneck, project):
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            super().__init__((inputs, width), (width, width, 3, stride), (width, outputs))
        else:
            super().__init__((inputs, width, 3, stride), (width, width, 3))
        self.count, self.project = 3 if bottleneck else 2, None
        if stride != 1 or inputs != outputs:
            self.project = project
            self.add_module(
                project, nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
            )

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = self.unit(i, y if i == 1 else F.relu(y))
        return F.relu(y + (self.get_submodule(self.project)(x) if self.project else x))


class PreActivation(nn.Module):
    """Block of a wide residual network; where the width changes the shortcut, too,
    begins at the activated input.
    """

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        if inputs != outputs:
            self.convShortcut = conv(inputs, outputs, 1, stride)

    def forward(self, x):
        y = F.relu(self.bn1(x))
        x = self.convShortcut(y) if hasattr(self, 'convShortcut') else x
        return x + self.conv2(F.relu(self.bn2(self.conv1(y))))


class InvertedResidual(nn.Module):
    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        hidden = inputs * expansion
        modules = []
        for spec in ((inputs, hidden), (hidden, hidden, 3, stride, hidden), (hidden, outputs)):
            modules += [conv(*spec), nn.BatchNorm2d(spec[1]), nn.ReLU()]
        self.conv = nn.Sequential(*modules[:-1])
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class ShuffleV1(Chain):
    def __init__(self, inputs, outputs, stride, groups):
        new = outputs - inputs if stride == 2 else outputs
        hidden, first = new // 4, 1 if inputs == 24 else groups
        super().__init__(
            (inputs, hidden, 1, 1, first),
            (hidden, hidden, 3, stride, hidden),
            (hidden, new, 1, 1, groups),
        )
        self.first, self.stride = first, stride

    def forward(self, x):
        y = shuffle(F.relu(self.unit(1, x)), self.first)
        y = self.unit(3, F.relu(self.unit(2, y)))
        return F.relu(y + x if self.stride == 1 else torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1))


class ShuffleV2(Chain):
    def __init__(self, channels):
        half = channels // 2
        super().__init__((half, half), (half, half, 3, 1, half), (half, half))

    def forward(self, x):
        left, y = x.chunk(2, 1)
        y = F.relu(self.unit(3, self.unit(2, F.relu(self.unit(1, y)))))
        return shuffle(torch.cat([left, y], 1), 2)


class ShuffleV2Down(Chain):
    def __init__(self, inputs, outputs):
        half = outputs // 2
        left = (inputs, inputs, 3, 2, inputs), (inputs, half)
        super().__init__(*left, (inputs, half), (half, half, 3, 2, half), (half, half))

    def forward(self, x):
        left = F.relu(self.unit(2, self.unit(1, x)))
        right = F.relu(self.unit(5, self.unit(4, F.relu(self.unit(3, x)))))
        return shuffle(torch.cat([left, right], 1), 2)


class Network(nn.Module):
    """Named parts in order: (module name, module, feature name or None,
    what to apply after the module).
    """

    def __init__(self, parts, head, width, classes=100):
        super().__init__()
        self.plan = [(name, feature, after) for name, _, feature, after in parts]
        for name, module, _, _ in parts:
            self.add_module(name, module)
        self.head, linear = head, nn.Linear(width, classes)
        self.add_module(head.split('.')[0], nn.Sequential(linear) if '.' in head else linear)

    def forward(self, x):
        features = {}
        for name, feature, after in self.plan:
            x = after(self.get_submodule(name)(x))
            if feature:
                features[feature] = x
        features['pooled'] = x.mean((2, 3))
        return features | {'logits': self.get_submodule(self.head)(features['pooled'])}


class VGG(nn.Module):
    """For images of 32 pixels: the pooling after the fourth block is for 64."""

    def __init__(self, stages, classes=100):
        super().__init__()
        inputs = 3
        for i, widths in enumerate(stages):
            modules = []
            for width in widths:
                modules += [conv(inputs, width, 3, bias=True), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            self.add_module(f'block{i}', nn.Sequential(*modules[:-1]))
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x):
        features = {}
        for i in range(5):
            x = F.max_pool2d(x, 2) if 0 < i < 4 else x
            x = features[f'stage{i + 1}'] = F.relu(self.get_submodule(f'block{i}')(x))
        pooled = x.mean((2, 3))
        return {
            'stem': features['stage1'],
            **features,
            'pooled': pooled,
            'logits': self.classifier(pooled),
        }


class MobileNetV1(nn.Module):
    """For ImageNet: `rows` are channels and stride of the depthwise separable blocks, `ends`
    the last ones of the stages.
    """

    ends: ClassVar = {0: 'stem', 1: 'stage1', 3: 'stage2', 5: 'stage3', 11: 'stage4', 13: 'stage5'}
    rows = (
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *[(512, 1)] * 5,
        (1024, 2),
        (1024, 1),
    )

    def __init__(self):
        super().__init__()
        inputs = 32
        self.model = nn.Sequential(
            nn.Sequential(conv(3, inputs, 3, 2), nn.BatchNorm2d(inputs), nn.ReLU())
        )
        for outputs, stride in self.rows:
            depthwise = conv(inputs, inputs, 3, stride, inputs), nn.BatchNorm2d(inputs), nn.ReLU()
            self.model.append(
                nn.Sequential(*depthwise, conv(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU())
            )
            inputs = outputs
        self.fc = nn.Linear(inputs, 1000)

    def forward(self, x):
        features = {}
        for i, module in enumerate(self.model):
            x = module(x)
            if i in self.ends:
                features[self.ends[i]] = x
        pooled = x.mean((2, 3))
        return {**features, 'pooled': pooled, 'logits': self.fc(pooled)}


def same(x):
    return x


def resnet(blocks, widths, stem, bottleneck=False, project='downsample', head='fc'):
    parts = [('conv1', conv(3, stem, 3), None, same), ('bn1', nn.BatchNorm2d(stem), 'stem', F.relu)]
    inputs = stem
    for i, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
        layer = nn.Sequential()
        for j in range(count):
            layer.append(Residual(inputs, width, 2 if i > 1 and j == 0 else 1, bottleneck, project))
            inputs = 4 * width if bottleneck else width
        parts.append((f'layer{i}', layer, f'stage{i}', same))
    return Network(parts, head, inputs)


def wide_resnet(depth, factor):
    parts, inputs = [('conv1', conv(3, 16, 3), 'stem', same)], 16
    for i, width in enumerate((16 * factor, 32 * factor, 64 * factor), start=1):
        layer = nn.Sequential()
        for j in range((depth - 4) // 6):
            layer.append(PreActivation(inputs, width, 2 if i > 1 and j == 0 else 1))
            inputs = width
        parts.append((f'block{i}', nn.Sequential(OrderedDict(layer=layer)), f'stage{i}', same))
    parts.append(('bn1', nn.BatchNorm2d(inputs), None, F.relu))
    return Network(parts, 'fc', inputs)


def mobilenet_v2(factor):
    def unit(inputs, outputs, *spec):
        return nn.Sequential(conv(inputs, outputs, *spec), nn.BatchNorm2d(outputs), nn.ReLU())

    inputs = int(32 * factor)
    parts, blocks = [('conv1', unit(3, inputs, 3, 2), 'stem', same)], nn.ModuleList()
    rows = (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for i, (times, channels, count, stride) in enumerate(rows):
        layer = nn.Sequential()
        for j in range(count):
            layer.append(
                InvertedResidual(inputs, int(channels * factor), stride if j == 0 else 1, times)
            )
            inputs = int(channels * factor)
        blocks.append(layer)
        parts.append((f'blocks.{i}', layer, f'stage{i + 1}', same))
    parts.append(('conv2', unit(inputs, 1280), None, same))
    network = Network([], 'classifier.0', 1280)
    network.plan = [(name, feature, after) for name, _, feature, after in parts]
    network.conv1, network.blocks, network.conv2 = parts[0][1], blocks, parts[-1][1]
    return network


def shufflenet_v1(widths=(240, 480, 960), counts=(4, 8, 4), groups=3):
    parts = [('conv1', conv(3, 24), None, same), ('bn1', nn.BatchNorm2d(24), 'stem', F.relu)]
    inputs = 24
    for i, (width, count) in enumerate(zip(widths, counts, strict=True), start=1):
        first = ShuffleV1(inputs, width, 2, groups)
        layer = nn.Sequential(
            first, *(ShuffleV1(width, width, 1, groups) for _ in range(count - 1))
        )
        parts.append((f'layer{i}', layer, f'stage{i}', same))
        inputs = width
    return Network(parts, 'linear', inputs)


def shufflenet_v2(widths=(116, 232, 464), counts=(3, 7, 3), last=1024):
    parts = [('conv1', conv(3, 24), None, same), ('bn1', nn.BatchNorm2d(24), 'stem', F.relu)]
    inputs = 24
    for i, (width, count) in enumerate(zip(widths, counts, strict=True), start=1):
        layer = nn.Sequential(
            ShuffleV2Down(inputs, width), *(ShuffleV2(width) for _ in range(count))
        )
        parts.append((f'layer{i}', layer, f'stage{i}', same))
        inputs = width
    parts += [
        ('conv2', conv(inputs, last), None, same),
        ('bn2', nn.BatchNorm2d(last), None, F.relu),
    ]
    return Network(parts, 'linear', last)


FORMS = {
    **{
        f'resnet{6 * n + 2}': partial(resnet, (n, n, n), (16, 32, 64), 16)
        for n in (1, 2, 3, 5, 7, 9, 18)
    },
    'resnet8x4': partial(resnet, (1, 1, 1), (64, 128, 256), 32),
    'resnet32x4': partial(resnet, (5, 5, 5), (64, 128, 256), 32),
    'cifar_resnet18': partial(
        resnet, (2, 2, 2, 2), (64, 128, 256, 512), 64, project='shortcut', head='linear'
    ),
    'cifar_resnet50': partial(
        resnet, (3, 4, 6, 3), (64, 128, 256, 512), 64, True, 'shortcut', 'linear'
    ),
    **{
        f'wrn_{depth}_{factor}': partial(wide_resnet, depth, factor)
        for depth in (16, 40)
        for factor in (1, 2)
    },
    'cifar_vgg8': lambda: VGG(((64,), (128,), (256,), (512,), (512,))),
    'cifar_vgg13': lambda: VGG(((64, 64), (128, 128), (256, 256), (512, 512), (512, 512))),
    'cifar_mobilenet_v2_x0.5': partial(mobilenet_v2, 0.5),
    'cifar_shufflenet_v1': shufflenet_v1,
    'cifar_shufflenet_v2': shufflenet_v2,
    'mobilenet_v1': MobileNetV1,
}
