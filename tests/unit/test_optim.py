"""Optimisers against PyTorch's update rules written in numpy float64, schedules at single
steps, frozen parameters, errors.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import FASTEST_COMPILE, quickly
from test_fields import unbounded

from configs import common
from kd_jax import fields as limits
from kd_jax import optim
from kd_jax.errors import UserError

STEPS = 5
RATES = [0.1, 0.1, 0.05, 0.05, 0.05]  # what `schedule_fields` gives
schedule_fields = {
    'schedule': 'step',
    'learning_rate': 0.1,
    'step_epochs': (1.0,),
    'step_factor': 0.5,
}
LENGTH = {'total_steps': STEPS, 'steps_per_epoch': 2.0}


def settings_of(**fields):
    """Those of `fields`, without weight decay unless they have it."""
    return optim.read({'weight_decay': 0.0} | fields)


def random_params(seed=0):
    rng = np.random.default_rng(seed)

    def array(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return {
        'student': {
            'stem': {
                'conv': {'kernel': array(3, 3, 2, 4)},
                'bn': {'scale': array(4), 'bias': array(4)},
            },
            'stage1': {'block0': {'kernel': array(4, 3)}},
            'stage10': {'block0': {'kernel': array(4, 3)}},
            'head': {'kernel': array(4, 3), 'bias': array(3)},
        },
        'objective': {
            'hint': {'kernel': array(2, 2), 'scale': array(2, 1)},
            'gain': {'kernel': array(3)},
        },
    }


def random_gradients(params, seed=1, scale=1.0):
    rng = np.random.default_rng(seed)
    return [
        jax.tree.map(
            lambda p: jnp.asarray(scale * rng.standard_normal(p.shape), jnp.float32), params
        )
        for _ in range(STEPS)
    ]


def train(params, gradients, **fields):
    """(parameters after all `gradients`, optimiser state)"""
    optimizer, _ = optim.build(params, settings_of(**schedule_fields | fields), **LENGTH)
    tx = optimizer()
    return followed(tx, params, gradients)


def followed(tx, params, gradients):
    """(parameters after all `gradients`, optimiser state)"""

    def update(g, state, params):
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for g in gradients:
        params, state = update(g, state, params)
    return params, state


def paths(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator='/'): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def assert_close(got, want, rtol=1e-5, atol=1e-6):
    assert list(paths(got)) == list(paths(want))
    for path, leaf in paths(got).items():
        np.testing.assert_allclose(leaf, paths(want)[path], rtol=rtol, atol=atol, err_msg=path)


# PyTorch's rules for one parameter: (w, gradients, rates, fields) -> w after them all. Transcribed
# from the documentation of torch.optim.SGD, Adam and AdamW.


def torch_sgd(w, gradients, rates, f):
    buffer = None
    for g, rate in zip(gradients, rates, strict=True):
        g = g + f['weight_decay'] * w
        if f['momentum'] != 0:
            buffer = g if buffer is None else f['momentum'] * buffer + g
            g = g + f['momentum'] * buffer if f['nesterov'] else buffer
        w = w - rate * g
    return w


def torch_adam(w, gradients, rates, f, decoupled=False):
    m = v = 0.0
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        if decoupled:
            w = w - rate * f['weight_decay'] * w
        else:
            g = g + f['weight_decay'] * w
        m = f['b1'] * m + (1 - f['b1']) * g
        v = f['b2'] * v + (1 - f['b2']) * g * g
        w = w - rate / (1 - f['b1'] ** t) * m / (np.sqrt(v) / np.sqrt(1 - f['b2'] ** t) + f['eps'])
    return w


def torch_adamw(w, gradients, rates, f):
    return torch_adam(w, gradients, rates, f, decoupled=True)


ORACLES = {'sgd': torch_sgd, 'adam': torch_adam, 'adamw': torch_adamw}
FIELDS = {
    'momentum': 0.9, 'nesterov': False, 'b1': 0.9, 'b2': 0.999, 'eps': 1e-8,
    'weight_decay': 0.0, 'decay_norm_and_bias': True,
}  # fmt: skip
CASES = [
    ('sgd', {'momentum': 0.0}),
    ('sgd', {'momentum': 0.0, 'weight_decay': 0.1}),
    ('sgd', {'weight_decay': 0.1}),
    ('sgd', {'momentum': 0.5, 'nesterov': True, 'weight_decay': 0.1}),
    ('sgd', {'weight_decay': 0.1, 'decay_norm_and_bias': False}),
    ('adam', {}),
    ('adam', {'weight_decay': 0.1, 'b1': 0.8, 'b2': 0.95, 'eps': 1e-3}),
    ('adam', {'weight_decay': 0.1, 'decay_norm_and_bias': False}),
    ('adamw', {}),
    ('adamw', {'weight_decay': 0.1, 'b1': 0.8, 'b2': 0.95, 'eps': 1e-3}),
    ('adamw', {'weight_decay': 0.1, 'decay_norm_and_bias': False}),
]
IDS = ['-'.join([name, *(f'{k}={v}' for k, v in fields.items())]) for name, fields in CASES]
NOT_DECAYED = {
    'student/stem/bn/scale',
    'student/stem/bn/bias',
    'student/head/bias',
    'objective/hint/scale',
    'objective/gain/kernel',
}


def follow(name, params, gradients, fields):
    """The oracle's parameters after all gradients, path -> float64 array."""
    want = {}
    for path, w in paths(params).items():
        own = FIELDS | fields
        if path in NOT_DECAYED and not own['decay_norm_and_bias']:
            own['weight_decay'] = 0.0
        want[path] = ORACLES[name](
            np.float64(w), [np.float64(paths(g)[path]) for g in gradients], RATES, own
        )
    return want


