"""Data sets held as uint8 arrays: `load(config)` over the explicit table `SOURCES`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kd_jax import own
from kd_jax.data import arrays, foreign
from kd_jax.data.arrays import Raw
from kd_jax.data.dataset import ArraySource, Dataset, DatasetInfo, Source
from kd_jax.data.joined import JoinedSource
from kd_jax.errors import UserError, renamed
from kd_jax.fields import check, choice, field, is_number, number, several, text

_CHUNK = 4096  # images counted at once when the mean is taken; bounds the temporary memory
_SAMPLE = 2048  # images of a stream of which the mean is taken


def _tfds(config: Any) -> Raw:
    # Here, so that `python -m kd_jax.data.tfds` does not find itself imported already.
    from kd_jax.data import tfds

    return tfds.load(config)


def _folder(config: Any) -> Raw:
    from kd_jax.data import folder  # Pillow, which others do not need

    return folder.folder(config)


SOURCES: dict[str, Callable[..., Raw]] = {
    'digits': arrays.digits,
    'folder': _folder,
    'idx': arrays.idx,
    'npz': arrays.npz,
    'tfds': _tfds,
}


SCALED = 'numbers in 0..1, as the images are scaled (divide by 255), one a channel'
CARVED = 'between 0 and 1 (exclusive) where the data set has no validation split'


def _in_0_to_1(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _is_source(value: Any) -> bool:
    return value in SOURCES or own.is_own(value)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The fields `data` of a study and of a run."""

    # 'idx': MNIST's format; or a function of your own, such as 'mydata:load'
    source: str = field('digits', _is_source, known=tuple(SOURCES))
    name: str = text()  # TFDS name, such as 'cifar10'
    path: str = text()  # directory or file; '' = the source's default
    # side in pixels to which the images of a folder are resized; 0 = chosen from their sizes
    size: int = number(0, at_least=0, at_most=2**12)
    labels: str = text()  # a .csv or .jsonl table of a folder's images: path, label, split
    # of each class of a folder without a test split
    test_share: float = number(0.15, above=0, below=1)
    # what is done about damaged files of a folder
    on_bad_image: str = choice('skip', 'error')
    # where a folder's decoded images are kept; '' = the user's cache, 'off' = nowhere
    cache: str = text()
    # of files: 'square': each is decoded to size x size pixels, of which views are cut; 'photo':
    # views are cut out of the photo (augment.random_resized_crop) and then resized
    decode: str = choice('square', 'photo')
    # pixels of the shorter side before the middle is cut out; 0 = size
    resize: int = number(0, at_least=0, at_most=2**12)
    interpolation: str = choice('bicubic', 'bilinear')  # of files that are resized
    # where images lie while a run trains: on every device, a part on each, in the host's memory
    # (or mapped from the cache's file), or decoded when a batch wants them
    placement: str = choice('auto', 'resident', 'sharded', 'host', 'stream')
    workers: int = number(0, at_least=0, at_most=1024)  # processes that decode; 0 = threads
    # share of train that becomes validation where the source has none
    val_share: float = number(0.1, at_least=0, at_most=1, words=CARVED)
    val_seed: int = number(0, at_least=0)  # which images those are
    # so many labels a class; 0 = all; other images stay
    labels_per_class: int = number(0, at_least=0, words='0 (all) or more')
    labels_seed: int = number(0, at_least=0)  # which labels those are
    # per channel, for images in 0..1; () = of the training images
    mean: tuple[float, ...] = several((), _in_0_to_1, SCALED)
    std: tuple[float, ...] = several((), _in_0_to_1, SCALED)  # likewise
    # more images for the terms that need no labels: a directory, an image file that is cut into
    # parts, an .npz file (key image), or 'tfds:NAME/SPLIT'; '' = none
    unlabelled: str = text()
    unlabelled_crops: int = number(10000, at_least=1, at_most=10**8)  # parts of an image file
    # share of each batch that is of those images
    unlabelled_share: float = number(0.5, above=0, below=1)


