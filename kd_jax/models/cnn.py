"""The plain CNN: convolution and pooling twice, one dense layer, the classifier."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kd_jax.models import layers
from kd_jax.models.common import Dropout, Output


class CNN(nn.Module):
    """conv32 - pool - conv64 - pool - dense128 - classifier; `width` scales all three, convolutions have biases."""

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
            x = nn.relu(layers.Conv(int(channels * self.width), use_bias=True, dtype=self.dtype, name=f'stage{stage}')(x))
            features[f'stage{stage}'] = x
            if stage == 1:
                features['stem'] = x
            x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.relu(layers.Dense(int(128 * self.width), dtype=self.dtype, name='dense')(x.reshape(x.shape[0], -1)))
        features['pooled'] = x
        x = Dropout(self.dropout, self.axis_name)(x, train=train)
        logits = layers.Dense(self.num_classes, dtype=self.dtype, name='head')(x)
        return Output(logits.astype(jnp.float32), features)
