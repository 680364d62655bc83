"""What describes a TFDS set on disk, checked before TFDS reads it.

TFDS imports the module of whatever class `features.json` names, also in JSON inside strings, and
makes file names of what it finds. So a set must be described as TFDS itself describes sets of
classified images: these classes, these fields and nothing else.
"""

import stat
from typing import Annotated, Any

import msgspec
from etils import epath

from kd_jax import records
from kd_jax.errors import UserError

_FEATURES = 'tensorflow_datasets.core.features.'
# Class -> the field of its description. None of them holds text that is parsed again.
CLASSES = {
    f'{_FEATURES}features_dict.FeaturesDict': 'features_dict',
    f'{_FEATURES}image_feature.Image': 'image',
    f'{_FEATURES}class_label_feature.ClassLabel': 'class_label',
    f'{_FEATURES}text_feature.Text': 'text',
    f'{_FEATURES}scalar.Scalar': 'tensor',
    f'{_FEATURES}tensor_feature.Tensor': 'tensor',
    f'{_FEATURES}bounding_boxes.BBoxFeature': 'bounding_box',
    f'{_FEATURES}sequence_feature.Sequence': 'sequence',
}
MOST_BYTES = 16 * 2**20  # of a description, and of a file of label names
MOST_CLASSES = 10**6
MOST_SHARDS = 10**6
MOST_DEPTH = 32


class _Record(msgspec.Struct, rename='camel', forbid_unknown_fields=True):
    """The fields of one of TFDS's messages in JSON."""


# An int64 is text in the JSON of protocol buffers.
_Count = (
    Annotated[str, msgspec.Meta(pattern=r'^[0-9]{1,15}\Z')] | Annotated[int, msgspec.Meta(ge=0)]
)
_Number = Annotated[str, msgspec.Meta(pattern=r'^-?[0-9]{1,18}\Z')] | int
# What becomes part of a file's name.
_Name = Annotated[str, msgspec.Meta(pattern=r'^[^./\\\x00-\x1f][^/\\\x00-\x1f]*\Z', max_length=200)]
# TFDS makes the name of a file of this too, with dots for slashes.
_Key = Annotated[str, msgspec.Meta(pattern=r'^[^./\\\x00-\x1f][^\\\x00-\x1f]*\Z', max_length=200)]
_Part = Annotated[str, msgspec.Meta(pattern=r'^[\w+-][\w.+-]*\Z', max_length=200)]


class _Shape(_Record):
    dimensions: Annotated[list[_Number], msgspec.Meta(max_length=16)] = []


class _ClassLabel(_Record):
    num_classes: _Count = 0


class _Image(_Record):
    shape: _Shape | None = None
    dtype: str = ''
    encoding_format: str = ''
    use_colormap: bool = False


class _Tensor(_Record):
    shape: _Shape | None = None
    dtype: str = ''
    encoding: str = ''
    minimum: _Number = 0
    maximum: _Number = 0
    optional: bool = False


class _BoundingBox(_Record):
    shape: _Shape | None = None
    dtype: str = ''
    bbox_format: str = ''


class _Text(_Record):
    pass


class _Sequence(_Record):
    feature: 'Feature'
    length: _Number = 0


class _FeaturesDict(_Record):
    features: dict[_Key, 'Feature'] = {}


class Feature(_Record):
    """A node of `features.json`."""

    python_class_name: str
    description: str = ''
    value_range: str = ''
    features_dict: _FeaturesDict | None = None
    image: _Image | None = None
    class_label: _ClassLabel | None = None
    text: _Text | None = None
    tensor: _Tensor | None = None
    bounding_box: _BoundingBox | None = None
    sequence: _Sequence | None = None


class _Split(_Record):
    name: _Part
    filepath_template: _Name = ''
    num_shards: _Count = 0
    shard_lengths: Annotated[list[_Count], msgspec.Meta(max_length=MOST_SHARDS)] = []
    num_bytes: _Count = 0
    statistics: Any = None


