"""TFDS sets: read exactly without TensorFlow, and one sentence, soon, when they cannot be."""

import importlib.machinery
import io
import logging
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets
import tfds_sets
from helpers import REPOSITORY
from tensorflow_datasets import features as tfds_features

from kd_jax import data
from kd_jax.data import folder, tfds
from kd_jax.data.batches import Share, TrainOrder
from kd_jax.errors import UserError
from kd_jax.feed import Feed, Reading


def load(path, name='cifar10', **changes):
    fields = {
        'val_share': 0.2,
        'val_seed': 0,
        'labels_per_class': 0,
        'labels_seed': 0,
        'mean': (),
        'std': (),
    }
    return data.load(SimpleNamespace(source='tfds', path=str(path), name=name, **fields | changes))


def sentence(path, name='cifar10'):
    with pytest.raises(UserError) as caught:
        load(path, name)
    text = str(caught.value)
    assert '\n' not in text and not text.endswith('.') and '; ' in text
    return text


@pytest.fixture(scope='module')
def cifar(tmp_path_factory):
    """`(directory, the arrays in it)`; not to be changed."""
    folder = tmp_path_factory.mktemp('cifar')
    return folder, tfds_sets.prepare_cifar10_like(folder, 250, 60)


@pytest.fixture
def copy(cifar, tmp_path):
    """A copy that may be damaged: `(directory, directory of the version)`."""
    shutil.copytree(cifar[0], tmp_path / 'copy')
    return tmp_path / 'copy', tmp_path / 'copy/cifar10/3.0.2'


