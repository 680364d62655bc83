"""A term of the training objective, and the weighted sum of terms that a run minimises."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models.common import Output, mean_probabilities

Batch = dict[str, Any]


class Term(nn.Module):
    """One objective: `__call__(student, teacher, batch) -> [B]`, one value an example, unweighted.

    Its weight in the run's loss is `weight`, reached linearly from `ramp_from` during the first `ramp_epochs`
    epochs (0: from the start). A subclass's fields are its hyper-parameters, with the paper's defaults.
    A term with `needs_teacher = False` is called with `teacher = None`.

    With `only_where` an example counts only if the teacher is right about its label ('teacher_right'), or surer of its
    likeliest class than the student is of its own ('teacher_surer'); elsewhere its value is 0.

    A term may look across the batch (training batches have no padding), with `gather` across all devices; the mean of
    its values is then that of the whole batch all the same. `optim.accumulate` makes it look across each part alone.
    """

    weight: float = 1.0
    ramp_epochs: float = 0.0
    ramp_from: float = 0.0
    only_where: str = 'always'
    axis_name: str | None = None  # the device axis, for terms that look across the batch
    fast: bool = False  # learned layers in the form that is fast on a CPU

    needs_teacher: ClassVar[bool] = True
    needs_label: ClassVar[bool] = False
    needs_heads: ClassVar[bool] = False  # auxiliary heads of the student
    needs_features: ClassVar[bool] = False  # of the teacher, not its logits alone
    sees_ensemble: ClassVar[bool] = False  # several teachers are one to it: the average of their probabilities

    @nn.nowrap
    def weight_at(self, epoch) -> jax.Array:
        """The weight after `epoch` epochs (a float; fractions count): a float32 scalar."""
        if self.ramp_epochs == 0:
            return jnp.float32(self.weight)
        share = jnp.clip(jnp.asarray(epoch, jnp.float32) / self.ramp_epochs, 0.0, 1.0)
        return self.ramp_from + (self.weight - self.ramp_from) * share

    @nn.nowrap
    def valid(self, batch: Batch) -> jax.Array:
        """`[B]` float: 1 where this term can judge the example, 0 for padding and (if it needs them) missing labels."""
        mask = batch['mask'].astype(jnp.float32)
        return mask * labelled(batch) if self.needs_label or self.only_where == 'teacher_right' else mask

    @nn.nowrap
    def counts(self, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        """`[B]` float: 1 where `only_where` lets the example count."""
        if self.only_where == 'teacher_right':
            label = batch['label']
            if 'mixed_label' in batch:  # that of the larger share
                label = jnp.where(batch['mix'] >= 0.5, label, batch['mixed_label'])
            return (teacher.logits.argmax(-1) == label).astype(jnp.float32)
        surest = [jax.nn.softmax(output.logits.astype(jnp.float32)).max(-1) for output in (student, teacher)]
        return (surest[1] > surest[0]).astype(jnp.float32)

    @nn.nowrap
    def check(self, path: str, num_classes: int | None) -> None:
        """Raises UserError for values that `objectives.LIMITS` cannot judge field by field; `path` names the term."""


class WeightedSum(nn.Module):
    """The terms of a run's objective, side by side.

    Called, it gives each term's unweighted value for every example; a run's loss is
    `sum over names of weights(epoch)[name] * sum(value * mask) / max(sum(mask), 1)`, summed over all devices by the
    caller. No gradient reaches a teacher.

    With several teachers a term's value is the mean over the teachers, weighted with `teacher_weights` (scaled to sum
    to 1). For `kl` and `soft_cross_entropy` its gradient is then that of the divergence from the weighted average of
    the teachers' softened probabilities. A term with `sees_ensemble` gets one teacher instead, whose logits are
    `ensemble_logits`. Each teacher has its own set of a term's learned parameters: the submodule `<name>` with one
    teacher, `<name>_0`, `<name>_1`, ... with several.
    """

    terms: tuple[tuple[str, Term], ...]
    teacher_weights: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, student: Output, teachers: Sequence[Output], batch: Batch) -> dict[str, jax.Array]:
        """The terms' values, name -> `[B]` float32, for the outputs of the student and of each teacher."""
        if len(teachers) != len(self.teacher_weights):
            raise ValueError(f'{len(teachers)} teacher outputs but {len(self.teacher_weights)} teacher weights')
        teachers = jax.lax.stop_gradient(tuple(teachers))
        values = {}
        for name, term in self.terms:
            if term.needs_teacher:
                value = 0.0
                for own, share, teacher in self._lessons(name, term, teachers):
                    part = share * term.copy(name=own)(student, teacher, batch)
                    value += part if term.only_where == 'always' else part * term.counts(student, teacher, batch)
            else:
                value = term.copy(name=name)(student, None, batch)
            if jnp.shape(value) != batch['mask'].shape:  # a term that reduces would be counted wrongly, silently
                raise ValueError(f'objective {name!r} returned shape {jnp.shape(value)}, not one value an example')
            values[name] = value
        return values

    @nn.nowrap
    def _lessons(self, name: str, term: Term, teachers: Sequence[Output]) -> list[tuple[str, float, Output]]:
        """(name of the submodule, share, teacher) of what a term learns from."""
        if len(teachers) == 1:
            return [(name, 1.0, teachers[0])]
        if term.sees_ensemble:
            return [(name, 1.0, Output(ensemble_logits([t.logits for t in teachers], self.teacher_weights), {}))]
        shares = normalised(self.teacher_weights)
        return [(f'{name}_{k}', shares[k], teacher) for k, teacher in enumerate(teachers)]

    @nn.nowrap
    def weights(self, epoch) -> dict[str, jax.Array]:
        """Each term's weight after `epoch` epochs: name -> scalar."""
        return {name: term.weight_at(epoch) for name, term in self.terms}

    @nn.nowrap
    def masks(self, batch: Batch) -> dict[str, jax.Array]:
        """Which examples each term counts: name -> `[B]`, 0 or 1."""
        return {name: term.valid(batch) for name, term in self.terms}


