"""Images without labels beside a data set: where they come from, and which of them a batch has."""

import hashlib
import io
import shutil

import jax
import losses
import numpy as np
import pytest
from loss_inputs import as_objective, teachers_of
from PIL import Image

from kd_jax import data as data_lib
from kd_jax import objectives, trained
from kd_jax.data import decoding, parts
from kd_jax.data.batches import JoinedOrder, Share, TrainOrder, parts_of
from kd_jax.data.dataset import ArraySource, DatasetInfo
from kd_jax.data.joined import JoinedSource, without_unlabelled
from kd_jax.data.stream import loaded
from kd_jax.errors import UserError
from kd_jax.models.common import Output
from kd_jax.objectives.common import labelled
from kd_jax.step import without_partners

SIDE = 12


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def settings(**fields):
    return data_lib.Settings(**{'source': 'folder', 'size': SIDE, 'cache': 'off'} | fields)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """labelled: 30 colour pictures of three classes. more: 13 others, of several sizes, one grey,
    beside a file that is no picture. photo.png: 80 x 60 pixels. more.npz, grey.npz.
    """
    root = tmp_path_factory.mktemp('images')
    for k in range(30):
        (root / f'labelled/class {k % 3}').mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(SIDE, SIDE, 3, seed=k)).save(root / f'labelled/class {k % 3}/{k}.png')
    for k in range(13):
        (root / f'more/{k % 2}/deep').mkdir(parents=True, exist_ok=True)
        shape = (20, 16 + k, 3) if k else (15, 30)
        place = root / ('more' if k == 5 else f'more/{k % 2}/deep')
        Image.fromarray(noise(*shape, seed=100 + k)).save(place / f'{k}.{"PNG" if k else "jpg"}')
    (root / 'more/read me.txt').write_text('no picture')
    Image.fromarray(noise(60, 80, 3)).save(root / 'photo.png')
    np.savez(root / 'more.npz', image=noise(7, SIDE, SIDE, 3))
    np.savez(root / 'grey.npz', image=noise(5, 20, 16))
    return root


@pytest.mark.parametrize(
    'size, share, repeats', [(8, 0.5, 1), (10, 0.25, 1), (9, 0.9, 1), (12, 0.4, 3)]
)
def test_each_batch_has_its_share_and_the_passes_of_both_parts_are_complete(size, share, repeats):
    mine, others = parts_of(size, share)
    assert (mine + others, others) == (size, min(max(round(share * size), 1), size - 1))
    pools = np.arange(3, 24), np.arange(100, 117)

    def make():
        first = TrainOrder(pools[0], 21, mine, 5, repeats)
        return JoinedOrder(first, TrainOrder(pools[1], 17, others, 5, repeats, stream=1))

    order = make()
    assert order.steps_per_epoch == 21 / mine
    batches = [order.at(step) for step in range(60)]
    for name in ('index', 'view'):
        again = make().stacked(30, 5, 8)[name]
        np.testing.assert_array_equal(again[:5], [batch[name] for batch in batches[30:35]])
    for pool, part in zip(pools, (slice(0, mine), slice(mine, size)), strict=True):
        index = np.concatenate([batch['index'][part] for batch in batches])
        view = np.concatenate([batch['view'][part] for batch in batches])
        assert len(set(zip(index, view, strict=True))) == len(index)
        whole = len(index) // (len(pool) * repeats)
        for number in range(whole):
            of_pass = index[number * len(pool) * repeats :][: len(pool) * repeats]
            assert sorted(of_pass) == sorted(pool.repeat(repeats))


def test_the_two_parts_of_a_batch_have_nothing_to_do_with_each_other():
    """Also where the two are equally large: no image always meets the same one."""
    first, second = (TrainOrder(np.arange(40), 40, 40, 0, stream=k) for k in (0, 1))
    assert (first.at(0)['index'] != second.at(0)['index']).sum() > 30


def test_shares_are_between_one_image_and_all_but_one():
    assert [parts_of(4, share) for share in (0.01, 0.5, 0.99)] == [(3, 1), (2, 2), (1, 3)]
    with pytest.raises(UserError, match='batch size is 1, which leaves no place'):
        parts_of(1, 0.5)


def test_of_a_mixture_with_an_unlabelled_image_labels_count_nothing():
    first, second = ArraySource(noise(6, 4, 4, 1), np.arange(6, dtype=np.int32)), unlabelled(6)
    source = JoinedSource.of(first, second)
    order = JoinedOrder(TrainOrder(np.arange(6), 6, 3, 0), TrainOrder(np.arange(6, 12), 6, 3, 0))
    batch = without_partners(loaded(source, Share(order, 0, 6, far=1)(0)))
    np.testing.assert_array_equal(labelled(batch), [False, True, True, False, False, False])


