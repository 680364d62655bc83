"""Folders of images: `root/class/*`, `root/{train,val,test}/class/*`, or as a table says. They are
decoded once, into a cache of arrays that later runs map into memory.
"""

import concurrent.futures
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax import cache
from kd_jax.data import decoding, listing
from kd_jax.data.arrays import MAX_BYTES, Raw, place_of
from kd_jax.data.decoding import Form
from kd_jax.data.listing import Item
from kd_jax.data.photos import Files, StreamSource, sizes_of
from kd_jax.errors import UserError

SIDES = (
    16,
    24,
    28,
    32,
    40,
    48,
    56,
    64,
    80,
    96,
    112,
    128,
    160,
    192,
    224,
)  # chosen for images of different sizes
SAMPLE = 512  # images whose headers decide the side and the channels
VERSION = 1  # of the cache
_WINDOW = 1024  # images decoded at once; bounds the memory
SHOWN = 3  # files in a sentence


def folder(config: Any) -> Raw:
    """The images under `config.path`.

    They become `config.size` pixels square (0: chosen from their own sizes), grey if all are.
    Without a split `test`, `val` is the test split if there is one; otherwise `test_share` of each
    class's images become it.

    Raises:
      UserError: for a path or a table that makes no sense, a class or a split that would be empty,
        or, with `on_bad_image='error'`, a damaged file.
    """
    if not config.path:
        raise UserError("data source 'folder' needs a directory; give it with data.path=DIR")
    root = place_of(config.path)
    found = listing.listed(root, config.labels)
    names = listing.class_names(found.items)
    items, notes = splits_of(found.items, config.test_share, config.val_seed, root)
    form = form_of(root, items, config)
    if is_streamed(config, len(items), form, config.cache):
        pairs = _streams(root, items, names, form, config.on_bad_image, notes)
    else:
        pairs = _arrays(root, items, names, form, config, notes)
    notes += [f'{what} cannot be read' for what in found.unreadable[:SHOWN]]
    name = root.resolve().name or 'folder'
    return Raw(name, pairs['train'], pairs.get('val'), pairs['test'], names, notes=tuple(notes))


def is_streamed(config: Any, count: int, form: Form, cache_: str) -> bool:
    """Whether the files are decoded when a batch wants them, rather than once before.

    Raises:
      UserError: where they are to be decoded before and cannot be.
    """
    size = count * math.prod(form.shape)
    if config.decode == 'photo':
        if config.placement not in ('auto', 'stream'):
            raise UserError(
                "data.decode is 'photo': each view is cut out of a file when a batch wants it, and "
                f'data.placement={config.placement!r} decodes them before; set '
                "data.placement='stream', or data.decode='square'"
            )
        return True
    if config.placement == 'auto':
        return size > min(MAX_BYTES, _room(cache_))
    if config.placement != 'stream' and size > MAX_BYTES:
        raise UserError(
            f'{count} images of {form.side} x {form.side} pixels are {size:.3g} bytes, more '
            f"than the {MAX_BYTES:.3g} that can be held; set data.placement='stream', or a smaller "
            'data.size'
        )
    return config.placement == 'stream'


def _room(place: str) -> float:
    """Bytes that decoded images may take, of the cache's disk or of the memory."""
    folder = None if place == 'off' else cache_folder(place)
    while folder is not None and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        if folder is not None:
            return shutil.disk_usage(folder).free / 2
        return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2
    except (OSError, ValueError):
        return math.inf


def _streams(
    root: Path,
    items: Sequence[Item],
    names: Sequence[str],
    form: Form,
    on_bad: str,
    notes: list[str],
) -> dict[str, Any]:
    """Split -> its source. Which files are damaged is found when they are read."""
    sizes = sizes_of(root, [item.path for item in items])
    bad = [
        (items[k].path, 'is empty or cannot be read') for k, size in enumerate(sizes) if not size
    ]
    tell_bad(root, bad, len(items), on_bad, notes)
    kept = [item for item, size in zip(items, sizes, strict=True) if size]
    _check_whole(root, kept, names)
    reader = Files(str(root), tuple(item.path for item in kept), sizes[sizes > 0])
    label = _labels(kept, names)
    return {
        split: StreamSource(reader, label[rows], rows, form, on_bad)
        for split, rows in _rows(kept).items()
    }


def _arrays(
    root: Path,
    items: Sequence[Item],
    names: Sequence[str],
    form: Form,
    config: Any,
    notes: list[str],
) -> dict[str, Any]:
    """Split -> (images, labels), decoded."""
    images, good, bad = Decoded(root, items, form, config.cache).get(notes)
    tell_bad(root, bad, len(items), config.on_bad_image, notes)
    kept = [items[k] for k in good]
    _check_whole(root, kept, names)
    label = _labels(kept, names)
    # items are in the order of splits, so that each is one piece of the cache
    return {
        split: (images[rows[0] : rows[-1] + 1], label[rows]) for split, rows in _rows(kept).items()
    }


