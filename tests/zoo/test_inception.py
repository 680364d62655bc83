"""Inception-v3 and GoogLeNet: structure, auxiliary heads against float64 numpy, and
the names of published weights.
"""

import math
import re
from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_files
from helpers import quickly
from model_checks import torch_like
from model_reference import Reference, conv_reference
from small_models import image_of, shapes_of, size, traced

from kd_jax import models, pretrained
from kd_jax.errors import UserError
from kd_jax.models import build
from kd_jax.models.googlenet import GoogLeNetAux
from kd_jax.models.inception import InceptionAux
from kd_jax.models.layers import Setting
from kd_jax.pretrained import inception as names


def outputs(name, image, **overrides):
    return traced(build(name, 1000, fast=False, **overrides), image)[0]


@pytest.mark.parametrize(
    ('name', 'side', 'stem', 'stages', 'pooled'),
    [
        ('inception_v3', 75, (7, 192), [(7, 288), (3, 768), (1, 2048)], 2048),
        # 7 -> 4: the last window is cut off
        ('googlenet', 112, (14, 192), [(14, 480), (7, 832), (4, 1024)], 1024),
        ('googlenet', 32, (4, 192), [(4, 480), (2, 832), (1, 1024)], 1024),
        ('googlenet', 15, (2, 192), [(2, 480), (1, 832), (1, 1024)], 1024),
    ],
)
def test_the_feature_shapes_at_other_sizes(name, side, stem, stages, pooled):
    output = outputs(name, (2, side, side, 3), aux=True)
    expected = {
        key: (2, n, n, c)
        for key, (n, c) in zip(('stem', 'stage1', 'stage2', 'stage3'), [stem, *stages], strict=True)
    }
    assert {key: value.shape for key, value in output.features.items()} == expected | {
        'pooled': (2, pooled)
    }
    assert output.logits.shape == (2, 1000)


def test_the_auxiliary_heads_are_there_where_wanted_the_shallowest_first():
    three = outputs('inception_v3', (2, 299, 299, 3)).heads
    assert {key: (head.logits.shape, head.pooled.shape) for key, head in three.items()} == {
        'aux': ((2, 1000), (2, 768)),
        'head': ((2, 1000), (2, 2048)),
    }
    one = outputs('googlenet', (2, 224, 224, 3), aux=True).heads
    assert list(one) == ['aux1', 'aux2', 'head'] and one['aux1'].pooled.shape == one[
        'aux2'
    ].pooled.shape == (2, 1024)
    assert (
        not outputs('inception_v3', (2, 75, 75, 3), aux=False).heads
        and not outputs('googlenet', (2, 15, 15, 3)).heads
    )


# torchvision's published counts with 1000 classes: all weights, and BatchNorm's running statistics.
@pytest.mark.parametrize(
    ('name', 'aux', 'params', 'statistics'),
    [
        ('inception_v3', True, 27_161_264, 36_224),
        ('inception_v3', False, 23_834_568, 34_432),
        ('googlenet', True, 13_004_888, 15_072),
        ('googlenet', False, 6_624_904, 14_560),
    ],
)
def test_the_auxiliary_heads_cost_what_they_cost_in_torchvision(name, aux, params, statistics):
    # the image's size changes no weight
    shapes = shapes_of(build(name, 1000, aux=aux), (1, 96, 96, 3))
    assert (size(shapes['params']), size(shapes['batch_stats'])) == (params, statistics)


@pytest.mark.parametrize(
    ('name', 'first', 'widths'),
    [
        ('inception_v3', ('one', 'three', 'three1'), [192, 256, 288, 288, *[768] * 5, 1280, 2048]),
        ('googlenet', ('one',), [192, 256, 480, 512, 512, 512, 528, 832, 832]),
    ],
)
def test_the_modules_see_the_papers_numbers_of_channels(name, first, widths):
    params = shapes_of(build(name, 10), (1, 75, 75, 3))['params']
    modules = sorted(key for key in params if key.startswith('stage'))
    kernels = [
        next(params[key][unit]['conv']['kernel'] for unit in first if unit in params[key])
        for key in modules
    ]
    assert [kernel.shape[2] for kernel in kernels] == widths


def test_only_the_paper_has_5x5_in_googlenet():
    params = shapes_of(build('googlenet', 10), (1, 32, 32, 3))['params']
    assert params['stage1_block1']['five2']['conv']['kernel'].shape == (3, 3, 16, 32)