def unlabelled(count, seed=1):
    return ArraySource(noise(count, 4, 4, 1, seed=seed), np.full(count, -1, np.int32))


def test_two_sources_are_one():
    first = ArraySource(noise(6, 4, 4, 1), np.arange(6, dtype=np.int32))
    second = unlabelled(4)
    source = JoinedSource.of(first, second)
    every = np.concatenate([first.image, second.image])
    assert len(source) == 10 and not source.streamed and source.image_shape == (4, 4, 1)
    np.testing.assert_array_equal(source.labels, [0, 1, 2, 3, 4, 5, -1, -1, -1, -1])
    index = np.array([9, 0, 6, 5, 5])
    image, bad = source.images(index)
    np.testing.assert_array_equal(image, every[index])
    assert not bad.any() and source.why(7) == 'image 1'
    np.testing.assert_array_equal(source.arrays()['image'], every)
    few = source.take(np.array([7, 2]))
    np.testing.assert_array_equal(few.image, every[[7, 2]])
    assert few.labels.tolist() == [-1, 2] and few.why(1) == 'image 2'
    sums = {
        sum_of(of) for of in (source, few, first, JoinedSource.of(first, unlabelled(4, seed=2)))
    }
    assert len(sums) == 4


def sum_of(source):
    digest = hashlib.sha256()
    source.add_to(digest)
    return digest.hexdigest()


def test_all_else_is_that_of_the_labelled_images(root):
    alone = data_lib.load(settings(path=str(root / 'labelled')))
    given = settings(path=str(root / 'labelled'), unlabelled=str(root / 'more'), labels_per_class=2)
    both = data_lib.load(given)
    assert both.info.count == alone.info.count | {'labelled': 6, 'unlabelled': 13}
    assert both.unlabelled == 13 and (both.train.labels[len(alone.train) :] == -1).all()
    for name in ('mean', 'std', 'class_names', 'num_classes', 'image_shape'):
        assert getattr(both.info, name) == getattr(alone.info, name)
    assert both.checksum != alone.checksum
    rest = without_unlabelled(both)
    assert rest.info.count == alone.info.count | {'labelled': 6} and rest.unlabelled == 0
    assert rest.checksum == alone.checksum and without_unlabelled(alone) is alone


def more_of(root, name, **fields):
    """(the images that `name` adds, whether they are streamed)."""
    given = settings(path=str(root / 'labelled'), unlabelled=str(root / name), **fields)
    train = data_lib.load(given).train
    found, bad = train.second.images(np.arange(len(train.second)))
    assert not bad.any() and found.shape[1:] == (SIDE, SIDE, 3)
    joined = train.images(np.arange(len(train.first), len(train)))[0]
    np.testing.assert_array_equal(joined, found)
    return found, train.streamed


def test_folders_are_read_to_their_depths_and_resized(root):
    found, streamed = more_of(root, 'more')
    assert not streamed and len(found) == 13
    grey = found[[len(np.unique(image[..., 0] - image[..., 1])) == 1 for image in found]]
    assert len(grey) == 1
    again, streamed = more_of(root, 'more', placement='stream')
    assert streamed
    np.testing.assert_array_equal(again, found)


def test_arrays_are_taken_as_they_are_or_resized(root):
    found, _ = more_of(root, 'more.npz')
    with np.load(root / 'more.npz') as file:
        np.testing.assert_array_equal(found, file['image'])
    found, streamed = more_of(root, 'grey.npz', placement='stream')
    assert streamed and len(found) == 5  # only the labelled ones are
    assert (found[..., 0] == found[..., 2]).all()


def test_parts_of_a_photo_are_functions_of_the_seed_and_their_number(root):
    found, _ = more_of(root, 'photo.png', unlabelled_crops=40)
    assert len(np.unique(found.reshape(40, -1), axis=0)) == 40
    few, streamed = more_of(root, 'photo.png', unlabelled_crops=7, placement='stream')
    assert streamed
    np.testing.assert_array_equal(few, found[:7])
    other, _ = more_of(root, 'photo.png', unlabelled_crops=7, val_seed=1)
    assert (other != found[:7]).any(axis=(1, 2, 3)).all()


def test_parts_are_inside_of_the_photo_and_have_the_pixels(root):
    boxes = np.array([parts.box_of(0, k, 32, 640, 427) for k in range(500)])
    left, top, wide, high = boxes.T
    assert left.min() >= 0 and top.min() >= 0
    assert (left + wide).max() <= 640 and (top + high).max() <= 427
    assert 0.9 < (wide * high).min() / 32**2 < 3 and max(wide.max(), high.max()) <= 427 // 2
    assert np.ptp(left + wide / 2) > 500 and np.ptp(top + high / 2) > 300  # everywhere
    assert parts.box_of(3, 7, 32, 32, 32) == (0, 0, 32, 32)


