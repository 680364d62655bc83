"""Views of an image that are told apart by a number, and rows of stored targets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FASTEST_COMPILE, quickly, random_splits

from kd_jax import target_store
from kd_jax.data import augment
from kd_jax.data.views import Views
from kd_jax.errors import UserError


def test_a_view_is_found_again_by_its_slot():
    index, number = jnp.arange(40), jnp.arange(40) * 7
    images = jnp.asarray(random_splits(size=6).train.image)[index]
    for views, count in (
        (Views(crop=1, flip=True), 18),
        (Views(crop=2), 25),
        (Views(flip=True), 2),
        (Views(), 1),
        (Views(crop=2, flip=True, rotate=20.0, cutout=2, fill=(9.0,), repeated=5, seed=3), 5),
    ):
        assert (views.count, views.countable) == (count, True)
        key = jax.random.key(11)
        slot = views.slot(key, index, number)
        assert set(np.unique(slot)) <= set(range(count))
        np.testing.assert_array_equal(
            views.augment(key, images, index, number), views.of_slot(images, index, slot)
        )
    assert not Views(crop=1, rotate=5.0).countable
    repeated = views.augment(jax.random.key(0), images, index, number)
    np.testing.assert_array_equal(
        repeated, views.augment(jax.random.key(1), images, index, number + 5)
    )


MANY = {'random_resized_crop': 0.2, 'trivial_augment': True, 'random_erasing': 0.5}


def test_parts_that_make_endless_views_are_named_and_can_be_repeated():
    assert Views(**MANY).uncountable == list(MANY)
    repeated = Views(**MANY, flip=True, repeated=4)
    assert (repeated.count, repeated.countable) == (4, True)
    images = jnp.asarray(random_splits(size=6).train.image)[:8]
    index, number = jnp.arange(8), jnp.arange(8) * 3
    view = quickly(repeated.augment, FASTEST_COMPILE)
    first = view(jax.random.key(0), images, index, number)
    np.testing.assert_array_equal(first, view(jax.random.key(1), images, index, number + 4))
    assert np.abs(first - view(jax.random.key(0), images, index, number + 1)).max() > 1


def test_a_crop_that_was_made_outside_leaves_the_rest_of_the_view():
    """Photos are cut before; the other parts draw what they would."""
    views = Views(random_resized_crop=0.2, flip=True, cutout=2, fill=(7.0,), photos=True)
    rest = dataclasses.replace(views, random_resized_crop=0.0, photos=False)
    images = np.float32(random_splits(size=6).train.image[:8])
    index, number, key = jnp.arange(8), jnp.arange(8) + 5, jax.random.key(3)
    of = lambda images: [one.augment(key, images, index, number) for one in (views, rest)]  # noqa: E731
    np.testing.assert_array_equal(*quickly(of, FASTEST_COMPILE)(images))
    assert views.cut(5) == (0.2, 5, 0) and rest.cut(5) is None
    assert dataclasses.replace(views, repeated=3, seed=2).cut(5) == (0.2, 2, 3)
    assert not views.countable and views.record['photos']
    with pytest.raises(UserError, match='random_resized_crop'):
        dataclasses.replace(rest, photos=True).check((6, 6, 3), 'augment')


@pytest.mark.parametrize(
    ('parts', 'channels', 'words'),
    [
        (
            {'crop': 2, 'random_resized_crop': 0.2},
            3,
            'a.crop is 2 and a.random_resized_crop is 0.2; they do not go .*: set a.crop=0 or',
        ),
        (
            {'rand_augment': 2, 'trivial_augment': True},
            3,
            'a.rand_augment is 2 and a.trivial_augment is True; they .* or a.trivial_augment=False',
        ),
        (
            {'color_jitter': (0.1, 0.0, 0.0, 0.0)},
            2,
            r'a.color_jitter is .* for images of 2 channels; .* of 1 or 3: turn it off',
        ),
    ],
    ids=['crops', 'operations', 'channels'],
)
def test_parts_that_make_no_sense_are_one_sentence(parts, channels, words):
    with pytest.raises(UserError, match=words):
        Views(**parts).check((8, 8, channels), 'a')
    Views(**dict(list(parts.items())[:1])).check((8, 8, 1), 'a')


def test_the_record_of_views_has_what_changes_them():
    assert Views().record == Views(rand_augment_magnitude=3.0, fill=(9.0,)).record
    for parts in ({'cutout': 2}, {'random_erasing': 0.5}):
        assert Views(**parts).record != Views(**parts, fill=(9.0,)).record
    assert Views(rand_augment=1).record != Views(rand_augment=1, rand_augment_magnitude=3.0).record


def test_all_windows_are_drawn_and_differ():
    image = np.float32(np.random.default_rng(0).uniform(1, 255, (5, 5, 2)))
    window = jax.vmap(lambda n: augment.window(image, n, crop=2, flip=True))
    made = quickly(window, FASTEST_COMPILE)(np.arange(augment.windows(crop=2, flip=True)))
    assert len(np.unique(np.asarray(made).reshape(50, -1), axis=0)) == 50
    draw = jax.vmap(lambda key: augment.draw_window(key, crop=2, flip=True))
    drawn = quickly(draw, FASTEST_COMPILE)(jax.random.split(jax.random.key(0), 1000))
    assert set(np.asarray(drawn).tolist()) == set(range(50))


def test_the_likeliest_classes_and_the_rest_make_logits():

    def decoded(rows, classes):
        decode = quickly(lambda columns: target_store.decoded(columns, classes), FASTEST_COMPILE)
        return np.asarray(decode(target_store.columns(rows)))

    logits = np.random.default_rng(0).normal(0, 3, (7, 9)).astype(np.float32)
    kind = target_store.row_type(9, 'float32', 4)
    rows = target_store.rows_of(logits, kind)
    found = decoded(rows, 9)
    found = np.exp(found) / np.exp(found).sum(axis=1, keepdims=True)
    exact = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for mine, theirs in zip(found, exact, strict=True):
        order = np.argsort(-theirs)
        np.testing.assert_allclose(mine[order[:4]], theirs[order[:4]], rtol=1e-5)
        np.testing.assert_allclose(mine[order[4:]], theirs[order[4:]].mean(), rtol=1e-5)
    sure = np.zeros((1, 9), np.float32)
    sure[0, 2] = 500.0
    likely = target_store.rows_of(sure, target_store.row_type(9, 'float16', 2))
    output = decoded(likely, 9)
    assert np.isfinite(output).all() and output.argmax() == 2
    top = output.max()
    assert np.isfinite(output - top - np.log(np.exp(output - top).sum())).all()
    all_of_them = target_store.rows_of(logits, target_store.row_type(9, 'float16', 0))
    np.testing.assert_allclose(decoded(all_of_them, 9), logits, rtol=1e-3)
    huge = target_store.rows_of(
        np.float32([[1e9, -1e9, 3.0]]), target_store.row_type(3, 'float16', 0)
    )
    assert huge['logits'].tolist() == [[65504.0, -65504.0, 3.0]]  # not infinite
