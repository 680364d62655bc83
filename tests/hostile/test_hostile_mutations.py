"""Whatever stands in a file that was valid: it is read, or refused by one sentence, soon, in little
memory, and nothing is changed. KD_JAX_EXAMPLES=5000 tries that many of each kind.
"""

import contextlib
import io
import json
import shutil
import signal
import struct
import sys
from functools import partial
from types import SimpleNamespace

import mutations
import pytest
import torch_files
from helpers import random_splits, save_npz
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused_or_taken, snapshot
from safetensors.numpy import save_file
from studies import config_of, search_of, student_study, train

from kd_jax import data as data_lib
from kd_jax import models, pretrained, report, trained
from kd_jax.checkpoint import Checkpoints, Damaged
from kd_jax.config import upgraded
from kd_jax.errors import UserError
from kd_jax.target_store import TargetStore
from kd_jax.train_log import Progress
from kd_jax.workdir import RunDirectory


class TooLong(BaseException):
    pass


def stop(*_):
    raise TooLong


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    """Of every kind one: a workdir of two runs, soft targets, a search; data; weights."""
    folder = tmp_path_factory.mktemp('original')
    data = save_npz(folder / 'three.npz', random_splits())
    train(config_of(data, alone=(None, {'epochs': 2.0, 'eval_every': 1.0})), folder / 'w')
    taught = student_study(data, ('teacher',), student={'soft_targets': 'exact', 'epochs': 1.0})
    with taught.unlocked():
        taught.runs.teacher.epochs = 1.0
    train(taught, folder / 't')
    search = search_of(data, folder / 's', together=2)
    for trial in search._ask(2):
        trial.report(0.25, 3)
        search.study.tell(trial, 0.5)
    images = folder / 'idx'
    images.mkdir()
    for part, count in (('train', 6), ('t10k', 3)):
        head = struct.pack('>4I', 2051, count, 4, 4)
        (images / f'{part}-images-idx3-ubyte').write_bytes(head + bytes(range(count * 16)))
        labels = struct.pack('>2I', 2049, count) + bytes(k % 3 for k in range(count))
        (images / f'{part}-labels-idx1-ubyte').write_bytes(labels)
    state = torch_files.cifar_resnet(1, 3)
    (folder / 'weights.pth').write_bytes(torch_files.state_dict(state))
    save_file(state, folder / 'weights.safetensors')
    return folder


def tried(original, tmp_path, file, changes, read, draw):
    """Changes the file in a copy of what is beside it, and reads it."""
    part = file.split('/')[0]
    copy = tmp_path / part
    if not copy.exists():
        if (original / part).is_dir():
            shutil.copytree(original / part, copy)
        else:
            shutil.copy(original / part, copy)
    path, whole = tmp_path / file, (original / file).read_bytes()
    path.write_bytes(draw.draw(changes(whole)))
    before = snapshot(tmp_path)
    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    try:
        if refused_or_taken(partial(read, tmp_path)) is not None:
            assert snapshot(tmp_path) == before
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        path.write_bytes(whole)


def load(source, path):
    fields = {'val_share': 0.2, 'val_seed': 0, 'labels_per_class': 0, 'labels_seed': 0}
    fields |= {'source': source, 'path': str(path), 'name': '', 'mean': (), 'std': ()}
    return data_lib.load(SimpleNamespace(**fields))


