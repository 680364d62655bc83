"""Descriptions of TFDS sets that would run code, read elsewhere, or claim what is not there."""

import copy
import io
import json
import os
import struct
import sys
import zlib
from types import SimpleNamespace

import pytest
import refusals
import tfds_sets
from helpers import SMALL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_datasets import features

from kd_jax import data
from kd_jax.data.tfds_description import CLASSES
from kd_jax.errors import UserError

CLASS = 'tensorflow_datasets.core.features.'
ID, IMAGE, LABEL = (('featuresDict', 'features', name) for name in ('id', 'image', 'label'))
INTRUDER = 'intruder.Text'
LEGACY = {'type': INTRUDER, 'content': {}}


def at(path, value):
    """A change: `value` stands at `path`; None takes it away."""

    def change(node):
        *above, last = path
        for key in above:
            node = node[key]
        if value is None:
            del node[last]
        elif isinstance(node, list) and last == len(node):
            node.append(value)
        else:
            node[last] = value

    return change


def within(path, **fields):
    def change(node):
        for key in path:
            node = node[key]
        node.update(fields)

    return change


def json_feature(inner):
    """As TFDS writes a feature of which it has no message: JSON in a string."""
    return {
        'pythonClassName': f'{CLASS}features_dict.FeaturesDict',
        'jsonFeature': {'json': json.dumps(inner)},
    }


def nested(depth):
    node = {'pythonClassName': INTRUDER, 'text': {}}
    for _ in range(depth):
        node = {
            'pythonClassName': f'{CLASS}sequence_feature.Sequence',
            'sequence': {'feature': node},
        }
    return node


