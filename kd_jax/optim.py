"""Learning-rate schedules, optimisers with PyTorch's update rules, frozen parameters,
and the average of parameters.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kd_jax import fields
from kd_jax.errors import UserError
from kd_jax.fields import choice, flag, is_number, names, number, several


def _constant(
    settings: 'Settings', warmup: int, total: int, boundaries: Sequence[int]
) -> optax.Schedule:
    return optax.constant_schedule(1.0)


def _cosine(
    settings: 'Settings', warmup: int, total: int, boundaries: Sequence[int]
) -> optax.Schedule:
    return optax.cosine_decay_schedule(1.0, total - warmup, alpha=settings.final_factor)


def _step(
    settings: 'Settings', warmup: int, total: int, boundaries: Sequence[int]
) -> optax.Schedule:
    scales: dict[int, float] = {}
    for boundary in boundaries:  # two may round to the same step
        scales[boundary - warmup] = scales.get(boundary - warmup, 1.0) * settings.step_factor
    return optax.piecewise_constant_schedule(1.0, scales)


# What follows the warm-up, as a function of the steps since its end, relative to the peak.
SCHEDULES = {'cosine': _cosine, 'step': _step, 'constant': _constant}


def _sgd(
    rate: Any, decay: optax.GradientTransformation, settings: 'Settings'
) -> optax.GradientTransformation:
    return optax.chain(decay, optax.sgd(rate, settings.momentum or None, settings.nesterov))


def _adam(
    rate: Any, decay: optax.GradientTransformation, settings: 'Settings'
) -> optax.GradientTransformation:
    return optax.chain(decay, optax.adam(rate, settings.b1, settings.b2, settings.eps))


def _adamw(
    rate: Any, decay: optax.GradientTransformation, settings: 'Settings'
) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(settings.b1, settings.b2, settings.eps)
    return optax.chain(adam, decay, optax.scale_by_learning_rate(rate))


# `decay` adds weight_decay * parameter to what it is given: to the gradient (L2), or
# to Adam's update (decoupled).
OPTIMISERS = {'sgd': _sgd, 'adam': _adam, 'adamw': _adamw}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a run is optimised; `read` makes it of what a config has, and checks each field."""

    name: str = choice('sgd', *OPTIMISERS)  # of the update rule, see `build`
    learning_rate: float = number(0.1, above=0, sweep=True)  # at its peak
    # if not 0: the learning rate is this times the (first) teacher's
    teacher_factor: float = number(0.0, at_least=0, words='a finite number, 0 (off) or more')
    schedule: str = choice('cosine', *SCHEDULES)  # what follows the warm-up
    warmup_epochs: float = number(0.0, at_least=0)  # linear, from 0
    # schedule 'step': when the learning rate drops, in epochs
    step_epochs: tuple[float, ...] = several(
        (),
        lambda epoch: is_number(epoch) and 0 < epoch < math.inf,
        'growing numbers greater than 0',
    )
    step_factor: float = number(0.1, above=0, at_most=1)  # and by what factor
    # schedule 'cosine': where it ends, relative to its peak
    final_factor: float = number(0.0, at_least=0, at_most=1, words='between 0 and 1')
    momentum: float = number(0.9, at_least=0, below=1)  # SGD
    nesterov: bool = flag(False)  # SGD
    b1: float = number(0.9, at_least=0, below=1)  # Adam, AdamW
    b2: float = number(0.999, at_least=0, below=1)  # Adam, AdamW
    eps: float = number(1e-8, above=0)  # Adam, AdamW
    # SGD, Adam: added to the gradient; AdamW: decoupled
    weight_decay: float = number(5e-4, at_least=0, sweep=True)
    # whether norms and biases decay too (in the CIFAR tables they do)
    decay_norm_and_bias: bool = flag(True)
    # of the whole gradient
    clip_norm: float = number(0.0, at_least=0, words='a finite number, 0 (no clipping) or more')
    # from the start of parameter paths: what these match does not train, see `frozen_mask`
    freeze: tuple[str, ...] = names((), "regular expressions, such as ('stage1/',)")
    # likewise: if any, only what these match trains
    train: tuple[str, ...] = names((), "regular expressions, such as ('head', '.*norm')")
    # average the weights, and evaluate the average
    ema_decay: float = number(0.0, at_least=0, below=1, words='at least 0 (off) and less than 1')
    accumulate: int = number(1, at_least=1)  # process a batch in so many parts


