"""Studies whose networks have auxiliary heads."""

import json

import pytest
from helpers import random_splits, save_npz
from studies import config_of, train

from configs import common
from kd_jax.errors import UserError


def test_self_distillation_trains_every_head_and_the_result_lists_them(tmp_path):
    data = save_npz(tmp_path / 'three.npz', random_splits(train=100))
    objective = common.labels()
    objective.deep_supervision = common.term('deep_supervision', weight=0.7)
    objective.self_distillation = common.term('self_distillation', weight=0.3, tau=3.0)
    objective.self_hint = common.term('self_hint', weight=0.03)
    changes = {'model.name': 'resnet8', 'model.heads': (1, 2), 'model.average_heads': True}
    config = config_of(data, own=(objective, changes))
    config.tensorboard = True
    result = train(config, tmp_path / 'w')['own', 0]
    lines = [
        json.loads(line)
        for line in (tmp_path / 'w/own/seed0/metrics.jsonl').read_text().splitlines()
    ]
    assert {'top1_stage1', 'top1_stage2', 'top1_head', 'top1_average'} <= set(lines[-1])
    assert all(not isinstance(value, dict) for line in lines for value in line.values())
    heads = result['test']['heads']
    assert set(heads) == {'stage1', 'stage2', 'head', 'average'}
    assert result['test']['top1'] == heads['average']
    assert min(heads.values()) > 0.7  # three classes: chance is a third


def test_terms_and_heads_that_do_not_belong_together(tmp_path, capsys):
    data = save_npz(tmp_path / 'three.npz', random_splits())
    objective = common.labels()
    objective.self_distillation = common.term('self_distillation')
    with pytest.raises(
        UserError,
        match=r"objective 'self_distillation' needs auxiliary heads, .* "
        r'set runs\.own\.model\.heads',
    ):
        train(config_of(data, own=(objective, {})), tmp_path / 'a')
    train(config_of(data, own=(None, {'model.heads': (1,), 'epochs': 0.3})), tmp_path / 'b')
    assert (
        'no term of runs.own.objective trains the auxiliary heads of cnn' in capsys.readouterr().err
    )
