"""2-D convolution in the formulation that is fast on the backend at hand, with its own
gradient where that is needed.

On GPU and TPU `lax.conv_general_dilated` is fast for every shape. On XLA's CPU backend grouped and
depthwise convolutions and their gradients are 10 to 150 times slower than they need to be, 1x1 ones
2 to 5 times, and the gradients of all others twice, or a hundred times inside a compiled loop.
`fast` takes another form of the same sum for each of them; values and gradients agree to rounding.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[int, int]
Saved = tuple[jax.Array, jax.Array]  # image and kernel; of a gradient, likewise
LAYOUT = ('NHWC', 'HWIO', 'NHWC')
# Examples at once in the gradient of a kernel: many fall out of the cache, and take up to three
# times as long; few are many operations to compile.
_PART = 16


def plain(x: jax.Array, kernel: jax.Array, stride: Pair, padding: Pair, groups: int) -> jax.Array:
    """`[B, H, W, C]`, `[kh, kw, C / groups, O]` -> `[B, H', W', O]`; `padding`
    zeros on both sides of each axis.
    """
    pads = [(p, p) for p in padding]
    return lax.conv_general_dilated(
        x, kernel, stride, pads, dimension_numbers=LAYOUT, feature_group_count=groups
    )


def fast(x: jax.Array, kernel: jax.Array, stride: Pair, padding: Pair, groups: int) -> jax.Array:
    """`plain` in the form that XLA's CPU backend computes fastest."""
    inputs, outputs = x.shape[-1], kernel.shape[-1]
    if kernel.shape[:2] == (1, 1) and padding == (0, 0):
        return _pointwise(x, kernel, stride, groups)
    if groups == inputs == outputs:
        return _depthwise(x, kernel, stride, padding)
    if groups == 1:
        return _dense(x, kernel, stride, padding)
    # Others crash XLA's library in gradients (jaxlib 0.10.2: 256 to 32 in 32 groups).
    if outputs == inputs:
        return _grouped(x, kernel, stride, padding, groups)
    return plain(x, kernel, stride, padding, groups)


def _pointwise(x: jax.Array, kernel: jax.Array, stride: Pair, groups: int) -> jax.Array:
    """A 1x1 convolution as a matrix product for each group."""
    x = x[:, :: stride[0], :: stride[1]]
    rows = x.reshape(-1, x.shape[-1])
    pairs = zip(
        jnp.split(rows, groups, axis=1), jnp.split(kernel[0, 0], groups, axis=1), strict=True
    )
    products = [part @ weights for part, weights in pairs]
    return jnp.concatenate(products, axis=1).reshape(*x.shape[:3], kernel.shape[-1])


