"""Augmentation: exactly the views it may give, as often as it should, each
from the example's key alone.
"""

from collections import Counter
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.ndimage
import scipy.stats
from helpers import FASTEST_COMPILE, quickly

from kd_jax.data import boxes
from kd_jax.data.augment import DRAWN, RESIZED_CROP, Parts, augment, draw_box, rotate_image
from kd_jax.data.mixing import mixup_share


def image_of(height, width, channels, seed=0):
    return (
        np.random.default_rng(seed).integers(1, 256, (height, width, channels)).astype(np.float32)
    )


def viewed(fill=0.0, **parts):
    """`augment` with those parts: (key, image) -> a view."""
    return partial(augment, parts=Parts(**parts), fill=fill)


@cache
def program(count, items):
    """(key, image) -> so many views; compiled once for all tests that ask for the same."""

    def view(key, image):
        keys = jax.random.split(key, count)
        return jax.vmap(viewed(**dict(items)), in_axes=(0, None))(keys, image)

    return quickly(view, FASTEST_COMPILE)


def views(image, count, seed=0, **parts):
    return np.asarray(program(count, tuple(parts.items()))(jax.random.key(seed), image))


def frequencies(found, allowed):
    """How often each allowed image was found, after checking that nothing else was."""
    counts = Counter(one.tobytes() for one in found)
    known = [np.ascontiguousarray(one, np.float32).tobytes() for one in allowed]
    assert len(set(known)) == len(known)
    assert set(counts) <= set(known)
    return np.array([counts[key] for key in known])


def assert_uniform(counts):
    expected = counts.sum() / len(counts)
    assert expected > 20
    assert ((counts - expected) ** 2 / expected).sum() < scipy.stats.chi2.ppf(
        0.999, len(counts) - 1
    )


def test_crop_gives_all_shifts_and_each_as_often():
    image = image_of(5, 4, 2)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    shifts = [padded[y : y + 5, x : x + 4] for y in range(3) for x in range(3)]
    assert_uniform(frequencies(views(image, 1800, crop=1), shifts))


def test_a_wide_crop_reaches_its_extremes():
    image = image_of(6, 6, 1)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    shifts = [padded[y : y + 6, x : x + 6] for y in range(9) for x in range(9)]
    assert_uniform(frequencies(views(image, 8100, crop=4), shifts))


def test_flip_is_an_exact_mirror_half_the_time():
    image = image_of(4, 5, 3)
    plain, mirrored = frequencies(views(image, 1000, flip=True), [image, image[:, ::-1]])
    assert plain + mirrored == 1000 and abs(mirrored - 500) < 64  # four standard deviations


