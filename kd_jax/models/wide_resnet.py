"""Wide residual networks for small images: wrn_16_1 ... wrn_40_2 of the CIFAR tables."""

import flax.linen as nn
import jax

from kd_jax.fields import number
from kd_jax.models.common import (
    Classifier,
    Dropout,
    Features,
    deepened,
    multiplier,
    odd,
    scaled,
    share,
)
from kd_jax.models.layers import BatchNorm, Conv, Setting
from kd_jax.models.pooling import global_pool
from kd_jax.models.resnet import residual_stages


class PreactivationBlock(nn.Module):
    """x + conv(ReLU(BN(conv(ReLU(BN(x)))))), `[B, H, W, C] -> [B, H', W', features]`.

    Where stride or width change, the shortcut is a 1x1 convolution without
    BN of ReLU(BN(x)), not of x.
    """

    features: int
    stride: int = 1
    kernel: int = 3
    dropout: float = 0.0
    setting: Setting = Setting()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = nn.relu(BatchNorm(self.setting, name='norm1')(x, train=train))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = Conv(self.features, 1, self.stride, setting=self.setting, name='shortcut')(y)
        y = Conv(self.features, self.kernel, self.stride, setting=self.setting, name='conv1')(y)
        y = nn.relu(BatchNorm(self.setting, name='norm2')(y, train=train))
        y = Dropout(self.dropout, self.setting.axis_name, name='drop')(y, train=train)
        return x + Conv(self.features, self.kernel, setting=self.setting, name='conv2')(y)


class WideResNet(Classifier, kw_only=True):
    """WRN-d-k (Zagoruyko and Komodakis 2016, arXiv:1605.07146) as the distillation tables have it.

    A 3x3 stem of 16 channels, three stages of (d - 4) / 6 blocks with 16 k, 32 k, 64 k channels,
    and BN with ReLU (`top`) before the pooling. Blocks activate before they convolve, so the stem's
    and the stages' features are sums without activation, as in the code of Tian et al. 2020
    (arXiv:1910.10699). There, as here, blocks drop nothing by default; the paper's dropout between
    a block's convolutions is `block_dropout`.

    `width` scales all channels (k, `widen`, those of the stages alone), `depth` the blocks of each
    stage; `kernel` is that of the blocks' 3x3 convolutions, not of the stem.
    """

    stage_sizes: tuple[int, ...]  # blocks in each stage; d = 4 + 2 * sum
    widen: int = number(1, at_least=1)  # multiplier of the stages' channels
    block_dropout: float = share(0.0, 'such as 0.3')  # between a block's convolutions
    depth: float = multiplier()
    kernel: int = odd(3)

    def backbone(self, x: jax.Array, setting: Setting, train: bool) -> Features:
        def make(stage: int, stride: int, name: str) -> nn.Module:
            features = scaled(16 * self.widen * 2 ** (stage - 1), self.width)
            return PreactivationBlock(
                features, stride, self.kernel, self.block_dropout, setting, name=name
            )

        stem = Conv(scaled(16, self.width), setting=setting, name='stem')(x)
        x, stages = residual_stages(
            stem, deepened(self.stage_sizes, self.depth), make, train, relu=False
        )
        x = nn.relu(BatchNorm(setting, name='top')(x, train=train))
        return {'stem': stem, **stages, 'pooled': global_pool(x)}