def _grouped(
    x: jax.Array, kernel: jax.Array, stride: Pair, padding: Pair, groups: int
) -> jax.Array:
    """Few groups: one dense convolution each. Many: neighbours share one,
    whose kernel is block-diagonal.

    From some 16 channels on a dense convolution is fast enough for the zeros to pay.
    """
    height, width, inputs, outputs = kernel.shape
    together = 1
    while inputs * together < 16 and groups % (2 * together) == 0:
        together *= 2
    parts = groups // together
    blocks = kernel.reshape(height, width, 1, inputs, parts, together, outputs // groups)
    blocks = blocks * jnp.eye(together, dtype=kernel.dtype).reshape(
        1, 1, together, 1, 1, together, 1
    )
    blocks = blocks.reshape(height, width, together * inputs, outputs)
    pairs = zip(jnp.split(x, parts, axis=-1), jnp.split(blocks, parts, axis=-1), strict=True)
    return jnp.concatenate(
        [_dense(part, weights, stride, padding) for part, weights in pairs], axis=-1
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense(x: jax.Array, kernel: jax.Array, stride: Pair, padding: Pair) -> jax.Array:
    """`plain` without groups; its gradients are convolutions of the same `LAYOUT`: in
    loops XLA is slow with any other.
    """
    if not _goes_in_pairs(x, kernel, stride, padding):
        return plain(x, kernel, stride, padding, 1)
    left, right = (jnp.pad(kernel, ((0, 0), ends, (0, 0), (0, 0))) for ends in ((0, 1), (1, 0)))
    y = plain(x, jnp.concatenate([left, right], axis=-1), (1, 2), padding, 1)
    return y.reshape(*y.shape[:2], 2 * y.shape[2], kernel.shape[-1])


def _goes_in_pairs(x: jax.Array, kernel: jax.Array, stride: Pair, padding: Pair) -> bool:
    """Whether two neighbours of a row are computed at once: their kernels side by side as
    twice the channels, at stride 2.

    A third of the products is with zeros (3x3), but XLA's library, twice as fast as what runs
    otherwise, needs more than 16 channels.
    """
    return (
        max(kernel.shape[2:]) <= 16
        and stride == (1, 1)
        and _output_sizes(x, kernel, stride, padding)[1] % 2 == 0
    )


def _dense_forward(
    x: jax.Array, kernel: jax.Array, stride: Pair, padding: Pair
) -> tuple[jax.Array, Saved]:
    return _dense(x, kernel, stride, padding), (x, kernel)


def _dense_backward(stride: Pair, padding: Pair, saved: Saved, dy: jax.Array) -> Saved:
    x, kernel = saved
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    edges = [(low, high) for low, high, _ in _edges(x, kernel, dy, stride, padding)]
    if stride == (1, 1) and all(low == high for low, high in edges):
        dx = _dense(dy, turned, stride, tuple(low for low, _ in edges))
    else:
        dx = lax.conv_general_dilated(
            dy, turned, (1, 1), edges, lhs_dilation=stride, dimension_numbers=LAYOUT
        )
    height, width, _, outputs = kernel.shape
    if _goes_in_pairs(x, kernel, stride, padding):
        dy = dy.reshape(*dy.shape[:2], dy.shape[2] // 2, 2 * outputs)
        pairs = _kernel_gradient(x, dy, (height, width + 1), (1, 2), padding)
        dkernel = pairs[:, :-1, :, :outputs] + pairs[:, 1:, :, outputs:]
    else:
        dkernel = _kernel_gradient(x, dy, (height, width), stride, padding)
    return dx, dkernel.astype(kernel.dtype)


def _kernel_gradient(
    x: jax.Array, dy: jax.Array, size: Pair, stride: Pair, padding: Pair
) -> jax.Array:
    """The gradient `[*size, C, O]` in float32: `x` with its channels as batch, convolved with
    `dy`; examples are channels.
    """
    ends = [
        (p, (m - 1) * s + k - n - p)
        for k, p, n, m, s in zip(size, padding, x.shape[1:3], dy.shape[1:3], stride, strict=True)
    ]
    total = jnp.float32(0)
    for start in range(0, x.shape[0], _PART):
        part, dpart = (z[start : start + _PART] for z in (x, dy))
        total += lax.conv_general_dilated(
            part.transpose(3, 1, 2, 0),
            dpart.transpose(1, 2, 0, 3),
            (1, 1),
            ends,
            rhs_dilation=stride,
            dimension_numbers=LAYOUT,
            preferred_element_type=jnp.float32,
        )
    return total.transpose(1, 2, 0, 3)


_dense.defvjp(_dense_forward, _dense_backward)


def _edges(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: Pair, padding: Pair
) -> list[tuple[int, int, int]]:
    """How `dy` is padded for the gradient with respect to `x`: (low,
    high, between) of each axis.
    """
    return [
        (k - 1 - p, n + p - (m - 1) * s - 1, s - 1)
        for k, p, n, m, s in zip(
            kernel.shape[:2], padding, x.shape[1:3], dy.shape[1:3], stride, strict=True
        )
    ]


def _windows(
    x: jax.Array, kernels: Sequence[int], stride: Pair, sizes: Sequence[int]
) -> Iterator[jax.Array]:
    """The padded image as each of the kernel's positions sees it, row by row:
    kh * kw arrays `[B, H', W', C]`.
    """
    for i in range(kernels[0]):
        for j in range(kernels[1]):
            ends = (i + (sizes[0] - 1) * stride[0] + 1, j + (sizes[1] - 1) * stride[1] + 1)
            yield lax.slice(x, (0, i, j, 0), (x.shape[0], *ends, x.shape[3]), (1, *stride, 1))


def _weighted_sum(x: jax.Array, kernel: jax.Array, stride: Pair, sizes: Sequence[int]) -> jax.Array:
    """Sum over the kernel's positions of window times weight: a depthwise convolution
    of a padded image, in float32.
    """
    taps = kernel.astype(jnp.float32).reshape(-1, 1, 1, 1, kernel.shape[-1])
    windows = _windows(x.astype(jnp.float32), kernel.shape[:2], stride, sizes)
    return sum(window * tap for window, tap in zip(windows, taps, strict=True))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: jax.Array, kernel: jax.Array, stride: Pair, padding: Pair) -> jax.Array:
    """A depthwise convolution as shifted products: XLA fuses them into one pass over the image."""
    (top, left), sizes = padding, _output_sizes(x, kernel, stride, padding)
    padded = jnp.pad(x, ((0, 0), (top, top), (left, left), (0, 0)))
    return _weighted_sum(padded, kernel, stride, sizes).astype(x.dtype)


def _output_sizes(x: jax.Array, kernel: jax.Array, stride: Pair, padding: Pair) -> tuple[int, ...]:
    return tuple(
        (n + 2 * p - k) // s + 1
        for n, k, s, p in zip(x.shape[1:3], kernel.shape[:2], stride, padding, strict=True)
    )


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, stride: Pair, padding: Pair
) -> tuple[jax.Array, Saved]:
    return _depthwise(x, kernel, stride, padding), (x, kernel)


def _depthwise_backward(stride: Pair, padding: Pair, saved: Saved, dy: jax.Array) -> Saved:
    x, kernel = saved
    dy = dy.astype(jnp.float32)
    sizes, kernels, outputs = x.shape[1:3], kernel.shape[:2], dy.shape[1:3]
    edges = _edges(x, kernel, dy, stride, padding)
    spread = lax.pad(dy, jnp.float32(0), [(0, 0, 0), *edges, (0, 0, 0)])
    dx = _weighted_sum(spread, kernel[::-1, ::-1], (1, 1), sizes).astype(x.dtype)

    (top, left) = padding
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (top, top), (left, left), (0, 0)))
    products = tuple(window * dy for window in _windows(padded, kernels, stride, outputs))
    zeros = (jnp.float32(0),) * len(products)
    # All sums in one pass, and first over rows only: a sum over
    # everything at once is not vectorised.
    sums = lax.reduce(
        products, zeros, lambda a, b: tuple(u + v for u, v in zip(a, b, strict=True)), (1,)
    )
    sums = [part.sum(axis=(0, 1)) for part in sums]
    return dx, jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)
