"""Learning-rate schedules, optimisers with PyTorch's update rules, frozen parameters, and the average of parameters."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kd_jax.errors import UserError, unknown


def _constant(learning_rate, *, warmup, total, boundaries, step_factor, final_factor):
    return optax.constant_schedule(learning_rate)


def _cosine(learning_rate, *, warmup, total, boundaries, step_factor, final_factor):
    return optax.cosine_decay_schedule(learning_rate, total - warmup, alpha=final_factor)


def _step(learning_rate, *, warmup, total, boundaries, step_factor, final_factor):
    scales = {}
    for boundary in boundaries:  # two may round to the same step
        scales[boundary - warmup] = scales.get(boundary - warmup, 1.0) * step_factor
    return optax.piecewise_constant_schedule(learning_rate, scales)


# What follows the warm-up, as a function of the steps since its end.
SCHEDULES = {'constant': _constant, 'cosine': _cosine, 'step': _step}


def make_schedule(
    *,
    schedule: str,
    learning_rate: float,
    total_steps: int,
    steps_per_epoch: float,
    warmup_epochs: float = 0.0,
    step_epochs: Sequence[float] = (),
    step_factor: float = 0.1,
    final_factor: float = 0.0,
) -> optax.Schedule:
    """The learning rate as a function of the step (0 for the first update).

    During the first `round(warmup_epochs * steps_per_epoch)` steps the rate grows linearly from 0. Then

    - `constant`: it stays at `learning_rate`;
    - `cosine`: it falls along half a cosine over the remaining steps, to `final_factor * learning_rate` at
      `total_steps` (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts);
    - `step`: it is multiplied by `step_factor` at each of `step_epochs`, counted from the start of training: step
      `round(e * steps_per_epoch)` is the first with the lower rate. Those after the end have no effect.

    Raises:
      UserError: for an unknown schedule, or a number out of its range.
    """
    if schedule not in SCHEDULES:
        raise unknown('schedule', schedule, SCHEDULES)
    _check('learning_rate', learning_rate, 0 < learning_rate < math.inf, 'a finite number greater than 0')
    _check('warmup_epochs', warmup_epochs, 0 <= warmup_epochs < math.inf, 'a finite number, 0 or more')
    _check('step_factor', step_factor, 0 < step_factor <= 1, 'greater than 0 and at most 1')
    _check('final_factor', final_factor, 0 <= final_factor <= 1, 'between 0 and 1')
    warmup = round(warmup_epochs * steps_per_epoch)
    if warmup >= total_steps:
        raise UserError(
            f'optim.warmup_epochs is {warmup_epochs!r} ({warmup} steps) but training lasts {total_steps} steps; '
            'make it shorter than the training'
        )
    if schedule == 'step':
        ordered = all(a < b for a, b in itertools.pairwise(step_epochs))
        fits = len(step_epochs) > 0 and ordered and step_epochs[0] > 0 and step_epochs[0] >= warmup_epochs
        words = "growing numbers that begin after the warm-up (without any, the schedule is 'constant')"
        _check('step_epochs', tuple(step_epochs), fits, words)
    after = SCHEDULES[schedule](
        learning_rate,
        warmup=warmup,
        total=total_steps,
        boundaries=[round(epoch * steps_per_epoch) for epoch in step_epochs],
        step_factor=step_factor,
        final_factor=final_factor,
    )
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), after], [warmup])


def _sgd(rate, decay, *, momentum, nesterov, b1, b2, eps):
    return optax.chain(decay, optax.sgd(rate, momentum or None, nesterov))


def _adam(rate, decay, *, momentum, nesterov, b1, b2, eps):
    return optax.chain(decay, optax.adam(rate, b1, b2, eps))


def _adamw(rate, decay, *, momentum, nesterov, b1, b2, eps):
    return optax.chain(optax.scale_by_adam(b1, b2, eps), decay, optax.scale_by_learning_rate(rate))


# `decay` adds weight_decay * parameter to what it is given: to the gradient (L2), or to Adam's update (decoupled).
OPTIMISERS = {'sgd': _sgd, 'adam': _adam, 'adamw': _adamw}


def build(
    params: Mapping[str, Any],
    *,
    total_steps: int,
    steps_per_epoch: float,
    name: str = 'sgd',
    learning_rate: float = 0.05,
    schedule: str = 'constant',
    warmup_epochs: float = 0.0,
    step_epochs: Sequence[float] = (),
    step_factor: float = 0.1,
    final_factor: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay_norm_and_bias: bool = True,
    clip_norm: float = 0.0,
    freeze: Sequence[str] = (),
    traced: Mapping[str, jax.Array] | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser of `params` and its learning-rate schedule (see `make_schedule`).

    The update rules are PyTorch's, with g the gradient after clipping, w a parameter, d = `weight_decay`:

    - `sgd` (torch.optim.SGD): `g += d w; v = momentum v + g; w -= rate v`; with `nesterov`
      `w -= rate (g + momentum v)`;
    - `adam` (torch.optim.Adam): `g += d w`, then Adam (Kingma & Ba 2015, arXiv:1412.6980);
    - `adamw` (torch.optim.AdamW): Adam, and `w -= rate d w` (Loshchilov & Hutter 2019, arXiv:1711.05101).

    Args:
      params: `{'student': tree, 'objective': tree}`: the arrays, or their shapes; read for paths and ranks only.
      total_steps: updates in the whole training.
      steps_per_epoch: updates an epoch; not always a whole number.
      name: in `OPTIMISERS`.
      learning_rate, schedule, warmup_epochs, step_epochs, step_factor, final_factor: see `make_schedule`.
      momentum, nesterov: of `sgd`.
      b1, b2, eps: of `adam` and `adamw`.
      weight_decay: 0 or more.
      decay_norm_and_bias: decay every parameter, as the CIFAR tables do; otherwise only those called `kernel` with two
        or more dimensions.
      clip_norm: the gradient of all parameters that train is scaled down to this global norm; 0: it is not.
      freeze: regular expressions for paths in the student, see `frozen_mask`. What they match does not change, has no
        optimiser state and does not count in the global norm.
      traced: `learning_rate` or `weight_decay`, or both, as numbers that only a running step knows, in place of those above.

    Raises:
      UserError: for an unknown name, a number out of its range, or a pattern that is not valid or matches nothing.
    """
    if name not in OPTIMISERS:
        raise unknown('optimiser', name, OPTIMISERS)
    _check('momentum', momentum, 0 <= momentum < 1, 'at least 0 and less than 1')
    _check('nesterov', nesterov, not (nesterov and momentum == 0), 'False where momentum is 0')
    _check('b1', b1, 0 <= b1 < 1, 'at least 0 and less than 1')
    _check('b2', b2, 0 <= b2 < 1, 'at least 0 and less than 1')
    _check('eps', eps, 0 < eps < math.inf, 'a finite number greater than 0')
    _check('weight_decay', weight_decay, 0 <= weight_decay < math.inf, 'a finite number, 0 or more')
    _check('freeze', freeze, not isinstance(freeze, str), "a list of regular expressions, such as ('stage1/',)")
    _check('clip_norm', clip_norm, 0 <= clip_norm < math.inf, 'a finite number, 0 (no clipping) or more')
    rate = make_schedule(
        schedule=schedule,
        learning_rate=learning_rate,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=warmup_epochs,
        step_epochs=step_epochs,
        step_factor=step_factor,
        final_factor=final_factor,
    )
    traced = traced or {}
    if 'learning_rate' in traced:
        usual, factor = rate, traced['learning_rate'] / learning_rate
        rate = lambda step: factor * usual(step)  # noqa: E731
    decay = optax.add_decayed_weights(traced.get('weight_decay', weight_decay), mask=None if decay_norm_and_bias else _kernels)
    tx = OPTIMISERS[name](rate, decay, momentum=momentum, nesterov=nesterov, b1=b1, b2=b2, eps=eps)
    if clip_norm > 0:
        tx = optax.chain(optax.clip_by_global_norm(clip_norm), tx)
    if freeze:
        student = params['student']
        for pattern in freeze:
            if not any(jax.tree.leaves(frozen_mask(student, (pattern,)))):
                raise _no_match('freeze', pattern, student)
        frozen = {key: jax.tree.map(lambda _: False, tree) for key, tree in params.items()}
        frozen['student'] = frozen_mask(student, freeze)
        tx = optax.selective_transform(tx, freeze_mask=frozen)
    return tx, rate


