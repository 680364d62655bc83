"""Losses of the user's own: a subclass of `Loss`, or a function

    def jsd(student_logits, teacher_logits, labels, beta=0.5):  # -> [B]

of logits `[B, K]` float32 and labels `[B]` int32, with its hyper-parameters after them.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax import own
from kd_jax.errors import UserError
from kd_jax.fields import field, flag, number
from kd_jax.models.common import Output
from kd_jax.objectives.common import Batch, Loss, over_labels

FORM = '(student_logits, teacher_logits, labels, and parameters with defaults)'


def class_of(name: str) -> type[Loss]:
    """The loss of the user's called `name`.

    Raises:
      UserError: if there is none, or it is neither a `Loss` nor a function of that form.
    """
    found = own.load(name, 'loss')
    if isinstance(found, type):
        if issubclass(found, Loss):
            return found
        raise UserError(f'loss {name!r} is a class, but none of kd_jax.objectives.Loss')
    if not callable(found):
        raise UserError(f'loss {name!r} is {type(found).__name__}; it must be a function {FORM}')
    return _class_of(found, name)


@functools.cache
def _class_of(function: Callable[..., Any], name: str) -> type[Loss]:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = own.parameters(function).values()
    given = [one for one in parameters if one.kind in positional][:3]
    more = [one for one in parameters if one not in given]
    if len(given) < 3 or any(one.default is inspect.Parameter.empty for one in more):
        told = ', '.join(own.parameters(function))
        raise UserError(f'loss {name!r} is a function of ({told}); they must be {FORM}')

    def call(self: Any, student: Output, teacher: Output, batch: Batch) -> jax.Array:
        fields = {one.name: getattr(self, one.name) for one in more}

        def loss(labels: jax.Array) -> Any:
            value = function(student.logits, teacher.logits, labels, **fields)
            if jnp.shape(value) != labels.shape:
                raise UserError(
                    f'loss {name!r} returned shape {jnp.shape(value)} for {labels.shape[0]} '
                    'examples; return one value for each, [B], not their mean or sum'
                )
            return jnp.asarray(value, jnp.float32)

        return over_labels(batch, loss)

    body = {
        '__annotations__': {one.name: type(one.default) for one in more},
        '__call__': call,
        '__doc__': function.__doc__,
        '__module__': function.__module__,
        'needs_label': not given[2].name.startswith('_'),
        **{one.name: _field(name, one) for one in more},
    }
    return type(getattr(function, '__name__', 'Own'), (Loss,), body)


def _field(name: str, one: inspect.Parameter) -> Any:
    default = one.default
    if isinstance(default, bool):
        return flag(default)
    if isinstance(default, (int, float)):
        return number(default)
    if isinstance(default, (str, tuple)):
        return field(default, lambda value: True, 'text' if isinstance(default, str) else 'values')
    raise UserError(
        f'{one.name} of loss {name!r} is {default!r}; a parameter must be a number, True or False, '
        'text or a tuple'
    )