def _rows(items: Sequence[Item]) -> dict[str, np.ndarray]:
    found = {
        split: np.array([k for k, item in enumerate(items) if item.split == split], np.int64)
        for split in ('train', 'val', 'test')
    }
    return {split: rows for split, rows in found.items() if len(rows)}


def _labels(items: Sequence[Item], names: Sequence[str]) -> np.ndarray:
    number = {name: k for k, name in enumerate(names)}
    return np.array([number[item.label] for item in items], np.int32)


def tell_bad(
    root: Path, bad: Sequence[tuple[str, str]], count: int, on_bad: str, notes: list[str]
) -> None:
    """Notes which files are damaged, or raises `UserError` where that is asked."""
    if not bad:
        return
    told = '; '.join(f'{root / path} {why}' for path, why in bad[:SHOWN])
    more = f' and {len(bad) - SHOWN} more' if len(bad) > SHOWN else ''
    sentence = f'{len(bad)} of {count} files are left out: {told}{more}'
    if on_bad == 'error':
        raise UserError(
            f"{sentence}; mend them, or set data.on_bad_image='skip' to train without them"
        )
    notes.append(sentence)


def splits_of(
    items: Sequence[Item], test_share: float, seed: int, root: Path
) -> tuple[list[Item], list[str]]:
    """(the items, each with its split, in the order train, val, test; what is to be said)."""
    there, notes = {item.split for item in items}, []
    chosen = [item._replace(split=item.split or 'train') for item in items]
    if 'train' not in {item.split for item in chosen}:
        raise UserError(f'{root} has no training images; call a folder of it train')
    if 'test' not in there and 'val' in there:
        chosen = [item._replace(split='test') if item.split == 'val' else item for item in chosen]
        notes.append(f'{root} has no split test: val is the test split')
    elif 'test' not in there:
        rng = np.random.default_rng(seed)
        numbers: dict[str, list[int]] = {}
        for k, item in enumerate(chosen):
            numbers.setdefault(item.label, []).append(k)
        for label in sorted(numbers):
            mine = numbers[label]
            count = min(max(round(test_share * len(mine)), 1), len(mine) - 1)
            for k in rng.permutation(mine)[:count]:
                chosen[k] = chosen[k]._replace(split='test')
        notes.append(f'{root} has no split test: {test_share:.0%} of each class are the test split')
    order = {'train': 0, 'val': 1, 'test': 2}
    return sorted(chosen, key=lambda item: (order[item.split], item.path)), notes