def test_every_optimiser_has_an_oracle_and_a_case():
    assert set(ORACLES) == set(optim.OPTIMISERS) == {name for name, _ in CASES}


@pytest.mark.parametrize(('name', 'fields'), CASES, ids=IDS)
def test_five_updates_equal_pytorchs_rule(name, fields):
    params = random_params()
    gradients = random_gradients(params)
    want = follow(name, params, gradients, fields)
    # float32 rounds Adam's 1 - b2^t, 0.001 at first, by some 1e-5: too much to tell rules apart
    with jax.enable_x64(True):
        params, *gradients = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64), (params, *gradients)
        )
        got, _ = train(params, gradients, name=name, **fields)
        for path, leaf in paths(got).items():
            np.testing.assert_allclose(leaf, want[path], rtol=1e-10, atol=1e-12, err_msg=path)
    params, *gradients = jax.tree.map(jnp.float32, (params, *gradients))
    got, _ = train(params, gradients, name=name, **fields)
    for path, leaf in paths(got).items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_allclose(leaf, want[path], rtol=1e-5, atol=1e-5, err_msg=path)


def test_the_rules_are_those_of_torch_where_it_is_installed():
    torch = pytest.importorskip('torch')
    w, *gradients = np.random.default_rng(2).standard_normal((STEPS + 1, 7))
    for name, fields in CASES:
        f = FIELDS | fields  # torch has no `decay_norm_and_bias`, and the oracle does not read it
        parameter = torch.nn.Parameter(torch.tensor(w))
        if name == 'sgd':
            tx = torch.optim.SGD(
                [parameter], 0.1, f['momentum'], 0.0, f['weight_decay'], f['nesterov']
            )
        else:
            kind = torch.optim.Adam if name == 'adam' else torch.optim.AdamW
            tx = kind([parameter], 0.1, (f['b1'], f['b2']), f['eps'], f['weight_decay'])
        for rate, g in zip(RATES, gradients, strict=True):
            tx.param_groups[0]['lr'] = rate
            parameter.grad = torch.tensor(g)
            tx.step()
        np.testing.assert_allclose(
            parameter.detach().numpy(), ORACLES[name](w, gradients, RATES, f), rtol=1e-9
        )


def test_two_sgd_updates_by_hand():
    params = {'student': {'kernel': jnp.float32([[1.0]])}, 'objective': {}}
    g = {'student': {'kernel': jnp.float32([[2.0]])}, 'objective': {}}
    # g + wd w = 2.5, v = 2.5, w = .75; then g + wd w = 2.375,
    # v = .5 * 2.5 + 2.375 = 3.625, w = .75 - .3625
    fields = {
        'name': 'sgd',
        'momentum': 0.5,
        'weight_decay': 0.5,
        'learning_rate': 0.1,
        'schedule': 'constant',
    }
    got, _ = train(params, [g, g], **fields)
    np.testing.assert_allclose(got['student']['kernel'], [[0.3875]], rtol=1e-6)
    # Nesterov: w = 1 - .1 (2.5 + .5 * 2.5) = .625; v = 1.25 + 2.3125 = 3.5625;
    # w = .625 - .1 (2.3125 + 1.78125)
    got, _ = train(params, [g, g], nesterov=True, **fields)
    np.testing.assert_allclose(got['student']['kernel'], [[0.215625]], rtol=1e-6)


