"""Photos in ImageNet's two forms, by ImageNet's config but for its sizes: a stream is trained on,
its soft targets are kept, every example is evaluated once; killed, it goes on to the same end.
"""

import json
import signal
import time

import photo_sets
import pytest
import torchvision_weights
from commands import Command
from drill.outcome import differences, outcome

CLASSES, TRAIN, TEST = 12, 8, 3

CONFIG = """
from configs import imagenet
from kd_jax import config as common


def get_config(argument=''):
    config = imagenet.get_config(argument)
    config.teachers.teacher = common.imported({weights!r}, {model!r})
    config.precision, config.tensorboard, config.log_every = 'float32', False, 2
    config.data.size, config.data.resize, config.data.val_share = 32, 40, 0.1
    for run in config.runs.values():
        run.model.name, run.model.width = 'cnn', 0.25
        run.batch_size, run.epochs, run.eval_every = 16, 4.0, 1.0
        run.optim.learning_rate, run.optim.schedule, run.optim.step_epochs = 0.05, 'cosine', ()
    config.runs.student.soft_targets = '2'
    return config
"""


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """The photos in both forms, and the config."""
    place = tmp_path_factory.mktemp('photos')
    photo_sets.folders(place / 'folder', CLASSES, TRAIN, TEST)
    photo_sets.records(place / 'tfds', CLASSES, TRAIN, TEST)
    weights = str(torchvision_weights.write(place / 'weights.pth', CLASSES))
    text = CONFIG.format(weights=weights, model=torchvision_weights.MODEL)
    (place / 'config.py').write_text(text)
    return place


def command(place, form, workdir, *more):
    return Command(
        'kd_jax.main',
        f'--config={place}/config.py:data={form}',
        f'--config.data.path={place / form}',
        f'--workdir={workdir}',
        *more,
    )


def done(begun):
    out, err = begun.communicate(timeout=300)
    assert begun.returncode == 0, err
    return out, err


@pytest.fixture(scope='module', params=['folder', 'tfds'])
def trained(request, place, tmp_path_factory):
    """(form, workdir, what was said)."""
    workdir = tmp_path_factory.mktemp(request.param) / 'w'
    return request.param, workdir, done(command(place, request.param, workdir))


def test_every_example_is_evaluated_once_and_learned_from(trained):
    form, workdir, (out, _) = trained
    name = 'folder' if form == 'folder' else 'imagenet2012'
    assert f'of {name}, streamed; ' in out
    for run in ('teacher', 'alone', 'student'):
        result = json.loads((workdir / run / 'seed0' / 'result.json').read_text())
        assert result['test']['count'] == CLASSES * TEST
        if run != 'teacher':
            assert 0 <= result['data_wait'] < 1


def test_it_is_the_same_when_it_was_killed(trained, place, tmp_path):
    """In the extraction of soft targets and in the training, which goes on in the middle."""
    form, workdir, _ = trained
    again = tmp_path / 'w'
    for sign in ('soft_targets/*/chunks.jsonl', 'student/seed0/checkpoints/*'):
        begun = command(place, form, again)
        while begun.poll() is None and not any(again.rglob(sign)):
            time.sleep(0.02)
        assert begun.poll() is None
        begun.send_signal(signal.SIGKILL)
        begun.communicate(timeout=60)
    done(command(place, form, again))
    assert differences(outcome(workdir), outcome(again)) == []
