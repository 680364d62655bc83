"""TensorFlow Datasets by name, read from array_record files without TensorFlow; also
a command that prepares them.

    python -m kd_jax.data.tfds cifar10 --data_dir=DIR

downloads and prepares a data set (that needs the network and TensorFlow); DIR/cifar10 can
then be copied anywhere and read there with `--config.data.source=tfds
--config.data.name=cifar10 --config.data.path=DIR`.
"""

import contextlib
import difflib
import importlib.util
import logging
import math
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np

from kd_jax.data import tfds_description
from kd_jax.data.arrays import MAX_BYTES, Raw
from kd_jax.errors import Parser, UserError, told_to_the_user

MOST_PIXELS = 2**26  # of one image
_CHUNK = 512  # examples decoded by one call
_CONNECT_SECONDS = 10.0  # TFDS itself would try for minutes


def load(config: Any) -> Raw:
    """The TFDS set `config.name` ('set', 'set/config' or either with ':version'),
    prepared first if it is not yet.

    `config.path` is the directory that TFDS calls data_dir; '' means TFDS's default. The splits are
    'train', 'test' (or, in a set without one, 'validation') and, beside a 'test', 'validation'.

    Raises:
      UserError: unknown name; not prepared and cannot be here; not array_record; no image or class
        label; images of different sizes, or more than memory should hold.
    """
    folder = prepared(config.name, config.path) or prepare(config.name, config.path)
    info = described(folder, config.name)
    image, label = feature(folder, info, 'image'), feature(folder, info, 'label')
    splits = set(info.splits)
    test = 'test' if 'test' in splits else 'validation'
    for split in ('train', test):
        if split not in splits:
            raise UserError(
                f'{folder} has the splits {", ".join(sorted(splits))}, must have '
                "'train' and 'test' or 'validation'; choose another data set"
            )
    parts = ['train', test] + (['validation'] if test == 'test' and 'validation' in splits else [])
    count = sum(info.splits[split].num_examples for split in parts)
    names = tuple(info.features[label].names or ())
    form, notes = _form(folder, info, image, count, config), list[str]()
    if form is None:
        read = {split: _read(folder, split, image, label, count) for split in parts}
    else:
        read = _photos(folder, info, (image, label), parts, form, config, notes)
    if len(parts) == 3 and _unlabelled(read[test]):  # as that of ImageNet
        notes.append(f'the test split of {folder} has no labels: validation is the test split')
        read[test] = read.pop('validation')
    val = read.get('validation') if test == 'test' else None
    return Raw(info.name, read['train'], val, read[test], names, notes=tuple(notes))


def described(folder: str, name: str) -> Any:
    """What TFDS knows of the set `name` in a directory; `UserError` if it cannot be read."""
    import tensorflow_datasets as tfds

    try:
        tfds_description.check(folder)
        info = tfds.builder_from_directory(folder).info
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f'{folder} is not a readable TFDS data set ({_brief(error)}); copy or prepare it again'
        ) from None
    if 'array_record' not in {file_format.value for file_format in info.available_file_formats()}:
        stored = info.file_format.value if info.file_format else 'an unknown format'
        raise UserError(f'{folder} holds {stored} files, must be array_record; {_how(name)}')
    return info


def _unlabelled(split: Any) -> bool:
    return bool((split[1] if isinstance(split, tuple) else split.labels).max(initial=-1) < 0)


def _form(folder: str, info: Any, image: str, count: int, config: Any) -> Any:
    """How the set's photos become examples of one size; None: they are that already."""
    from kd_jax.data import folder as folders
    from kd_jax.data import tfds_photos

    shape = info.features[image].shape
    as_they_are = config.decode == 'square' and config.placement != 'stream' and not config.size
    known = None not in shape
    if (
        as_they_are
        and known
        and (config.placement != 'auto' or count * math.prod(shape) <= MAX_BYTES)
    ):
        return None
    train = tfds_photos.Records(folder, 'train', image, info.splits['train'].num_examples)
    found = tfds_photos.headers(train)
    same = len({(one.width, one.height) for one in found}) == 1
    if as_they_are and same and count * found[0].width * found[0].height <= MAX_BYTES // 3:
        return None  # as far as one can see; others are refused
    return folders.form_of_headers(found, config)