def load(config: Any) -> Dataset:
    """The data set that `config` names, validated, split and partly unlabelled as asked.

    Args:
      config: the fields of `Settings`. A source without validation split gives `val_share` of its
        train split away as one. `labels_per_class` > 0 keeps so many train labels a class; the
        other train labels become -1.

    Raises:
      UserError: unknown source, data that is missing, damaged or not images with
        labels, a value out of range.
    """
    config = Settings(
        **check(Settings, config if hasattr(config, 'keys') else vars(config), 'data')
    )
    raw = foreign.load(config) if own.is_own(config.source) else SOURCES[config.source](config)
    num_classes = _num_classes(raw)
    names = raw.class_names or tuple(str(k) for k in range(num_classes))
    shape: tuple[Any, ...] = _shape_of(raw.train)
    _check_placement(config, raw)
    train = _split(raw.name, 'train', raw.train, num_classes, shape)
    test = _split(raw.name, 'test', raw.test, num_classes, shape)
    if raw.val is not None:
        val = _split(raw.name, 'validation', raw.val, num_classes, shape)
    else:
        train, val = _carve(raw.name, train, config.val_share, config.val_seed)
    mean, std = _moments(train)
    mean = _given('mean', config.mean, mean)
    # A constant channel is only shifted.
    std = tuple(value or 1.0 for value in _given('std', config.std, std))
    if config.labels_per_class:
        label = _few_labels(
            raw.name, train.labels, num_classes, config.labels_per_class, config.labels_seed
        )
        train = train.take(np.arange(len(train)), label)
    count = {
        'train': len(train),
        'labelled': int((train.labels >= 0).sum()),
        'val': len(val),
        'test': len(test),
    }
    notes = [*raw.notes]
    if not (train.labels == 0).any() and not (val.labels == 0).any() and not raw.class_names:
        notes.append(f'no image of {raw.name!r} has the label 0: classes are numbered from 0')
    if config.unlabelled:
        train = _with_more(config, raw.name, train, notes)
        count['unlabelled'] = len(train) - count['train']
    info = DatasetInfo(raw.name, num_classes, tuple(names), shape, mean, std, count)
    return Dataset(info, train, val, test, tuple(notes))


def _with_more(config: Settings, name: str, train: Source, notes: list[str]) -> Source:
    """The training images and, after them, those that have no label."""
    from kd_jax.data import unlabelled  # as above

    more = unlabelled.load(config, name, train.image_shape, notes)
    return JoinedSource.of(train, more)


def _num_classes(raw: Raw) -> int:
    if raw.class_names:
        return len(raw.class_names)
    label = np.asarray(raw.train[1] if isinstance(raw.train, tuple) else raw.train.labels)
    if not label.size or label.dtype.kind not in 'iu':
        return 1  # `_split` says what is wrong
    highest = max(int(label.max()), 0)
    if highest >= label.size:
        raise UserError(
            f'the train split of data set {raw.name!r} has a label {highest} and only '
            f'{label.size} labels; number the classes from 0'
        )
    return highest + 1


def _shape_of(split: Any) -> tuple[Any, ...]:
    return np.shape(split[0])[1:] if isinstance(split, tuple) else split.image_shape


def _check_placement(config: Settings, raw: Raw) -> None:
    """Raises `UserError` where images that are not decoded from files are to be."""
    if not isinstance(raw.train, tuple):
        return
    for name, value, other in (('placement', 'stream', 'host'), ('decode', 'photo', 'square')):
        if getattr(config, name) == value:
            raise UserError(
                f'data.{name} is {value!r}, but the images of {config.source!r} are arrays, which '
                f'are decoded already; set data.{name}={other!r}'
            )