FEATURES = {
    'a class of another module': at((*ID, 'pythonClassName'), INTRUDER),
    'a class beside those of TFDS': at((*ID, 'pythonClassName'), f'{CLASS}intruder.Text'),
    'a class of the standard library': at((*ID, 'pythonClassName'), 'this.Zen'),
    'another class of the same module': at((*ID, 'pythonClassName'), f'{CLASS}text_feature.Tokens'),
    'a class in capitals': at((*ID, 'pythonClassName'), f'{CLASS}text_feature.TEXT'),
    'a class with a newline': at((*ID, 'pythonClassName'), f'{CLASS}text_feature.Text\n'),
    'a class by a number': at((*ID, 'pythonClassName'), 5),
    'no class': at((*ID, 'pythonClassName'), None),
    'the older name of the field': within(ID, python_class_name=INTRUDER),
    'both names of the field': within(IMAGE, python_class_name=INTRUDER),
    'a node of version 4.5': at(ID, LEGACY),
    'beside a node of today': within(ID, **LEGACY),
    'a class of TFDS with content as text': at(
        ID,
        {
            'type': f'{CLASS}features_dict.FeaturesDict',
            'proto_cls': 'tensorflow_datasets.FeaturesDict',
            'content': json.dumps({'features': {'x': {'pythonClassName': INTRUDER}}}),
        },
    ),
    'a class of TFDS with content of version 4.5': at(
        ID, {'type': f'{CLASS}features_dict.FeaturesDict', 'content': {'x': LEGACY}}
    ),
    'JSON in a string': at(ID, json_feature({'x': LEGACY})),
    'JSON in a string in a string': at(ID, json_feature({'x': json_feature({'y': LEGACY})})),
    'JSON in a string beside what it is': within(
        ID, jsonFeature={'json': json.dumps({'x': LEGACY})}
    ),
    'JSON in a string under the older name': within(ID, json_feature={'json': json.dumps(LEGACY)}),
    'JSON in a string at the top': at(('jsonFeature',), {'json': json.dumps({'x': LEGACY})}),
    'in a sequence': at(ID, nested(1)),
    'in sequences of sequences': at(ID, nested(20)),
    'two hundred sequences deep': at(ID, nested(200)),
    'a text that is described as an image': within(ID, text=None, image={}),
    'an image described twice': within(IMAGE, tensor={}),
    'a label described by nothing': at((*LABEL, 'classLabel'), None),
    'features that are a list': at(('featuresDict', 'features'), []),
    'a feature that is text': at(ID, 'text'),
    'a feature that is nothing': within(('featuresDict', 'features'), id=None),
    'a field that TFDS does not have': within(ID, colour='red'),
    'a label whose names lie elsewhere': lambda node: node['featuresDict']['features'].update(
        {'../../label': node['featuresDict']['features'].pop('label')}
    ),
    'a label whose names lie at a root': lambda node: node['featuresDict']['features'].update(
        {'/etc/passwd': node['featuresDict']['features'].pop('label')}
    ),
    'a name with a zero': within(('featuresDict', 'features'), **{'a\0b': {'text': {}}}),
    'a long name': within(('featuresDict', 'features'), **{'a' * 300: {'text': {}}}),
    'a billion classes': at((*LABEL, 'classLabel', 'numClasses'), '1000000000'),
    'a negative number of classes': at((*LABEL, 'classLabel', 'numClasses'), '-3'),
    'classes in words': at((*LABEL, 'classLabel', 'numClasses'), 'ten'),
    'half a class': at((*LABEL, 'classLabel', 'numClasses'), 9.5),
    'classes with a newline': at((*LABEL, 'classLabel', 'numClasses'), '10\n'),
    'classes of a thousand digits': at((*LABEL, 'classLabel', 'numClasses'), '9' * 1000),
    'a huge image': at((*IMAGE, 'image', 'shape', 'dimensions'), ['9' * 30, '1', '1']),
    'an image of a thousand axes': at((*IMAGE, 'image', 'shape', 'dimensions'), ['1'] * 1000),
    'an image without a type': at((*IMAGE, 'image', 'dtype'), 'no_such_type'),
    'an image of another type': at((*IMAGE, 'image', 'dtype'), 'uint16'),
    'an image of two axes': at((*IMAGE, 'image', 'shape', 'dimensions'), ['32', '32']),
}
INFO = {
    'a set that lies elsewhere': at(('name',), '../../../elsewhere'),
    'a set at a root': at(('name',), '/elsewhere'),
    'a hidden set': at(('name',), '..'),
    'a set without a name': at(('name',), None),
    'a set whose name is a number': at(('name',), 3),
    'a set with a newline': at(('name',), 'cifar10\n'),
    'a version that is none': at(('version',), '../1.0.0'),
    'a split that lies elsewhere': at(('splits', 0, 'name'), '../../train'),
    'a split without a name': at(('splits', 0, 'name'), None),
    'two splits of one name': lambda node: node['splits'].append(copy.deepcopy(node['splits'][0])),
    'splits that are a mapping': at(('splits',), {'train': 1}),
    'no splits': at(('splits',), []),
    'files that lie elsewhere': at(
        ('splits', 0, 'filepathTemplate'), '../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
    ),
    'files at a root': at(('splits', 0, 'filepathTemplate'), '/etc/{SPLIT}-{SHARD_X_OF_Y}'),
    'files in a folder': at(('splits', 0, 'filepathTemplate'), 'x/{SPLIT}-{SHARD_X_OF_Y}'),
    'files of nothing': at(('splits', 0, 'filepathTemplate'), '{NOTHING}'),
    'files by attribute': at(('splits', 0, 'filepathTemplate'), '{SPLIT.__class__}'),
    'a trillion examples': at(('splits', 0, 'shardLengths'), ['1000000000000']),
    'more examples than there are': at(('splits', 0, 'shardLengths'), ['300']),
    'fewer than none': at(('splits', 0, 'shardLengths'), ['-5']),
    'no shards': at(('splits', 0, 'shardLengths'), []),
    'two million shards': at(('splits', 0, 'shardLengths'), ['1'] * (2 * 10**6)),
    'shards that are not there': at(('splits', 0, 'shardLengths'), ['20', '20']),
    'shards that are text': at(('splits', 0, 'shardLengths'), 'many'),
    'another format': at(('fileFormat',), 'tfrecord'),
    'a format that is none': at(('fileFormat',), 'pickle'),
    'the older names of fields': lambda node: node.update(file_format=node.pop('fileFormat')),
    'a field that TFDS does not have': at(('colour',), 'red'),
    'not a mapping': lambda node: node.clear(),
}
RAW = {
    'nothing': b'',
    'half': b'{"name": "cifar10", ',
    'no JSON': b'\x89PNG\r\n\x1a\n',
    'a list': b'[]',
    'a number': b'1e400',
    'not a number': b'NaN',
    'deep': b'[' * 100_000,
    'deep mappings': b'{"featuresDict":' * 50_000,
    'text in another encoding': '{"name": "ü"}'.encode('utf-16'),
    '20 MB': b' ' * 20 * 2**20 + b'{}',
}


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp('cifar')
    tfds_sets.prepare_cifar10_like(folder, 40, 20)
    return folder


@pytest.fixture
def folder(original, tmp_path, monkeypatch):
    """A copy that may be damaged, beside a module that must not be imported."""
    version = tmp_path / 'cifar10/3.0.2'
    version.mkdir(parents=True)
    for file in (original / 'cifar10/3.0.2').iterdir():
        os.link(file, version / file.name)
    (tmp_path / 'intruder.py').write_text('raise SystemExit("an intruder ran")')
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def load(folder, name='cifar10'):
    fields = {'val_share': 0.2, 'val_seed': 0, 'labels_per_class': 0, 'labels_seed': 0}
    fields |= {'source': 'tfds', 'path': str(folder), 'name': name, 'mean': (), 'std': ()}
    return data.load(SimpleNamespace(**fields))