def read(given: Mapping[str, Any], path: str = 'optim') -> Settings:
    """The settings with what is `given` (None: the default), checked one by one; `path` is
    where they stand in a config.

    Raises:
      UserError: for an unknown field, or a value that it does not allow.
    """
    return Settings(**fields.check(Settings, given, path))


def relative_rate(
    settings: Settings, *, total_steps: int, steps_per_epoch: float
) -> optax.Schedule:
    """The learning rate relative to its peak, as a function of the step (0 for the first update).

    During the first `round(warmup_epochs * steps_per_epoch)` steps it grows linearly from 0. Then

    - `constant`: it stays at 1;
    - `cosine`: it falls along half a cosine over the remaining steps, to `final_factor` at
      `total_steps` (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts);
    - `step`: it is multiplied by `step_factor` at each of `step_epochs`, counted from the start
      of training: step `round(e * steps_per_epoch)` is the first with the lower rate. Those
      after the end have no effect.

    Raises:
      UserError: for a warm-up as long as the training, or step epochs that do not
        grow or come before its end.
    """
    warmup, epochs = round(settings.warmup_epochs * steps_per_epoch), settings.step_epochs
    if warmup >= total_steps:
        raise UserError(
            f'optim.warmup_epochs is {settings.warmup_epochs!r} ({warmup} steps) but training '
            f'lasts {total_steps} steps; make it shorter than the training'
        )
    if settings.schedule == 'step':
        ordered = all(a < b for a, b in itertools.pairwise(epochs))
        if not (epochs and ordered and epochs[0] >= settings.warmup_epochs):
            raise UserError(
                f'optim.step_epochs is {epochs!r}; it must be growing numbers that begin after '
                "the warm-up (without any, the schedule is 'constant')"
            )
    boundaries = [round(epoch * steps_per_epoch) for epoch in epochs]
    after = SCHEDULES[settings.schedule](settings, warmup, total_steps, boundaries)
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup), after], [warmup])


