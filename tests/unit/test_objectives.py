"""Objectives against formulas written in probability space in numpy float64, their analytic
gradients, and numbers by hand.
"""

import dataclasses
import functools
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from helpers import FAST_COMPILE, FASTEST_COMPILE, quickly
from ml_collections import ConfigDict, config_flags

from configs import common
from kd_jax import objectives
from kd_jax.errors import UserError
from kd_jax.fields import number
from kd_jax.models.common import Exit, Output
from kd_jax.objectives import OBJECTIVES, Loss, Objective, build, defaults, ensemble_logits, swept
from kd_jax.objectives import logits as pure

B, K = 6, 5
LN2, LN3 = np.log(2.0), np.log(3.0)


# Oracles: (student logits, teacher logits, labels, fields) in float64 -> (values [B], gradient for
# the student's logits [B, K])


def softmax(z, tau=1.0):
    e = np.exp(z / tau)  # float64 holds exp(120) and 1/exp(240)
    return e / e.sum(axis=1, keepdims=True)


def standardize(z):
    """(logits of mean 0 and unbiased standard deviation 1, the gradient
    for z of a gradient for those)

    https://github.com/sunshangquan/logit-standardization-KD mdistiller/distillers/KD.py.
    torch.std has the gradient 0 at 0.
    """
    centred = z - z.mean(1, keepdims=True)
    std = z.std(1, ddof=1, keepdims=True)

    def pull(g):
        along = np.divide(
            (g * centred).sum(1, keepdims=True),
            std * (z.shape[1] - 1),
            out=np.zeros_like(std),
            where=std > 0,
        )
        g = g / (1e-7 + std) - along * centred / (1e-7 + std) ** 2
        return g - g.mean(1, keepdims=True)

    return centred / (1e-7 + std), pull


def standardizable(oracle):
    @functools.wraps(oracle)
    def on_standardized(zs, zt, labels, f):
        if not f.get('standardize'):
            return oracle(zs, zt, labels, f)
        (zs, pull), (zt, _) = standardize(zs), standardize(zt)
        values, gradients = oracle(zs, zt, labels, f)
        return values, pull(gradients)

    return on_standardized


def cross_entropy_oracle(zs, zt, labels, f):
    weights = (
        np.ones(zs.shape[1]) if len(f['class_weights']) == 0 else np.asarray(f['class_weights'])
    )
    values, gradients = np.zeros(len(zs)), np.zeros_like(zs)
    for i, label in enumerate(labels):
        if label < 0:
            continue
        q = np.full(zs.shape[1], f['label_smoothing'] / zs.shape[1])
        q[label] += 1 - f['label_smoothing']
        p = softmax(zs[i : i + 1])[0]
        values[i] = -(weights * q * np.log(p)).sum()
        gradients[i] = p * (weights * q).sum() - weights * q
    return values, gradients


@standardizable
def kl_oracle(zs, zt, labels, f):
    ps, pt = softmax(zs, f['tau']), softmax(zt, f['tau'])
    return f['tau'] ** 2 * (pt * np.log(pt / ps)).sum(1), f['tau'] * (ps - pt)


@standardizable
def soft_cross_entropy_oracle(zs, zt, labels, f):
    ps, pt = softmax(zs, f['tau']), softmax(zt, f['tau'])
    return -(f['tau'] ** 2) * (pt * np.log(ps)).sum(1), f['tau'] * (ps - pt)


@standardizable
def logit_mse_oracle(zs, zt, labels, f):
    return ((zs - zt) ** 2).sum(1) / zs.shape[1], 2 * (zs - zt) / zs.shape[1]


@standardizable
def three_term_teacher_oracle(zs, zt, labels, f):
    if f['printed']:
        ps, pt = softmax(zs), softmax(zt)
        inner = (pt * ps).sum(1)
        value = -f['lam'] * np.log(inner / ps.sum(1)) - f['beta'] / f['tau'] * np.log(inner)
        return value, -(f['lam'] + f['beta'] / f['tau']) * ps * (pt - inner[:, None]) / inner[
            :, None
        ]
    soft = soft_cross_entropy_oracle(zs, zt, labels, {'tau': 1.0})
    hot = kl_oracle(zs, zt, labels, {'tau': f['tau']})
    return f['lam'] * soft[0] + f['beta'] * hot[0], f['lam'] * soft[1] + f['beta'] * hot[1]


def three_term_oracle(zs, zt, labels, f):
    own = cross_entropy_oracle(zs, zt, labels, {'label_smoothing': 0.0, 'class_weights': ()})
    from_teacher = three_term_teacher_oracle(zs, zt, labels, f)
    return own[0] + from_teacher[0], own[1] + from_teacher[1]


def split(z, target, tau):
    """(probability of the target, of all others, softmax over the others with 0 at the
    target), one example, at tau
    """
    p = softmax(z[None], tau)[0]
    others = np.delete(p, target)
    return p[target], others.sum(), np.insert(others / others.sum(), target, 0.0)