class AuxReference(Reference):
    def unit(self, name, x, kernel):
        """ConvBN without padding: of the padded convolution, what the padding does not reach."""
        y = conv_reference(x, self.param(f'{name}/conv/kernel'))
        edge = kernel // 2
        y = y[:, edge : y.shape[1] - edge, edge : y.shape[2] - edge]
        y = (y - self.statistic(f'{name}/norm/mean')) / np.sqrt(
            self.statistic(f'{name}/norm/var') + 1e-3
        )
        return np.maximum(y * self.param(f'{name}/norm/scale') + self.param(f'{name}/norm/bias'), 0)

    def inception(self, x):
        x = self.unit('conv0', averaged(x, 5) if min(x.shape[1:3]) < 17 else windows(x), 1)
        pooled = self.unit('conv1', x, 5).mean(axis=(1, 2))
        return pooled, self.linear('dense', pooled)

    def googlenet(self, x):
        x = self.unit('conv', averaged(x, 4), 1)
        pooled = np.maximum(self.linear('dense1', x.transpose(0, 3, 1, 2).reshape(len(x), -1)), 0)
        return pooled, self.linear('dense2', pooled)


def averaged(x, n):
    """PyTorch's adaptive average pooling to n x n."""
    spans = [
        [slice(i * side // n, math.ceil((i + 1) * side / n)) for i in range(n)]
        for side in x.shape[1:3]
    ]
    return np.stack(
        [np.stack([x[:, r, c].mean(axis=(1, 2)) for c in spans[1]], axis=1) for r in spans[0]],
        axis=1,
    )


def windows(x):
    """5x5 averages, every third."""
    rows, columns = (range(0, side - 4, 3) for side in x.shape[1:3])
    return np.stack(
        [
            np.stack([x[:, i : i + 5, j : j + 5].mean(axis=(1, 2)) for j in columns], axis=1)
            for i in rows
        ],
        axis=1,
    )


@pytest.mark.parametrize(
    ('make', 'reference', 'sides'),
    [
        (
            InceptionAux,
            AuxReference.inception,
            [(17, 17), (23, 20), (16, 30), (8, 8), (3, 5), (1, 1)],
        ),
        (GoogLeNetAux, AuxReference.googlenet, [(14, 14), (4, 4), (9, 6), (3, 1)]),
    ],
)
def test_the_auxiliary_heads_equal_a_float64_forward_pass_at_any_size(make, reference, sides):
    module = make(7, 0.0625, Setting(epsilon=1e-3))
    shapes = jax.eval_shape(
        partial(module.init, train=False), jax.random.key(0), jnp.zeros((2, *sides[0], 6))
    )
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: np.float32(rng.uniform(-0.2, 0.8, leaf.shape)), shapes)
    variables['batch_stats'] = jax.tree.map(np.abs, variables['batch_stats'])
    images = [image_of(2, *side, 6) for side in sides]
    found = quickly(lambda xs: [module.apply(variables, x, train=False) for x in xs])(images)
    for side, x, got in zip(sides, images, found, strict=True):
        pooled, logits = reference(AuxReference(variables), np.float64(x))
        assert (
            pooled.shape == got.pooled.shape and logits.std() > 1e-2 and (pooled > 0).mean() > 0.1
        ), side
        np.testing.assert_allclose(
            got.pooled, pooled, atol=2e-4 * np.abs(pooled).max(), err_msg=str(side)
        )
        np.testing.assert_allclose(
            got.logits, logits, atol=2e-4 * np.abs(logits).max(), err_msg=str(side)
        )


def test_googlenets_auxiliary_heads_drop_seven_tenths_in_training():
    module = GoogLeNetAux(1024, 1.0, Setting(epsilon=1e-3))
    x = jnp.ones((64, 4, 4, 3))
    shapes = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.01, np.float32), shapes)
    identity = {'kernel': np.eye(1024, dtype=np.float32), 'bias': np.zeros(1024, np.float32)}
    variables['params']['dense2'] = identity  # the logits are what dropout leaves
    output, _ = module.apply(
        variables, x, train=True, rngs={'dropout': jax.random.key(0)}, mutable=['batch_stats']
    )
    logits, pooled = np.asarray(output.logits), np.asarray(output.pooled)
    assert pooled.min() > 0
    kept = logits != 0
    assert kept.mean() == pytest.approx(0.3, abs=0.01)  # 64 * 1024 draws: standard error 0.002
    np.testing.assert_allclose(logits[kept], pooled[kept] / 0.3, rtol=1e-5)
    assert (kept[0] != kept[1]).any()  # every image its own
    np.testing.assert_allclose(*(module.apply(variables, x, train=False)), rtol=1e-5)


def named(name, rule):
    """{path of our module: torchvision's prefix} of a model with its auxiliary heads."""
    shapes = shapes_of(build(name, 10, aux=True), (1, 75, 75, 3))['params']
    return {
        path: rule(path, ())
        for path in ('/'.join(p[:-1]) for p in flax.traverse_util.flatten_dict(shapes))
    }


def units(prefixes, place):
    """What torchvision calls the units of a module."""
    found = {
        prefix.removeprefix(place + '.')
        for prefix in prefixes.values()
        if prefix.startswith(place + '.')
    }
    assert {prefix.rpartition('.')[2] for prefix in found} == {'conv', 'bn'}
    return {prefix.rpartition('.')[0] for prefix in found}


def numbered(name, *numbers):
    return {f'{name}_{n}' for n in numbers}


