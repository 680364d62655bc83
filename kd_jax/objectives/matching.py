"""How features of two networks are brought together: which belong to which, at what
size, through which regressor.

One mechanism for all methods: stages are paired from the deepest up, the larger map is
average-pooled to the smaller one, and the student's channels go through a learned 1x1 convolution
with BatchNorm where a method needs the teacher's width.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.errors import UserError, unknown
from kd_jax.fields import names
from kd_jax.models.common import ConvBN, Output
from kd_jax.models.layers import Setting
from kd_jax.models.pooling import adaptive_avg_pool
from kd_jax.objectives.common import Loss

Pair = tuple[str, str]


def ladder(features: Mapping[str, jax.Array]) -> list[str]:
    """The last stage of each resolution, from the shallowest to the
    deepest: names of `features`.
    """
    stages = [name for name in features if name.startswith('stage') and name[5:].isdecimal()]
    last: dict[tuple[int, ...], str] = {}
    for name in sorted(stages, key=lambda name: int(name[5:])):
        last[features[name].shape[1:3]] = name
    return list(last.values())


def pairs(
    student: Output,
    teacher: Output,
    student_names: tuple[str, ...] = (),
    teacher_names: tuple[str, ...] = (),
) -> list[Pair]:
    """(student's feature, teacher's feature) that belong together: the ladders of
    both, aligned at the deepest.

    Names that are given, of one or of both, take the place of a ladder.

    Raises:
      UserError: for names that do not exist, or not as many for the one as for the other.
    """
    sides = []
    for who, output, given in (
        ('student', student, student_names),
        ('teacher', teacher, teacher_names),
    ):
        for name in given:
            if name not in output.features:
                raise unknown(f'feature of the {who}', name, output.features)
        sides.append(list(given) or ladder(output.features))
        if not sides[-1]:
            raise UserError(
                f'the {who} returns no feature stage1, stage2, ...; it has '
                f'{", ".join(output.features) or "none"}: let it return (logits, features)'
            )
    count = min(map(len, sides))
    named = len(student_names), len(teacher_names)
    for number, side, other in zip(named, sides, reversed(sides), strict=True):
        if number > count:
            raise UserError(
                f'the features {tuple(side)} need as many of the other network, which has '
                f'{tuple(other)}; name as many in student_features as in teacher_features'
            )
    return list(zip(sides[0][-count:], sides[1][-count:], strict=True))


def pooled(student: Output, teacher: Output) -> tuple[jax.Array, jax.Array]:
    """What the classifiers of both see, `[B, D]`; `UserError` where one does not return it."""
    for who, output in (('student', student), ('teacher', teacher)):
        if 'pooled' not in output.features:
            raise UserError(
                f"the {who} returns no feature 'pooled', what its classifier sees, [B, D]; let it "
                "return (logits, {'pooled': ...})"
            )
    return student.features['pooled'], teacher.features['pooled']


def as_map(x: jax.Array) -> jax.Array:
    """A feature in float32, `[B, H, W, C]`; `pooled` as a map of one pixel."""
    x = x.astype(jnp.float32)
    return x[:, None, None] if x.ndim == 2 else x


def before_activation(features: Mapping[str, jax.Array], name: str) -> jax.Array:
    """The feature before the ReLU that ends its stage, where one does."""
    return features.get(f'{name}_pre', features[name])


def same_size(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two maps `[B, H, W, C]`, the larger average-pooled to the height and width of the smaller."""
    size = tuple(min(pair) for pair in zip(a.shape[1:3], b.shape[1:3], strict=True))
    return adaptive_avg_pool(a, size), adaptive_avg_pool(b, size)


class FeatureLoss(Loss):
    """A loss on features: those that are named, or else the pairs that `pairs` finds."""

    # which features are compared; () = the last stage of each resolution
    student_features: tuple[str, ...] = names((), "names of features, such as ('stage2',)")
    # likewise, of the teacher
    teacher_features: tuple[str, ...] = names((), "names of features, such as ('stage2',)")

    needs_features: ClassVar[bool] = True
    needs_teacher_logits: ClassVar[bool] = False
    rectified: ClassVar[bool] = True  # False: `before_activation`

    @nn.nowrap
    def pairs(self, student: Output, teacher: Output) -> list[Pair]:
        return pairs(student, teacher, self.student_features, self.teacher_features)

    @nn.nowrap
    def maps(self, student: Output, teacher: Output) -> list[tuple[jax.Array, jax.Array]]:
        """The features of each pair, `[B, H, W, C]` float32, each in its own size."""
        return [
            (self.map(student, name), self.map(teacher, other))
            for name, other in self.pairs(student, teacher)
        ]

    @nn.nowrap
    def map(self, output: Output, name: str) -> jax.Array:
        return as_map(
            output.features[name] if self.rectified else before_activation(output.features, name)
        )

    @nn.nowrap
    def setting(self) -> Setting:
        """Of the layers that learn with the student."""
        return Setting(axis_name=self.axis_name, fast=self.fast)

    @nn.nowrap
    def regressed(self, x: jax.Array, features: int, number: int) -> jax.Array:
        """`x` through the regressor of pair `number`: `[B, H, W, C] -> [B, H, W, features]`."""
        return ConvBN(features, 1, act=None, setting=self.setting(), name=f'regressor_{number}')(
            x, train=True
        )
