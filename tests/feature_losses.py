"""Losses on feature maps: the authors' published code in float64 NumPy (NCHW, as theirs), cases
and inputs; `losses` lists them.
"""

import itertools
from functools import cache, partial

import jax
import numpy as np
from logit_losses import make_batch
from loss_inputs import Inputs, shapes_of

from kd_jax.models import Output

# Name -> height and width, channels. Pairs of equal size, of a smaller student and of a
# larger one; equal widths once.
B = 8
STUDENT = {'stem': (8, 3), 'stage1': (8, 6), 'stage2': (5, 4), 'stage3': (5, 7), 'stage4': (3, 8)}
TEACHER = {
    'stem': (16, 5),
    'stage1': (16, 4),
    'stage2': (8, 6),
    'stage3': (6, 9),
    'stage4': (2, 10),
}
PAIRS = [('stage1', 'stage2'), ('stage3', 'stage3'), ('stage4', 'stage4')]


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
    logits = np.zeros((B, 3), np.float32)
    return Output(logits, {name: np.float32(f) for name, f in found.items()})


def networks(pre=True, kept=tuple(STUDENT)):
    """Student and teacher with the stages that are `kept`."""
    sizes = [{k: x[k] for k in kept} for x in (STUDENT, TEACHER)]
    return network(sizes[0], 1, pre), network(sizes[1], 2, pre)


def kept_for(name, small):
    """The stages in a test: one pair in a `small` one; two, of a smaller student and of a larger
    one, of losses that weigh all pairs alike.
    """
    if small:
        return ('stem', 'stage4')
    alike = ('at', 'nst', 'reviewkd', 'vid')
    return ('stem', 'stage3', 'stage4') if name in alike else tuple(STUDENT)


@cache
def variables_of(name, pre=True, small=False):
    """Nothing is at a special value."""
    pair = networks(pre, kept_for(name, small))
    shapes = shapes_of(name, Inputs(*pair, make_batch(np.arange(B)), {}))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        x = rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        x = -np.abs(x) if path[-1].key.startswith('margin') else x
        return np.float32(1 + 0.3 * x if path[-1].key == 'scale' else x)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def inputs(name, pre=True, small=False):
    pair = networks(pre, kept_for(name, small))
    return Inputs(*pair, make_batch(np.arange(B)), variables_of(name, pre, small))


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


def pairs_in(s):
    return [pair for pair in PAIRS if pair[0] in s]


def pairs_of(s, t, end=''):
    """Maps of one size: the smaller one's, as the authors' `adaptive_avg_pool2d` in each loss."""
    return [smaller(s.get(a + end, s[a]), t.get(b + end, t[b])) for a, b in pairs_in(s)]


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


def fitnet(s, t, p, stats, fields):
    pairs = pairs_of(s, t)
    middle = (len(pairs) - 1) // 2
    return [(mse, *pair) for pair in regressed(p, pairs[middle : middle + 1])]


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
    parts, names = [], [name for _, name in pairs_in(s)]
    for k, pair in enumerate(regressed(p, pairs_of(s, t, '_pre'))):
        name, old = names[k], stats[f'margin_{k}']
        # the margin is of the teacher alone, before its map is pooled for the student
        x = t.get(f'{name}_pre', t[name])
        mean = np.minimum(x, 0).sum((0, 2, 3)) / np.maximum((x < 0).sum((0, 2, 3)), 1)
        margin = np.where(mean < 0, 0.9 * old + 0.1 * mean, old)
        parts.append((partial(ofd_loss, m=margin, weight=1 / 2 ** (len(names) - k - 1)), *pair))
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
    assert 'stage1' not in s or 'regressor_1' not in p  # its width is the teacher's
    pairs = [('stem', 'stem'), *pairs_in(s)]
    s, t = [s[name] for name, _ in pairs], [t[name] for _, name in pairs]
    s = [conv_bn(x, p[f'regressor_{k}']) if f'regressor_{k}' in p else x for k, x in enumerate(s)]
    return [(mse, *pair) for pair in zip(compute_fsp(s), compute_fsp(t), strict=True)]


def reviewkd(s, t, p, stats, fields):
    levels = [(s[a], t.get(f'{b}_pre', t[b])) for a, b in pairs_in(s)]
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


PARTS = {
    'ab': ab,
    'at': lambda s, t, *_: [(at_loss, *pair) for pair in pairs_of(s, t)],
    'fitnet': fitnet,
    'fsp': fsp,
    'ft': ft,
    'nst': lambda s, t, *_: [(nst_loss, *pair) for pair in pairs_of(s, t)],
    'ofd': ofd,
    'reviewkd': reviewkd,
    'vid': vid,
}


def nchw(output):
    return {name: np.moveaxis(f, -1, 1) for name, f in output.features.items()}


def published(name):
    """Of the maps of the whole batch its loss for each example, of which that of the
    batch is the mean.
    """

    def values(inputs, fields):
        own = [inputs.variables.get(kind, {}).get(name, {}) for kind in ('params', 'batch_stats')]
        parts = PARTS[name](nchw(inputs.student), nchw(inputs.teacher), *own, fields)
        each = [sum(loss(a[i : i + 1], b[i : i + 1]) for loss, a, b in parts) for i in range(B)]
        batch = sum(loss(a, b) for loss, a, b in parts)
        np.testing.assert_allclose(np.mean(each), batch, rtol=1e-9)
        return np.array(each)

    return values


ORACLES = {name: published(name) for name in PARTS}
CASES = [(name, {}) for name in ORACLES]
# of student and teacher without features before activations
CASES_WITHOUT_PRE = [(name, {}) for name in ('ab', 'ofd', 'reviewkd')]
# The batch: for its margins, and in BatchNorm, as all that have learned layers.
LOOKS_ACROSS = ('ofd',)
STOPS = ()  # the gradient to the teacher by itself


def zeros(*which):
    def change(inputs):
        blank = {side: jax.tree.map(np.zeros_like, getattr(inputs, side)) for side in which}
        return inputs._replace(**blank)

    return lambda name: change(globals()['inputs'](name))


DEGENERATE = {
    'a student of zeros': zeros('student'),
    'both of zeros': zeros('student', 'teacher'),
}
