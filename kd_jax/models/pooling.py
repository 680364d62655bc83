"""Pooling as PyTorch defines it, of images `[B, H, W, C]`."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def global_pool(x: jax.Array) -> jax.Array:
    """Average over the image, in float32: `[B, H, W, C] -> [B, C]`."""
    return x.mean(axis=(1, 2), dtype=jnp.float32)


def max_pool(
    x: jax.Array, kernel: int, stride: int, padding: int = 0, ceil: bool = False
) -> jax.Array:
    """PyTorch's max pooling of `[B, H, W, C]`; with `ceil` a last window that begins
    inside the image counts too.
    """
    pads = []
    for size in x.shape[1:3]:
        extra = 0
        if ceil:
            windows = -(-(size + 2 * padding - kernel) // stride) + 1
            if (windows - 1) * stride >= size + padding:  # it would begin in the padding
                windows -= 1
            extra = max((windows - 1) * stride + kernel - size - 2 * padding, 0)
        pads.append((padding, padding + extra))
    return nn.max_pool(x, (kernel, kernel), (stride, stride), pads)


def avg_pool(x: jax.Array, kernel: int, stride: int, padding: int = 0) -> jax.Array:
    """PyTorch's average pooling of `[B, H, W, C]`; the padding's zeros count."""
    return nn.avg_pool(x, (kernel, kernel), (stride, stride), [(padding, padding)] * 2)


def adaptive_avg_pool(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """PyTorch's adaptive average pooling, `[B, H, W, C] -> [B, *size, C]`.

    Output i averages rows floor(i H / h) to ceil((i + 1) H / h) - 1: with more
    outputs than rows, rows repeat.
    """
    if x.shape[1:3] == tuple(size):
        return x

    def weights(length: int, outputs: int) -> jax.Array:
        matrix = np.zeros((outputs, length), np.float32)
        for i in range(outputs):
            first, last = i * length // outputs, -(-(i + 1) * length // outputs)
            matrix[i, first:last] = 1 / (last - first)
        return jnp.asarray(matrix, x.dtype)

    rows, columns = (
        weights(length, outputs) for length, outputs in zip(x.shape[1:3], size, strict=True)
    )
    return jnp.einsum('ih,bhwc,jw->bijc', rows, x, columns)