def form_of(root: Path, items: Sequence[Item], config: Any) -> Form:
    """How the photos become examples; the side, chosen if `config.size` is 0, and the channels are
    those of the images.
    """
    step = max(len(items) // SAMPLE, 1)
    headers = []
    for item in items[::step]:
        try:
            headers.append(decoding.header((root / item.path).read_bytes()))
        except (decoding.Bad, OSError, ValueError):
            continue
    if not headers:
        raise UserError(f'{root} holds no image that can be read, such as {items[0].path}')
    return form_of_headers(headers, config)


def form_of_headers(headers: Sequence[decoding.Header], config: Any) -> Form:
    """See `form_of`. headers: of some of the photos."""
    channels = 1 if all(found.grey for found in headers) else 3
    bilinear = config.interpolation == 'bilinear'
    if config.size:
        if 0 < config.resize < config.size:
            raise UserError(
                f'data.resize is {config.resize}, of which no {config.size} pixels (data.size) can '
                'be cut; take that or more, or 0'
            )
        return Form(config.size, channels, config.resize, bilinear)
    shorter = [min(found.width, found.height) for found in headers]
    same = {(found.width, found.height) for found in headers}
    side = shorter[0]
    if len(same) > 1 or side > SIDES[-1]:
        middle = float(np.median(shorter))
        side = max([one for one in SIDES if one <= middle] or [int(middle)])
    return Form(side, channels, config.resize and max(config.resize, side), bilinear)


def _check_whole(root: Path, items: Sequence[Item], names: Sequence[str]) -> None:
    """Raises `UserError` for a class without a training image, a split without any, or a class of
    a split that training does not know.
    """
    counts = Counter((item.split, item.label) for item in items)
    for split in ('train', 'test'):
        if not any(there == split for there, _ in counts):
            raise UserError(f'the split {split} of {root} has no image that can be read')
    lacking = [name for name in names if not counts['train', name]]
    if lacking:
        others = sorted({split for split, name in counts if name == lacking[0]})
        where = f' (it has some in {", ".join(others)})' if others else ''
        raise UserError(
            f'class {lacking[0]!r} of {root} has no training image that can be read{where}; '
            'add some, or take the class away'
        )


def read(root: Path, item: Item) -> bytes:
    """A file's content; raises `decoding.Bad`."""
    try:
        with open(root / item.path, 'rb') as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise decoding.Bad(f'cannot be read ({getattr(error, "strerror", error)})') from None


class Decoded:
    """The images of a set, from the cache or into it."""

    def __init__(self, root: Path, items: Sequence[Item], form: Form, place: str):
        self.root, self.items, self.form = root, items, form
        self.cache = None if place == 'off' else cache_folder(place)

    def get(self, notes: list[str]) -> tuple[np.ndarray, list[int], list[tuple[str, str]]]:
        """(`[N, side, side, channels]` uint8 of the good ones, their numbers, (path, why) of the
        others).
        """
        if self.cache is None:
            return self._in_memory()
        try:
            index = self.cache / 'index' / f'{self._stamp()}.json'
            there = self._there(index)
            return there if there is not None else self._stored(index)
        except OSError as error:
            notes.append(
                f'images are not kept in {self.cache} ({error.strerror or error}): they are '
                'decoded again each time'
            )
            return self._in_memory()

    def _stamp(self) -> str:
        """Of what would be decoded: paths, sizes and times of the files, and the shape."""
        digest = hashlib.blake2b(f'{VERSION} {self.form} {self.root.resolve()}'.encode())
        for item in self.items:
            try:
                about = os.stat(self.root / item.path)
                digest.update(repr((*item, about.st_size, about.st_mtime_ns)).encode())
            except (OSError, ValueError):
                digest.update(repr((*item, 'missing')).encode())
        return digest.hexdigest()[:32]

    def _there(self, index: Path) -> Any:
        try:
            record = json.loads(index.read_text())
            place = self.cache / record['key']
            good, bad = record['good'], [tuple(one) for one in record['bad']]
            images = np.memmap(place / 'images', np.uint8, 'r', shape=(len(good), *self._image()))
        except (OSError, ValueError, LookupError, TypeError):
            return None
        numbers, wrong = range(len(self.items)), {path for path, _ in bad}
        rest = [k for k in numbers if self.items[k].path not in wrong]
        return (images, good, bad) if good == rest else None

    def _stored(self, index: Path) -> Any:
        """Decodes into the cache; what is half done when the process ends is not found there."""
        assert self.cache is not None
        self.cache.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix='unfinished-', dir=self.cache))
        try:
            bad: list[tuple[str, str]] = []
            good, digest = [], hashlib.blake2b(repr((VERSION, self.form)).encode())
            with open(unfinished / 'images', 'wb') as file:
                for k, image, content in self._decoded(bad):
                    good.append(k)
                    digest.update(content)
                    file.write(image.tobytes())
                file.flush()
                os.fsync(file.fileno())
            key = digest.hexdigest()[:32]
            if not (self.cache / key).exists():
                os.replace(unfinished, self.cache / key)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        index.parent.mkdir(exist_ok=True)
        text = json.dumps({'key': key, 'good': good, 'bad': bad})
        part = index.with_suffix(f'.{os.getpid()}')
        part.write_text(text)
        os.replace(part, index)
        found = self._there(index)
        return found if found is not None else self._in_memory()

    def _in_memory(self) -> tuple[np.ndarray, list[int], list[tuple[str, str]]]:
        bad: list[tuple[str, str]] = []
        found = [(k, image) for k, image, _ in self._decoded(bad)]
        empty = np.zeros((0, *self._image()), np.uint8)
        images = np.stack([image for _, image in found]) if found else empty
        return images, [k for k, _ in found], bad

    def _image(self) -> tuple[int, int, int]:
        return self.form.shape

    def _decoded(self, bad: list[tuple[str, str]]) -> Iterator[tuple[int, np.ndarray, bytes]]:
        """(number, image, hash of the file) of the good ones, in order."""

        def one(item: Item) -> tuple[np.ndarray, bytes] | str:
            try:
                content = read(self.root, item)
                image = self.form.decode(content)
            except decoding.Bad as error:
                return str(error)
            return image, hashlib.blake2b(content, digest_size=16).digest()

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            numbered = list(enumerate(self.items))
            for start in range(0, len(numbered), _WINDOW):
                window = numbered[start : start + _WINDOW]
                done = pool.map(one, [item for _, item in window])
                for (k, item), result in zip(window, done, strict=True):
                    if isinstance(result, str):
                        bad.append((item.path, result))
                    else:
                        yield k, *result


def cache_folder(given: str) -> Path | None:
    """Where decoded images are kept: `given`, or a folder of the user's cache."""
    if given:
        return Path(given).expanduser()
    base = cache.folder()
    return base / 'images' if base is not None else None
