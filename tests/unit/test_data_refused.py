"""One sentence for every data set that cannot be used."""

import gzip
import struct
import zipfile

import numpy as np
import pytest
from test_data import idx_bytes, idx_folder, pairs, save, sentence

from kd_jax import data
from kd_jax.data import arrays


def test_an_unknown_source_is_named_with_the_known_ones():
    assert sentence(source='digit') == (
        "unknown value of data.source 'digit'; did you mean 'digits'? known: "
        + ', '.join(data.SOURCES)
    )


@pytest.mark.parametrize('share', [0.0, -0.1, 1.0, 2.0, float('nan')])
def test_a_val_share_outside_0_and_1_is_refused_where_a_split_must_be_carved(tmp_path, share):
    text = sentence(path=save(tmp_path, **pairs()), val_share=share)
    assert f'data.val_share is {share}' in text and 'no validation split' in text


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'val_seed': -1}, ['data.val_seed is -1']),
        ({'labels_seed': -2}, ['data.labels_seed is -2']),
        ({'labels_per_class': -1}, ['data.labels_per_class is -1', '0 (all)']),
        ({'labels_per_class': 33, 'val_share': 0.5}, ['labels_per_class is 33', 'class 0', 'only']),
        ({'mean': (0.5, 0.5)}, ['data.mean has 2 values', '1 channels']),
        ({'std': (0.5, 0.5, 0.5)}, ['data.std has 3 values', '1 channels']),
        ({'mean': (125.3,)}, ['data.mean is (125.3,)', '255']),
        ({'std': (-0.1,)}, ['data.std is (-0.1,)']),
        ({'std': (float('nan'),)}, ['data.std is (nan,)']),
    ],
)
def test_values_out_of_range_are_named(tmp_path, changes, words):
    text = sentence(path=save(tmp_path, **pairs()), **changes)
    assert all(word in text for word in words), text


def test_a_class_with_too_few_images_is_named_with_its_count(tmp_path):
    held = pairs(train=90, val=9)
    held['train_label'][held['train_label'] == 2] = 0
    held['train_label'][:4] = 2
    text = sentence(path=save(tmp_path, **held), labels_per_class=5)
    assert 'class 2' in text and 'only 4 train images' in text


def changed(**changes):
    """The arrays of a good file with some replaced, or removed if None."""
    held = {**pairs(val=9), **changes}
    return {key: value for key, value in held.items() if value is not None}


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'train_image': None}, ['lacks train_image', 'test_label']),
        ({'test_label': None, 'train_label': None}, ['lacks train_label, test_label']),
        ({'val_label': None}, ['lacks val_label']),
        (
            {'train_image': np.zeros((120, 4, 4, 1), np.float32)},
            ['train split', 'float32', 'uint8'],
        ),
        ({'test_image': np.zeros((30, 4, 4, 1), np.int64)}, ['test split', 'int64', 'uint8']),
        (
            {'train_image': np.zeros((120, 16), np.uint8)},
            ['train split', '(120, 16)', '[N, H, W, C]'],
        ),
        ({'train_image': np.zeros((120, 4, 0, 1), np.uint8)}, ['train split', '(120, 4, 0, 1)']),
        ({'train_label': np.zeros(120)}, ['train split', 'float64 labels']),
        (
            {'train_label': np.zeros((120, 1), int)},
            ['train split', 'int64 labels of shape (120, 1)'],
        ),
        ({'train_label': np.full(120, 'cat')}, ['train split', '<U3 labels']),
        ({'train_label': np.zeros(119, int)}, ['120 images and 119 labels']),
        ({'val_label': np.zeros(10, int)}, ['validation split', '9 images and 10 labels']),
        ({'train_label': np.full(120, -1)}, ['train split', 'label -1']),
        ({'test_label': np.full(30, 3)}, ['test split', 'label 3', '0 to 2']),
        ({'train_label': np.full(120, 10**9)}, ['label 1000000000', '120 labels']),
        (
            {'train_image': np.zeros((0, 4, 4, 1), np.uint8), 'train_label': np.zeros(0, int)},
            ['train split', 'is empty'],
        ),
        (
            {'test_image': np.zeros((0, 4, 4, 1), np.uint8), 'test_label': np.zeros(0, int)},
            ['test split', 'is empty'],
        ),
        (
            {'test_image': np.zeros((30, 5, 4, 1), np.uint8)},
            ['test split', '(5, 4, 1)', '(4, 4, 1)'],
        ),
        (
            {'val_image': np.zeros((9, 4, 4, 3), np.uint8)},
            ['validation split', '(4, 4, 3)', '(4, 4, 1)'],
        ),
        ({'train_label': np.array([None] * 120)}, ['train_label', 'object array']),
    ],
)
def test_arrays_that_are_not_images_with_labels_are_refused(tmp_path, changes, words):
    text = sentence(path=save(tmp_path, **changed(**changes)))
    assert all(word in text for word in words), text