@pytest.mark.parametrize('name', sorted(optim.OPTIMISERS))
def test_shapes_are_enough_to_build(name):
    params = random_params()
    shapes = jax.eval_shape(lambda: params)
    fields = schedule_fields | {
        'decay_norm_and_bias': False,
        'weight_decay': 0.1,
        'freeze': ('stem/',),
        'clip_norm': 1.0,
    }
    optimizer, _ = optim.build(shapes, settings_of(name=name, **fields), **LENGTH)
    got, _ = followed(optimizer(), params, [params])
    want, _ = train(params, [params], name=name, **fields)
    assert_close(got, want)


# Clipping


@pytest.mark.parametrize('name', sorted(optim.OPTIMISERS))
def test_the_gradient_is_clipped_to_the_global_norm_before_the_decay(name):
    params = random_params()
    gradients = random_gradients(params)
    norms = [
        np.sqrt(sum((np.float64(leaf) ** 2).sum() for leaf in jax.tree.leaves(g)))
        for g in gradients
    ]
    # below the limit: left alone
    gradients[1] = jax.tree.map(lambda g: g * (0.5 / norms[1]), gradients[1])
    clipped = [jax.tree.map(lambda x, n=n: x / n, g) for g, n in zip(gradients, norms, strict=True)]
    clipped[1] = gradients[1]
    assert min(norms) > 5
    fields = {'weight_decay': 0.1, 'eps': 1e-3}
    got, _ = train(params, gradients, name=name, clip_norm=1.0, **fields)
    for path, want in follow(name, params, clipped, fields).items():
        np.testing.assert_allclose(paths(got)[path], want, rtol=1e-5, atol=5e-6, err_msg=path)


# Freezing


@pytest.mark.parametrize('name', sorted(optim.OPTIMISERS))
def test_frozen_parameters_stay_bit_identical_and_the_others_move(name):
    params = random_params()
    got, state = train(
        params, random_gradients(params), name=name, weight_decay=0.1, freeze=('stem/', 'stage1/')
    )
    frozen = {
        path for path in paths(params) if path.startswith(('student/stem/', 'student/stage1/'))
    }
    assert len(frozen) == 4
    for path, before in paths(params).items():
        if path in frozen:
            assert np.asarray(before).tobytes() == np.asarray(paths(got)[path]).tobytes(), path
        else:
            assert (np.asarray(before) != np.asarray(paths(got)[path])).all(), path
    trained_sizes = [leaf.size for path, leaf in paths(params).items() if path not in frozen]
    copies = {'sgd': 1, 'adam': 2, 'adamw': 2}[name]  # buffers a parameter
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == copies * sum(
        trained_sizes
    )


def test_frozen_parameters_do_not_count_in_the_clipped_norm():
    params = random_params()
    gradients = random_gradients(params)
    rest = {
        'student': {k: v for k, v in params['student'].items() if k != 'stem'},
        'objective': params['objective'],
    }
    fields = {'name': 'sgd', 'clip_norm': 0.1, 'weight_decay': 0.1}
    without = [
        {'student': {k: g['student'][k] for k in rest['student']}, 'objective': g['objective']}
        for g in gradients
    ]
    want, _ = train(rest, without, **fields)
    huge = [
        g
        | {
            'student': g['student']
            | {'stem': jax.tree.map(lambda x: 1e6 * x, g['student']['stem'])}
        }
        for g in gradients
    ]
    got, _ = train(params, huge, freeze=('stem',), **fields)
    del got['student']['stem']
    assert_close(got, want)


