"""Further training images, without labels, that `data.unlabelled` names: a folder of images, parts
of one photo, an .npz file or a split of TensorFlow Datasets.
"""

from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.data import arrays, decoding, folder, listing
from kd_jax.data.dataset import ArraySource, Source
from kd_jax.data.decoding import Form
from kd_jax.data.listing import Item
from kd_jax.data.parts import PartsSource
from kd_jax.data.photos import Files, StreamSource, sizes_of
from kd_jax.errors import UserError

FIELD = 'data.unlabelled'
TFDS = 'tfds:'
ALLOWED = (
    'a directory of images, one image file, an .npz file with the key image, or tfds:NAME/SPLIT'
)


def load(config: Any, name: str, shape: tuple[int, ...], notes: list[str]) -> Source:
    """The images that `config.unlabelled` names, in the shape of those of the data set `name`.

    notes: sentences that the user should read are added.

    Raises:
      UserError: for what is not there, holds no image, or cannot get that shape.
    """
    given = config.unlabelled
    if given.startswith(TFDS):
        return _tfds(config, _form(config, name, shape), notes)
    place = arrays.place_of(given, FIELD)
    if place.is_dir():
        return _folder(place, config, _form(config, name, shape), notes)
    if not place.exists():
        raise UserError(f'{FIELD} is {given!r}, but there is no such file; name {ALLOWED}')
    if place.suffix.lower() == '.npz':
        return _npz(place, config, name, shape)
    if place.name.lower().endswith(decoding.ENDINGS):
        return _parts(place, config, _form(config, name, shape))
    raise UserError(f'{FIELD} is {given!r}, a file of another kind; name {ALLOWED}')


def _form(config: Any, name: str, shape: tuple[int, ...]) -> Form:
    """How photos become images of that shape."""
    height, width, channels = shape
    if height != width or channels not in (1, 3):
        raise UserError(
            f'{FIELD} is {config.unlabelled!r}, but the images of {name!r} are {height} x {width} '
            f'of {channels} channel(s), and files become squares of 1 or 3; name an .npz file of '
            'images of that shape'
        )
    resize = config.resize if config.resize >= height else 0
    return Form(height, channels, resize, config.interpolation == 'bilinear')


def _without_labels(count: int) -> np.ndarray:
    return np.full(count, -1, np.int32)


def _folder(root: Path, config: Any, form: Form, notes: list[str]) -> Source:
    """All images below a folder, whatever the folders in it are called."""
    unreadable: list[str] = []
    found = sorted(
        path
        for path in listing.files(root, '', unreadable)
        if path.lower().endswith(decoding.ENDINGS)
    )
    notes += [f'{what} cannot be read' for what in unreadable[: folder.SHOWN]]
    fix = f'name {ALLOWED}'
    if not found:
        raise UserError(f'{FIELD} {root} holds no file that ends as an image does; {fix}')
    items, on_bad = [Item(path, '', '') for path in found], config.on_bad_image
    if folder.is_streamed(config, len(items), form, config.cache):
        sizes = sizes_of(root, found)
        bad = [(found[k], 'is empty or cannot be read') for k in np.flatnonzero(sizes == 0)]
        folder.tell_bad(root, bad, len(items), on_bad, notes)
        paths = tuple(path for path, size in zip(found, sizes, strict=True) if size)
        reader, rows = Files(str(root), paths, sizes[sizes > 0]), np.arange(len(paths))
        source: Source = StreamSource(reader, _without_labels(len(rows)), rows, form, on_bad)
    else:
        image, good, bad = folder.Decoded(root, items, form, config.cache).get(notes)
        folder.tell_bad(root, bad, len(items), on_bad, notes)
        source = ArraySource(image, _without_labels(len(good)))
    if not len(source):
        raise UserError(f'{FIELD} {root} holds no image that can be read; {fix}')
    return source


def _parts(path: Path, config: Any, form: Form) -> Source:
    """Parts of one photo."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f'{FIELD} {path} cannot be read ({error.strerror}); {ALLOWED}') from None
    source = PartsSource.of(content, config.unlabelled_crops, form, config.val_seed, str(path))
    if folder.is_streamed(config, len(source), form, 'off'):
        return source
    return ArraySource(source.images(np.arange(len(source)))[0], source.labels)


def _npz(path: Path, config: Any, name: str, shape: tuple[int, ...]) -> Source:
    if config.decode == 'photo':
        raise UserError(
            f"data.decode is 'photo', but the images of {FIELD} {path} are arrays, which are "
            "decoded already; name a directory of photos, or set data.decode='square'"
        )
    image = arrays.read_npz(path, ('image',), field=FIELD)['image']
    if image.dtype != np.uint8 or image.ndim != 4 or 0 in image.shape:
        raise UserError(
            f'image in {FIELD} {path} is {image.dtype} of shape {image.shape}; it must be uint8 '
            '(0 to 255) of shape [N, H, W, C], with at least one image'
        )
    if image.shape[1:] == shape:
        return ArraySource(image, _without_labels(len(image)))
    form = _form(config, name, shape)
    if image.shape[-1] not in (1, 3, 4):
        raise UserError(
            f'image in {FIELD} {path} has {image.shape[-1]} channels; it must be grey, of 1, or '
            'colour, of 3: store [N, H, W, C]'
        )
    return ArraySource(np.stack([form.fitted(one) for one in image]), _without_labels(len(image)))


def _tfds(config: Any, form: Form, notes: list[str]) -> Source:
    """A split of a prepared set, whose labels are not read."""
    from kd_jax.data import tfds, tfds_photos

    wanted = config.unlabelled.removeprefix(TFDS)
    root = config.path if config.source == 'tfds' else ''
    name, split, place = wanted, 'train', tfds.prepared(wanted, root)
    if not place and '/' in wanted:
        name, _, split = wanted.rpartition('/')
        place = tfds.prepared(name, root)
    place = place or tfds.prepare(name, root)
    info = tfds.described(place, name)
    if split not in info.splits or not info.splits[split].num_examples:
        there = ', '.join(sorted(of for of in info.splits if info.splits[of].num_examples))
        raise UserError(
            f'{FIELD} is {config.unlabelled!r}, but {place} has the splits {there or "none"}; name '
            'one of them'
        )
    image, count = tfds.feature(place, info, 'image'), info.splits[split].num_examples
    reader = tfds_photos.Records(place, split, image, count)
    source = StreamSource(
        reader, _without_labels(count), np.arange(count), form, config.on_bad_image
    )
    if folder.is_streamed(config, len(source), form, 'off'):
        return source
    images, bad = source.images(np.arange(count))
    if bad.any():
        why = f'{int(bad.sum())} of {len(bad)}: {source.why(int(np.argmax(bad)))}'
        notes.append(f'records of {FIELD} {wanted!r} are left out, {why}')
    if bad.all():
        raise UserError(f'{FIELD} {wanted!r} holds no image that can be read; prepare it again')
    return ArraySource(images[~bad], _without_labels(int((~bad).sum())))
