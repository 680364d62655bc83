"""What a config says is complete and has an effect."""

import pytest

from configs import common
from kd_jax import optim
from kd_jax.config_check import _SWITCHES, check_run, check_study, without_effect
from kd_jax.errors import UserError

# A switch -> a value for it, and fields with which it has an effect.
VALUES = {
    'optim.learning_rate': (0.3, {'optim.teacher_factor': 2.0}),
    'optim.momentum': (0.5, {'optim.name': 'adam'}),
    'optim.nesterov': (True, {'optim.name': 'adamw'}),
    'optim.b1': (0.5, {'optim.name': 'sgd'}),
    'optim.b2': (0.5, {'optim.name': 'sgd'}),
    'optim.eps': (0.5, {'optim.name': 'sgd'}),
    'optim.step_epochs': ((1.0,), {'optim.schedule': 'cosine'}),
    'optim.step_factor': (0.5, {'optim.schedule': 'constant'}),
    'optim.final_factor': (0.5, {'optim.schedule': 'constant'}),
    'optim.decay_norm_and_bias': (False, {'optim.weight_decay': 0.0}),
    'snapshot_epochs': (2.0, {'teachers': ('self:ema',)}),
    'soft_targets_dtype': ('float32', {'soft_targets': 'live'}),
    'soft_targets_top_k': (5, {'soft_targets': 'live'}),
    'augment.rand_augment_magnitude': (5.0, {'augment.rand_augment': 0}),
    'data.size': (32, {'data.source': 'npz'}),
    'data.labels': ('x.csv', {'data.source': 'npz'}),
    'data.test_share': (0.5, {'data.source': 'npz'}),
    'data.on_bad_image': ('error', {'data.source': 'npz'}),
    'data.cache': ('off', {'data.source': 'npz'}),
    'data.resize': (40, {'data.source': 'idx'}),
    'data.interpolation': ('bilinear', {'data.source': 'digits'}),
    'data.workers': (2, {'data.placement': 'host'}),
    'data.labels_seed': (3, {'data.labels_per_class': 0}),
    'data.unlabelled_share': (0.25, {'data.unlabelled': ''}),
    'data.unlabelled_crops': (50, {'data.unlabelled': 'more.npz'}),
}
# And fields with which it has one.
WITH_EFFECT = {
    'optim.learning_rate': {'optim.teacher_factor': 0.0},
    'optim.momentum': {'optim.name': 'sgd'},
    'optim.nesterov': {'optim.name': 'sgd'},
    'optim.b1': {'optim.name': 'adam'},
    'optim.b2': {'optim.name': 'adamw'},
    'optim.eps': {'optim.name': 'adam'},
    'optim.step_epochs': {'optim.schedule': 'step'},
    'optim.step_factor': {'optim.schedule': 'step'},
    'optim.final_factor': {'optim.schedule': 'cosine'},
    'optim.decay_norm_and_bias': {'optim.weight_decay': 0.1},
    'snapshot_epochs': {'teachers': ('self:snapshot',)},
    'soft_targets_dtype': {'soft_targets': 'exact'},
    'soft_targets_top_k': {'soft_targets': '8'},
    'augment.rand_augment_magnitude': {'augment.rand_augment': 1},
    'data.labels_seed': {'data.labels_per_class': 5},
    'data.unlabelled_share': {'data.unlabelled': 'more'},
    'data.unlabelled_crops': {'data.unlabelled': 'photo.jpg'},
    **{f'data.{name}': {'data.source': 'folder'} for name in ('labels', 'test_share', 'cache')},
    **{
        f'data.{name}': {'data.source': 'tfds'}
        for name in ('size', 'resize', 'interpolation', 'on_bad_image')
    },
    'data.workers': {'data.placement': 'stream'},
}


def a_run(**fields):
    run = common.run(common.study(), 'cnn').copy_and_resolve_references()
    run.update_from_flattened_dict(fields)
    return run


def of_one(**fields):
    """What is said of a run that learns from labels, beside one that needs none."""
    other = a_run()
    other.objective = common.distillation()
    other.data.unlabelled = fields.get('data.unlabelled', '')
    return without_effect({'one': a_run(**fields), 'other': other})


def test_every_switch_is_tried():
    assert set(VALUES) == set(WITH_EFFECT) == set(_SWITCHES)


@pytest.mark.parametrize('path', VALUES)
def test_a_value_whose_switch_is_off_is_told(path):
    value, off = VALUES[path]
    (sentence,) = of_one(**off, **{path: value})
    assert sentence.startswith(f'in one: {path} is {value!r}, which has no effect; it has one only')
    assert not of_one(**off)
    assert not of_one(**WITH_EFFECT[path], **{path: value})


def test_images_without_labels_want_a_term_that_needs_none():
    runs = {name: a_run(**{'data.unlabelled': 'more'}) for name in ('one', 'two')}
    (sentence,) = without_effect(runs)
    assert sentence.startswith("in one, two: data.unlabelled is 'more', which has no effect; it")
    runs['two'].objective = common.distillation()
    assert not without_effect(runs)
    runs['two'].objective.kl.only_where = 'teacher_right'
    assert len(without_effect(runs)) == 1


def test_runs_with_the_same_value_are_told_once():
    runs = {name: a_run(**{'optim.b1': 0.5}) for name in ('one', 'two')}
    (sentence,) = without_effect(runs)
    assert sentence.startswith('in one, two: optim.b1 is 0.5')


def test_a_ramp_of_no_epochs_starts_nowhere():
    loss = {'loss': 'cross_entropy', 'weight': 1.0, 'ramp_from': 0.5, 'ramp_epochs': 0.0}
    run = a_run()
    run.objective.one = loss
    (sentence,) = without_effect({'one': run})
    assert 'objective.one.ramp_from is 0.5, which has no effect' in sentence
    run.objective.one.ramp_epochs = 2.0
    assert not without_effect({'one': run})


def places(node, path=()):
    """All fields of a study, but the names of runs and of losses, which are the user's own."""
    for name in node:
        if path not in (('runs',), ('runs', 'one', 'objective')):
            yield (*path, name)
        if hasattr(node[name], 'keys'):
            yield from places(node[name], (*path, name))


def study_of_one():
    study = common.study()
    study.runs.one = common.run(study, 'cnn', common.labels())
    return study.copy_and_resolve_references()


PLACES = [place for place in places(study_of_one()) if len(place) < 5]


@pytest.mark.parametrize('place', PLACES, ids='.'.join)
def test_a_field_that_is_deleted_is_named(place):
    node = study = study_of_one()
    for name in place[:-1]:
        node = node[name]
    del node[place[-1]]
    with pytest.raises(UserError) as caught:
        check_study(study)
        check_run('one', study.runs.one)
    assert f'has no field {place[-1]!r}; start from kd_jax.config' in str(caught.value)


@pytest.mark.parametrize('patterns', [('.*',), ('a', 'b')])
def test_a_student_of_which_nothing_trains_is_refused(patterns):
    student = {'a': {'kernel': 0}, 'b': {'bias': 0}}
    settings = optim.Settings(freeze=patterns)
    with pytest.raises(UserError, match='leaves no parameter that trains'):
        optim.check_trains(optim.frozen_mask(student, patterns), settings)
    optim.check_trains(optim.frozen_mask(student, ('a',)), settings)
