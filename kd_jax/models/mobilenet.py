"""MobileNetV2 for small images, as the CIFAR tables have it."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kd_jax.models.common import ConvBN, Head, Output, global_pool, scaled

# (expansion, channels, blocks, stride of the first block), one row a stage.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; the input is added where the shape stays the same."""

    features: int
    expansion: int
    stride: int = 1
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        unit = partial(ConvBN, axis_name=self.axis_name, dtype=self.dtype)
        hidden = x.shape[-1] * self.expansion
        y = unit(hidden, kernel=1, name='expand')(x, train=train)  # also where the expansion is 1
        y = unit(hidden, stride=self.stride, groups=hidden, name='depthwise')(y, train=train)
        y = unit(self.features, kernel=1, relu=False, name='project')(y, train=train)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class CifarMobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) as the distillation tables have it for 32x32 images.

    It differs from the paper: ReLU instead of ReLU6, stage 2 does not stride, channels are not rounded to multiples
    of 8, and the first block expands too. Width 0.5 is the tables' model (`mobile_half` in the code of Tian et al.
    2020, arXiv:1910.10699). Features: `stem`; `stage1` ... `stage7`, each group's linear output; `pooled`, the average
    of the last 1x1 convolution `top` of 1280 channels, which only a `width` above 1 scales.
    """

    num_classes: int
    width: float = 1.0
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image, *, train: bool) -> Output:
        shared = {'axis_name': self.axis_name, 'dtype': self.dtype}
        x = ConvBN(scaled(32, self.width), stride=2, name='stem', **shared)(image.astype(self.dtype), train=train)
        features = {'stem': x}
        for stage, (expansion, channels, blocks, first_stride) in enumerate(STAGES, start=1):
            for block in range(1, blocks + 1):
                stride = first_stride if block == 1 else 1
                name = f'stage{stage}_block{block}'
                make = InvertedResidual(scaled(channels, self.width), expansion, stride, name=name, **shared)
                x = make(x, train=train)
            features[f'stage{stage}'] = x
        x = ConvBN(scaled(1280, max(self.width, 1.0)), kernel=1, name='top', **shared)(x, train=train)
        features['pooled'] = global_pool(x)
        logits = Head(self.num_classes, self.dropout, self.axis_name, name='head')(features['pooled'], train=train)
        return Output(logits, features)
