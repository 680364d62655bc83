"""Losses on auxiliary heads: the formulas in float64 NumPy, cases and inputs; `losses` lists
them.
"""

import numpy as np
from logit_losses import B, cross_entropy_oracle, extreme, kl_oracle, make_batch, random_logits
from loss_inputs import Inputs

from kd_jax.models.common import Exit, Output

D = 7
NAMES = ('stage1', 'stage2', 'head')


def student(seed=0):
    """An output with two auxiliary heads; the dict is in the order
    that a jitted function returns.
    """
    exits = {
        name: Exit(random_logits(seed + i), random_logits(seed + 10 + i, shape=(B, D)))
        for i, name in enumerate(NAMES)
    }
    return Output(exits['head'].logits, {}, dict(sorted(exits.items())))


def deepest_and_auxiliary(inputs, field):
    deepest, *auxiliary = (getattr(inputs.student.heads[n], field) for n in reversed(NAMES))
    return deepest, auxiliary


def deep_supervision_oracle(inputs, fields):
    labels = inputs.batch['label']
    _, auxiliary = deepest_and_auxiliary(inputs, 'logits')
    values = [
        cross_entropy_oracle(z, None, labels, {'class_weights': ()} | fields)[0] for z in auxiliary
    ]
    return np.mean(values, axis=0)


def self_distillation_oracle(inputs, fields):
    deepest, auxiliary = deepest_and_auxiliary(inputs, 'logits')
    return np.mean([kl_oracle(z, deepest, None, fields)[0] for z in auxiliary], axis=0)


def self_hint_oracle(inputs, fields):
    deepest, auxiliary = deepest_and_auxiliary(inputs, 'pooled')
    return np.mean([((p - deepest) ** 2).sum(1) / D for p in auxiliary], axis=0)


ORACLES = {
    'deep_supervision': deep_supervision_oracle,
    'self_distillation': self_distillation_oracle,
    'self_hint': self_hint_oracle,
}
CASES = [
    *((name, {}) for name in ORACLES),
    ('deep_supervision', {'label_smoothing': 0.2}),
    ('self_distillation', {'tau': 1.5}),
]
LOOKS_ACROSS = ()  # the batch
STOPS = tuple(ORACLES)  # they have no teacher


def inputs(name):
    return Inputs(student(3), Output(random_logits(9), {}), make_batch(), {})


def extreme_heads(name):
    """Extreme logits at the first auxiliary head and at the deepest."""
    pair, own = extreme(name), inputs(name)
    heads = dict(own.student.heads)
    for place, logits in (('stage1', pair.student.logits), ('head', pair.teacher.logits)):
        heads[place] = heads[place]._replace(logits=logits)
    return own._replace(student=own.student.replace(heads=heads), batch=pair.batch)


DEGENERATE = {'extreme logits': extreme_heads}


def exact(case, inputs):
    """The examples whose value rounding does not decide."""
    return slice(None)