def _split(name: str, part: str, given: Any, num_classes: int, shape: tuple[int, ...]) -> Source:
    """The checked `(image, label)` of one split."""
    where = f'the {part} split of data set {name!r}'
    if not isinstance(given, tuple):
        return given  # from its labels' names, by its reader
    # what is mapped from a file stays there
    image, label = (x if isinstance(x, np.ndarray) else np.asarray(x) for x in given)
    if image.dtype != np.uint8:
        plain = image.dtype.kind in 'fiub' and image.size
        span = f' from {float(image.min()):g} to {float(image.max()):g}' if plain else ''
        small = plain and image.dtype.kind == 'f' and image.max() <= 1
        scale = 'multiply by 255, then ' if small else ''
        raise UserError(
            f'{where} has {image.dtype} images{span}, must be uint8 (0 to 255); '
            f'{scale}convert them with np.rint and .astype(np.uint8)'
        )
    if image.ndim != 4 or 0 in image.shape[1:]:
        raise UserError(
            f'{where} has images of shape {image.shape}, must be [N, H, W, C]; reshape them'
        )
    if image.shape[1] in (1, 3) and image.shape[3] > 4:
        raise UserError(
            f'{where} has images of shape {image.shape}, channels first; they must be '
            '[N, H, W, C]: use np.moveaxis(image, 1, -1)'
        )
    if label.dtype.kind not in 'iu' or label.ndim != 1:
        raise UserError(
            f'{where} has {label.dtype} labels of shape {label.shape}, must be integers [N]; '
            'store one class number an image'
        )
    if len(image) != len(label):
        raise UserError(
            f'{where} has {len(image)} images and {len(label)} labels; store one label an image'
        )
    if not len(image):
        raise UserError(f'{where} is empty; it needs at least one image')
    if image.shape[1:] != shape:
        raise UserError(
            f'{where} has images of shape {image.shape[1:]}, the train split '
            f'{shape}; resize them to one shape'
        )
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        what = 'labels or the class_names' if high >= num_classes else 'labels'
        raise UserError(
            f'{where} has a label {wrong}, must be 0 to {num_classes - 1}; correct the {what}'
        )
    return ArraySource(image, label.astype(np.int32))


def _carve(name: str, train: Source, share: float, seed: int) -> tuple[Source, Source]:
    """`(train, val)`: a random `share` of `train` becomes the validation
    split; the original order is kept.
    """
    if not 0 < share < 1:
        raise UserError(
            f'data.val_share is {share}, must be between 0 and 1 (exclusive) because data set '
            f'{name!r} has no validation split; set --config.data.val_share=0.1'
        )
    count = len(train)
    if count < 2:
        raise UserError(
            f'data set {name!r} has {count} train image, too few for a '
            'validation split; add train images'
        )
    size = min(max(round(count * share), 1), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    return train.take(np.sort(order[size:])), train.take(np.sort(order[:size]))


def _moments(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in 0..1 units, exact: from counts of the 256
    values. Of a stream they are those of `_SAMPLE` images, evenly spaced.
    """
    count = len(source)
    index = np.arange(count)
    if source.streamed and count > _SAMPLE:
        index = np.linspace(0, count - 1, _SAMPLE).astype(int)
    value, channels = np.arange(256) / 255, source.image_shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(index), _CHUNK):
        image, bad = source.images(index[start : start + _CHUNK])
        for channel in range(channels):
            counts[channel] += np.bincount(image[~bad, :, :, channel].ravel(), minlength=256)
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ value
    std = np.sqrt((share * (value - mean[:, None]) ** 2).sum(axis=1))
    return tuple(mean.tolist()), tuple(std.tolist())


def _given(field: str, given: Sequence[float], computed: tuple[float, ...]) -> tuple[float, ...]:
    if not len(given):
        return computed
    if len(given) != len(computed):
        raise UserError(
            f'data.{field} has {len(given)} values, the images {len(computed)} channels; '
            f'give one value a channel or --config.data.{field}="()" to compute them'
        )
    return tuple(float(value) for value in given)


def _few_labels(name: str, label: np.ndarray, num_classes: int, keep: int, seed: int) -> np.ndarray:
    """`label` with `keep` random labels a class left, the others -1."""
    rng = np.random.default_rng(seed)
    few = np.full_like(label, -1)
    for k in range(num_classes):
        members = np.flatnonzero(label == k)
        if len(members) < keep:
            raise UserError(
                f'data.labels_per_class is {keep}, but class {k} of data set {name!r} has only '
                f'{len(members)} train images; lower it or set it to 0 to use all labels'
            )
        few[rng.permutation(members)[:keep]] = k
    return few


__getattr__ = renamed(__name__, {'Split': 'ArraySource', 'Splits': 'Dataset'})

__all__ = ['SOURCES', 'ArraySource', 'Dataset', 'DatasetInfo', 'Raw', 'load']
