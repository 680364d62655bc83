"""Teachers that a run makes for itself, in a config: what is refused before anything trains."""

import pytest
from helpers import random_splits, save_npz
from studies import config_of, train

from configs import common
from kd_jax.errors import UserError


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (
            {'teachers': ('self:mean',)},
            "unknown teacher of runs.own 'self:mean'.*known: self:ema, self:peer, self:snapshot",
        ),
        ({'teachers': ('self:snapshot', 'self:snapshot')}, 'names self:snapshot twice'),
        (
            {'teachers': ('self:ema',)},
            'learns from self:ema, but keeps no average; set optim.ema_decay',
        ),
        ({'teachers': ('self:peer', 'self:snapshot')}, 'self:peer does not go with the others'),
        ({'teachers': ('self:peer',), 'peer': 'resnet7'}, "unknown model 'resnet7'"),
        (
            {'peer': 'resnet8', 'teachers': ('self:snapshot',)},
            "peer is 'resnet8', but self:peer is not among its teachers",
        ),
        (
            {'teachers': ('self:snapshot',), 'snapshot_epochs': 0.0},
            'snapshot_epochs is 0.0; it must be greater than 0',
        ),
        (
            {'teachers': ('self:peer',), 'init': 'other'},
            'starts from other, but its peer would start at random',
        ),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_in_one_sentence(tmp_path, changes, words):
    data = save_npz(tmp_path / 'three.npz', random_splits())
    config = config_of(data, own=(common.distillation(), changes), other=(None, {}))
    with pytest.raises(UserError, match=words):
        train(config, tmp_path / 'w')
