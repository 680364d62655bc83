"""Objectives on the relations between the examples of a batch: SP, CC, RKD and PKT.

Functions take the features `[B, ...]` of this device's examples, look at those of all devices of
`axis_name`, and give one value an example, `[B]`; no gradient reaches the teacher.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from optax.losses import huber_loss

from kd_jax.fields import number
from kd_jax.models.common import Output
from kd_jax.models.layers import Dense
from kd_jax.objectives.common import Batch, Loss, first_of_mine, gather, norm, unit
from kd_jax.objectives.matching import FeatureLoss, pooled


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1).astype(jnp.float32)


def sp(student: jax.Array, teacher: jax.Array, axis_name: str | None = None) -> jax.Array:
    """`sum_j (G_T - G_S)_ij^2 / B` for example i, G the products of features of two
    examples, its rows of unit length.

    Similarity preserving, Tung and Mori 2019 (arXiv:1907.09682), eq. 4: the
    mean is `|G_T - G_S|^2 / B^2`.
    """

    def similarities(x: jax.Array) -> jax.Array:
        x = _flat(x)
        return unit(x @ gather(x, axis_name).T)

    difference = similarities(jax.lax.stop_gradient(teacher)) - similarities(student)
    return jnp.mean(difference**2, axis=-1)


class SP(FeatureLoss):
    """`sp` of the deepest pair; the tables weigh it 3000."""

    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        name, other = self.pairs(student, teacher)[-1]
        return sp(student.features[name], teacher.features[other], self.axis_name)


def cc(student: jax.Array, teacher: jax.Array, axis_name: str | None = None) -> jax.Array:
    """`sum_d |s - t|_i |s - t|_(i+1)` for embeddings `[B, D]` and the next example of
    the batch, times B / (B - 1).

    The last example has none. It depends on the order of the batch, which is a random one.
    """
    delta = jnp.abs(_flat(student) - _flat(teacher))
    everyone = gather(delta, axis_name)
    count = len(everyone)
    place = first_of_mine(delta, axis_name) + jnp.arange(len(delta))
    following = everyone[jnp.minimum(place + 1, count - 1)]
    return jnp.where(
        place + 1 < count, jnp.sum(delta * following, axis=-1) * count / max(count - 1, 1), 0.0
    )


class CC(Loss):
    """Correlation congruence, Peng et al. 2019 (arXiv:1904.01802): `cc` of `dim` linear
    embeddings of the pooled features.

    As the authors gave it to the tables, which weigh it 0.02. The paper itself compares
    kernels of all pairs of examples.
    """

    dim: int = number(128, at_least=1)  # of the embeddings

    needs_features: ClassVar[bool] = True
    needs_teacher_logits: ClassVar[bool] = False

    @nn.compact
    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        mine, theirs = pooled(student, teacher)
        mine = Dense(self.dim, name='student')(mine)
        return cc(mine, Dense(self.dim, name='teacher')(theirs), self.axis_name)


def _products(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Products `[N, N]` of the features of all devices' examples, which are
    centred: relations do not change.
    """
    everyone = gather(_flat(x), axis_name)
    centred = everyone - everyone.mean(0, keepdims=True)
    return centred @ centred.T


def _squares(products: jax.Array) -> jax.Array:
    """Squared distances `[N, N]`."""
    diagonal = jnp.diagonal(products)
    return jnp.maximum(diagonal[:, None] + diagonal[None] - 2 * products, 1e-12)


def _mine(x: jax.Array, like: jax.Array, axis_name: str | None) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, first_of_mine(like, axis_name), len(like))


def rkd_distance(student: jax.Array, teacher: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Huber loss of the distances to all examples, in units of their mean:
    Park et al. 2019 (arXiv:1904.05068), eq. 7.
    """

    def distances(x: jax.Array) -> jax.Array:
        squares = _squares(_products(x, axis_name))
        distance = jnp.where(jnp.eye(len(squares), dtype=bool), 0.0, jnp.sqrt(squares))
        return _mine(
            distance
            / jnp.maximum(jnp.sum(distance) / max(distance.size - len(distance), 1), 1e-12),
            x,
            axis_name,
        )

    return jnp.mean(
        huber_loss(distances(student), distances(jax.lax.stop_gradient(teacher))), axis=-1
    )


def rkd_angle(student: jax.Array, teacher: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Huber loss of the cosines of all angles at an example:
    Park et al. 2019 (arXiv:1904.05068), eq. 10.

    From products of examples, which is fast; two examples less than a thousandth of
    their size apart have no angle.
    """

    def cosines(x: jax.Array) -> jax.Array:
        products = _products(x, axis_name)
        squares = _squares(products)
        # Between such examples there is rounding only.
        inverse = jnp.where(
            squares > 1e-6 * jnp.max(jnp.diagonal(products)), jax.lax.rsqrt(squares), 0.0
        )
        rows, inverse = _mine(products, x, axis_name), _mine(inverse, x, axis_name)
        diagonal = _mine(jnp.diagonal(products), x, axis_name)
        # (x_j - x_i) (x_k - x_i) by products of examples
        inner = products[None] - rows[:, :, None] - rows[:, None] + diagonal[:, None, None]
        return inner * inverse[:, :, None] * inverse[:, None]

    return jnp.mean(
        huber_loss(cosines(student), cosines(jax.lax.stop_gradient(teacher))), axis=(1, 2)
    )


class RKD(Loss):
    """Relational distillation: `distance rkd_distance + angle rkd_angle` of the pooled
    features; the tables weigh it 1.
    """

    distance: float = number(25.0, at_least=0)  # weight of the distances
    angle: float = number(50.0, at_least=0)  # weight of the angles

    needs_features: ClassVar[bool] = True
    needs_teacher_logits: ClassVar[bool] = False

    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        given = *pooled(student, teacher), self.axis_name
        return self.distance * rkd_distance(*given) + self.angle * rkd_angle(*given)


def pkt(student: jax.Array, teacher: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Mean over j of `p_T log(p_T / p_S)`, p an example's similarities (1 + cosine) / 2
    to all examples, 1 in total.

    Probabilistic knowledge transfer, Passalis and Tefas 2018 (arXiv:1803.10837),
    eq. 9, with the authors' 1e-7.
    """
    epsilon = 1e-7

    def shares(x: jax.Array) -> jax.Array:
        x = _flat(x)
        x = x / (norm(x) + epsilon)
        likeness = (x @ gather(x, axis_name).T + 1) / 2
        return likeness / likeness.sum(-1, keepdims=True)

    p_t, p_s = shares(jax.lax.stop_gradient(teacher)), shares(student)
    return jnp.mean(p_t * jnp.log((p_t + epsilon) / (p_s + epsilon)), axis=-1)


class PKT(Loss):
    """`pkt` of the pooled features; the tables weigh it 30000."""

    needs_features: ClassVar[bool] = True
    needs_teacher_logits: ClassVar[bool] = False

    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        return pkt(*pooled(student, teacher), self.axis_name)
