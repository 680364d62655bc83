"""MobileNetV1 and MobileNetV2, the latter also for small images, and the inverted
residual block of their successors.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.errors import UserError
from kd_jax.models import layers
from kd_jax.models.common import (
    Classifier,
    ConvBN,
    Dropout,
    Features,
    block,
    deepened,
    divisible,
    multiplier,
    odd,
    run_stage,
    scaled,
)
from kd_jax.models.layers import Setting
from kd_jax.models.pooling import global_pool

Activation = Callable[[jax.Array], jax.Array]

# MobileNetV2: (expansion, channels, blocks, stride of the first block), one row a stage.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class SqueezeExcitation(nn.Module):
    """`x [B, H, W, C]` times one weight in [0, 1] per example and channel (Hu et
    al. 2018, arXiv:1709.01507).

    The weights are `gate(expand(act(reduce(mean over the image))))`,
    two 1x1 convolutions with bias.
    """

    hidden: int
    act: Activation = nn.relu
    gate: Activation = nn.sigmoid
    setting: Setting = Setting()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(layers.Conv, kernel=1, use_bias=True, setting=self.setting)
        y = x.mean(axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)  # [B, 1, 1, C]
        y = self.act(conv(self.hidden, name='reduce')(y))
        return x * self.gate(conv(x.shape[-1], name='expand')(y))


class InvertedResidual(nn.Module):
    """1x1 expansion to `hidden`, depthwise convolution, squeeze-and-excitation, linear
    1x1 projection to `features`.

    The input is added where the shape stays the same. The expansion is left out where it would not
    expand, unless `always_expand`; squeeze-and-excitation where its number of hidden channels,
    `squeeze`, is 0. `drop` is the share of examples that go past the block in training (stochastic
    depth, Huang et al. 2016, arXiv:1603.09382).
    """

    features: int
    hidden: int
    stride: int = 1
    kernel: int = 3
    act: Activation = nn.relu
    always_expand: bool = False
    squeeze: int = 0
    # after the hidden channels, and of the weights
    squeeze_acts: tuple[Activation, Activation] = (nn.relu, nn.sigmoid)
    drop: float = 0.0
    setting: Setting = Setting()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        unit = partial(ConvBN, act=self.act, setting=self.setting)
        y = x
        if self.always_expand or self.hidden != x.shape[-1]:
            y = unit(self.hidden, 1, name='expand')(y, train=train)
        y = unit(self.hidden, self.kernel, self.stride, groups=self.hidden, name='depthwise')(
            y, train=train
        )
        if self.squeeze:
            y = SqueezeExcitation(
                self.squeeze, *self.squeeze_acts, setting=self.setting, name='se'
            )(y)
        y = unit(self.features, 1, act=None, name='project')(y, train=train)
        if self.stride != 1 or x.shape[-1] != self.features:
            return y
        return x + Dropout(self.drop, self.setting.axis_name, whole_example=True, name='drop')(
            y, train=train
        )


class CifarMobileNetV2(Classifier, kw_only=True):
    """MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) as the distillation
    tables have it for 32x32 images.

    It differs from the paper: ReLU instead of ReLU6, stage 2 does not stride, channels are not
    rounded to multiples of 8, and the first block expands too. Width 0.5 is the tables' model
    (`mobile_half` in the code of Tian et al. 2020, arXiv:1910.10699). Features: `stem`;
    `stage1` ... `stage7`, each group's linear output; `pooled`, the average of the last 1x1
    convolution `top` of 1280 channels, which only a `width` above 1 scales.
    """

    depth: float = multiplier()
    kernel: int = odd(3)

    def backbone(self, x: jax.Array, setting: Setting, train: bool) -> Features:
        x = ConvBN(scaled(32, self.width), self.kernel, 2, setting=setting, name='stem')(
            x, train=train
        )
        features = {'stem': x}
        make = partial(InvertedResidual, kernel=self.kernel, always_expand=True, setting=setting)
        counts = deepened([row[2] for row in STAGES], self.depth)
        for stage, ((expansion, channels, _, first_stride), count) in enumerate(
            zip(STAGES, counts, strict=True), start=1
        ):
            for number in range(1, count + 1):
                # stage 2 keeps the small image
                stride = first_stride if number == 1 and stage != 2 else 1
                hidden = x.shape[-1] * expansion
                unit = make(
                    scaled(channels, self.width), hidden, stride, name=f'stage{stage}_block{number}'
                )
                x = block(unit, x, train=train)
            features[f'stage{stage}'] = x
        x = ConvBN(scaled(1280, max(self.width, 1.0)), 1, setting=setting, name='top')(
            x, train=train
        )
        return features | {'pooled': global_pool(x)}


class MobileNetV2(Classifier, kw_only=True):
    """MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) as torchvision has it:
    ReLU6, channels in multiples of 8.

    `strides` are those of the stem and of each stage's first block. With
    `(1, 1, 1, 2, 2, 1, 2, 1)`, for 32x32 images, it is the network whose CIFAR weights
    chenyaofo/pytorch-cifar-models publishes. `width` scales all channels, those of the last 1x1
    convolution `top` (1280) only upwards; `depth` the blocks of each stage; `kernel` is that of the
    depthwise convolutions. Features: `stem`; `stage1` ... `stage7`, the linear outputs of the
    paper's seven groups; `pooled`, the average of `top`. The first block does not expand. It
    differs from the paper: dropout before the classifier, which torchvision sets to 0.2.
    """

    strides: tuple[int, ...] = (2, *(row[3] for row in STAGES))
    depth: float = multiplier()
    kernel: int = odd(3)

    def backbone(self, x: jax.Array, setting: Setting, train: bool) -> Features:
        if len(self.strides) != 1 + len(STAGES):
            raise UserError(
                f'strides {tuple(self.strides)} of MobileNetV2 are {len(self.strides)}; '
                f'give {1 + len(STAGES)}: of the stem and of each of the {len(STAGES)} stages'
            )
        unit = partial(ConvBN, act=nn.relu6, setting=setting)
        x = unit(divisible(32, self.width), 3, self.strides[0], name='stem')(x, train=train)
        features = {'stem': x}
        make = partial(InvertedResidual, kernel=self.kernel, act=nn.relu6, setting=setting)
        counts = deepened([row[2] for row in STAGES], self.depth)
        for stage, ((expansion, channels, *_), count) in enumerate(
            zip(STAGES, counts, strict=True), start=1
        ):
            for number in range(1, count + 1):
                stride = self.strides[stage] if number == 1 else 1
                hidden = x.shape[-1] * expansion
                name = f'stage{stage}_block{number}'
                x = block(
                    make(divisible(channels, self.width), hidden, stride, name=name), x, train=train
                )
            features[f'stage{stage}'] = x
        x = unit(divisible(1280, max(self.width, 1.0)), 1, name='top')(x, train=train)
        return features | {'pooled': global_pool(x)}


class DepthwiseSeparable(nn.Module):
    """Depthwise convolution and 1x1 convolution, each with BatchNorm and ReLU, the last of
    which is left to `run_stage`.
    """

    features: int
    stride: int = 1
    kernel: int = 3
    setting: Setting = Setting()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        unit = partial(ConvBN, setting=self.setting)
        channels = x.shape[-1]
        x = unit(channels, self.kernel, self.stride, groups=channels, name='depthwise')(
            x, train=train
        )
        return unit(self.features, 1, act=None, name='pointwise')(x, train=train)


class MobileNetV1(Classifier, kw_only=True):
    """MobileNetV1 (Howard et al. 2017, arXiv:1704.04861): a strided 3x3 stem and
    13 depthwise separable blocks.

    A stage is the blocks of one resolution: 1, 2, 2, 6 and 2 blocks of 64, 128, 256, 512 and 1024
    channels; its feature is taken after the last ReLU, and `pooled` is the average of `stage5`.
    `width` is the paper's multiplier, rounded to whole channels; `depth` scales the blocks of each
    stage; `kernel` is that of the depthwise convolutions. It differs from the paper's table 1,
    which gives the last block stride 2 on a 7x7 input and calls its output 7x7: here, as in the
    published code, that block has stride 1.
    """

    blocks: tuple[int, ...] = (1, 2, 2, 6, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    depth: float = multiplier()
    kernel: int = odd(3)

    def backbone(self, x: jax.Array, setting: Setting, train: bool) -> Features:
        x = ConvBN(scaled(32, self.width), 3, 2, setting=setting, name='stem')(x, train=train)
        features = {'stem': x}
        make = partial(DepthwiseSeparable, kernel=self.kernel, setting=setting)
        for stage, (count, channels) in enumerate(
            zip(deepened(self.blocks, self.depth), self.widths, strict=True), start=1
        ):
            strides = [1 if stage == 1 else 2] + [1] * (count - 1)
            units = [
                make(scaled(channels, self.width), stride, name=f'stage{stage}_block{i}')
                for i, stride in enumerate(strides, start=1)
            ]
            features |= run_stage(stage, units, x, train=train)
            x = features[f'stage{stage}']
        return features | {'pooled': global_pool(x)}