def frozen_mask(student_tree: Any, patterns: Sequence[str], field: str = 'freeze') -> Any:
    """A tree of bool in the shape of `student_tree`: True where one of `patterns` matches the leaf's path.

    A path is the keys joined with '/', such as `stage1/block0/conv/kernel`; a pattern is a regular expression that
    matches from its start (re.match): 'stage1/' takes that stage, 'stage1' also takes stage10. The tree is one
    collection of the student: its parameters, or its batch statistics (where a pattern may match nothing).

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
    return jax.tree_util.tree_map_with_path(lambda path, _: any(p.match(_joined(path)) for p in compiled), student_tree)


def all_but(params: Any, patterns: Sequence[str]) -> tuple[str, ...]:
    """The patterns for `freeze` that freeze all of a student but what one of `patterns` matches; () for none.

    params: the student's, or their shapes.

    Raises:
      UserError: for a pattern that is no regular expression or matches nothing.
    """
    _check('train', patterns, not isinstance(patterns, str), "a list of regular expressions, such as ('head', '.*norm')")
    for pattern in patterns:
        if not any(jax.tree.leaves(frozen_mask(params, (pattern,), 'train'))):
            raise _no_match('train', pattern, params)
    return (f'(?!{"|".join(f"(?:{pattern})" for pattern in patterns)})',) if patterns else ()


def ema(average: Any, new: Any, decay: float, step: Any) -> Any:
    """The exponential moving average of a pytree after update `step` (0 for the first): `d average + (1 - d) new`.

    `d = min(decay, (1 + step) / (10 + step))`, TensorFlow's ExponentialMovingAverage with num_updates: early on the
    average follows the parameters instead of their initialisation. Leaves that are not floating point are copied from
    `new`; the others keep their type.
    """
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))

    def leaf(a, n):
        if not jnp.issubdtype(jnp.result_type(n), jnp.floating):
            return n
        return (d * a + (1.0 - d) * n).astype(a.dtype)

    return jax.tree.map(leaf, average, new)


def check_ema_decay(decay: float) -> None:
    """Raises UserError unless `decay` is at least 0 (no average) and less than 1."""
    _check('ema_decay', decay, 0 <= decay < 1, 'at least 0 (off) and less than 1')


def _check(field: str, value: Any, fits: bool, words: str) -> None:
    if not fits:
        raise UserError(f'optim.{field} is {value!r}; it must be {words}')


def _no_match(field: str, pattern: str, student: Any) -> UserError:
    return UserError(
        f'optim.{field} pattern {pattern!r} matches no parameter of the student; '
        f'its top-level modules: {", ".join(sorted(student))}'
    )


def _joined(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='/')


def _kernels(params: Any) -> Any:
    """A tree of bool: True for the weights of convolutions and dense layers, False for biases and normalisation."""
    return jax.tree_util.tree_map_with_path(lambda path, p: p.ndim >= 2 and path[-1].key == 'kernel', params)
