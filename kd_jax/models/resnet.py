"""Small-image residual networks of the CIFAR tables: resnet8 ... resnet110, resnet8x4, resnet32x4."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kd_jax.models.common import ConvBN, Head, Output, global_pool, scaled


class BasicBlock(nn.Module):
    """ReLU(x + BN(conv(ReLU(BN(conv(x)))))); where stride or width change, x goes through a 1x1 convolution and BN."""

    features: int
    stride: int = 1
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        unit = partial(ConvBN, self.features, axis_name=self.axis_name, dtype=self.dtype)
        y = unit(stride=self.stride, name='conv1')(x, train=train)
        y = unit(relu=False, name='conv2')(y, train=train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = unit(kernel=1, stride=self.stride, relu=False, name='shortcut')(x, train=train)
        return nn.relu(x + y)


class CifarResNet(nn.Module):
    """Residual network for small images (He et al. 2015, arXiv:1512.03385, section 4.2): a 3x3 stem and three stages.

    As in the distillation tables (Tian et al. 2020, arXiv:1910.10699, and its code) shortcuts that change the shape
    are projections (the paper's option B); the paper's own CIFAR networks pad with zeros (option A) and have fewer
    parameters. Every stage after the first halves the image; its feature is taken after the block's last ReLU.
    `width` scales all channels.
    """

    num_classes: int
    stage_sizes: tuple[int, ...]  # blocks in each stage; depth = 2 + 2 * sum
    widths: tuple[int, ...] = (16, 32, 64)
    stem: int = 16
    width: float = 1.0
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image, *, train: bool) -> Output:
        shared = {'axis_name': self.axis_name, 'dtype': self.dtype}
        x = ConvBN(scaled(self.stem, self.width), name='stem', **shared)(image.astype(self.dtype), train=train)
        features = {'stem': x}
        for stage, (blocks, channels) in enumerate(zip(self.stage_sizes, self.widths, strict=True), start=1):
            for block in range(1, blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                name = f'stage{stage}_block{block}'
                x = BasicBlock(scaled(channels, self.width), stride, name=name, **shared)(x, train=train)
            features[f'stage{stage}'] = x
        features['pooled'] = global_pool(x)
        logits = Head(self.num_classes, self.dropout, self.axis_name, name='head')(features['pooled'], train=train)
        return Output(logits, features)