def test_a_single_train_image_cannot_be_split(tmp_path):
    assert '1 train image' in sentence(path=save(tmp_path, **pairs(train=1, classes=1)))


def test_an_object_array_is_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath('ran').touch, ())

    text = sentence(path=save(tmp_path, **changed(train_image=np.array([Trap()]))))
    assert 'train_image' in text and 'object array' in text and not (tmp_path / 'ran').exists()


def test_a_missing_or_damaged_npz_is_named(tmp_path):
    assert 'FILE.npz' in sentence(path='')
    assert 'there is no file' in sentence(path=tmp_path / 'absent.npz')
    path = save(tmp_path, **pairs())
    whole = path.read_bytes()
    for damaged in (b'', b'no zip at all', whole[: len(whole) // 2], whole[:100]):
        path.write_bytes(damaged)
        assert 'not a complete .npz file' in sentence(path=path)
    with open(path, 'wb') as file:
        np.save(file, np.zeros(3))
    assert 'single .npy array' in sentence(path=path)
    assert 'is no regular file' in sentence(path=tmp_path)  # a directory


def test_flipped_bytes_in_an_npz_are_noticed(tmp_path):
    path = save(tmp_path, **pairs())
    with zipfile.ZipFile(path) as file:
        place = file.getinfo('train_image.npy').header_offset + 500
    held = bytearray(path.read_bytes())
    held[place] ^= 255
    path.write_bytes(held)
    assert 'train_image' in (text := sentence(path=path)) and 'damaged' in text


def test_a_missing_idx_file_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, 'FASHION_MNIST', str(tmp_path / 'fashion'))
    text = sentence(source='idx')
    assert 'apt-get install dataset-fashion-mnist' in text and '--config.data.path=DIR' in text
    idx_folder(tmp_path / 'own')
    (tmp_path / 'own/t10k-labels-idx1-ubyte').unlink()
    text = sentence(source='idx', path=tmp_path / 'own')
    assert (
        't10k-labels-idx1-ubyte' in text
        and '--config.data.path=DIR' in text
        and 'apt-get' not in text
    )


@pytest.mark.parametrize(
    'damage, words',
    [
        (lambda held: b'', ['ends within its header']),
        (lambda held: held[:10], ['ends within its header']),
        (lambda held: held[:-1], ['declares 1200 bytes', 'only 1199']),
        (lambda held: held[:16], ['declares 1200 bytes', 'only 0']),
        (lambda held: held + b'x', ['declares 1200 bytes', 'more than 1200']),
        (lambda held: struct.pack('>I', 2049) + held[4:], ['begins with 2049', '2051']),
        (
            lambda held: held[:4] + struct.pack('>3I', 2**31, 2**31, 9) + held[16:],
            ['declares 41', 'more than'],
        ),
    ],
)
@pytest.mark.parametrize('compress', [False, True])
def test_a_damaged_idx_file_is_named(tmp_path, damage, words, compress):
    folder = tmp_path / 'mini'
    idx_folder(folder, compress=compress)
    path = folder / f'train-images-idx3-ubyte{".gz" if compress else ""}'
    opened, closed = (gzip.decompress, gzip.compress) if compress else (bytes, bytes)
    path.write_bytes(closed(damage(opened(path.read_bytes()))))
    text = sentence(source='idx', path=folder)
    assert str(path) in text and all(word in text for word in words), text


@pytest.mark.parametrize(
    'damage, words',
    [
        (lambda held: held[: len(held) // 2], ['truncated gzip']),
        (lambda held: held[:-8], ['truncated gzip']),
        (lambda held: gzip.decompress(held), ['not gzip-compressed', 'remove .gz']),
        (lambda held: held[:-8] + bytes(8), ['damaged gzip']),  # the checksum
        (lambda held: held[:12] + bytes(40) + held[52:], ['damaged gzip']),
    ],
)
def test_a_damaged_gzip_file_is_named(tmp_path, damage, words):
    folder = tmp_path / 'mini'
    idx_folder(folder, compress=True)
    path = folder / 'train-images-idx3-ubyte.gz'
    path.write_bytes(damage(path.read_bytes()))
    text = sentence(source='idx', path=folder)
    assert str(path) in text and all(word in text for word in words), text


def test_idx_counts_that_disagree_are_refused(tmp_path):
    idx_folder(tmp_path)
    (tmp_path / 'train-labels-idx1-ubyte').write_bytes(idx_bytes(np.zeros(39, np.uint8)))
    assert '40 images and 39 labels' in sentence(source='idx', path=tmp_path)
