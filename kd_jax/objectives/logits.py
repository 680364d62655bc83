"""Objectives on logits and labels. Functions are per example,
`[B, K] -> [B]`, in float32 log space.

Inputs of any float type are cast to float32 first; values and gradients are finite at logits of
+-120. No gradient reaches `teacher_logits`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kd_jax.objectives.common import gather, norm, total


def _log_softmax(logits: jax.Array, tau: float = 1.0) -> jax.Array:
    return jax.nn.log_softmax(logits.astype(jnp.float32) / tau, axis=-1)


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> jax.Array:
    """Cross entropy with the labels: `-sum_k w_k q_k log p_k`, `p = softmax(logits)`.

    `q` is the one-hot label, of which `label_smoothing` (e) is spread evenly over all K classes:
    `(1 - e) onehot + e/K` (Szegedy et al. 2016, arXiv:1512.00567, eq. in section 7). The values
    equal torch.nn.functional.cross_entropy's with reduction='none': with class weights, the mean
    over a batch is not divided by the sum of its weights.

    Args:
      logits: `[B, K]`.
      labels: `[B]` integers; -1 means unlabelled: the value and the gradient are exactly 0.
      label_smoothing: in [0, 1).
      class_weights: K numbers; none given means 1 for each class.
    """
    num_classes = logits.shape[-1]
    target = (1.0 - label_smoothing) * jax.nn.one_hot(
        labels, num_classes
    ) + label_smoothing / num_classes
    if class_weights is not None and len(class_weights) > 0:
        target = target * jnp.asarray(class_weights, jnp.float32)[None, :]
    return jnp.where(labels >= 0, -jnp.sum(target * _log_softmax(logits), axis=-1), 0.0)


def kl(student_logits: jax.Array, teacher_logits: jax.Array, tau: float) -> jax.Array:
    """`tau^2 KL(p_T || p_S)`, `p = softmax(logits / tau)`: Hinton et al. 2015
    (arXiv:1503.02531), section 2.

    Summed over the K classes (not averaged). The gradient with respect to the student's
    logits is `tau (p_S - p_T)`: the factor tau^2 keeps its size, and so the meaning of the
    term's weight, independent of tau.

    Args:
      student_logits: `[B, K]`.
      teacher_logits: `[B, K]`.
      tau: the temperature, greater than 0.
    """
    log_t = _log_softmax(jax.lax.stop_gradient(teacher_logits), tau)
    return tau**2 * jnp.sum(jnp.exp(log_t) * (log_t - _log_softmax(student_logits, tau)), axis=-1)


def soft_cross_entropy(
    student_logits: jax.Array, teacher_logits: jax.Array, tau: float
) -> jax.Array:
    """`-tau^2 sum_k p_T(k) log p_S(k)`, `p = softmax(logits / tau)`: Hinton et al. 2015
    (arXiv:1503.02531), section 2.

    It is `kl` plus tau^2 times the entropy of p_T, with the same tau^2: the two have the same
    gradient. Its minimum, at p_S = p_T, is that entropy, not 0. Shapes and arguments as `kl`.
    """
    log_t = _log_softmax(jax.lax.stop_gradient(teacher_logits), tau)
    return -(tau**2) * jnp.sum(jnp.exp(log_t) * _log_softmax(student_logits, tau), axis=-1)


def logit_mse(student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """Mean over the K classes of the squared difference of the logits, both `[B, K]`.

    Ba & Caruana 2014 (arXiv:1312.6184), eq. 1 is `1/2 sum_k (z_S - z_T)^2`: this with the weight
    K/2. For high tau `kl` tends to one half of it, if both logits have zero mean over the classes
    (Hinton et al. 2015, eq. 4).
    """
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    return jnp.mean(
        (student_logits.astype(jnp.float32) - teacher_logits.astype(jnp.float32)) ** 2, axis=-1
    )


def three_term(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    lam: float = 1.0,
    beta: float = 1.0,
    tau: float = 4.0,
    printed: bool = False,
) -> jax.Array:
    """`L_softmax + lam * L_entropies + beta * L_temperature`: the labels, the
    teacher, the softened teacher.

    L_softmax is `cross_entropy` with the labels (0 where a label is -1). The other two are
      by default:    `soft_cross_entropy` at temperature 1, and `kl` at temperature tau (with
                     its tau^2);
      with printed:  `-log(sum_k p_T(k) p_S(k) / sum_k p_S(k))`, and
                     `-(1/tau) log sum_k p_T(k) p_S(k)`, both with probabilities at temperature 1.
    The second pair is the formula as its source prints it. It is an inner product, not a
    cross entropy: unless the teacher is certain, its minimum is not at p_S = p_T but
    where the student puts everything on the teacher's first class, so the other classes
    teach nothing. Hence the default.

    Args:
      student_logits: `[B, K]`.
      teacher_logits: `[B, K]`.
      labels: `[B]` integers, -1 for unlabelled.
      lam: weight of L_entropies.
      beta: weight of L_temperature.
      tau: the temperature, greater than 0.
      printed: use the formulas as printed.
    """
    return cross_entropy(student_logits, labels) + three_term_of_teacher(
        student_logits, teacher_logits, lam, beta, tau, printed
    )


def three_term_of_teacher(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    lam: float,
    beta: float,
    tau: float,
    printed: bool,
) -> jax.Array:
    """The teacher's part of `three_term`."""
    if printed:
        log_t = _log_softmax(jax.lax.stop_gradient(teacher_logits))
        # sum_k p_S(k) is 1
        overlap = -jax.nn.logsumexp(log_t + _log_softmax(student_logits), axis=-1)
        return (lam + beta / tau) * overlap
    return lam * soft_cross_entropy(student_logits, teacher_logits, 1.0) + beta * kl(
        student_logits, teacher_logits, tau
    )


