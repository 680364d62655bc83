"""The published tables of the depthwise networks, their arithmetic, a float64 forward pass,
and PyTorch's names of layers.
"""

from typing import NamedTuple

import jax
import numpy as np
from model_reference import Reference, conv_reference
from small_models import shapes_of

from kd_jax.models import build


class Row(NamedTuple):
    """One block of a published table."""

    hidden: int  # channels after the expansion
    features: int
    stride: int = 1
    kernel: int = 3
    squeeze: int = 0  # hidden channels of squeeze-and-excitation
    act: str = 'relu'


def v2_rows():
    """Table 2 of Sandler et al. 2018: t, c, n, s."""
    rows, inputs = [], 32
    for t, c, n, s in [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]:
        for i in range(n):
            rows.append(Row(t * inputs, c, s if i == 0 else 1, act='relu6'))
            inputs = c
    return rows


# Tables 1 and 2 of Howard et al. 2019; the last number is the squeeze: a quarter of
# the first, as a multiple of 8.
V3_LARGE = [
    Row(16, 16),
    Row(64, 24, 2),
    Row(72, 24),
    Row(72, 40, 2, 5, 24),
    Row(120, 40, 1, 5, 32),
    Row(120, 40, 1, 5, 32),
    Row(240, 80, 2, act='hard_swish'),
    Row(200, 80, act='hard_swish'),
    Row(184, 80, act='hard_swish'),
    Row(184, 80, act='hard_swish'),
    Row(480, 112, 1, 3, 120, 'hard_swish'),
    Row(672, 112, 1, 3, 168, 'hard_swish'),
    Row(672, 160, 2, 5, 168, 'hard_swish'),
    Row(960, 160, 1, 5, 240, 'hard_swish'),
    Row(960, 160, 1, 5, 240, 'hard_swish'),
]
V3_SMALL = [
    Row(16, 16, 2, 3, 8),
    Row(72, 24, 2),
    Row(88, 24),
    Row(96, 40, 2, 5, 24, 'hard_swish'),
    Row(240, 40, 1, 5, 64, 'hard_swish'),
    Row(240, 40, 1, 5, 64, 'hard_swish'),
    Row(120, 48, 1, 5, 32, 'hard_swish'),
    Row(144, 48, 1, 5, 40, 'hard_swish'),
    Row(288, 96, 2, 5, 72, 'hard_swish'),
    Row(576, 96, 1, 5, 144, 'hard_swish'),
    Row(576, 96, 1, 5, 144, 'hard_swish'),
]
V1 = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
V1 += [(512, 512, 1)] * 5 + [(512, 1024, 2), (1024, 1024, 1)]
# Name, rows, blocks of each stage, channels of the stem, of `top` and of `top_dense`,
# activation outside the blocks.
FAMILIES = {
    'imagenet_mobilenet_v2': (v2_rows(), (1, 2, 3, 4, 3, 3, 1), 32, 1280, 0, 'relu6'),
    'mobilenet_v3_large': (V3_LARGE, (1, 2, 3, 4, 2, 3), 16, 960, 1280, 'hard_swish'),
    'mobilenet_v3_small': (V3_SMALL, (1, 2, 3, 2, 3), 16, 576, 1024, 'hard_swish'),
}
ACTS = {
    'relu': lambda x: np.maximum(x, 0),
    'relu6': lambda x: np.clip(x, 0, 6),
    'hard_sigmoid': lambda x: np.clip(x + 3, 0, 6) / 6,
    'hard_swish': lambda x: x * np.clip(x + 3, 0, 6) / 6,
    'sigmoid': lambda x: 1 / (1 + np.exp(-x)),
    'silu': lambda x: x / (1 + np.exp(-x)),
    None: lambda x: x,
}


def arithmetic(rows, stem, top, dense, classes=1000, side=112):
    """(parameters, running statistics, multiply-accumulates) of inverted
    residuals behind a stride-2 stem.
    """
    weights = macs = channels = extra = 0

    def conv(side, kernel, inputs, outputs):
        nonlocal weights, macs, channels
        weights += kernel * kernel * inputs * outputs
        macs += kernel * kernel * inputs * outputs * side * side
        channels += outputs

    conv(side, 3, 3, stem)
    inputs = stem
    for row in rows:
        if row.hidden != inputs:
            conv(side, 1, inputs, row.hidden)
        side //= row.stride
        conv(side, row.kernel, 1, row.hidden)
        if row.squeeze:
            extra += 2 * row.hidden * row.squeeze
            weights += row.hidden + row.squeeze  # biases
        conv(side, 1, row.hidden, row.features)
        inputs = row.features
    conv(side, 1, inputs, top)
    for outputs in [dense, classes] if dense else [classes]:
        extra += top * outputs
        weights += outputs
        top = outputs
    return weights + extra + 2 * channels, 2 * channels, macs + extra


