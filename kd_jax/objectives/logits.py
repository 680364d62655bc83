"""Objectives on logits and labels. Functions are per example, `[B, K] -> [B]`, in float32 log space.

Inputs of any float type are cast to float32 first; values and gradients are finite at logits of +-120. No gradient
reaches `teacher_logits`.
"""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from kd_jax.errors import UserError
from kd_jax.objectives.common import Term, over_labels


def _log_softmax(logits, tau=1.0):
    return jax.nn.log_softmax(logits.astype(jnp.float32) / tau, axis=-1)


def cross_entropy(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None
) -> jax.Array:
    """Cross entropy with the labels: `-sum_k w_k q_k log p_k`, `p = softmax(logits)`.

    `q` is the one-hot label, of which `label_smoothing` (e) is spread evenly over all K classes: `(1 - e) onehot + e/K`
    (Szegedy et al. 2016, arXiv:1512.00567, eq. in section 7). The values equal
    torch.nn.functional.cross_entropy's with reduction='none': with class weights, the mean over a batch is not divided
    by the sum of its weights.

    Args:
      logits: `[B, K]`.
      labels: `[B]` integers; -1 means unlabelled: the value and the gradient are exactly 0.
      label_smoothing: in [0, 1).
      class_weights: K numbers; none given means 1 for each class.
    """
    num_classes = logits.shape[-1]
    target = (1.0 - label_smoothing) * jax.nn.one_hot(labels, num_classes) + label_smoothing / num_classes
    if class_weights is not None and len(class_weights) > 0:
        target = target * jnp.asarray(class_weights, jnp.float32)[None, :]
    return jnp.where(labels >= 0, -jnp.sum(target * _log_softmax(logits), axis=-1), 0.0)


def kl(student_logits: jax.Array, teacher_logits: jax.Array, tau: float) -> jax.Array:
    """`tau^2 KL(p_T || p_S)`, `p = softmax(logits / tau)`: Hinton et al. 2015 (arXiv:1503.02531), section 2.

    Summed over the K classes (not averaged). The gradient with respect to the student's logits is `tau (p_S - p_T)`:
    the factor tau^2 keeps its size, and so the meaning of the term's weight, independent of tau.

    Args:
      student_logits: `[B, K]`.
      teacher_logits: `[B, K]`.
      tau: the temperature, greater than 0.
    """
    log_t = _log_softmax(jax.lax.stop_gradient(teacher_logits), tau)
    return tau**2 * jnp.sum(jnp.exp(log_t) * (log_t - _log_softmax(student_logits, tau)), axis=-1)


def soft_cross_entropy(student_logits: jax.Array, teacher_logits: jax.Array, tau: float) -> jax.Array:
    """`-tau^2 sum_k p_T(k) log p_S(k)`, `p = softmax(logits / tau)`: Hinton et al. 2015 (arXiv:1503.02531), section 2.

    It is `kl` plus tau^2 times the entropy of p_T, with the same tau^2: the two have the same gradient. Its minimum, at
    p_S = p_T, is that entropy, not 0. Shapes and arguments as `kl`.
    """
    log_t = _log_softmax(jax.lax.stop_gradient(teacher_logits), tau)
    return -(tau**2) * jnp.sum(jnp.exp(log_t) * _log_softmax(student_logits, tau), axis=-1)


def logit_mse(student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """Mean over the K classes of the squared difference of the logits, both `[B, K]`.

    Ba & Caruana 2014 (arXiv:1312.6184), eq. 1 is `1/2 sum_k (z_S - z_T)^2`: this with the weight K/2. For high tau `kl`
    tends to one half of it, if both logits have zero mean over the classes (Hinton et al. 2015, eq. 4).
    """
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    return jnp.mean((student_logits.astype(jnp.float32) - teacher_logits.astype(jnp.float32)) ** 2, axis=-1)


def three_term(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    lam: float = 1.0,
    beta: float = 1.0,
    tau: float = 4.0,
    printed: bool = False,
) -> jax.Array:
    """`L_softmax + lam * L_entropies + beta * L_temperature`: the labels, the teacher, the softened teacher.

    L_softmax is `cross_entropy` with the labels (0 where a label is -1). The other two are
      by default:    `soft_cross_entropy` at temperature 1, and `kl` at temperature tau (with its tau^2);
      with printed:  `-log(sum_k p_T(k) p_S(k) / sum_k p_S(k))`, and `-(1/tau) log sum_k p_T(k) p_S(k)`, both with
                     probabilities at temperature 1.
    The second pair is the formula as its source prints it. It is an inner product, not a cross entropy: unless the
    teacher is certain, its minimum is not at p_S = p_T but where the student puts everything on the teacher's first
    class, so the other classes teach nothing. Hence the default.

    Args:
      student_logits: `[B, K]`.
      teacher_logits: `[B, K]`.
      labels: `[B]` integers, -1 for unlabelled.
      lam: weight of L_entropies.
      beta: weight of L_temperature.
      tau: the temperature, greater than 0.
      printed: use the formulas as printed.
    """
    if printed:
        log_t = _log_softmax(jax.lax.stop_gradient(teacher_logits))
        overlap = -jax.nn.logsumexp(log_t + _log_softmax(student_logits), axis=-1)  # sum_k p_S(k) is 1
        from_teacher = (lam + beta / tau) * overlap
    else:
        from_teacher = lam * soft_cross_entropy(student_logits, teacher_logits, 1.0)
        from_teacher += beta * kl(student_logits, teacher_logits, tau)
    return cross_entropy(student_logits, labels) + from_teacher


class CrossEntropy(Term):
    """`cross_entropy` with the labels; under mixup with both labels."""

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()

    needs_teacher: ClassVar[bool] = False
    needs_label: ClassVar[bool] = True

    def __call__(self, student, teacher, batch):
        return over_labels(
            batch, lambda labels: cross_entropy(student.logits, labels, self.label_smoothing, self.class_weights)
        )

    def check(self, path, num_classes):
        if self.class_weights and num_classes is not None and len(self.class_weights) != num_classes:
            raise UserError(
                f'{path}.class_weights has {len(self.class_weights)} numbers but the data has {num_classes} classes; '
                f'give one number a class, or () for equal weights'
            )


class KL(Term):
    """`kl` from the teacher's softened probabilities, with the factor tau^2."""

    tau: float = 4.0

    def __call__(self, student, teacher, batch):
        return kl(student.logits, teacher.logits, self.tau)


class SoftCrossEntropy(Term):
    """`soft_cross_entropy` with the teacher's softened probabilities, with the factor tau^2."""

    tau: float = 4.0

    def __call__(self, student, teacher, batch):
        return soft_cross_entropy(student.logits, teacher.logits, self.tau)


class LogitMSE(Term):
    """`logit_mse` to the teacher's logits."""

    def __call__(self, student, teacher, batch):
        return logit_mse(student.logits, teacher.logits)


class ThreeTerm(Term):
    """`three_term`; unlabelled examples keep their teacher terms (and count in the mean over the batch)."""

    lam: float = 1.0
    beta: float = 1.0
    tau: float = 4.0
    printed: bool = False

    def __call__(self, student, teacher, batch):
        own = (self.lam, self.beta, self.tau, self.printed)
        return over_labels(batch, lambda labels: three_term(student.logits, teacher.logits, labels, *own))