def divergence(p, q):
    """KL(p || q), where torch's kl_div has 0 log 0 = 0."""
    return (p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum()


def targets_of(labels, zt):
    return np.where(np.asarray(labels) < 0, zt.argmax(1), labels)


@standardizable
def dkd_oracle(zs, zt, labels, f):
    """https://github.com/megvii-research/mdistiller mdistiller/distillers/DKD.py,
    which removes a class with - 1000
    """
    alpha, beta, tau = f['alpha'], f['beta'], f['tau']
    values, gradients = np.zeros(len(zs)), np.zeros_like(zs)
    for i, target in enumerate(targets_of(labels, zt)):
        (own, rest, others), (own_t, rest_t, others_t) = (
            split(zs[i], target, tau),
            split(zt[i], target, tau),
        )
        tckd = divergence(np.array([own_t, rest_t]), np.array([own, rest]))
        nckd = divergence(np.delete(others_t, target), np.delete(others, target))
        values[i] = tau**2 * (alpha * tckd + beta * nckd)
        onehot = np.eye(zs.shape[1])[target]
        gradients[i] = tau * (
            alpha * (own * rest_t - own_t * rest) * (onehot - others) + beta * (others - others_t)
        )
    return values, gradients


@standardizable
def nkd_oracle(zs, zt, labels, f):
    """https://github.com/yzd-v/cls_KD mmcls/distillation/losses/nkd.py, as of its last commit"""
    gamma, tau = f['gamma'], f['tau']
    values, gradients = np.zeros(len(zs)), np.zeros_like(zs)
    ps, pt = softmax(zs), softmax(zt)
    for i, target in enumerate(targets_of(labels, zt)):
        others, others_t = split(zs[i], target, tau)[2], split(zt[i], target, tau)[2]
        non_target = (np.delete(others_t, target) * np.log(np.delete(others, target))).sum()
        values[i] = -pt[i, target] * np.log(ps[i, target]) - gamma * tau**2 * non_target
        onehot = np.eye(zs.shape[1])[target]
        gradients[i] = pt[i, target] * (ps[i] - onehot) + gamma * tau * (others - others_t)
    return values, gradients


def pearson(x, y):
    """(correlation of each row, its gradient for x); torch's norm has the gradient 0 at 0"""
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    length, other = (
        np.linalg.norm(x, axis=1, keepdims=True),
        np.linalg.norm(y, axis=1, keepdims=True),
    )
    product, below = (x * y).sum(1, keepdims=True), length * other + 1e-8
    gradient = y / below - product * other / below**2 * np.divide(
        x, length, out=np.zeros_like(x), where=length > 0
    )
    return (product / below)[:, 0], gradient - gradient.mean(1, keepdims=True)


@standardizable
def dist_oracle(zs, zt, labels, f):
    """https://github.com/hunto/image_classification_sota lib/models/losses/dist_kd.py"""
    beta, gamma, tau = f['beta'], f['gamma'], f['tau']
    ps, pt = softmax(zs, tau), softmax(zt, tau)
    of_rows, of_columns = pearson(ps, pt), pearson(ps.T, pt.T)
    values = tau**2 * (beta * (1 - of_rows[0]) + gamma * (1 - of_columns[0].mean()))
    # Each of the B values has the same second part, the mean over K classes.
    g = -(tau**2) * (beta * of_rows[1] + gamma * len(zs) / zs.shape[1] * of_columns[1].T)
    return values, ps * (g - (ps * g).sum(1, keepdims=True)) / tau


def virtual_teacher_oracle(zs, zt, labels, f):
    """https://github.com/yuanli2333/Teacher-free-Knowledge-Distillation
    my_loss_function.py, loss_kd_regularization

    Its nn.KLDivLoss() is a mean over the batch and the classes; here it is a sum over the classes.
    """
    classes = zs.shape[1]
    soft = np.full(zs.shape, (1 - f['correct']) / (classes - 1))
    soft[np.arange(len(zs)), labels] = f['correct']
    p, q = softmax(zs), softmax(soft, f['tau'])
    known = np.asarray(labels) >= 0
    return known * (q * np.log(q / p)).sum(1), known[:, None] * (p - q)


ORACLES = {
    'cross_entropy': cross_entropy_oracle,
    'dist': dist_oracle,
    'dkd': dkd_oracle,
    'kl': kl_oracle,
    'logit_mse': logit_mse_oracle,
    'nkd': nkd_oracle,
    'soft_cross_entropy': soft_cross_entropy_oracle,
    'three_term': three_term_oracle,
    'virtual_teacher': virtual_teacher_oracle,
}

# Those on auxiliary heads and on features have their oracles in their own files.
ON_LOGITS = sorted(
    name for name, term in OBJECTIVES.items() if not (term.needs_heads or term.needs_features)
)
CASES = [(name, {}) for name in ON_LOGITS] + [
    ('cross_entropy', {'label_smoothing': 0.1}),
    ('cross_entropy', {'label_smoothing': 0.3, 'class_weights': (0.5, 1.0, 2.0, 0.0, 3.0)}),
    ('kl', {'tau': 1.0}),
    ('kl', {'tau': 20.0}),
    ('soft_cross_entropy', {'tau': 1.0}),
    ('three_term', {'lam': 0.3, 'beta': 2.0, 'tau': 3.0}),
    ('three_term', {'lam': 0.3, 'beta': 2.0, 'tau': 3.0, 'printed': True}),
    ('dkd', {'alpha': 0.0, 'beta': 1.0, 'tau': 1.0}),
    ('dkd', {'alpha': 2.0, 'beta': 0.0, 'tau': 2.0}),
    ('nkd', {'gamma': 0.0}),
    ('nkd', {'gamma': 0.5, 'tau': 3.0}),
    ('dist', {'gamma': 0.0, 'tau': 4.0}),
    ('dist', {'beta': 0.0, 'gamma': 2.0}),
    ('dist', {'beta': 2.0, 'gamma': 0.5, 'tau': 2.0}),
    ('virtual_teacher', {'correct': 0.6, 'tau': 0.1}),
    ('kl', {'standardize': True}),
    ('soft_cross_entropy', {'standardize': True, 'tau': 2.0}),
    ('logit_mse', {'standardize': True}),
    ('three_term', {'standardize': True, 'lam': 0.3, 'beta': 2.0}),
    ('three_term', {'standardize': True, 'printed': True}),
    ('dkd', {'standardize': True, 'tau': 2.0}),
    ('nkd', {'standardize': True}),
    ('dist', {'standardize': True}),
]
IDS = ['-'.join([name, *(f'{k}={v}' for k, v in fields.items())]) for name, fields in CASES]


def random_logits(seed, scale=3.0, shape=(B, K)):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def make_batch(labels=(0, 4, -1, 2, 2, 1), **more):
    labels = np.asarray(labels, np.int32)
    return {
        'label': labels,
        'index': np.arange(len(labels)),
        'mask': np.ones(len(labels), np.float32),
        **more,
    }


def output(logits):
    return Output(jnp.asarray(logits), {})


@functools.cache
def program(term, options=None):
    """(student's logits, teacher's, batch) -> ((sum of the values, values [B]),
    gradients of the sum for both logits)
    """

    def total(zs, zt, batch):
        values = term.apply({}, output(zs), output(zt), batch)
        return values.sum(), values

    return quickly(
        jax.value_and_grad(total, argnums=(0, 1), has_aux=True), dict(options or FASTEST_COMPILE)
    )


def evaluate(term, zs, zt, batch, options=None):
    """(values [B], gradient of their sum for the student's logits [B, K])"""
    (_, values), (gradient, _) = program(term, options)(zs, zt, batch)
    return np.asarray(values), np.asarray(gradient)


# Every objective


def test_every_objective_has_an_oracle_and_a_case():
    assert set(ORACLES) == set(ON_LOGITS)
    assert {name for name, _ in CASES} == set(ON_LOGITS)


@pytest.mark.parametrize(('name', 'fields'), CASES, ids=IDS)
def test_the_gradients_of_the_formulas_are_those_of_their_values(name, fields):
    f = defaults(name) | fields
    zs, zt, labels, step = (
        np.float64(random_logits(1)),
        np.float64(random_logits(2)),
        make_batch()['label'],
        1e-5,
    )
    gradient = ORACLES[name](zs, zt, labels, f)[1]
    for i, k in np.ndindex(zs.shape):
        up, down = zs.copy(), zs.copy()
        up[i, k], down[i, k] = zs[i, k] + step, zs[i, k] - step
        difference = (
            ORACLES[name](up, zt, labels, f)[0] - ORACLES[name](down, zt, labels, f)[0]
        ).sum() / (2 * step)
        np.testing.assert_allclose(gradient[i, k], difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(('name', 'fields'), CASES, ids=IDS)
def test_values_and_gradients_equal_the_formulas(name, fields):
    zs, zt, batch = random_logits(1), random_logits(2), make_batch()
    values, gradient = evaluate(OBJECTIVES[name](**fields), zs, zt, batch)
    want = ORACLES[name](
        zs.astype(np.float64), zt.astype(np.float64), batch['label'], defaults(name) | fields
    )
    assert values.shape == (B,) and values.dtype == np.float32
    np.testing.assert_allclose(values, want[0], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(gradient, want[1], rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize(('name', 'fields'), CASES, ids=IDS)
def test_values_and_gradients_are_exact_and_finite_at_extreme_logits(name, fields):
    zs = np.float32(
        [
            [120, -120, 0, 0, 0],
            [-120, 120, 120, 0, 60],
            [120] * 5,
            [0, 0, 0, 0, -120],
            [120, -120, 120, -120, 1],
        ]
    )
    pairs = [(i, j) for i in range(5) for j in range(5)]
    s, t = np.stack([zs[i] for i, _ in pairs]), np.stack([zs[j][::-1] for _, j in pairs])
    batch = make_batch([k % 6 - 1 for k in range(25)])
    values, gradient = evaluate(
        OBJECTIVES[name](**fields), s, t, batch, tuple(FAST_COMPILE.items())
    )
    assert np.isfinite(values).all() and np.isfinite(gradient).all()
    want = ORACLES[name](
        s.astype(np.float64), t.astype(np.float64), batch['label'], defaults(name) | fields
    )
    np.testing.assert_allclose(values, want[0], rtol=1e-5, atol=1e-3)
    # Of five equal logits the Pearson correlation and the standardised logits have a derivative of
    # 1/epsilon, 1e7 or 1e8, in the published code, and rounding decides whether they are equal:
    # there the gradient need only be finite.
    exact = np.ptp(s, axis=1) > 0 if name == 'dist' or fields.get('standardize') else slice(None)
    np.testing.assert_allclose(gradient[exact], want[1][exact], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('name', 'fields'), CASES, ids=IDS)
def test_bfloat16_logits_are_computed_in_float32(name, fields):
    zs, zt = (
        jnp.asarray(random_logits(3), jnp.bfloat16),
        jnp.asarray(random_logits(4), jnp.bfloat16),
    )
    batch = make_batch()
    (_, values), _ = program(OBJECTIVES[name](**fields))(zs, zt, batch)
    want, _ = ORACLES[name](np.float64(zs), np.float64(zt), batch['label'], defaults(name) | fields)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(('name', 'fields'), CASES, ids=IDS)
def test_values_follow_their_examples_when_the_batch_is_permuted(name, fields):
    term, zs, zt, batch = (
        OBJECTIVES[name](**fields),
        random_logits(5),
        random_logits(6),
        make_batch(),
    )
    order = np.array([3, 0, 5, 1, 4, 2])
    values, gradient = evaluate(term, zs, zt, batch)
    moved = evaluate(term, zs[order], zt[order], make_batch(batch['label'][order]))
    # A sum over the batch in another order rounds otherwise.
    rounding = {'rtol': 5e-6, 'atol': 5e-7} if name == 'dist' else {'rtol': 1e-6, 'atol': 1e-7}
    np.testing.assert_allclose(moved[0], values[order], **rounding)
    np.testing.assert_allclose(moved[1], gradient[order], **rounding)


@pytest.mark.parametrize(('name', 'fields'), CASES, ids=IDS)
def test_no_gradient_reaches_the_teacher(name, fields):
    _, (own, gradient) = program(OBJECTIVES[name](**fields))(
        random_logits(7), random_logits(8), make_batch()
    )
    assert (np.asarray(gradient) == 0).all() and np.asarray(own).any()


@pytest.mark.parametrize('name', sorted(OBJECTIVES))
def test_defaults_are_the_users_fields_and_build_the_objective(name):
    fields = defaults(name)
    assert not {'axis_name', 'parent', 'name'} & set(fields)
    shared = {'weight': 1.0, 'ramp_epochs': 0.0, 'ramp_from': 0.0, 'only_where': 'always'}
    assert shared.items() <= fields.items()
    assert dataclasses.MISSING not in fields.values()
    built = build(
        {name: fields},
        (1.0,) if OBJECTIVES[name].needs_teacher else (),
        num_classes=K,
        axis_name='batch',
    )
    assert built.losses == ((name, OBJECTIVES[name](axis_name='batch')),)


def test_defaults_are_the_documented_ones():
    assert (
        defaults('cross_entropy').items() >= {'label_smoothing': 0.0, 'class_weights': ()}.items()
    )
    assert defaults('kl')['tau'] == defaults('soft_cross_entropy')['tau'] == 4.0
    own = {'lam': 1.0, 'beta': 1.0, 'tau': 4.0, 'printed': False}
    assert defaults('three_term').items() >= own.items()
    plain = {'standardize': False}
    assert defaults('dkd').items() >= ({'alpha': 1.0, 'beta': 8.0, 'tau': 4.0} | plain).items()
    assert defaults('nkd').items() >= ({'gamma': 1.5, 'tau': 1.0} | plain).items()
    assert defaults('dist').items() >= ({'beta': 1.0, 'gamma': 1.0, 'tau': 1.0} | plain).items()
    assert defaults('virtual_teacher').items() >= {'correct': 0.99, 'tau': 20.0}.items()
    for name in ('kl', 'soft_cross_entropy', 'logit_mse', 'three_term'):
        assert defaults(name).items() >= plain.items()
    z, other, labels = random_logits(44), random_logits(45), make_batch()['label']
    np.testing.assert_array_equal(
        pure.three_term(z, other, labels), pure.three_term(z, other, labels, **own)
    )


# Numbers worked out by hand: the student's probabilities are 1/4 and 3/4, the teacher's 1/2
# and 1/2 (at temperature tau)

ONE_FOUR = np.float32([[0.0, LN3]])
EVEN = np.float32([[7.0, 7.0]])
# of three classes: the student's probabilities are 1/4, 1/4 and 1/2, the teacher's 1/2, 3/8 and 1/8
THREE_S, THREE_T = np.log(np.float32([[2, 2, 4]])), np.log(np.float32([[4, 3, 1]]))
FIRST, NONE = np.array([0]), np.array([-1])


@pytest.mark.parametrize(
    ('value', 'want'),
    [
        (lambda: pure.cross_entropy(ONE_FOUR, np.array([0])), 1.3862944),  # log 4
        (lambda: pure.cross_entropy(ONE_FOUR, np.array([1])), 0.2876821),  # log 4/3
        # .9 log 4 + .1 log 4/3
        (lambda: pure.cross_entropy(ONE_FOUR, np.array([0]), 0.2), 1.2764332),
        # 1.8 log 4 + .5 log 4/3
        (lambda: pure.cross_entropy(ONE_FOUR, np.array([0]), 0.2, (2.0, 5.0)), 2.6391710),
        (lambda: pure.cross_entropy(ONE_FOUR, np.array([-1]), 0.2, (2.0, 5.0)), 0.0),
        (lambda: pure.kl(ONE_FOUR, EVEN, 1.0), 0.1438410),  # 1/2 log 2 + 1/2 log 2/3
        (lambda: pure.kl(2 * ONE_FOUR, EVEN, 2.0), 0.5753641),  # 4 times that
        # 1/2 log 4 + 1/2 log 4/3
        (lambda: pure.soft_cross_entropy(ONE_FOUR, EVEN, 1.0), 0.8369882),
        (lambda: pure.soft_cross_entropy(2 * ONE_FOUR, EVEN, 2.0), 3.3479528),  # 4 times that
        # (4 + 0 + 9) / 3
        (lambda: pure.logit_mse(np.float32([[1, 2, 3]]), np.float32([[3, 2, 0]])), 4.3333333),
        # log 4 + 2 * .837 + 3 * .144
        (lambda: pure.three_term(ONE_FOUR, EVEN, np.array([0]), 2.0, 3.0, 1.0), 3.4917938),
        # log 4 + (2 + 3/6) log 2
        (lambda: pure.three_term(ONE_FOUR, EVEN, np.array([0]), 2.0, 3.0, 6.0, True), 3.1191623),
        (lambda: pure.three_term(ONE_FOUR, EVEN, np.array([-1]), 2.0, 3.0, 6.0, True), 1.7328680),
        (lambda: pure.tckd(THREE_S, THREE_T, FIRST, 1.0), 0.1438410),  # 1/2 log 2 + 1/2 log 2/3
        (lambda: pure.nckd(THREE_S, THREE_T, FIRST, 1.0), 0.3629902),  # 3/4 log 9/4 + 1/4 log 3/8
        # 2 * .144 + 3 * .363
        (lambda: pure.dkd(THREE_S, THREE_T, FIRST, 2.0, 3.0, 1.0), 1.3766526),
        # 4 times that
        (lambda: pure.dkd(2 * THREE_S, 2 * THREE_T, FIRST, 2.0, 3.0, 2.0), 5.5066104),
        # the teacher's likeliest is the first
        (lambda: pure.dkd(THREE_S, THREE_T, NONE, 2.0, 3.0, 1.0), 1.3766526),
        # 1/2 log 4 + 2 (3/4 log 3 + 1/4 log 3/2)
        (lambda: pure.nkd(THREE_S, THREE_T, FIRST, 2.0, 1.0), 2.5437982),
        (lambda: pure.nkd(THREE_S, THREE_T, NONE, 2.0, 1.0), 2.5437982),
        (lambda: pure.dist(THREE_S, THREE_T, 1.0, 0.0, 1.0), 1.9449112),  # 1 + 15 / sqrt(252)
        (lambda: pure.dist(2 * THREE_S, 2 * THREE_T, 1.0, 0.0, 2.0), 7.7796448),  # 4 times that
        # nothing correlates over a batch of one
        (lambda: pure.dist(THREE_S, THREE_T, 0.0, 2.0, 1.0), 2.0),
        # the virtual teacher's probabilities are 3/4 and 1/4: the 1/2 between its scores is log 3
        # at this temperature 3/4 log 3 + 1/4 log 1/3
        (lambda: pure.virtual_teacher(ONE_FOUR, FIRST, 0.75, 0.5 / LN3), 0.5493061),
        (lambda: pure.virtual_teacher(ONE_FOUR, NONE, 0.75, 0.5 / LN3), 0.0),
    ],
)
def test_values_by_hand(value, want):
    np.testing.assert_allclose(value(), [want], rtol=2e-6)


# Properties


def test_an_unlabelled_example_has_exactly_no_value_and_no_gradient():
    for fields in ({}, {'label_smoothing': 0.1, 'class_weights': (1.0, 2.0, 3.0, 4.0, 5.0)}):
        values, gradient = evaluate(
            OBJECTIVES['cross_entropy'](**fields),
            random_logits(9),
            random_logits(9),
            make_batch([-1] * B),
        )
        assert (values == 0).all() and (gradient == 0).all()


@pytest.mark.parametrize('printed', [False, True])
def test_an_unlabelled_example_keeps_the_teachers_part_of_three_term(printed):
    term, zs, zt = OBJECTIVES['three_term'](printed=printed), random_logits(10), random_logits(11)
    batch = make_batch([-1] * B)
    without, labelled = (
        evaluate(term, zs, zt, batch)[0],
        evaluate(term, zs, zt, make_batch([2] * B))[0],
    )
    want = cross_entropy_oracle(zs.astype(np.float64), zt, [2] * B, defaults('cross_entropy'))[0]
    np.testing.assert_allclose(labelled - without, want, rtol=1e-4, atol=1e-5)
    assert (without > 0).all() and (np.asarray(term.valid(batch)) == 1).all()


@pytest.mark.parametrize('tau', [1.0, 4.0, 16.0])
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(tau):
    z = random_logits(12)
    values, gradient = evaluate(OBJECTIVES['kl'](tau=tau), z, z, make_batch())
    # float32 rounding of two log-softmaxes compiled differently
    np.testing.assert_allclose(values, 0, atol=1e-6 * tau**2)
    np.testing.assert_allclose(gradient, 0, atol=1e-6 * tau)
    values, gradient = evaluate(OBJECTIVES['logit_mse'](), z, z, make_batch())
    assert (values == 0).all() and (gradient == 0).all()
    # Shifting all of an example's logits changes no probability.
    np.testing.assert_allclose(pure.kl(z + 5, z, tau), 0, atol=2e-5 * tau)


@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_soft_cross_entropy_exceeds_kl_by_the_teachers_entropy(tau):
    zs, zt = random_logits(13), random_logits(14)
    p = softmax(zt.astype(np.float64), tau)
    difference = pure.soft_cross_entropy(zs, zt, tau) - pure.kl(zs, zt, tau)
    np.testing.assert_allclose(difference, -(tau**2) * (p * np.log(p)).sum(1), rtol=1e-4)


def test_the_gradient_of_kl_at_small_logits_does_not_depend_on_the_temperature():
    zs, zt = random_logits(15, scale=0.01), random_logits(16, scale=0.01)
    norms = [
        np.linalg.norm(evaluate(OBJECTIVES['kl'](tau=tau), zs, zt, make_batch())[1])
        for tau in (1.0, 4.0, 16.0)
    ]
    np.testing.assert_allclose(norms, norms[0], rtol=0.02)
    centred = (zs - zt) - (zs - zt).mean(1, keepdims=True)
    # not merely equal: all of them zero
    np.testing.assert_allclose(norms[0], np.linalg.norm(centred) / K, rtol=0.02)


def test_kl_at_a_high_temperature_is_half_the_squared_difference_of_centred_logits():
    zs, zt = (z - z.mean(1, keepdims=True) for z in (random_logits(17), random_logits(18)))
    np.testing.assert_allclose(pure.kl(zs, zt, 200.0), pure.logit_mse(zs, zt) / 2, rtol=0.03)


def test_only_the_printed_three_term_pulls_a_student_away_from_its_teacher():
    z = random_logits(19, scale=1.0)
    batch = make_batch([-1] * B)
    np.testing.assert_allclose(evaluate(OBJECTIVES['three_term'](), z, z, batch)[1], 0, atol=1e-6)
    gradient = evaluate(OBJECTIVES['three_term'](printed=True), z, z, batch)[1]
    first = z.argmax(1)
    # a step downhill raises the teacher's first class still further
    assert (gradient[np.arange(B), first] < -0.01).all()
    assert (gradient[np.arange(B), z.argmin(1)] > 0.001).all()


def test_class_weights_multiply_the_cross_entropy_of_their_class():
    z, labels = random_logits(20), np.array([0, 1, 2, 3, 4, 0])
    plain, weighted = (
        pure.cross_entropy(z, labels),
        pure.cross_entropy(z, labels, 0.0, (1.0, 2.0, 0.0, 0.5, 4.0)),
    )
    np.testing.assert_allclose(weighted, plain * np.float32([1, 2, 0, 0.5, 4, 1]), rtol=1e-6)


@pytest.mark.parametrize('tau', [0.5, 1.0, 4.0, 16.0])
def test_kl_is_the_targets_part_and_the_other_classes_part_weighted_with_the_teachers_doubt(tau):
    zs, zt, labels = random_logits(46), random_logits(47), np.array([0, 4, 3, 2, 2, 1])
    doubt = 1 - softmax(np.float64(zt), tau)[np.arange(B), labels]
    want = pure.tckd(zs, zt, labels, tau) + doubt * pure.nckd(zs, zt, labels, tau)
    np.testing.assert_allclose(pure.kl(zs, zt, tau), want, rtol=1e-5, atol=5e-7 * tau**2)


def test_dkd_with_the_teachers_doubt_as_beta_is_kl():
    tau, label = 2.0, 3
    zs, zt = random_logits(48), np.tile(random_logits(49)[:1], (B, 1))
    doubt = 1 - softmax(np.float64(zt), tau)[0, label]
    got = evaluate(
        OBJECTIVES['dkd'](alpha=1.0, beta=doubt, tau=tau), zs, zt, make_batch([label] * B)
    )
    want = evaluate(OBJECTIVES['kl'](tau=tau), zs, zt, make_batch([label] * B))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5, atol=1e-6)


def test_nkd_without_the_other_classes_is_cross_entropy_weighted_with_the_teachers_certainty():
    zs, zt, labels = random_logits(50), random_logits(51), np.array([0, 4, 3, 2, 2, 1])
    certainty = softmax(np.float64(zt))[np.arange(B), labels]
    for tau in (1.0, 4.0):  # both probabilities are at temperature 1
        got = pure.nkd(zs, zt, labels, 0.0, tau)
        np.testing.assert_allclose(
            got, certainty * pure.cross_entropy(zs, labels), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    ('name', 'fields'),
    [
        ('dkd', {}),
        ('dkd', {'tau': 1.0, 'beta': 2.0}),
        ('dist', {}),
        ('dist', {'tau': 4.0}),
        ('kl', {'standardize': True}),
        ('dkd', {'standardize': True}),
        ('dist', {'standardize': True}),
        ('logit_mse', {'standardize': True}),
    ],
)
def test_a_student_equal_to_its_teacher_is_at_the_minimum(name, fields):
    z, own = random_logits(52), defaults(name) | fields
    values, gradient = evaluate(OBJECTIVES[name](**fields), z, z, make_batch())
    # Rounding times tau^2, and for DIST the 1e-8 of its denominator.
    scale = own.get('tau', 1.0) ** 2 * own.get('beta', 1.0)
    np.testing.assert_allclose(values, 0, atol=2e-6 * scale)
    np.testing.assert_allclose(gradient, 0, atol=1e-6 * scale)
    other = evaluate(OBJECTIVES[name](**fields), random_logits(53), z, make_batch())
    assert (other[0] > 1e-3).all() and np.abs(other[1]).max() > 0.1


def test_dist_of_an_example_is_0_where_probabilities_are_affinely_related_and_2_where_opposed():
    p = softmax(np.float64(random_logits(54)))
    for share, want in ((0.3, 0.0), (1.0, 0.0), (-0.2, 2.0)):
        related = share * p + (1 - share) / K  # sums to 1
        values, gradient = evaluate(
            OBJECTIVES['dist'](gamma=0.0),
            np.float32(np.log(related)),
            np.float32(np.log(p)),
            make_batch(),
        )
        np.testing.assert_allclose(values, want, atol=1e-5)
        np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_dist_over_devices_is_that_of_the_whole_batch():
    zs, zt, f = (
        random_logits(55, shape=(8, K)),
        random_logits(56, shape=(8, K)),
        defaults('dist') | {'tau': 2.0},
    )

    def total(z, t, term):
        values = term.apply({}, output(z), output(t), {})
        return values.sum(), values

    @partial(jax.pmap, axis_name='batch')
    def on_devices(z, t):
        return jax.value_and_grad(total, has_aux=True)(
            z, t, OBJECTIVES['dist'](tau=2.0, axis_name='batch')
        )

    (_, values), gradient = on_devices(zs.reshape(4, 2, K), zt.reshape(4, 2, K))
    want = dist_oracle(np.float64(zs), np.float64(zt), None, f)
    np.testing.assert_allclose(values.reshape(8), want[0], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(gradient.reshape(8, K), want[1], rtol=2e-5, atol=5e-6)


def test_standardised_logits_have_mean_0_and_unbiased_standard_deviation_1():
    np.testing.assert_allclose(
        pure.standardize(np.float32([[3, 5, 7], [-1, -1, 2]])),
        [[-1, 0, 1], [-1 / 3**0.5] * 2 + [2 / 3**0.5]],
        rtol=1e-6,
        atol=1e-7,
    )
    z = random_logits(57)
    np.testing.assert_allclose(
        pure.standardize(z), standardize(np.float64(z))[0], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        pure.standardize(0.37 * z - 20), pure.standardize(z), rtol=1e-4, atol=1e-5
    )
    assert (np.asarray(pure.standardize(np.full((1, K), -3.0, np.float32))) == 0).all()


@pytest.mark.parametrize(
    'name', ['kl', 'soft_cross_entropy', 'logit_mse', 'three_term', 'dkd', 'nkd', 'dist']
)
def test_standardised_terms_do_not_see_the_shift_and_the_scale_of_either_networks_logits(name):
    # no label: three_term's own part is raw
    zs, zt, batch = random_logits(58), random_logits(59), make_batch([-1] * B)
    term = OBJECTIVES[name](standardize=True)
    values, gradient = evaluate(term, zs, zt, batch)
    moved = evaluate(term, 3 * zs + 10, 0.5 * zt - 2, batch)
    np.testing.assert_allclose(moved[0], values, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(3 * moved[1], gradient, rtol=1e-4, atol=1e-5)
    along = [gradient.sum(1), (gradient * zs).sum(1)]  # a step along either would change nothing
    np.testing.assert_allclose(along, 0, atol=2e-5)
    assert (
        np.abs(evaluate(OBJECTIVES[name](), 3 * zs + 10, 0.5 * zt - 2, batch)[0] - values).max()
        > 0.1
    )


def test_standardize_leaves_the_labels_part_of_three_term_alone():
    zs, zt = random_logits(60), random_logits(61)
    term = OBJECTIVES['three_term'](standardize=True)
    own = (
        evaluate(term, zs, zt, make_batch([2] * B))[0]
        - evaluate(term, zs, zt, make_batch([-1] * B))[0]
    )
    np.testing.assert_allclose(own, pure.cross_entropy(zs, np.array([2] * B)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('correct', 'tau'), [(0.99, 20.0), (0.9, 0.25)])
def test_virtual_teacher_is_least_at_its_own_probabilities(correct, tau):
    labels = np.array([0, 4, 3, 2, 2, 1])
    scores = np.where(np.eye(K)[labels] > 0, correct, (1 - correct) / (K - 1)) / tau
    term, batch = OBJECTIVES['virtual_teacher'](correct=correct, tau=tau), make_batch(labels)
    for shift in (0.0, 3.0):
        values, gradient = evaluate(term, *2 * [np.float32(scores + shift)], batch)
        np.testing.assert_allclose(values, 0, atol=1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)
    away = evaluate(term, *2 * [np.float32(scores) + random_logits(62, scale=0.3)], batch)[0]
    assert (away > 1e-3).all()


def test_virtual_teacher_judges_only_the_labelled():
    term, batch = OBJECTIVES['virtual_teacher'](), make_batch([-1, 0, -1, 1, 2, 3])
    assert not term.needs_teacher
    np.testing.assert_array_equal(term.valid(batch), [0, 1, 0, 1, 1, 1])
    values, gradient = evaluate(term, random_logits(63), random_logits(63), batch)
    assert (
        (values[[0, 2]] == 0).all()
        and (gradient[[0, 2]] == 0).all()
        and (values[[1, 3, 4, 5]] > 0).all()
    )


@pytest.mark.parametrize('name', ['dkd', 'nkd'])
def test_of_an_unlabelled_example_the_teachers_likeliest_class_is_the_target(name):
    zs, zt, term = random_logits(64), random_logits(65), OBJECTIVES[name]()
    unlabelled = make_batch([-1] * B)
    values, gradient = evaluate(term, zs, zt, unlabelled)
    want = evaluate(term, zs, zt, make_batch(zt.argmax(1)))
    np.testing.assert_allclose(values, want[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, want[1], rtol=1e-5, atol=1e-6)
    assert (np.asarray(term.valid(unlabelled)) == 1).all()
    least = evaluate(term, zs, zt, make_batch(zt.argmin(1)))[0]
    assert (np.abs(values - least) > 1e-3).all()


# Mixup


def test_cross_entropy_under_mixup_weights_both_labels():
    z, mixed = random_logits(21), np.array([1, 1, 0, -1, 2, 3], np.int32)
    batch = make_batch([0, 4, -1, 2, 2, 1], mixed_label=mixed, mix=jnp.float32(0.7))
    fields = {'label_smoothing': 0.1}
    values, gradient = evaluate(OBJECTIVES['cross_entropy'](**fields), z, z, batch)
    own = cross_entropy_oracle(
        z.astype(np.float64), None, [0, 4, -1, -1, 2, 1], defaults('cross_entropy') | fields
    )
    other = cross_entropy_oracle(
        z.astype(np.float64), None, [1, 1, -1, -1, 2, 3], defaults('cross_entropy') | fields
    )
    np.testing.assert_allclose(values, 0.7 * own[0] + 0.3 * other[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, 0.7 * own[1] + 0.3 * other[1], rtol=1e-4, atol=1e-6)
    assert values[2] == 0 and values[3] == 0
    np.testing.assert_array_equal(OBJECTIVES['cross_entropy']().valid(batch), [1, 1, 0, 0, 1, 1])


def test_three_term_under_mixup_mixes_the_labels_part_only():
    zs, zt, mixed = random_logits(22), random_logits(23), np.array([1, 1, 0, -1, 2, 3], np.int32)
    batch = make_batch([0, 4, -1, 2, 2, 1], mixed_label=mixed, mix=jnp.float32(0.25))
    values, _ = evaluate(OBJECTIVES['three_term'](), zs, zt, batch)
    z64 = zs.astype(np.float64), zt.astype(np.float64)
    own, other = ([0, 4, -1, -1, 2, 1], [1, 1, -1, -1, 2, 3])
    want = 0.25 * three_term_oracle(*z64, own, defaults('three_term'))[0]
    want += 0.75 * three_term_oracle(*z64, other, defaults('three_term'))[0]
    np.testing.assert_allclose(values, want, rtol=1e-5)


@pytest.mark.parametrize(
    ('name', 'fields'),
    [
        ('dkd', {}),
        ('nkd', {}),
        ('nkd', {'standardize': True, 'tau': 2.0}),
        ('dkd', {'standardize': True}),
        ('virtual_teacher', {}),
    ],
)
def test_targets_under_mixup_are_both_labels(name, fields):
    zs, zt, mixed = random_logits(66), random_logits(67), np.array([1, 1, 0, -1, 2, 3], np.int32)
    batch = make_batch([0, 4, -1, 2, 2, 1], mixed_label=mixed, mix=jnp.float32(0.7))
    values, gradient = evaluate(OBJECTIVES[name](**fields), zs, zt, batch)
    z64, f = (zs.astype(np.float64), zt.astype(np.float64)), defaults(name) | fields
    # One of two labels missing: both are.
    own, other = (
        ORACLES[name](*z64, np.array(labels), f)
        for labels in ([0, 4, -1, -1, 2, 1], [1, 1, -1, -1, 2, 3])
    )
    np.testing.assert_allclose(values, 0.7 * own[0] + 0.3 * other[0], rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, 0.7 * own[1] + 0.3 * other[1], rtol=2e-5, atol=5e-6)


# The weighted sum


class Learned(Loss):
    """A term with a learned scale per teacher, that lets gradient through to the teacher."""

    start: float = number(2.0, at_least=0)
    needs_teacher: ClassVar[bool] = True

    @nn.compact
    def __call__(self, student, teacher, batch):
        scale = self.param('scale', lambda key: jnp.float32(self.start) + jax.random.normal(key))
        return ((student.logits - scale * teacher.logits) ** 2).sum(-1)


class Reduces(Loss):
    needs_teacher: ClassVar[bool] = False

    def __call__(self, student, teacher, batch):
        return student.logits.mean()


def test_a_run_with_labels_alone_needs_no_teacher_output():
    z, batch = random_logits(24), make_batch()
    module = build({'cross_entropy': {}})
    assert module.init(jax.random.key(0), output(z), (), batch) == {}
    values = module.apply({}, output(z), (), batch)
    assert list(values) == ['cross_entropy']
    want = cross_entropy_oracle(
        z.astype(np.float64), None, batch['label'], defaults('cross_entropy')
    )[0]
    np.testing.assert_allclose(values['cross_entropy'], want, rtol=1e-5)


def test_terms_are_unweighted_and_the_steps_loss_is_their_weighted_masked_mean():
    zs, zt = random_logits(25), random_logits(26)
    batch = make_batch([0, 4, -1, 2, -1, 1]) | {'mask': np.float32([1, 1, 1, 1, 1, 0])}
    module = build({'cross_entropy': {'weight': 0.1}, 'kl': {'weight': 0.9, 'tau': 2.0}}, (1.0,))
    values = module.apply({}, output(zs), (output(zt),), batch)
    masks, weights = module.masks(batch), module.weights(0.0)
    z64 = zs.astype(np.float64), zt.astype(np.float64)
    ce = cross_entropy_oracle(*z64, batch['label'], defaults('cross_entropy'))[0]
    soft = kl_oracle(*z64, None, {'tau': 2.0})[0]
    np.testing.assert_allclose(values['cross_entropy'], ce, rtol=1e-5)
    np.testing.assert_allclose(values['kl'], soft, rtol=1e-5)
    np.testing.assert_array_equal(masks['cross_entropy'], [1, 1, 0, 1, 0, 0])
    np.testing.assert_array_equal(masks['kl'], [1, 1, 1, 1, 1, 0])
    loss = sum(
        float(weights[n]) * float((values[n] * masks[n]).sum() / max(masks[n].sum(), 1))
        for n in values
    )
    np.testing.assert_allclose(loss, 0.1 * ce[[0, 1, 3]].mean() + 0.9 * soft[:5].mean(), rtol=1e-5)


@pytest.mark.parametrize('name', ['kl', 'soft_cross_entropy'])
def test_several_teachers_pull_towards_the_average_of_their_probabilities(name):
    zs, teachers = random_logits(27), [random_logits(28 + k) for k in range(3)]
    tau, weights = 3.0, (1.0, 2.0, 5.0)
    module = build({name: {'tau': tau}}, weights)

    def total(z):
        return module.apply({}, output(z), tuple(output(t) for t in teachers), make_batch())[
            name
        ].sum()

    gradient = jax.grad(total)(jnp.asarray(zs))
    average = sum(
        w / 8 * softmax(t.astype(np.float64), tau) for w, t in zip(weights, teachers, strict=True)
    )
    ps = softmax(zs.astype(np.float64), tau)
    np.testing.assert_allclose(gradient, tau * (ps - average), rtol=1e-4, atol=2e-6)
    of_logits = softmax(
        sum(w / 8 * t.astype(np.float64) for w, t in zip(weights, teachers, strict=True)), tau
    )
    assert np.abs(np.asarray(gradient) - tau * (ps - of_logits)).max() > 0.05


def test_several_teachers_values_are_the_weighted_mean():
    zs, teachers = random_logits(31), [random_logits(32), random_logits(33)]
    values = build({'logit_mse': {}}, (3.0, 1.0)).apply(
        {}, output(zs), tuple(map(output, teachers)), make_batch()
    )
    each = [logit_mse_oracle(zs.astype(np.float64), t, None, {})[0] for t in teachers]
    np.testing.assert_allclose(values['logit_mse'], 0.75 * each[0] + 0.25 * each[1], rtol=1e-5)


@pytest.mark.parametrize(
    ('name', 'fields'),
    [
        ('dkd', {}),
        ('nkd', {}),
        ('dist', {}),
        ('dist', {'tau': 4.0}),
        ('dkd', {'standardize': True}),
        ('nkd', {'standardize': True}),
    ],
)
def test_to_a_term_that_sees_the_ensemble_several_teachers_are_the_average_of_their_probabilities(
    name, fields
):
    zs, teachers, batch = random_logits(68), [random_logits(69), random_logits(70)], make_batch()
    module, f = build({name: fields}, (1.0, 3.0)), defaults(name) | fields

    def total(z):
        values = module.apply({}, output(z), tuple(map(output, teachers)), batch)[name]
        return values.sum(), values

    (_, values), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(jnp.asarray(zs))
    z64, t64 = np.float64(zs), np.float64(teachers)
    want = ORACLES[name](
        z64, np.log(0.25 * softmax(t64[0]) + 0.75 * softmax(t64[1])), batch['label'], f
    )
    np.testing.assert_allclose(values, want[0], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(gradient, want[1], rtol=2e-5, atol=5e-6)
    of_logits = ORACLES[name](z64, 0.25 * t64[0] + 0.75 * t64[1], batch['label'], f)[0]
    of_values = sum(
        share * ORACLES[name](z64, t, batch['label'], f)[0]
        for share, t in zip((0.25, 0.75), t64, strict=True)
    )
    for other in (of_logits, of_values):
        assert np.abs(values - other).max() > 0.01


def only_where(name, fields, zs, teachers, batch, weights=(1.0,)):
    """(values [B], gradient of their sum for the student's logits [B, K], mask [B])
    of a term in a run's objective
    """
    module = build({name: fields}, weights, num_classes=K)

    def total(z):
        values = module.apply({}, output(z), tuple(map(output, teachers)), batch)[name]
        return values.sum(), values

    (_, values), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(jnp.asarray(zs))
    return np.asarray(values), np.asarray(gradient), np.asarray(module.masks(batch)[name])


@pytest.mark.parametrize('name', ['kl', 'dkd', 'dist', 'three_term'])
def test_only_where_the_teacher_is_right(name):
    zs, zt, batch = random_logits(71), random_logits(72), make_batch([0, 4, -1, 2, 2, 1])
    for i, k in enumerate([0, 3, 1, 2, 4, 1]):
        zt[i, k] = 9.0
    right = np.array([1, 0, 0, 1, 0, 1])
    plain = only_where(name, {}, zs, [zt], batch)
    values, gradient, mask = only_where(name, {'only_where': 'teacher_right'}, zs, [zt], batch)
    np.testing.assert_allclose(values, right * plain[0], rtol=1e-5)
    np.testing.assert_array_equal(mask, [1, 1, 0, 1, 1, 1])
    np.testing.assert_array_equal(plain[2], [1] * B)
    if name != 'dist':  # whose second part, of any example, moves all
        np.testing.assert_allclose(gradient, right[:, None] * plain[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['kl', 'nkd', 'logit_mse'])
def test_only_where_the_teacher_is_surer_at_temperature_1(name):
    zs, zt, batch = random_logits(73), random_logits(74), make_batch([0, 4, -1, 2, 2, 1])
    zs[4], zt[4] = 120 * np.eye(K)[1], 119 * np.eye(K)[2]  # both are certain
    zt[5] = zs[5]  # equally sure
    surer = softmax(np.float64(zt)).max(1) > softmax(np.float64(zs)).max(1)
    surer[4:] = False
    assert 0 < surer[:4].sum() < 4
    plain = only_where(name, {}, zs, [zt], batch)
    values, gradient, mask = only_where(name, {'only_where': 'teacher_surer'}, zs, [zt], batch)
    np.testing.assert_allclose(values, surer * plain[0], rtol=1e-5)
    # none through the comparison
    np.testing.assert_allclose(gradient, surer[:, None] * plain[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mask, [1] * B)


def test_only_where_judges_each_teacher_by_itself_and_the_ensemble_as_one():
    zs, batch = random_logits(75), make_batch([0, 1, 2, 3, 4, 0])
    teachers = [
        2 * np.float32(np.eye(K)[[0, 1, 0, 0, 4, 1]]),
        5 * np.float32(np.eye(K)[[0, 0, 2, 0, 4, 1]]),
    ]
    each = np.array([[1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 1, 0]])
    values = only_where('kl', {'only_where': 'teacher_right'}, zs, teachers, batch, (1.0, 1.0))[0]
    alone = [only_where('kl', {}, zs, [t], batch)[0] for t in teachers]
    np.testing.assert_allclose(values, 0.5 * (each * alone).sum(0), rtol=1e-5)
    values = only_where('dkd', {'only_where': 'teacher_right'}, zs, teachers, batch, (1.0, 1.0))[0]
    plain = only_where('dkd', {}, zs, teachers, batch, (1.0, 1.0))[0]
    # the second is the surer: its class is the average's
    np.testing.assert_allclose(values, each[1] * plain, rtol=1e-5)


@pytest.mark.parametrize('mix', [0.8, 0.3])
def test_only_where_the_teacher_is_right_under_mixup_looks_at_the_label_of_the_larger_share(mix):
    zs, mixed = random_logits(76), np.array([1, 1, 0, 3, 2, 3], np.int32)
    batch = make_batch([0, 4, -1, 2, 2, 1], mixed_label=mixed, mix=jnp.float32(mix))
    zt = 4 * np.float32(np.eye(K)[[0, 1, 0, 3, 2, 4]])
    right = np.array([1, 0, 0, 0, 1, 0]) if mix > 0.5 else np.array([0, 1, 1, 1, 1, 0])
    values, _, mask = only_where('kl', {'only_where': 'teacher_right'}, zs, [zt], batch)
    np.testing.assert_allclose((values * mask) != 0, right * [1, 1, 0, 1, 1, 1])
    np.testing.assert_array_equal(mask, [1, 1, 0, 1, 1, 1])


def test_learned_parameters_are_one_set_a_teacher():
    zs, teachers, batch = random_logits(34), [random_logits(35), random_logits(36)], make_batch()
    outputs = tuple(map(output, teachers))
    one = Objective((('hint', Learned()),), (1.0,)).init(
        jax.random.key(0), output(zs), outputs[:1], batch
    )
    assert list(one['params']) == ['hint']
    module = Objective((('hint', Learned()),), (1.0, 3.0))
    two = module.init(jax.random.key(0), output(zs), outputs, batch)
    assert sorted(two['params']) == ['hint_0', 'hint_1']
    assert two['params']['hint_0']['scale'] != two['params']['hint_1']['scale']
    params = {
        'params': {'hint_0': {'scale': jnp.float32(0.5)}, 'hint_1': {'scale': jnp.float32(-2.0)}}
    }
    want = 0.25 * ((zs - 0.5 * teachers[0]) ** 2).sum(1) + 0.75 * ((zs + 2 * teachers[1]) ** 2).sum(
        1
    )
    np.testing.assert_allclose(
        module.apply(params, output(zs), outputs, batch)['hint'], want, rtol=1e-5
    )


def test_the_weighted_sum_stops_the_gradient_to_a_teacher_that_a_term_lets_through():
    zs, batch = output(random_logits(37)), make_batch()
    module = Objective((('hint', Learned()),), (1.0,))
    variables = module.init(jax.random.key(0), zs, (zs,), batch)

    def total(z, variables):
        return module.apply(variables, zs, (output(z),), batch)['hint'].sum()

    to_teacher, to_params = jax.grad(total, argnums=(0, 1))(
        jnp.asarray(random_logits(38)), variables
    )
    assert (np.asarray(to_teacher) == 0).all()
    assert abs(float(to_params['params']['hint']['scale'])) > 0.1


def test_a_term_that_reduces_over_the_batch_is_refused():
    module = Objective((('mean', Reduces()),))
    with pytest.raises(ValueError, match=r"'mean' returned shape \(\)"):
        module.apply({}, output(random_logits(39)), (), make_batch())


def test_as_many_teacher_outputs_as_weights_are_needed():
    with pytest.raises(ValueError, match='2 teacher outputs but 1 teacher weights'):
        z = output(random_logits(40))
        build({'kl': {}}, (1.0,)).apply({}, z, (z, z), make_batch())


def test_a_ramp_is_linear_in_the_epoch_from_ramp_from_to_weight():
    module = build(
        {
            'cross_entropy': {'weight': 0.5},
            'kl': {'weight': 3.0, 'ramp_epochs': 20, 'ramp_from': 1.0},
        },
        (1.0,),
    )
    weights = jax.jit(module.weights)
    for epoch, want in ((0.0, 1.0), (5.0, 1.5), (10.5, 2.05), (20.0, 3.0), (300.0, 3.0)):
        got = weights(jnp.float32(epoch))
        np.testing.assert_allclose([got['cross_entropy'], got['kl']], [0.5, want], rtol=1e-6)
        assert (
            got['kl'].dtype == got['cross_entropy'].dtype == jnp.float32 and got['kl'].shape == ()
        )


def test_ensemble_logits_are_the_log_of_the_average_probabilities():
    members, weights = [random_logits(41), random_logits(42), random_logits(43)], (1.0, 0.0, 3.0)
    want = np.log(
        0.25 * softmax(members[0].astype(np.float64))
        + 0.75 * softmax(members[2].astype(np.float64))
    )
    np.testing.assert_allclose(ensemble_logits(members, weights), want, rtol=1e-5, atol=1e-6)


def test_ensemble_logits_by_hand_and_at_extremes():
    # 1/2 (1/4, 3/4) + 1/2 (1/2, 1/2) = (3/8, 5/8)
    np.testing.assert_allclose(
        ensemble_logits([ONE_FOUR, EVEN], (2, 2)), [[-0.98082925, -0.47000363]], rtol=1e-6
    )
    extreme = ensemble_logits([np.float32([[120, -120]]), np.float32([[-120, 120]])], (1, 1))
    np.testing.assert_allclose(extreme, [[-LN2, -LN2]], rtol=1e-6)
    same = ensemble_logits([np.float32([[120, -120]])] * 2, (1, 1))
    np.testing.assert_allclose(same, [[0.0, -240.0]], rtol=1e-6)


# Labels


LATE = {'loss': 'kl', 'tau': 1.0, 'weight': 0.5, 'ramp_epochs': 10.0, 'ramp_from': 0.1}
EARLY = {'loss': 'kl', 'tau': 3.0, 'weight': 0.0, 'ramp_epochs': 4.0, 'ramp_from': 2.0}


@pytest.mark.parametrize(
    ('epoch', 'late', 'early'), [(0.0, 0.1, 2.0), (2.0, 0.18, 1.0), (20.0, 0.5, 0.0)]
)
def test_two_of_the_same_loss_are_the_sum_of_both(epoch, late, early):
    zs, zt, batch = random_logits(79), random_logits(80), make_batch()
    module = build({'kl_late': LATE, 'kl_early': EARLY}, (1.0,))

    def total(z):
        values, weights = module.apply({}, output(z), (output(zt),), batch), module.weights(epoch)
        assert list(values) == list(weights) == list(module.masks(batch)) == ['kl_late', 'kl_early']
        return sum(weights[label] * values[label] for label in values).sum()

    value, gradient = jax.value_and_grad(total)(jnp.asarray(zs))
    first, second = (
        kl_oracle(np.float64(zs), np.float64(zt), None, {'tau': tau}) for tau in (1.0, 3.0)
    )
    np.testing.assert_allclose(value, (late * first[0] + early * second[0]).sum(), rtol=2e-5)
    np.testing.assert_allclose(gradient, late * first[1] + early * second[1], rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize('count', [1, 2])
def test_learned_parameters_go_by_the_label(monkeypatch, count):
    monkeypatch.setitem(objectives.OBJECTIVES, 'hint', Learned)
    module = build(
        {'hint': {'start': 2.0}, 'second': {'loss': 'hint'}, 'cross_entropy': {'loss': ''}},
        (1.0,) * count,
    )
    zs, teachers = output(random_logits(81)), (output(random_logits(82)),) * count
    params = module.init(jax.random.key(0), zs, teachers, make_batch())['params']
    assert set(params) == (
        {'hint', 'second'} if count == 1 else {'hint_0', 'hint_1', 'second_0', 'second_1'}
    )


def test_labels_that_do_not_meet_are_taken():
    """`late_1` is no part of `late` with one teacher, nor of a loss that learns from the
    ensemble, nor is `late_2` of two.
    """
    for loss, label, weights in (
        ('kl', 'late_1', (1.0,)),
        ('dkd', 'late_1', (1.0, 1.0)),
        ('kl', 'late_2', (1.0, 1.0)),
    ):
        module = build({'late': {'loss': loss}, label: {'loss': 'kl'}}, weights)
        assert [name for name, _ in module.losses] == ['late', label]


def test_a_term_names_its_loss_and_can_be_overridden_under_its_label():
    """As `python -m kd_jax.main --config.runs.student.objective.kl_late.tau=2.` does it."""
    config, values = common.study(), flags.FlagValues()
    run = config.runs.student = common.run(config, 'cnn', common.distillation())
    run.objective.kl_late = common.term('kl', tau=1.0)
    field = '--config.runs.student.objective.kl_late'
    argv = ['main', f'{field}.tau=2.', f'{field}.ramp_epochs=3.']
    config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=argv)
    values(argv)
    config = values.config.runs.student.objective
    assert set(config.kl_late) == {'loss', *defaults('kl')} and config.kl_late.loss == 'kl'
    assert dict(build(config, (1.0,)).losses) == {
        'cross_entropy': OBJECTIVES['cross_entropy'](weight=1 - 0.9),
        'kl': OBJECTIVES['kl'](weight=0.9, tau=4.0),
        'kl_late': OBJECTIVES['kl'](tau=2.0, ramp_epochs=3.0),
    }
    assert common.labels().cross_entropy.loss == 'cross_entropy'


# Numbers that only a running step knows


def test_the_fields_that_a_sweep_may_vary():
    named = {'weight', 'tau', 'lam', 'alpha', 'beta', 'gamma'}
    for name in OBJECTIVES:
        assert set(swept(name)) == named & set(defaults(name))
    assert swept('dkd') == ('weight', 'alpha', 'beta', 'tau')
    with pytest.raises(UserError, match="unknown objective 'dkkd'; did you mean 'dkd'"):
        swept('dkkd')


def test_hparams_are_the_numbers_of_all_losses_by_label():
    module = build({'cross_entropy': {'weight': 2}, 'late': {'loss': 'dkd', 'beta': 3}}, (1.0,))
    own = module.hparams()
    assert own == {
        'objective.cross_entropy.weight': 2.0,
        'objective.late.weight': 1.0,
        'objective.late.alpha': 1.0,
        'objective.late.beta': 3.0,
        'objective.late.tau': 4.0,
    }
    assert all(type(value) is float for value in own.values())
    assert module.with_hparams(own) == module.with_hparams({}) == module
    other = {
        'objective.late.tau': 2.0,
        'objective.late.fast': True,
        'objective.kl.tau': 9.0,
        'optim.learning_rate': 1.0,
    }
    assert module.with_hparams(other).hparams() == own | {'objective.late.tau': 2.0}
    assert not dict(module.with_hparams(other).losses)['late'].fast


def features_of(seed, heads):
    rng = np.random.default_rng(seed)

    def numbers(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    shapes = {
        'stem': (4, 4, 4, 3),
        'stage1': (4, 4, 4, 5),
        'stage2': (4, 2, 2, 6),
        'pooled': (4, 6),
    }
    features = {name: numbers(*shape) for name, shape in shapes.items()}
    return Output(
        numbers(4, 3), features, {name: Exit(numbers(4, 3), numbers(4, 6)) for name in heads}
    )


@pytest.mark.parametrize('name', OBJECTIVES)
def test_every_objective_takes_its_numbers_when_the_step_runs(name):
    """Value and gradient for the student's logits as with the same numbers written down."""
    loss = OBJECTIVES[name]
    student, teachers = (
        features_of(1, ('head1', 'head') if loss.needs_heads else ()),
        (features_of(2, ()),) * loss.needs_teacher,
    )
    batch = {'label': jnp.array([0, 1, 2, 1]), 'index': jnp.arange(4), 'mask': jnp.ones(4)}
    made = build(
        {'mine': {'loss': name} | ({'negatives': 8} if name == 'crd' else {})},
        (1.0,) * loss.needs_teacher,
    )
    own = {field: 0.7 + 0.01 * k for k, field in enumerate(swept(name))}
    numbers = {f'objective.mine.{field}': value for field, value in own.items()}
    assert made.hparams().keys() == numbers.keys()
    variables = made.init(
        jax.random.key(0), student, teachers, batch | {'train_label': np.arange(6) % 3}
    )
    kept = [collection for collection in variables if collection != 'params']

    def total(logits, hparams, module=made):
        module, keys = module.with_hparams(hparams), {'negatives': jax.random.key(1)}
        values, _ = module.apply(
            variables, student.replace(logits=logits), teachers, batch, mutable=kept, rngs=keys
        )
        return module.weights(0.0)['mine'] * values['mine'].sum()

    down = made.clone(losses=(('mine', made.losses[0][1].clone(**own)),))
    written = jax.jit(jax.value_and_grad(partial(total, hparams={}, module=down)))(student.logits)
    value, (gradient, to_numbers) = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(
        student.logits, numbers
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        written,
        (value, gradient),
    )
    assert np.isfinite(list(to_numbers.values())).all()
    weight = 'objective.mine.weight'
    # the numbers do reach the value
    np.testing.assert_allclose(numbers[weight] * to_numbers[weight], value, rtol=1e-5)


# build


def test_build_takes_a_config_dict_and_turns_lists_into_tuples():
    config = ConfigDict(
        {'cross_entropy': {'class_weights': [1, 2], 'label_smoothing': 0.1, 'weight': 2}, 'kl': {}}
    )
    module = build(config, [1, 1], num_classes=2)
    assert module.losses == (
        (
            'cross_entropy',
            OBJECTIVES['cross_entropy'](class_weights=(1, 2), label_smoothing=0.1, weight=2.0),
        ),
        ('kl', OBJECTIVES['kl']()),
    )
    assert module.teacher_weights == (1.0, 1.0)
    assert isinstance(hash(module), int)


def test_terms_that_never_count_are_dropped():
    config = {
        'cross_entropy': {'weight': 0.0, 'ramp_epochs': 5.0},
        'logit_mse': {'weight': 0.0},
        'kl': {'weight': 0.0, 'ramp_epochs': 5.0, 'ramp_from': 1.0},  # fades out
        'soft_cross_entropy': {'ramp_epochs': 5.0},
    }
    assert [name for name, _ in build(config, (1.0,)).losses] == ['kl', 'soft_cross_entropy']
    assert [name for name, _ in build({'cross_entropy': {}, 'kl': {'weight': 0.0}}).losses] == [
        'cross_entropy'
    ]


def test_none_means_the_default():
    assert build({'kl': {'tau': None}}, (1.0,)).losses == (('kl', OBJECTIVES['kl'](tau=4.0)),)


def test_a_new_method_is_one_class_and_one_line(monkeypatch):
    class Halved(Loss):
        share: float = number(0.5, at_least=0)

        def __call__(self, student, teacher, batch):
            return self.share * pure.kl(student.logits, teacher.logits, 1.0)

    monkeypatch.setitem(objectives.OBJECTIVES, 'halved', Halved)
    values = build({'halved': {}}, (1.0,)).apply(
        {}, output(ONE_FOUR), (output(EVEN),), make_batch([0])
    )
    np.testing.assert_allclose(values['halved'], [0.0719205], rtol=1e-5)


@pytest.mark.parametrize(
    ('config', 'teacher_weights', 'sentence'),
    [
        (
            {'kll': {}},
            (1.0,),
            "unknown objective 'kll'; did you mean 'kl'\\? known: .*cross_entropy, .*kl, ",
        ),
        (
            {'kl': {'temperature': 2.0}},
            (1.0,),
            "unknown field of objective.kl 'temperature'; known: .*tau",
        ),
        ({'kl': {'axis_name': 'x'}}, (1.0,), "unknown field of objective.kl 'axis_name'; known: "),
        ({'kl': 4.0}, (1.0,), 'objective.kl is 4.0; it must be a mapping of its fields: .*tau'),
        (
            {'kl': {'tau': 0.0}},
            (1.0,),
            'objective.kl.tau is 0.0; it must be a finite number greater than 0',
        ),
        ({'kl': {'tau': -1}}, (1.0,), 'objective.kl.tau is -1.0'),
        ({'kl': {'tau': float('nan')}}, (1.0,), 'objective.kl.tau is nan'),
        (
            {'kl': {'tau': 'warm'}},
            (1.0,),
            "objective.kl.tau is 'warm'; it must be a number, such as 4.0",
        ),
        ({'kl': {'tau': True}}, (1.0,), 'objective.kl.tau is True; it must be a number'),
        (
            {'three_term': {'printed': 1}},
            (1.0,),
            'objective.three_term.printed is 1; it must be True or False',
        ),
        (
            {'three_term': {'lam': -0.5}},
            (1.0,),
            'objective.three_term.lam is -0.5; it must be a finite number, 0 or more',
        ),
        ({'kl': {'weight': -1.0}}, (1.0,), 'objective.kl.weight is -1.0'),
        ({'kl': {'weight': float('inf')}}, (1.0,), 'objective.kl.weight is inf'),
        (
            {'kl': {'ramp_epochs': -2.0}},
            (1.0,),
            'objective.kl.ramp_epochs is -2.0; it must be a finite number, 0 or more',
        ),
        (
            {'cross_entropy': {'label_smoothing': 1.0}},
            (),
            'objective.cross_entropy.label_smoothing is 1.0; .* less than 1',
        ),
        (
            {'cross_entropy': {'label_smoothing': -0.1}},
            (),
            'objective.cross_entropy.label_smoothing is -0.1',
        ),
        (
            {'cross_entropy': {'class_weights': (1.0, 2.0)}},
            (),
            'class_weights has 2 numbers but the data has 5 classes',
        ),
        (
            {'cross_entropy': {'class_weights': (1, 1, 1, 1, -1)}},
            (),
            'class_weights is .*; it must be finite numbers',
        ),
        ({'cross_entropy': {'class_weights': 3.0}}, (), 'class_weights is 3.0; it must be a list'),
        (
            {'cross_entropy': {'class_weights': ('a',) * 5}},
            (),
            'class_weights is .*; it must be finite numbers',
        ),
        (
            {'dkd': {'alpha': -0.5}},
            (1.0,),
            'objective.dkd.alpha is -0.5; it must be a finite number, 0 or more',
        ),
        (
            {'dkd': {'beta': -1.0}},
            (1.0,),
            'objective.dkd.beta is -1.0; it must be a finite number, 0 or more',
        ),
        (
            {'dkd': {'tau': 0.0}},
            (1.0,),
            'objective.dkd.tau is 0.0; it must be a finite number greater than 0',
        ),
        (
            {'nkd': {'gamma': -1.5}},
            (1.0,),
            'objective.nkd.gamma is -1.5; it must be a finite number, 0 or more',
        ),
        (
            {'dist': {'gamma': float('inf')}},
            (1.0,),
            'objective.dist.gamma is inf; it must be a finite number, 0 or more',
        ),
        (
            {'virtual_teacher': {'correct': 1.0}},
            (),
            'objective.virtual_teacher.correct is 1.0; .* less than 1',
        ),
        (
            {'virtual_teacher': {'correct': 0.0}},
            (),
            'objective.virtual_teacher.correct is 0.0; .* greater than 0',
        ),
        (
            {'virtual_teacher': {'correct': 0.2}},
            (),
            'correct is 0.2; with 5 classes .* more than 0.2, such as 0.99',
        ),
        (
            {'virtual_teacher': {}},
            (1.0,),
            'has 1 teacher\\(s\\) but no term of its objective uses them',
        ),
        (
            {'kl': {'standardize': 1}},
            (1.0,),
            'objective.kl.standardize is 1; it must be True or False',
        ),
        (
            {'kl': {'only_where': 'teacher_left'}},
            (1.0,),
            (
                'unknown value of objective.kl.only_where '
                "'teacher_left'.*always, teacher_right, teacher_surer"
            ),
        ),
        (
            {'virtual_teacher': {'only_where': 'teacher_right'}},
            (),
            "only_where is 'teacher_right', but this term has no teacher",
        ),
        ({'kl': {'only_where': True}}, (1.0,), 'objective.kl.only_where is True'),
        ({}, (), 'no term with a weight above 0 \\(given: nothing\\)'),
        ({'kl': {'weight': 0.0}}, (1.0,), 'no term with a weight above 0 \\(given: kl\\)'),
        (
            {'cross_entropy': {}, 'kl': {}},
            (),
            "objective 'kl' learns from a teacher but the run has none",
        ),
        (
            {'cross_entropy': {}},
            (1.0,),
            'has 1 teacher\\(s\\) but no term of its objective uses them .*add a term such as kl',
        ),
        ({'kl': {}}, (1.0, -1.0), 'teacher weights \\(1.0, -1.0\\) must be'),
        ({'kl': {}}, (0.0, 0.0), 'teacher weights \\(0.0, 0.0\\) must be'),
        ({'kl': {}}, (float('nan'),), 'teacher weights \\(nan,\\) must be'),
        (
            {'late': {}},
            (1.0,),
            (
                "unknown objective 'late'; .*known: ab, .*; a label of your own "
                ".*objective.late = term\\('kl'\\)"
            ),
        ),
        (
            {'late': {'loss': 'kll'}},
            (1.0,),
            "unknown loss of objective.late 'kll'; did you mean 'kl'\\? .*known: .*; a label of",
        ),
        (
            {'late': {'loss': 'kl', 'tua': 1.0}},
            (1.0,),
            "unknown field of objective.late 'tua'; did you mean 'tau'",
        ),
        (
            {'late': {'loss': 'kl', 'tau': 0.0}},
            (1.0,),
            'objective.late.tau is 0.0; it must be a finite number greater than 0',
        ),
        (
            {'late': {'loss': 'kl'}},
            (),
            "objective 'late' learns from a teacher but the run has none",
        ),
        (
            {'late': {'loss': 'virtual_teacher', 'correct': 0.2}},
            (),
            'objective.late.correct is 0.2; with 5 classes',
        ),
        (
            {'kl.late': {'loss': 'kl'}},
            (1.0,),
            "label 'kl.late'; a label must be letters, digits and underscores.*kl_late",
        ),
        ({'2kl': {'loss': 'kl'}}, (1.0,), "label '2kl'; a label must be"),
        ({'top1': {'loss': 'kl'}}, (1.0,), "label 'top1'; .* no name that the program uses"),
        ({'losses': {'loss': 'kl'}}, (1.0,), "label 'losses'; .* no name that the program uses"),
        (
            {'late': {'loss': 'fitnet'}, 'late_1': {'loss': 'kl'}},
            (1.0, 1.0),
            (
                "labels 'late' and 'late_1', but with 2 teachers 'late_1' is the part of "
                "'late'.*; give one of the two another"
            ),
        ),
    ],
)
def test_bad_input_is_one_sentence(config, teacher_weights, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        build(config, teacher_weights, num_classes=K)
    assert '\n' not in str(caught.value)


def test_defaults_of_an_unknown_objective_names_the_known_ones():
    with pytest.raises(UserError, match="unknown objective 'logit_mes'; did you mean 'logit_mse'"):
        defaults('logit_mes')


@pytest.mark.parametrize(
    ('name', 'fields', 'field'),
    [
        ('dkd', {}, 'beta'),
        ('nkd', {}, 'gamma'),
        ('dist', {}, 'beta'),
        ('dist', {'gamma': 0.0}, 'beta'),
        *(
            (name, {'standardize': True}, 'standardize')
            for name in ('kl', 'soft_cross_entropy', 'logit_mse', 'three_term')
        ),
        ('dkd', {'beta': 0.0, 'standardize': True}, 'standardize'),
        ('nkd', {'gamma': 0.0, 'standardize': True}, 'standardize'),
        ('dist', {'beta': 0.0, 'standardize': True}, 'standardize'),
    ],
)
def test_what_two_classes_leave_nothing_of_is_refused(name, fields, field):
    words = f'objective.{name}.{field}.*nothing to learn.* 2 classes: .*; set {field}=(0|False), '
    with pytest.raises(UserError, match=words) as caught:
        build({name: fields}, (1.0,), num_classes=2)
    assert '\n' not in str(caught.value)
    build({name: fields}, (1.0,), num_classes=3)
    build({name: fields}, (1.0,))  # not known yet
    build({name: fields | {'weight': 0.0}, 'cross_entropy': {}}, num_classes=2)  # dropped


@pytest.mark.parametrize(
    ('name', 'fields'),
    [
        ('dkd', {'beta': 0.0}),
        ('nkd', {'gamma': 0.0}),
        ('dist', {'beta': 0.0}),
        ('virtual_teacher', {}),
    ],
)
def test_what_is_left_of_two_classes_can_be_learned(name, fields):
    module = build({name: fields}, (1.0,) if OBJECTIVES[name].needs_teacher else (), num_classes=2)
    zs, zt, labels = (
        random_logits(77, shape=(B, 2)),
        random_logits(78, shape=(B, 2)),
        np.array([0, 1, 0, 1, 1, -1]),
    )
    values, gradient = evaluate(module.losses[0][1], zs, zt, make_batch(labels))
    want = ORACLES[name](np.float64(zs), np.float64(zt), labels, defaults(name) | fields)
    np.testing.assert_allclose(values, want[0], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(gradient, want[1], rtol=2e-5, atol=5e-6)
    assert np.abs(gradient).max() > 0.01
