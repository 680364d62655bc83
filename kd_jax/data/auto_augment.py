"""RandAugment and TrivialAugment of one image, with torchvision's operations and ranges.

Under `vmap` a switch would compute each of its branches. So an operation is three stages that all
images go through, of which at most one changes an image: a map of places, a blend with something
made of the image, a table of grey levels. All give whole grey levels, as PIL does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.data.colour import blend, grey

OPERATIONS = (
    'identity',
    'shear_x',
    'shear_y',
    'translate_x',
    'translate_y',
    'rotate',
    'brightness',
    'color',
    'contrast',
    'sharpness',
    'posterize',
    'solarize',
    'autocontrast',
    'equalize',
)
_BLENDS = ('brightness', 'color', 'contrast', 'sharpness')
STRONGEST = 30  # magnitudes are 0 ... this
_BITS = 16  # of the fractions in which PIL counts places


class Space(NamedTuple):
    """What the operations do at the largest magnitude."""

    shear: float  # pixels a pixel
    translate: float  # share of the side
    pixels: float  # and so many more
    rotate: float  # degrees
    blend: float  # factors are 1 ± this
    bits: int  # that posterize takes away


RAND = Space(shear=0.3, translate=150 / 331, pixels=0.0, rotate=30.0, blend=0.9, bits=4)
WIDE = Space(shear=0.99, translate=0.0, pixels=32.0, rotate=135.0, blend=0.99, bits=6)


def rand_augment(key: jax.Array, image: jax.Array, count: int, magnitude: float) -> jax.Array:
    """RandAugment (Cubuk et al. 2020, arXiv:1909.13719): `count` operations, each drawn from all of
    them, at one magnitude.
    """

    def one(number: jax.Array, image: jax.Array) -> jax.Array:
        which, sign = jax.random.split(jax.random.fold_in(key, number))
        return operate(image, _drawn(which), magnitude, _sign(sign), RAND)

    return jax.lax.fori_loop(0, count, one, _whole(image))


def trivial_augment(key: jax.Array, image: jax.Array) -> jax.Array:
    """TrivialAugment, its wide form (Müller & Hutter 2021, arXiv:2103.10158): one operation at a
    uniform magnitude.
    """
    which, strength, sign = jax.random.split(key, 3)
    magnitude = jax.random.randint(strength, (), 0, STRONGEST + 1)
    return operate(_whole(image), _drawn(which), magnitude, _sign(sign), WIDE)


def operate(
    image: jax.Array,
    operation: jax.Array | int,
    magnitude: jax.Array | float,
    sign: jax.Array | float,
    space: Space,
) -> jax.Array:
    """`image` `[H, W, C]` of whole numbers in 0..255 after one of `OPERATIONS`.

    magnitude: in 0..30. sign: 1 or -1, of those that have two directions.
    """
    operation = jnp.asarray(operation, jnp.int32)
    magnitude = jnp.asarray(magnitude, jnp.float32)
    signed = sign * magnitude / STRONGEST
    # What is seen of another place comes last: nothing has to look at it.
    blended = _blended(image, operation, signed, space)
    # XLA would compute a table again for each pixel that looks into it; the result of a product is
    # kept, and whole numbers to 255 are exact in every precision.
    table = _table(image, operation, magnitude, space).astype(image.dtype) @ jnp.eye(256)
    channel = jnp.arange(image.shape[-1])[None, None, :]
    found = table[channel, image.astype(jnp.int32)]
    found = jnp.where(_is_any(operation, _BLENDS), blended, found)
    return _moved(found, operation, signed, space)


def _is(operation: jax.Array, name: str) -> jax.Array:
    return operation == OPERATIONS.index(name)


def _is_any(operation: jax.Array, names: Sequence[str]) -> jax.Array:
    return jnp.isin(operation, jnp.array([OPERATIONS.index(name) for name in names]))


def _drawn(key: jax.Array) -> jax.Array:
    return jax.random.randint(key, (), 0, len(OPERATIONS))


def _sign(key: jax.Array) -> jax.Array:
    return jnp.where(jax.random.bernoulli(key), -1.0, 1.0)


def _whole(image: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(image + 0.5), 0.0, 255.0)


def _moved(image: jax.Array, operation: jax.Array, signed: jax.Array, space: Space) -> jax.Array:
    """Sheared from the top left corner, moved, or turned counter-clockwise about the centre: the
    nearest pixel, black outside.
    """
    height, width, channels = image.shape

    def only(name: str, most: float) -> jax.Array:
        return jnp.where(_is(operation, name), most * signed, 0.0)

    angle = only('rotate', jnp.pi / 180 * space.rotate)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x_by_y = only('shear_x', space.shear) - sin
    y_by_x = only('shear_y', space.shear) + sin
    right = jnp.trunc(only('translate_x', space.translate * width + space.pixels))
    down = jnp.trunc(only('translate_y', space.translate * height + space.pixels))
    x_first = (width - cos * width + sin * height) / 2 - right + (cos + x_by_y) / 2
    y_first = (height - cos * height - sin * width) / 2 - down + (cos + y_by_x) / 2
    y, x = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    x_from = (_fixed(x_first) + _fixed(cos) * x + _fixed(x_by_y) * y) >> _BITS
    y_from = (_fixed(y_first) + _fixed(cos) * y + _fixed(y_by_x) * x) >> _BITS
    seen = (x_from >= 0) & (x_from < width) & (y_from >= 0) & (y_from < height)
    pixels = image.reshape(height * width, channels)
    return jnp.where(seen[..., None], pixels[jnp.where(seen, y_from * width + x_from, 0)], 0.0)


def _fixed(number: jax.Array) -> jax.Array:
    return jnp.floor(number * 2.0**_BITS + 0.5).astype(jnp.int32)


def _blended(image: jax.Array, operation: jax.Array, signed: jax.Array, space: Space) -> jax.Array:
    """Brightness, colour, contrast, sharpness: blended with black, grey, its mean, smoothness."""
    shade = jnp.floor(grey(image) + 0.5)
    other = jnp.where(_is(operation, 'contrast'), jnp.floor(shade.mean() + 0.5), shade)
    other = jnp.where(_is(operation, 'brightness'), 0.0, other)
    other = jnp.where(_is(operation, 'sharpness'), _smooth(image), other)
    return jnp.floor(blend(image, other, 1.0 + space.blend * signed))


def _smooth(image: jax.Array) -> jax.Array:
    """PIL's filter SMOOTH: the mean of 3 x 3 pixels, the middle one five times; borders stay."""
    height, width, _ = image.shape
    wide = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    inner = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    return jnp.where(inner, jnp.floor((total + 4.0 * image) / 13.0 + 0.5), image)