class Description(_Record):
    """`dataset_info.json`."""

    name: _Part
    version: Annotated[str, msgspec.Meta(pattern=r'^[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}\Z')]
    splits: Annotated[list[_Split], msgspec.Meta(max_length=1000)] = []
    file_format: str = ''
    alternative_file_formats: list[str] = []
    config_name: _Part | None = None
    config_description: str = ''
    config_tags: list[str] = []
    description: str = ''
    citation: str = ''
    release_notes: dict[str, str] = {}
    module_name: str = ''
    size_in_bytes: _Number = 0
    download_size: _Number = 0
    location: Any = None
    download_checksums: Any = None
    schema: Any = None
    supervised_keys: Any = None
    redistribution_info: Any = None
    disable_shuffling: bool = False
    nondeterministic_order: bool = False
    data_source_accesses: Any = None
    is_blocked: str = ''


def check(folder: str) -> None:
    """Raises `UserError` unless the set in `folder` is described as TFDS describes one of
    classified images, and holds what it claims.
    """
    path = epath.Path(folder)
    feature = _read(path / 'features.json', Feature)
    description = _read(path / 'dataset_info.json', Description)
    _check_classes(path, feature, '')
    _check_claims(path, description)


def _read(path: epath.Path, kind: type[records.T]) -> Any:
    # As TFDS parses it, so that both see the same.
    fix = 'prepare the data set again, with the features that TFDS itself has'
    return msgspec.convert(records.read(path, kind, fix, MOST_BYTES), kind)


def _check_classes(path: epath.Path, feature: Feature, name: str, depth: int = 0) -> None:
    """`name`: of the feature, as TFDS names the file of its labels."""
    if depth > MOST_DEPTH:
        raise UserError(
            f'{path}/features.json is nested more than {MOST_DEPTH} deep; prepare the data set '
            'again'
        )
    named = feature.python_class_name
    if named not in CLASSES:
        known = ', '.join(sorted(full.rpartition('.')[2] for full in CLASSES))
        raise UserError(
            f'{path}/features.json names the class {named!r}, which may run code; prepare the data '
            f"set with TFDS's own features ({known})"
        )
    kinds = sorted(set(CLASSES.values()))
    content = [kind for kind in kinds if getattr(feature, kind) is not None]
    if content != [CLASSES[named]]:
        raise UserError(
            f'{path}/features.json describes a {named.rpartition(".")[2]} by '
            f'{", ".join(content) or "nothing"}, must be by {CLASSES[named]}; prepare the data set '
            'again'
        )
    if feature.features_dict is not None:
        for key, inner in feature.features_dict.features.items():
            file = '-'.join([name, key.replace('/', '.')]) if name else key.replace('/', '.')
            _check_classes(path, inner, file, depth + 1)
    if feature.sequence is not None:
        _check_classes(path, feature.sequence.feature, name, depth + 1)
    if feature.class_label is not None:
        _check_labels(path, name, int(feature.class_label.num_classes))


def _check_labels(path: epath.Path, name: str, count: int) -> None:
    if count > MOST_CLASSES:
        raise UserError(
            f'{path}/features.json claims {count} classes of {name}, at most {MOST_CLASSES} can '
            'be; choose another data set'
        )
    names = path / f'{name}.labels.txt'
    if names.exists():
        text = records.text_of(names, 'copy or prepare the data set again', MOST_BYTES)
        lines = text.count('\n') + 1
        blank = lines <= 2 * MOST_CLASSES and sum(not line.strip() for line in text.split('\n'))
        given = lines - blank
        if given != count:
            raise UserError(
                f'{names} has {given} names for {count} classes; copy or prepare the data set again'
            )


def _check_claims(path: epath.Path, description: Description) -> None:
    size = 0
    for file in path.iterdir():
        found = file.stat()
        if found.is_directory:
            continue
        if found.mode is not None and not stat.S_ISREG(found.mode):
            raise UserError(
                f'{file} is no regular file; a data set has files only: copy or prepare it again'
            )
        size += found.length
    for split in description.splits:
        if '..' in split.filepath_template:
            raise UserError(
                f'{path}/dataset_info.json has the filepathTemplate '
                f'{split.filepath_template!r}, which leaves its directory; prepare the data set '
                'again'
            )
    names = [split.name for split in description.splits]
    if len(set(names)) < len(names):
        raise UserError(
            f'{path}/dataset_info.json names a split twice ({", ".join(names)}); prepare the data '
            'set again'
        )
    claimed = sum(int(count) for split in description.splits for count in split.shard_lengths)
    if claimed > size:  # a record has more than one byte
        raise UserError(
            f'{path}/dataset_info.json claims {claimed} examples in files of {size} bytes; copy or '
            'prepare the data set again'
        )
