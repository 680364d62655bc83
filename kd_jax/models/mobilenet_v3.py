"""MobileNetV3-Large and -Small."""

from functools import partial
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models import layers
from kd_jax.models.common import (
    Classifier,
    ConvBN,
    Features,
    block,
    deepened,
    divisible,
    multiplier,
    odd,
)
from kd_jax.models.layers import Setting
from kd_jax.models.mobilenet import InvertedResidual
from kd_jax.models.pooling import global_pool


class Stage(NamedTuple):
    """Consecutive blocks with the same output channels, which share
    everything but the expansion.
    """

    channels: int
    hidden: tuple[int, ...]  # channels after the expansion, one a block
    stride: int  # of the first block
    kernel: int = 3
    squeeze: bool = False  # with squeeze-and-excitation
    hard_swish: bool = True  # as activation; otherwise ReLU


LARGE = (
    Stage(16, (16,), 1, hard_swish=False),
    Stage(24, (64, 72), 2, hard_swish=False),
    Stage(40, (72, 120, 120), 2, kernel=5, squeeze=True, hard_swish=False),
    Stage(80, (240, 200, 184, 184), 2),
    Stage(112, (480, 672), 1, squeeze=True),
    Stage(160, (672, 960, 960), 2, kernel=5, squeeze=True),
)
SMALL = (
    Stage(16, (16,), 2, squeeze=True, hard_swish=False),
    Stage(24, (72, 88), 2, hard_swish=False),
    Stage(40, (96, 240, 240), 2, kernel=5, squeeze=True),
    Stage(48, (120, 144), 1, kernel=5, squeeze=True),
    Stage(96, (288, 576, 576), 2, kernel=5, squeeze=True),
)


class MobileNetV3(Classifier, kw_only=True):
    """MobileNetV3 (Howard et al. 2019, arXiv:1905.02244) as torchvision has it.

    Features: `stem`; a stage's linear output, where a stage is the blocks of the same number of
    channels (six in Large, five in Small); `pooled`, which is what the classifier sees: the 1x1
    convolution `top` averaged over the image, then the dense layer `top_dense` and hard swish.
    `width` scales all channels, to multiples of 8; `depth` the blocks of each stage, where a block
    beyond the paper's expands like the stage's last; `kernel` replaces that of every depthwise
    convolution, 3 or 5 by stage. It differs from the paper: the hidden channels of
    squeeze-and-excitation, a quarter of the expanded ones, are rounded to a multiple of 8.
    """

    stages: tuple[Stage, ...]
    top_features: int  # of the dense layer
    depth: float = multiplier()
    kernel: int | None = odd(None)

    EPSILON: ClassVar[float] = 1e-3
    MOMENTUM: ClassVar[float] = 0.01

    def backbone(self, x: jax.Array, setting: Setting, train: bool) -> Features:
        unit = partial(ConvBN, act=nn.hard_swish, setting=setting)
        x = unit(divisible(16, self.width), 3, 2, name='stem')(x, train=train)
        features = {'stem': x}
        counts = deepened([len(stage.hidden) for stage in self.stages], self.depth)
        for number, (stage, count) in enumerate(zip(self.stages, counts, strict=True), start=1):
            make = partial(
                InvertedResidual,
                divisible(stage.channels, self.width),
                kernel=self.kernel or stage.kernel,
                act=nn.hard_swish if stage.hard_swish else nn.relu,
                squeeze_acts=(nn.relu, nn.hard_sigmoid),
                setting=setting,
            )
            for i in range(count):
                hidden = divisible(stage.hidden[min(i, len(stage.hidden) - 1)], self.width)
                squeeze = divisible(hidden // 4) if stage.squeeze else 0
                stride = stage.stride if i == 0 else 1
                unit_i = make(
                    hidden=hidden,
                    stride=stride,
                    squeeze=squeeze,
                    name=f'stage{number}_block{i + 1}',
                )
                x = block(unit_i, x, train=train)
            features[f'stage{number}'] = x
        x = unit(6 * x.shape[-1], 1, name='top')(x, train=train)
        dense = layers.Dense(
            divisible(self.top_features, self.width), dtype=self.dtype, name='top_dense'
        )
        return features | {'pooled': nn.hard_swish(dense(global_pool(x))).astype(jnp.float32)}
