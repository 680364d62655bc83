"""ShuffleNet, versions 1 and 2, for ImageNet and for small images."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.errors import UserError
from kd_jax.fields import field
from kd_jax.models.common import (
    Classifier,
    ConvBN,
    Features,
    block,
    deepened,
    multiplier,
    odd,
    run_stage,
    scaled,
)
from kd_jax.models.layers import Setting
from kd_jax.models.pooling import avg_pool, global_pool, max_pool

# Version 1: channels of the first stage by the number of groups, chosen for equal cost; each
# further stage has twice as many.
WIDTHS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}


def multiple(channels: int, width: float, by: int) -> int:
    """`channels * width`, rounded, and then up to a multiple of `by`."""
    return -(-scaled(channels, width) // by) * by


def shuffle(x: jax.Array, groups: int) -> jax.Array:
    """Channel n * i + j of `[B, H, W, C]`, the j-th of group i of n = C / groups,
    becomes channel groups * j + i.
    """
    if groups == 1:
        return x
    *outer, channels = x.shape
    return x.reshape(*outer, groups, channels // groups).swapaxes(-1, -2).reshape(x.shape)


def entry(
    x: jax.Array, channels: int, kernel: int, small: bool, setting: Setting, train: bool
) -> jax.Array:
    """The stem. Unless the images are `small` it strides and a max pooling follows:
    `[B, H / 4, W / 4, channels]`.
    """
    x = ConvBN(channels, kernel, 1 if small else 2, setting=setting, name='stem')(x, train=train)
    return x if small else max_pool(x, 3, 2, padding=1)


class GroupedUnit(nn.Module):
    """Version 1: grouped 1x1, shuffle, depthwise, grouped 1x1, added to x; the ReLU after
    that is left to `run_stage`.

    A unit that strides instead appends x, average-pooled, to `features - C` new channels. `first`
    is the network's first unit: it has few input channels, which its first 1x1 convolution does not
    divide into groups, and nothing to shuffle.
    """

    features: int
    hidden: int
    stride: int = 1
    groups: int = 3
    first: bool = False
    relu: bool = False  # after the depthwise convolution
    kernel: int = 3
    setting: Setting = Setting()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        unit = partial(ConvBN, setting=self.setting)
        new = self.features - x.shape[-1] if self.stride == 2 else self.features
        groups = 1 if self.first else self.groups
        y = shuffle(unit(self.hidden, 1, groups=groups, name='conv1')(x, train=train), groups)
        act = nn.relu if self.relu else None
        y = unit(self.hidden, self.kernel, self.stride, groups=self.hidden, act=act, name='conv2')(
            y, train=train
        )
        y = unit(new, 1, groups=self.groups, act=None, name='conv3')(y, train=train)
        if self.stride == 2:
            return jnp.concatenate([y, avg_pool(x, 3, 2, padding=1)], axis=-1)
        return x + y


class ShuffleNetV1(Classifier, kw_only=True):
    """ShuffleNet (Zhang et al. 2017, arXiv:1707.01083): stages of 4, 8 and 4 units, each
    beginning with one that strides.

    A unit's hidden channels are a quarter of its output's. Where the paper is silent: a striding
    unit puts its new channels before the pooled ones; nothing is shuffled in the first unit, where
    it would only rename hidden channels.

    `small` is the network of the distillation tables (the code of Tian et al. 2020,
    arXiv:1910.10699) for 32x32 images. It differs from the paper: the stem is a 1x1 convolution
    without stride or pooling, ReLU also follows depthwise convolutions, and the hidden channels of
    a striding unit are a quarter of its new channels only.

    `groups` is one of the paper's, 1, 2, 3, 4 or 8, and sets the stages' channels (`WIDTHS`).
    `width` scales all channels and rounds them up to multiples of `groups`. `kernel` is that of
    the depthwise convolutions. Features: `stem`, after the max pooling if there is one;
    `stage1` ... `stage3` (the paper's stages 2 to 4), each after the last unit's ReLU;
    `pooled`, the average of `stage3`.
    """

    # of the pointwise convolutions; sets the stages' channels
    groups: int = field(3, lambda groups: groups in WIDTHS, f'one of {", ".join(map(str, WIDTHS))}')
    small: bool = False
    stage_sizes: tuple[int, ...] = (4, 8, 4)
    stem: int = 24
    depth: float = multiplier()
    kernel: int = odd(3)

    def backbone(self, x: jax.Array, setting: Setting, train: bool) -> Features:
        x = entry(
            x,
            multiple(self.stem, self.width, self.groups),
            1 if self.small else 3,
            self.small,
            setting,
            train,
        )
        features = {'stem': x}
        for stage, count in enumerate(deepened(self.stage_sizes, self.depth), start=1):
            channels = multiple(WIDTHS[self.groups] * 2 ** (stage - 1), self.width, self.groups)
            if channels <= x.shape[-1]:
                raise UserError(
                    f'width {self.width} with {self.groups} groups leaves stage {stage} no more '
                    'channels than it receives; use a greater width or fewer groups'
                )
            units = []
            for number in range(1, count + 1):
                strides = number == 1
                split = channels - x.shape[-1] if strides and self.small else channels
                unit = GroupedUnit(
                    channels,
                    multiple(max(split // 4, 1), 1.0, self.groups),
                    2 if strides else 1,
                    self.groups,
                    stage == number == 1,
                    self.small,
                    self.kernel,
                    setting,
                    name=f'stage{stage}_block{number}',
                )
                units.append(unit)
            features |= run_stage(stage, units, x, train=train)
            x = features[f'stage{stage}']
        return features | {'pooled': global_pool(x)}


class SplitUnit(nn.Module):
    """Version 2: half of the channels go through 1x1, depthwise, 1x1; then
    both halves are interleaved.

    A unit that strides sends all of x through that branch and through a second one, depthwise and
    1x1 (`shortcut1`, `shortcut2`), each of which returns half of `features`.
    """

    features: int  # even
    stride: int = 1
    kernel: int = 3
    setting: Setting = Setting()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        unit = partial(ConvBN, setting=self.setting)
        half = self.features // 2
        if self.stride == 1:
            shortcut, y = x[..., :half], x[..., half:]
        else:
            shortcut, y = x, x
            inputs = x.shape[-1]
            shortcut = unit(
                inputs, self.kernel, self.stride, groups=inputs, act=None, name='shortcut1'
            )(shortcut, train=train)
            shortcut = unit(half, 1, name='shortcut2')(shortcut, train=train)
        y = unit(half, 1, name='conv1')(y, train=train)
        y = unit(half, self.kernel, self.stride, groups=half, act=None, name='conv2')(
            y, train=train
        )
        y = unit(half, 1, name='conv3')(y, train=train)
        return shuffle(jnp.concatenate([shortcut, y], axis=-1), 2)


class ShuffleNetV2(Classifier, kw_only=True):
    """ShuffleNetV2 (Ma et al. 2018, arXiv:1807.11164) as torchvision has it; every stage
    begins with a unit that strides.

    As in the paper's figure 3, units shuffle at their end.

    `small` leaves out the stem's stride and max pooling. With a 1x1 stem (`stem_kernel`) that is
    the network of the distillation tables (the code of Tian et al. 2020, arXiv:1910.10699) for
    32x32 images, whose x2.0 has 224 channels in the first stage instead of 244, and two sizes, x0.2
    and x0.3, that the paper does not have. With a 3x3 stem it is that of pytorch-cifar-models.

    `width` scales all channels and rounds those of the stages up to even numbers. The published
    sizes x0.5 to x2.0 are not multiples of each other but variants. `kernel` is that of the
    depthwise convolutions. Features: `stem`, after the max pooling if there is one;
    `stage1` ... `stage3` (the paper's stages 2 to 4), each after the last unit's shuffle; `pooled`,
    the average of the last 1x1 convolution `top`.
    """

    widths: tuple[int, ...] = (116, 232, 464)
    top: int = 1024
    stage_sizes: tuple[int, ...] = (4, 8, 4)
    small: bool = False
    stem: int = 24
    stem_kernel: int = 3
    depth: float = multiplier()
    kernel: int = odd(3)

    def backbone(self, x: jax.Array, setting: Setting, train: bool) -> Features:
        x = entry(x, scaled(self.stem, self.width), self.stem_kernel, self.small, setting, train)
        features = {'stem': x}
        if len(self.stage_sizes) != len(self.widths):
            raise UserError(
                f'stage_sizes {self.stage_sizes} are {len(self.stage_sizes)} stages, but widths '
                f'{self.widths} are {len(self.widths)}; give one number a stage in both'
            )
        counts = deepened(self.stage_sizes, self.depth)
        for stage, (count, channels) in enumerate(zip(counts, self.widths, strict=True), start=1):
            channels = multiple(channels, self.width, 2)
            for number in range(1, count + 1):
                unit = SplitUnit(
                    channels,
                    2 if number == 1 else 1,
                    self.kernel,
                    setting,
                    name=f'stage{stage}_block{number}',
                )
                x = block(unit, x, train=train)
            features[f'stage{stage}'] = x
        x = ConvBN(scaled(self.top, self.width), 1, setting=setting, name='top')(x, train=train)
        return features | {'pooled': global_pool(x)}
