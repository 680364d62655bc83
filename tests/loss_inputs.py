"""What a loss is called with in the tests."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.models.common import Output
from kd_jax.objectives import OBJECTIVES, Objective

KEYS = {'params': jax.random.key(1), 'negatives': jax.random.key(3)}


class Inputs(NamedTuple):
    """All arrays are NumPy's, of float32 and integers."""

    student: Output
    teacher: Output
    batch: dict[str, Any]
    variables: dict[str, Any]  # of an objective that has the loss alone


def as_objective(name, loss):
    """The objective that has the loss alone, under its name."""
    return Objective(((name, loss),), (1.0,) * loss.needs_teacher)


def teachers_of(loss, inputs):
    return (inputs.teacher,) * loss.needs_teacher


def shapes_of(name, inputs, **fields):
    """The shapes of a loss's variables in an objective."""
    loss = OBJECTIVES[name](**fields)
    init = as_objective(name, loss).init
    return jax.eval_shape(
        lambda s, t: init(KEYS, s, t, inputs.batch), inputs.student, teachers_of(loss, inputs)
    )


def is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)  # bfloat16 too


def float64(tree):
    return jax.tree.map(lambda x: np.float64(x) if is_float(x) else x, tree)
