"""Objectives on features: the authors' published code in float64 NumPy (NCHW, as theirs),
and properties by definition.
"""

import itertools
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quickly as fast
from test_objectives import make_batch

from kd_jax import models
from kd_jax.errors import UserError
from kd_jax.models import Output
from kd_jax.objectives import OBJECTIVES, build, defaults, features, matching

# Name -> height and width, channels. Pairs of equal size, of a smaller student and of a
# larger one; equal widths once.
B = 5
STUDENT = {'stem': (8, 3), 'stage1': (8, 6), 'stage2': (5, 4), 'stage3': (5, 7), 'stage4': (3, 8)}
TEACHER = {
    'stem': (16, 5),
    'stage1': (16, 4),
    'stage2': (8, 6),
    'stage3': (6, 9),
    'stage4': (2, 10),
}
PAIRS = [('stage1', 'stage2'), ('stage3', 'stage3'), ('stage4', 'stage4')]
BATCH = make_batch(np.arange(B))


def network(sizes, seed, pre=True):
    """Random features, each stage the ReLU of its '_pre'; without `pre` there are none
    and the stages have both signs.
    """
    rng, found = np.random.default_rng(seed), {}
    for name, (side, width) in sizes.items():
        f = rng.standard_normal((B, side, side, width)) + 0.5 * rng.standard_normal(width)
        f[..., 0] = np.abs(f[..., 0])  # a channel without any negative response
        # none without any positive one: the unit length of a map of zeros is a kink
        f[:, 0, 0] = np.abs(f[:, 0, 0])
        if pre and name != 'stem':
            found[f'{name}_pre'], f = f, np.maximum(f, 0)
        found[name] = f
    found['pooled'] = rng.standard_normal((B, f.shape[-1]))
    return Output(
        jnp.zeros((B, 3)), {name: jnp.asarray(f, jnp.float32) for name, f in found.items()}
    )


def networks(pre=True):
    return network(STUDENT, 1, pre=pre), network(TEACHER, 2, pre=pre)


# Layers, as PyTorch's


