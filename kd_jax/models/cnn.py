"""The plain CNN: convolution and pooling twice, one dense layer, the classifier."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models import layers
from kd_jax.models.common import Classifier, ConvBN, Features, check_size, odd, run_stage, scaled
from kd_jax.models.layers import Setting
from kd_jax.models.pooling import max_pool


class CNN(Classifier, kw_only=True):
    """conv32 - pool - conv64 - pool - dense128 - classifier; `width` scales all
    three, convolutions have biases.

    A stage's feature is its convolution after ReLU, before pooling. There is no stem apart from
    the first stage: `stem` is `stage1`. The number of parameters depends on the image size,
    which must be at least 4 x 4.
    """

    kernel: int = odd(3)

    def backbone(self, x: jax.Array, setting: Setting, train: bool) -> Features:
        check_size(x, 4, 'cnn')
        features: Features = {}
        for stage, channels in enumerate((32, 64), start=1):
            make = partial(ConvBN, act=None, norm=False, setting=setting, name=f'stage{stage}')
            features |= run_stage(
                stage, [make(scaled(channels, self.width), self.kernel)], x, train=train
            )
            x = max_pool(features[f'stage{stage}'], 2, 2)
        features['stem'] = features['stage1']
        dense = layers.Dense(scaled(128, self.width), dtype=self.dtype, name='dense')
        features['pooled'] = nn.relu(dense(x.reshape(x.shape[0], -1))).astype(jnp.float32)
        return features