def test_a_frozen_parameter_ignores_a_gradient_that_is_not_a_number():
    params = random_params()
    g = random_gradients(params)[0]
    g['student']['stem'] = jax.tree.map(lambda x: x * jnp.nan, g['student']['stem'])
    got, _ = train(params, [g], name='adam', freeze=('stem',), clip_norm=1.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
    assert_close(got['student']['stem'], params['student']['stem'], rtol=0, atol=0)


def test_a_wholly_frozen_student_still_trains_the_objective():
    params = random_params()
    got, _ = train(params, random_gradients(params), name='sgd', freeze=('.*',), clip_norm=1.0)
    assert_close(got['student'], params['student'], rtol=0, atol=0)
    assert (
        np.asarray(got['objective']['hint']['kernel'])
        != np.asarray(params['objective']['hint']['kernel'])
    ).all()


def test_everything_frozen_without_learned_objective_changes_nothing():
    params = {'student': random_params()['student'], 'objective': {}}
    got, _ = train(
        params,
        random_gradients(params),
        name='adamw',
        freeze=('.*',),
        clip_norm=1.0,
        weight_decay=0.1,
    )
    assert_close(got, params, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('patterns', 'frozen'),
    [
        ((), set()),
        (('stage1/',), {'stage1/block0/kernel'}),
        (('stage1',), {'stage1/block0/kernel', 'stage10/block0/kernel'}),
        (('kernel',), set()),  # from the start of the path
        (
            ('.*/kernel$',),
            {'stem/conv/kernel', 'stage1/block0/kernel', 'stage10/block0/kernel', 'head/kernel'},
        ),
        (('stem/bn', 'head/bias'), {'stem/bn/scale', 'stem/bn/bias', 'head/bias'}),
        (
            ('(?!head)',),
            {
                'stem/conv/kernel',
                'stem/bn/scale',
                'stem/bn/bias',
                'stage1/block0/kernel',
                'stage10/block0/kernel',
            },
        ),
        (('nothing/of/this/kind',), set()),
    ],
)
def test_frozen_mask_matches_from_the_start_of_the_path(patterns, frozen):
    mask = optim.frozen_mask(random_params()['student'], patterns)
    assert {path for path, value in paths(mask).items() if value} == frozen
    assert all(isinstance(value, bool) for value in jax.tree.leaves(mask))
    assert len(paths(mask)) == 7


# Schedules


def at(steps, total_steps, steps_per_epoch, **fields):
    params = {'student': {'kernel': jnp.zeros((1, 1))}, 'objective': {}}
    length = {'total_steps': total_steps, 'steps_per_epoch': steps_per_epoch}
    schedule = optim.build(params, settings_of(**fields), **length)[1]
    return [float(jax.jit(schedule)(step)) for step in steps]


def test_the_table_of_schedules_is_the_one_tested_here():
    assert set(optim.SCHEDULES) == {'constant', 'cosine', 'step'}


def test_a_constant_schedule_warms_up_linearly_from_zero():
    fields = {
        'schedule': 'constant',
        'learning_rate': 0.4,
        'total_steps': 100,
        'steps_per_epoch': 10.0,
    }
    np.testing.assert_allclose(at([0, 50, 99], **fields), [0.4] * 3, rtol=1e-6)
    got = at([0, 1, 4, 7, 8, 9, 99], warmup_epochs=0.8, **fields)
    np.testing.assert_allclose(got, [0, 0.05, 0.2, 0.35, 0.4, 0.4, 0.4], rtol=1e-6)


def test_a_cosine_schedule_falls_over_the_steps_after_the_warm_up():
    fields = {
        'schedule': 'cosine',
        'learning_rate': 0.8,
        'total_steps': 100,
        'steps_per_epoch': 10.0,
    }
    # (1 + cos(pi / 4)) / 2 = 0.853553
    np.testing.assert_allclose(
        at([0, 25, 50, 75, 100], **fields), [0.8, 0.682843, 0.4, 0.117157, 0], rtol=1e-5, atol=1e-7
    )
    got = at([0, 10, 20, 40, 60, 80, 100], warmup_epochs=2.0, final_factor=0.25, **fields)
    # after the warm-up 0.2 + 0.6 (1 + cos) / 2 at quarters of the 80 steps left
    np.testing.assert_allclose(got, [0, 0.4, 0.8, 0.712132, 0.5, 0.287868, 0.2], rtol=1e-5)


def test_a_step_schedule_drops_at_the_first_step_of_an_epoch():
    # The CIFAR tables: 0.05, a tenth after 150, 180 and 210 of 240 epochs,
    # 50,000 images in batches of 64.
    fields = {
        'schedule': 'step',
        'learning_rate': 0.05,
        'total_steps': 187500,
        'steps_per_epoch': 781.25,
    }
    got = at(
        [0, 117187, 117188, 140624, 140625, 164061, 164062, 187499],
        step_epochs=(150, 180, 210),
        **fields,
    )
    np.testing.assert_allclose(got, [0.05, 0.05, 0.005, 0.005, 5e-4, 5e-4, 5e-5, 5e-5], rtol=1e-5)


def test_step_epochs_count_from_the_start_of_training_also_with_a_warm_up():
    fields = {
        'schedule': 'step',
        'learning_rate': 0.8,
        'total_steps': 100,
        'steps_per_epoch': 10.0,
        'step_factor': 0.5,
    }
    got = at([0, 10, 20, 29, 30, 49, 50, 99], warmup_epochs=2.0, step_epochs=(3, 5, 70), **fields)
    np.testing.assert_allclose(got, [0, 0.4, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2], rtol=1e-6)
    got = at([19, 20, 21], warmup_epochs=2.0, step_epochs=(2,), **fields)
    np.testing.assert_allclose(got, [0.76, 0.4, 0.4], rtol=1e-6)
    got = at([29, 30], step_epochs=(3, 3.01), **fields)  # both round to step 30
    np.testing.assert_allclose(got, [0.8, 0.2], rtol=1e-6)
    got = at([29, 30], warmup_epochs=2.0, step_epochs=(3, 3.01), **fields)
    np.testing.assert_allclose(got, [0.8, 0.2], rtol=1e-6)


def test_build_returns_the_schedule_that_it_uses():
    params = {'student': {'kernel': jnp.zeros((1, 1))}, 'objective': {}}
    ones = jax.tree.map(jnp.ones_like, params)
    fields = {
        'name': 'sgd',
        'momentum': 0.0,
        'learning_rate': 0.4,
        'schedule': 'cosine',
        'warmup_epochs': 1.0,
    }
    optimizer, schedule = optim.build(params, settings_of(**fields), **LENGTH)
    tx = optimizer()
    state = tx.init(params)
    for step in range(STEPS):
        updates, state = tx.update(ones, state, params)
        np.testing.assert_allclose(
            updates['student']['kernel'], [[-float(schedule(step))]], rtol=1e-6
        )
    np.testing.assert_allclose(
        [float(schedule(step)) for step in range(4)], [0, 0.2, 0.4, 0.3], rtol=1e-6
    )


# The average of the parameters


def test_ema_follows_early_and_then_decays():
    average, new = {'w': jnp.float32([0.0, 10.0])}, {'w': jnp.float32([1.0, 20.0])}
    for step, d in ((0, 0.1), (1, 2 / 11), (90, 0.91), (10_000, 0.99)):
        got = jax.jit(optim.ema)(average, new, 0.99, jnp.int32(step))
        np.testing.assert_allclose(got['w'], [1 - d, 20 - 10 * d], rtol=1e-5)
    np.testing.assert_allclose(optim.ema(average, new, 0.05, 0)['w'], [0.95, 19.5], rtol=1e-6)


def test_ema_copies_what_is_not_floating_point_and_keeps_types():
    average = {
        'count': jnp.int32(3),
        'flag': jnp.array(False),
        'half': jnp.bfloat16(1.0),
        'w': jnp.float32(1.0),
    }
    new = {
        'count': jnp.int32(8),
        'flag': jnp.array(True),
        'half': jnp.bfloat16(2.0),
        'w': jnp.float32(2.0),
    }
    got = optim.ema(average, new, 0.5, jnp.float32(1000))
    assert int(got['count']) == 8 and bool(got['flag'])
    assert {k: v.dtype for k, v in got.items()} == {k: v.dtype for k, v in new.items()}
    assert float(got['half']) == float(got['w']) == 1.5


# Errors


@pytest.mark.parametrize(
    ('fields', 'sentence'),
    [
        (
            {'name': 'sdg'},
            "unknown value of optim.name 'sdg'; did you mean 'sgd'\\? known: adam, adamw, sgd",
        ),
        ({'schedule': 'cosin'}, "unknown value of optim.schedule 'cosin'; did you mean 'cosine'"),
        (
            {'learning_rate': 0.0},
            'optim.learning_rate is 0.0; it must be a finite number greater than 0',
        ),
        ({'learning_rate': -0.1}, 'optim.learning_rate is -0.1'),
        ({'learning_rate': float('nan')}, 'optim.learning_rate is nan'),
        (
            {'weight_decay': -1e-4},
            'optim.weight_decay is -0.0001; it must be a finite number, 0 or more',
        ),
        ({'momentum': 1.0}, 'optim.momentum is 1.0; it must be at least 0 and less than 1'),
        ({'momentum': -0.1}, 'optim.momentum is -0.1'),
        (
            {'momentum': 0.0, 'nesterov': True},
            'optim.nesterov is True; it must be False where momentum is 0',
        ),
        ({'b1': 1.0}, 'optim.b1 is 1.0'),
        ({'b2': -0.5}, 'optim.b2 is -0.5'),
        ({'eps': 0.0}, 'optim.eps is 0.0'),
        ({'clip_norm': -1.0}, 'optim.clip_norm is -1.0'),
        ({'warmup_epochs': -1.0}, 'optim.warmup_epochs is -1.0'),
        (
            {'warmup_epochs': 2.5},
            'optim.warmup_epochs is 2.5 \\(5 steps\\) but training lasts 5 steps; make it shorter',
        ),
        (
            {'schedule': 'step', 'step_epochs': ()},
            'optim.step_epochs is \\(\\); it must be growing numbers',
        ),
        (
            {'schedule': 'step', 'step_epochs': (2, 1)},
            'optim.step_epochs is \\(2, 1\\); it must be growing numbers',
        ),
        ({'schedule': 'step', 'step_epochs': (0,)}, 'optim.step_epochs is \\(0,\\)'),
        (
            {'schedule': 'step', 'step_epochs': (1,), 'warmup_epochs': 1.5},
            'that begin after the warm-up',
        ),
        ({'step_factor': 0.0}, 'optim.step_factor is 0.0'),
        ({'final_factor': 1.5}, 'optim.final_factor is 1.5; it must be between 0 and 1'),
        (
            {'freeze': ('stem', 'stage2/')},
            "freeze pattern 'stage2/' matches no parameter .* modules: head, stage1, stage10, stem",
        ),
        (
            {'freeze': ('objective',)},
            "freeze pattern 'objective' matches no parameter of the student",
        ),
        (
            {'freeze': ('stage[',)},
            "freeze pattern 'stage\\[' is not a regular expression \\(.*\\); write the start",
        ),
        ({'freeze': 'stem'}, "optim.freeze is 'stem'; it must be a list of regular expressions"),
    ],
)
def test_bad_input_is_one_sentence(fields, sentence):
    fields = {'name': 'sgd', 'learning_rate': 0.1, 'schedule': 'constant'} | fields
    with pytest.raises(UserError, match=sentence) as caught:
        optim.build(random_params(), settings_of(**fields), **LENGTH)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('fields', 'sentence'),
    [
        ({'ema_decay': 1.0}, 'is 1.0; it must be at least 0 (off) and less than 1'),
        (
            {'ema_decay': float('nan')},
            'is nan; it must be finite, and at least 0 (off) and less than 1',
        ),
        ({'accumulate': 0}, 'is 0; it must be a whole number, 1 or more'),
        ({'teacher_factor': -1.0}, 'is -1.0; it must be a finite number, 0 (off) or more'),
        (
            {'train': 'head'},
            "is 'head'; it must be a list of regular expressions, such as ('head', '.*norm')",
        ),
        ({'learning_rate': '0.1'}, "is '0.1'; it must be a number, such as 0.1"),
    ],
)
def test_settings_are_read_from_where_they_stand(fields, sentence):
    ((name, _),) = fields.items()
    with pytest.raises(UserError) as caught:
        optim.read(fields, 'runs.student.optim')
    assert str(caught.value) == f'runs.student.optim.{name} {sentence}'


