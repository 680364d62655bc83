"""RandAugment and TrivialAugment: each operation is PIL's on two photographs, and each is drawn as
often as it should be.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import FASTEST_COMPILE, quickly
from photos import operated, photos

from kd_jax.data import auto_augment
from kd_jax.data.auto_augment import OPERATIONS, RAND, WIDE, Space, operate

CASES = [
    (place, number, magnitude, sign, space)
    for place in (0, 1)
    for number in range(len(OPERATIONS))
    for magnitude in (0.0, 9.0, 17.0, 30.0)
    for sign in (1.0, -1.0)
    for space in (RAND, WIDE)
]


@pytest.fixture(scope='module')
def found():
    """What the operations make of the photographs, one program for all."""
    place, number, magnitude, sign, spaces = zip(*CASES, strict=True)
    columns = [np.array(x) for x in (number, magnitude, sign)]
    space = Space(*(np.float32(values) for values in zip(*spaces, strict=True)))
    images = np.float32(photos())[np.array(place)]
    made = quickly(jax.vmap(operate), FASTEST_COMPILE)(images, *columns, space)
    return np.asarray(made)


@pytest.mark.parametrize('name', OPERATIONS)
def test_an_operation_is_that_of_pil(found, name):
    """To one grey level where factors are rounded down, and to the bit elsewhere; of a turned
    image one pixel in a thousand may be its neighbour.
    """
    images, checked = photos(), 0
    for made, (place, number, magnitude, sign, space) in zip(found, CASES, strict=True):
        if OPERATIONS[number] != name:
            continue
        expected = operated(images[place], name, magnitude, sign, space)
        apart = np.abs(made - expected)
        if name == 'rotate':
            assert (apart > 0).any(-1).mean() < 1e-3
        else:
            assert apart.max() <= (name in ('brightness', 'color', 'contrast', 'sharpness'))
        checked += 1
    assert checked == 32


def test_operations_know_grey_images_and_such_of_one_level():
    grey = np.stack([photos()[0, :20, :30, :1], np.full((20, 30, 1), 77, np.uint8)])
    numbers = np.arange(len(OPERATIONS))
    each = jax.vmap(lambda image, number: operate(image, number, 9.0, 1.0, RAND), (None, 0))
    made = quickly(jax.vmap(each, (0, None)), FASTEST_COMPILE)(np.float32(grey), numbers)
    for image, results in zip(grey, np.asarray(made), strict=True):
        for name, result in zip(OPERATIONS, results, strict=True):
            expected = operated(image.repeat(3, 2), name, 9.0, 1.0, RAND)[..., :1]
            rare = np.abs(result - expected) > 1
            assert rare.mean() < (0.01 if name == 'rotate' else 1e-9), name


def assert_uniform(counts):
    expected = counts.sum() / counts.size
    assert expected > 20
    squares = ((counts - expected) ** 2 / expected).sum()
    assert squares < scipy.stats.chi2.ppf(0.999, counts.size - 1)


def test_operations_magnitudes_and_directions_are_drawn_alike(monkeypatch):
    """Seen from what `operate` is asked for, counted in an image."""

    def counted(image, operation, magnitude, sign, space):
        assert space is (RAND if image.shape[1] == 1 else WIDE)
        place = jnp.int32(magnitude) if image.shape[1] == 31 else 0
        return image.at[operation, place, jnp.int32(sign > 0)].add(1.0)

    monkeypatch.setattr(auto_augment, 'operate', counted)
    keys = jax.random.split(jax.random.key(3), 20_000)
    rand = jax.vmap(lambda key: auto_augment.rand_augment(key, jnp.zeros((14, 1, 2)), 3, 9.0))
    trivial = jax.vmap(lambda key: auto_augment.trivial_augment(key, jnp.zeros((14, 31, 2))))
    counts = np.asarray(quickly(rand, FASTEST_COMPILE)(keys))
    assert (counts.sum((1, 2, 3)) == 3).all()
    assert_uniform(counts.sum(0))
    assert len({one.tobytes() for one in counts}) > 2000  # of 3 draws from 28, in any order
    counts = np.asarray(quickly(lambda keys: trivial(keys).sum(0), FASTEST_COMPILE)(keys))
    assert counts.sum() == 20_000
    assert_uniform(counts)
