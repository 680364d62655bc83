"""What every model family shares: the `Output` vocabulary, BatchNorm, dropout and the classifier head."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models import layers


@flax.struct.dataclass
class Output:
    """What a model returns for a batch of B images.

    logits: `[B, K]` float32.
    features: `stem`, `stage1` ... `stageN` (`[B, H, W, C]`, the output of each stage) and `pooled` (`[B, D]`).
    """

    logits: jax.Array
    features: dict[str, jax.Array]


class BatchNorm(nn.Module):
    """BatchNorm with PyTorch's epsilon and momentum; statistics over all devices of `axis_name` in training."""

    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            axis_name=self.axis_name if train else None,
            dtype=self.dtype,
            name='bn',
        )(x)


class ConvBN(nn.Module):
    """Convolution, BatchNorm and (with `relu`) ReLU: `[B, H, W, C] -> [B, H', W', features]`."""

    features: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    relu: bool = True
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = layers.Conv(self.features, self.kernel, self.stride, self.groups, dtype=self.dtype, name='conv')(x)
        x = BatchNorm(self.axis_name, self.dtype, name='norm')(x, train=train)
        return nn.relu(x) if self.relu else x


class Dropout(nn.Module):
    """Dropout whose mask depends on the example's place in the global batch, not on how devices share the batch."""

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train: bool):
        if not train or self.rate == 0.0:
            return x
        first = jax.lax.axis_index(self.axis_name) * x.shape[0] if self.axis_name else 0
        key = self.make_rng('dropout')
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(x.shape[0]))
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - self.rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1.0 - self.rate), 0.0).astype(x.dtype)


class Head(nn.Module):
    """Global average pooling, dropout and a dense layer: `[B, H, W, C] -> (pooled [B, C], logits [B, K])`."""

    num_classes: int
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        pooled = x.mean(axis=(1, 2))
        kept = Dropout(self.dropout, self.axis_name)(pooled, train=train)
        logits = layers.Dense(self.num_classes, dtype=self.dtype, name='dense')(kept)
        return pooled, logits.astype(jnp.float32)
