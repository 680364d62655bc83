"""Objectives on auxiliary heads: deep supervision and self-distillation. They read
`Output.heads` of the student.

All are means over the auxiliary heads, of one value an example, `[B]`; the deepest
head is left to the other terms.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp

from kd_jax.fields import number
from kd_jax.models import Output
from kd_jax.models.common import Exit
from kd_jax.objectives.common import Batch, Loss, over_labels, temperature, total
from kd_jax.objectives.logits import cross_entropy, kl


def _split(student: Output) -> tuple[list[Exit], Exit]:
    """(the auxiliary heads, the deepest head without gradient)."""
    auxiliary = [head for name, head in student.heads.items() if name != 'head']
    return auxiliary, jax.lax.stop_gradient(student.heads['head'])


class DeepSupervision(Loss):
    """Cross entropy of every auxiliary head with the labels (Lee et al. 2015, arXiv:1409.5185).

    With the weight 0.4 it is the auxiliary loss of Szegedy et al. 2016
    (arXiv:1512.00567) as torchvision trains it.
    """

    label_smoothing: float = number(0.0, at_least=0, below=1)  # share of all classes in the label

    needs_teacher: ClassVar[bool] = False
    needs_label: ClassVar[bool] = True
    needs_heads: ClassVar[bool] = True

    def __call__(self, student: Output, teacher: Output | None, batch: Batch) -> jax.Array:
        auxiliary, _ = _split(student)

        def of_head(head: Exit) -> jax.Array:
            return over_labels(
                batch, lambda labels: cross_entropy(head.logits, labels, self.label_smoothing)
            )

        values = [of_head(head) for head in auxiliary]
        return total(values) / len(values)


class SelfDistillation(Loss):
    """`kl` of every auxiliary head from the deepest one: Zhang et al. 2019, "Be your own
    teacher" (arXiv:1905.08094).

    The paper weighs it 0.3 against 0.7 for the heads' cross entropy.
    """

    tau: float = temperature(3.0)  # temperature

    needs_teacher: ClassVar[bool] = False
    needs_heads: ClassVar[bool] = True

    def __call__(self, student: Output, teacher: Output | None, batch: Batch) -> jax.Array:
        auxiliary, deepest = _split(student)
        values = [kl(head.logits, deepest.logits, self.tau) for head in auxiliary]
        return total(values) / len(values)


class SelfHint(Loss):
    """Mean squared difference of what every auxiliary classifier and the deepest one see, `[B, D]`.

    The hint of Zhang et al. 2019 (arXiv:1905.08094, eq. 3) compares feature maps and
    sums; here both are pooled, and the mean over D keeps the weight independent of the
    width. The paper's weight is 0.03.
    """

    needs_teacher: ClassVar[bool] = False
    needs_heads: ClassVar[bool] = True

    def __call__(self, student: Output, teacher: Output | None, batch: Batch) -> jax.Array:
        auxiliary, deepest = _split(student)
        return total(
            jnp.mean((head.pooled - deepest.pooled) ** 2, axis=-1) for head in auxiliary
        ) / len(auxiliary)
