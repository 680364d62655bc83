"""The colours of one image `[H, W, C]` in 0..255, of one channel or of three: red, green, blue."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

CHANNELS = (1, 3)
_GREY = 19595 / 2**16, 38470 / 2**16, 7471 / 2**16  # 0.299, 0.587, 0.114, as PIL has them
_BRIGHTNESS, _CONTRAST, _SATURATION = range(3)


def grey(image: jax.Array) -> jax.Array:
    """Its brightness `[H, W, 1]`."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = (image[..., k : k + 1] * weight for k, weight in enumerate(_GREY))
    return red + green + blue


def blend(image: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    """`image` where `factor` is 1, `other` where it is 0, and beyond; clipped."""
    return jnp.clip(other + factor * (image - other), 0.0, 255.0)


def color_jitter(key: jax.Array, image: jax.Array, most: Sequence[float]) -> jax.Array:
    """torchvision's ColorJitter: brightness, contrast and saturation times factors that are
    uniform in 1 ± `most` and at least 0, the hue moved by a uniform part in ± `most` of the circle,
    in a random order.

    The hue is computed once, at a random place between the others: these are tried before and
    after it, with a factor of 1 where it is not their turn.
    """
    *amounts, hue = most
    on = [k for k, amount in enumerate(amounts) if amount]
    order_key, factor_key, place_key, hue_key = jax.random.split(key, 4)
    low = jnp.array([max(0.0, 1.0 - amount) for amount in amounts], jnp.float32)
    high = jnp.array([1.0 + amount for amount in amounts], jnp.float32)
    factors = jax.random.uniform(factor_key, (3,), minval=low, maxval=high)
    if on:
        order = jax.random.permutation(order_key, jnp.array(on, jnp.int32))
        factors = factors[order]

    def scaled(image: jax.Array, now: jax.Array | bool) -> jax.Array:
        """By those places of the order that are `now`."""
        if not on:
            return image
        turn = jnp.where(now, factors, 1.0)
        # A loop, whose images XLA keeps: it would compute them again for each mean.
        return jax.lax.fori_loop(
            0, len(on), lambda place, image: _scaled(image, order[place], turn[place]), image
        )

    if not hue:
        return scaled(image, True)
    before = jnp.arange(len(on)) < jax.random.randint(place_key, (), 0, len(on) + 1)
    image = turned_hue(scaled(image, before), jax.random.uniform(hue_key, minval=-hue, maxval=hue))
    return scaled(image, ~before)


def _scaled(image: jax.Array, which: jax.Array, factor: jax.Array) -> jax.Array:
    """With brightness, contrast or saturation times a factor."""
    shade = grey(image)
    other = jnp.where(which == _CONTRAST, shade.mean(), shade)
    return blend(image, jnp.where(which == _BRIGHTNESS, 0.0, other), factor)


def turned_hue(image: jax.Array, part: jax.Array | float) -> jax.Array:
    """Its hue moved by a part of the circle, the other two of HSV as they are."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    most, chroma = image.max(-1), image.max(-1) - image.min(-1)
    apart = jnp.where(chroma > 0, chroma, 1.0)
    sixths = jnp.where(
        red == most,
        (green - blue) / apart,
        jnp.where(green == most, (blue - red) / apart + 2.0, (red - green) / apart + 4.0),
    )
    place = (sixths + 6.0 * part)[..., None] + jnp.array([5.0, 3.0, 1.0])[None, None, :]
    place = place % 6.0
    less = jnp.clip(jnp.minimum(place, 4.0 - place), 0.0, 1.0)
    return most[..., None] - chroma[..., None] * less