def test_a_part_is_what_pillow_resizes_and_of_smaller_copies_nearly():
    form = decoding.Form(8, 3)
    ramp = np.linspace(0, 255, 300).astype(np.uint8)
    photo = np.broadcast_to(ramp[None, :, None], (200, 300, 3)).copy()
    file = io.BytesIO()
    Image.fromarray(photo).save(file, 'PNG')
    source = parts.PartsSource.of(file.getvalue(), 30, form, 0, 'photo')
    assert [one.shape[0] for one in source.pixels] == [200, 100, 50, 25]
    found, _ = source.images(np.arange(30))
    for k, image in enumerate(found):
        left, top, wide, high = source.box(k)
        expected = form.stretched(photo[top : top + high, left : left + wide])
        assert np.abs(image.astype(int) - expected).max() <= 12
    cut, _ = source.images(np.arange(1), [lambda wide, high: (1, 2, 3, 4)])
    left, top, _, _ = source.box(0)
    np.testing.assert_array_equal(
        cut[0], form.stretched(photo[top + 2 : top + 6, left + 1 : left + 4])
    )


def test_a_prepared_set_gives_its_images(tmp_path, monkeypatch):
    import tfds_sets

    test, _ = tfds_sets.prepare_cifar10_like(tmp_path, 20, 6)['test']
    from tensorflow_datasets.core import constants

    monkeypatch.setattr(constants, 'DATA_DIR', str(tmp_path))
    usual = {'source': 'tfds', 'name': 'cifar10', 'path': str(tmp_path)}
    for split, count in (('', 20), ('/train', 20), ('/test', 6)):
        given = data_lib.Settings(**usual, unlabelled=f'tfds:cifar10{split}')
        train = data_lib.load(given).train
        assert len(train.second) == count and (train.second.labels == -1).all()
    found, expected = ({image.tobytes() for image in of} for of in (train.second.image, test))
    assert found == expected
    grey = data_lib.load(data_lib.Settings(unlabelled='tfds:cifar10/test')).train
    assert grey.second.image.shape == (6, 8, 8, 1)
    with pytest.raises(UserError, match='has the splits test, train; name one of them'):
        data_lib.load(data_lib.Settings(unlabelled='tfds:cifar10/other'))


def test_damaged_files_are_told_or_an_end(root, tmp_path):
    shutil.copytree(root / 'more', tmp_path / 'more')
    (tmp_path / 'more/bad.png').write_bytes(b'no image')
    given = {'path': str(root / 'labelled'), 'unlabelled': str(tmp_path / 'more')}
    found = data_lib.load(settings(**given))
    assert found.unlabelled == 13 and any('bad.png is no image' in note for note in found.notes)
    with pytest.raises(UserError, match='bad.png is no image; mend them'):
        data_lib.load(settings(**given, on_bad_image='error'))


def bad_inputs(root):
    """{what is given: (fields, what the sentence says)}, and the files for it."""
    for name in ('empty', 'broken'):
        (root / name).mkdir(exist_ok=True)
    (root / 'broken/a.png').write_bytes(b'no image')
    (root / 'broken.png').write_bytes(b'no image')
    (root / 'some.txt').write_text('words')
    Image.fromarray(noise(9, 40, 3)).save(root / 'small.png')
    np.savez(root / 'no key.npz', pictures=noise(3, 12, 12, 3))
    np.savez(root / 'real.npz', image=np.zeros((3, 12, 12, 3)))
    np.savez(root / 'none.npz', image=noise(0, 12, 12, 3))
    np.savez(root / 'five.npz', image=noise(2, 9, 9, 5))
    np.savez(root / 'object.npz', image=np.array([{}, 1], object))
    (root / 'torn.npz').write_bytes(b'PK\x03\x04 and no more')
    np.savez(
        root / 'wide.npz',
        **{f'{part}_image': noise(20, 6, 9, 1) for part in ('train', 'test')},
        **{f'{part}_label': np.arange(20) % 2 for part in ('train', 'test')},
    )
    wide = {'source': 'npz', 'path': str(root / 'wide.npz')}
    return {
        'nowhere': ({}, ['there is no such file', 'name a directory']),
        'some.txt': ({}, ['a file of another kind']),
        'empty': ({}, ['holds no file that ends as an image does']),
        'broken': ({}, ['holds no image that can be read', 'name a directory']),
        'broken.png': ({}, ['broken.png is no image', 'one large photo']),
        'small.png': ({}, ['has 40 x 9 pixels', 'take a larger photo']),
        'no key.npz': ({}, ['lacks image (it has pictures); np.savez with image']),
        'real.npz': ({}, ['is float64 of shape (3, 12, 12, 3); it must be uint8']),
        'none.npz': ({}, ['at least one image']),
        'five.npz': ({}, ['has 5 channels']),
        'object.npz': ({}, ['object array']),
        'torn.npz': ({}, ['is not a complete .npz file']),
        'more.npz': ({'decode': 'photo'}, ["data.decode is 'photo'", 'are arrays']),
        'more': (wide, ['are 6 x 9 of 1 channel(s)', 'name an .npz file']),
        400 * 'a': ({}, ['data.unlabelled', 'cannot be looked at']),
    }


