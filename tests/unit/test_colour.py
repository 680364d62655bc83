"""Colours: as PIL changes those of two photographs, and by uniform factors in every order."""

import colorsys
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import FASTEST_COMPILE, quickly
from photos import enhanced, photos
from PIL import Image

from kd_jax.data import colour

FACTORS = (0.0, 0.3, 1.0, 1.6)
TURNS = (-0.5, -0.1, 0.07, 0.5)


@pytest.fixture(scope='module')
def changed():
    """(which of three changes, factor, of which photograph) -> image; and of turned hues."""
    images = jnp.asarray(photos(), jnp.float32)

    def of(images):
        scaled = {
            (which, factor): jax.vmap(lambda x, w=which, f=factor: colour._scaled(x, w, f))(images)
            for which in range(3)
            for factor in FACTORS
        }
        return scaled, [colour.turned_hue(images[1], part) for part in TURNS]

    return jax.device_get(quickly(of, FASTEST_COMPILE)(images))


@pytest.mark.parametrize('which', ['Brightness', 'Contrast', 'Color'])
def test_changes_are_pil_s(changed, which):
    """PIL rounds grey and the mean to whole levels, and the result down; here nothing is rounded:
    together that is less than two levels.
    """
    number = ('Brightness', 'Contrast', 'Color').index(which)
    for factor in FACTORS:
        for k, image in enumerate(photos()):
            found = changed[0][number, factor][k]
            apart = found - enhanced(which, image, factor)
            assert np.abs(apart).max() < 2
            assert found.min() >= 0 and found.max() <= 255


def test_a_turned_hue_is_that_of_the_colour_circle(changed):
    """That of `colorsys`; PIL's has 256 steps of hue and of saturation, and torchvision moves it by
    255 of them at most: together that is less than fourteen levels, and one in the mean.
    """
    image = photos()[1]
    rows = image[::12, ::12].reshape(-1, 3)
    for part, found in zip(TURNS, changed[1], strict=True):
        hsv = [colorsys.rgb_to_hsv(*row) for row in rows.tolist()]
        expected = [colorsys.hsv_to_rgb((h + part) % 1, s, v) for h, s, v in hsv]
        np.testing.assert_allclose(found[::12, ::12].reshape(-1, 3), expected, atol=2e-3)
        planes = np.array(Image.fromarray(image).convert('HSV'))
        planes[..., 0] += np.int32(part * 255).astype(np.uint8)
        theirs = np.asarray(Image.fromarray(planes, 'HSV').convert('RGB'))
        assert np.abs(found - theirs).max() < 14 and np.abs(found - theirs).mean() < 1.5


def test_every_order_of_the_four_is_drawn_alike(monkeypatch):
    """Seen from a number to which each adds its own digit."""
    monkeypatch.setattr(
        colour,
        '_scaled',
        lambda image, which, factor: jnp.where(factor == 1.0, image, image * 5 + which + 1),
    )
    monkeypatch.setattr(colour, 'turned_hue', lambda image, part: image * 5 + 4)

    def of(keys):
        return [
            jax.vmap(lambda key, m=most: colour.color_jitter(key, jnp.zeros(()), m))(keys)
            for most in ((0.4, 0.4, 0.4, 0.1), (0.4, 0.0, 0.4, 0.0), (0.0, 0.0, 0.0, 0.1))
        ]

    found = quickly(of, FASTEST_COMPILE)(jax.random.split(jax.random.key(0), 2400))
    for digits, values in zip(((1, 2, 3, 4), (1, 3), (4,)), found, strict=True):
        orders = [
            sum(digit * 5**place for place, digit in enumerate(reversed(order)))
            for order in itertools.permutations(digits)
        ]
        counts = Counter(np.asarray(values).tolist())
        assert set(counts) == set(orders)
        assert min(counts.values()) > 2400 / len(orders) - 4 * np.sqrt(2400 / len(orders))


def test_factors_are_uniform_and_not_below_zero():
    image = jnp.full((2, 2, 3), 60.0)

    def of(keys):
        jitter = jax.vmap(colour.color_jitter, in_axes=(0, None, None))
        return [jitter(keys, image, (most, 0.0, 0.0, 0.0)) for most in (0.4, 2.0)]

    keys = jax.random.split(jax.random.key(1), 800)
    for most, found in zip((0.4, 2.0), quickly(of, FASTEST_COMPILE)(keys), strict=True):
        factor = np.asarray(found)[:, 0, 0, 0] / 60
        low, high = max(0.0, 1 - most), 1 + most
        expected = scipy.stats.uniform(low, high - low)
        assert scipy.stats.kstest(factor, expected.cdf).pvalue > 0.01


def test_a_grey_image_has_no_hue_and_no_saturation():
    image = jnp.asarray(photos()[0, :8, :8, :1], jnp.float32)
    np.testing.assert_array_equal(colour.turned_hue(image, 0.3), image)
    np.testing.assert_allclose(colour._scaled(image, 2, 0.3), image, atol=1e-4)
