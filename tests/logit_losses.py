"""Losses on logits and labels: the formulas in probability space in float64 NumPy, with their
analytic gradients, cases and inputs; `losses` lists them.
"""

import functools

import numpy as np
from loss_inputs import Inputs

from kd_jax.models.common import Output

B, K = 28, 5

# Formulas: (student logits, teacher logits, labels, fields) in float64 -> (values [B], gradient of
# their sum for the student's logits [B, K])


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


FORMULAS = {
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


def formula(name, inputs, fields):
    return FORMULAS[name](
        np.float64(inputs.student.logits),
        np.float64(inputs.teacher.logits),
        inputs.batch['label'],
        fields,
    )


def value_of(name):
    return lambda inputs, fields: formula(name, inputs, fields)[0]


def gradient_of(name):
    return lambda inputs, fields: formula(name, inputs, fields)[1]


ORACLES = {name: value_of(name) for name in FORMULAS}
GRADIENTS = {name: gradient_of(name) for name in FORMULAS}
CASES = [
    *((name, {}) for name in FORMULAS),
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
LOOKS_ACROSS = ('dist',)  # the batch
STOPS = tuple(FORMULAS)  # the gradient to the teacher by itself


def random_logits(seed, scale=3.0, shape=(B, K)):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def some_labels(count=B):
    return np.resize(np.int32([0, 4, -1, 2, 2, 1, 3]), count)


def make_batch(labels=None, **more):
    labels = some_labels() if labels is None else np.asarray(labels, np.int32)
    return {
        'label': labels,
        'index': np.arange(len(labels)),
        'mask': np.ones(len(labels), np.float32),
        **more,
    }


def given(zs, zt, labels=None, **more):
    """The inputs of a loss on these logits."""
    return Inputs(Output(zs, {}), Output(zt, {}), make_batch(labels, **more), {})


def inputs(name):
    return given(random_logits(1), random_logits(2))


def extreme(_):
    """All pairs of five extreme rows of logits, with all labels."""
    zs = np.float32(
        [
            [120, -120, 0, 0, 0],
            [-120, 120, 120, 0, 60],
            [120] * 5,
            [0, 0, 0, 0, -120],
            [120, -120, 120, -120, 1],
        ]
    )
    pairs = [(k // 5 % 5, k % 5) for k in range(B)]
    s, t = np.stack([zs[i] for i, _ in pairs]), np.stack([zs[j][::-1] for _, j in pairs])
    return given(s, t, [k % 6 - 1 for k in range(B)])


DEGENERATE = {'extreme logits': extreme}


def exact(case, inputs):
    """The examples whose value and gradient rounding does not decide.

    Of five equal logits the Pearson correlation and the standardised logits have a derivative of
    1/epsilon, 1e7 or 1e8, in the published code, and rounding decides whether they are equal.
    """
    if case.name != 'dist' and not case.fields.get('standardize'):
        return slice(None)
    return np.min([np.ptp(x.logits, axis=1) for x in inputs[:2]], axis=0) > 0
