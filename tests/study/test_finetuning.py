"""A run that starts from PyTorch weights sees images as those do."""

import json

import jax
import numpy as np
import pytest
import torchvision_weights
from helpers import random_splits, save_npz
from studies import config_of, train

from kd_jax import config as common
from kd_jax import evaluate, pretrained, study
from kd_jax.errors import UserError

MODEL = torchvision_weights.MODEL
IMAGENET = pretrained.input_of('resnet18')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """With 8x8 images of three channels and random weights of a narrow resnet18."""
    folder = tmp_path_factory.mktemp('finetune')
    save_npz(folder / 'three.npz', random_splits(channels=3))
    torchvision_weights.write(folder / 'weights.pth', 7)
    return folder


def finetuning(folder, **changes):
    run = {f'model.{key}': value for key, value in MODEL.items()}
    run |= {'init': str(folder / 'weights.pth'), 'epochs': 1.0} | changes
    return config_of(folder / 'three.npz', student=(None, run))


def seen_by(config, folder, capsys):
    made = study.Study(config, folder / 'checked')
    made.check()
    return made.specs['student'].sees, capsys.readouterr().out


def test_it_sees_the_size_and_the_normalisation_of_the_weights_and_says_so(folder, capsys):
    sees, said = seen_by(finetuning(folder), folder, capsys)
    assert sees.image_shape == (224, 224, 3) and sees.num_classes == 3
    assert (sees.mean, sees.std) == (IMAGENET['mean'], IMAGENET['std'])
    assert 'student sees images of 224 x 224 pixels with the mean (0.485, 0.456, 0.406), as' in said


def test_what_the_run_or_the_data_say_goes_before(folder, capsys):
    own = {'size': 40, 'data.mean': (0.1, 0.2, 0.3), 'data.std': (1.0, 1.0, 1.0)}
    sees, _ = seen_by(finetuning(folder, **own), folder, capsys)
    assert sees.image_shape == (40, 40, 3)
    assert (sees.mean, sees.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    sees, said = seen_by(finetuning(folder, init='', size=16), folder, capsys)
    assert sees.image_shape == (16, 16, 3) and len(sees.mean) == 3 and 'sees' not in said


def test_it_trains_is_evaluated_and_teaches_in_that_size(folder):
    config = finetuning(folder, size=32)
    config.unlock()
    config.runs.second = common.run(config, 'cnn', common.distillation())
    config.runs.second.update_from_flattened_dict(
        {'teachers': ('student',), 'epochs': 1.0, 'batch_size': 20, 'model.width': 0.1}
    )
    results = train(config.lock(), folder / 'w')
    info = json.loads((folder / 'w/student/seed0/config.json').read_text())
    assert info['data']['image_shape'] == [32, 32, 3]
    assert info['data']['mean'] == list(IMAGENET['mean'])
    found = evaluate.evaluate_run(folder / 'w/student')
    assert found['nll'] == pytest.approx(results['student', 0]['test']['nll'], rel=1e-5)
    small = train(finetuning(folder, init='', size=8), folder / 'small')['student', 0]
    assert results['student', 0]['flops'] > 4 * small['flops']
    # what is seen is what PyTorch's users normalise: resized, then in the mean and std of ImageNet
    made = study.Study(finetuning(folder, size=32), folder / 'checked')
    made.check()
    network = made.specs['student'].step.students['student']
    image = jax.numpy.full((1, 8, 8, 3), 255.0)
    white = (1 - np.array(IMAGENET['mean'])) / np.array(IMAGENET['std'])
    np.testing.assert_allclose(
        network.normalize(image), np.broadcast_to(white, (1, 32, 32, 3)), rtol=1e-5
    )


def test_a_place_or_a_name_that_the_source_does_not_look_at_is_refused(folder):
    for fields, sentence in (
        ({'source': 'digits', 'path': 'x'}, "data.path is 'x', but data.source is 'digits', which"),
        ({'source': 'npz', 'name': 'cifar10'}, "data.name is 'cifar10', but data.source is 'npz'"),
    ):
        config = common.study()
        config.runs.student = common.run(config, 'cnn')
        config.data.update(fields)
        with pytest.raises(UserError, match=sentence):
            study.Study(config, folder / 'refused')


def test_shares_of_the_epochs_follow_them():
    config = common.study()
    config.runs.student = run = common.run(config, 'cnn', common.distillation())
    run.objective.kl.ramp_epochs = common.share(run, 0.1)
    run.snapshot_epochs = common.share(run, 0.5)
    run.epochs = 8.0
    assert run.objective.kl.ramp_epochs == pytest.approx(0.8) and run.snapshot_epochs == 4.0
    run.snapshot_epochs = 3.0
    run.epochs = 20.0
    assert run.objective.kl.ramp_epochs == 2.0 and run.snapshot_epochs == 3.0
    assert config.copy_and_resolve_references().runs.student.objective.kl.ramp_epochs == 2.0
