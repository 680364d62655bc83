"""Convolution, BatchNorm and dense layers of every model family: the one place where
their formulation is chosen.
"""

import dataclasses
import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models import convolution, normalization
from kd_jax.models.initial import Constant, Normal, Uniform, param


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all layers of a model share."""

    axis_name: str | None = None  # the device axis over which BatchNorm averages in training
    dtype: Any = jnp.float32  # of the computation; parameters are float32
    epsilon: float = 1e-5  # of BatchNorm
    momentum: float = 0.1  # PyTorch's: the share of the new value in BatchNorm's running statistics
    # regular expressions; a BatchNorm whose `<path>/mean` one matches never trains
    frozen: tuple[str, ...] = ()
    adapter: int = 0  # hidden channels of the residual adapter after each block; 0: none
    fast: bool = False  # every layer in the form that is fast on CPU


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a number that may stand for both."""
    if isinstance(value, int):
        return value, value
    height, width = value
    return height, width


class Conv(nn.Module):
    """2-D convolution, NHWC, with PyTorch's padding: `kernel // 2` zeros on every
    side unless `padding` is given.

    Maps `[B, H, W, C]` to `[B, H', W', features]`. `groups` divides both C and `features`.
    `kernel`, `stride` and `padding` are one number or (height, width). Parameters: `kernel`
    `[kh, kw, C / groups, features]` and, with `use_bias`, `bias`, which starts at 0. The kernel
    starts as He et al. 2015 (arXiv:1502.01852) say and torchvision and the CIFAR tables have it:
    normal, fan-out (kh * kw * features); with `zero_init` at 0.
    """

    features: int
    kernel: int | tuple[int, int] = 3
    stride: int | tuple[int, int] = 1
    groups: int = 1
    padding: int | tuple[int, int] | None = None
    use_bias: bool = False
    zero_init: bool = False
    setting: Setting = Setting()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, dtype = pair(self.kernel), self.setting.dtype
        # Not SAME, which differs at stride 2.
        pad = pair((size[0] // 2, size[1] // 2) if self.padding is None else self.padding)
        start = Normal(
            0.0 if self.zero_init else math.sqrt(2 / (size[0] * size[1] * self.features))
        )
        kernel = param(self, 'kernel', start, (*size, x.shape[-1] // self.groups, self.features))
        convolve = convolution.fast if self.setting.fast else convolution.plain
        y = convolve(x.astype(dtype), kernel.astype(dtype), pair(self.stride), pad, self.groups)
        if self.use_bias:
            y += param(self, 'bias', Constant(0.0), (self.features,)).astype(dtype)[
                None, None, None
            ]
        return y


class BatchNorm(nn.Module):
    """BatchNorm as PyTorch defines it; in training the statistics are those of all
    devices of `setting.axis_name`.

    The running variance averages the batch's biased variance, where PyTorch averages the
    unbiased one: they differ by n / (n - 1) with n = B * H * W, and not at all in imported
    weights. A frozen one (`setting.frozen`) uses its running statistics in training too, as the
    rest of a frozen backbone expects.
    """

    setting: Setting = Setting()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        setting, shape = self.setting, x.shape[-1:]
        scale = param(self, 'scale', Constant(1.0), shape)
        bias = param(self, 'bias', Constant(0.0), shape)
        mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32)
        var = self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32)
        path = '/'.join((*self.path, 'mean'))
        if not train or any(re.match(pattern, path) for pattern in setting.frozen):
            inverse = jax.lax.rsqrt(var.value + setting.epsilon)
            return normalization.affine(x, mean.value, scale * inverse, bias).astype(setting.dtype)
        normalize = normalization.fast if setting.fast else normalization.plain
        # Initialisation runs outside the device axis.
        axis_name = None if self.is_initializing() else setting.axis_name
        y, batch_mean, batch_var = normalize(x, scale, bias, setting.epsilon, axis_name)
        if not self.is_initializing():
            for running, value in ((mean, batch_mean), (var, batch_var)):
                running.value = (1 - setting.momentum) * running.value + setting.momentum * value
        return y.astype(setting.dtype)


class Dense(nn.Module):
    """Dense layer `[B, D] -> [B, features]` with PyTorch's default initialisation of nn.Linear."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        start = Uniform(x.shape[-1] ** -0.5)
        kernel = param(self, 'kernel', start, (x.shape[-1], self.features))
        bias = param(self, 'bias', start, (self.features,))
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)[None]
