"""Contrastive representation distillation (CRD) with a memory of all training images."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.errors import UserError
from kd_jax.fields import number
from kd_jax.models.common import Output
from kd_jax.models.layers import Dense
from kd_jax.objectives.common import Batch, Loss, gather, temperature, total, unit
from kd_jax.objectives.matching import pooled

EPSILON = 1e-7


def contrast(positive: jax.Array, negatives: jax.Array, count: int) -> jax.Array:
    """`-log D(positive) - sum_k log(1 - D(negative_k))` for scores `[B]` and `[B, K]`,
    `D(x) = x / (x + K / count)`.

    Tian et al. 2020 (arXiv:1910.10699), eq. 18 and 19, with the code's epsilon.
    count: the images there are.
    """
    noise = negatives.shape[-1] / count
    right = jnp.log(positive / (positive + noise + EPSILON))
    wrong = jnp.log(noise / (negatives + noise + EPSILON))
    return -right - wrong.sum(-1)


def by_class(labels: np.ndarray) -> dict[str, np.ndarray]:
    """The training images `[N]` in the order of their classes, for
    `draw_negatives`: int32 arrays `[N]`.

    order: their numbers; first, size: of each image, where its class begins in that order and how
    many there are. An image without a label (-1) is a class of its own.
    """
    labels = np.asarray(labels)
    order = np.argsort(labels, kind='stable')
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels))
    _, begin, inverse, counts = np.unique(
        labels[order], return_index=True, return_inverse=True, return_counts=True
    )
    first, size = np.empty_like(place), np.empty_like(place)
    first[order], size[order] = begin[inverse], counts[inverse]
    alone = labels < 0
    first[alone], size[alone] = place[alone], 1
    if (size == len(labels)).any():
        raise UserError('crd needs images of two classes or more to contrast; these are all of one')
    return {
        name: array.astype(np.int32)
        for name, array in (('order', order), ('first', first), ('size', size))
    }


def draw_negatives(
    key: jax.Array, index: jax.Array, groups: dict[str, jax.Array], count: int
) -> jax.Array:
    """`[B, count]` numbers of training images of other classes than that of
    `index [B]`, drawn with replacement.

    They depend on `key` and on the image, not on the batch.
    """
    first, size = groups['first'][index][:, None], groups['size'][index][:, None]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    bits = jax.vmap(lambda k: jax.random.bits(k, (count,)))(keys)
    place = (bits % (len(groups['order']) - size).astype(jnp.uint32)).astype(jnp.int32)
    return groups['order'][place + jnp.where(place >= first, size, 0)]


class CRD(Loss):
    """Contrastive representation distillation, Tian et al. 2020
    (arXiv:1910.10699); the tables weigh it 0.8.

    Pooled features of both networks are embedded in `dim` dimensions, unit length. The student's
    embedding of an image is to be near the teacher's of the same image, which a memory keeps, and
    far from those of `negatives` images of other classes; likewise the other way round. Divided by
    `tau`, similarities are exponents; the constants that scale them are set by the first batch.
    `momentum` is the share of the old embedding in the memory.

    The memory is the collection 'memory': the same on all devices, as large as the training set.
    The published code draws negatives without replacement if there are enough. At initialisation
    the batch also has `train_label [N]`.
    """

    dim: int = number(128, at_least=1)  # of the embeddings
    negatives: int = number(16384, at_least=1)  # images of other classes, for each example
    tau: float = temperature(0.07)  # temperature of the similarities
    momentum: float = number(0.5, at_least=0, below=1)  # of the embeddings in the memory

    needs_features: ClassVar[bool] = True
    needs_teacher_logits: ClassVar[bool] = False

    @nn.compact
    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        mine, theirs = (
            unit(Dense(self.dim, name=f'embed_{name}')(seen))
            for name, seen in zip(('student', 'teacher'), pooled(student, teacher), strict=True)
        )
        groups = self._groups(batch)
        count = len(groups['order'])
        banks = {
            name: self.variable('memory', name, self._start, count)
            for name in ('student', 'teacher')
        }
        drawn = draw_negatives(self.make_rng('negatives'), batch['index'], groups, self.negatives)
        chosen = jnp.concatenate([batch['index'][:, None], drawn], axis=1)

        def scores(anchor: jax.Array, name: str, other: str) -> jax.Array:
            # Products with the whole memory, of which a few are taken: less to move than
            # the embeddings of the chosen.
            products = anchor @ jax.lax.stop_gradient(banks[other].value).T
            score = jnp.exp(jnp.take_along_axis(products, chosen, axis=1) / self.tau)
            constant = self.variable('memory', f'constant_{name}', lambda: jnp.float32(-1))
            if not self.is_initializing():
                mean = jax.lax.stop_gradient(score.mean())
                mean = jax.lax.pmean(mean, self.axis_name) if self.axis_name else mean
                constant.value = jnp.where(constant.value < 0, mean * count, constant.value)
            return score / jax.lax.stop_gradient(constant.value)

        values = []
        for anchor, name, other in ((mine, 'student', 'teacher'), (theirs, 'teacher', 'student')):
            score = scores(anchor, name, other)
            values.append(contrast(score[:, 0], score[:, 1:], count))
        if not self.is_initializing():
            index = gather(batch['index'], self.axis_name)
            for embedding, name in ((mine, 'student'), (theirs, 'teacher')):
                new = gather(jax.lax.stop_gradient(embedding), self.axis_name)
                old = banks[name].value
                mixed = self.momentum * old[index] + (1 - self.momentum) * new
                banks[name].value = old.at[index].set(unit(mixed))
        return total(values)

    def _start(self, count: int) -> jax.Array:
        bound = (3 / self.dim) ** 0.5
        return jax.random.uniform(
            self.make_rng('params'), (count, self.dim), minval=-bound, maxval=bound
        )

    def _groups(self, batch: Batch) -> dict[str, jax.Array]:
        """`by_class` of the training images."""
        arrays = (
            by_class(batch['train_label'])
            if self.is_initializing()
            else dict.fromkeys(('order', 'first', 'size'))
        )
        return {
            name: self.variable('memory', name, jnp.asarray, array).value
            for name, array in arrays.items()
        }
