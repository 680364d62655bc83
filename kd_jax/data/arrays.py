"""Sources that are arrays in files: scikit-learn's digits,
MNIST-format directories, `.npz` files.
"""

import gzip
import importlib.util
import math
import os
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from kd_jax.data.dataset import Source
from kd_jax.errors import UserError

# Where Debian's package dataset-fashion-mnist puts it.
FASHION_MNIST = '/usr/share/datasets/fashion-mnist'
FASHION_MNIST_CLASSES = (
    'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat',
    'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot',
)  # fmt: skip
MAX_BYTES = 32 * 10**9  # of images; more cannot sensibly be held as one array
_DIGITS_TEST = 597
# What is more than so many times as large as its file, and large, was made to fill the memory.
MOST_GROWTH, FREE_GROWTH = 200, 2**27
# What the readers of a zip and of a header of NumPy's raise for damaged ones.
_UNREADABLE = (
    OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error,
    MemoryError, OverflowError, SyntaxError, tokenize.TokenError,
)  # fmt: skip


Split = tuple[np.ndarray, np.ndarray] | Source


class Raw(NamedTuple):
    """What a source returns: `(image [N, H, W, C], label [N])` a split, unchecked, or a
    source; `val` is None if it has none.

    class_names: in label order, or () if the source does not know them. notes: sentences that the
    user should read.
    """

    name: str
    train: Split
    val: Split | None
    test: Split
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def digits(config: Any) -> Raw:
    """scikit-learn's 1797 handwritten digits of 8x8 pixels; the last 597 of a fixed
    permutation are the test split.
    """
    pixels, label = _read_digits()
    order = np.random.default_rng(0).permutation(len(label))
    image = np.rint(pixels[order] * 255 / 16).astype(np.uint8)[..., None]  # from 0..16
    label = label[order]
    split = len(label) - _DIGITS_TEST
    names = tuple(str(k) for k in range(10))
    return Raw(
        'digits', (image[:split], label[:split]), None, (image[split:], label[split:]), names
    )


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """`(pixels [1797, 8, 8] from 0 to 16, label [1797])`, as `sklearn.datasets.load_digits` has
    them; from its file where that stands, since importing scikit-learn takes seconds.
    """
    found = importlib.util.find_spec('sklearn')
    if found is None or found.origin is None:
        raise UserError("data source 'digits' needs scikit-learn; pip install scikit-learn")
    file = Path(found.origin).parent / 'datasets' / 'data' / 'digits.csv.gz'
    if file.is_file():
        table = np.loadtxt(file, delimiter=',')
        return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)
    from sklearn.datasets import load_digits

    return load_digits().images, load_digits().target


def place_of(path: str, field: str = 'data.path') -> Path:
    """Where data is; `UserError` for what the system takes for no path. field: that has it."""
    try:
        found = Path(path).expanduser()
        os.fsencode(found)
        found.exists()
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, 'strerror', None) or type(error).__name__
        raise UserError(f'{field} {path[:80]!r} cannot be looked at ({why}); correct it') from None
    return found


def idx(config: Any) -> Raw:
    """A directory in MNIST's format (yann.lecun.com/exdb/mnist): four files, each plain or `.gz`.

    `config.path` is the directory; '' means Debian's Fashion-MNIST.

    Raises:
      UserError: for a missing or damaged file.
    """
    folder = place_of(config.path or FASHION_MNIST)
    train, test = (
        (
            _read_idx(_find_idx(folder, part, 'images-idx3')),
            _read_idx(_find_idx(folder, part, 'labels-idx1')),
        )
        for part in ('train', 't10k')
    )
    known = folder == Path(FASHION_MNIST)
    return Raw(folder.resolve().name, train, None, test, FASHION_MNIST_CLASSES if known else ())


def npz(config: Any) -> Raw:
    """A file written by `np.savez`, keys `{train,test}_{image,label}` and optionally
    `val_{image,label}` and `class_names`, texts in label order.

    Images are uint8 `[N, H, W, C]` or `[N, H, W]`, labels integers `[N]`.
    Nothing in the file is executed.

    Raises:
      UserError: for a missing or damaged file, or a missing key.
    """
    if not config.path:
        raise UserError(
            "data source 'npz' needs a file; give its path with --config.data.path=FILE.npz"
        )
    path = place_of(config.path)
    needed = ('train_image', 'train_label', 'test_image', 'test_label')
    arrays = read_npz(path, needed, ('val_image', 'val_label'), ('class_names',))
    pairs = {
        part: (arrays[f'{part}_image'], arrays[f'{part}_label'])
        for part in ('train', 'val', 'test')
        if f'{part}_image' in arrays
    }
    names = arrays.get('class_names', np.array([], str))
    if names.ndim != 1 or names.dtype.kind != 'U':
        raise UserError(
            f'class_names in {path} is {names.dtype} of shape {names.shape}; it must be one text '
            "for each class, such as np.array(['cat', 'dog'])"
        )
    classes = tuple(map(str, names))
    return Raw(path.stem, pairs['train'], pairs.get('val'), pairs['test'], classes)


