"""Why a loss is not finite: the first of a step's pixels, teachers and losses that is not."""

from collections.abc import Mapping

import jax
import numpy as np

from kd_jax.errors import Diverged
from kd_jax.executors import Executor
from kd_jax.fields import is_number
from kd_jax.spec import Job


def explained(error: Diverged, executor: Executor, job: Job, first: int) -> Diverged:
    """The same with the first thing that was not finite, and what to change.

    executor: which still has the run's data and teachers. first: updates before the first step
    that was taken in this process, whose weights were finite.
    """
    why, fix = _first_wrong(error, executor, job, first)
    return Diverged(
        f'{error}: {why}; the last good checkpoint is kept; {fix}, in a new --workdir',
        error.step,
        error.losses,
    )


def _first_wrong(error: Diverged, executor: Executor, job: Job, first: int) -> tuple[str, str]:
    """(what, what to do)."""
    if jax.process_count() == 1:  # the others hold the rest of the batch
        batch = jax.device_get(executor.prepared(error.step))
        if not _finite(batch['image']):
            return 'its images have pixels that are not finite', 'see what data and augment say'
        for name, said in batch['teachers'].items():
            if not _finite(said):
                return (
                    f'teacher {name!r} says what is not finite',
                    'leave that teacher out, or train or import it again',
                )
    losses = {label: error.losses[label] for label in job.config.objective if label in error.losses}
    wrong = [label for label, value in losses.items() if not np.isfinite(value)]
    if losses and not wrong:
        return 'its losses are finite, their weighted sum is not', 'lower their weights'
    if wrong and (len(wrong) < len(losses) or error.step == first):
        which = 'the first of its losses that is not finite is'
        return f'{which} {wrong[0]!r} ({_fields(job.config.objective[wrong[0]])})', (
            f'change the fields of objective.{wrong[0]}'
        )
    return (
        'its pixels and teachers are finite, and all its losses are not: the update before made '
        'weights that are not',
        f'lower optim.learning_rate (now {job.learning_rate:g}) or set optim.clip_norm',
    )


def _finite(tree: object) -> bool:
    return all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(tree))


def _fields(given: Mapping[str, object]) -> str:
    """Its numbers, such as 'tau=1e+30, weight=1'."""
    return (
        ', '.join(
            f'{name}={value:g}'
            for name, value in sorted(given.items())
            if is_number(value) and name != 'weight'
        )
        or f'weight={given["weight"]}'
    )