def replace(folder, file, content):
    path = folder / 'cifar10/3.0.2' / file
    path.unlink()  # it is a link to the original's
    path.write_bytes(content)


def refused(folder, name='cifar10'):
    """What a study says to such a set, beside a module that must not be imported."""
    about = (f'--config.data.name={name}', f'--config.data.path={folder}')
    flags = (*SMALL, f'--workdir={folder / "w"}', '--config.data.source=tfds', *about)
    told = refusals.refused('kd_jax.main', *flags, says=[folder], keeps=[folder], path=[folder])
    assert '; ' in told


def changed(original, file, change):
    described = json.loads((original / 'cifar10/3.0.2' / file).read_text())
    change(described)
    return json.dumps(described).encode()


def test_as_it_is_it_can_be_read(folder):
    assert load(folder).info.num_classes == 10


@pytest.mark.parametrize('name', FEATURES)
def test_features(original, folder, name):
    replace(folder, 'features.json', changed(original, 'features.json', FEATURES[name]))
    refused(folder)


@pytest.mark.parametrize('name', INFO)
def test_info(original, folder, name):
    replace(folder, 'dataset_info.json', changed(original, 'dataset_info.json', INFO[name]))
    refused(folder)


@pytest.mark.parametrize('name', RAW)
@pytest.mark.parametrize('file', ['features.json', 'dataset_info.json'])
def test_content(folder, file, name):
    replace(folder, file, RAW[name])
    refused(folder)


LABELS = {
    'none': b'',
    'one': b'one\n',
    'three million': b'x\n' * 3_000_000,
    'no text': b'\xff\xfe' * 100,
    '30 MB': b'y' * 30_000_000,
}


@pytest.mark.parametrize('name', LABELS)
def test_label_names(folder, name):
    replace(folder, 'label.labels.txt', LABELS[name])
    refused(folder)


@pytest.mark.parametrize(
    'file',
    [
        'features.json',
        'dataset_info.json',
        'label.labels.txt',
        'cifar10-train.array_record-00000-of-00001',
    ],
)
@pytest.mark.parametrize('kind', ['fifo', 'folder', 'device', 'loop'])
def test_what_is_no_file(folder, file, kind):
    path = folder / 'cifar10/3.0.2' / file
    path.unlink()
    if kind == 'fifo':
        os.mkfifo(path)
    elif kind == 'folder':
        path.mkdir()
    elif kind == 'device':
        path.symlink_to('/dev/zero')
    else:
        path.symlink_to(path.name)
    refused(folder)


def png_of_one_colour(side):
    """A file of less than a MB, whatever the side, written without the pixels."""
    row = b'\0' + bytes(3 * side)
    packed = zlib.compressobj(9)
    body = b''.join(packed.compress(row) for _ in range(side)) + packed.flush()
    header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    chunks = (b'IHDR' + header, b'IDAT' + body, b'IEND')
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(content) - 4) + content + struct.pack('>I', zlib.crc32(content))
        for content in chunks
    )


@pytest.mark.parametrize('shape', [(None, None, 3), (32, 32, 3)])
def test_an_image_that_grows(tmp_path, monkeypatch, shape):
    """400 MB of pixels in half a MB."""
    content = png_of_one_colour(12_000)
    kinds = {'image': features.Image(shape=shape), 'label': features.ClassLabel(num_classes=2)}
    examples = [{'image': io.BytesIO(content), 'label': k % 2} for k in range(2)]
    tfds_sets.prepare(tmp_path, kinds, {'train': examples, 'test': examples})
    refused(tmp_path, 'custom')


KEYS = ['pythonClassName', 'type', 'content', 'proto_cls', 'jsonFeature', 'json', 'features']
KEYS += ['featuresDict', 'sequence', 'feature', 'text', 'image', 'classLabel', 'x']
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([INTRUDER, '{}', *CLASSES]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def places(node, path=()):
    yield path
    if isinstance(node, dict):
        for key, value in node.items():
            yield from places(value, (*path, key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from places(value, (*path, number))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choice=st.data())
def test_anything_anywhere(original, folder, choice):
    """Read as it was, or one sentence; and the intruder did not run."""
    file = choice.draw(st.sampled_from(['features.json', 'dataset_info.json']))
    described = json.loads((original / 'cifar10/3.0.2' / file).read_text())
    path = choice.draw(st.sampled_from([place for place in places(described) if place]))
    value = choice.draw(JSON)
    as_text = choice.draw(st.booleans())
    at(path, json.dumps(value) if as_text else {} if value is None else value)(described)
    replace(folder, file, json.dumps(described).encode())
    try:
        assert load(folder).info.image_shape == (32, 32, 3)
    except UserError as error:
        assert '\n' not in str(error)
    finally:
        replace(folder, file, (original / 'cifar10/3.0.2' / file).read_bytes())
    assert 'intruder' not in sys.modules