def read_npz(
    path: Path,
    needed: Sequence[str],
    together: Sequence[str] = (),
    optional: Sequence[str] = (),
    field: str = 'data.path',
) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by their keys; images `[N, H, W]` become `[N, H, W, 1]`.

    together: keys of which the file may have all or none. field: that names the file.

    Raises:
      UserError: for a missing or damaged file, or a missing key.
    """
    fix = f'correct --config.{field}'
    if path.exists() and not path.is_file():
        raise UserError(f'{path} is no regular file; {fix}')
    try:
        # Opening is not left to np.load, which forgets to close a file that is no zip. NumPy warns
        # of headers that it reads in two ways.
        with open(path, 'rb') as opened, warnings.catch_warnings(action='ignore'):
            arrays = _read_npz(path, opened, needed, together, optional)
    except FileNotFoundError:
        raise UserError(f'there is no file {path}; {fix}') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}); {fix}') from None
    for key in arrays:
        if key.endswith('image') and arrays[key].ndim == 3:
            arrays[key] = arrays[key][..., None]
    return arrays


def _read_npz(
    path: Path,
    opened: BinaryIO,
    needed: Sequence[str],
    together: Sequence[str],
    optional: Sequence[str],
) -> dict[str, np.ndarray]:
    try:
        file = np.load(opened, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        raise UserError(f'{path} is not a complete .npz file; write it with np.savez') from None
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise UserError(f'{path} is a single .npy array, not an .npz file; write it with np.savez')
    present = [key for key in together if key in file.files]
    missing = [key for key in needed if key not in file.files]
    if present:
        missing += [key for key in together if key not in present]
    if missing:
        more = f' and, if you like, {" and ".join(together)}' if together else ''
        there = ', '.join(sorted(file.files)) or 'nothing'
        raise UserError(
            f'{path} lacks {", ".join(missing)} (it has {there}); np.savez with '
            f'{", ".join(needed)}{more}'
        )
    present += [key for key in optional if key in file.files]
    sizes = {key: _claimed(path, file, key) for key in (*needed, *present)}
    if sum(sizes.values()) > MAX_BYTES:
        raise UserError(
            f'{path} claims arrays of {sum(sizes.values())} bytes, more than the {MAX_BYTES} that '
            'can be held; take fewer or smaller images'
        )
    return {key: _read_member(path, file, key) for key in sizes}


def _claimed(path: Path, file: Any, key: str) -> int:
    """The bytes of a member, as its header says; `UserError` if the file cannot hold them."""
    damaged = f'{key} in {path} is damaged; write the file again with np.savez'
    try:
        info = file.zip.getinfo(key if key in file.zip.namelist() else f'{key}.npy')
        with file.zip.open(info) as member:
            version = np.lib.format.read_magic(member)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = read(member)
            header = member.tell()
    except _UNREADABLE:
        raise UserError(damaged) from None
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise UserError(
            f'{key} in {path} is an object array, must be a plain one; save it with its own dtype'
        )
    if min(shape, default=0) < 0 or info.file_size != header + size:
        raise UserError(
            f'{key} in {path} claims {size} bytes and holds {info.file_size - header}; write the '
            'file again with np.savez'
        )
    stored = os.stat(path).st_size
    if size > max(MOST_GROWTH * stored, FREE_GROWTH):
        raise UserError(
            f'{key} in {path} claims {size} bytes, {size // stored} times as many as the file has; '
            'no images are compressed so far: write it with np.savez'
        )
    return size


def _read_member(path: Path, file: Any, key: str) -> np.ndarray:
    try:
        return file[key]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        raise UserError(f'{key} in {path} is damaged; write the file again with np.savez') from None


def _find_idx(folder: Path, part: str, kind: str) -> Path:
    """The file of one part, whatever a mirror called it."""
    for name in (f'{part}-{kind}-ubyte', f'{part}-{kind.replace("-", ".")}-ubyte'):
        for suffix in ('', '.gz'):
            path = folder / f'{name}{suffix}'
            if path.is_file():
                return path
    fix = 'apt-get install dataset-fashion-mnist, or ' if folder == Path(FASHION_MNIST) else ''
    raise UserError(
        f'there is no {part}-{kind}-ubyte (or .gz) in {folder}; {fix}name the directory that has '
        'it with --config.data.path=DIR'
    )


def _read_idx(path: Path) -> np.ndarray:
    """The uint8 array in one idx file: `[N, H, W, 1]` for images, `[N]` for labels."""
    images = 'idx3' in path.name
    ndim, magic = (3, 2051) if images else (1, 2049)
    header = 4 * (1 + ndim)
    opened = gzip.open if path.suffix == '.gz' else open
    try:
        with opened(path, 'rb') as file:
            head = file.read(header)
            if len(head) < header:
                raise UserError(f'{path} ends within its header; fetch the file again')
            number, *shape = (int(value) for value in np.frombuffer(head, '>u4'))
            if number != magic:
                kind = 'images' if images else 'labels'
                raise UserError(
                    f'{path} begins with {number}, must be {magic} (idx '
                    f'{kind}); fetch the file again'
                )
            size = math.prod(shape)
            if size > MAX_BYTES:
                raise UserError(
                    f'{path} declares {size} bytes, more than {MAX_BYTES}; fetch the file again'
                )
            stored = os.stat(path).st_size
            growth = MOST_GROWTH if path.suffix == '.gz' else 1
            if size > max(growth * stored, FREE_GROWTH):
                raise UserError(
                    f'{path} declares {size} bytes and has {stored}; fetch the file again'
                )
            body = file.read(size + 1)  # one more, to notice a file that is too long
    except gzip.BadGzipFile as error:
        what = 'not gzip-compressed' if 'Not a gzipped' in str(error) else 'a damaged gzip file'
        fix = 'remove .gz from its name or fetch' if what.startswith('not') else 'fetch'
        raise UserError(f'{path} is {what}; {fix} the file again') from None
    except EOFError:
        raise UserError(f'{path} is a truncated gzip file; fetch the file again') from None
    except zlib.error:
        raise UserError(f'{path} is a damaged gzip file; fetch the file again') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}); make it readable') from None
    if len(body) != size:
        holds = f'only {len(body)}' if len(body) < size else f'more than {size}'
        raise UserError(f'{path} declares {size} bytes and holds {holds}; fetch the file again')
    array = np.frombuffer(body, np.uint8).reshape(shape)
    return array[..., None] if images else array
