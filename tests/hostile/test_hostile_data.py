"""Data files whose headers claim what their bytes do not hold, and what is no file."""

import gzip
import io
import os
import struct
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import SMALL
from PIL import Image
from refusals import refused

from kd_jax import data
from kd_jax.data import decoding

KEYS = ('train_image', 'train_label', 'test_image', 'test_label')
IMAGE, LABEL = np.zeros((6, 4, 4, 1), np.uint8), np.arange(6) % 3


def npy(shape, dtype='|u1', body=b'', order=False):
    """A .npy file with this header, whatever follows it."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape!r}, }}"
    header += ' ' * (-(len(header) + 11) % 64) + '\n'
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header.encode() + body


def plain(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write(path, **members):
    """An .npz of a small data set, but for `members`: content of a file, or an array."""
    usual = dict(zip(KEYS, (IMAGE, LABEL, IMAGE, LABEL), strict=True)) | members
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
        for name, content in usual.items():
            if content is not None:
                file.writestr(
                    f'{name}.npy', content if isinstance(content, bytes) else plain(content)
                )


def bomb(path, size):
    """A member of so many zeros, written without holding them."""
    write(path, train_image=None)
    block = bytes(2**24)
    with (
        zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED) as file,
        file.open('train_image.npy', 'w', force_zip64=True) as member,
    ):
        member.write(npy((size // 16, 4, 4, 1)))
        for _ in range(size // len(block)):
            member.write(block)


MEMBERS = {
    '119 GiB in a header': npy((2 * 10**9, 8, 8, 1)),
    'more than 64 bits': npy((2**62, 2**62, 4)),
    'fewer than none': npy((-1, 4, 4, 1), body=bytes(96)),
    'one image too many': npy((7, 4, 4, 1), body=bytes(96)),
    'one image too few': npy((5, 4, 4, 1), body=bytes(96)),
    'a hundred axes': npy((1,) * 100, body=bytes(1)),
    'axes in words': npy(('six', 4, 4, 1), body=bytes(96)),
    'a shape that is a number': npy(6, body=bytes(6)),
    'objects': npy((6,), '|O', bytes(48)),
    'a type that is none': npy((6,), 'no_type', bytes(48)),
    'a type of types': npy((6,), [('a', '|u1')], bytes(6)),
    'a call in the header': npy("__import__('intruder')", body=bytes(6)),
    'no header': b'\x93NUMPY\x01\x00',
    'another version': b'\x93NUMPY\x09\x00' + bytes(100),
    'nothing': b'',
    'text': b'hello',
    'a header of 60 kB': b'\x93NUMPY\x01\x00' + struct.pack('<H', 60_000) + b' ' * 60_000,
    'a deep header': npy('(' * 3000 + ')' * 3000),
    'floats': np.zeros((6, 4, 4, 1), np.float32),
    'labels for images': LABEL,
    'no images': np.zeros((0, 4, 4, 1), np.uint8),
    'no pixels': np.zeros((6, 0, 4, 1), np.uint8),
}


def load(source, path):
    fields = {'val_share': 0.2, 'val_seed': 0, 'labels_per_class': 0, 'labels_seed': 0}
    fields |= {'source': source, 'path': str(path), 'name': '', 'mean': (), 'std': ()}
    return data.load(SimpleNamespace(**fields))


def refused_as(source, path, names):
    """What a study says to such data."""
    about = (f'--config.data.source={source}', f'--config.data.path={path}')
    folder = names.parent
    flags = (*SMALL, f'--workdir={folder / "w"}', *about)
    told = refused('kd_jax.main', *flags, keeps=[folder], path=[folder])
    assert names.name in told or f'data set {names.stem!r}' in told, told


def test_as_it_is_it_can_be_read(tmp_path):
    write(tmp_path / 'd.npz')
    assert load('npz', tmp_path / 'd.npz').info.num_classes == 3


@pytest.mark.parametrize('key', ['train_image', 'test_image'])
@pytest.mark.parametrize('name', MEMBERS)
def test_a_member(tmp_path, name, key):
    write(tmp_path / 'd.npz', **{key: MEMBERS[name]})
    refused_as('npz', *2 * [tmp_path / 'd.npz'])


def test_400_megabytes_in_400_kilobytes(tmp_path):
    bomb(tmp_path / 'd.npz', 400 * 10**6)
    refused_as('npz', *2 * [tmp_path / 'd.npz'])


@pytest.mark.parametrize('kind', ['fifo', 'folder', 'device', 'loop'])
def test_what_is_no_file(tmp_path, kind):
    path = tmp_path / 'd.npz'
    {
        'folder': path.mkdir,
        'fifo': lambda: os.mkfifo(path),
        'device': lambda: path.symlink_to('/dev/zero'),
        'loop': lambda: path.symlink_to(path.name),
    }[kind]()
    refused_as('npz', path, path)


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('count', [2**31, 2**32 - 1, 10**7])
def test_an_idx_file_that_claims_more_than_it_has(tmp_path, packed, count):
    head = struct.pack('>4I', 2051, count, 4, 4)
    path = tmp_path / f'train-images-idx3-ubyte{".gz" if packed else ""}'
    path.write_bytes(gzip.compress(head + bytes(48)) if packed else head + bytes(48))
    for part in ('train-labels-idx1', 't10k-images-idx3', 't10k-labels-idx1'):
        (tmp_path / f'{part}-ubyte').write_bytes(struct.pack('>2I', 2049, 3) + bytes(3))
    refused_as('idx', tmp_path, path)


def photos():
    """Of every kind that is decoded, one of 40 x 30 pixels."""
    photo = Image.effect_noise((40, 30), 90).convert('RGB')
    found = {}
    for kind, options in (
        ('JPEG', {}),
        ('JPEG', {'progressive': True}),
        ('PNG', {}),
        ('WEBP', {}),
        ('GIF', {}),
        ('TIFF', {}),
        ('BMP', {}),
    ):
        file = io.BytesIO()
        photo.save(file, kind, **options)
        found[f'{kind}{"".join(options)}'] = file.getvalue()
    return found


PHOTOS = photos()


@pytest.mark.parametrize('kind', PHOTOS)
def test_whatever_stands_in_a_photo_it_is_decoded_or_bad(kind):
    """Bytes changed, taken out or put in, most of them at the beginning, where the headers are."""
    rng, content = np.random.default_rng(sorted(PHOTOS).index(kind)), PHOTOS[kind]
    outcomes = set()
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            place = int(len(damaged) * rng.random() ** int(rng.integers(1, 5)))
            action, value = rng.integers(3), int(rng.integers(256))
            if action == 0 and place < len(damaged):
                damaged[place] = value
            elif action == 1:
                damaged[place:place] = bytes([value]) * int(rng.integers(1, 4))
            else:
                del damaged[place : place + int(rng.integers(1, 4))]
        for box in (None, lambda width, height: (width // 4, height // 4, width // 2, height // 2)):
            try:
                found = decoding.Form(16, 3).decode(bytes(damaged), box)
            except decoding.Bad:
                outcomes.add('bad')
                continue
            assert found.shape == (16, 16, 3) and found.dtype == np.uint8
            outcomes.add('decoded')
    assert outcomes == {'bad', 'decoded'}
