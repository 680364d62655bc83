"""Random rectangles of an image: what is cut out of it, what is blanked in it, and where another
one shows; pure functions of a key.

A box is int32 `[4]`: top, left, height, width.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

CROP_RATIO = 3 / 4, 4 / 3  # width by height
ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)  # shares of the image; height by width
TRIES = 10  # boxes of which the first that fits is taken, all drawn at once

Size = int | jax.Array


def draw_box(key: jax.Array, height: Size, width: Size, smallest: float) -> jax.Array:
    """The box of a random resized crop (Szegedy et al. 2015, arXiv:1409.4842), as torchvision
    draws it.

    Its area is uniform in `smallest`..1 of the image's, its ratio log-uniform in 3/4..4/3. Where
    no try fits, it is the largest central box of such a ratio. `height` and `width` may be traced:
    `vmap` draws boxes in images of different sizes.
    """
    size_key, place_key = jax.random.split(key)
    wide, high = _sides(size_key, height, width, (smallest, 1.0), CROP_RATIO)
    fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
    first, least, most = jnp.argmax(fits), *CROP_RATIO
    ratio = width / jnp.asarray(height, jnp.float32)
    central = jnp.stack(
        [
            jnp.where(ratio < least, _whole(width / least), height),
            jnp.where(ratio > most, _whole(height * most), width),
        ]
    )
    size = jnp.where(fits.any(), jnp.stack([high[first], wide[first]]), central).astype(jnp.int32)
    room = jnp.stack([jnp.asarray(height, jnp.int32), jnp.asarray(width, jnp.int32)]) - size
    place = jax.random.randint(place_key, (2,), 0, room + 1)
    return jnp.concatenate([jnp.where(fits.any(), place, room // 2), size])


def draw_erased(key: jax.Array, height: int, width: int, probability: float) -> jax.Array:
    """The box of random erasing (Zhong et al. 2017, arXiv:1708.04896), as torchvision draws it;
    an empty one where nothing is erased.
    """
    coin, size_key, place_key = jax.random.split(key, 3)
    high, wide = _sides(size_key, height, width, ERASED_AREA, ERASED_RATIO)
    fits = (high < height) & (wide < width)
    first = jnp.argmax(fits)
    size = jnp.stack([high[first], wide[first]]).astype(jnp.int32)
    room = jnp.array([height, width], jnp.int32) - size
    place = jax.random.randint(place_key, (2,), 0, jnp.maximum(room + 1, 1))
    erased = fits.any() & jax.random.bernoulli(coin, probability)
    return jnp.where(erased, jnp.concatenate([place, size]), 0)


def draw_cut(key: jax.Array, height: int, width: int, share: jax.Array) -> jax.Array:
    """The box of CutMix (Yun et al. 2019, arXiv:1905.04899): of the image's shape, with
    1 - `share` of its area, at a uniform centre, clipped at the borders.
    """
    sides = jnp.array([height, width], jnp.int32)
    half = (sides * jnp.sqrt(1.0 - share)).astype(jnp.int32) // 2
    centre = jax.random.randint(key, (2,), 0, sides)
    begin, end = jnp.maximum(centre - half, 0), jnp.minimum(centre + half, sides)
    return jnp.concatenate([begin, end - begin])


def inside(box: Sequence[jax.Array | int] | jax.Array, height: int, width: int) -> jax.Array:
    """`[H, W, 1]` bool: which pixels of an image are in the box."""
    top, left, high, wide = box
    y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    return (y >= top) & (y < top + high) & (x >= left) & (x < left + wide)


def crop_resized(image: jax.Array, box: jax.Array) -> jax.Array:
    """The part of `image` `[H, W, C]` in the box, in the image's own size and whole grey levels.

    Bilinear, as PIL and torchvision resize a part that was cut out: nothing beyond the box is
    seen. A box is never larger than its image, so that there is nothing to smooth against aliases.
    """
    top, left, high, wide = box
    image = _stretched(image, 0, *_neighbours(top, high, image.shape[0]))
    image = _stretched(image, 1, *_neighbours(left, wide, image.shape[1]))
    return jnp.floor(image + 0.5)


def _stretched(
    image: jax.Array, axis: int, first: jax.Array, second: jax.Array, share: jax.Array
) -> jax.Array:
    one, other = (jnp.take(image, which, axis, mode='clip') for which in (first, second))
    return one + jnp.expand_dims(share, (1 - axis, 2)) * (other - one)


def _neighbours(
    first: jax.Array, length: jax.Array, size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For each of `size` pixels that `length` are stretched to: which two of those it lies
    between, and the share of the second.
    """
    place = (jnp.arange(size) + 0.5) * (length / size) - 0.5
    below = jnp.floor(place)
    whole = below.astype(jnp.int32)
    return (
        first + jnp.clip(whole, 0, length - 1),
        first + jnp.clip(whole + 1, 0, length - 1),
        place - below,
    )


def _sides(
    key: jax.Array,
    height: Size,
    width: Size,
    areas: tuple[float, float],
    ratios: tuple[float, float],
) -> tuple[jax.Array, jax.Array]:
    """`TRIES` rectangles by two sides, of which the ratios are those of the first to the second."""
    area_key, ratio_key = jax.random.split(key)
    image = jnp.asarray(height, jnp.float32) * jnp.asarray(width, jnp.float32)
    area = image * jax.random.uniform(area_key, (TRIES,), minval=areas[0], maxval=areas[1])
    low, high = map(math.log, ratios)
    ratio = jnp.exp(jax.random.uniform(ratio_key, (TRIES,), minval=low, maxval=high))
    return jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))


def _whole(side: jax.Array | float) -> jax.Array:
    return jnp.round(jnp.asarray(side, jnp.float32)).astype(jnp.int32)
