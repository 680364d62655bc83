"""Losses on logits and labels; what they compute stands in `kd_jax.objectives.logits`."""

import math
from typing import ClassVar

import flax.linen as nn
import jax

from kd_jax.errors import UserError
from kd_jax.fields import flag, is_number, number, several
from kd_jax.models.common import Output
from kd_jax.objectives.common import Batch, Loss, over_labels, temperature
from kd_jax.objectives.logits import (
    cross_entropy,
    dist,
    dkd,
    kl,
    logit_mse,
    nkd,
    soft_cross_entropy,
    standardize,
    three_term_of_teacher,
    virtual_teacher,
)


class CrossEntropy(Loss):
    """`cross_entropy` with the labels; under mixup with both labels."""

    label_smoothing: float = number(0.0, at_least=0, below=1)  # share of all classes in the label
    # one a class; () = equal
    class_weights: tuple[float, ...] = several(
        (), lambda w: is_number(w) and 0 <= w < math.inf, 'finite numbers, each 0 or more'
    )

    needs_teacher: ClassVar[bool] = False
    needs_label: ClassVar[bool] = True

    def __call__(self, student: Output, teacher: Output | None, batch: Batch) -> jax.Array:
        return over_labels(
            batch,
            lambda labels: cross_entropy(
                student.logits, labels, self.label_smoothing, self.class_weights
            ),
        )

    def check(self, path: str, num_classes: int | None) -> None:
        if (
            self.class_weights
            and num_classes is not None
            and len(self.class_weights) != num_classes
        ):
            raise UserError(
                f'{path}.class_weights has {len(self.class_weights)} numbers but the data has '
                f'{num_classes} classes; give one number a class, or () for equal weights'
            )


class LogitLoss(Loss):
    """A loss on the logits of student and teacher, with `standardize` on
    standardised ones (Sun et al. 2024).

    The paper takes a lower temperature (2) and a higher weight (9) than without.
    """

    standardize: bool = flag(False)  # both logits, over the classes

    @nn.nowrap
    def logits(self, student: Output, teacher: Output) -> tuple[jax.Array, jax.Array]:
        """What student and teacher said, `[B, K]` each, the teacher's without gradient."""
        both = student.logits, jax.lax.stop_gradient(teacher.logits)
        return (standardize(both[0]), standardize(both[1])) if self.standardize else both

    def check(self, path: str, num_classes: int | None) -> None:
        if self.standardize:
            why = 'standardised logits of two classes are always the same'
            refuse_two_classes(f'{path}.standardize=True', num_classes, why, 'standardize=False')


def refuse_two_classes(what: str, num_classes: int | None, why: str, without: str) -> None:
    """Raises `UserError` if there are two classes, of which `what` learns nothing;
    `without` is the field that is off.
    """
    if num_classes == 2:
        raise UserError(
            f'{what} has nothing to learn from with 2 classes: {why}; '
            f'set {without}, or use plain kl'
        )


class KL(LogitLoss):
    """`kl` from the teacher's softened probabilities, with the factor tau^2."""

    tau: float = temperature(4.0)  # temperature

    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        return kl(*self.logits(student, teacher), self.tau)


class SoftCrossEntropy(LogitLoss):
    """`soft_cross_entropy` with the teacher's softened probabilities, with the factor tau^2."""

    tau: float = temperature(4.0)  # temperature

    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        return soft_cross_entropy(*self.logits(student, teacher), self.tau)


class LogitMSE(LogitLoss):
    """`logit_mse` to the teacher's logits."""

    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        return logit_mse(*self.logits(student, teacher))


class ThreeTerm(LogitLoss):
    """`three_term`; unlabelled examples keep their teacher terms (and count
    in the mean over the batch).
    """

    lam: float = number(1.0, at_least=0, sweep=True)  # weight of the teacher's probabilities
    beta: float = number(1.0, at_least=0, sweep=True)  # weight of the softened ones
    tau: float = temperature(4.0)  # temperature
    printed: bool = flag(False)  # the formulas as their source prints them

    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        of_labels = over_labels(batch, lambda labels: cross_entropy(student.logits, labels))
        return of_labels + three_term_of_teacher(
            *self.logits(student, teacher), self.lam, self.beta, self.tau, self.printed
        )


class DKD(LogitLoss):
    """`dkd`; under mixup for both labels. The paper ramps it up
    during the first 20 of 240 epochs.
    """

    alpha: float = number(1.0, at_least=0, sweep=True)  # weight of the target class
    beta: float = number(8.0, at_least=0, sweep=True)  # weight of the other classes
    tau: float = temperature(4.0)  # temperature

    sees_ensemble: ClassVar[bool] = True

    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        logits = self.logits(student, teacher)
        return over_labels(
            batch, lambda labels: dkd(*logits, labels, self.alpha, self.beta, self.tau)
        )

    def check(self, path: str, num_classes: int | None) -> None:
        super().check(path, num_classes)
        if self.beta:
            refuse_two_classes(
                f'{path}.beta={self.beta}',
                num_classes,
                'beside the target there is one class only',
                'beta=0',
            )


class NKD(LogitLoss):
    """`nkd`; under mixup for both labels."""

    gamma: float = number(1.5, at_least=0, sweep=True)  # weight of the other classes
    tau: float = temperature(1.0)  # temperature of the other classes

    sees_ensemble: ClassVar[bool] = True

    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        logits = self.logits(student, teacher)
        return over_labels(batch, lambda labels: nkd(*logits, labels, self.gamma, self.tau))

    def check(self, path: str, num_classes: int | None) -> None:
        super().check(path, num_classes)
        if self.gamma:
            refuse_two_classes(
                f'{path}.gamma={self.gamma}',
                num_classes,
                'beside the target there is one class only',
                'gamma=0',
            )


class DIST(LogitLoss):
    """`dist`; on CIFAR the paper weighs both parts 2, at temperature 4."""

    beta: float = number(1.0, at_least=0, sweep=True)  # weight of the classes of an example
    gamma: float = number(1.0, at_least=0, sweep=True)  # weight of the examples of a class
    tau: float = temperature(1.0)  # temperature

    sees_ensemble: ClassVar[bool] = True

    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        return dist(*self.logits(student, teacher), self.beta, self.gamma, self.tau, self.axis_name)

    def check(self, path: str, num_classes: int | None) -> None:
        super().check(path, num_classes)
        if self.beta:
            refuse_two_classes(
                f'{path}.beta={self.beta}',
                num_classes,
                'correlations of two probabilities are always 1 or -1',
                'beta=0',
            )


class VirtualTeacher(Loss):
    """`virtual_teacher`; under mixup for both labels."""

    correct: float = number(0.99, above=0, below=1)  # what the virtual teacher gives the label
    tau: float = temperature(20.0)  # softens what it gives

    needs_teacher: ClassVar[bool] = False
    needs_label: ClassVar[bool] = True

    def check(self, path: str, num_classes: int | None) -> None:
        if num_classes and self.correct <= 1 / num_classes:
            raise UserError(
                f'{path}.correct is {self.correct}; with {num_classes} classes the virtual '
                'teacher is right about the label only if it is more than '
                f'{1 / num_classes:.3g}, such as 0.99'
            )

    def __call__(self, student: Output, teacher: Output | None, batch: Batch) -> jax.Array:
        return over_labels(
            batch, lambda labels: virtual_teacher(student.logits, labels, self.correct, self.tau)
        )
