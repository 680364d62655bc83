"""The plain CNN: convolution and pooling twice, one dense layer, the classifier."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kd_jax.models import layers
from kd_jax.models.common import Head, Output, scaled


class CNN(nn.Module):
    """conv32 - pool - conv64 - pool - dense128 - classifier; `width` scales all three, convolutions have biases.

    A stage's feature is its convolution after ReLU, before pooling. There is no stem apart from the first stage:
    `stem` is `stage1`. The number of parameters depends on the image size, which must be at least 4 x 4.
    """

    num_classes: int
    width: float = 1.0
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image, *, train: bool) -> Output:
        features = {}
        x = image.astype(self.dtype)
        for stage, channels in enumerate((32, 64), start=1):
            conv = layers.Conv(scaled(channels, self.width), use_bias=True, dtype=self.dtype, name=f'stage{stage}')
            x = features[f'stage{stage}'] = nn.relu(conv(x))
            x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        features['stem'] = features['stage1']
        dense = layers.Dense(scaled(128, self.width), dtype=self.dtype, name='dense')
        features['pooled'] = nn.relu(dense(x.reshape(x.shape[0], -1))).astype(jnp.float32)
        logits = Head(self.num_classes, self.dropout, self.axis_name, name='head')(features['pooled'], train=train)
        return Output(logits, features)