class Net(Reference):
    """Evaluation of depthwise networks in float64, written from the tables."""

    def __init__(self, variables, epsilon):
        super().__init__(variables)
        self.epsilon = epsilon

    def normed(self, name, x, act):
        x = (x - self.statistic(f'{name}/norm/mean')) / np.sqrt(
            self.statistic(f'{name}/norm/var') + self.epsilon
        )
        return ACTS[act](x * self.param(f'{name}/norm/scale') + self.param(f'{name}/norm/bias'))

    def stem(self, x, act, stride=2):
        return self.normed('stem', conv_reference(x, self.param('stem/conv/kernel'), stride), act)

    def pointwise(self, name, x, act):
        return self.normed(name, x @ self.param(f'{name}/conv/kernel')[0, 0], act)

    def depthwise(self, name, x, kernel, stride, act):
        weights = self.param(f'{name}/conv/kernel')
        assert weights.shape == (kernel, kernel, 1, x.shape[-1])
        pad = kernel // 2
        padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        height, width = ((n - 1) // stride + 1 for n in x.shape[1:3])
        rows, columns = (slice(0, (n - 1) * stride + 1) for n in (height, width))
        y = 0
        for i in range(kernel):
            for j in range(kernel):
                y = (
                    y
                    + padded[:, i:, j:][:, rows, columns][:, ::stride, ::stride] * weights[i, j, 0]
                )
        return self.normed(name, y, act)

    def inverted(self, name, x, row, squeeze_acts):
        y = x
        if name != 'stage1_block1':  # the only block of the tables whose expansion would not expand
            y = self.pointwise(f'{name}/expand', y, row.act)
        y = self.depthwise(f'{name}/depthwise', y, row.kernel, row.stride, row.act)
        if row.squeeze:
            weights = y.mean(axis=(1, 2), keepdims=True)
            for layer, act in zip(('reduce', 'expand'), squeeze_acts, strict=True):
                weights = ACTS[act](
                    weights @ self.param(f'{name}/se/{layer}/kernel')[0, 0]
                    + self.param(f'{name}/se/{layer}/bias')
                )
            y = y * weights
        y = self.pointwise(f'{name}/project', y, None)
        return x + y if row.stride == 1 and x.shape == y.shape else y

    def run(self, x, rows, stages, act, squeeze_acts):
        x = self.stem(x, act)
        features, rows = {'stem': x}, iter(rows)
        for stage, count in enumerate(stages, start=1):
            for block in range(1, count + 1):
                x = self.inverted(f'stage{stage}_block{block}', x, next(rows), squeeze_acts)
            features[f'stage{stage}'] = x
        x = self.pointwise('top', x, act).mean(axis=(1, 2))
        if 'params/top_dense/kernel' in self.values:
            x = ACTS[act](self.linear('top_dense', x))
        return features | {'pooled': x, 'logits': self.linear('head', x)}


def named(name, rule, **overrides):
    """{our path without the collection: PyTorch's name of the tensor}."""
    leaves = {
        'kernel': 'weight',
        'bias': 'bias',
        'scale': 'weight',
        'mean': 'running_mean',
        'var': 'running_var',
    }
    variables = shapes_of(build(name, 10, **overrides))
    blocks = sorted(
        (key for key in variables['params'] if '_block' in key),
        key=lambda key: [int(n) for n in key[5:].split('_block')],
    )
    result = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(variables):
        *module, leaf = [part.key for part in path[1:]]
        result['/'.join((*module, leaf))] = f'{rule("/".join(module), blocks)}.{leaves[leaf]}'
    return result


NORM = ('weight', 'bias', 'running_mean', 'running_var')


def sequence(prefix, *kinds):
    """The tensors of a PyTorch sequence: `c` convolution, `n` BatchNorm, a number a nested
    sequence of c and n, `s` SE.
    """
    tensors = []
    for place, kind in enumerate(kinds):
        tensors += {
            'c': [f'{prefix}.{place}.weight'],
            'n': [f'{prefix}.{place}.{leaf}' for leaf in NORM],
            'cn': [f'{prefix}.{place}.0.weight', *(f'{prefix}.{place}.1.{leaf}' for leaf in NORM)],
            's': [
                f'{prefix}.{place}.{fc}.{leaf}'
                for fc in ('fc1', 'fc2')
                for leaf in ('weight', 'bias')
            ],
            '': [],  # an activation
        }[kind]
    return tensors


def dense(name):
    return [f'{name}.weight', f'{name}.bias']