@pytest.mark.parametrize('side', [4, 5, 1])
def test_cutout_is_a_square_at_a_uniform_centre_clipped_at_the_borders(side):
    image, fill = image_of(9, 8, 2), np.array([-3.0, 0.5], np.float32)
    allowed = []
    for y in range(9):
        for x in range(8):
            one = image.copy()
            top, left = y - side // 2, x - side // 2
            one[max(top, 0) : top + side, max(left, 0) : left + side] = fill
            allowed.append(one)
    found = views(image, 7200, cutout=side, fill=tuple(map(float, fill)))
    assert_uniform(frequencies(found, allowed))
    area = (found[..., 0] == -3).sum((1, 2))
    assert (
        area.max() == side**2
        and area.min() == (side - side // 2 if side % 2 == 0 else (side + 1) // 2) ** 2
    )


def test_cutout_can_fill_with_one_number():
    found = views(image_of(8, 8, 3), 300, cutout=3)
    assert ((found == 0).all(-1).sum((1, 2)) >= 1).all()  # image_of has no zeros


@pytest.mark.parametrize('shape', [(7, 7, 3), (8, 8, 1), (5, 9, 2)])
def test_rotation_by_0_is_exact(shape):
    image = image_of(*shape)
    np.testing.assert_array_equal(rotate_image(jnp.asarray(image), 0.0), image)


@pytest.mark.parametrize('quarters', [1, 2, 3, -1])
@pytest.mark.parametrize('size', [7, 8])
def test_rotation_by_quarters_is_rot90(quarters, size):
    image = image_of(size, size, 2)
    np.testing.assert_allclose(
        rotate_image(jnp.asarray(image), 90.0 * quarters), np.rot90(image, quarters), atol=2e-3
    )


@pytest.mark.parametrize('degrees', [17.0, -30.0, 133.0])
def test_rotation_is_scipy_s_bilinear_one(degrees):
    image = image_of(9, 12, 2)
    expected = scipy.ndimage.rotate(
        image.astype(np.float64), degrees, reshape=False, order=1, mode='grid-constant'
    )
    np.testing.assert_allclose(rotate_image(jnp.asarray(image), degrees), expected, atol=2e-3)


def angles(count, rotate):
    """The angle of each view in degrees, seen from where a bright spot went."""
    y, x = np.mgrid[-10:11, -10:11]
    # 6 pixels right of the centre
    spot = np.exp(-((x - 6) ** 2 + y**2) / 4).astype(np.float32)[..., None]
    found = views(spot, count, rotate=rotate)[..., 0]
    return np.degrees(np.arctan2(-(found * y).sum((1, 2)), (found * x).sum((1, 2))))


def test_the_angle_is_uniform_within_its_bounds():
    angle = angles(400, rotate=30.0)
    assert -30.2 < angle.min() < -29 and 29 < angle.max() < 30.2
    assert scipy.stats.kstest(angle, 'uniform', args=(-30, 60)).pvalue > 0.01


def test_no_draw_tells_another():
    count, image = 2000, image_of(8, 8, 1)
    rows, columns = ((views(image, count, crop=2) != 0).any(axis) for axis in ((2, 3), (1, 3)))
    holes = views(image, count, cutout=1)[..., 0] == 0
    draws = [
        rows.argmax(1) - rows[:, ::-1].argmax(1),  # zeros above minus zeros below: the shift
        columns.argmax(1) - columns[:, ::-1].argmax(1),
        (views(image, count, flip=True) != image).any((1, 2, 3)),
        angles(count, rotate=30.0),
        holes.any(2).argmax(1),
        holes.any(1).argmax(1),
    ]
    correlation = np.corrcoef(np.array(draws, np.float64)) - np.eye(6)
    assert abs(correlation).max() < 4 / np.sqrt(count)


def test_a_part_draws_the_same_whatever_else_is_on():
    image = image_of(8, 8, 3)
    mirrored = (views(image, 300, flip=True) == image[:, ::-1]).all((1, 2, 3))
    cropped, both = views(image, 300, crop=2), views(image, 300, crop=2, flip=True)
    np.testing.assert_array_equal(
        both, np.where(mirrored[:, None, None, None], cropped[:, :, ::-1], cropped)
    )
    holes = (views(image, 300, cutout=3, fill=-1.0) == -1).all(-1, keepdims=True)
    everything = views(image, 300, crop=2, flip=True, cutout=3, fill=-1.0)
    np.testing.assert_array_equal(everything, np.where(holes, -1, both))
    jittered = views(image, 300, crop=2, flip=True, color_jitter=JITTER, cutout=3, fill=-1.0)
    np.testing.assert_array_equal((jittered == -1).all(-1, keepdims=True), holes)
    turned = views(image, 300, rotate=10.0)
    np.testing.assert_array_equal(
        views(image, 300, rotate=10.0, cutout=3, fill=-1.0), np.where(holes, -1, turned)
    )


JITTER = (0.4, 0.4, 0.4, 0.1)
ALL = {'crop': 2, 'flip': True, 'rotate': 15.0, 'cutout': 3, 'fill': (1.0, 2.0, 3.0)}
OTHERS = {
    'random_resized_crop': 0.3,
    'flip': True,
    'rand_augment': 2,
    'color_jitter': JITTER,
    'random_erasing': 0.5,
}


# Where grey levels are rounded, another program may round one up that this one rounds down.
@pytest.mark.parametrize(
    ('parts', 'apart', 'different'),
    [(ALL, 1e-4, 6), (OTHERS, 5.0, 6), ({'trivial_augment': True}, 1.0, 3)],
)
def test_a_view_depends_on_its_key_and_image_alone(parts, apart, different):
    images = jnp.asarray(np.stack([image_of(8, 8, 3, seed) for seed in range(6)]))
    keys = jax.random.split(jax.random.key(1), 6)
    view = quickly(jax.vmap(viewed(**parts)), FASTEST_COMPILE)
    whole = view(keys, images)
    order = np.array([4, 1, 5, 0, 2, 2])
    np.testing.assert_array_equal(view(keys[order], images[order]), whole[order])
    alone = quickly(viewed(**parts), FASTEST_COMPILE)(keys[2], images[2])
    assert alone.shape == (8, 8, 3) and alone.dtype == jnp.float32
    np.testing.assert_allclose(alone, whole[2], atol=apart)
    same = np.asarray(view(keys, images[:1].repeat(6, 0)))
    assert len({one.tobytes() for one in same}) >= different


def test_a_sub_key_stays_with_its_part():
    """Another one would be another training run for everyone who resumes."""
    places = {
        'rotate': 2,
        'cutout': 3,
        'rand_augment': 5,
        'trivial_augment': 6,
        'color_jitter': 7,
        'random_erasing': 8,
    }
    assert {name: DRAWN[name].place for name in places} == places
    assert RESIZED_CROP == 4
    taken = [0, 1, RESIZED_CROP, *(part.place for part in DRAWN.values())]
    assert len(set(taken)) == len(taken)


def test_a_resized_crop_is_of_the_box_that_can_be_asked_for():
    """Before the flip, so that a file can be cut before anything else is done."""
    image, parts = image_of(16, 16, 3), Parts(random_resized_crop=0.2)

    def of(keys):
        drawn = jax.vmap(lambda key: draw_box(key, 16, 16, parts))(keys)
        return drawn, jax.vmap(lambda box: boxes.crop_resized(image, box))(drawn)

    keys = jax.random.split(jax.random.key(0), 200)
    drawn, expected = quickly(of, FASTEST_COMPILE)(keys)
    found = views(image, 200, random_resized_crop=0.2, flip=True)
    plain, mirrored = ((found == x).all((1, 2, 3)) for x in (expected, expected[:, :, ::-1]))
    assert (plain | mirrored).all() and 60 < plain.sum() < 140
    assert len({tuple(box) for box in np.asarray(drawn).tolist()}) > 150


def test_parts_that_are_off_are_not_in_the_program():
    image = jnp.zeros((4, 4, 1))
    for parts in ({}, {'rand_augment_magnitude': 20.0}):
        program = jax.make_jaxpr(viewed(**parts))(jax.random.key(0), image)
        assert program.eqns == []


@cache
def shares():
    return quickly(jax.vmap(mixup_share, in_axes=(0, None)), FASTEST_COMPILE)


@pytest.mark.parametrize('alpha', [0.2, 1.0, 4.0])
def test_mixup_share_is_the_larger_of_two_beta_shares(alpha):
    share = np.asarray(shares()(jax.random.split(jax.random.key(0), 2000), alpha))
    assert share.min() >= 0.5 and share.max() <= 1.0
    beta = scipy.stats.beta(alpha, alpha)
    assert scipy.stats.kstest(share, lambda x: beta.cdf(x) - beta.cdf(1 - x)).pvalue > 0.01
    assert jax.eval_shape(partial(mixup_share, alpha=alpha), jax.random.key(0)).shape == ()
