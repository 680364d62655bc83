"""Which runs there are, in which order, with how many steps."""

import pytest
from helpers import random_splits, save_npz
from studies import config_of, train

from configs import common
from kd_jax import jobs, study
from kd_jax.errors import UserError


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """60 training images in 3 classes that a small network learns in a few epochs."""
    return save_npz(tmp_path_factory.mktemp('data') / 'three.npz', random_splits())


def test_runs_are_ordered_by_what_they_name_whatever_their_names():
    config = config_of(
        'x',
        a_student=(common.distillation(), {'teachers': ('m_assistant', 'z_teacher/seed1')}),
        m_assistant=(common.distillation(), {'teachers': ('z_teacher',)}),
        z_teacher=(None, {}),
        b_finetuned=(None, {'init': 'a_student'}),
        c_external=(common.distillation(), {'teachers': ('/somewhere/else',)}),
    )
    names = jobs.order(config.runs)
    assert sorted(names) == sorted(config.runs)
    for earlier, later in (
        ('z_teacher', 'm_assistant'),
        ('m_assistant', 'a_student'),
        ('a_student', 'b_finetuned'),
    ):
        assert names.index(earlier) < names.index(later)


def test_a_circle_is_refused_by_name():
    config = config_of(
        'x', a=(common.distillation(), {'teachers': ('b',)}), b=(None, {'init': 'a'})
    )
    with pytest.raises(UserError, match='in a circle: a -> b -> a|in a circle: b -> a -> b'):
        jobs.order(config.runs)


def test_only_labelled_images_are_drawn_where_no_term_uses_the_others(data, tmp_path):
    config = config_of(
        data,
        teacher=(None, {}),
        alone=(None, {'data.labels_per_class': 2}),
        student=(common.distillation(), {'teachers': ('teacher',), 'data.labels_per_class': 2}),
    )
    checked = study.Study(config, tmp_path)
    checked.check()
    assert {name: len(spec.pool) for name, spec in checked.specs.items()} == {
        'teacher': 60,
        'alone': 6,
        'student': 60,
    }
    steps = {name: spec.timing.total_steps for name, spec in checked.specs.items()}
    assert steps == {'teacher': 24, 'alone': 24, 'student': 24}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'batch_size': 21, 'optim.accumulate': 2},
            (
                'a batch of 21 cannot be shared equally by 4 devices in 2 '
                'parts each; take a multiple of 8'
            ),
        ),
        ({'optim.ema_decay': 1.5}, 'ema_decay'),
        ({'patience': -1}, 'patience is -1'),
        ({'seeds': ()}, r'seeds is \(\); it must be one or more different whole numbers'),
        ({'seeds': (0, 0)}, r'seeds is \(0, 0\); it must be one or more different whole numbers'),
        ({'model.dropout': 1.5}, 'dropout'),
        ({'model.width': 0.001}, 'width'),
        ({'augment.crop': -1}, 'augment.crop'),
        ({'augment.mixup': -1.0}, 'augment.mixup'),
        ({'augment.cutout': -2}, 'augment.cutout'),
        ({'augment.cutmix': -1.0}, 'augment.cutmix'),
        ({'augment.repeats': 0}, 'augment.repeats'),
        ({'augment.random_resized_crop': 1.5}, 'augment.random_resized_crop'),
        ({'augment.color_jitter': (0.4, 0.4)}, 'augment.color_jitter'),
        ({'augment.color_jitter': (0.4, 0.4, 0.4, 0.6)}, 'hue .0 to 0.5.'),
        ({'teacher_weights': (1.0,)}, 'teacher_weights'),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else None,
)
def test_values_that_make_no_sense_are_refused_before_training(data, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(config_of(data, alone=(None, changes)), tmp_path)
