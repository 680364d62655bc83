"""Auxiliary heads: their place in the models, the objectives that train them, and the
average of their predictions.
"""

import json
import re
from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quickly, random_splits, save_npz
from small_models import image_of, predict, random_variables, shapes_of
from studies import config_of, train
from test_objectives import cross_entropy_oracle, kl_oracle, make_batch, random_logits, softmax

from configs import common
from kd_jax.errors import UserError
from kd_jax.models import build
from kd_jax.models.common import Exit, Output
from kd_jax.objectives import OBJECTIVES, defaults

B, K, D = 6, 5, 7
LABELS = np.array([0, 4, -1, 2, 2, 1])
NAMES = ('stage1', 'stage2', 'head')


def student(seed=0):
    """An output with two auxiliary heads; the dict is in the order
    that a jitted function returns.
    """
    exits = {
        name: Exit(
            jnp.asarray(random_logits(seed + i)),
            jnp.asarray(random_logits(seed + 10 + i, shape=(B, D))),
        )
        for i, name in enumerate(NAMES)
    }
    return Output(exits['head'].logits, {}, dict(sorted(exits.items())))


def deep_supervision_oracle(out, fields):
    values = [
        cross_entropy_oracle(z, None, LABELS, {'class_weights': ()} | fields)[0]
        for z in out['logits'][:2]
    ]
    return np.mean(values, axis=0)


def self_distillation_oracle(out, fields):
    return np.mean(
        [kl_oracle(z, out['logits'][2], None, fields)[0] for z in out['logits'][:2]], axis=0
    )


def self_hint_oracle(out, fields):
    return np.mean([((p - out['pooled'][2]) ** 2).sum(1) / D for p in out['pooled'][:2]], axis=0)


ORACLES = {
    'deep_supervision': deep_supervision_oracle,
    'self_distillation': self_distillation_oracle,
    'self_hint': self_hint_oracle,
}
CASES = [
    *((name, {}) for name in ORACLES),
    ('deep_supervision', {'label_smoothing': 0.2}),
    ('self_distillation', {'tau': 1.5}),
]


def float64(out):
    return {
        field: [np.float64(getattr(out.heads[name], field)) for name in NAMES]
        for field in ('logits', 'pooled')
    }


def test_every_objective_on_heads_has_an_oracle():
    assert set(ORACLES) == {name for name in OBJECTIVES if OBJECTIVES[name].needs_heads}


@pytest.mark.parametrize(('name', 'fields'), CASES, ids=str)
def test_values_equal_the_formulas_and_the_deepest_head_gets_no_gradient(name, fields):
    term, out = OBJECTIVES[name](**fields), student(3)
    values, gradient = jax.value_and_grad(
        lambda o: term.apply({}, o, None, make_batch(LABELS)).sum()
    )(out)
    got = term.apply({}, out, None, make_batch(LABELS))
    np.testing.assert_allclose(
        got, ORACLES[name](float64(out), defaults(name) | fields), rtol=2e-5, atol=2e-5
    )
    np.testing.assert_allclose(values, np.sum(got), rtol=1e-5)
    assert not np.any(gradient.heads['head'].logits) and not np.any(gradient.heads['head'].pooled)
    for head in ('stage1', 'stage2'):
        assert (
            np.abs(
                gradient.heads[head].pooled if name == 'self_hint' else gradient.heads[head].logits
            ).max()
            > 1e-3
        )


def test_deep_supervision_mixes_the_labels_under_mixup():
    out, mixed = student(5), np.array([1, 1, 0, -1, 2, 3], np.int32)
    batch = make_batch(LABELS, mixed_label=mixed, mix=jnp.float32(0.7))
    got = OBJECTIVES['deep_supervision']().apply({}, out, None, batch)
    want = 0.0
    for share, labels in ((0.7, [0, 4, -1, -1, 2, 1]), (0.3, [1, 1, -1, -1, 2, 3])):
        for z in float64(out)['logits'][:2]:
            want = (
                want
                + share
                / 2
                * cross_entropy_oracle(
                    z, None, labels, {'class_weights': (), 'label_smoothing': 0.0}
                )[0]
            )
    np.testing.assert_allclose(got, want, rtol=2e-5)


@pytest.mark.parametrize(
    ('name', 'shape'), [('resnet14', (4, 8, 8, 3)), ('cifar_mobilenet_v2_x0.5', (4, 16, 16, 3))]
)
def test_heads_leave_the_rest_of_the_model_alone_and_predict_their_mean_probabilities(name, shape):
    plain, heads, average = (
        build(name, K, **more)
        for more in ({}, {'heads': (2, 1)}, {'heads': (2, 1), 'average_heads': True})
    )
    image = image_of(*shape)
    variables = random_variables(heads, shape)
    own = {
        key: {k: v for k, v in tree.items() if not k.startswith('head_')}
        for key, tree in variables.items()
    }
    assert set(variables['params']) - set(own['params']) == {'head_stage1', 'head_stage2'}
    one, several, mean = (
        predict(plain, own, image),
        predict(heads, variables, image),
        predict(average, variables, image),
    )
    np.testing.assert_allclose(one.logits, several.logits, rtol=1e-5, atol=1e-5)
    assert one.heads == {} and set(several.heads) == {'stage1', 'stage2', 'head'}
    np.testing.assert_array_equal(several.heads['head'].logits, several.logits)
    assert several.heads['stage1'].pooled.shape == several.features['pooled'].shape
    p = np.mean([softmax(np.float64(head.logits)) for head in several.heads.values()], axis=0)
    np.testing.assert_allclose(mean.logits, np.log(p), atol=1e-5)
    trained, _ = quickly(partial(average.apply, train=True, mutable=['batch_stats']))(
        variables, image
    )
    # training is left to the terms
    np.testing.assert_array_equal(trained.logits, trained.heads['head'].logits)


def test_gradients_reach_every_parameter_of_the_heads():
    model = build('resnet8', K, heads=(1, 2))
    variables, image = random_variables(model, (4, 8, 8, 3)), image_of(4, 8, 8, 3)

    def loss(params):
        out, _ = model.apply(
            {**variables, 'params': params}, image, train=True, mutable=['batch_stats']
        )
        return sum(
            (head.logits * jnp.arange(20.0).reshape(4, 5)).sum() for head in out.heads.values()
        )

    gradients = flax.traverse_util.flatten_dict(
        quickly(jax.grad(loss))(variables['params']), sep='/'
    )
    assert all(np.abs(g).max() > 0 for g in gradients.values())


def test_a_head_at_a_stage_that_is_not_there_is_refused():
    for heads in ((3,), (1, 9)):
        message = (
            f'auxiliary head at stage {heads[-1]}: this model has 3 stages, the '
            'last of which feeds its own head'
        )
        with pytest.raises(UserError, match=re.escape(message)):
            shapes_of(build('resnet8', K, heads=heads))
    with pytest.raises(UserError, match='average_heads needs auxiliary heads'):
        shapes_of(build('resnet8', K, average_heads=True))


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
