"""Steps on batches of which a part has no labels, and from teachers of other classes."""

import dataclasses
import io

import jax
import numpy as np
import pytest
import steps
from helpers import random_splits
from PIL import Image
from steps import largest_difference, run_of, start, train

from kd_jax import evaluation
from kd_jax.data import ArraySource
from kd_jax.data.decoding import Form
from kd_jax.data.joined import JoinedSource
from kd_jax.data.photos import StreamSource
from kd_jax.errors import UserError

DISTILLED = {'cross_entropy': {'weight': 0.5}, 'kl': {'weight': 0.5, 'tau': 2.0}}
MORE = 40


def dataset(seed=1, streamed=False):
    """60 labelled images and 40 others."""
    splits = random_splits(unlabelled=6)
    more = random_splits(seed=seed, train=MORE).train.image
    second = ArraySource(more, np.full(MORE, -1, np.int32))
    if streamed:
        reader = Held(tuple(map(png, more)))
        second = StreamSource(reader, second.label, np.arange(MORE), Form(8, 1))
    info = dataclasses.replace(splits.info, count={**splits.info.count, 'unlabelled': MORE})
    return dataclasses.replace(splits, info=info, train=JoinedSource.of(splits.train, second))


@dataclasses.dataclass(frozen=True)
class Held:
    """Files that are in memory."""

    files: tuple[bytes, ...]

    def content(self, number):
        return self.files[number]


def png(image):
    file = io.BytesIO()
    Image.fromarray(image[..., 0]).save(file, 'PNG')
    return file.getvalue()


def learned(
    mode='jit', devices=1, given=None, objective=None, augment=None, workdir=None, **changes
):
    """(executor after 8 steps, its state, losses, validation)."""
    changes = {'teachers': ('teacher',), 'data.unlabelled_share': 0.4, **changes}
    run = run_of(changes, objective or DISTILLED, augment, 'tiny')
    executor, _ = start(run, given or dataset(), mode, devices, steps=4, workdir=workdir)
    try:
        metrics = train(executor, (4, 4))
        (state,) = executor.states()
        val = evaluation.finish(executor.evaluate('val')[0])
    finally:
        executor.placement.close()
    return executor, (jax.device_get(state), metrics, val)


@pytest.mark.usefixtures('tiny_model')
def test_where_the_images_lie_makes_no_difference():
    """With mixtures and repeats, of which some are of an image with and one without a label."""
    augment = {'crop': 1, 'mixup': 0.5, 'repeats': 2}
    first, resident = learned(augment=augment)
    assert first.run.timing.steps_per_epoch == 60 / 10  # of 16 images 6 are the others
    order = first._order.at(3)['index']
    assert (order[:10] < 60).all() and (order[10:] >= 60).all()
    stream, found = learned(given=dataset(streamed=True), augment=augment)
    assert stream.run.images.placement == 'stream'
    assert largest_difference(found, resident) <= 2e-5
    parts, found = learned('pmap', 4, augment=augment, **{'data.placement': 'sharded'})
    assert parts.run.images.placement == 'sharded'
    assert largest_difference(found, resident) <= 2e-5


@pytest.mark.usefixtures('tiny_model')
def test_labels_count_of_the_labelled_images_and_the_teacher_of_all(tmp_path):
    live, (state, (metrics,), _) = learned(**{'optim.learning_rate': 0.01})
    prepared = live.prepared(0)
    assert np.asarray(prepared['label'])[0, 10:].tolist() == [-1] * 6
    loss, said = live.run.step.objective, prepared['teachers']['teacher'].logits[0]
    masks = {name: np.asarray(mask[0]) for name, mask in loss.masks(prepared).items()}
    assert masks['kl'].tolist() == [1] * 16 and not masks['cross_entropy'][10:].any()
    assert np.asarray(said).shape == (16, 3)
    # the teacher's answers, kept: of the images without labels, too
    wanted = {'soft_targets': 'exact', 'soft_targets_dtype': 'float32', 'optim.learning_rate': 0.01}
    kept, (again, (same,), _) = learned(workdir=tmp_path, **wanted)
    assert kept._teachers.variables['teacher']['logits'].shape == (60 + MORE, 1, 3)
    assert largest_difference(state.params, again.params) <= 2e-5
    assert largest_difference(metrics, same) <= 1e-4
    # other images, other weights
    _, (other, (different,), _) = learned(given=dataset(seed=2), **{'optim.learning_rate': 0.01})
    assert largest_difference(state.params['student'], other.params['student']) > 1e-4
    assert abs(metrics['kl'][0] - different['kl'][0]) > 1e-4


@pytest.mark.usefixtures('tiny_model')
def test_runs_of_labels_alone_do_not_see_the_others():
    """They are what they would be without."""
    labels = {'cross_entropy': {'weight': 1.0}}
    with_more, without = (
        steps.build.run_spec(
            'own', run_of({}, labels, model='tiny'), of, {}, steps.Parallel('jit', 1)
        )
        for of in (dataset(), random_splits(unlabelled=6))
    )
    assert with_more.dataset.info == without.dataset.info and len(with_more.dataset.train) == 60
    np.testing.assert_array_equal(with_more.pool, np.arange(6, 60))
    assert with_more.timing == without.timing
    distilled = run_of({'teachers': ('teacher',), 'batch_size': 1}, model='tiny')
    with pytest.raises(UserError, match='batch size is 1, which leaves no place'):
        start(distilled, dataset())
    repeated = run_of({'teachers': ('teacher',)}, None, {'repeats': 8}, 'tiny')
    with pytest.raises(UserError, match=r'repeats is 8 in parts of a batch .* of 8; .*take fewer'):
        start(repeated, dataset())


@pytest.mark.usefixtures('tiny_model')
def test_a_teacher_of_other_classes_teaches_by_its_features(monkeypatch):
    usual = steps.teachers_of

    def others(run, info):
        return usual(run, dataclasses.replace(info, num_classes=5, class_names=tuple('vwxyz')))

    monkeypatch.setattr(steps, 'teachers_of', others)
    objective = {'cross_entropy': {}, 'at': {'weight': 100.0}, 'sp': {'weight': 10.0}}
    executor, (_, (metrics,), val) = learned(objective=objective)
    assert executor._teachers.logits('val') is None and 'teacher' not in val
    assert np.isfinite(metrics['loss']).all() and metrics['at'][-1] < metrics['at'][0]
    run = {'teachers': ('teacher',)}
    with pytest.raises(
        UserError, match='has 5 classes.*: of the objective, kl learns from logits$'
    ):
        start(run_of(run, DISTILLED, model='tiny'), dataset())
    objective = {'cross_entropy': {}, 'at': {}}
    with pytest.raises(UserError, match="which keeps logits, but the teacher .* set it to 'live'"):
        start(run_of(run | {'soft_targets': 'exact'}, objective, model='tiny'), dataset())