def test_settings_are_those_of_a_config_and_every_field_has_a_limit():
    config = common.run(common.study(), 'cnn').optim
    assert optim.read(config) == optim.Settings() == optim.Settings(**config)
    own = limits.own(optim.Settings)
    assert own.keys() == {f.name for f in dataclasses.fields(optim.Settings)}
    assert unbounded(own) == []
    assert limits.swept(optim.Settings) == ('learning_rate', 'weight_decay')
    with pytest.raises(
        UserError, match="^unknown field of optim 'learning_rte'; did you mean 'learning_rate'"
    ):
        optim.read({'learning_rte': 1.0})


# Numbers that only a running step knows


@pytest.mark.parametrize('name', sorted(optim.OPTIMISERS))
def test_numbers_given_when_the_step_runs_are_as_if_written_down_and_compile_nothing(name):
    params = random_params()
    gradients = random_gradients(params)
    fields = {
        'name': name,
        'schedule': 'cosine',
        'warmup_epochs': 1.0,
        'clip_norm': 5.0,
        'freeze': ('stem',),
        'train': (),
    }
    optimizer, schedule = optim.build(
        params, settings_of(learning_rate=0.3, weight_decay=0.2, **fields), **LENGTH
    )
    traces = []

    @partial(quickly, options=FASTEST_COMPILE)
    def update(g, state, params, hparams):
        traces.append(1)
        updates, state = optimizer(hparams | {'objective.kl.tau': 1.0}).update(g, state, params)
        return optax.apply_updates(params, updates), state

    for rate, decay in ((0.3, 0.2), (0.05, 0.01), (0.7, 0.0)):
        want, want_state = train(
            params, gradients, learning_rate=rate, weight_decay=decay, **fields
        )
        got, state = params, optimizer().init(params)
        for g in gradients:
            got, state = update(
                g, state, got, {'optim.learning_rate': rate, 'optim.weight_decay': decay}
            )
        assert_close(got, want)
        assert jax.tree.structure(state) == jax.tree.structure(want_state)
    assert len(traces) == 1
    # the settings' own, whatever was given
    np.testing.assert_allclose(float(schedule(2)), 0.3, rtol=1e-6)


