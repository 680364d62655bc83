"""Files of PyTorch weights as numpy arrays, without PyTorch: `read(path)` for
.pth, .pt, .bin and .safetensors.
"""

import contextlib
import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from kd_jax.errors import UserError
from kd_jax.pretrained import pickles

# Where training scripts keep the state dict in a checkpoint; of several, the
# first in this order is taken.
CONTAINERS = (
    'state_dict', 'model', 'model_state_dict', 'net', 'network', 'weights', 'params',
    'model_ema', 'state_dict_ema', 'ema', 'student', 'teacher',
)  # fmt: skip
# Of names, by DataParallel, torch.compile and PyTorch Lightning.
PREFIXES = ('module.', '_orig_mod.', 'model.')
COUNTER = 'num_batches_tracked'  # the one integer of a state dict that is kept

DTYPES = {
    'FloatStorage': 'f4',
    'DoubleStorage': 'f8',
    'HalfStorage': 'f2',
    'BFloat16Storage': ml_dtypes.bfloat16,
}
INTEGERS = {
    'LongStorage': 'i8',
    'IntStorage': 'i4',
    'ShortStorage': 'i2',
    'CharStorage': 'i1',
    'ByteStorage': 'u1',
}

SAVE = 'torch.save(model.state_dict(), new_path)'
AGAIN = 'download or copy it again'
ONLY_PYTORCH = 'only PyTorch weights can be read: .pth or .safetensors'
# The first bytes of PyTorch's format before 1.6.
LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'
# (first bytes, what such a file is, the fix) of what people take for weights.
OTHERS = (
    (
        LEGACY,
        'is in the format of PyTorch before 1.6',
        'load it with torch.load(..., weights_only=True) and save it again '
        'with torch.save(state_dict, new_path)',
    ),
    (b'\x89HDF\r\n\x1a\n', 'is an HDF5 file, as Keras writes them', ONLY_PYTORCH),
    (b'\x1f\x8b', 'is compressed by gzip', 'unpack it first'),
    (
        b'version https://git-lfs',
        'is only the pointer of Git LFS to the real file',
        'fetch it with git lfs pull',
    ),
    (b'\x93NUMPY', 'is a NumPy array', ONLY_PYTORCH),
    (b'\x80', 'is a pickle that torch.save did not write', f'save the weights with {SAVE}'),
)
ZIP_ERRORS: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    LookupError,
    EOFError,
)
ZIP_ERRORS += (struct.error, OverflowError, OSError)