def labelled(batch: Batch) -> jax.Array:
    """`[B]` bool: the example has its label and, under mixup, the label of the image mixed into it."""
    if 'mixed_label' in batch:
        return (batch['label'] >= 0) & (batch['mixed_label'] >= 0)
    return batch['label'] >= 0


def over_labels(batch: Batch, loss: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """`loss(labels [B]) -> [B]` at the batch's labels; under mixup `mix * loss(label) + (1 - mix) * loss(mixed_label)`.

    That is the form of Zhang et al. 2018 (arXiv:1710.09412). An example with one of its two labels missing counts as
    unlabelled: `loss` gets -1 for both.
    """
    if 'mixed_label' not in batch:
        return loss(batch['label'])
    own, other = (jnp.where(labelled(batch), batch[key], -1) for key in ('label', 'mixed_label'))
    return batch['mix'] * loss(own) + (1.0 - batch['mix']) * loss(other)


def gather(x: jax.Array, axis_name: str | None) -> jax.Array:
    """`x` `[B, ...]` of the examples of all devices, in the order of the batch; gradients find their way back."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def first_of_mine(x: jax.Array, axis_name: str | None) -> jax.Array | int:
    """Where this device's examples `x` begin in what `gather` returns."""
    return 0 if axis_name is None else jax.lax.axis_index(axis_name) * x.shape[0]


def unit(x: jax.Array, axis: int = -1, epsilon: float = 1e-12) -> jax.Array:
    """`x` divided by its Euclidean norm along `axis`, or by `epsilon` if that is larger; the gradient at 0 is finite."""
    return x / jnp.maximum(norm(x, axis), epsilon)


def norm(x: jax.Array, axis: int = -1) -> jax.Array:
    """The Euclidean norm along `axis`, which stays; the gradient at 0 is 0."""
    return jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=axis, keepdims=True), 1e-30))


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """`weights` scaled to sum to 1."""
    total = sum(weights)
    return tuple(w / total for w in weights)


def ensemble_logits(logits: Sequence[jax.Array], weights: Sequence[float]) -> jax.Array:
    """The ensemble's log-probabilities `[B, K]`: log of the weighted average of softmax(logits), one `[B, K]` a member.

    Probabilities are averaged, not logits (an average of logits is a geometric mean, in which one confident member
    outvotes all others). `weights` need not sum to 1.
    """
    return mean_probabilities(logits, normalised(weights))
