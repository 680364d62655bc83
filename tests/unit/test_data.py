"""Loading: exact bytes, splits that share nothing, few labels."""

import gzip
import importlib.util
import re
import struct
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import tfds_sets
from PIL import Image

from kd_jax import data
from kd_jax.data import arrays
from kd_jax.errors import UserError


def config(**changes):
    fields = {
        'source': 'npz', 'name': '', 'path': '', 'val_share': 0.2, 'val_seed': 0,
        'labels_per_class': 0, 'labels_seed': 0, 'mean': (), 'std': (),
    }  # fmt: skip
    return SimpleNamespace(
        **{
            **fields,
            **{key: str(value) if key == 'path' else value for key, value in changes.items()},
        }
    )


def sentence(**changes):
    """The one sentence with which `load` refuses."""
    with pytest.raises(UserError) as caught:
        data.load(config(**changes))
    text = str(caught.value)
    assert '\n' not in text
    assert '. ' not in text and not text.endswith('.')
    assert '; ' in text  # what is wrong; what to do
    return text


def unique_images(count, first=0, shape=(4, 4, 1)):
    """Images of noise that carry their own number in the first two pixels."""
    image = np.random.default_rng(count + first).integers(0, 256, (count, *shape), dtype=np.uint8)
    number = np.arange(first, first + count)
    image[:, 0, 0, 0], image[:, 0, 1, 0] = number // 256, number % 256
    return image


def pairs(train=120, test=30, val=0, classes=3, **kwargs):
    """Arrays for an .npz file."""
    found, first = {}, 0
    for part, count in (('train', train), ('test', test), ('val', val)):
        if count:
            found[f'{part}_image'] = unique_images(count, first, **kwargs)
            found[f'{part}_label'] = np.arange(count) % classes
            first += count
    return found


def save(folder, **kwargs):
    path = folder / 'set.npz'
    np.savez(path, **kwargs)
    return path


def idx_bytes(array):
    magic = {3: 2051, 1: 2049}[array.ndim]
    return struct.pack(f'>{1 + array.ndim}I', magic, *array.shape) + array.tobytes()


def idx_folder(folder, train=40, test=10, pattern='{}-{}-ubyte', compress=False):
    """A directory in MNIST's format; returns its arrays by split."""
    folder.mkdir(exist_ok=True)
    held = {}
    for part, count, first in (('train', train, 0), ('t10k', test, train)):
        image, label = (
            unique_images(count, first, (6, 5, 1))[..., 0],
            (np.arange(count) % 4).astype(np.uint8),
        )
        held[part] = image, label
        for kind, array in (('images-idx3', image), ('labels-idx1', label)):
            path = folder / (
                pattern.format(part, kind)
                if '.' not in pattern
                else f'{part}-{kind}-ubyte'.replace('-idx', '.idx')
            )
            if compress:
                path.with_name(path.name + '.gz').write_bytes(gzip.compress(idx_bytes(array)))
            else:
                path.write_bytes(idx_bytes(array))
    return held


def keys(image):
    return [one.tobytes() for one in image]


# --------------------------------------------------------------------------------------------------
# sources


def make_digits(folder):
    return {'source': 'digits'}


def make_folder(folder):
    for k, image in enumerate(unique_images(60)):
        place = folder / f'{k % 3}'
        place.mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(place / f'{k}.png')
    return {'source': 'folder', 'path': folder, 'cache': 'off'}


def make_idx(folder):
    idx_folder(folder)
    return {'source': 'idx', 'path': folder}


def make_npz(folder):
    return {'source': 'npz', 'path': save(folder, **pairs())}


def make_tfds(folder):
    tfds_sets.prepare_cifar10_like(folder, 60, 20)
    return {'source': 'tfds', 'path': folder, 'name': 'cifar10'}


MAKERS = {
    'digits': make_digits,
    'folder': make_folder,
    'idx': make_idx,
    'npz': make_npz,
    'tfds': make_tfds,
}


def test_every_source_is_tested_here():
    assert set(MAKERS) == set(data.SOURCES)


@pytest.mark.parametrize('source', MAKERS)
def test_train_val_and_test_share_no_example(source, tmp_path):
    splits = data.load(config(**MAKERS[source](tmp_path)))
    parts = [keys(part.image) for part in (splits.train, splits.val, splits.test)]
    assert all(len(part) for part in parts)
    everything = [one for part in parts for one in part]
    assert len(set(everything)) == len(everything)  # the images of every source here are unique
    for part in (splits.train, splits.val, splits.test):
        assert (
            part.image.dtype == np.uint8 and part.image.ndim == 4 and part.label.dtype == np.int32
        )
        assert part.label.min() >= 0 and part.label.max() < splits.info.num_classes == len(
            splits.info.class_names
        )


