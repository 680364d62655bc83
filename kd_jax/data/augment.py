"""Augmentation of one image as pure functions of a key; `vmap` them
over the batch, inside the step.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from kd_jax.fields import flag, number

OFF = '0 (off) or more'
Fill = float | Sequence[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What makes a view of an image; every part that is 0 or False is absent from the program."""

    crop: int = number(0, at_least=0, words=OFF)  # pixels of zero padding before a random crop
    flip: bool = flag(False)  # horizontal
    # degrees, uniform in +- this
    rotate: float = number(0.0, at_least=0, at_most=180, words='from 0 (off) to 180 degrees')
    cutout: int = number(0, at_least=0, words=OFF)  # side in pixels of the square that is blanked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Parts):
    """The fields `augment` of a study and of a run."""

    # Beta(mixup, mixup) share of a second image; 0 = off
    mixup: float = number(0.0, at_least=0, words=OFF)


def augment(key: jax.Array, image: jax.Array, parts: Parts, fill: Fill = 0.0) -> jax.Array:
    """A random view of an image: a window of it, then each part of `DRAWN` that is on.

    Each part draws from its own sub-key, so that switching one on does
    not change what another draws.

    Args:
      key: a key of `jax.random`, one an image.
      image: float32 `[H, W, C]`, in 0..255.
      parts: crop: pad with so many zero pixels on every side, cut a window of the image's size at
        a uniform place; flip: mirror left-right with probability 1/2.
      fill: `[C]` or a number, in 0..255, for parts that blank something.

    Returns:
      float32 `[H, W, C]`.
    """
    number = draw_window(key, crop=parts.crop, flip=parts.flip)
    image = window(image, number, crop=parts.crop, flip=parts.flip)
    for place, (name, part) in enumerate(DRAWN.items(), start=2):  # 0 and 1 are the window's
        if value := getattr(parts, name):
            image = part(jax.random.fold_in(key, place), image, value, fill)
    return image


def windows(*, crop: int, flip: bool) -> int:
    """How many different views cropping and flipping can make of an image."""
    return (2 * crop + 1) ** 2 * (2 if flip else 1)


def draw_window(key: jax.Array, *, crop: int, flip: bool) -> jax.Array:
    """The number of the crop and flip that `augment` makes with `key`: int32 scalar
    in 0 ... `windows(...) - 1`.
    """
    number = jnp.int32(0)
    if crop:
        top, left = jax.random.randint(jax.random.fold_in(key, 0), (2,), 0, 2 * crop + 1)
        number = top * (2 * crop + 1) + left
    if flip:
        number = 2 * number + jax.random.bernoulli(jax.random.fold_in(key, 1))
    return number


def window(image: jax.Array, number: jax.Array, *, crop: int, flip: bool) -> jax.Array:
    """The crop and flip of that number."""
    place = number // 2 if flip else number
    if crop:
        padded = jnp.pad(image, ((crop, crop), (crop, crop), (0, 0)))
        image = jax.lax.dynamic_slice(
            padded, (place // (2 * crop + 1), place % (2 * crop + 1), 0), image.shape
        )
    return jnp.where(number % 2 == 1, image[:, ::-1], image) if flip else image


def rotate_image(image: jax.Array, degrees: jax.Array | float) -> jax.Array:
    """`image` `[H, W, C]` turned counter-clockwise about its centre: bilinear,
    zeros outside, the same shape.
    """
    height, width, _ = image.shape
    angle = degrees * (math.pi / 180)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y = jnp.arange(height)[:, None] - (height - 1) / 2
    x = jnp.arange(width)[None, :] - (width - 1) / 2
    where = [y * cos + x * sin + (height - 1) / 2, x * cos - y * sin + (width - 1) / 2]
    turn = partial(map_coordinates, coordinates=where, order=1, mode='constant', cval=0.0)
    return jax.vmap(turn, in_axes=-1, out_axes=-1)(image)


def mixup_share(key: jax.Array, alpha: float) -> jax.Array:
    """The own share of a mixed batch, in 0.5..1: max(a, 1 - a) with a ~ Beta(alpha, alpha).

    Mixup is Zhang et al. 2018 (arXiv:1710.09412), one share a batch. The maximum is big_vision's:
    the mixture of a batch with a permutation of itself has the same distribution, and the image's
    own label stays the larger one.
    """
    share = jax.random.beta(key, alpha, alpha)
    return jnp.maximum(share, 1.0 - share)


def _rotate(key: jax.Array, image: jax.Array, most: float, fill: Fill) -> jax.Array:
    """Turned by a uniform angle in ±`most` degrees, bilinear, zeros outside."""
    return rotate_image(image, jax.random.uniform(key, minval=-most, maxval=most))


def _cutout(key: jax.Array, image: jax.Array, side: int, fill: Fill) -> jax.Array:
    """A square of `side` pixels at a uniform centre, clipped at the borders, is `fill` (DeVries &
    Taylor 2017, arXiv:1708.04552, who fill with the mean of the data).
    """
    height, width, channels = image.shape
    y_key, x_key = jax.random.split(key)
    top = jax.random.randint(y_key, (), 0, height) - side // 2
    left = jax.random.randint(x_key, (), 0, width) - side // 2
    y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    hole = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
    colour = jnp.broadcast_to(jnp.asarray(fill, image.dtype), (channels,))
    return jnp.where(hole, colour[None, None, :], image)


# Field of `Parts` -> what draws and makes it: (key, image, value, fill) -> image. Their order is
# that in which they are applied, and gives each its sub-key: a new one comes last.
DRAWN: Mapping[str, Callable[..., jax.Array]] = {
    'rotate': _rotate,
    'cutout': _cutout,
}