def test_the_names_of_inception_v3():
    prefixes = named('inception_v3', names.torchvision)
    # 94 convolutions, two of the auxiliary head
    assert len(set(prefixes.values())) == len(prefixes) == 2 * 96 + 2
    places = {prefix.partition('.')[0] for prefix in prefixes.values()}
    mixed = {
        f'Mixed_{n}{letter}'
        for n, letters in ((5, 'bcd'), (6, 'abcde'), (7, 'abc'))
        for letter in letters
    }
    stem = {'Conv2d_1a_3x3', 'Conv2d_2a_3x3', 'Conv2d_2b_3x3', 'Conv2d_3b_1x1', 'Conv2d_4a_3x3'}
    assert places == mixed | stem | {'AuxLogits', 'fc'}
    double = numbered('branch3x3dbl', 1, 2, 3)
    assert (
        units(prefixes, 'Mixed_5b')
        == {'branch1x1', 'branch_pool'} | numbered('branch5x5', 1, 2) | double
    )
    assert units(prefixes, 'Mixed_6a') == {'branch3x3'} | double
    sevens = numbered('branch7x7', 1, 2, 3) | numbered('branch7x7dbl', 1, 2, 3, 4, 5)
    assert units(prefixes, 'Mixed_6e') == {'branch1x1', 'branch_pool'} | sevens
    assert units(prefixes, 'Mixed_7a') == numbered('branch3x3', 1, 2) | numbered(
        'branch7x7x3', 1, 2, 3, 4
    )
    threes = numbered('branch3x3', 1, '2a', '2b') | numbered('branch3x3dbl', 1, 2, '3a', '3b')
    assert units(prefixes, 'Mixed_7c') == {'branch1x1', 'branch_pool'} | threes
    assert (
        prefixes['stem4/norm'] == 'Conv2d_3b_1x1.bn'
        and prefixes['stage1_block3/five2/conv'] == 'Mixed_5d.branch5x5_2.conv'
    )
    assert (
        prefixes['head_aux/conv1/conv'] == 'AuxLogits.conv1.conv'
        and prefixes['head_aux/dense'] == 'AuxLogits.fc'
    )


def test_the_names_of_googlenet():
    prefixes = named('googlenet', names.torchvision_googlenet)
    assert len(set(prefixes.values())) == len(prefixes) == 2 * (3 + 9 * 6 + 2) + 5
    places = {prefix.partition('.')[0] for prefix in prefixes.values()}
    modules = {
        f'inception{n}{letter}'
        for n, letters in ((3, 'ab'), (4, 'abcde'), (5, 'ab'))
        for letter in letters
    }
    assert places == modules | {'conv1', 'conv2', 'conv3', 'aux1', 'aux2', 'fc'}
    for place in modules:
        assert units(prefixes, place) == {
            'branch1',
            'branch2.0',
            'branch2.1',
            'branch3.0',
            'branch3.1',
            'branch4.1',
        }
    assert (
        prefixes['stage2_block5/three2/norm'] == 'inception4e.branch2.1.bn'
        and prefixes['stem2/conv'] == 'conv2.conv'
    )
    assert (
        prefixes['head_aux2/conv/norm'] == 'aux2.conv.bn'
        and prefixes['head_aux1/dense2'] == 'aux1.fc2'
    )


@pytest.mark.parametrize(
    'module',
    ['stage1_block1_adapter/down', 'head_stage1/dense', 'stem6/conv', 'stage1_block1/six/conv'],
)
def test_a_module_that_torchvision_does_not_have_is_refused(module):
    for rule in (names.torchvision, names.torchvision_googlenet):
        with pytest.raises(UserError, match=f"^module '{module}' has no counterpart in the "):
            rule(module, ())


def test_auxiliary_heads_follow_the_file(tmp_path, monkeypatch):
    # or an error would look for a model that fits among all
    monkeypatch.setattr(models, 'MODELS', {'googlenet': models.MODELS['googlenet']})
    small = {'width': 0.125}
    with_heads = torch_like('googlenet', aux=True, **small)
    without = torch_like('googlenet', aux=False, **small)
    extra = with_heads.keys() - without.keys()
    assert extra and all(re.match(r'aux[12]\.', key) for key in extra)
    both = [tmp_path / 'with.pth', tmp_path / 'without.pth']
    for path, tensors, aux in zip(both, (with_heads, without), (True, False), strict=True):
        path.write_bytes(torch_files.state_dict(tensors))
        imported = pretrained.load(path, {'name': 'googlenet', **small})
        assert imported.model == {'name': 'googlenet', **small, 'aux': aux}
        assert any(name.startswith('head_aux') for name in imported.variables['params']) == aux
    left_out = pretrained.load(both[0], {'name': 'googlenet', 'aux': False, **small})
    assert not any(name.startswith('head_aux') for name in left_out.variables['params'])
    with pytest.raises(UserError, match=rf'{len(extra)} missing: aux1\.'):
        pretrained.load(both[1], {'name': 'googlenet', 'aux': True, **small})
