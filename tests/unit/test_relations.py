"""Objectives on relations between examples, against the authors' published
code written in numpy float64.

The code: distiller_zoo/{SP,CC,RKD,PKT}.py and crd/{memory,criterion}.py of
HobbitLong/RepDistiller. Theirs returns one number a batch; an oracle here returns the examples'
shares, whose mean is that number.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quickly

from kd_jax.errors import UserError
from kd_jax.models.common import Output
from kd_jax.objectives import OBJECTIVES, build, contrast, defaults, relations

B = 6
NAMES = ('stage1', 'stage2', 'stage3', 'stage3_pre', 'pooled')
STUDENT = dict(zip(NAMES, ((8, 8, 3), (4, 4, 5), (2, 2, 6), (2, 2, 6), (7,)), strict=True))
TEACHER = dict(zip(NAMES, ((12, 12, 4), (6, 6, 5), (3, 3, 8), (3, 3, 8), (9,)), strict=True))
# labels of the train images
TRAIN = np.array([0, 1, 2, 2, -1, 0, 1, 1, 2, -1, 1, 0, 2, 1, 2], np.int32)
N = len(TRAIN)
# of each train image, never itself
NEGATIVES = (np.arange(N)[:, None] + np.random.default_rng(9).integers(1, N, (N, 20))) % N
KEYS = {'params': jax.random.key(1), 'negatives': jax.random.key(3)}
UNSET = {'constant_student': jnp.float32(-1), 'constant_teacher': jnp.float32(-1)}


# Oracles: (student features, teacher features, variables, batch, fields) in float64 -> values [B]


def normalize(x, axis):
    # torch.nn.functional.normalize
    return x / np.maximum(np.sqrt((x**2).sum(axis, keepdims=True)), 1e-12)


def dense(x, params):
    return x @ params['kernel'] + params['bias']


def smooth_l1(a, b):
    gap = np.abs(a - b)
    return np.where(gap < 1, 0.5 * gap**2, gap - 0.5)


def sp_oracle(s, t, variables, batch, f):
    grams = [
        x['stage3'].reshape(len(x['stage3']), -1) @ x['stage3'].reshape(len(x['stage3']), -1).T
        for x in (s, t)
    ]
    gap = normalize(grams[1], 1) - normalize(grams[0], 1)
    return (gap**2).sum(1) / len(gap)


def cc_oracle(s, t, variables, batch, f):
    p = variables['params']
    delta = np.abs(dense(s['pooled'], p['student']) - dense(t['pooled'], p['teacher']))
    both = (delta[:-1] * delta[1:]).sum(1)
    return np.append(both, 0.0) * len(delta) / (len(delta) - 1)


def pdist(e):
    square = (e**2).sum(1)
    found = np.sqrt(np.clip(square[:, None] + square[None, :] - 2 * e @ e.T, 1e-12, None))
    np.fill_diagonal(found, 0.0)
    return found / found[found > 0].mean()


def angles(e):
    unit = normalize(e[None, :, :] - e[:, None, :], 2)
    return np.einsum('abd,acd->abc', unit, unit)


def rkd_oracle(s, t, variables, batch, f):
    s, t = s['pooled'], t['pooled']
    return f['distance'] * smooth_l1(pdist(s), pdist(t)).mean(1) + f['angle'] * smooth_l1(
        angles(s), angles(t)
    ).mean((1, 2))


def pkt_oracle(s, t, variables, batch, f):
    eps, p = 1e-7, []
    for x in (s['pooled'], t['pooled']):
        x = x / (np.sqrt((x**2).sum(1, keepdims=True)) + eps)
        similarity = (x @ x.T + 1.0) / 2.0
        p.append(similarity / similarity.sum(1, keepdims=True))
    return (p[1] * np.log((p[1] + eps) / (p[0] + eps))).mean(1)


def contrast_oracle(p, count):
    """ContrastLoss of p [B, 1 + K], the positive first."""
    m, eps = p.shape[1] - 1, 1e-7
    noise = m / count
    return -(
        np.log(p[:, 0] / (p[:, 0] + noise + eps)) + np.log(noise / (p[:, 1:] + noise + eps)).sum(1)
    )


def crd_step(s, t, variables, batch, f):
    """(values, the memory afterwards), with the negatives of `NEGATIVES`."""
    memory, index = dict(variables['memory']), np.asarray(batch['index'])
    chosen = np.concatenate([index[:, None], NEGATIVES[index]], 1)
    values, after = 0.0, dict(memory)
    features, own = {'student': s['pooled'], 'teacher': t['pooled']}, {}
    for side in features:
        v = dense(features[side], variables['params'][f'embed_{side}'])
        own[side] = v / np.sqrt((v**2).sum(1, keepdims=True))
    for side, other in (('student', 'teacher'), ('teacher', 'student')):
        scores = np.exp(np.einsum('bkd,bd->bk', memory[other][chosen], own[side]) / f['tau'])
        constant = memory[f'constant_{side}']
        after[f'constant_{side}'] = constant = scores.mean() * N if constant < 0 else constant
        values = values + contrast_oracle(scores / constant, N)
        moved = f['momentum'] * memory[side][index] + (1 - f['momentum']) * own[side]
        after[side] = memory[side].copy()
        after[side][index] = moved / np.sqrt((moved**2).sum(1, keepdims=True))
    return values, after


ORACLES = {
    'sp': sp_oracle,
    'cc': cc_oracle,
    'rkd': rkd_oracle,
    'pkt': pkt_oracle,
    'crd': lambda *given: crd_step(*given)[0],
}
SMALL = {'cc': {'dim': 5}, 'crd': {'dim': 8, 'negatives': NEGATIVES.shape[1]}}  # in every test
MORE = [
    ('rkd', {'distance': 0.0}),
    ('rkd', {'distance': 2.0, 'angle': 0.0}),
    ('crd', {'tau': 0.3, 'momentum': 0.9}),
]
CASES = [*((name, {}) for name in ORACLES), *MORE]


def features_of(seed, shapes, batch=B, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.standard_normal((batch, *shape)), dtype)
        for name, shape in shapes.items()
    }


def output(features):
    return Output(jnp.zeros((len(features['pooled']), 3)), features)


def make_batch(index=(3, 0, 9, 11, 7, 14)):
    index = np.asarray(index)
    return {'index': index, 'label': TRAIN[index], 'mask': np.ones(len(index), np.float32)}


def float64(tree):
    return jax.tree.map(np.float64, tree)


def initial(term, s, t, batch):
    return quickly(lambda s, t: term.init(KEYS, s, t, batch | {'train_label': TRAIN}))(s, t)


def perturbed(variables):
    """The constants of a memory are then as if it had seen a batch."""
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda p: p + 0.3 * rng.standard_normal(p.shape).astype(np.float32),
        variables.get('params', {}),
    )
    seen = {'constant_student': jnp.float32(90), 'constant_teacher': jnp.float32(70)}
    return (
        variables
        | {'params': params}
        | ({'memory': variables['memory'] | seen} if 'memory' in variables else {})
    )


def apply(term, variables, s, t, batch):
    """(values, variables afterwards)"""
    rngs = {'negatives': KEYS['negatives']}
    values, state = term.apply(
        variables, output(s), output(t), batch, mutable=['memory'], rngs=rngs
    )
    return values, variables | state


@cache
def programs(term, draw_negatives):
    """`apply`, and its values with the gradients of their weighted sum for s and
    the parameters: compiled once.

    draw_negatives: the one in use, which is compiled in.
    """

    def total(s, params, variables, t, batch, share):
        values, after = apply(term, variables | {'params': params}, s, t, batch)
        return (values * share).sum(), (values, after)

    return quickly(partial(apply, term)), quickly(jax.value_and_grad(total, (0, 1), has_aux=True))


def evaluate(term, variables, s, t, batch):
    return programs(term, contrast.draw_negatives)[0](variables, s, t, batch)


def evaluate_with_gradients(term, variables, s, t, batch, share):
    """((weighted sum, (values, variables afterwards)), gradients for the student's
    features and the parameters)
    """
    run = programs(term, contrast.draw_negatives)[1]
    return run(s, variables.get('params', {}), variables, t, batch, np.float32(share))


def set_up(name, fields=(), dtype=jnp.float32):
    """(term, all fields, student's and teacher's features, batch, perturbed variables)"""
    return _set_up(name, tuple(sorted(dict(fields).items())), dtype)


@cache
def _set_up(name, fields, dtype):
    fields = SMALL.get(name, {}) | dict(fields)
    term, batch = OBJECTIVES[name](**fields), make_batch()
    s, t = features_of(1, STUDENT, dtype=dtype), features_of(2, TEACHER, dtype=dtype)
    return (
        term,
        defaults(name) | fields,
        s,
        t,
        batch,
        perturbed(initial(term, output(s), output(t), batch)),
    )


def those_given(key, index, memory, count):
    return jnp.asarray(NEGATIVES)[index]


@pytest.fixture
def given_negatives(monkeypatch):
    monkeypatch.setattr(contrast, 'draw_negatives', those_given)


# Every objective


def test_every_objective_of_these_files_has_an_oracle():
    here = {
        name
        for name, term in OBJECTIVES.items()
        if term.__module__ in (relations.__name__, contrast.__name__)
    }
    assert set(ORACLES) == here


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize(('name', 'fields'), CASES, ids=str)
def test_values_equal_the_published_code(name, fields, dtype, given_negatives):
    term, fields, s, t, batch, variables = set_up(name, fields, dtype)
    values, _ = evaluate(term, variables, s, t, batch)
    want = ORACLES[name](float64(s), float64(t), float64(variables), batch, fields)
    assert values.shape == (B,) and values.dtype == jnp.float32
    np.testing.assert_allclose(values, want, rtol=1e-4, atol=1e-4 * np.abs(want).mean())


@pytest.mark.parametrize(('name', 'fields'), CASES, ids=str)
def test_gradients_equal_differences_of_the_published_code(name, fields, given_negatives):
    term, fields, s, t, batch, variables = set_up(name, fields)
    rng = np.random.default_rng(4)
    share = rng.standard_normal(B)  # of each example in a sum
    free = {'features': s, 'params': variables.get('params', {})}

    def oracle(free):
        own = float64(variables) | {'params': free['params']}
        return (ORACLES[name](free['features'], float64(t), own, batch, fields) * share).sum()

    _, gradients = evaluate_with_gradients(term, variables, s, t, batch, share)
    gradient, free = float64(dict(zip(free, gradients, strict=True))), float64(free)
    assert {key for key, g in gradient['features'].items() if np.any(g)} == {
        'stage3' if name == 'sp' else 'pooled'
    }
    scale = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
    for _ in range(5):
        direction = jax.tree.map(lambda x: rng.standard_normal(x.shape), free)
        got = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)))
        up, down = (
            oracle(jax.tree.map(lambda x, d, h=h: x + h * d, free, direction))
            for h in (1e-5, -1e-5)
        )
        np.testing.assert_allclose(got, (up - down) / 2e-5, atol=2e-4 * scale)


@pytest.mark.parametrize('name', ORACLES)
def test_values_follow_their_examples_when_the_batch_is_permuted(name):
    term, _, s, t, batch, variables = set_up(name)
    order = np.array([3, 0, 5, 1, 4, 2])
    values, after = evaluate(term, variables, s, t, batch)
    s, t = ({k: x[order] for k, x in features.items()} for features in (s, t))
    moved, moved_after = evaluate(term, variables, s, t, make_batch(batch['index'][order]))
    if name == 'cc':  # as published it compares neighbours
        assert np.abs(moved - values[order]).max() > 0.1 * np.mean(values) and values[-1] == 0
        assert abs(np.mean(moved) - np.mean(values)) > 1e-2 * np.mean(values)
        return
    np.testing.assert_allclose(moved, values[order], rtol=1e-4, atol=1e-5 * np.abs(values).mean())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), moved_after, after
    )


@pytest.mark.parametrize('name', ORACLES)
def test_no_gradient_reaches_the_teachers_features(name):
    batch, s, t = make_batch(), features_of(1, STUDENT), features_of(2, TEACHER)
    terms = build({name: SMALL.get(name, {})}, (1.0,))
    variables = initial(terms, output(s), (output(t),), batch)

    def total(s, t):
        return terms.apply(
            variables, output(s), (output(t),), batch, mutable=['memory'], rngs=KEYS
        )[0][name].sum()

    own, teachers = quickly(jax.grad(total, (0, 1)))(s, t)
    assert all(not np.any(g) for g in teachers.values()) and any(np.any(g) for g in own.values())


DEGENERATE = {
    'a student of zeros': (lambda x: 0 * x, lambda x: x),
    'two equal examples': (lambda x: x.at[1].set(x[0]), lambda x: x),
    'two equal examples for both': (lambda x: x.at[1].set(x[0]), lambda x: x.at[1].set(x[0])),
    'one example repeated': (lambda x: 0 * x + x[:1], lambda x: x),
}


@pytest.mark.parametrize('case', DEGENERATE)
@pytest.mark.parametrize('name', ORACLES)
def test_values_and_gradients_are_finite_at_degenerate_input(name, case, given_negatives):
    term, fields, s, t, batch, _ = set_up(name)
    variables = initial(term, output(s), output(t), batch)  # zero biases
    s, t = (jax.tree.map(change, x) for change, x in zip(DEGENERATE[case], (s, t), strict=True))

    (_, (values, after)), gradient = evaluate_with_gradients(
        term, variables, s, t, batch, np.ones(B)
    )
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((values, after, gradient)))
    if case != 'one example repeated' and (name, case) != (
        'crd',
        'a student of zeros',
    ):  # rounding; theirs is NaN
        want = ORACLES[name](float64(s), float64(t), float64(variables), batch, fields)
        np.testing.assert_allclose(values, want, rtol=2e-3, atol=1e-3 * np.abs(want).mean() + 1e-9)


# Devices


@pytest.mark.parametrize('name', [*ORACLES, 'dist'])
def test_four_devices_give_the_values_and_gradients_of_one(name):
    batch, x = make_batch([3, 0, 9, 11, 7, 14, 2, 5]), features_of(5, {'input': (5,)}, 8)['input']
    shapes = {'stage3': (2, 2, 6), 'pooled': (7,), 'logits': (4,)}
    teacher = features_of(6, {'stage3': (3, 3, 8), 'pooled': (9,), 'logits': (4,)}, 8)
    weights = features_of(7, {k: (int(np.prod(shape)),) for k, shape in shapes.items()}, 5)

    def with_logits(features):
        return Output(features['logits'], {k: v for k, v in features.items() if k != 'logits'})

    def network(weights, x):
        return with_logits(
            {k: (x @ weights[k]).reshape(len(x), *shape) for k, shape in shapes.items()}
        )

    terms = {
        n: OBJECTIVES[name](**SMALL.get(name, {}), axis_name='batch' if n > 1 else None)
        for n in (1, 4)
    }
    variables = initial(terms[1], network(weights, x), with_logits(teacher), batch)
    free = {'weights': weights, 'params': variables.get('params', {})}

    def step(x, teacher, batch, devices):
        def loss(free):
            own = variables | {'params': free['params']}
            given = network(free['weights'], x), with_logits(teacher), batch
            values, state = terms[devices].apply(own, *given, mutable=['memory'], rngs=KEYS)
            return values.sum() * devices / 8, (values, state)  # as kd_jax/step.py scales it

        gradient, (values, state) = jax.grad(loss, has_aux=True)(free)
        return values, jax.lax.pmean(gradient, 'batch') if devices > 1 else gradient, state

    want_values, want_gradient, want_state = quickly(partial(step, devices=1))(x, teacher, batch)
    split = jax.tree.map(lambda a: a.reshape(4, 2, *a.shape[1:]), (x, teacher, batch))
    values, gradient, state = jax.pmap(
        partial(step, devices=4), 'batch', devices=jax.devices()[:4]
    )(*split)
    np.testing.assert_allclose(
        values.reshape(8), want_values, rtol=1e-4, atol=1e-5 * np.abs(want_values).mean()
    )
    largest = max(np.abs(g).max() for g in jax.tree.leaves(want_gradient))
    assert ('memory' in want_state) == (name == 'crd') and largest > 1e-5

    def compare(got, want, atol):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, np.stack([got[0]] * 4))
        np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=atol)

    jax.tree.map(partial(compare, atol=1e-5 * largest), gradient, want_gradient)
    jax.tree.map(partial(compare, atol=1e-6), state, want_state)


# Identities


def rotation(size):
    return np.linalg.qr(np.random.default_rng(8).standard_normal((size, size)))[0].astype(
        np.float32
    )


@pytest.mark.parametrize('name', ['rkd_distance', 'rkd_angle', 'sp', 'pkt'])
def test_what_relations_do_not_see(name):
    s, t = features_of(1, STUDENT)['pooled'], features_of(2, TEACHER)['pooled']
    loss = quickly(getattr(relations, name))
    want, turned = loss(s, t), s @ rotation(7)
    assert np.min(want) > 1e-4
    for other in (loss(turned, t), loss(s, t @ rotation(9)), loss(5 * s, t), loss(s, 0.2 * t)):
        np.testing.assert_allclose(other, want, rtol=1e-4)
    for same in (s, turned, 3 * s, *((turned + 1,) if 'rkd' in name else ())):
        np.testing.assert_allclose(loss(same, s), 0, atol=1e-7)
    if 'rkd' in name:
        for other in (loss(s + 1, t), loss(s, t - 2), loss(0.1 * s + 3, t)):
            np.testing.assert_allclose(other, want, rtol=1e-4)
    else:
        assert np.abs(loss(s + 1, t) - want).max() > 1e-2 * np.max(want)


def test_the_huber_loss_has_the_published_values_and_gradients_also_at_its_bends():
    gaps = np.float32([-3, -1, -0.7, -1e-3, 0, 1e-6, 0.5, 1, 1 + 1e-6, 2])
    values, gradients = jax.vmap(jax.value_and_grad(relations.huber_loss))(jnp.asarray(gaps))
    np.testing.assert_allclose(values, smooth_l1(np.float64(gaps), 0.0), rtol=1e-6)
    # of sums with 1: rounded as that is
    np.testing.assert_allclose(gradients, np.clip(gaps, -1, 1), atol=1e-7)


# CRD


def draw(*indices, count=50, seed=3):
    """For each of some arrays of indices `[B, count]`."""
    memory = set_up('crd')[-1]['memory']
    drawn = quickly(
        lambda key: [contrast.draw_negatives(key, jnp.asarray(i), memory, count) for i in indices]
    )
    return jax.device_get(drawn(jax.random.key(seed)))


def test_negatives_are_all_images_of_other_classes_equally_often():
    for i, row in enumerate(draw(np.arange(N), count=4000)[0]):
        own = (TRAIN[i] == TRAIN) if TRAIN[i] >= 0 else np.arange(N) == i
        candidates = np.flatnonzero(~own)
        counts = np.bincount(row, minlength=N)
        assert set(np.flatnonzero(counts)) == set(candidates)
        expected = len(row) / len(candidates)
        # chi-square with at most 13 degrees of freedom
        assert ((counts[candidates] - expected) ** 2 / expected).sum() < 40


def test_negatives_depend_on_the_images_index_and_the_key_only():
    places = np.arange(N), [4], [7, 3, 0], np.arange(N)[::-1]
    every, *others = draw(*places)
    for index, drawn in zip(places[1:], others, strict=True):
        np.testing.assert_array_equal(drawn, every[index])
    assert (draw([0], seed=4)[0] != every[0]).any()
    # of one class, not the same
    assert len({tuple(every[i]) for i in np.flatnonzero(TRAIN == 1)}) == np.sum(TRAIN == 1)


def test_contrast_is_the_published_loss():
    p = np.random.default_rng(10).uniform(0, 2, (B, 21)).astype(np.float32)
    np.testing.assert_allclose(
        contrast.contrast(p[:, 0], p[:, 1:], N), contrast_oracle(np.float64(p), N), rtol=1e-5
    )


def test_memory_starts_as_published_and_there_may_be_more_negatives_than_images():
    s, t, batch = set_up('crd')[2:5]
    term = OBJECTIVES['crd'](dim=48, negatives=5 * N)
    variables = initial(term, output(s), output(t), batch)
    memory, values = variables['memory'], evaluate(term, variables, s, t, batch)[0]
    assert values.shape == (B,) and np.isfinite(values).all()
    for bank in (memory['student'], memory['teacher']):
        assert bank.shape == (N, 48) and bank.dtype == jnp.float32
        # uniform up to 1 / sqrt(48 / 3)
        assert 0.24 < np.abs(bank).max() <= 0.25 and abs(np.mean(bank)) < 0.02
    assert np.abs(memory['student'] - memory['teacher']).max() > 0.1
    assert memory['constant_student'] == memory['constant_teacher'] == -1


def test_two_steps_of_memory_and_constants_equal_the_published_code(given_negatives):
    term, fields, s, t, batch, variables = set_up('crd', {'momentum': 0.8})
    variables = variables | {'memory': variables['memory'] | UNSET}
    for number, index in enumerate(([3, 0, 9, 11, 7, 14], [14, 1, 2, 0, 4, 5])):
        batch = make_batch(index)
        values, after = evaluate(term, variables, s, t, batch)
        want, memory = crd_step(float64(s), float64(t), float64(variables), batch, fields)
        np.testing.assert_allclose(values, want, rtol=1e-4)
        assert set(after['memory']) == set(memory)
        rest = np.setdiff1d(np.arange(N), index)
        for name, array in after['memory'].items():
            np.testing.assert_allclose(array, memory[name], rtol=1e-5, atol=1e-6, err_msg=name)
            if name in ('student', 'teacher'):
                np.testing.assert_array_equal(array[rest], variables['memory'][name][rest])
            elif number or not name.startswith('constant'):
                np.testing.assert_array_equal(array, variables['memory'][name])
        variables = after


def test_no_gradient_flows_through_the_memory_and_the_constants(given_negatives):
    term, _, s, t, batch, variables = set_up('crd')
    unset = variables['memory'] | UNSET
    floats = {k: v for k, v in unset.items() if v.dtype == jnp.float32}

    def run(s, given):
        values, after = apply(term, variables | {'memory': unset | given}, s, t, batch)
        return values.sum(), {k: after['memory'][k] for k in floats}

    (_, after), first = quickly(jax.value_and_grad(run, has_aux=True))(s, {})
    set_by_first = floats | {k: after[k] for k in UNSET}
    later, to_memory = quickly(jax.grad(lambda *both: run(*both)[0], (0, 1)))(s, set_by_first)
    np.testing.assert_allclose(first['pooled'], later['pooled'], rtol=1e-5, atol=1e-6)
    from_memory = quickly(
        jax.grad(lambda s: sum(x[:, 0].sum() if x.ndim else x for x in run(s, {})[1].values()))
    )(s)
    assert np.any(first['pooled']) and not any(np.any(g) for g in from_memory.values())
    assert {k for k, g in to_memory.items() if np.any(g)} == set()


def test_a_single_class_has_no_negatives():
    s, t, batch = output(features_of(1, STUDENT)), output(features_of(2, TEACHER)), make_batch()
    with pytest.raises(UserError, match='class') as caught:
        OBJECTIVES['crd'](dim=8).init(KEYS, s, t, batch | {'train_label': np.zeros(N, np.int32)})
    assert '\n' not in str(caught.value)