def test_digits_are_the_1797_of_scikit_learn():
    splits = data.load(config(source='digits'))
    assert [len(part.label) for part in (splits.train, splits.val, splits.test)] == [960, 240, 597]
    assert (
        splits.info.name == 'digits'
        and splits.info.num_classes == 10
        and splits.info.class_names == tuple('0123456789')
    )
    from sklearn.datasets import load_digits

    found = load_digits()
    # 0..16 of 16, as bytes
    level = [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    expected = np.array(level, np.uint8)[found.images.astype(int)]
    assert splits.train.image.shape[1:] == (8, 8, 1)
    held = Counter(
        (image.tobytes(), int(label))
        for part in (splits.train, splits.val, splits.test)
        for image, label in zip(part.image, part.label, strict=True)
    )
    assert held == Counter(
        (image.tobytes(), int(label)) for image, label in zip(expected, found.target, strict=True)
    )


def test_the_test_digits_are_fixed():
    first, second = (data.load(config(source='digits', val_seed=seed)) for seed in (0, 1))
    np.testing.assert_array_equal(first.test.image, second.test.image)
    assert keys(first.val.image) != keys(second.val.image)
    order = np.random.default_rng(0).permutation(1797)
    # would change with numpy's permutation
    np.testing.assert_array_equal(order[:5], [360, 1773, 1482, 600, 850])
    from sklearn.datasets import load_digits

    np.testing.assert_array_equal(first.test.label, load_digits().target[order[-597:]])


def test_digits_come_from_scikit_learn_itself_where_its_file_is_elsewhere(monkeypatch):
    pixels, label = arrays._read_digits()
    elsewhere = SimpleNamespace(origin='/nowhere/sklearn/__init__.py')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: elsewhere)
    for ours, theirs in zip((pixels, label), arrays._read_digits(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='needs scikit-learn; pip install scikit-learn'):
        arrays._read_digits()


@pytest.mark.parametrize('compress', [False, True])
@pytest.mark.parametrize('pattern', ['{}-{}-ubyte', '{}.{}-ubyte'])
def test_idx_files_arrive_byte_for_byte(tmp_path, pattern, compress):
    held = idx_folder(tmp_path / 'mini', pattern=pattern, compress=compress)
    assert len(list((tmp_path / 'mini').iterdir())) == 4
    splits = data.load(config(source='idx', path=tmp_path / 'mini'))
    assert (
        splits.info.name == 'mini'
        and splits.info.num_classes == 4
        and splits.info.class_names == ('0', '1', '2', '3')
    )
    np.testing.assert_array_equal(splits.test.image[..., 0], held['t10k'][0])
    np.testing.assert_array_equal(splits.test.label, held['t10k'][1])
    by_image = dict(zip(keys(held['train'][0]), held['train'][1], strict=True))
    for part in (splits.train, splits.val):
        assert part.image.shape[1:] == (6, 5, 1)
        assert [by_image[key] for key in keys(part.image)] == part.label.tolist()
    assert len(splits.train.label) + len(splits.val.label) == 40


@pytest.mark.skipif(
    not (arrays.Path(arrays.FASHION_MNIST)).is_dir(),
    reason='package dataset-fashion-mnist is not installed',
)
def test_fashion_mnist_is_the_default_of_idx():
    splits = data.load(config(source='idx', val_share=0.1))
    assert [part.image.shape for part in (splits.train, splits.val, splits.test)] == [
        (54000, 28, 28, 1), (6000, 28, 28, 1), (10000, 28, 28, 1)
    ]  # fmt: skip
    assert splits.info.name == 'fashion-mnist' and splits.info.class_names[9] == 'Ankle boot'
    np.testing.assert_array_equal(np.bincount(splits.test.label), [1000] * 10)
    assert splits.info.mean[0] == pytest.approx(0.2860, abs=5e-4) and splits.info.std[
        0
    ] == pytest.approx(0.3530, abs=5e-4)  # published


def test_npz_arrays_arrive_as_they_are(tmp_path):
    held = pairs(val=15, shape=(4, 5, 3))
    # unused: the file has a validation split
    splits = data.load(config(path=save(tmp_path, **held), val_share=0.0))
    for part in ('train', 'val', 'test'):
        np.testing.assert_array_equal(getattr(splits, part).image, held[f'{part}_image'])
        np.testing.assert_array_equal(getattr(splits, part).label, held[f'{part}_label'])
    assert (splits.info.name, splits.info.num_classes, splits.info.class_names) == (
        'set',
        3,
        ('0', '1', '2'),
    )


def test_npz_images_without_channel_axis_get_one(tmp_path):
    held = pairs()
    flat = {key: value[..., 0] if key.endswith('image') else value for key, value in held.items()}
    splits = data.load(config(path=save(tmp_path, **flat)))
    np.testing.assert_array_equal(splits.test.image, held['test_image'])


# --------------------------------------------------------------------------------------------------
# splits and labels


def test_a_validation_split_is_a_share_of_train_in_the_original_order(tmp_path):
    held = pairs(train=100)
    path = save(tmp_path, **held)
    splits = data.load(config(path=path, val_share=0.25))
    number = lambda part: part.image[:, 0, 0, 0].astype(int) * 256 + part.image[:, 0, 1, 0]  # noqa: E731
    train, val = number(splits.train), number(splits.val)
    assert len(val) == 25 and sorted([*train, *val]) == list(range(100))
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()
    np.testing.assert_array_equal(splits.val.label, val % 3)
    again, other = (
        number(data.load(config(path=path, val_share=0.25, val_seed=seed)).val) for seed in (0, 1)
    )
    assert again.tolist() == val.tolist() != other.tolist()


@pytest.mark.parametrize('share, size', [(0.001, 1), (0.999, 119), (0.5, 60)])
def test_neither_part_of_a_carved_train_split_is_empty(tmp_path, share, size):
    splits = data.load(config(path=save(tmp_path, **pairs()), val_share=share))
    assert (len(splits.val.label), len(splits.train.label)) == (size, 120 - size)


def test_mean_and_std_are_those_of_the_train_images(tmp_path):
    splits = data.load(
        config(path=save(tmp_path, **pairs(train=5000, shape=(3, 4, 3))), labels_per_class=2)
    )
    scaled = splits.train.image.astype(np.float64) / 255
    np.testing.assert_allclose(splits.info.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(splits.info.std, scaled.std((0, 1, 2)), rtol=1e-10)
    assert all(type(value) is float for value in splits.info.mean + splits.info.std)


def test_given_mean_and_std_are_taken_and_a_std_of_zero_becomes_one(tmp_path):
    held = pairs(shape=(4, 4, 2))
    held['train_image'][..., 1] = 51
    path = save(tmp_path, **held)
    splits = data.load(config(path=path))
    assert splits.info.mean[1] == pytest.approx(0.2, abs=1e-15) and splits.info.std[1] == 1.0
    splits = data.load(config(path=path, mean=(0.1, 0.2), std=(0.3, 0.0)))
    assert splits.info.mean == (0.1, 0.2) and splits.info.std == (0.3, 1.0)


def test_labels_per_class_keeps_so_many_train_labels_and_nothing_else_changes(tmp_path):
    path = save(tmp_path, **pairs(train=120, val=30))
    full, few, again, other = (
        data.load(config(path=path, labels_per_class=n, labels_seed=seed))
        for n, seed in ((0, 0), (7, 0), (7, 0), (7, 1))
    )
    assert np.bincount(few.train.label + 1).tolist() == [120 - 21, 7, 7, 7]
    kept = few.train.label >= 0
    np.testing.assert_array_equal(few.train.label[kept], full.train.label[kept])
    np.testing.assert_array_equal(few.train.image, full.train.image)
    np.testing.assert_array_equal(few.val.label, full.val.label)
    np.testing.assert_array_equal(few.test.label, full.test.label)
    assert (few.info.mean, few.info.std, few.info.num_classes) == (
        full.info.mean,
        full.info.std,
        full.info.num_classes,
    )
    assert few.info.count == full.info.count | {'labelled': 21}
    np.testing.assert_array_equal(few.train.label, again.train.label)
    assert few.train.label.tolist() != other.train.label.tolist()
    assert (data.load(config(path=path, labels_per_class=40)).train.label >= 0).all()


def test_the_data_package_needs_numpy_only():
    """`kd_jax.data` itself imports neither TFDS nor scikit-learn nor jax."""
    import subprocess
    import sys

    code = 'import sys, kd_jax.data, kd_jax.data.batches, kd_jax.data.tfds; print(*sys.modules)'
    names = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    ).stdout
    assert not re.findall(
        r'\b(?:jax|sklearn|tensorflow|tensorflow_datasets|PIL)\b', re.sub(r'kd_jax\S*', '', names)
    )
