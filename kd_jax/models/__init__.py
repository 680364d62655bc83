"""The model zoo: `build(name, num_classes, **overrides)` over the explicit table `MODELS`."""

import dataclasses
from functools import partial

import flax.linen as nn

from kd_jax.errors import UserError, unknown
from kd_jax.models.cnn import CNN
from kd_jax.models.common import Output
from kd_jax.models.mobilenet import CifarMobileNetV2
from kd_jax.models.resnet import CifarResNet

MODELS = {
    'cnn': partial(CNN),
    'resnet8': partial(CifarResNet, stage_sizes=(1, 1, 1)),
    'resnet14': partial(CifarResNet, stage_sizes=(2, 2, 2)),
    'resnet20': partial(CifarResNet, stage_sizes=(3, 3, 3)),
    'resnet32': partial(CifarResNet, stage_sizes=(5, 5, 5)),
    'resnet44': partial(CifarResNet, stage_sizes=(7, 7, 7)),
    'resnet56': partial(CifarResNet, stage_sizes=(9, 9, 9)),
    'resnet110': partial(CifarResNet, stage_sizes=(18, 18, 18)),
    'resnet8x4': partial(CifarResNet, stage_sizes=(1, 1, 1), widths=(64, 128, 256), stem=32),
    'resnet32x4': partial(CifarResNet, stage_sizes=(5, 5, 5), widths=(64, 128, 256), stem=32),
    'cifar_mobilenet_v2': partial(CifarMobileNetV2),
    'cifar_mobilenet_v2_x0.5': partial(CifarMobileNetV2, width=0.5),
}

_OWN = ('num_classes', 'axis_name', 'dtype', 'parent', 'name')  # set by the program, not by the user


def build(name: str, num_classes: int, **overrides) -> nn.Module:
    """The model called `name` with `num_classes` outputs; an override of None keeps the variant's own value.

    Raises:
      UserError: for a name that is not in `MODELS`, an override that the family does not have, or a dropout outside
        [0, 1). A `width` that leaves a layer without channels raises it when the model is first called.
    """
    if name not in MODELS:
        raise unknown('model', name, MODELS)
    make = MODELS[name]
    allowed = {f.name for f in dataclasses.fields(make.func)} - {'parent', 'name'}
    chosen = {key: value for key, value in overrides.items() if value is not None}
    for key in chosen:
        if key not in allowed:
            fields = ', '.join(sorted(allowed - set(_OWN)))
            raise UserError(f'model {name!r} has no field {key!r}; its fields: {fields}')
    dropout = chosen.get('dropout', 0)
    if not 0 <= dropout < 1:
        raise UserError(f'dropout {dropout} of model {name!r} is outside [0, 1); give the share to drop, such as 0.1')
    return make(num_classes=num_classes, **chosen)


__all__ = ['MODELS', 'Output', 'build']
