"""What every model family shares: the `Output` vocabulary, BatchNorm, dropout, pooling and the classifier head.

Parameter paths are the same in every family, so that a pattern can name them: `stem/...`, `stage<i>...` and
`head/kernel`, `head/bias`; everything under `head`, and nothing else, depends on the classes.
"""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.errors import UserError
from kd_jax.models import layers


@flax.struct.dataclass
class Output:
    """What a model returns for a batch of B images.

    logits: `[B, K]` float32.
    features: `stem`, `stage1` ... `stageN` (`[B, H, W, C]` in the compute type, the output of each stage) and
      `pooled` (`[B, D]` float32, what the classifier sees before dropout).
    """

    logits: jax.Array
    features: dict[str, jax.Array]


def scaled(channels: int, width: float) -> int:
    """`channels * width`, rounded.

    Raises:
      UserError: if no channel is left.
    """
    result = round(channels * width)
    if result < 1:
        raise UserError(f'width {width} leaves none of a layer of {channels} channels; use {1 / channels:.3g} or more')
    return result


class BatchNorm(nn.Module):
    """BatchNorm with PyTorch's epsilon and momentum; statistics over all devices of `axis_name` in training.

    The running variance averages the batch's biased variance, where PyTorch averages the unbiased one: they differ
    by n / (n - 1) with n = B * H * W, and not at all in imported weights.
    """

    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,  # PyTorch's 0.1: the share of the old value here, of the new one there
            epsilon=1e-5,
            axis_name=self.axis_name if train else None,
            dtype=self.dtype,
        )
        nn.share_scope(self, norm)
        return norm(x)


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
    """Dropout whose mask depends on the example's place in the global batch, not on how devices share the batch.

    Under `axis_name` every device must pass the same `dropout` key and as many examples as the others.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train: bool):
        if not train or self.rate == 0.0 or self.is_initializing():  # initialisation runs outside the device axis
            return x
        first = jax.lax.axis_index(self.axis_name) * x.shape[0] if self.axis_name else 0
        key = self.make_rng('dropout')
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(x.shape[0]))
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - self.rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1.0 - self.rate), 0.0).astype(x.dtype)


def global_pool(x):
    """Average over the image, in float32: `[B, H, W, C] -> [B, C]`."""
    return x.mean(axis=(1, 2), dtype=jnp.float32)


class Head(nn.Module):
    """Dropout and the classifier, in float32 whatever the compute type: `pooled [B, D] -> logits [B, num_classes]`.

    Every family calls it `head`.
    """

    num_classes: int
    dropout: float = 0.0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, pooled, *, train: bool):
        pooled = Dropout(self.dropout, self.axis_name)(pooled, train=train)
        dense = layers.Dense(self.num_classes)
        nn.share_scope(self, dense)
        return dense(pooled)
