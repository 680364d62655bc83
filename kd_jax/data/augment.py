"""Augmentation of one image as pure functions of a key; `vmap` them
over the batch, inside the step.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from kd_jax.data import auto_augment, boxes, colour
from kd_jax.data.mixing import OFF, Mixing
from kd_jax.fields import field, flag, is_number, number

Fill = float | Sequence[float]
MOST_OPERATIONS = 16
JITTER = (
    '() (off) or four numbers, of brightness, contrast, saturation (0 or more) and hue (0 to 0.5), '
    'such as (0.4, 0.4, 0.4, 0.1)'
)


def _jitter(values: Any) -> bool:
    return not values or (
        len(values) == 4
        and all(is_number(value) and value >= 0 for value in values)
        and values[3] <= 0.5
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What makes a view of an image; every part that is 0, () or False is absent from the
    program.
    """

    crop: int = number(0, at_least=0, words=OFF)  # pixels of zero padding before a random crop
    flip: bool = flag(False)  # horizontal
    # degrees, uniform in +- this
    rotate: float = number(0.0, at_least=0, at_most=180, words='from 0 (off) to 180 degrees')
    cutout: int = number(0, at_least=0, words=OFF)  # side in pixels of the square that is blanked
    # smallest share of the image's area that a random part of it has, which is seen in its size,
    # such as 0.08; 0 = off
    random_resized_crop: float = number(0.0, at_least=0, at_most=1, words='from 0 (off) to 1')
    # so many random operations, such as 2; 0 = off
    rand_augment: int = number(0, at_least=0, at_most=MOST_OPERATIONS)
    # of those operations, whose strongest is 30
    rand_augment_magnitude: float = number(9.0, at_least=0, at_most=auto_augment.STRONGEST)
    trivial_augment: bool = flag(False)  # one random operation of a random magnitude
    # most change of brightness, contrast, saturation and hue; () = off
    color_jitter: tuple[float, ...] = field((), _jitter, JITTER)
    # probability that a random rectangle is blanked
    random_erasing: float = number(0.0, at_least=0, at_most=1, words='from 0 (off) to 1')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Mixing, Parts):
    """The fields `augment` of a study and of a run."""

    # so many views of each image that is drawn, side by side in a batch; 1 = off
    repeats: int = number(1, at_least=1, words='1 (off) or more')


def augment(key: jax.Array, image: jax.Array, parts: Parts, fill: Fill = 0.0) -> jax.Array:
    """A random view of an image: a part of it resized or a window, then what of `DRAWN` is on.

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
    if parts.random_resized_crop:
        image = boxes.crop_resized(image, draw_box(key, image.shape[0], image.shape[1], parts))
    number = draw_window(key, crop=parts.crop, flip=parts.flip)
    image = window(image, number, crop=parts.crop, flip=parts.flip)
    for name, part in DRAWN.items():
        if getattr(parts, name):
            image = part.make(jax.random.fold_in(key, part.place), image, parts, fill)
    return image


def draw_box(key: jax.Array, height: boxes.Size, width: boxes.Size, parts: Parts) -> jax.Array:
    """The box, int32 `[4]`, that `augment` crops with `key` from an image of this size: for those
    who cut it out of a larger original themselves.
    """
    key = jax.random.fold_in(key, RESIZED_CROP)
    return boxes.draw_box(key, height, width, parts.random_resized_crop)


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


def _rand_augment(key: jax.Array, image: jax.Array, parts: Parts, fill: Fill) -> jax.Array:
    count, magnitude = parts.rand_augment, parts.rand_augment_magnitude
    return auto_augment.rand_augment(key, image, count, magnitude)


def _trivial_augment(key: jax.Array, image: jax.Array, parts: Parts, fill: Fill) -> jax.Array:
    return auto_augment.trivial_augment(key, image)


def _color_jitter(key: jax.Array, image: jax.Array, parts: Parts, fill: Fill) -> jax.Array:
    return colour.color_jitter(key, image, parts.color_jitter)


def _rotate(key: jax.Array, image: jax.Array, parts: Parts, fill: Fill) -> jax.Array:
    """Turned by a uniform angle in ± so many degrees, bilinear, zeros outside."""
    most = parts.rotate
    return rotate_image(image, jax.random.uniform(key, minval=-most, maxval=most))


def _cutout(key: jax.Array, image: jax.Array, parts: Parts, fill: Fill) -> jax.Array:
    """A square of so many pixels at a uniform centre, clipped at the borders, is `fill` (DeVries &
    Taylor 2017, arXiv:1708.04552, who fill with the mean of the data).
    """
    side = parts.cutout
    height, width, _ = image.shape
    y_key, x_key = jax.random.split(key)
    top = jax.random.randint(y_key, (), 0, height) - side // 2
    left = jax.random.randint(x_key, (), 0, width) - side // 2
    return _blanked(image, (top, left, side, side), fill)


def _random_erasing(key: jax.Array, image: jax.Array, parts: Parts, fill: Fill) -> jax.Array:
    """A rectangle is `fill`, see `boxes.draw_erased`."""
    height, width, _ = image.shape
    box = boxes.draw_erased(key, height, width, parts.random_erasing)
    return _blanked(image, tuple(box), fill)


def _blanked(image: jax.Array, box: Sequence[jax.Array | int], fill: Fill) -> jax.Array:
    height, width, channels = image.shape
    colour = jnp.broadcast_to(jnp.asarray(fill, image.dtype), (channels,))
    return jnp.where(boxes.inside(box, height, width), colour[None, None, :], image)


class Drawn(NamedTuple):
    """place: of its sub-key, which is its own for good. make: (key, image, parts, fill) -> image.
    blanks: whether it looks at `fill`.
    """

    place: int
    make: Callable[..., jax.Array]
    blanks: bool = False


# 0 and 1 are the window's.
RESIZED_CROP = 4
# Field of `Parts` -> what draws and makes it, in the order in which they are applied: after the
# window operations, colours, what blanks. A new part takes a place that none has.
DRAWN: Mapping[str, Drawn] = {
    'rand_augment': Drawn(5, _rand_augment),
    'trivial_augment': Drawn(6, _trivial_augment),
    'color_jitter': Drawn(7, _color_jitter),
    'rotate': Drawn(2, _rotate),
    'cutout': Drawn(3, _cutout, blanks=True),
    'random_erasing': Drawn(8, _random_erasing, blanks=True),
}
# The parts that make more views than can be counted.
UNCOUNTABLE = ('random_resized_crop', *DRAWN)
