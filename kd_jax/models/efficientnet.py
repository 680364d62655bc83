"""EfficientNet."""

from functools import partial

import flax.linen as nn
import jax

from kd_jax.models.common import (
    Classifier,
    ConvBN,
    Features,
    block,
    deepened,
    divisible,
    multiplier,
    odd,
    share,
)
from kd_jax.models.layers import Setting
from kd_jax.models.mobilenet import InvertedResidual
from kd_jax.models.pooling import global_pool

# (expansion, channels, blocks, stride of the first block, kernel), one row a stage.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class EfficientNet(Classifier, kw_only=True):
    """EfficientNet (Tan and Le 2019, arXiv:1905.11946) as torchvision has
    it: B0 at width and depth 1.

    `width` and `depth` are the paper's compound scaling: channels to multiples of 8, blocks rounded
    up. B1 ... B4 are (1.0, 1.1), (1.1, 1.2), (1.2, 1.4) and (1.4, 1.8), with dropout 0.2, 0.3, 0.3
    and 0.4. Features: `stem`; `stage1` ... `stage7`, the linear outputs of the paper's stages 2 to
    8; `pooled`, the average of the last 1x1 convolution `top` of four times the last stage's
    channels. In training the share `stochastic_depth * i / n` of the examples goes past block i
    (from 0) of n, where the block has a shortcut. `kernel` replaces that of every depthwise
    convolution, 3 or 5 by stage. It differs from the paper's code: padding and the constants of
    BatchNorm (epsilon 1e-5, momentum 0.1) are PyTorch's.
    """

    depth: float = multiplier()
    kernel: int | None = odd(None)
    stochastic_depth: float = share(0.2, 'such as 0.2')  # of the last block

    def backbone(self, x: jax.Array, setting: Setting, train: bool) -> Features:
        unit = partial(ConvBN, act=nn.silu, setting=setting)
        x = unit(divisible(32, self.width), 3, 2, name='stem')(x, train=train)
        features = {'stem': x}
        counts = deepened([row[2] for row in STAGES], self.depth)
        done = 0  # blocks before this one
        for stage, ((expansion, channels, _, first_stride, kernel), count) in enumerate(
            zip(STAGES, counts, strict=True), start=1
        ):
            make = partial(
                InvertedResidual,
                divisible(channels, self.width),
                kernel=self.kernel or kernel,
                act=nn.silu,
                squeeze_acts=(nn.silu, nn.sigmoid),
                setting=setting,
            )
            for number in range(1, count + 1):
                inputs = x.shape[-1]
                unit_i = make(
                    hidden=divisible(inputs, expansion),
                    stride=first_stride if number == 1 else 1,
                    # A quarter of the block's input, not of the expanded channels.
                    squeeze=max(inputs // 4, 1),
                    drop=self.stochastic_depth * done / sum(counts),
                    name=f'stage{stage}_block{number}',
                )
                x = block(unit_i, x, train=train)
                done += 1
            features[f'stage{stage}'] = x
        x = unit(4 * x.shape[-1], 1, name='top')(x, train=train)
        return features | {'pooled': global_pool(x)}
