"""Rectangles: drawn as torchvision draws them, cut out and resized as PIL does it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import FASTEST_COMPILE, quickly
from photos import crop_resized, photos

from kd_jax.data import boxes

COUNT = 1500
SIZES = [(224, 224), (90, 300), (32, 24)]


def reference(rng, height, width, areas, ratios, fits):
    """The loop of torchvision: (first side, second side) by their area and ratio, or None."""
    for _ in range(10):
        area = height * width * rng.uniform(*areas)
        ratio = math.exp(rng.uniform(*map(math.log, ratios)))
        sides = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if fits(*sides):
            return sides
    return None


def cropped(rng, height, width, smallest):
    sides = reference(
        rng,
        height,
        width,
        (smallest, 1.0),
        (3 / 4, 4 / 3),
        lambda wide, high: 0 < wide <= width and 0 < high <= height,
    )
    if sides is None:
        wide, high = width, height
        if width / height < 3 / 4:
            high = round(width / (3 / 4))
        elif width / height > 4 / 3:
            wide = round(height * (4 / 3))
        return (height - high) // 2, (width - wide) // 2, high, wide
    wide, high = sides
    return rng.integers(0, height - high + 1), rng.integers(0, width - wide + 1), high, wide


def erased(rng, height, width):
    sides = reference(
        rng,
        height,
        width,
        (0.02, 0.33),
        (0.3, 3.3),
        lambda high, wide: high < height and wide < width,
    )
    high, wide = sides or (0, 0)
    return rng.integers(0, height - high + 1), rng.integers(0, width - wide + 1), high, wide


def assert_alike(found, expected):
    """Places, sides, areas and ratios have the distributions of others."""
    for of in (*range(4), lambda x: x[:, 2] * x[:, 3], lambda x: x[:, 2] / x[:, 3]):
        mine, theirs = (x[:, of] if isinstance(of, int) else of(x) for x in (found, expected))
        assert scipy.stats.ks_2samp(mine, theirs).pvalue > 0.002, of


@pytest.fixture(scope='module')
def drawn():
    """Boxes of crops in images of sizes that only the running program knows."""
    heights, widths = (
        np.array(sides, np.int32).repeat(COUNT) for sides in zip(*SIZES, strict=True)
    )
    keys = jax.random.split(jax.random.key(0), len(heights))
    draw = quickly(jax.vmap(lambda *of: boxes.draw_box(*of, 0.08)), FASTEST_COMPILE)
    return np.asarray(draw(keys, heights, widths)).reshape(len(SIZES), COUNT, 4)


@pytest.mark.parametrize('number', range(len(SIZES)), ids=map(str, SIZES))
def test_boxes_of_crops_are_torchvision_s(drawn, number):
    found, (height, width) = drawn[number], SIZES[number]
    assert found.dtype == np.int32
    top, left, high, wide = found.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + high <= height).all() and (left + wide <= width).all()
    share = high * wide / (height * width)
    assert 0.07 < share.min() < 0.12
    rng = np.random.default_rng(1)
    assert_alike(found, np.array([cropped(rng, height, width, 0.08) for _ in range(COUNT)]))


@pytest.mark.parametrize('size', [(10, 500), (500, 10), (30, 30), (30, 24)], ids=str)
def test_where_no_try_fits_the_box_is_the_largest_central_one(size):
    """The whole image, or as much of it as the ratio allows; no smaller area is asked for."""
    draw = jax.vmap(lambda key: boxes.draw_box(key, *size, 1.0))
    found = quickly(draw, FASTEST_COMPILE)(jax.random.split(jax.random.key(2), 50))
    expected = {cropped(np.random.default_rng(k), *size, 1.0) for k in range(50)}
    central = max(expected, key=lambda box: box[2] * box[3])
    assert central in {tuple(map(int, box)) for box in found}


def test_a_crop_is_pil_s_to_one_grey_level():
    rng, images = np.random.default_rng(4), photos()
    height, width = images.shape[1:3]
    sides = rng.integers(1, (height + 1, width + 1), (40, 2))
    places = rng.integers(0, np.array([height, width]) - sides + 1)
    some = np.concatenate([places, sides], axis=1).astype(np.int32)
    some[0] = 0, 0, height, width
    which = np.arange(len(some)) % 2
    crop = quickly(jax.vmap(boxes.crop_resized), FASTEST_COMPILE)
    found = np.asarray(crop(np.float32(images)[which], some))
    for made, number, box in zip(found, which, some, strict=True):
        apart = np.abs(made - crop_resized(images[number], box))
        assert apart.max() <= 1 and (apart > 0).mean() < 0.25
    np.testing.assert_array_equal(found[0], images[0])


def test_what_is_erased_is_torchvision_s():
    keys = jax.random.split(jax.random.key(5), COUNT)
    draw = jax.vmap(boxes.draw_erased, in_axes=(0, None, None, None))

    def of(keys):
        return [draw(keys, 64, 48, probability) for probability in (1.0, 0.25)]

    always, sometimes = map(np.asarray, quickly(of, FASTEST_COMPILE)(keys))
    rng = np.random.default_rng(6)
    assert_alike(always, np.array([erased(rng, 64, 48) for _ in range(COUNT)]))
    some = (sometimes[:, 2] > 0).sum()
    assert abs(some - COUNT / 4) < 4 * math.sqrt(COUNT * 3 / 16)
    np.testing.assert_array_equal(always[sometimes[:, 2] > 0], sometimes[sometimes[:, 2] > 0])


@pytest.mark.parametrize('share', [0.0, 0.4, 1.0])
def test_a_box_of_cutmix_has_the_share_but_for_what_is_clipped(share):
    keys = jax.random.split(jax.random.key(7), 3000)
    draw = jax.vmap(boxes.draw_cut, in_axes=(0, None, None, None))
    found = np.asarray(quickly(draw, FASTEST_COMPILE)(keys, 20, 30, share))
    halves = [int(side * math.sqrt(1 - share)) // 2 for side in (20, 30)]
    for axis, (side, half) in enumerate(zip((20, 30), halves, strict=True)):
        begin, length = found[:, axis], found[:, axis + 2]
        allowed = {
            (max(c - half, 0), min(c + half, side) - max(c - half, 0)): c for c in range(side)
        }
        assert len(allowed) == side
        counts = np.bincount(
            [allowed[pair] for pair in zip(begin, length, strict=True)], minlength=side
        )
        assert ((counts - 3000 / side) ** 2 / (3000 / side)).sum() < scipy.stats.chi2.ppf(
            0.999, side - 1
        )


def test_the_pixels_of_a_box():
    found = np.asarray(boxes.inside(jnp.array([1, 2, 3, 2]), 6, 5))[..., 0]
    expected = np.zeros((6, 5), bool)
    expected[1:4, 2:4] = True
    np.testing.assert_array_equal(found, expected)
