"""Augmentation of one image as pure functions of a key; `vmap` them over the batch, inside the step."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


def augment(key, image, *, crop: int = 0, flip: bool = False, rotate: float = 0.0, cutout: int = 0, fill=0.0):
    """A random view of `image`; every part that is 0 or False is absent from the program.

    Each part draws from its own sub-key, so that switching one on does not change what another draws.

    Args:
      key: a key of `jax.random`, one an image.
      image: float32 `[H, W, C]`, in 0..255.
      crop: pad with so many zero pixels on every side, cut a window of the image's size at a uniform place.
      flip: mirror left-right with probability 1/2.
      rotate: turn by a uniform angle in ±`rotate` degrees, bilinear, zeros outside.
      cutout: side in pixels of a square at a uniform centre, clipped at the borders, replaced by `fill`
        (DeVries & Taylor 2017, arXiv:1708.04552).
      fill: `[C]` or a number, in 0..255. The paper fills with the mean of the data.

    Returns:
      float32 `[H, W, C]`.
    """
    if crop:
        image = _crop(jax.random.fold_in(key, 0), image, crop)
    if flip:
        image = jnp.where(jax.random.bernoulli(jax.random.fold_in(key, 1)), image[:, ::-1], image)
    if rotate:
        image = rotate_image(image, jax.random.uniform(jax.random.fold_in(key, 2), minval=-rotate, maxval=rotate))
    if cutout:
        image = _cutout(jax.random.fold_in(key, 3), image, cutout, fill)
    return image


def rotate_image(image, degrees):
    """`image` `[H, W, C]` turned counter-clockwise about its centre: bilinear, zeros outside, the same shape."""
    height, width, _ = image.shape
    angle = degrees * (math.pi / 180)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y = jnp.arange(height)[:, None] - (height - 1) / 2
    x = jnp.arange(width)[None, :] - (width - 1) / 2
    where = [y * cos + x * sin + (height - 1) / 2, x * cos - y * sin + (width - 1) / 2]
    turn = partial(map_coordinates, coordinates=where, order=1, mode='constant', cval=0.0)
    return jax.vmap(turn, in_axes=-1, out_axes=-1)(image)


def mixup_share(key, alpha: float):
    """The own share of a mixed batch, in 0.5..1: max(a, 1 - a) with a ~ Beta(alpha, alpha).

    Mixup is Zhang et al. 2018 (arXiv:1710.09412), one share a batch. The maximum is big_vision's: the mixture of a
    batch with a permutation of itself has the same distribution, and the image's own label stays the larger one.
    """
    share = jax.random.beta(key, alpha, alpha)
    return jnp.maximum(share, 1.0 - share)


def _crop(key, image, pad: int):
    place = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return jax.lax.dynamic_slice(padded, (place[0], place[1], 0), image.shape)


def _cutout(key, image, side: int, fill):
    height, width, channels = image.shape
    y_key, x_key = jax.random.split(key)
    top = jax.random.randint(y_key, (), 0, height) - side // 2
    left = jax.random.randint(x_key, (), 0, width) - side // 2
    y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    hole = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
    fill = jnp.broadcast_to(jnp.asarray(fill, image.dtype), (channels,))
    return jnp.where(hole, fill[None, None, :], image)