def read(path: Path, note: Callable[[str], None] = lambda sentence: None) -> dict[str, np.ndarray]:
    """The floating-point tensors (bfloat16 as float32) and `num_batches_tracked`
    of a file of weights, by name.

    The contents decide about the format, not the suffix. A state dict inside a checkpoint is found
    (`CONTAINERS`), and prefixes that all names share (`PREFIXES`) are removed; `note(sentence)`
    tells when there was a choice.

    Raises:
      UserError: for anything but a file of tensors; nothing in the file is ever run.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(
                f'{path} is a directory; name the file of PyTorch weights in it, such as model.pth'
            )
        size = path.stat().st_size
        with open(path, 'rb') as file:
            head = file.read(512)
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(
            f'cannot read {path}: {reason}; name a .pth or .safetensors file of PyTorch weights'
        ) from error
    if size == 0:
        raise UserError(f'{path} is empty; {AGAIN}')
    if head.startswith(b'PK\x03\x04'):
        tensors = _read_zip(path, size, note)
    elif _looks_like_safetensors(head, path):
        tensors = _read_safetensors(path)
    else:
        raise UserError(f'{path} {_what_it_is(head, path)}')
    tensors = _without_prefixes(tensors)
    if not any(x.dtype.kind == 'f' for x in tensors.values()):
        raise UserError(
            f'{path} holds no floating-point tensors; name a file of weights, as {SAVE} writes it'
        )
    return tensors


def _what_it_is(head: bytes, path: Path) -> str:
    """The end of the sentence about a file that is neither a zip archive nor safetensors."""
    for start, what, fix in OTHERS:
        if head.startswith(start):
            return f'{what}; {fix}'
    text = head.lstrip().lower()
    if text.startswith((b'<!doctype', b'<html', b'<?xml')):
        return 'is a web page, not weights; the download was redirected: get the file itself'
    if head[257:262] == b'ustar':
        return 'is a tar archive; unpack it first'
    if (
        path.suffix in ('.onnx', '.pb', '.tflite', '.h5', '.keras', '.ckpt', '.msgpack')
        or head[:1] == b'\x08'
    ):
        return (
            'is no file of PyTorch weights (ONNX, TensorFlow?); only '
            '.pth and .safetensors can be read'
        )
    return (
        f'is neither a .pth nor a .safetensors file, or it is damaged; {AGAIN}, '
        f'or save the weights with {SAVE}'
    )


def _floating(kind: str, name: str) -> bool:
    """Whether a tensor with elements of `kind` is kept."""
    return kind in DTYPES or (kind in INTEGERS and name.endswith(COUNTER))


# --- safetensors


def _looks_like_safetensors(head: bytes, path: Path) -> bool:
    """The length of a JSON header in 8 bytes, and the header; a damaged file by its
    suffix, for the better sentence.
    """
    return path.suffix == '.safetensors' or (head[8:9] == b'{' and head[5:8] == bytes(3))


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework='numpy') as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            names = [
                n
                for n, kind in kinds.items()
                if kind in ('F16', 'BF16', 'F32', 'F64') or n.endswith(COUNTER)
            ]
            tensors = {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        reason = (
            str(error).splitlines()[0].removeprefix('Error while deserializing header: ')
            if str(error)
            else 'unreadable'
        )
        reason = reason if len(reason) < 200 else f'{reason[:200]} ...'
        reason = reason if reason.isprintable() else repr(reason)
        raise UserError(f'{path} is no complete .safetensors file ({reason}); {AGAIN}') from error
    return {name: _plain(x) for name, x in tensors.items()}


def _plain(x: np.ndarray) -> np.ndarray:
    """bfloat16, which numpy alone does not know, as float32: the upper half of its bits."""
    return (
        (x.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        if x.dtype == ml_dtypes.bfloat16
        else x
    )


# --- PyTorch's zip format


class _Archive:
    """A zip archive of uncompressed entries; `UserError` for every
    way in which it can be damaged.
    """

    def __init__(self, path: Path, size: int):
        self.path, self.size = path, size
        with self.guard():
            self.file = zipfile.ZipFile(path)
        self.entries = self.file.infolist()
        self.names = [entry.filename for entry in self.entries]

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        try:
            yield
        except ZIP_ERRORS as error:
            what = f'is cut short or damaged ({self.size:,} bytes, not a whole zip archive)'
            raise UserError(f'{self.path} {what}; {AGAIN}') from error

    def read(self, name: str) -> bytes:
        with self.guard():
            return self.file.read(name)


def _read_zip(path: Path, size: int, note: Callable[[str], None]) -> dict[str, np.ndarray]:
    archive = _Archive(path, size)
    with archive.file:
        root = _root(archive)
        try:
            contents = pickles.interpret(archive.read(f'{root}data.pkl'))
        except pickles.Refused as error:
            raise UserError(_refusal(path, str(error))) from error
        except pickles.Malformed as error:
            raise UserError(f'{path} is damaged (its data.pkl cannot be read); {AGAIN}') from error
        storages = _Storages(archive, root)
        return {
            name: storages.array(name, tensor)
            for name, tensor in _state_dict(path, contents, note).items()
        }


def _root(archive: _Archive) -> str:
    """The folder of the archive that holds data.pkl, with its slash; what
    torch.save did not write is refused.
    """
    path, names = archive.path, archive.names
    ends = {name.rsplit('/', 1)[-1] for name in names}
    if 'constants.pkl' in ends:
        raise UserError(
            f'{path} is a TorchScript archive (torch.jit.save); load it with '
            f'torch.jit.load and save {SAVE}'
        )
    pickled = [name for name in names if name.count('/') == 1 and name.endswith('/data.pkl')]
    if not pickled:
        if 'model.weights.h5' in ends:
            what = 'is a Keras model; only PyTorch weights can be read'
        elif any(name.endswith('.npy') for name in names):
            what = f'is an archive of NumPy arrays; save the weights with {SAVE}'
        elif inside := [
            name for name in names if name.endswith(('.pth', '.pt', '.bin', '.safetensors'))
        ]:
            what = f'is a zip archive that contains {inside[0]}; unpack it first'
        else:
            what = f'is a zip archive that torch.save did not write; save the weights with {SAVE}'
        raise UserError(f'{path} {what}')
    if len(pickled) > 1 or len(set(names)) != len(names):
        raise UserError(f'{path} is damaged (it holds the same entry twice); {AGAIN}')
    stored = all(
        e.compress_type == zipfile.ZIP_STORED and e.file_size == e.compress_size
        for e in archive.entries
    )
    if not stored or sum(e.file_size for e in archive.entries) > archive.size:
        raise UserError(
            f'{path} is compressed or claims more than it holds, as torch.save '
            f'never writes; save it with {SAVE}'
        )
    return pickled[0].removesuffix('data.pkl')


def _refusal(path: Path, name: str) -> str:
    name = name[:80]
    if name.startswith(('torch.nn.', 'torchvision.', 'timm.', 'torch.fx.')):
        return (
            f'{path} holds a whole pickled model ({name!r}), which only its own code can read; '
            f'load it with PyTorch and save its state dict alone: {SAVE}'
        )
    return (
        f'{path} asks to run {name!r} when it is read, which weights never need, and which is '
        f'refused; get weights from a source that you trust, saved with {SAVE}'
    )


def _state_dict(
    path: Path, contents: Any, note: Callable[[str], None]
) -> dict[str, pickles.Tensor]:
    """The tensors of a state dict, or of the one inside a checkpoint."""
    for _ in range(3):  # state dicts are not nested deeper
        if not isinstance(contents, Mapping):
            break
        inside = [key for key in CONTAINERS if _holds_tensors(contents.get(key))]
        if not inside:
            break
        if len(inside) > 1:
            others = ', '.join(repr(key) for key in inside[1:])
            note(f'{path} holds several state dicts; {inside[0]!r} is taken, not {others}')
        contents = contents[inside[0]]
    tensors = {}
    if isinstance(contents, Mapping):
        tensors = {
            k: v
            for k, v in contents.items()
            if isinstance(k, str) and isinstance(v, pickles.Tensor)
        }
    if not tensors:
        what = pickles.in_words(contents)
        raise UserError(f'{path} holds {what}, not a state dict; save the weights with {SAVE}')
    return {
        name: tensor for name, tensor in tensors.items() if _floating(tensor.storage.kind, name)
    }


def _holds_tensors(value: Any) -> bool:
    """Whether `value` is a dict with a tensor in it, or with a dict of tensors."""
    if not isinstance(value, Mapping):
        return False
    inner = (v.values() if isinstance(v, Mapping) else (v,) for v in value.values())
    return any(isinstance(x, pickles.Tensor) for values in inner for x in values)


def _without_prefixes(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors without the prefixes that all their names have."""
    while prefix := next(
        (p for p in PREFIXES if tensors and all(n.startswith(p) and n != p for n in tensors)), None
    ):
        tensors = {name.removeprefix(prefix): x for name, x in tensors.items()}
    return tensors


