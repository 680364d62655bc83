"""Objectives on feature maps: FitNets, AT, NST, VID, AB, OFD, FT, FSP and ReviewKD.

Maps are `[B, H, W, C]`; functions give one value an example, `[B]`, and want maps of the same size
unless they say otherwise. A term with several pairs of features sums over them.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.fields import number
from kd_jax.models.common import ConvBN, Output
from kd_jax.models.initial import Constant, param
from kd_jax.models.layers import Conv
from kd_jax.models.pooling import adaptive_avg_pool
from kd_jax.objectives.common import Batch, total, unit
from kd_jax.objectives.matching import FeatureLoss, as_map, before_activation, pooled, same_size

Layer = Callable[[jax.Array], jax.Array]


def mean_square(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean squared difference of the maps of each example."""
    return jnp.mean((a - b) ** 2, axis=(1, 2, 3))


class FitNet(FeatureLoss):
    """Mean squared difference of a regressed map of the student and the teacher's:
    Romero et al. 2015 (arXiv:1412.6550), eq. 3.

    One pair, the middle one. As in the tables (weight 100), except that their regressor ends in a
    ReLU and brings maps to one size with strides.
    """

    @nn.compact
    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        maps = self.maps(student, teacher)
        mine, theirs = same_size(*maps[(len(maps) - 1) // 2])
        return mean_square(self.regressed(mine, theirs.shape[-1], 0), theirs)


def factor(x: jax.Array) -> jax.Array:
    """`[B, H, W, C] -> [B, H * W]`: the mean over channels of the squared map, of unit length."""
    return unit(jnp.mean(x * x, axis=-1).reshape(len(x), -1))


def at(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Mean squared difference of attention maps: each example's mean over channels of
    the squared map, unit length.

    Zagoruyko and Komodakis 2017 (arXiv:1612.03928), eq. 2, as their code has it: the mean over the
    pixels of the square where the paper prints the norm.
    """
    return jnp.mean((factor(student) - factor(teacher)) ** 2, axis=-1)


class AT(FeatureLoss):
    """`at` of every pair; the tables weigh it 1000."""

    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        return total(at(*same_size(*pair)) for pair in self.maps(student, teacher))


def nst(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Squared maximum mean discrepancy of the channels' maps, each of unit length,
    with the kernel `(x . y)^2`.

    Huang and Wang 2017 (arXiv:1707.01219), eq. 6: the mean of the kernel within each network
    less twice that between them.
    """
    a, b = (unit(x.reshape(len(x), -1, x.shape[-1]), axis=1) for x in (student, teacher))

    def kernel(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(jnp.einsum('bpc,bpd->bcd', x, y) ** 2, axis=(1, 2))

    # The same by products of pixels instead of channels, where those are fewer.
    if a.shape[1] < max(a.shape[2], b.shape[2]):
        first, second = (jnp.einsum('bpc,bqc->bpq', x, x) / x.shape[-1] for x in (a, b))
        return jnp.sum((first - second) ** 2, axis=(1, 2))
    return kernel(b, b) + kernel(a, a) - 2 * kernel(a, b)


class NST(FeatureLoss):
    """`nst` of every pair; the tables weigh it 50."""

    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        return total(nst(*same_size(*pair)) for pair in self.maps(student, teacher))


class VID(FeatureLoss):
    """Variational information distillation, Ahn et al. 2019 (arXiv:1904.05835), eq. 5: a
    Gaussian's negative logarithm.

    Mean over the map of `((regressed - teacher)^2 / v + log v) / 2`, with a learned variance
    `v = softplus(scale) + 1e-5` for each of the teacher's channels, 5 at first. The authors regress
    with three 1x1 convolutions. The tables weigh it 1.
    """

    @nn.compact
    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        values = []
        for k, pair in enumerate(self.maps(student, teacher)):
            mine, theirs = same_size(*pair)
            scale = param(
                self, f'scale_{k}', Constant(math.log(math.expm1(5.0 - 1e-5))), theirs.shape[-1:]
            )
            variance = (jax.nn.softplus(scale) + 1e-5)[None, None, None]
            error = self.regressed(mine, theirs.shape[-1], k) - theirs
            values.append(jnp.mean(0.5 * (error**2 / variance + jnp.log(variance)), axis=(1, 2, 3)))
        return total(values)


def ab(student: jax.Array, teacher: jax.Array, margin: float = 1.0) -> jax.Array:
    """Sum over the map of the squared way to the right side of the margin, wherever
    the student is not there yet.

    Heo et al. 2019 (arXiv:1811.03233), eq. 3: a neuron is to be on the side of
    0 on which the teacher's is.
    """
    active = teacher > 0
    missing = jnp.where(
        active, jnp.maximum(margin - student, 0.0), jnp.maximum(margin + student, 0.0)
    )
    return jnp.sum(missing**2, axis=(1, 2, 3))


class AB(FeatureLoss):
    """`ab` of every regressed pair, before activations; half as much for each
    pair further up, times 3/1000.

    The factors are those of the authors' code. Made for a first run without labels,
    from which another one starts.
    """

    margin: float = number(1.0, at_least=0)  # from 0, which the student is to keep

    rectified: ClassVar[bool] = False

    @nn.compact
    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        maps, values = self.maps(student, teacher), []
        for k, pair in enumerate(maps):
            mine, theirs = same_size(*pair)
            value = ab(self.regressed(mine, theirs.shape[-1], k), theirs, self.margin)
            values.append(value * 2.0 ** (k + 1 - len(maps)) * 0.003)
        return total(values)


def ofd(student: jax.Array, teacher: jax.Array, margin: jax.Array) -> jax.Array:
    """Sum over the map of the squared distance to `max(teacher, margin)`; a student below
    a negative one is left alone.

    Heo et al. 2019 (arXiv:1904.01866), eq. 1 and 2. margin: `[C]`, negative.
    """
    target = jnp.maximum(teacher, margin[None, None, None])
    return jnp.sum(
        jnp.where((target > 0) | (student > target), (student - target) ** 2, 0.0), axis=(1, 2, 3)
    )


class OFD(FeatureLoss):
    """`ofd` of every regressed pair, before activations; half as much for each pair further up.

    A channel's margin is the mean of the teacher's negative responses, as the paper defines
    it, in a running average (momentum 0.1); the authors compute it from BatchNorm's
    parameters. They weigh the term 1e-3.
    """

    rectified: ClassVar[bool] = False

    @nn.compact
    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        maps, values = self.maps(student, teacher), []
        for k, pair in enumerate(maps):
            # The margin is of the teacher's own map: its average has weaker responses.
            margin = self._margin(pair[1], k)
            mine, theirs = same_size(*pair)
            value = ofd(self.regressed(mine, theirs.shape[-1], k), theirs, margin)
            values.append(value / 2.0 ** (len(maps) - 1 - k))
        return total(values)

    def _margin(self, teacher: jax.Array, number: int) -> jax.Array:
        running = self.variable(
            'batch_stats', f'margin_{number}', jnp.zeros, teacher.shape[-1:], jnp.float32
        )
        sums = (
            jnp.minimum(teacher, 0.0).sum((0, 1, 2)),
            (teacher < 0).astype(jnp.float32).sum((0, 1, 2)),
        )
        if not self.is_initializing():
            total, count = jax.lax.psum(sums, self.axis_name) if self.axis_name else sums
            mean = jnp.where(count > 0, total / jnp.maximum(count, 1.0), running.value)
            running.value = jnp.where(running.value < 0, 0.9 * running.value + 0.1 * mean, mean)
        return running.value


class FT(FeatureLoss):
    """Factor transfer, Kim et al. 2018 (arXiv:1802.04977): mean absolute difference of the
    factors of the deepest maps.

    The student's factor comes from a translator that learns with it; the teacher's from the inner
    layer of an auto-encoder, the paraphraser, `rate` times as wide as the map. The paper trains the
    paraphraser before the student; here it learns at the same time, from its own mean squared error
    alone, which counts `reconstruction` times: with the tables' weight of 200, the default makes
    that 0.2, and their learning rate of 0.05 the 0.01 that they train it with.
    """

    rate: float = number(0.5, above=0)  # of the factor's channels to the map's
    reconstruction: float = number(0.001, at_least=0)  # weight of the paraphraser's own error

    @nn.compact
    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        mine, theirs = self.maps(student, teacher)[-1]
        inner, width = max(int(theirs.shape[-1] * self.rate), 1), theirs.shape[-1]
        leaky = partial(nn.leaky_relu, negative_slope=0.1)

        def chain(
            x: jax.Array, name: str, widths: Sequence[int], layer: Callable[..., Layer]
        ) -> jax.Array:
            for k, features in enumerate(widths, start=1):
                x = layer(features, name=f'{name}_{k}')(x)
            return x

        def plain(features: int, name: str) -> Layer:
            conv = Conv(features, use_bias=True, setting=self.setting(), name=name)
            return lambda x: leaky(conv(x))

        def normed(features: int, name: str) -> Layer:
            unit_ = ConvBN(features, act=leaky, use_bias=True, setting=self.setting(), name=name)
            return lambda x: unit_(x, train=True)

        paraphrase = chain(theirs, 'encoder', (width, inner, inner), plain)
        error = mean_square(chain(paraphrase, 'decoder', (inner, width, width), plain), theirs)
        translation = chain(mine, 'translator', (mine.shape[-1], inner, inner), normed)
        first, second = (
            factor(x) for x in same_size(translation, jax.lax.stop_gradient(paraphrase))
        )
        return jnp.mean(jnp.abs(first - second), axis=-1) + self.reconstruction * error


def flow(features: Sequence[jax.Array]) -> list[jax.Array]:
    """`[B, C1, C2]` for each map and the next one: the mean over the pixels of
    the products of their channels.
    """
    return [
        jnp.einsum('bhwc,bhwd->bcd', *same) / same[0][0, ..., 0].size
        for same in (same_size(*pair) for pair in itertools.pairwise(features))
    ]


class FSP(FeatureLoss):
    """Flow of the solution procedure, Yim et al. 2017 (CVPR): mean squared difference of
    `flow` from stem to last stage.

    The paper needs two networks of the same widths; here regressors bring the student's features
    to the teacher's. Made for a first run without labels, from which another one starts; the
    tables' code weighs it 1 there.
    """

    @nn.compact
    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        pairs = self.pairs(student, teacher)
        if not self.student_features and not self.teacher_features:
            pairs = [('stem', 'stem'), *pairs]
        mine, theirs = (
            [self.map(output, pair[side]) for pair in pairs]
            for side, output in enumerate((student, teacher))
        )
        mine = [
            x if x.shape[-1] == y.shape[-1] else self.regressed(x, y.shape[-1], k)
            for k, (x, y) in enumerate(zip(mine, theirs, strict=True))
        ]
        return total(
            jnp.mean((a - b) ** 2, axis=(1, 2))
            for a, b in zip(flow(mine), flow(theirs), strict=True)
        )


def hcl(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Hierarchical context loss, Chen et al. 2021 (arXiv:2104.09044): the mean squared
    difference at several sizes.

    That of the maps, and of their averages over 4 x 4, 2 x 2 and 1 cells where these are fewer than
    the rows, weighed 1, 1/2, 1/4 ... and divided by the sum of those weights.
    """
    value, share, total = mean_square(student, teacher), 1.0, 1.0
    for cells in (4, 2, 1):
        if cells < student.shape[1]:
            share /= 2
            total += share
            size = (cells, cells)
            value += share * mean_square(
                adaptive_avg_pool(student, size), adaptive_avg_pool(teacher, size)
            )
    return value / total


def nearest(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """A map `[B, H, W, C]` at another size, of the nearest pixels as PyTorch chooses them."""
    rows, columns = (
        (jnp.arange(new) * old) // new for old, new in zip(x.shape[1:3], size, strict=True)
    )
    return x[:, rows][:, :, columns]


class ReviewKD(FeatureLoss):
    """Knowledge review, Chen et al. 2021 (arXiv:2104.09044): the student's
    stages, fused from the deepest up.

    Each level, of the pairs and the pooled features as a map of one pixel, is mixed with the fused
    one below it by an attention over both, in at most `mid` channels, and compared by `hcl` with
    the teacher's before its activation. The paper weighs it 0.6 to 8 depending on the networks,
    ramped up during the first 20 of 240 epochs.
    """

    mid: int = number(512, at_least=1)  # most channels of the fused maps

    @nn.compact
    def __call__(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        maps = [
            (as_map(student.features[name]), as_map(before_activation(teacher.features, other)))
            for name, other in self.pairs(student, teacher)
        ]
        if not self.student_features and not self.teacher_features:
            mine, theirs = pooled(student, teacher)
            maps.append((as_map(mine), as_map(theirs)))
        width = min(self.mid, maps[-1][0].shape[-1])
        unit_ = partial(ConvBN, act=None, setting=self.setting())
        values, fused = [], None
        for k, (mine, theirs) in reversed(list(enumerate(maps))):
            x = unit_(width, 1, name=f'enter_{k}')(mine, train=True)
            if fused is not None:
                below = nearest(fused, x.shape[1:3])
                conv = Conv(2, 1, use_bias=True, setting=self.setting(), name=f'attention_{k}')
                share = jax.nn.sigmoid(conv(jnp.concatenate([x, below], axis=-1)))
                x = x * share[..., :1] + below * share[..., 1:]
            fused = x
            left = unit_(theirs.shape[-1], 3, name=f'leave_{k}')(x, train=True)
            values.append(hcl(*same_size(left, theirs)))
        return total(values)
