"""Accuracy, F1, likelihood, calibration and fidelity to the teacher, from sums
that batches and devices add up.

`sums` runs on the device, one batch at a time; its arrays may be added across batches and devices
in any order. `add` accumulates them on the host in float64, `finalize` and `finalize_teacher`
divide once at the end. How the examples were cut into batches therefore changes nothing but the
last float32 digit of the real-valued sums.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BINS = 15  # equal-width confidence bins, as Guo et al. 2017 use
Arrays = dict[str, jax.Array]
Totals = dict[str, np.ndarray]
Number = float | np.ndarray  # of one item


def sums(
    logits: jax.Array,
    batch: Arrays,
    teacher_logits: jax.Array | None = None,
    heads: Arrays | None = None,
) -> Arrays:
    """Masked sums over a batch, all float32: scalars, and vectors over the K
    classes or the calibration bins.

    logits: `[B, K]`.
    batch: `label` `[B]` int and `mask` `[B]`. Examples with mask 0 or label -1 count in
      nothing but `teacher_*`, for which only the mask matters. What masked rows contain,
      NaN included, changes nothing.
    teacher_logits: `[B, K]`; adds `teacher_count`, `teacher_agree` and `teacher_kl`, the sum of
      KL(teacher || student) at temperature 1.
    heads: the logits `[B, K]` of a model's heads by name; adds `top1_<name>` for each.

    Classes are ranked by logit, equal logits by index (as argmax does), so that a constant
    model does not score in the top 5. A row with a NaN predicts no class: it is wrong, and
    makes nll and calibration error NaN.
    """
    present = batch['mask'] > 0
    logits = logits.astype(jnp.float32)
    broken = jnp.isnan(logits).any(axis=1)
    log_p = jax.nn.log_softmax(logits)  # [B, K]
    prediction = logits.argmax(axis=1)

    valid = present & (batch['label'] >= 0)
    label = jnp.where(valid, batch['label'], 0)
    classes = jnp.arange(logits.shape[1])[None]

    def rank_of(z: jax.Array) -> jax.Array:  # of the label among the classes
        of_label = jnp.take_along_axis(z, label[:, None], axis=1)  # [B, 1]
        return ((z > of_label) | ((z == of_label) & (classes < label[:, None]))).sum(axis=1)

    rank = rank_of(logits)
    # A label that is no class is an error that nll shows as NaN.
    known = valid & ~broken & (label < logits.shape[1])
    right = known & (rank == 0)
    is_label = valid[:, None] & (label[:, None] == classes)  # [B, K]
    is_prediction = known[:, None] & (prediction[:, None] == classes)
    result = {
        'count': _total(valid),
        'top1': _total(right),
        'top5': _total(known & (rank < 5)),
        'nll': _total(valid, -jnp.take_along_axis(log_p, label[:, None], axis=1)[:, 0]),
        **_calibration(jnp.exp(log_p.max(axis=1)), valid, right),
        'true_positive': _total(is_label & is_prediction),
        'predicted': _total(is_prediction),
        'actual': _total(is_label),
    }
    for name, z in (heads or {}).items():
        result[f'top1_{name}'] = _total(valid & ~jnp.isnan(z).any(axis=1) & (rank_of(z) == 0))
    if teacher_logits is not None:
        result |= _teacher_sums(logits, teacher_logits, present)
    return result


def _calibration(confidence: jax.Array, valid: jax.Array, right: jax.Array) -> Arrays:
    """Of each confidence bin: examples, their confidence, and how many are right."""
    # Bin m is (m / BINS, (m + 1) / BINS]
    bins = jnp.clip(jnp.ceil(confidence * BINS) - 1, 0, BINS - 1)
    in_bin = valid[:, None] & (bins[:, None] == jnp.arange(BINS)[None])  # [B, BINS]
    undefined = valid & jnp.isnan(confidence)
    return {
        'bin_count': _total(in_bin),
        'bin_confidence': _total(in_bin | undefined[:, None], confidence[:, None]),
        'bin_right': _total(in_bin & right[:, None]),
    }


def _teacher_sums(logits: jax.Array, teacher_logits: jax.Array, present: jax.Array) -> Arrays:
    """How near the student `[B, K]` is to the teacher, over the
    examples that are `present` `[B]`.
    """
    teacher_logits = teacher_logits.astype(jnp.float32)
    sound = ~(jnp.isnan(logits).any(axis=1) | jnp.isnan(teacher_logits).any(axis=1))
    log_t, log_p = jax.nn.log_softmax(teacher_logits), jax.nn.log_softmax(logits)
    kl = jnp.where(log_t == -jnp.inf, 0.0, jnp.exp(log_t) * (log_t - log_p)).sum(axis=1)
    agree = sound & (logits.argmax(axis=1) == teacher_logits.argmax(axis=1))
    return {
        'teacher_count': _total(present),
        'teacher_agree': _total(present & agree),
        'teacher_kl': _total(present, kl),
    }


def _total(condition: jax.Array, value: Any = 1.0) -> jax.Array:
    """The sum of `value` where `condition` is true; it selects, for 0 * NaN
    from a padded row would be NaN.
    """
    return jnp.where(condition, value, 0.0).sum(axis=0)


def add(total: Totals | None, new: Arrays) -> Totals:
    """`total` plus the sums of one more batch, in float64 on the host; `total`
    is None for the first batch.
    """
    added = {name: np.asarray(value, np.float64) for name, value in jax.device_get(new).items()}
    return added if total is None else jax.tree.map(np.add, total, added)


def _ratio(part: Number, whole: Number) -> float:
    return float(part / whole) if whole else float('nan')


def finalize(total: Totals) -> dict[str, Any]:
    """`top1`, `top5`, `count` and what is said below, over the labelled examples.

    Fractions in 0..1 where nothing else is said.
    nll: the mean negative log-likelihood of the labels, in nats.
    f1_macro: the mean of F1 over the classes that occur among the labels or the
      predictions (as scikit-learn).
    ece: expected calibration error, Guo et al. 2017 (arXiv:1706.04599), equation 3: sum over bins
      of |right - confidence| / count.
    Without a labelled example all but `count` are NaN. With several heads, `heads`
    has the top-1 of each by name.
    """
    count = total['count']
    support = total['predicted'] + total['actual']
    occurs = support > 0
    f1 = 2 * total['true_positive'][occurs] / support[occurs]
    heads = {
        name.removeprefix('top1_'): _ratio(part, count)
        for name, part in total.items()
        if name.startswith('top1_')
    }
    result = {
        'top1': _ratio(total['top1'], count),
        'top5': _ratio(total['top5'], count),
        'f1_macro': _ratio(f1.sum(), occurs.sum()),
        'nll': _ratio(total['nll'], count),
        'ece': _ratio(np.abs(total['bin_right'] - total['bin_confidence']).sum(), count),
        'count': int(count),
    }
    return result | {'heads': heads} if heads else result


def finalize_teacher(total: Totals) -> dict[str, float] | None:
    """`{'agreement', 'kl'}`: share of examples with the teacher's class, mean KL in
    nats; None without a teacher.
    """
    if 'teacher_count' not in total:
        return None
    count = total['teacher_count']
    return {
        'agreement': _ratio(total['teacher_agree'], count),
        'kl': _ratio(total['teacher_kl'], count),
    }