def test_what_cannot_be_is_refused(root):
    for name, (fields, parts_of_it) in bad_inputs(root).items():
        given = settings(**{'path': str(root / 'labelled')} | fields, unlabelled=str(root / name))
        with pytest.raises(UserError) as refused:
            data_lib.load(given)
        for part in parts_of_it:
            assert part in str(refused.value), (name, str(refused.value))
    for field, value in (('share', 0.0), ('share', 1.0), ('crops', 0)):
        with pytest.raises(UserError, match=f'data.unlabelled_{field} is {value}'):
            data_lib.load(settings(**{f'unlabelled_{field}': value}))


# A teacher of other classes.


def given_to(name, inputs, logits):
    """The values of a loss where the teacher says these logits."""
    loss = objectives.OBJECTIVES[name](**dict(losses.first_of_variants(name)[0].given))
    taught = teachers_of(loss, inputs._replace(teacher=Output(logits, inputs.teacher.features)))
    values, _ = as_objective(name, loss).apply(
        inputs.variables,
        inputs.student,
        taught,
        inputs.batch,
        mutable=[kind for kind in inputs.variables if kind != 'params'],
        rngs={'negatives': jax.random.key(3)},
    )
    return values[name]


READS = [
    name
    for name, loss in objectives.OBJECTIVES.items()
    if loss.needs_teacher and loss.needs_teacher_logits
]


def test_losses_say_whether_they_read_the_teachers_logits():
    """Those that do not are never shown any; the others change with them."""
    assert sorted(READS) == sorted(
        ['dist', 'dkd', 'kl', 'logit_mse', 'nkd', 'soft_cross_entropy', 'three_term']
    )
    inputs = {
        name: losses.first_of_variants(name)[0].small_inputs() for name in objectives.OBJECTIVES
    }
    for name in set(objectives.OBJECTIVES) - set(READS):
        jax.eval_shape(lambda of, name=name: given_to(name, of, None), inputs[name])
    changed = jax.jit(
        lambda some: {
            name: (given_to(name, of, of.teacher.logits), given_to(name, of, -of.teacher.logits))
            for name, of in some.items()
        }
    )({name: inputs[name] for name in READS})
    for name, (before, after) in changed.items():
        assert np.abs(before - after).max() > 1e-3, name


def of_classes(names):
    info = DatasetInfo('there', len(names), tuple(names), (8, 8, 1), (0.5,), (0.2,))
    return trained.Trained('runs/there', None, info, 'float32', None, None)


def terms(**fields):
    return objectives.build(fields, (1.0,), 3).losses


def test_a_teacher_of_other_classes_teaches_by_its_features():
    info = DatasetInfo('here', 3, ('a', 'b', 'c'), (8, 8, 1), (0.5,), (0.2,))
    same, more, renamed = of_classes('abc'), of_classes('vwxyz'), of_classes('abd')
    numbered = of_classes('012')
    kl, at, both = terms(kl={}), terms(at={}), terms(cross_entropy={}, kl={}, at={})
    for teacher in (same, numbered):
        for losses_ in (None, kl, at, both):
            trained.check_teacher(teacher, info, losses_)
    for teacher, told in (
        (more, 'has 5 classes'),
        (renamed, "class 2 of the teacher runs/there is 'd'"),
    ):
        trained.check_teacher(teacher, info, at)
        trained.check_teacher(teacher, info, ())
        for losses_, words in (
            (None, 'train a teacher on the same classes'),
            (kl, 'kl learns from logits'),
            (both, 'kl learns from logits and at does not'),
            (terms(at={'only_where': 'teacher_surer'}), 'at learns from logits'),
        ):
            with pytest.raises(UserError, match=f'{told}.*{words}$'):
                trained.check_teacher(teacher, info, losses_)
    colour = more._replace(info=more.info.__class__(**vars(more.info) | {'image_shape': (8, 8, 1)}))
    with pytest.raises(UserError, match='sees images of 1 channel'):
        trained.check_teacher(colour, info.__class__(**vars(info) | {'image_shape': (8, 8, 3)}), at)
