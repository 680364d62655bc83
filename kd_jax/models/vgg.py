"""VGG: torchvision's networks for large images, and those of the CIFAR tables."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models import layers
from kd_jax.models.common import (
    Classifier,
    ConvBN,
    Dropout,
    Features,
    check_size,
    deepened,
    multiplier,
    odd,
    run_stage,
    scaled,
)
from kd_jax.models.layers import Setting
from kd_jax.models.pooling import adaptive_avg_pool, global_pool, max_pool

CHANNELS = (64, 128, 256, 512, 512)  # of the convolutions of each stage


class VGG(Classifier, kw_only=True):
    """VGG (Simonyan and Zisserman 2014, arXiv:1409.1556), configurations A, B, D and E:
    five stages of convolutions.

    Each stage ends in a 2x2 max pool, which its feature `[B, H, W, C]` does not include; `stem` is
    `stage1`. As torchvision has it: the last map is averaged to 7x7 (the paper: 224x224 images
    only, for which this is the map itself), then come two dense layers of 4096, the second of which
    gives `pooled`, and the classifier, with dropout before the latter two. With `norm`, BatchNorm,
    which the paper does not have; the convolutions keep their biases. `width` scales all channels
    and both dense layers, `depth` the convolutions of each stage. Images: 32x32 or larger.
    """

    stage_sizes: tuple[int, ...]  # convolutions in each stage
    norm: bool = False
    depth: float = multiplier()
    kernel: int = odd(3)

    def backbone(self, x: jax.Array, setting: Setting, train: bool) -> Features:
        check_size(x, 32, 'VGG')
        features: Features = {}
        for stage, count in enumerate(deepened(self.stage_sizes, self.depth), start=1):
            features |= convolutions(self, x, stage, count, self.norm, setting, train)
            x = max_pool(features[f'stage{stage}'], 2, 2)
        # Flattened as PyTorch does: channels first.
        x = adaptive_avg_pool(x, (7, 7)).transpose(0, 3, 1, 2)
        hidden = scaled(4096, self.width)
        x = nn.relu(
            layers.Dense(hidden, dtype=self.dtype, name='top_dense1')(x.reshape(x.shape[0], -1))
        )
        x = Dropout(self.dropout, self.axis_name, name='top_dropout')(x, train=train)
        x = nn.relu(layers.Dense(hidden, dtype=self.dtype, name='top_dense2')(x))
        return features | {'stem': features['stage1'], 'pooled': x.astype(jnp.float32)}


class CifarVGG(Classifier, kw_only=True):
    """VGG with BatchNorm and one dense layer, as the distillation tables have it for 32x32 images.

    The code of Tian et al. 2020 (arXiv:1910.10699): convolutions with biases beside BatchNorm, 2x2
    max pools after stages 1 to 3, after stage 4 only if the image is 64 pixels high, and the global
    average of stage 5. A stage's feature is taken before the pool; `stem` is `stage1`. `width`
    scales all channels, `depth` the convolutions of each stage. Images: 8x8 or larger.
    """

    stage_sizes: tuple[int, ...]
    depth: float = multiplier()
    kernel: int = odd(3)

    def backbone(self, x: jax.Array, setting: Setting, train: bool) -> Features:
        pools = 4 if x.shape[1] == 64 else 3
        check_size(
            x, 2**pools, 'this VGG' if pools == 3 else 'this VGG, for images 64 pixels high,'
        )
        features: Features = {}
        for stage, count in enumerate(deepened(self.stage_sizes, self.depth), start=1):
            features |= convolutions(self, x, stage, count, True, setting, train)
            x = features[f'stage{stage}']
            if stage <= pools:
                x = max_pool(x, 2, 2)
        return features | {'stem': features['stage1'], 'pooled': global_pool(x)}


def convolutions(
    model: 'VGG | CifarVGG',
    x: jax.Array,
    stage: int,
    count: int,
    norm: bool,
    setting: Setting,
    train: bool,
) -> Features:
    """One stage, `count` convolutions each with ReLU, inside `model`: `x [B, H, W, C]`
    gives `[B, H, W, channels]`.
    """
    make = partial(ConvBN, act=None, use_bias=True, norm=norm, setting=setting)
    channels = scaled(CHANNELS[stage - 1], model.width)
    units = [
        make(channels, model.kernel, name=f'stage{stage}_block{number}')
        for number in range(1, count + 1)
    ]
    return run_stage(stage, units, x, train=train)
