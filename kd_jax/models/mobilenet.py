"""MobileNetV2 for small images, as the CIFAR tables have it."""

from functools import partial

import flax.linen as nn

from kd_jax.models.common import Classifier, ConvBN, block, deepened, global_pool, scaled
from kd_jax.models.layers import Setting

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
    kernel: int = 3
    setting: Setting = Setting()

    @nn.compact
    def __call__(self, x, *, train: bool):
        unit = partial(ConvBN, setting=self.setting)
        hidden = x.shape[-1] * self.expansion
        y = unit(hidden, 1, name='expand')(x, train=train)  # also where the expansion is 1
        y = unit(hidden, self.kernel, self.stride, groups=hidden, name='depthwise')(y, train=train)
        y = unit(self.features, 1, act=None, name='project')(y, train=train)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class CifarMobileNetV2(Classifier, kw_only=True):
    """MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) as the distillation tables have it for 32x32 images.

    It differs from the paper: ReLU instead of ReLU6, stage 2 does not stride, channels are not rounded to multiples
    of 8, and the first block expands too. Width 0.5 is the tables' model (`mobile_half` in the code of Tian et al.
    2020, arXiv:1910.10699). Features: `stem`; `stage1` ... `stage7`, each group's linear output; `pooled`, the average
    of the last 1x1 convolution `top` of 1280 channels, which only a `width` above 1 scales.
    """

    depth: float = 1.0
    kernel: int = 3

    def backbone(self, x, setting, train):
        x = ConvBN(scaled(32, self.width), self.kernel, 2, setting=setting, name='stem')(x, train=train)
        features = {'stem': x}
        counts = deepened([row[2] for row in STAGES], self.depth)
        for stage, ((expansion, channels, _, first_stride), count) in enumerate(zip(STAGES, counts, strict=True), start=1):
            for number in range(1, count + 1):
                stride = first_stride if number == 1 else 1
                name = f'stage{stage}_block{number}'
                make = InvertedResidual(scaled(channels, self.width), expansion, stride, self.kernel, setting, name=name)
                x = block(make, x, train=train)
            features[f'stage{stage}'] = x
        x = ConvBN(scaled(1280, max(self.width, 1.0)), 1, setting=setting, name='top')(x, train=train)
        return features | {'pooled': global_pool(x)}
