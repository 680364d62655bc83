"""The model zoo: `build(name, num_classes, **overrides)` over the explicit table `MODELS`."""

import dataclasses
from functools import partial

import flax.linen as nn

from kd_jax.errors import UserError, unknown
from kd_jax.models.cnn import CNN
from kd_jax.models.common import Output

MODELS = {
    'cnn': partial(CNN),
}

_OWN = ('num_classes', 'axis_name', 'dtype', 'parent', 'name')  # set by the program, not by the user


def build(name: str, num_classes: int, **overrides) -> nn.Module:
    """The model called `name` with `num_classes` outputs; an override of None keeps the variant's own value.

    Raises:
      UserError: for a name that is not in `MODELS`, or an override that the family does not have.
    """
    if name not in MODELS:
        raise unknown('model', name, MODELS)
    make = MODELS[name]
    allowed = {f.name for f in dataclasses.fields(make.func)} - {'parent', 'name'}
    chosen = {key: value for key, value in overrides.items() if value is not None}
    for key in chosen:
        if key not in allowed:
            raise UserError(f'model {name!r} has no field {key!r}; its fields: {", ".join(sorted(allowed - set(_OWN)))}')
    return make(num_classes=num_classes, **chosen)


__all__ = ['MODELS', 'Output', 'build']