def _table(image: jax.Array, operation: jax.Array, magnitude: jax.Array, space: Space) -> jax.Array:
    """What becomes of each grey level: int32 `[C, 256]`."""
    level = jnp.broadcast_to(jnp.arange(256, dtype=jnp.int32)[None, :], (image.shape[-1], 256))
    less = jnp.round(magnitude * space.bits / STRONGEST).astype(jnp.int32)
    found = jnp.where(_is(operation, 'posterize'), (level >> less) << less, level)
    solarized = jnp.where(level < 255.0 - 255.0 / STRONGEST * magnitude, level, 255 - level)
    found = jnp.where(_is(operation, 'solarize'), solarized, found)
    low, high = (edge.astype(jnp.int32)[:, None] for edge in (image.min((0, 1)), image.max((0, 1))))
    stretched = jnp.clip((level - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    found = jnp.where(_is(operation, 'autocontrast') & (high > low), stretched, found)
    return jnp.where(_is(operation, 'equalize'), _equalized(image, level), found)


def _equalized(image: jax.Array, level: jax.Array) -> jax.Array:
    """PIL's table: as many pixels below a level as it is high, but for whole numbers."""
    channels = image.shape[-1]
    pixels = image.astype(jnp.int32).reshape(-1, channels)
    counts = jnp.zeros((channels, 256), jnp.int32)
    counts = counts.at[jnp.arange(channels)[None, :], pixels].add(1)
    highest = jnp.take_along_axis(counts, pixels.max(0)[:, None], axis=1)
    step = (len(pixels) - highest) // 255
    below = jnp.cumsum(counts, axis=1) - counts
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table, level)