def test_what_is_not_given_when_the_step_runs_is_the_settings_own():
    params = random_params()
    g = random_gradients(params)[0]
    fields = {'schedule': 'constant', 'momentum': 0.5}
    optimizer, _ = optim.build(
        params, settings_of(learning_rate=0.3, weight_decay=0.2, **fields), **LENGTH
    )
    got, _ = followed(optimizer({'optim.learning_rate': 0.1}), params, [g])
    want, _ = train(params, [g], learning_rate=0.1, weight_decay=0.2, **fields)
    assert_close(got, want)


@pytest.mark.parametrize('freeze', [(), ('stem',)], ids=str)
@pytest.mark.parametrize('clip', [0.0, 1.0])
@pytest.mark.parametrize('name', sorted(optim.OPTIMISERS))
def test_the_state_has_the_structure_that_checkpoints_have(name, clip, freeze):
    """Written out: checkpoints of another structure could not be read."""
    params = {'student': random_params()['student'], 'objective': {}}
    rate, decay = optax.constant_schedule(0.1), optax.add_decayed_weights(0.0)
    tx = {
        'sgd': lambda: optax.chain(decay, optax.sgd(rate, 0.9, False)),
        'adam': lambda: optax.chain(decay, optax.adam(rate)),
        'adamw': lambda: optax.chain(
            optax.scale_by_adam(), decay, optax.scale_by_learning_rate(rate)
        ),
    }[name]()
    tx = optax.chain(optax.clip_by_global_norm(clip), tx) if clip else tx
    if freeze:
        mask = {'student': optim.frozen_mask(params['student'], freeze), 'objective': {}}
        tx = optax.selective_transform(tx, freeze_mask=mask)
    optimizer, _ = optim.build(
        params, settings_of(name=name, clip_norm=clip, freeze=freeze), **LENGTH
    )
    for hparams in (
        None,
        {'optim.learning_rate': jnp.float32(0.2), 'optim.weight_decay': jnp.float32(0.1)},
    ):
        got, want = optimizer(hparams).init(params), tx.init(params)
        assert jax.tree.structure(got) == jax.tree.structure(want)
        assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)


def test_train_freezes_all_but_what_it_matches():
    params = random_params()
    got, _ = train(
        params,
        random_gradients(params),
        name='sgd',
        train=('head', 'stage1/'),
        freeze=('head/bias',),
    )
    moved = {
        path
        for path, x in paths(params).items()
        if (np.asarray(x) != np.asarray(paths(got)[path])).any()
    }
    assert {path for path in moved if path.startswith('student/')} == {
        'student/head/kernel',
        'student/stage1/block0/kernel',
    }
    everything, _ = train(params, random_gradients(params), name='sgd', train=('.*',))
    assert_close(everything, train(params, random_gradients(params), name='sgd')[0], rtol=0, atol=0)
    with pytest.raises(
        UserError, match="^optim.train pattern 'hed' matches no parameter of the student"
    ):
        optim.build(params, settings_of(train=('head', 'hed')), **LENGTH)