def pool(x, height, width):
    """adaptive_avg_pool2d"""
    out = np.empty((*x.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            rows = slice(i * x.shape[2] // height, -(-(i + 1) * x.shape[2] // height))
            columns = slice(j * x.shape[3] // width, -(-(j + 1) * x.shape[3] // width))
            out[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
    return out


def smaller(s, t):
    return [pool(f, *np.minimum(s.shape[2:], t.shape[2:])) for f in (s, t)]


def nearest(x, side):
    """interpolate(mode='nearest')"""
    index = np.arange(side) * x.shape[2] // side
    return x[:, :, index][:, :, :, index]


def conv(x, p):
    """Conv2d with padding (k - 1) / 2; the kernel [k, k, inputs, outputs], as Flax has it."""
    kernel, n = p['kernel'], len(p['kernel'])
    padded = np.pad(x, ((0, 0), (0, 0), (n // 2, n // 2), (n // 2, n // 2)))
    shifted = (
        (i, j, padded[:, :, i : i + x.shape[2], j : j + x.shape[3]])
        for i in range(n)
        for j in range(n)
    )
    out = sum(np.einsum('bchw,co->bohw', part, kernel[i, j]) for i, j, part in shifted)
    return out + p['bias'][None, :, None, None] if 'bias' in p else out


def conv_bn(x, p):
    x, p = conv(x, p['conv']), p['norm']
    centred = x - x.mean((0, 2, 3), keepdims=True)
    x = centred / np.sqrt((centred**2).mean((0, 2, 3), keepdims=True) + 1e-5)
    return x * p['scale'][None, :, None, None] + p['bias'][None, :, None, None]


def leaky(x):
    return np.maximum(x, 0.1 * x)


def normalize(x, axis=1):
    return x / np.maximum(np.sqrt((x**2).sum(axis, keepdims=True)), 1e-12)


def attention(f):
    return normalize((f**2).mean(1).reshape(len(f), -1))


def pairs_of(s, t, end=''):
    """Maps of one size: the smaller one's, as the authors' `adaptive_avg_pool2d` in each loss."""
    return [smaller(s.get(a + end, s[a]), t.get(b + end, t[b])) for a, b in PAIRS]


def regressed(p, pairs):
    return [(conv_bn(a, p[f'regressor_{k}']), b) for k, (a, b) in enumerate(pairs)]


# Losses of a batch, as published: maps of the student and of the teacher, in one size


def mse(a, b):
    return ((a - b) ** 2).mean()


def at_loss(a, b):
    return mse(attention(a), attention(b))


def nst_loss(a, b):
    def poly_kernel(a, b):
        return ((a[:, None] * b[:, :, None]).sum(-1) ** 2).mean()

    a, b = (normalize(x.reshape(*x.shape[:2], -1), 2) for x in (a, b))
    return poly_kernel(b, b) + poly_kernel(a, a) - 2 * poly_kernel(a, b)


def vid_loss(a, b, scale):
    var = (np.log(1 + np.exp(scale)) + 1e-5)[None, :, None, None]
    return (0.5 * ((a - b) ** 2 / var + np.log(var))).mean()


def ab_loss(a, b, m, weight):
    each = (a + m) ** 2 * ((a > -m) & (b <= 0)) + (a - m) ** 2 * ((a <= m) & (b > 0))
    return weight * np.abs(each).sum() / len(a) / 1000 * 3


def ofd_loss(a, b, m, weight):
    m = m[None, :, None, None]
    each = (
        (a - m) ** 2 * ((a > m) & (b <= m))
        + (a - b) ** 2 * ((a > b) & (b > m) & (b <= 0))
        + (a - b) ** 2 * (b > 0)
    )
    return weight * np.abs(each).mean(0).sum()


def hcl(a, b):
    loss, share, shares = mse(a, b), 1.0, 1.0
    for side in (4, 2, 1):
        if side < a.shape[2]:
            share /= 2
            loss += share * mse(pool(a, side, side), pool(b, side, side))
            shares += share
    return loss / shares


# Oracles: (the student's features, the teacher's, parameters, statistics,
# fields) -> [(loss, its two maps)], to be summed. The maps come after BatchNorm, so that the loss
# of each example is that of a batch of it alone. All regressors are 1x1 convolutions with BatchNorm
# here; the authors have ReLUs and strides in FitNet's, and three convolutions in VID's.


def vid(s, t, p, stats, fields):
    return [
        (partial(vid_loss, scale=p[f'scale_{k}']), *pair)
        for k, pair in enumerate(regressed(p, pairs_of(s, t)))
    ]


def ab(s, t, p, stats, fields):
    pairs = regressed(p, pairs_of(s, t, '_pre'))
    return [
        (partial(ab_loss, m=fields['margin'], weight=2.0 ** (k - len(pairs) + 1)), *x)
        for k, x in enumerate(pairs)
    ]


def ofd(s, t, p, stats, fields):
    parts = []
    for k, pair in enumerate(regressed(p, pairs_of(s, t, '_pre'))):
        name, old = PAIRS[k][1], stats[f'margin_{k}']
        # the margin is of the teacher alone, before its map is pooled for the student
        x = t.get(f'{name}_pre', t[name])
        mean = np.minimum(x, 0).sum((0, 2, 3)) / np.maximum((x < 0).sum((0, 2, 3)), 1)
        margin = np.where(mean < 0, 0.9 * old + 0.1 * mean, old)
        parts.append((partial(ofd_loss, m=margin, weight=1 / 2 ** (len(PAIRS) - k - 1)), *pair))
    return parts


def ft(s, t, p, stats, fields):
    student, factor = s['stage4'], t['stage4']
    for k in (1, 2, 3):
        student, factor = (
            leaky(conv_bn(student, p[f'translator_{k}'])),
            leaky(conv(factor, p[f'encoder_{k}'])),
        )
    again = factor
    for k in (1, 2, 3):  # with stride 1 a transposed convolution is a convolution
        again = leaky(conv(again, p[f'decoder_{k}']))
    reconstruction = (lambda a, b: fields['reconstruction'] * mse(a, b), again, t['stage4'])
    return [
        (lambda a, b: np.abs(attention(a) - attention(b)).mean(), *smaller(student, factor)),
        reconstruction,
    ]


def compute_fsp(maps):
    found = []
    for bottom, top in itertools.pairwise(maps):
        bottom, top = (x.reshape(*x.shape[:2], -1) for x in smaller(bottom, top))
        found.append((bottom[:, None] * top[:, :, None]).mean(-1))
    return found


def fsp(s, t, p, stats, fields):
    assert set(p) == {'regressor_0', 'regressor_2', 'regressor_3'}  # the widths at 1 are equal
    s = [s[name] for name in ('stem', 'stage1', 'stage3', 'stage4')]
    s = [conv_bn(x, p[f'regressor_{k}']) if f'regressor_{k}' in p else x for k, x in enumerate(s)]
    t = [t[name] for name in ('stem', 'stage2', 'stage3', 'stage4')]
    return [(mse, *pair) for pair in zip(compute_fsp(s), compute_fsp(t), strict=True)]


def reviewkd(s, t, p, stats, fields):
    levels = [(s[a], t.get(f'{b}_pre', t[b])) for a, b in PAIRS]
    levels.append([f['pooled'][:, :, None, None] for f in (s, t)])
    assert p['enter_0']['norm']['bias'].shape == (min(fields['mid'], s['pooled'].shape[1]),)
    parts, y = [], None
    for k, (x, target) in reversed(list(enumerate(levels))):
        x = conv_bn(x, p[f'enter_{k}'])
        if y is not None:
            y = nearest(y, x.shape[2])
            z = 1 / (1 + np.exp(-conv(np.concatenate([x, y], 1), p[f'attention_{k}'])))
            x = x * z[:, :1] + y * z[:, 1:]
        y = x
        # the authors resize x to the teacher's size
        parts.append((hcl, *smaller(conv_bn(x, p[f'leave_{k}']), target)))
    return parts


ORACLES = {
    'ab': ab,
    'at': lambda s, t, *_: [(at_loss, *pair) for pair in pairs_of(s, t)],
    # the middle pair
    'fitnet': lambda s, t, p, *_: [(mse, *pair) for pair in regressed(p, pairs_of(s, t)[1:2])],
    'fsp': fsp,
    'ft': ft,
    'nst': lambda s, t, *_: [(nst_loss, *pair) for pair in pairs_of(s, t)],
    'ofd': ofd,
    'reviewkd': reviewkd,
    'vid': vid,
}
ON_FEATURES = sorted(ORACLES)
CASES = [(name, True) for name in ON_FEATURES] + [
    (name, False) for name in ('ab', 'ofd', 'reviewkd')
]


@cache
def variables_of(name, pre=True):
    """Variables of the term in a weighted sum, with nothing at a special value."""
    student, teacher = networks(pre)
    keys = {'params': jax.random.key(0), 'negatives': jax.random.key(0)}
    shapes = jax.eval_shape(
        lambda: build({name: {}}, (1.0,)).init(keys, student, (teacher,), BATCH)
    )
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        x = rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        x = -np.abs(x) if path[-1].key.startswith('margin') else x
        return np.float32(1 + 0.3 * x if path[-1].key == 'scale' else x)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@cache
def compiled(name):
    """(variables, student, teacher) -> ((values [B], state), gradients
    of their mean for the three)
    """

    def mean(variables, student, teacher):
        values, state = build({name: {}}, (1.0,)).apply(
            variables, student, (teacher,), BATCH, mutable=['batch_stats']
        )
        return values[name].mean(), (values[name], state)

    run = fast(jax.value_and_grad(mean, argnums=(0, 1, 2), has_aux=True))

    def regrouped(*inputs):
        (_, kept), gradients = run(*inputs)
        return kept, gradients

    return regrouped


@cache
def outcome(name, pre=True):
    return compiled(name)(variables_of(name, pre), *networks(pre))


def nchw(network):
    return {name: np.moveaxis(np.float64(f), -1, 1) for name, f in network.features.items()}


def wanted(name, student, teacher, pre=True):
    """(published loss of the batch, of each example), in float64."""
    variables = jax.tree.map(np.float64, variables_of(name, pre))
    own = [variables.get(kind, {}).get(name, {}) for kind in ('params', 'batch_stats')]
    parts = ORACLES[name](nchw(student), nchw(teacher), *own, defaults(name))
    each = [sum(loss(a[i : i + 1], b[i : i + 1]) for loss, a, b in parts) for i in range(B)]
    return sum(loss(a, b) for loss, a, b in parts), each


def test_every_objective_on_features_has_an_oracle():
    assert set(ORACLES) == {
        n for n, t in OBJECTIVES.items() if t.needs_features and t.__module__ == features.__name__
    }


@pytest.mark.parametrize(('name', 'pre'), CASES)
def test_values_are_the_published_ones(name, pre):
    (values, _), _ = outcome(name, pre)
    batch, each = wanted(name, *networks(pre), pre)
    assert values.shape == (B,) and values.dtype == np.float32
    np.testing.assert_allclose(values.mean(), batch, rtol=1e-5)
    np.testing.assert_allclose(values, each, rtol=3e-5)
    assert np.std(each) > 1e-3 * batch  # the examples differ: the order was seen


@pytest.mark.parametrize(('name', 'pre'), CASES)
def test_the_gradient_for_the_student_is_that_of_the_published_loss(name, pre):
    (student, teacher), gradient = networks(pre), outcome(name, pre)[1][1].features
    student = student.replace(features={k: np.float64(f) for k, f in student.features.items()})
    rng, step = np.random.default_rng(3), 1e-6
    for _ in range(3):
        way = {k: rng.standard_normal(f.shape) for k, f in student.features.items()}
        ends = [
            wanted(
                name,
                student.replace(features={k: f + h * way[k] for k, f in student.features.items()}),
                teacher,
                pre,
            )[0]
            for h in (step, -step)
        ]
        slope = sum((np.float64(gradient[k]) * way[k]).sum() for k in way)
        scale = np.sqrt(sum((np.float64(g) ** 2).sum() for g in gradient.values()))
        assert scale > 0
        np.testing.assert_allclose(
            slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-4 * scale
        )


@pytest.mark.parametrize('name', ON_FEATURES)
def test_no_gradient_reaches_the_teacher(name):
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(outcome(name)[1][2]))


@pytest.mark.parametrize('name', ON_FEATURES)
def test_values_follow_their_examples_when_the_batch_is_permuted(name):
    order = np.array([3, 0, 4, 1, 2])
    (values, state), _ = outcome(name)
    (moved, after), _ = compiled(name)(
        variables_of(name), *jax.tree.map(lambda x: x[order], networks())
    )
    np.testing.assert_allclose(moved, values[order], rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), after, state)


@pytest.mark.parametrize('name', ON_FEATURES)
def test_features_of_zeros_have_a_finite_value_and_gradient(name):
    student, teacher = networks()
    zeros = jax.tree.map(jnp.zeros_like, (student, teacher))
    for inputs in ((zeros[0], teacher), zeros):
        (values, _), gradients = compiled(name)(variables_of(name), *inputs)
        assert np.isfinite(values).all() and all(
            np.isfinite(g).all() for g in jax.tree.leaves(gradients)
        )


@pytest.mark.parametrize('name', ON_FEATURES)
def test_bfloat16_features_are_compared_in_float32(name):
    student, teacher = (
        x.replace(features={k: f.astype(jnp.bfloat16) for k, f in x.features.items()})
        for x in networks()
    )
    (values, state), _ = compiled(name)(variables_of(name), student, teacher)
    assert values.dtype == jnp.float32 and all(
        x.dtype == jnp.float32 for x in jax.tree.leaves(state)
    )
    np.testing.assert_allclose(values, wanted(name, student, teacher)[1], rtol=3e-5)


# Properties


def maps(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def initial(term, student, teacher):
    return fast(partial(term.init, jax.random.key(0)))(student, teacher, BATCH)


def test_attention_transfer_ignores_the_scale_of_either_map():
    a, b = maps(1, B, 6, 6, 4), maps(2, B, 6, 6, 7)
    for scaled in (features.at(1e-3 * a, b), features.at(a, 1e3 * b)):
        np.testing.assert_allclose(scaled, features.at(a, b), rtol=1e-5)


@pytest.mark.parametrize('side', [2, 6])
def test_a_student_equal_to_its_teacher_has_no_loss(side):
    x = maps(3, B, side, side, 5)
    for loss in (
        features.at,
        features.nst,
        features.hcl,
        partial(features.ofd, margin=-jnp.ones(5)),
    ):
        np.testing.assert_allclose(fast(loss)(x, x), 0, atol=1e-6)
    np.testing.assert_array_equal(fast(features.ab)(2 * jnp.sign(x), x), 0)
    same = network({'stem': (side, 4), 'stage1': (side, 4), 'stage2': (side // 2, 6)}, 4)
    term = OBJECTIVES['fsp']()
    # no regressors at equal widths
    assert jax.eval_shape(term.init, jax.random.key(0), same, same, BATCH) == {}
    np.testing.assert_array_equal(fast(term.apply)({}, same, same, BATCH), 0)


def test_ab_is_zero_beyond_the_margin_and_sees_only_the_teachers_sign():
    ab = fast(features.ab)
    student, teacher = maps(5, B, 4, 4, 3), maps(6, B, 4, 4, 3)
    right = jnp.where(teacher > 0, 0.5, -0.5) * (1 + jnp.abs(student))
    np.testing.assert_array_equal(ab(right, teacher, 0.5), 0)
    assert np.all(ab(0.1 * right, teacher, 0.5) > 0)
    np.testing.assert_array_equal(ab(student, teacher, 0.5), ab(student, 100 * teacher**3, 0.5))
    one = np.ones((1, 1, 1, 1), np.float32)
    assert ab(-0.5 * one, 0 * one, 2.0) == 2.25 and ab(-3 * one, one, 2.0) == 25


def test_ofd_leaves_a_student_alone_only_below_a_target_that_is_not_positive():
    ofd, margin, below = (
        fast(features.ofd),
        jnp.float32([-1, -0.5, -0.2]),
        jnp.abs(maps(7, B, 4, 4, 3)),
    )
    for target in (-jnp.abs(maps(8, B, 4, 4, 3)), jnp.zeros((B, 4, 4, 3))):
        goal = jnp.maximum(target, jnp.broadcast_to(margin, target.shape))
        np.testing.assert_array_equal(ofd(goal - below, target, margin), 0)
        np.testing.assert_allclose(
            ofd(goal + below, target, margin), (below**2).sum((1, 2, 3)), rtol=1e-5
        )
    np.testing.assert_allclose(ofd(below - 9, below, margin), 81 * 48, rtol=1e-5)


def test_ofds_margin_is_the_running_mean_of_the_teachers_negative_responses():
    student, variables, expected = network(STUDENT, 1), variables_of('ofd'), 0.0
    fresh = jax.tree.map(np.array, initial(OBJECTIVES['ofd'](), *networks())['batch_stats'])
    variables = variables | {'batch_stats': {'ofd': fresh}}
    for seed, momentum in ((2, 1.0), (3, 0.1)):
        teacher = network(TEACHER, seed)
        f = np.float64(teacher.features['stage2_pre'])  # of the student's size
        mean = np.array(
            [
                f[..., c][f[..., c] < 0].mean() if (f[..., c] < 0).any() else 0
                for c in range(f.shape[-1])
            ]
        )
        expected = momentum * mean + (1 - momentum) * expected
        variables = variables | compiled('ofd')(variables, student, teacher)[0][1]
        np.testing.assert_allclose(variables['batch_stats']['ofd']['margin_0'], expected, rtol=1e-5)
    assert expected[0] == 0 and (expected[1:] < 0).all()


def test_ofds_margin_is_the_authors_where_the_teacher_is_normal():
    m, s = 0.7, 1.3
    one = Output(jnp.zeros((B, 3)), {'stage1': m + s * maps(9, B, 40, 40, 2)})
    term = OBJECTIVES['ofd']()
    _, state = fast(partial(term.apply, mutable=['batch_stats']))(
        initial(term, one, one), one, one, BATCH
    )
    cdf = math.erfc(m / s / math.sqrt(2)) / 2
    published = -s * math.exp(-((m / s) ** 2) / 2) / math.sqrt(2 * math.pi) / cdf + m
    np.testing.assert_allclose(state['batch_stats']['margin_0'], published, rtol=0.05)


def test_vids_variance_begins_at_five():
    params = initial(OBJECTIVES['vid'](), *networks())['params']
    for k, (_, name) in enumerate(PAIRS):
        assert params[f'scale_{k}'].shape == TEACHER[name][1:]
        np.testing.assert_allclose(
            np.log1p(np.exp(np.float64(params[f'scale_{k}']))) + 1e-5, 5, rtol=1e-6
        )


def test_the_paraphraser_learns_from_its_reconstruction_alone():
    params = variables_of('ft')['params']['ft']

    def mean(params, reconstruction):
        term = OBJECTIVES['ft'](reconstruction=reconstruction)
        return term.apply({'params': params}, *networks(), BATCH, mutable=['batch_stats'])[0].mean()

    run = fast(jax.value_and_grad(mean))
    for name, layer in run(params, 0.0)[1].items():
        assert any(np.any(g) for g in jax.tree.leaves(layer)) == name.startswith('translator')
    values = []
    for _ in range(20):
        value, gradient = run(params, 1.0)
        values.append(value - run(params, 0.0)[0])
        for name in params:
            if not name.startswith('translator'):
                assert np.any(gradient[name]['kernel']) and np.any(gradient[name]['bias'])
                params = params | {
                    name: jax.tree.map(lambda x, g: x - 0.1 * g, params[name], gradient[name])
                }
    assert (np.diff(values) < 0).all() and values[-1] < 0.9 * values[0]


@pytest.mark.parametrize('width', [10, 11])
def test_the_factor_is_as_wide_as_the_authors(width):
    teacher = network(TEACHER | {'stage4': (2, width)}, 2)
    params = jax.eval_shape(
        OBJECTIVES['ft']().init, jax.random.key(0), networks()[0], teacher, BATCH
    )['params']
    assert (
        params['encoder_3']['bias'].shape
        == params['translator_3']['norm']['bias'].shape
        == (int(width * 0.5),)
    )


# Matching

LADDERS = {
    'resnet20': '123',
    'wrn_40_2': '123',
    'cifar_shufflenet_v2': '123',
    'cifar_resnet50': '1234',
}
LADDERS |= {'cifar_vgg13': '1235', 'cifar_mobilenet_v2_x0.5': '2357'}


@cache
def real(name):
    run = partial(models.build(name, 10).init_with_output, train=False)
    return jax.eval_shape(run, jax.random.key(0), jnp.zeros((2, 32, 32, 3)))[0]


def test_ladders_are_paired_from_the_deepest_up():
    for name, stages in LADDERS.items():
        found = real(name).features
        for ordered in (found, dict(reversed(found.items()))):
            assert matching.ladder(ordered) == [f'stage{k}' for k in stages]

    def numbers(student, teacher):
        return [(int(a[5:]), int(b[5:])) for a, b in matching.pairs(real(student), real(teacher))]

    assert numbers('resnet20', 'wrn_40_2') == [(1, 1), (2, 2), (3, 3)]
    assert numbers('cifar_mobilenet_v2_x0.5', 'cifar_vgg13') == [(2, 1), (3, 2), (5, 3), (7, 5)]
    assert numbers('cifar_shufflenet_v2', 'cifar_resnet50') == [(1, 2), (2, 3), (3, 4)]
    assert numbers('cifar_mobilenet_v2_x0.5', 'resnet20') == [(3, 1), (5, 2), (7, 3)]


def test_names_take_the_place_of_the_pairs():
    pairs = partial(matching.pairs, *networks())
    assert pairs(('stem', 'stage2'), ('stage2_pre', 'pooled')) == [
        ('stem', 'stage2_pre'),
        ('stage2', 'pooled'),
    ]
    assert pairs(('stage2',)) == [('stage2', 'stage4')]
    assert pairs((), ('stage1', 'stage2')) == [('stage3', 'stage1'), ('stage4', 'stage2')]
    known = "did you mean 'stage2'.* known: .*stage1.*stem"
    for names in ((('stage22',), ('stage2',)), (('stage2',), ('stage22',))):
        with pytest.raises(UserError, match=f"feature of the (student|teacher) 'stage22'; {known}"):
            pairs(*names)
    for names in (
        (('stem', 'stage2'), ('stage3',)),
        (('stem', 'stage1', 'stage2', 'stage3', 'stage4'),),
    ):
        with pytest.raises(UserError, match='as many'):
            pairs(*names)
    module = build({'at': {'student_features': ['stage1'], 'teacher_features': ['stage3']}}, (1.0,))
    a, b = (
        attention(f)
        for f in smaller(
            *(nchw(x)[name] for x, name in zip(networks(), ('stage1', 'stage3'), strict=True))
        )
    )
    values = fast(module.apply)({}, networks()[0], networks()[1:], BATCH)['at']
    np.testing.assert_allclose(values, ((a - b) ** 2).mean(1), rtol=1e-5)


@pytest.mark.parametrize(
    ('one', 'other'), [((8, 8), (4, 4)), ((7, 7), (3, 3)), ((5, 5), (5, 5)), ((7, 3), (4, 5))]
)
def test_same_size_is_adaptive_average_pooling_in_both_directions(one, other):
    a, b = maps(10, 2, *one, 3), maps(11, 2, *other, 4)
    wanted = [
        np.moveaxis(pool(np.moveaxis(np.float64(x), -1, 1), *np.minimum(one, other)), 1, -1)
        for x in (a, b)
    ]
    for got, want in zip(
        (*matching.same_size(a, b), *matching.same_size(b, a)),
        (*wanted, *reversed(wanted)),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