def build(
    params: Mapping[str, Any], settings: Settings, *, total_steps: int, steps_per_epoch: float
) -> tuple[Callable[..., optax.GradientTransformation], optax.Schedule]:
    """`(optimizer, schedule)` of `params`.

    `optimizer(hparams)` is the optimiser with the numbers in `hparams`, a mapping that may have
    'optim.learning_rate' and 'optim.weight_decay', also as numbers that only a running step knows;
    those of `settings` where it has none, or none is given. Its state is the same whatever they
    are. `schedule(step)` is the learning rate that belongs to `settings`.

    The update rules are PyTorch's, with g the gradient after clipping, w a
    parameter, d = `weight_decay`:

    - `sgd` (torch.optim.SGD): `g += d w; v = momentum v + g; w -= rate v`; with `nesterov`
      `w -= rate (g + momentum v)`;
    - `adam` (torch.optim.Adam): `g += d w`, then Adam (Kingma & Ba 2015, arXiv:1412.6980);
    - `adamw` (torch.optim.AdamW): Adam, and `w -= rate d w` (Loshchilov &
      Hutter 2019, arXiv:1711.05101).

    Without `decay_norm_and_bias` only parameters called `kernel` with two or more dimensions decay.
    The gradient of all parameters that train is scaled down to the global norm `clip_norm`. What
    `frozen_patterns` match does not change, has no optimiser state and does not count in that norm.

    Args:
      params: `{'student': tree, 'objective': tree}`: the arrays, or their shapes;
        read for paths and ranks only.
      settings: as `read` gives them.
      total_steps: updates in the whole training.
      steps_per_epoch: updates an epoch; not always a whole number.

    Raises:
      UserError: for settings that make no sense together, or a pattern that is
        not valid or matches nothing.
    """
    if settings.nesterov and settings.momentum == 0:
        raise UserError('optim.nesterov is True; it must be False where momentum is 0')
    shape = relative_rate(settings, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    patterns, frozen = frozen_patterns(params['student'], settings), None
    if patterns:
        frozen = {key: jax.tree.map(lambda _: False, tree) for key, tree in params.items()}
        frozen['student'] = frozen_mask(params['student'], patterns)

    def optimizer(hparams: Mapping[str, Any] | None = None) -> optax.GradientTransformation:
        values = {
            name: (hparams or {}).get(f'optim.{name}', getattr(settings, name))
            for name in fields.swept(Settings)
        }
        mask = None if settings.decay_norm_and_bias else _kernels
        decay = optax.add_decayed_weights(values['weight_decay'], mask=mask)
        tx = OPTIMISERS[settings.name](
            lambda step: values['learning_rate'] * shape(step), decay, settings
        )
        if settings.clip_norm > 0:
            tx = optax.chain(optax.clip_by_global_norm(settings.clip_norm), tx)
        return tx if frozen is None else optax.selective_transform(tx, freeze_mask=frozen)

    return optimizer, lambda step: settings.learning_rate * shape(step)


def frozen_patterns(student: Any, settings: Settings) -> tuple[str, ...]:
    """The patterns of what does not train: `freeze`, and with `train` all that
    none of its patterns matches.

    student: its parameters, or their shapes.

    Raises:
      UserError: for a pattern that is no regular expression or matches nothing.
    """
    _check_patterns(student, settings.freeze, 'freeze')
    return settings.freeze + all_but(student, settings.train)


def check_trains(frozen: Any, settings: Settings) -> None:
    """Raises `UserError` for a mask (see `frozen_mask`) that leaves nothing of a student."""
    if all(jax.tree.leaves(frozen)):
        raise UserError(
            f'optim.freeze is {settings.freeze} and optim.train {settings.train}, which leaves no '
            'parameter that trains; freeze fewer'
        )


def frozen_mask(student_tree: Any, patterns: Sequence[str], field: str = 'freeze') -> Any:
    """A tree of bool in the shape of `student_tree`: True where one of
    `patterns` matches the leaf's path.

    A path is the keys joined with '/', such as `stage1/block0/conv/kernel`; a pattern is a regular
    expression that matches from its start (re.match): 'stage1/' takes that stage, 'stage1' also
    takes stage10. The tree is one collection of the student: its parameters, or its batch
    statistics (where a pattern may match nothing).

    Raises:
      UserError: for a pattern that is no regular expression.
    """
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise UserError(
                f'optim.{field} pattern {pattern!r} is not a regular expression ({error}); '
                'write the start of a parameter path, such as stage1/'
            ) from error
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(p.match(_joined(path)) for p in compiled), student_tree
    )


def all_but(params: Any, patterns: Sequence[str]) -> tuple[str, ...]:
    """The patterns for `freeze` that freeze all of a student but what one of
    `patterns` matches; () for none.

    params: the student's, or their shapes.

    Raises:
      UserError: for a pattern that is no regular expression or matches nothing.
    """
    _check_patterns(params, patterns, 'train')
    return (f'(?!{"|".join(f"(?:{pattern})" for pattern in patterns)})',) if patterns else ()


def _check_patterns(student: Any, patterns: Sequence[str], field: str) -> None:
    for pattern in patterns:
        if not any(jax.tree.leaves(frozen_mask(student, (pattern,), field))):
            raise UserError(
                f'optim.{field} pattern {pattern!r} matches no parameter of the student; '
                f'its top-level modules: {", ".join(sorted(student))}'
            )


def ema(average: Any, new: Any, decay: float, step: Any) -> Any:
    """The exponential moving average of a pytree after update `step` (0 for the
    first): `d average + (1 - d) new`.

    `d = min(decay, (1 + step) / (10 + step))`, TensorFlow's ExponentialMovingAverage with
    num_updates: early on the average follows the parameters instead of their initialisation. Leaves
    that are not floating point are copied from `new`; the others keep their type.
    """
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))

    def leaf(a: jax.Array, n: jax.Array) -> jax.Array:
        if not jnp.issubdtype(jnp.result_type(n), jnp.floating):
            return n
        return (d * a + (1.0 - d) * n).astype(a.dtype)

    return jax.tree.map(leaf, average, new)


def _joined(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='/')


def _kernels(params: Any) -> Any:
    """A tree of bool: True for the weights of convolutions and dense layers, False
    for biases and normalisation.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, p: p.ndim >= 2 and path[-1].key == 'kernel', params
    )
