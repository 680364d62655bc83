"""Residual adapters, training a part of a model only, and starting from a
model that lacks the new parts.
"""

import re
from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FAST_COMPILE, quickly, random_splits, save_npz
from small_models import image_of, predict, random_variables, shapes_of, size
from studies import config_of, final_params, train

from kd_jax import optim, report
from kd_jax.errors import UserError
from kd_jax.models import build, initial


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep='/')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return save_npz(tmp_path_factory.mktemp('data') / 'three.npz', random_splits(train=100))


@pytest.mark.parametrize(
    ('name', 'depth'), [('cnn', None), ('resnet14', None), ('cifar_mobilenet_v2_x0.5', 0.3)]
)
def test_an_adapter_follows_every_block_and_starts_as_the_identity(name, depth):
    plain, adapted = (build(name, 5, depth=depth, adapter=hidden) for hidden in (0, 3))
    extra = set(flat(shapes_of(adapted)['params'])) - set(flat(shapes_of(plain)['params']))
    modules = {
        path.split('/')[0] for path in flat(shapes_of(plain)['params']) if path.startswith('stage')
    }
    kinds = ('down/kernel', 'down/bias', 'up/kernel', 'up/bias')
    assert extra == {f'{module}_adapter/{kind}' for module in modules for kind in kinds}
    image = image_of(2, 16, 16, 3)
    variables = random_variables(plain, image.shape)
    fresh = initial.draw(lambda key: adapted.init(key, jnp.asarray(image), train=False), (0,))[
        'params'
    ]
    params = flat(fresh) | flat(variables['params'])
    assert all((params[path] == 0).all() for path in extra if '/up/' in path)
    merged = {**variables, 'params': flax.traverse_util.unflatten_dict(params, sep='/')}
    np.testing.assert_array_equal(
        *(
            predict(net, values, image, FAST_COMPILE).logits
            for net, values in ((adapted, merged), (plain, variables))
        )
    )


def test_an_adapter_adds_a_bottleneck_to_its_block():
    model = build('resnet8', 5, adapter=3)
    image = image_of(2, 8, 8, 3)
    variables = random_variables(model, image.shape)
    output = predict(model, variables, image)
    own = {
        key: {k: v for k, v in tree.items() if not k.startswith('stage1_block1_adapter')}
        for key, tree in variables.items()
    }
    zero = jax.tree.map(np.zeros_like, variables['params']['stage1_block1_adapter'])
    before = predict(
        model, {**own, 'params': own['params'] | {'stage1_block1_adapter': zero}}, image
    ).features['stage1']
    a = variables['params']['stage1_block1_adapter']
    before = np.float64(before)
    hidden = np.maximum(before @ a['down']['kernel'][0, 0] + a['down']['bias'], 0)
    want = before + hidden @ a['up']['kernel'][0, 0] + a['up']['bias']
    np.testing.assert_allclose(output.features['stage1'], want, rtol=1e-4, atol=1e-4)
    added = size(variables['params']) - size(shapes_of(build('resnet8', 5))['params'])
    assert added == sum(2 * 3 * c + 3 + c for c in (16, 32, 64))


def test_all_but_freezes_what_no_pattern_matches():
    params = shapes_of(build('resnet8', 5, adapter=3))['params']
    mask = flat(optim.frozen_mask(params, optim.all_but(params, ('.*_adapter', '.*norm', 'head'))))
    for path, frozen in mask.items():
        assert frozen != ('_adapter/' in path or '/norm/' in path or path.startswith('head/')), path
    assert optim.all_but(params, ()) == ()
    with pytest.raises(
        UserError,
        match=(
            r"^optim\.train pattern 'hed' matches no parameter of the "
            r'student; its top-level modules: head'
        ),
    ):
        optim.all_but(params, ('head', 'hed'))
    with pytest.raises(
        UserError, match=re.escape("optim.train pattern '(' is not a regular expression")
    ):
        optim.all_but(params, ('(',))


def test_tuning_adapters_norms_and_head_of_a_trained_model(data, tmp_path, capsys):
    """Only they move; a frozen convolution's weights stay bit for bit; the table
    says how few parameters trained.
    """
    five = save_npz(tmp_path / 'five.npz', random_splits(classes=5, train=100))
    train(
        config_of(five, big=(None, {'model.name': 'resnet8', 'model.width': 0.5, 'epochs': 1.0})),
        tmp_path / 'a',
    )
    changes = {
        'model.name': 'resnet8',
        'model.width': 0.5,
        'model.adapter': 4,
        'init': str(tmp_path / 'a' / 'big'),
        'epochs': 4.0,
    }
    changes['optim.train'] = ('.*_adapter', '.*norm', 'head')
    results = train(config_of(data, tuned=(None, changes)), tmp_path / 'b')
    result = results['tuned', 0]
    said = capsys.readouterr().err
    assert 'has another number of classes (5): the head starts afresh' in said
    assert (
        'these start afresh: stage1_block1_adapter, stage2_block1_adapter, stage3_block1_adapter'
        in said
    )
    before, after = final_params(tmp_path / 'a', 'big'), final_params(tmp_path / 'b', 'tuned')
    trains = re.compile(r'params/(.*_adapter|.*norm|head)|batch_stats')
    same = {path for path in before if np.array_equal(before[path], after[path])}
    assert same == {path for path in before if not trains.match(path)}
    assert result['trainable'] == sum(
        v.size for p, v in after.items() if trains.match(p) and p.startswith('params')
    )
    assert result['params'] == sum(v.size for p, v in after.items() if p.startswith('params'))
    assert result['trainable'] < 0.2 * result['params']
    assert result['test']['top1'] > 0.6
    rows = report.aggregate([result])
    assert 'trainable' in report.markdown(
        rows, []
    ) and f'{result["trainable"]:,}' in report.markdown(rows, [])
    rows[0]['trainable'] = rows[0]['parameters']
    assert 'trainable' not in report.markdown(rows, [])


def test_a_frozen_batch_norm_uses_its_running_statistics_in_training():
    image = 3 + image_of(8, 8, 8, 3)
    for frozen, which in (
        (('stem',), {'stem'}),
        (('(?!head)',), {'stem', 'stage1', 'stage2', 'stage3'}),
    ):
        model = build('resnet8', 5, frozen=frozen)
        variables = random_variables(model, image.shape)
        (output, new), (free, _) = (
            quickly(partial(net.apply, train=True, mutable=['batch_stats']))(variables, image)
            for net in (model, build('resnet8', 5))
        )
        evaluated = predict(model, variables, image)
        moved = {
            path
            for path, value in flat(new['batch_stats']).items()
            if not np.array_equal(value, flat(variables['batch_stats'])[path])
        }
        assert moved == {
            path
            for path in flat(variables['batch_stats'])
            if path.split('/')[0].split('_')[0] not in which
        }
        np.testing.assert_allclose(
            output.features['stem'], evaluated.features['stem'], rtol=1e-4, atol=1e-4
        )
        assert np.abs(free.features['stem'] - evaluated.features['stem']).max() > 0.1
