"""A loss, which is a term of the training objective, and the weighted sum of
losses that a run minimises.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import fields
from kd_jax.fields import choice, number
from kd_jax.models.common import Output, mean_probabilities

Batch = dict[str, Any]


class Loss(nn.Module):
    """One term of an objective: `__call__(student, teacher, batch) -> [B]`, one
    value an example, unweighted.

    Its weight in the objective is `weight`, reached linearly from `ramp_from` during the first
    `ramp_epochs` epochs (0: from the start). A subclass's fields are its hyper-parameters, with the
    paper's defaults; those without a limit (`kd_jax.fields`) are set by the program. A loss with
    `needs_teacher = False` is called with `teacher = None`.

    With `only_where` an example counts only if the teacher is right about its label
    ('teacher_right'), or surer of its likeliest class than the student is of its own
    ('teacher_surer'); elsewhere its value is 0.

    A loss may look across the batch (training batches have no padding), with `gather` across all
    devices; the mean of its values is then that of the whole batch all the same. `optim.accumulate`
    makes it look across each part alone.
    """

    weight: float = number(1.0, at_least=0, sweep=True)  # in the objective
    ramp_epochs: float = number(0.0, at_least=0)  # until the weight is reached; 0 = at once
    ramp_from: float = number(0.0, at_least=0)  # the weight at the start of the ramp
    # which examples count: all, or where the teacher is right, or surer than the student
    only_where: str = choice('always', 'teacher_right', 'teacher_surer')
    axis_name: str | None = None  # the device axis, for losses that look across the batch
    fast: bool = False  # learned layers in the form that is fast on a CPU

    needs_teacher: ClassVar[bool] = True
    needs_label: ClassVar[bool] = False
    needs_heads: ClassVar[bool] = False  # auxiliary heads of the student
    needs_features: ClassVar[bool] = False  # of the teacher, not its logits alone
    # of the teacher, which must have the student's classes then
    needs_teacher_logits: ClassVar[bool] = True
    # several teachers are one to it: the average of their probabilities
    sees_ensemble: ClassVar[bool] = False

    @nn.nowrap
    def weight_at(self, epoch: jax.Array | np.ndarray | float) -> jax.Array:
        """The weight after `epoch` epochs (a float; fractions count): a float32 scalar."""
        if self.ramp_epochs == 0:
            return jnp.float32(self.weight)
        share = jnp.clip(jnp.asarray(epoch, jnp.float32) / self.ramp_epochs, 0.0, 1.0)
        return self.ramp_from + (self.weight - self.ramp_from) * share

    @nn.nowrap
    def valid(self, batch: Batch) -> jax.Array:
        """`[B]` float: 1 where this loss applies to the example, 0 for padding and (if
        it needs them) missing labels.
        """
        mask = batch['mask'].astype(jnp.float32)
        return mask if self.uses_unlabelled() else mask * labelled(batch)

    @nn.nowrap
    def uses_unlabelled(self) -> bool:
        """Whether examples without a label count."""
        return not self.needs_label and self.only_where != 'teacher_right'

    @nn.nowrap
    def reads_logits(self) -> bool:
        """Whether the value depends on what the teacher says of the classes."""
        return self.needs_teacher and (self.needs_teacher_logits or self.only_where != 'always')

    @nn.nowrap
    def counts(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        """`[B]` float: 1 where `only_where` lets the example count."""
        if self.only_where == 'teacher_right':
            label = batch['label']
            if 'mixed_label' in batch:  # that of the larger share
                label = jnp.where(batch['mix'] >= 0.5, label, batch['mixed_label'])
            return (teacher.logits.argmax(-1) == label).astype(jnp.float32)
        surest = [
            jax.nn.softmax(output.logits.astype(jnp.float32)).max(-1)
            for output in (student, teacher)
        ]
        return (surest[1] > surest[0]).astype(jnp.float32)

    @nn.nowrap
    def check(self, path: str, num_classes: int | None) -> None:
        """Raises UserError for values that make no sense together or with the
        data; `path` names the loss.
        """


class Objective(nn.Module):
    """The losses of a run, side by side, each under its label.

    Called, it gives each loss's unweighted value for every example; what a run minimises is
    `sum over labels of weights(epoch)[label] * sum(value * mask) / max(sum(mask), 1)`, summed over
    all devices by the caller. No gradient reaches a teacher.

    With several teachers a loss's value is the mean over the teachers, weighted with
    `teacher_weights` (scaled to sum to 1). For `kl` and `soft_cross_entropy` its gradient is then
    that of the divergence from the weighted average of the teachers' softened probabilities. A loss
    with `sees_ensemble` gets one teacher instead, whose logits are `ensemble_logits`. Each teacher
    has its own set of a loss's learned parameters: see `submodules`.
    """

    losses: tuple[tuple[str, Loss], ...]
    teacher_weights: tuple[float, ...] = ()

    @nn.compact
    def __call__(
        self, student: Output, teachers: Sequence[Output], batch: Batch
    ) -> dict[str, jax.Array]:
        """The losses' values, label -> `[B]` float32, for the outputs of the
        student and of each teacher.
        """
        if len(teachers) != len(self.teacher_weights):
            raise ValueError(
                f'{len(teachers)} teacher outputs but {len(self.teacher_weights)} teacher weights'
            )
        teachers = jax.lax.stop_gradient(tuple(teachers))
        values = {}
        for label, loss in self.losses:
            if loss.needs_teacher:
                parts = []
                for name, share, teacher in self._teacher_parts(label, loss, teachers):
                    part = share * loss.copy(name=name)(student, teacher, batch)
                    if loss.only_where != 'always':
                        part = part * loss.counts(student, teacher, batch)
                    parts.append(part)
                value = total(parts)
            else:
                value = loss.copy(name=label)(student, None, batch)
            # A loss that reduces would be counted wrongly, silently.
            if jnp.shape(value) != batch['mask'].shape:
                raise ValueError(
                    f'objective {label!r} returned shape '
                    f'{jnp.shape(value)}, not one value an example'
                )
            values[label] = value
        return values

    @nn.nowrap
    def _teacher_parts(
        self, label: str, loss: Loss, teachers: Sequence[Output]
    ) -> list[tuple[str, float, Output]]:
        """(name of the submodule, share in the loss's value, teacher) of
        all that a loss learns from.
        """
        if len(teachers) > 1 and loss.sees_ensemble:
            teachers = [
                Output(ensemble_logits([t.logits for t in teachers], self.teacher_weights), {})
            ]
        shares = normalised(self.teacher_weights) if len(teachers) > 1 else (1.0,)
        return list(zip(self.submodules(label, loss), shares, teachers, strict=True))

    @nn.nowrap
    def submodules(self, label: str, loss: Loss) -> list[str]:
        """Where a loss keeps its variables: `<label>`, or `<label>_0`, `<label>_1`, ... if it
        learns from each of several.
        """
        if len(self.teacher_weights) < 2 or loss.sees_ensemble or not loss.needs_teacher:
            return [label]
        return [f'{label}_{k}' for k in range(len(self.teacher_weights))]

    @nn.nowrap
    def weights(self, epoch: jax.Array | np.ndarray | float) -> dict[str, jax.Array]:
        """Each loss's weight after `epoch` epochs: label -> scalar."""
        return {label: loss.weight_at(epoch) for label, loss in self.losses}

    @nn.nowrap
    def masks(self, batch: Batch) -> dict[str, jax.Array]:
        """Which examples each loss counts: label -> `[B]`, 0 or 1."""
        return {label: loss.valid(batch) for label, loss in self.losses}

    @nn.nowrap
    def hparams(self) -> dict[str, float]:
        """`'objective.<label>.<field>'` -> value, of every field that may be a number
        which only a running step knows.
        """
        return {
            f'objective.{label}.{field}': float(getattr(loss, field))
            for label, loss in self.losses
            for field in fields.swept(type(loss))
        }

    @nn.nowrap
    def with_hparams(self, hparams: Mapping[str, Any]) -> 'Objective':
        """This objective with those numbers, which may be tracers, in the keys of
        `hparams()`; other keys are ignored.
        """

        def changed(label: str, loss: Loss) -> Loss:
            keys = {field: f'objective.{label}.{field}' for field in fields.swept(type(loss))}
            return loss.clone(
                **{field: hparams[key] for field, key in keys.items() if key in hparams}
            )

        return self.clone(
            losses=tuple((label, changed(label, loss)) for label, loss in self.losses)
        )


def temperature(default: float) -> Any:
    """A field for what logits or similarities are divided by; its square stays within float32."""
    return number(default, above=0, at_most=1e6, sweep=True)


def total(values: Iterable[jax.Array]) -> jax.Array:
    """The sum of one array or more."""
    return functools.reduce(operator.add, values)


def labelled(batch: Batch) -> jax.Array:
    """`[B]` bool: the example has its label and, under mixup, the
    label of the image mixed into it.
    """
    if 'mixed_label' in batch:
        return (batch['label'] >= 0) & (batch['mixed_label'] >= 0)
    return batch['label'] >= 0


def over_labels(batch: Batch, loss: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """`loss(labels [B]) -> [B]` at the batch's labels; under mixup
    `mix * loss(label) + (1 - mix) * loss(mixed_label)`.

    That is the form of Zhang et al. 2018 (arXiv:1710.09412). An example with one of its two labels
    missing counts as unlabelled: `loss` gets -1 for both.
    """
    if 'mixed_label' not in batch:
        return loss(batch['label'])
    label, mixed = (jnp.where(labelled(batch), batch[key], -1) for key in ('label', 'mixed_label'))
    return batch['mix'] * loss(label) + (1.0 - batch['mix']) * loss(mixed)


def gather(x: jax.Array, axis_name: str | None) -> jax.Array:
    """`x` `[B, ...]` of the examples of all devices, in the order of the batch;
    gradients find their way back.
    """
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def first_of_mine(x: jax.Array, axis_name: str | None) -> jax.Array | int:
    """Where this device's examples `x` begin in what `gather` returns."""
    return 0 if axis_name is None else jax.lax.axis_index(axis_name) * x.shape[0]


def unit(x: jax.Array, axis: int = -1, epsilon: float = 1e-12) -> jax.Array:
    """`x` divided by its Euclidean norm along `axis`, or by `epsilon` if that is larger;
    the gradient at 0 is finite.
    """
    return x / jnp.maximum(norm(x, axis), epsilon)


def norm(x: jax.Array, axis: int = -1) -> jax.Array:
    """The Euclidean norm along `axis`, which stays; the gradient at 0 is 0."""
    return jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=axis, keepdims=True), 1e-30))


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """`weights` scaled to sum to 1."""
    total = sum(weights)
    return tuple(w / total for w in weights)


def ensemble_logits(logits: Sequence[jax.Array], weights: Sequence[float]) -> jax.Array:
    """The ensemble's log-probabilities `[B, K]`: log of the weighted average of
    softmax(logits), one `[B, K]` a member.

    Probabilities are averaged, not logits (an average of logits is a geometric mean, in which one
    confident member outvotes all others). `weights` need not sum to 1.
    """
    return mean_probabilities(logits, normalised(weights))
