"""Convolution and dense layers of every model family: the one place where their formulation is chosen."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

# He et al. 2015 (arXiv:1502.01852) as torchvision and the CIFAR tables use it: normal, fan-out (k * k * features).
CONV_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
# PyTorch's default for nn.Linear: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
LINEAR_INIT = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


class Conv(nn.Module):
    """2-D convolution, NHWC, with PyTorch's padding: `kernel // 2` zeros on every side unless `padding` is given.

    Maps `[B, H, W, C]` to `[B, H', W', features]`. `groups` divides both C and `features`. Parameters: `kernel`
    `[k, k, C / groups, features]` and, with `use_bias`, `bias`, which starts at 0.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    padding: int | None = None
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        pad = self.kernel // 2 if self.padding is None else self.padding
        conv = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            strides=(self.stride, self.stride),
            padding=[(pad, pad), (pad, pad)],  # torchvision's, not SAME: they differ at stride 2
            feature_group_count=self.groups,
            use_bias=self.use_bias,
            kernel_init=CONV_INIT,
            dtype=self.dtype,
        )
        nn.share_scope(self, conv)  # the parameters are this module's own: `<name>/kernel`
        return conv(x)


class Dense(nn.Module):
    """Dense layer `[B, D] -> [B, features]` with PyTorch's default initialisation of nn.Linear."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        bound = x.shape[-1] ** -0.5

        def bias_init(key, shape):
            return nn.initializers.uniform(2 * bound)(key, shape) - bound

        kernel = self.param('kernel', LINEAR_INIT, (x.shape[-1], self.features))
        bias = self.param('bias', bias_init, (self.features,))
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)[None]
