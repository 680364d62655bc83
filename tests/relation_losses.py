"""Losses on relations between examples: the authors' published code in float64 NumPy, cases and
inputs; `losses` lists them.

The code: distiller_zoo/{SP,CC,RKD,PKT}.py and crd/{memory,criterion}.py of
HobbitLong/RepDistiller. Theirs returns one number a batch; an oracle here returns the examples'
shares, whose mean is that number.
"""

from functools import cache

import jax
import numpy as np
from loss_inputs import Inputs, shapes_of

from kd_jax.models.common import Output
from kd_jax.objectives import contrast

B = 8
NAMES = ('stage1', 'stage2', 'stage3', 'stage3_pre', 'pooled')
STUDENT = dict(zip(NAMES, ((8, 8, 3), (4, 4, 5), (2, 2, 6), (2, 2, 6), (7,)), strict=True))
TEACHER = dict(zip(NAMES, ((12, 12, 4), (6, 6, 5), (3, 3, 8), (3, 3, 8), (9,)), strict=True))
# labels of the train images
TRAIN = np.array([0, 1, 2, 2, -1, 0, 1, 1, 2, -1, 1, 0, 2, 1, 2], np.int32)
N = len(TRAIN)
SMALL = {'cc': {'dim': 5}, 'crd': {'dim': 8, 'negatives': 20}}  # in every test


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
    """(values, the memory afterwards), with the negatives that the batch says were drawn."""
    memory, index = dict(variables['memory']), np.asarray(batch['index'])
    chosen = np.concatenate([index[:, None], batch['drawn']], 1)
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


PUBLISHED = {
    'cc': cc_oracle,
    'crd': lambda *given: crd_step(*given)[0],
    'pkt': pkt_oracle,
    'rkd': rkd_oracle,
    'sp': sp_oracle,
}


def parts_of(name, inputs):
    """What the formulas take: the variables are those of the loss alone."""
    own = {kind: tree.get(name, {}) for kind, tree in inputs.variables.items()}
    return inputs.student.features, inputs.teacher.features, own, inputs.batch


def oracle_of(name):
    return lambda inputs, fields: PUBLISHED[name](*parts_of(name, inputs), fields)


ORACLES = {name: oracle_of(name) for name in PUBLISHED}
MORE = [
    ('rkd', {'distance': 0.0}),
    ('rkd', {'distance': 2.0, 'angle': 0.0}),
    ('crd', {'tau': 0.3, 'momentum': 0.9}),
]
CASES = [
    (name, SMALL.get(name, {}) | fields) for name, fields in [*((n, {}) for n in ORACLES), *MORE]
]
LOOKS_ACROSS = tuple(ORACLES)  # the batch
STOPS = ('pkt', 'rkd', 'sp')  # the gradient to the teacher by itself


# Inputs


def features_of(seed, shapes, batch=B):
    rng = np.random.default_rng(seed)
    return {
        name: np.float32(rng.standard_normal((batch, *shape))) for name, shape in shapes.items()
    }


def output(features):
    return Output(np.zeros((len(features['pooled']), 3), np.float32), features)


def make_batch(index=(3, 0, 9, 11, 7, 14, 2, 5)):
    index = np.asarray(index)
    return {'index': index, 'label': TRAIN[index], 'mask': np.ones(len(index), np.float32)}


def memory_of(dim, constants=(90.0, 70.0)):
    """As if it had seen a batch."""
    rng = np.random.default_rng(5)
    banks = {side: np.float32(rng.uniform(-0.6, 0.6, (N, dim))) for side in ('student', 'teacher')}
    found = zip(('constant_student', 'constant_teacher'), map(np.float32, constants), strict=True)
    return banks | dict(found) | contrast.by_class(TRAIN)


@cache
def variables_of(name):
    """Nothing is at a special value."""
    s, t = output(features_of(1, STUDENT)), output(features_of(2, TEACHER))
    batch, rng = make_batch() | {'train_label': TRAIN}, np.random.default_rng(2)
    fields = SMALL.get(name, {})
    variables = dict(shapes_of(name, Inputs(s, t, batch, {}), **fields))

    def draw(leaf):
        fans = leaf.shape[0] if len(leaf.shape) > 1 else 10
        return np.float32(rng.standard_normal(leaf.shape) / np.sqrt(fans))

    if 'params' in variables:
        variables['params'] = jax.tree.map(draw, variables['params'])
    if 'memory' in variables:
        memory = memory_of(fields['dim'])
        assert jax.tree.map(np.shape, memory) == jax.tree.map(np.shape, variables['memory'][name])
        variables['memory'] = {name: memory}
    return variables


def inputs(name):
    s, t = output(features_of(1, STUDENT)), output(features_of(2, TEACHER))
    return Inputs(s, t, make_batch(), variables_of(name))


def inputs_of_the_first_batch(name):
    """With a memory, if there is one, that has seen none: its constants are not set."""
    given = inputs(name)
    if name != 'crd':
        return given
    unset = {f'constant_{side}': np.float32(-1) for side in ('student', 'teacher')}
    memory = given.variables['memory']['crd'] | unset
    return given._replace(variables=given.variables | {'memory': {'crd': memory}})


def degenerate(student, teacher):
    """Inputs with other features, and with biases of zero."""

    def changed(name):
        given = inputs(name)
        params = jax.tree_util.tree_map_with_path(
            lambda path, x: 0 * x if path[-1].key == 'bias' else x,
            given.variables.get('params', {}),
        )
        return Inputs(
            jax.tree.map(student, given.student),
            jax.tree.map(teacher, given.teacher),
            given.batch,
            given.variables | {'params': params},
        )

    return changed


def second_is_first(x):
    return np.concatenate([x[:1], x[:1], x[2:]])


def same(x):
    return x


DEGENERATE = {
    'a student of zeros': degenerate(lambda x: 0 * x, same),
    'two equal examples': degenerate(second_is_first, same),
    'two equal examples for both': degenerate(second_is_first, second_is_first),
    'one example repeated': degenerate(lambda x: 0 * x + x[:1], same),
}
# There the published code gives rounding or NaN.
INEXACT = {('crd', 'a student of zeros'), *((name, 'one example repeated') for name in ORACLES)}
