"""Convolution and evaluation-mode forward passes in float64 numpy,
written from the structure tables.
"""

import flax
import numpy as np


def conv_reference(x, kernel, stride=1, groups=1):
    """PyTorch's convolution in float64: k // 2 zeros on all four sides, output (n + 2
    (k // 2) - k) // stride + 1.
    """
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    k, outputs = kernel.shape[0], kernel.shape[-1]
    pad = k // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = ((n - k) // stride + 1 for n in x.shape[1:3])
    y = np.zeros((x.shape[0], height, width, outputs))
    for g in range(groups):
        ins = slice(g * kernel.shape[2], (g + 1) * kernel.shape[2])
        outs = slice(g * outputs // groups, (g + 1) * outputs // groups)
        for i in range(height):
            for j in range(width):
                patch = x[:, i * stride : i * stride + k, j * stride : j * stride + k, ins]
                y[:, i, j, outs] = np.tensordot(patch, kernel[..., outs], axes=3)
    return y


def rectified(stage, x):
    """The features of a stage that ends in the ReLU of `x`."""
    return {f'stage{stage}': np.maximum(x, 0), f'stage{stage}_pre': x}


class Reference:
    """Networks over the variables of a Flax model: `{feature: array, 'logits': array}`."""

    def __init__(self, variables):
        flat = flax.traverse_util.flatten_dict(variables, sep='/')
        self.values = {path: np.float64(value) for path, value in flat.items()}

    def param(self, path):
        return self.values[f'params/{path}']

    def statistic(self, path):
        return self.values[f'batch_stats/{path}']

    def unit(self, name, x, stride=1, groups=1, relu=True):
        y = conv_reference(x, self.param(f'{name}/conv/kernel'), stride, groups)
        y = (y - self.statistic(f'{name}/norm/mean')) / np.sqrt(
            self.statistic(f'{name}/norm/var') + 1e-5
        )
        y = y * self.param(f'{name}/norm/scale') + self.param(f'{name}/norm/bias')
        return np.maximum(y, 0) if relu else y

    def linear(self, name, x):
        return x @ self.param(f'{name}/kernel') + self.param(f'{name}/bias')

    def resnet(self, x, blocks):
        features = {'stem': self.unit('stem', x)}
        x = features['stem']
        for stage in (1, 2, 3):
            for block in range(1, blocks + 1):
                name = f'stage{stage}_block{block}'
                stride = 2 if (stage, block) in ((2, 1), (3, 1)) else 1
                y = self.unit(f'{name}/conv2', self.unit(f'{name}/conv1', x, stride), relu=False)
                if f'params/{name}/shortcut/conv/kernel' in self.values:
                    x = self.unit(f'{name}/shortcut', x, stride, relu=False)
                features |= rectified(stage, x + y)
                x = features[f'stage{stage}']
        features['pooled'] = x.mean(axis=(1, 2))
        return features | {'logits': self.linear('head', features['pooled'])}

    def mobilenet(self, x, blocks=(1, 2, 3, 4, 3, 3, 1)):
        x = self.unit('stem', x, stride=2)
        features = {'stem': x}
        for stage, (count, first) in enumerate(
            zip(blocks, (1, 1, 2, 2, 1, 2, 1), strict=True), start=1
        ):
            for block in range(1, count + 1):
                name, stride = f'stage{stage}_block{block}', first if block == 1 else 1
                y = self.unit(f'{name}/expand', x)
                y = self.unit(f'{name}/depthwise', y, stride, groups=y.shape[-1])
                y = self.unit(f'{name}/project', y, relu=False)
                x = x + y if block > 1 else y
            features[f'stage{stage}'] = x
        features['pooled'] = self.unit('top', x).mean(axis=(1, 2))
        return features | {'logits': self.linear('head', features['pooled'])}

    def cnn(self, x):
        features = {}
        for stage in (1, 2):
            y = conv_reference(x, self.param(f'stage{stage}/conv/kernel')) + self.param(
                f'stage{stage}/conv/bias'
            )
            features |= rectified(stage, y)
            y = features[f'stage{stage}']
            b, h, w, c = y.shape
            x = (
                y[:, : h // 2 * 2, : w // 2 * 2]
                .reshape(b, h // 2, 2, w // 2, 2, c)
                .max(axis=(2, 4))
            )
        features |= {
            'stem': features['stage1'],
            'pooled': np.maximum(self.linear('dense', x.reshape(b, -1)), 0),
        }
        return features | {'logits': self.linear('head', features['pooled'])}