class _Storages:
    """The storages of an archive, each read once, and the views of them that tensors are."""

    def __init__(self, archive: _Archive, root: str):
        self.archive, self.root = archive, root
        self.left = 4 * archive.size  # bytes: tensors may share storages, but not to no end
        self.names = set(archive.names)
        order = archive.read(f'{root}byteorder') if f'{root}byteorder' in self.names else b'little'
        if order not in (b'little', b'big'):
            self.fail(f'its byte order is {order[:16]!r}')
        self.foreign = order.decode() != sys.byteorder
        self.contents: dict[str, bytes] = {}

    def fail(self, what: str) -> NoReturn:
        raise UserError(f'{self.archive.path} is damaged ({what}); {AGAIN}')

    def array(self, name: str, tensor: pickles.Tensor) -> np.ndarray:
        """The values of a tensor in the machine's byte order."""
        storage, offset, shape, stride = tensor
        dtype = np.dtype((DTYPES | INTEGERS)[storage.kind])
        raw = self.storage(name, storage.key)
        count, numel = math.prod(shape), storage.numel
        if len(shape) != len(stride) or len(shape) > 16 or min((offset, *shape, *stride)) < 0:
            self.fail(f'tensor {name[:80]!r} has an impossible size or stride')
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if count else 0
        beyond = last >= numel if count else math.prod(n for n in shape if n) > 2**40
        if numel * dtype.itemsize > len(raw) or count > numel or beyond:
            self.fail(f'tensor {name[:80]!r} reaches beyond its storage')
        if not count:
            return _plain(np.zeros(shape, dtype))
        self.left -= count * dtype.itemsize
        if self.left < 0:
            self.fail('its tensors are many times larger than the file')
        values = np.frombuffer(raw, dtype, count=numel)
        if self.foreign and dtype.itemsize > 1:
            values = values.view(f'u{dtype.itemsize}').byteswap().view(dtype)
        strides = [s * dtype.itemsize if n > 1 else 0 for n, s in zip(shape, stride, strict=True)]
        view = np.lib.stride_tricks.as_strided(values[offset:], shape, strides, writeable=False)
        return _plain(np.ascontiguousarray(view).reshape(shape))

    def storage(self, name: str, key: str) -> bytes:
        entry = f'{self.root}data/{key}'
        if entry not in self.names:
            self.fail(f'the values of tensor {name[:80]!r} are missing')
        if key not in self.contents:
            self.contents[key] = self.archive.read(entry)
        return self.contents[key]