def _photos(
    folder: str,
    info: Any,
    names: tuple[str, str],
    parts: list[str],
    form: Any,
    config: Any,
    notes: list[str],
) -> dict[str, Any]:
    """Split -> a stream of its photos, or `(images, labels)` of them, decoded."""
    from kd_jax.data import folder as folders
    from kd_jax.data import tfds_photos

    image, label = names
    counts = {split: info.splits[split].num_examples for split in parts}
    streamed = folders.is_streamed(config, sum(counts.values()), form, 'off')
    read: dict[str, Any] = {}
    for split in parts:
        reader = tfds_photos.Records(folder, split, image, counts[split])
        source = tfds_photos.source(reader, label, form, config.on_bad_image)
        if not streamed:
            images, bad = source.images(np.arange(len(source)))
            if bad.any():
                why = f'{int(bad.sum())} of {len(bad)}: {source.why(int(np.argmax(bad)))}'
                notes.append(f'records of {split} in {folder} are left out, {why}')
            read[split] = images[~bad], source.labels[~bad]
        else:
            read[split] = source
    return read


def prepare(name: str, data_dir: str) -> str:
    """Downloads and prepares a TFDS set as array_record; returns its directory.
    Needs TensorFlow and the network.

    What is missing is found before TFDS starts, because TFDS would retry for
    minutes and then print a traceback.

    Raises:
      UserError: for every failure.
    """
    directory = prepared(name, data_dir)
    if directory:
        return directory
    import tensorflow_datasets as tfds

    base, version, root = *_parts(name), _root(data_dir)
    known = tfds.list_builders(with_community_datasets=False)
    if base.partition('/')[0] not in known:
        close = difflib.get_close_matches(base.partition('/')[0], known, n=3)
        hint = f'did you mean {" or ".join(map(repr, close))}? ' if close else ''
        raise UserError(
            f'unknown TFDS data set {name!r}, and none is prepared in {root}; {hint}'
            f'the {len(known)} known ones are listed at https://www.tensorflow.org/datasets/catalog'
        )
    try:
        builder = tfds.builder(
            base,
            data_dir=root,
            file_format='array_record',
            **({'version': version} if version else {}),
        )
        missing = _missing(builder, root)
    except Exception as error:
        raise UserError(
            f'TFDS cannot make {name!r} ({_brief(error)}); correct the name or choose another set'
        ) from None
    if missing:
        raise UserError(
            f'{name!r} is not prepared in {root} and cannot be here '
            f'({"; ".join(missing)}); {_how(name)}'
        )
    try:
        import tensorflow as tf

        # Else it would take the memory that training needs.
        tf.config.set_visible_devices([], 'GPU')
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    except Exception as error:
        raise UserError(
            f'{name!r} is not prepared in {root} and cannot be here ({_brief(error)}); {_how(name)}'
        ) from None
    return str(builder.data_dir)


def _how(name: str) -> str:
    base = _parts(name)[0].partition('/')[0]
    return (
        'on a machine with network run `pip install tensorflow-cpu` and '
        f'`python -m kd_jax.data.tfds {name} --data_dir=DIR`, copy DIR/{base} here '
        'and pass --config.data.path=DIR'
    )


def _brief(error: Exception) -> str:
    """An exception in a few words on one line."""
    text = ' '.join(str(error).split()).rstrip('.')
    return f'{type(error).__name__}: {text[:200]}{"..." if len(text) > 200 else ""}'


def _root(data_dir: str) -> Any:
    """The directory under which TFDS keeps its sets; a path object that knows gs:// too."""
    from etils import epath
    from tensorflow_datasets.core import constants

    return epath.Path(data_dir or constants.DATA_DIR).expanduser()


def _parts(name: str) -> tuple[str, str]:
    """('set' or 'set/config', 'version' or '')."""
    match = re.fullmatch(r'(\w+(?:/[\w.-]+)?)(?::(\d+\.\d+\.\d+))?', name)
    if not match:
        raise UserError(
            f"data.name is {name!r}, must be like 'cifar10' or "
            "'set/config:1.0.0'; set --config.data.name"
        )
    return match[1], match[2] or ''


def prepared(name: str, data_dir: str) -> str:
    """The directory of the newest prepared version, or ''."""
    base, version = _parts(name)
    root = _root(data_dir)
    directories = [path.parent for path in (root / base).glob('*/dataset_info.json')]
    versions = [
        path
        for path in directories
        if re.fullmatch(r'\d+\.\d+\.\d+', path.name) and version in ('', path.name)
    ]
    if versions:
        return str(max(versions, key=lambda path: tuple(map(int, path.name.split('.')))))
    configs = sorted(
        {path.parent.parent.name for path in (root / base).glob('*/*/dataset_info.json')}
    )
    if configs:
        raise UserError(
            f'{root / base} has the configs {", ".join(configs)}; set '
            f'--config.data.name={base}/{configs[0]}'
        )
    return ''