def standardize(logits: jax.Array) -> jax.Array:
    """`(z - mean) / (1e-7 + std)` over the classes of `[B, K]`, std with K - 1:
    Sun et al. 2024 (arXiv:2403.01427).
    """
    z = logits.astype(jnp.float32)
    z = z - z.mean(-1, keepdims=True)
    return z / (1e-7 + norm(z) / (z.shape[-1] - 1) ** 0.5)


def tckd(
    student_logits: jax.Array, teacher_logits: jax.Array, labels: jax.Array, tau: float
) -> jax.Array:
    """Target class distillation: `tau^2 KL` of (p(target), 1 - p(target)),
    `p = softmax(logits / tau)`.

    Zhao et al. 2022 (arXiv:2203.08679), eq. 6, in log space: the published code takes logarithms of
    sums of probabilities, which overflow for confident students.
    `kl = tckd + (1 - p_T(target)) nckd`.
    """
    log_p = [_log_softmax(z, tau) for z in (student_logits, jax.lax.stop_gradient(teacher_logits))]
    target = _target(labels, teacher_logits)
    parts = [
        (
            jnp.sum(jnp.where(target, x, 0.0), -1),
            jax.nn.logsumexp(jnp.where(target, -jnp.inf, x), -1),
        )
        for x in log_p
    ]
    student, teacher = parts
    return tau**2 * total(jnp.exp(t) * (t - s) for s, t in zip(student, teacher, strict=True))


def nckd(
    student_logits: jax.Array, teacher_logits: jax.Array, labels: jax.Array, tau: float
) -> jax.Array:
    """Non-target class distillation: `tau^2 KL` of the softmax over the other
    classes (Zhao et al. 2022, eq. 6).
    """
    target = _target(labels, teacher_logits)
    log_s = _log_softmax_of_others(student_logits, target, tau)
    log_t = _log_softmax_of_others(jax.lax.stop_gradient(teacher_logits), target, tau)
    return tau**2 * jnp.sum(jnp.where(target, 0.0, jnp.exp(log_t) * (log_t - log_s)), axis=-1)


def dkd(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    alpha: float = 1.0,
    beta: float = 8.0,
    tau: float = 4.0,
) -> jax.Array:
    """`alpha tckd + beta nckd`: decoupled knowledge distillation,
    Zhao et al. 2022 (arXiv:2203.08679), eq. 7.

    Args:
      student_logits: `[B, K]`.
      teacher_logits: `[B, K]`.
      labels: `[B]` integers; -1: the teacher's likeliest class is the target.
      alpha: weight of the target class.
      beta: weight of the other classes; with two classes that part is always 0.
      tau: the temperature, greater than 0.
    """
    given = student_logits, teacher_logits, labels, tau
    return alpha * tckd(*given) + beta * nckd(*given)


