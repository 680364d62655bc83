"""Residual networks: those of torchvision, their small-image forms, and
resnet8 ... resnet110 of the CIFAR tables.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax

from kd_jax.errors import UserError
from kd_jax.fields import number
from kd_jax.models.common import (
    Classifier,
    ConvBN,
    Features,
    deepened,
    multiplier,
    odd,
    run_stage,
    scaled,
)
from kd_jax.models.layers import Setting
from kd_jax.models.pooling import global_pool, max_pool


class BasicBlock(nn.Module):
    """x + BN(conv(ReLU(BN(conv(x))))); where stride or width change, x goes
    through a 1x1 convolution and BN.

    The ReLU of the sum is left to `run_stage`.
    """

    features: int
    stride: int = 1
    kernel: int = 3
    setting: Setting = Setting()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        unit = partial(ConvBN, self.features, setting=self.setting)
        y = unit(self.kernel, self.stride, name='conv1')(x, train=train)
        y = unit(self.kernel, act=None, name='conv2')(y, train=train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = unit(1, self.stride, act=None, name='shortcut')(x, train=train)
        return x + y


class Bottleneck(nn.Module):
    """1x1 to `hidden` channels, 3x3 in `groups`, 1x1 to `features`; the stride is the
    3x3's, the rest BasicBlock's.

    `[B, H, W, C] -> [B, H', W', features]`. He et al. stride in the first 1x1;
    torchvision ("ResNet v1.5") in the 3x3.
    """

    features: int
    hidden: int
    stride: int = 1
    kernel: int = 3
    groups: int = 1
    setting: Setting = Setting()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        unit = partial(ConvBN, setting=self.setting)
        y = unit(self.hidden, 1, name='conv1')(x, train=train)
        y = unit(self.hidden, self.kernel, self.stride, self.groups, name='conv2')(y, train=train)
        y = unit(self.features, 1, act=None, name='conv3')(y, train=train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = unit(self.features, 1, self.stride, act=None, name='shortcut')(x, train=train)
        return x + y


def residual_stages(
    x: jax.Array,
    counts: Sequence[int],
    make: Callable[..., nn.Module],
    train: bool,
    *,
    relu: bool = True,
) -> tuple[jax.Array, Features]:
    """The output and the features of stages of blocks
    `make(stage, stride, name=...)`; `relu`: see `run_stage`.

    The first block of each stage after the first halves the image.
    """
    features: Features = {}
    for stage, count in enumerate(counts, start=1):
        strides = [1 if stage == 1 else 2] + [1] * (count - 1)
        blocks = [
            make(stage, stride, name=f'stage{stage}_block{i}')
            for i, stride in enumerate(strides, start=1)
        ]
        features |= run_stage(stage, blocks, x, relu=relu, train=train)
        x = features[f'stage{stage}']
    return x, features


class CifarResNet(Classifier, kw_only=True):
    """Residual network for small images (He et al. 2015, arXiv:1512.03385, section 4.2):
    a 3x3 stem and three stages.

    As in the distillation tables (Tian et al. 2020, arXiv:1910.10699, and its code) shortcuts that
    change the shape are projections (the paper's option B); the paper's own CIFAR networks pad with
    zeros (option A) and have fewer parameters. Every stage after the first halves the image; its
    feature is taken after the block's last ReLU. `width` scales all channels, `depth` the blocks of
    each stage, `kernel` is that of every 3x3 convolution.
    """

    stage_sizes: tuple[int, ...]  # blocks in each stage; depth = 2 + 2 * sum
    widths: tuple[int, ...] = (16, 32, 64)
    stem: int = 16
    depth: float = multiplier()
    kernel: int = odd(3)

    def backbone(self, x: jax.Array, setting: Setting, train: bool) -> Features:
        if len(self.stage_sizes) != len(self.widths):
            raise UserError(
                f'stage_sizes {tuple(self.stage_sizes)} are {len(self.stage_sizes)} '
                f'stages, but widths {tuple(self.widths)} are {len(self.widths)}; '
                'give one number a stage in both'
            )

        def make(stage: int, stride: int, name: str) -> nn.Module:
            return BasicBlock(
                scaled(self.widths[stage - 1], self.width), stride, self.kernel, setting, name=name
            )

        stem = ConvBN(scaled(self.stem, self.width), self.kernel, setting=setting, name='stem')(
            x, train=train
        )
        x, stages = residual_stages(stem, deepened(self.stage_sizes, self.depth), make, train)
        return {'stem': stem, **stages, 'pooled': global_pool(x)}


class ResNet(Classifier, kw_only=True):
    """torchvision's ResNet (He et al. 2015, arXiv:1512.03385) and, with
    `small_images`, its form for 32x32 images.

    Stages have 64, 128, 256, 512 channels, four times as many with `bottleneck` blocks, whose
    3x3 convolution has `groups` groups of `group_width` channels in stage 1, twice as many in
    each next one: ResNeXt-50 32x4d (Xie et al. 2017, arXiv:1611.05431) is 32 groups of 4,
    Wide ResNet-50-2 (Zagoruyko and Komodakis 2016, arXiv:1605.07146) one of 128. The stem is
    a 7x7 convolution of stride 2 and a 3x3 max pool of stride 2; for small images a 3x3
    convolution of stride 1, as in the distillation tables (Tian et al. 2020,
    arXiv:1910.10699). `stem` is the feature after the pool.

    `width` scales all channels (that of a group too, not their number), `depth` the blocks of each
    stage; `kernel` is that of the blocks' 3x3 convolutions, not of the stem.
    """

    stage_sizes: tuple[int, ...]  # blocks in each stage
    bottleneck: bool = False
    groups: int = number(1, at_least=1)  # of a bottleneck's 3x3 convolution
    group_width: int = number(64, at_least=1)  # channels of a group in stage 1
    small_images: bool = False
    depth: float = multiplier()
    kernel: int = odd(3)

    def backbone(self, x: jax.Array, setting: Setting, train: bool) -> Features:
        if not self.bottleneck and (self.groups, self.group_width) != (1, 64):
            raise UserError(
                f'groups {self.groups} with group_width {self.group_width} need bottleneck '
                'blocks, this model has basic ones (groups 1, group_width 64); set bottleneck, '
                'or take resnet50 or cifar_resnet50'
            )

        def make(stage: int, stride: int, name: str) -> nn.Module:
            features = scaled(64 * 2 ** (stage - 1), self.width)
            if not self.bottleneck:
                return BasicBlock(features, stride, self.kernel, setting, name=name)
            hidden = features * self.group_width // 64 * self.groups
            if hidden == 0:
                raise UserError(
                    f'width {self.width} leaves no channel in the groups of {self.group_width}; '
                    f'use {1 / self.group_width:.3g} or more'
                )
            return Bottleneck(
                4 * features, hidden, stride, self.kernel, self.groups, setting, name=name
            )

        kernel, stride = (3, 1) if self.small_images else (7, 2)
        stem = ConvBN(scaled(64, self.width), kernel, stride, setting=setting, name='stem')(
            x, train=train
        )
        if not self.small_images:
            stem = max_pool(stem, 3, 2, 1)
        x, stages = residual_stages(stem, deepened(self.stage_sizes, self.depth), make, train)
        return {'stem': stem, **stages, 'pooled': global_pool(x)}