def told(command, *arguments):
    """A command in this process; its sentence becomes a `UserError` again."""
    argv, sys.argv = sys.argv, [command.__module__, *map(str, arguments)]
    try:
        with (
            contextlib.redirect_stderr(io.StringIO()) as said,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            command()
    except SystemExit as ended:
        assert ended.code == 2 and said.getvalue().startswith('error: '), said.getvalue()
        assert said.getvalue().count('\n') == 1
        raise UserError(said.getvalue()) from None
    finally:
        sys.argv = argv


def config_json(folder):
    run = RunDirectory(folder / 'w/alone/seed0')
    trained.load(run)
    config = upgraded(run.info()['config'])
    if 'data' in config:  # an imported run has none
        data_lib.load(config['data'])


def result_json(folder):
    run = RunDirectory(folder / 'w/alone/seed0')
    trained.load(run)
    result = run.result()
    runs = {'alone': {'model': {}, 'teachers': [], 'init': '', 'seeds': [0]}}
    rows, gained = report.aggregate([result]), report.gains([result], runs)
    report.markdown(rows, gained)


def results_json(folder):
    told(report.main, folder / 'w')


def metrics_jsonl(folder):
    run = RunDirectory(folder / 'w/alone/seed0')
    with contextlib.suppress(UserError):  # which says that it is not what was logged
        report.read_metrics(run.path)
    (run.path / 'result.json').rename(run.path / 'aside')
    try:  # as if it were to go on
        report.read_metrics(run.path)
    finally:
        (run.path / 'aside').rename(run.path / 'result.json')
    whole = run.metrics.read_bytes()
    run.forget_after(3)
    run.metrics.write_bytes(whole)
    run.forget_after(3, [])


def soft_targets(folder, original):
    (path,) = (folder / 't').rglob('manifest.json')
    manifest = json.loads((original / path.relative_to(folder)).read_text())
    store = TargetStore(path.parent, manifest)
    store.complete()
    store.read()


def checkpoint(folder):
    place = folder / 'w/alone/seed0/checkpoints'
    with Checkpoints(place, read_only=True, record=Progress) as checkpoints:
        try:
            for step in checkpoints.steps():
                checkpoints.read(step)
        except Damaged as error:
            raise UserError(error) from error


def without_checksum(content):
    """Of the record of a checkpoint, as earlier versions wrote it: anything may stand in it."""
    meta = json.loads(content)
    del meta['meta_checksum']
    return mutations.record(json.dumps(meta).encode()) | mutations.record(content)


RUN = 'w/alone/seed0'
READERS = {
    'config.json': (f'{RUN}/config.json', mutations.record, config_json),
    'result.json': (f'{RUN}/result.json', mutations.record, result_json),
    'results.json': ('w/results.json', mutations.record, results_json),
    'metrics.jsonl': (f'{RUN}/metrics.jsonl', mutations.log, metrics_jsonl),
    'a checkpoint': ('META', without_checksum, checkpoint),
    'npz': ('three.npz', mutations.archive, lambda folder: load('npz', folder / 'three.npz')),
    'images': (
        'idx/train-images-idx3-ubyte',
        lambda content: mutations.with_head(content, 16),
        lambda folder: load('idx', folder / 'idx'),
    ),
    'labels': (
        'idx/train-labels-idx1-ubyte',
        lambda content: mutations.with_head(content, 8),
        lambda folder: load('idx', folder / 'idx'),
    ),
    'pth': (
        'weights.pth',
        mutations.archive,
        lambda folder: pretrained.load(folder / 'weights.pth', {'name': 'resnet8'}),
    ),
    'safetensors': (
        'weights.safetensors',
        mutations.safetensors,
        lambda folder: pretrained.load(folder / 'weights.safetensors', {'name': 'resnet8'}),
    ),
}


@pytest.mark.parametrize('kind', READERS)
def test_a_file(original, tmp_path, kind, monkeypatch):
    # Weights that fit to no model are compared with all of the table.
    few = {name: models.MODELS[name] for name in ('cnn', 'resnet8')}
    monkeypatch.setattr(models, 'MODELS', few)
    file, changes, read = READERS[kind]
    if file == 'META':
        file = max(
            path for path in (original / RUN).rglob('metadata') if path.parent.name == 'meta'
        )
        file = str(file.relative_to(original))
    tries(original, tmp_path, file, changes, read)


@pytest.mark.parametrize('file', ['manifest.json', 'chunks.jsonl'])
def test_soft_targets(original, tmp_path, file):
    (path,) = (original / 't').rglob(file)
    changes = mutations.log if file == 'chunks.jsonl' else mutations.record
    read = partial(soft_targets, original=original)
    tries(original, tmp_path, str(path.relative_to(original)), changes, read)


def test_a_journal(original, tmp_path):
    def read(folder):
        search = search_of(original / 'three.npz', folder / 's', together=2)
        search._ask(4)

    tries(original, tmp_path, 's/search.journal', mutations.log, read)


def tries(original, tmp_path, file, changes, read):
    @mutations.several
    @given(st.data())
    def one(draw):
        tried(original, tmp_path, file, changes, read, draw)

    one()