def nkd(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    gamma: float = 1.5,
    tau: float = 1.0,
) -> jax.Array:
    """`-p_T(t) log p_S(t) - gamma tau^2 sum_{k != t} N_T(k) log N_S(k)`:
    Yang et al. 2023 (arXiv:2303.13005), eq. 9.

    p are probabilities at temperature 1, N the softmax over the other classes at temperature tau, t
    the target class. Arguments as `dkd`.
    """
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    target = _target(labels, teacher_logits)
    log_s, log_t = (
        jnp.sum(jnp.where(target, _log_softmax(z), 0.0), -1)
        for z in (student_logits, teacher_logits)
    )
    others_s, others_t = (
        _log_softmax_of_others(z, target, tau) for z in (student_logits, teacher_logits)
    )
    others = jnp.sum(jnp.where(target, 0.0, jnp.exp(others_t) * others_s), axis=-1)
    return -jnp.exp(log_t) * log_s - gamma * tau**2 * others


def _target(labels: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """`[B, K]` bool: the class of the label, or the teacher's likeliest where there is none."""
    labels = jnp.asarray(labels, jnp.int32)
    classes = jnp.where(labels >= 0, labels, jnp.argmax(teacher_logits, -1))
    return classes[:, None] == jnp.arange(teacher_logits.shape[-1])[None]


def _log_softmax_of_others(logits: jax.Array, target: jax.Array, tau: float) -> jax.Array:
    """Log-softmax over all classes but the target, where it is 0."""
    z = logits.astype(jnp.float32) / tau
    rest = jax.nn.logsumexp(jnp.where(target, -jnp.inf, z), axis=-1, keepdims=True)
    return jnp.where(target, 0.0, z - rest)


def dist(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    beta: float = 1.0,
    gamma: float = 1.0,
    tau: float = 1.0,
    axis_name: str | None = None,
) -> jax.Array:
    """`tau^2 (beta (1 - corr of an example's probabilities) + gamma (1 - corr of
    a class's over the batch))`.

    Huang et al. 2022 (arXiv:2205.10536), eq. 8 to 10, with Pearson's correlation of
    softmax(logits / tau); the second part is the mean over the classes, the same for every example
    of the batch (of all devices of `axis_name`).
    """
    of_example = [
        jax.nn.softmax(z.astype(jnp.float32) / tau)
        for z in (student_logits, jax.lax.stop_gradient(teacher_logits))
    ]
    of_class = [gather(p, axis_name).T for p in of_example]
    return tau**2 * (beta * (1 - _pearson(*of_example)) + gamma * (1 - _pearson(*of_class).mean()))


def _pearson(a: jax.Array, b: jax.Array) -> jax.Array:
    """Correlation of the rows of two `[N, M]`, with the published epsilon."""
    a, b = (x - x.mean(-1, keepdims=True) for x in (a, b))
    return jnp.sum(a * b, -1) / (norm(a)[:, 0] * norm(b)[:, 0] + 1e-8)


def virtual_teacher(
    logits: jax.Array, labels: jax.Array, correct: float = 0.99, tau: float = 20.0
) -> jax.Array:
    """`KL(softmax(u / tau) || softmax(logits))`, u = `correct` for the label and the rest
    shared: `[B]`; 0 for label -1.

    The hand-made teacher of Yuan et al. 2020 (arXiv:1909.11723), "teacher-free" distillation, as
    their code has it: tau softens probabilities u, not logits, and not the student. Theirs is
    divided by K, and weighs it 0.1 against 0.9 CE.
    """
    num_classes = logits.shape[-1]
    chosen = jax.nn.one_hot(labels, num_classes)
    log_u = _log_softmax(chosen * correct + (1 - chosen) * (1 - correct) / (num_classes - 1), tau)
    return jnp.where(
        labels >= 0, jnp.sum(jnp.exp(log_u) * (log_u - _log_softmax(logits)), axis=-1), 0.0
    )
