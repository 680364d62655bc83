"""Small-image residual networks of the CIFAR tables: resnet8 ... resnet110, resnet8x4, resnet32x4."""

from functools import partial

import flax.linen as nn

from kd_jax.models.common import Classifier, ConvBN, block, deepened, global_pool, scaled
from kd_jax.models.layers import Setting


class BasicBlock(nn.Module):
    """ReLU(x + BN(conv(ReLU(BN(conv(x)))))); where stride or width change, x goes through a 1x1 convolution and BN."""

    features: int
    stride: int = 1
    kernel: int = 3
    setting: Setting = Setting()

    @nn.compact
    def __call__(self, x, *, train: bool):
        unit = partial(ConvBN, self.features, setting=self.setting)
        y = unit(self.kernel, self.stride, name='conv1')(x, train=train)
        y = unit(self.kernel, act=None, name='conv2')(y, train=train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = unit(1, self.stride, act=None, name='shortcut')(x, train=train)
        return nn.relu(x + y)


class CifarResNet(Classifier, kw_only=True):
    """Residual network for small images (He et al. 2015, arXiv:1512.03385, section 4.2): a 3x3 stem and three stages.

    As in the distillation tables (Tian et al. 2020, arXiv:1910.10699, and its code) shortcuts that change the shape
    are projections (the paper's option B); the paper's own CIFAR networks pad with zeros (option A) and have fewer
    parameters. Every stage after the first halves the image; its feature is taken after the block's last ReLU.
    `width` scales all channels, `depth` the blocks of each stage, `kernel` is that of every 3x3 convolution.
    """

    stage_sizes: tuple[int, ...]  # blocks in each stage; depth = 2 + 2 * sum
    widths: tuple[int, ...] = (16, 32, 64)
    stem: int = 16
    depth: float = 1.0
    kernel: int = 3

    def backbone(self, x, setting, train):
        x = ConvBN(scaled(self.stem, self.width), self.kernel, setting=setting, name='stem')(x, train=train)
        features = {'stem': x}
        for stage, (blocks, channels) in enumerate(
            zip(deepened(self.stage_sizes, self.depth), self.widths, strict=True), start=1
        ):
            for number in range(1, blocks + 1):
                stride = 2 if stage > 1 and number == 1 else 1
                name = f'stage{stage}_block{number}'
                x = block(BasicBlock(scaled(channels, self.width), stride, self.kernel, setting, name=name), x, train=train)
            features[f'stage{stage}'] = x
        return features | {'pooled': global_pool(x)}