@pytest.fixture
def offline(monkeypatch):
    """No network, no proxy, no TensorFlow, and TFDS must not even begin."""

    def refuse(address, timeout):
        assert 0 < timeout <= 30
        raise OSError(101, 'Network is unreachable')

    def begin(*args, **kwargs):
        raise AssertionError('TFDS was started')

    monkeypatch.setattr(tfds.socket, 'create_connection', refuse)
    monkeypatch.setattr(tfds.urllib.request, 'getproxies', dict)
    monkeypatch.setattr(tfds.importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(tensorflow_datasets.core.DatasetBuilder, 'download_and_prepare', begin)


@pytest.fixture
def tensorflow(monkeypatch):
    """Something that passes for TensorFlow until TFDS would use it."""
    module = types.ModuleType('tensorflow')
    module.__spec__ = importlib.machinery.ModuleSpec('tensorflow', None)
    module.config = SimpleNamespace(set_visible_devices=lambda devices, kind: None)
    monkeypatch.setitem(sys.modules, 'tensorflow', module)
    monkeypatch.setattr(tfds.importlib.util, 'find_spec', lambda name: module.__spec__)


def examples(count, size=32, first=0):
    """Examples of a set with features image and label."""
    image, label = tfds_sets.images(count, np.random.default_rng(first))
    return [{'image': tfds_sets.png(image[k, :size]), 'label': int(label[k])} for k in range(count)]


FEATURES = {
    'image': tfds_features.Image(shape=(32, 32, 3)),
    'label': tfds_features.ClassLabel(num_classes=10),
}


# --------------------------------------------------------------------------------------------------
# reading


def test_every_pixel_and_label_arrives(cifar):
    folder, held = cifar
    splits = load(folder)
    assert [len(part.label) for part in (splits.train, splits.val, splits.test)] == [200, 50, 60]
    for split, parts in (('train', (splits.train, splits.val)), ('test', (splits.test,))):
        image, label = held[split]
        expected = sorted((one.tobytes(), int(k)) for one, k in zip(image, label, strict=True))
        found = [
            (one.tobytes(), int(k))
            for part in parts
            for one, k in zip(part.image, part.label, strict=True)
        ]
        assert sorted(found) == expected
    assert splits.train.image.shape[1:] == (32, 32, 3) and splits.train.image.dtype == np.uint8


def test_the_names_are_those_of_the_set(cifar):
    splits = load(cifar[0])
    assert splits.info.name == 'cifar10' and splits.info.num_classes == 10
    assert splits.info.class_names == (
        'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'
    )  # fmt: skip


def test_the_test_set_has_the_features_of_the_real_cifar10():
    real = tensorflow_datasets.builder_cls('cifar10')
    assert str(real.VERSION) == str(tfds_sets.Cifar10.VERSION) == '3.0.2'
    info = tensorflow_datasets.builder('cifar10', data_dir='/nowhere').info
    assert {name: repr(feature) for name, feature in info.features.items()} == {
        name: repr(feature) for name, feature in tfds_sets.CIFAR10_FEATURES.items()
    }


def test_the_order_is_the_same_every_time(cifar):
    first, second = load(cifar[0]), load(cifar[0])
    np.testing.assert_array_equal(first.train.image, second.train.image)
    np.testing.assert_array_equal(first.test.label, second.test.label)


def test_neither_tensorflow_nor_jax_is_needed_and_nothing_is_printed(cifar):
    code = (
        'import sys; from types import SimpleNamespace as N; from kd_jax import data; '
        f'data.load(N(source="tfds", name="cifar10", path={str(cifar[0])!r}, val_share=.1, '
        'val_seed=0, labels_per_class=0, labels_seed=0, mean=(), std=())); '
        'assert not {"tensorflow", "jax"} & set(sys.modules)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_other_messages_of_absl_still_pass(caplog):
    with tfds._no_advice():
        logging.getLogger('absl').warning('the disk is full')
        logging.getLogger('absl').warning('OpenCV is not installed. We recommend')
    logging.getLogger('absl').warning('OpenCV is not installed, again')
    assert [record.getMessage() for record in caplog.records] == [
        'the disk is full',
        'OpenCV is not installed, again',
    ]


def test_a_validation_split_of_the_set_is_used(tmp_path):
    given = {
        'train': examples(40),
        'validation': examples(10, first=1),
        'test': examples(20, first=2),
    }
    tfds_sets.prepare(tmp_path, FEATURES, given)
    splits = load(tmp_path, 'custom', val_share=0.0)
    assert [len(part.label) for part in (splits.train, splits.val, splits.test)] == [40, 10, 20]
    decoded = np.array(tfds_sets.Image.open(io.BytesIO(given['validation'][0]['image'].getvalue())))
    assert decoded.tobytes() in [image.tobytes() for image in splits.val.image]
    assert splits.info.class_names == tuple('0123456789')  # the set has none


def test_validation_is_the_test_split_of_a_set_without_one(tmp_path):
    tfds_sets.prepare(
        tmp_path, FEATURES, {'train': examples(40), 'validation': examples(10, first=1)}
    )
    splits = load(tmp_path, 'custom', val_share=0.25)
    assert [len(part.label) for part in (splits.train, splits.val, splits.test)] == [30, 10, 10]


def test_the_one_image_and_the_one_label_may_have_other_names(tmp_path):
    features = {'photo': FEATURES['image'], 'kind': FEATURES['label']}
    given = {
        split: [{'photo': one['image'], 'kind': one['label']} for one in examples(20)]
        for split in ('train', 'test')
    }
    tfds_sets.prepare(tmp_path, features, given)
    assert load(tmp_path, 'custom').train.image.shape == (16, 32, 32, 3)


def test_the_newest_version_is_read_unless_one_is_named(copy):
    folder, version = copy
    shutil.copytree(version, folder / 'cifar10/3.0.10')
    assert tfds.prepared('cifar10', str(folder)).endswith('/3.0.10')
    assert tfds.prepared('cifar10:3.0.2', str(folder)).endswith('/3.0.2')
    (folder / 'cifar10/incomplete.X_4.0.0').mkdir()
    assert tfds.prepared('cifar10', str(folder)).endswith('/3.0.10')
    assert tfds.prepared('cifar10:1.0.0', str(folder)) == ''


def test_a_config_is_part_of_the_name(cifar, tmp_path):
    for name in ('easy', 'hard'):
        shutil.copytree(cifar[0] / 'cifar10/3.0.2', tmp_path / 'odd' / name / '1.0.0')
    text = sentence(tmp_path, 'odd')
    assert 'configs easy, hard' in text and '--config.data.name=odd/easy' in text
    assert tfds.prepared('odd/hard', str(tmp_path)).endswith('/odd/hard/1.0.0')


# --------------------------------------------------------------------------------------------------
# what is refused


@pytest.mark.parametrize(
    'name', ['', 'a b', '../cifar10', 'huggingface:mnist', 'cifar10:latest', 'a/b/c']
)
def test_a_name_that_tfds_cannot_have_is_refused(name, tmp_path):
    assert f'data.name is {name!r}' in sentence(tmp_path, name)


def test_an_unknown_name_brings_the_close_ones(tmp_path, offline):
    text = sentence(tmp_path, 'cifr10')
    assert (
        "unknown TFDS data set 'cifr10'" in text
        and "did you mean 'cifar10'" in text
        and str(tmp_path) in text
    )


def test_a_set_that_is_not_here_says_what_is_missing_and_how_to_place_it(tmp_path, offline):
    text = sentence(tmp_path)
    assert 'TensorFlow is not installed' in text
    assert 'www.cs.toronto.edu cannot be reached: Network is unreachable' in text
    assert f'not prepared in {tmp_path}' in text
    assert '`pip install tensorflow-cpu`' in text
    assert '`python -m kd_jax.data.tfds cifar10 --data_dir=DIR`' in text
    assert 'copy DIR/cifar10 here and pass --config.data.path=DIR' in text
    assert list(tmp_path.iterdir()) == []


def test_files_that_must_be_fetched_by_hand_are_named(tmp_path, offline):
    text = sentence(tmp_path, 'imagenet2012')
    assert str(tmp_path / 'downloads/manual') in text and 'ILSVRC2012_img_train.tar' in text


def test_a_proxy_is_not_bypassed(tmp_path, offline, monkeypatch):
    monkeypatch.setattr(tfds.urllib.request, 'getproxies', lambda: {'https': 'http://proxy:3128'})
    assert 'reached' not in sentence(tmp_path)


def test_a_failure_within_tfds_becomes_one_sentence(tmp_path, offline, tensorflow, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError('first line\n\tsecond line.\n' + 'x' * 1000)

    monkeypatch.setattr(tfds.socket, 'create_connection', lambda *args: io.BytesIO())
    monkeypatch.setattr(tensorflow_datasets.core.DatasetBuilder, 'download_and_prepare', fail)
    text = sentence(tmp_path)
    assert (
        'RuntimeError: first line second line. xxx' in text
        and len(text) < 800
        and 'kd_jax.data.tfds cifar10' in text
    )


def test_preparing_asks_tfds_for_array_record_in_the_directory_given(
    tmp_path, offline, tensorflow, monkeypatch
):
    asked = []
    monkeypatch.setattr(tfds.socket, 'create_connection', lambda *args: io.BytesIO())
    monkeypatch.setattr(
        tensorflow_datasets.core.DatasetBuilder,
        'download_and_prepare',
        lambda self, **kw: asked.append(self),
    )
    assert tfds.prepare('cifar10', str(tmp_path)) == str(tmp_path / 'cifar10/3.0.2')
    assert [builder.info.file_format.value for builder in asked] == ['array_record']


def test_a_set_in_tfrecord_format_says_how_to_get_array_record(copy):
    folder, version = copy
    path = version / 'dataset_info.json'
    path.write_text(path.read_text().replace('"array_record"', '"tfrecord"'))
    text = sentence(folder)
    assert (
        'tfrecord' in text and 'must be array_record' in text and 'kd_jax.data.tfds cifar10' in text
    )


def test_images_of_different_sizes_are_resized_where_that_is_seen_or_asked(tmp_path):
    features = {'image': tfds_features.Image(shape=(None, None, 3)), 'label': FEATURES['label']}
    tfds_sets.prepare(
        tmp_path / 'a', features, {'train': [*examples(10), *examples(5, 30)], 'test': examples(5)}
    )
    assert load(tmp_path / 'a', 'custom').train.image.shape[1:] == (32, 32, 3)
    tfds_sets.prepare(tmp_path / 'b', features, {'train': examples(10), 'test': examples(5, 30)})
    text = sentence(tmp_path / 'b', 'custom')
    assert '(30, 32, 3)' in text and 'resize' in text
    assert load(tmp_path / 'b', 'custom', size=20).test.image.shape == (5, 20, 20, 3)
    tfds_sets.prepare(tmp_path / 'c', features, {'train': examples(10), 'test': examples(5)})
    assert load(tmp_path / 'c', 'custom').test.image.shape == (5, 32, 32, 3)


def test_a_set_beyond_memory_is_streamed(cifar, monkeypatch):
    whole = load(cifar[0])
    for module in (tfds, folder):
        monkeypatch.setattr(module, 'MAX_BYTES', 310 * 32 * 32 * 3 - 1)
    streamed = load(cifar[0])
    assert streamed.info == whole.info and streamed.train.streamed
    with pytest.raises(UserError, match='310 images'):
        load(cifar[0], placement='resident')
    for module in (tfds, folder):
        monkeypatch.setattr(module, 'MAX_BYTES', 310 * 32 * 32 * 3)
    assert len(load(cifar[0]).test.image) == 60


def test_records_and_arrays_give_the_same_images(cifar):
    """Also read by another process; their labels are read once and kept."""
    arrays, records = load(cifar[0]), load(cifar[0], placement='stream')
    for split in ('train', 'val', 'test'):
        source, expected = records.source(split), arrays.source(split)
        np.testing.assert_array_equal(source.labels, expected.labels)
        order = Share(TrainOrder(np.arange(len(source)), len(source), 16, 0), 0, 16)
        for workers in (0, 1) if split == 'val' else (0,):
            with Feed(Reading(source, order, 0, 3), workers=workers) as ahead:
                for _ in range(3):
                    batch = ahead.get()[0]
                    np.testing.assert_array_equal(batch['image'], expected.image[batch['index']])
    assert records.checksum != arrays.checksum


def test_a_test_split_without_labels_gives_way_to_the_validation_split(tmp_path):
    """As that of ImageNet."""
    hidden = [example | {'label': -1} for example in examples(5)]
    splits = {'train': examples(20), 'validation': examples(7), 'test': hidden}
    tfds_sets.prepare(tmp_path, FEATURES, splits)
    for placement in ('auto', 'stream'):
        found = load(tmp_path, 'custom', placement=placement)
        assert found.info.count == {'train': 16, 'labelled': 16, 'val': 4, 'test': 7}


@pytest.mark.parametrize(
    'features, words',
    [
        (
            {'image': FEATURES['image'], 'label': tfds_features.Scalar(np.int64)},
            ['one ClassLabel', "'label'", 'Scalar'],
        ),
        (
            {'image': tfds_features.Tensor(shape=(2,), dtype=np.int64), 'label': FEATURES['label']},
            ['one Image', 'Tensor'],
        ),
        (
            {'a': FEATURES['image'], 'b': FEATURES['image'], 'label': FEATURES['label']},
            ['one Image', 'a (Image), b (Image)'],
        ),
    ],
)
def test_a_set_without_one_image_and_one_class_label_is_refused(tmp_path, features, words):
    def value(name):
        if isinstance(features[name], tfds_features.Image):
            return tfds_sets.png(np.zeros((32, 32, 3), np.uint8))
        return np.zeros(2, np.int64) if name == 'image' else 1

    tfds_sets.prepare(tmp_path, features, {'train': [{name: value(name) for name in features}]})
    text = sentence(tmp_path, 'custom')
    assert all(word in text for word in words), text


def test_a_set_without_a_split_to_test_on_is_refused(tmp_path):
    tfds_sets.prepare(tmp_path, FEATURES, {'train': examples(10), 'extra': examples(5)})
    text = sentence(tmp_path, 'custom')
    assert 'splits extra, train' in text


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 255
    path.write_bytes(held)


def garble(path):
    path.write_bytes(b'{')


@pytest.mark.parametrize('damage', [Path.unlink, cut, flip, garble])
def test_a_damaged_data_file_is_refused(copy, damage):
    folder, version = copy
    damage(version / 'cifar10-train.array_record-00000-of-00001')
    text = sentence(folder)
    assert f'the train split of {version} cannot be read' in text and 'again' in text


@pytest.mark.parametrize('file', ['dataset_info.json', 'features.json'])
@pytest.mark.parametrize('damage', [cut, garble])
def test_a_damaged_description_is_refused(copy, file, damage):
    folder, version = copy
    damage(version / file)
    text = sentence(folder)
    assert f'{version / file} is not what it should be' in text and 'again' in text


# --------------------------------------------------------------------------------------------------
# the command


def test_the_command_prints_where_a_prepared_set_is(cifar):
    command = [sys.executable, '-m', 'kd_jax.data.tfds', 'cifar10', f'--data_dir={cifar[0]}']
    environment = os.environ | {'PYTHONWARNINGS': 'default'}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f'{cifar[0]}/cifar10/3.0.2\n', '')


def test_the_command_ends_with_2_and_one_sentence(tmp_path, capsys, offline):
    with pytest.raises(SystemExit, match='2'):
        tfds.main(['cifar10', f'--data_dir={tmp_path}'])
    out, err = capsys.readouterr()
    assert out == '' and err.count('\n') == 1 and 'TensorFlow is not installed' in err