def _missing(builder: Any, root: Any) -> list[str]:
    """What this machine lacks to prepare a set, each in a few words."""
    missing = []
    if importlib.util.find_spec('tensorflow') is None:
        missing.append('TensorFlow is not installed')
    manual = root / 'downloads' / 'manual'
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        if not manual.exists() or not any(manual.iterdir()):
            wanted = ' '.join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split()).rstrip('.')
            missing.append(f'its files must be fetched by hand into {manual}: {wanted}')
        return missing
    urls = [urllib.parse.urlsplit(url) for url in sorted(builder.url_infos or {})]
    urls = [url for url in urls if url.scheme in ('http', 'https')]
    if urls and not urllib.request.getproxies():
        port = urls[0].port or {'http': 80, 'https': 443}[urls[0].scheme]
        try:
            socket.create_connection((urls[0].hostname, port), _CONNECT_SECONDS).close()
        except OSError as error:
            missing.append(f'{urls[0].hostname} cannot be reached: {error.strerror or error}')
    return missing


def feature(folder: str, info: Any, key: str) -> str:
    """The name of the one image, or class label, among the features of a set."""
    import tensorflow_datasets as tfds

    kind = {'image': tfds.features.Image, 'label': tfds.features.ClassLabel}[key]
    features = dict(info.features.items()) if hasattr(info.features, 'items') else {}
    names = [name for name, feature in features.items() if isinstance(feature, kind)]
    if key in names:
        return key
    if len(names) != 1:
        have = ', '.join(
            f'{name} ({type(feature).__name__})' for name, feature in sorted(features.items())
        )
        raise UserError(
            f'{folder} has the features {have or "none"}, must have one {kind.__name__} (or one '
            f'called {key!r}); choose a data set of classified images'
        )
    return names[0]


def _read(
    folder: str, split: str, image: str, label: str, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """`(image uint8 [N, H, W, C], label int64 [N])` of one split; `count`
    images are to be held in all.
    """
    import tensorflow_datasets as tfds

    from kd_jax.data import decoding

    try:
        with _no_advice():
            builder = tfds.builder_from_directory(folder)
            if not builder.info.splits[split].num_examples:
                raise UserError(f'the {split} split of {folder} is empty; choose another data set')
            skip = {image: tfds.decode.SkipDecoding()}  # which would not mind their size
            source = builder.as_data_source(split, decoders=skip, file_format='array_record')
            feature = builder.info.features[image]
            channels = feature.shape[-1]
            decode = lambda content: decoding.as_it_is(content, channels, MOST_PIXELS)  # noqa: E731
            first = decode(source[0][image])
            kind = first.dtype if feature.np_dtype == np.uint8 else np.dtype(feature.np_dtype)
            if kind != np.uint8:
                raise UserError(
                    f'{folder} has {kind} images, must be uint8; choose another data set'
                )
            if count * math.prod(first.shape) > MAX_BYTES:
                raise UserError(
                    f'{folder} has {count} images of shape {first.shape}, more than the '
                    f'{MAX_BYTES} bytes that can be held as one array; choose a smaller data '
                    'set or resize it when preparing'
                )
            images = np.empty((len(source), *first.shape), np.uint8)
            labels = np.empty(len(source), np.int64)
            for start in range(0, len(source), _CHUNK):
                keys = range(start, min(start + _CHUNK, len(source)))
                for place, example in zip(keys, source.__getitems__(keys), strict=True):
                    found = decode(example[image])
                    if found.shape != first.shape:
                        raise UserError(
                            f'{folder} has images of different sizes ({first.shape}, '
                            f'{found.shape}), which cannot be held as one array; set '
                            'data.size to resize them to that many pixels'
                        )
                    images[place], labels[place] = found, example[label]
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f'the {split} split of {folder} cannot be read ({_brief(error)}); '
            'copy or prepare the data set again'
        ) from None
    return images, labels


def _is_not_advice(record: logging.LogRecord) -> bool:
    return 'OpenCV is not installed' not in str(record.msg)


@contextlib.contextmanager
def _no_advice() -> Iterator[None]:
    """Drops TFDS's advice to install OpenCV, which it would log in every
    run; everything else passes.
    """
    logger = logging.getLogger('absl')
    logger.addFilter(_is_not_advice)
    try:
        yield
    finally:
        logger.removeFilter(_is_not_advice)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog='python -m kd_jax.data.tfds', description='Prepare a TFDS set as array_record.'
    )
    parser.add_argument('name', help="'cifar10', 'set/config' or 'set:1.0.0'")
    parser.add_argument(
        '--data_dir', default='', help="where to put it (default: TFDS's own directory)"
    )
    args = parser.parse_args(argv)
    with told_to_the_user():
        print(prepare(args.name, args.data_dir))


if __name__ == '__main__':
    main()
