"""What is particular to the losses on feature maps: properties by definition, published constants,
and which features are compared at what size.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_losses import (
    PAIRS,
    TEACHER,
    B,
    attention,
    inputs,
    nchw,
    network,
    networks,
    pool,
    smaller,
)
from logit_losses import make_batch
from losses import case_of, outcome

from kd_jax.errors import UserError
from kd_jax.models import Output
from kd_jax.objectives import OBJECTIVES, build, features, matching

BATCH = make_batch(np.arange(B))


def maps(seed, *shape):
    return np.float32(np.random.default_rng(seed).standard_normal(shape))


def initial(name, student, teacher, collection, variable):
    """One of a loss's variables at the start."""
    init = partial(OBJECTIVES[name]().init, jax.random.key(0))
    return jax.jit(lambda s, t: init(s, t, BATCH)[collection][variable])(student, teacher)


def test_attention_transfer_ignores_the_scale_of_either_map():
    a, b = maps(1, B, 6, 6, 4), maps(2, B, 6, 6, 7)
    at = jax.jit(features.at)
    for scaled in (at(np.float32(1e-3 * a), b), at(a, np.float32(1e3 * b))):
        np.testing.assert_allclose(scaled, at(a, b), rtol=1e-5)


@pytest.mark.parametrize('side', [2, 6])
def test_a_student_equal_to_its_teacher_has_no_loss(side):
    x = maps(3, B, side, side, 5)
    same = network({'stem': (side, 4), 'stage1': (side, 4), 'stage2': (side // 2, 6)}, 4)
    fsp = OBJECTIVES['fsp']()
    # no regressors at equal widths
    assert jax.eval_shape(fsp.init, jax.random.key(0), same, same, BATCH) == {}

    @jax.jit
    def losses(x, sign, same):
        pairs = [loss(x, x) for loss in (features.at, features.nst, features.hcl)]
        pairs.append(features.ofd(x, x, -jnp.ones(5)))
        return pairs, features.ab(2 * sign, x), fsp.apply({}, same, same, BATCH)

    pairs, ab, flow = losses(x, np.sign(x), same)
    np.testing.assert_allclose(pairs, 0, atol=1e-6)
    np.testing.assert_array_equal(ab, 0)
    np.testing.assert_array_equal(flow, 0)


def test_ab_is_zero_beyond_the_margin_and_sees_only_the_teachers_sign():
    ab = jax.jit(features.ab)
    student, teacher = maps(5, B, 4, 4, 3), maps(6, B, 4, 4, 3)
    right = np.float32(np.where(teacher > 0, 0.5, -0.5) * (1 + np.abs(student)))
    np.testing.assert_array_equal(ab(right, teacher, 0.5), 0)
    assert np.all(np.asarray(ab(0.1 * right, teacher, 0.5)) > 0)
    np.testing.assert_array_equal(ab(student, teacher, 0.5), ab(student, 100 * teacher**3, 0.5))
    one = np.ones_like(student)  # 48 of them an example
    for s, t, margin, want in ((-0.5 * one, 0 * one, 2.0, 2.25), (-3 * one, one, 2.0, 25)):
        np.testing.assert_array_equal(ab(s, t, margin), 48 * want)


def test_ofd_leaves_a_student_alone_only_below_a_target_that_is_not_positive():
    ofd, margin = jax.jit(features.ofd), np.float32([-1, -0.5, -0.2])
    below = np.abs(maps(7, B, 4, 4, 3))
    for target in (-np.abs(maps(8, B, 4, 4, 3)), np.zeros((B, 4, 4, 3), np.float32)):
        goal = np.maximum(target, margin)
        np.testing.assert_array_equal(ofd(goal - below, target, margin), 0)
        np.testing.assert_allclose(
            ofd(goal + below, target, margin), (below**2).sum((1, 2, 3)), rtol=1e-5
        )
    np.testing.assert_allclose(ofd(below - 9, below, margin), 81 * 48, rtol=1e-5)


def test_ofds_margin_is_the_running_mean_of_the_teachers_negative_responses():
    case, given, expected = case_of('ofd', {}), inputs('ofd'), 0.0
    stats, start = (
        given.variables['batch_stats']['ofd'],
        initial('ofd', *networks(), 'batch_stats', 'margin_0'),
    )
    stats = stats | {'margin_0': np.asarray(start)}
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
        variables = given.variables | {'batch_stats': {'ofd': stats}}
        found = outcome(case, given._replace(teacher=teacher, variables=variables))
        stats = found.state['batch_stats']['ofd']
        np.testing.assert_allclose(stats['margin_0'], expected, rtol=1e-5)
    assert expected[0] == 0 and (expected[1:] < 0).all()


def test_ofds_margin_is_the_authors_where_the_teacher_is_normal():
    m, s = 0.7, 1.3
    one = Output(
        np.zeros((B, 3), np.float32), {'stage1': np.float32(m + s * maps(9, B, 40, 40, 2))}
    )
    term = OBJECTIVES['ofd']()

    def margin(one):
        empty = jax.eval_shape(lambda: term.init(jax.random.key(0), one, one, BATCH))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), empty)
        _, state = term.apply(zeros, one, one, BATCH, mutable=['batch_stats'])
        return state['batch_stats']['margin_0']

    cdf = math.erfc(m / s / math.sqrt(2)) / 2
    published = -s * math.exp(-((m / s) ** 2) / 2) / math.sqrt(2 * math.pi) / cdf + m
    np.testing.assert_allclose(jax.jit(margin)(one), published, rtol=0.05)


def test_vids_variance_begins_at_five():
    for k, (_, name) in enumerate(PAIRS):
        scale = np.float64(initial('vid', *networks(), 'params', f'scale_{k}'))
        assert scale.shape == TEACHER[name][1:]
        np.testing.assert_allclose(np.log1p(np.exp(scale)) + 1e-5, 5, rtol=1e-6)


def test_the_paraphraser_learns_from_its_reconstruction_alone():
    given, share = inputs('ft'), np.full(B, 1 / B, np.float32)
    params, values = given.variables['params']['ft'], []

    def run(params, reconstruction):
        variables = given.variables | {'params': {'ft': params}}
        case = case_of('ft', {'reconstruction': reconstruction})
        found = outcome(case, given._replace(variables=variables), share)
        return found.values.mean(), found.params['ft']

    for name, layer in run(params, 0.0)[1].items():
        assert any(np.any(g) for g in jax.tree.leaves(layer)) == name.startswith('translator')
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


def sides(*of_stages):
    """What a network returns whose stages have these sides, without arrays."""
    stages = enumerate(of_stages, start=1)
    return Output(None, {f'stage{k}': np.empty((2, side, side, 1)) for k, side in stages})


def test_ladders_are_paired_from_the_deepest_up():
    """Sides of ResNet-20, VGG-13, MobileNetV2, ShuffleNetV2 and ResNet-50 for small images."""
    resnet, vgg, mobilenet, shufflenet, bottleneck = (
        sides(*stages)
        for stages in (
            (32, 16, 8),
            (32, 16, 8, 4, 4),
            (16, 16, 8, 4, 4, 2, 2),
            (32, 16, 8),
            (32, 16, 8, 4),
        )
    )
    for output, stages in (
        (resnet, '123'),
        (vgg, '1235'),
        (mobilenet, '2357'),
        (bottleneck, '1234'),
    ):
        for ordered in (output.features, dict(reversed(output.features.items()))):
            assert matching.ladder(ordered) == [f'stage{k}' for k in stages]

    def numbers(student, teacher):
        return [(int(a[5:]), int(b[5:])) for a, b in matching.pairs(student, teacher)]

    assert numbers(resnet, shufflenet) == [(1, 1), (2, 2), (3, 3)]
    assert numbers(mobilenet, vgg) == [(2, 1), (3, 2), (5, 3), (7, 5)]
    assert numbers(shufflenet, bottleneck) == [(1, 2), (2, 3), (3, 4)]
    assert numbers(mobilenet, resnet) == [(3, 1), (5, 2), (7, 3)]


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
    chosen = zip(networks(), ('stage1', 'stage3'), strict=True)
    a, b = (attention(f) for f in smaller(*(np.float64(nchw(x)[name]) for x, name in chosen)))
    values = jax.jit(module.apply)({}, networks()[0], networks()[1:], BATCH)['at']
    np.testing.assert_allclose(values, ((a - b) ** 2).mean(1), rtol=1e-5)


def test_same_size_is_adaptive_average_pooling_in_both_directions():
    sizes = [((8, 8), (4, 4)), ((7, 7), (3, 3)), ((5, 5), (5, 5)), ((7, 3), (4, 5))]
    pairs = [(maps(10, 2, *one, 3), maps(11, 2, *other, 4)) for one, other in sizes]
    same = jax.jit(
        lambda pairs: [(*matching.same_size(a, b), *matching.same_size(b, a)) for a, b in pairs]
    )
    for (one, other), pair, found in zip(sizes, pairs, same(pairs), strict=True):
        wanted = [
            np.moveaxis(pool(np.moveaxis(np.float64(x), -1, 1), *np.minimum(one, other)), 1, -1)
            for x in pair
        ]
        for got, want in zip(found, (*wanted, *reversed(wanted)), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
