"""Stored soft targets in a config: what is refused before anything trains."""

import pytest
from helpers import random_splits, save_npz
from studies import student_study, train

from kd_jax.errors import UserError


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return save_npz(tmp_path_factory.mktemp('data') / 'three.npz', random_splits(train=400))


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (
            {'soft_targets': 'all'},
            r"runs.student.soft_targets is 'all'; it must be 'live', 'exact' or a number of views",
        ),
        (
            {'soft_targets': '0'},
            "must be 'live', 'exact' or a number of views up to 65536, such as '8'",
        ),
        ({'soft_targets': '-2'}, 'a number of views'),
        (
            {'soft_targets': 'exact', 'soft_targets_dtype': 'float8'},
            "unknown value of .*soft_targets_dtype 'float8'",
        ),
        (
            {'soft_targets': 'exact', 'soft_targets_top_k': 3},
            'soft_targets_top_k is 3; it must be 0 .all classes. or less .* 3',
        ),
        ({'soft_targets': 'exact', 'soft_targets_top_k': -1}, 'soft_targets_top_k is -1'),
        (
            {'soft_targets': 'exact', 'augment.rotate': 5.0},
            "'exact', but augment.rotate makes more views",
        ),
        ({'soft_targets': 'exact', 'augment.cutout': 2}, 'augment.cutout makes more views'),
        ({'soft_targets': '4', 'augment.mixup': 0.2}, 'augment.mixup=0.2 every image is mixed'),
        (
            {'soft_targets': '4', 'augment.mixup': 0.2, 'augment.cutmix': 1.0},
            'augment.mixup=0.2 and augment.cutmix=1.0 every .* set augment.mixup=0. and augm',
        ),
        (
            {'soft_targets': 'exact', 'augment.random_resized_crop': 0.1, 'augment.crop': 0},
            'augment.random_resized_crop makes more views',
        ),
        (
            {'soft_targets': '4', 'teachers': (), 'objective.kl.weight': 0.0},
            'the run has no teacher',
        ),
        (
            {'soft_targets': '4', 'teachers': ('self:peer',)},
            r"its teachers \('self:peer',\) learn with it: name a trained run",
        ),
    ],
    ids=str,
)
def test_bad_values_are_refused_in_one_sentence(data, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        train(student_study(data, student=changes), tmp_path)
