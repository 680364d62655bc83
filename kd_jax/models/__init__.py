"""The model zoo: `build(name, num_classes, **overrides)` over the explicit table `MODELS`."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from kd_jax import fields, own
from kd_jax.errors import UserError, unknown
from kd_jax.models import foreign
from kd_jax.models.cnn import CNN
from kd_jax.models.common import Classifier, Output
from kd_jax.models.efficientnet import EfficientNet
from kd_jax.models.foreign import Foreign
from kd_jax.models.googlenet import GoogLeNet
from kd_jax.models.inception import InceptionV3
from kd_jax.models.mobilenet import CifarMobileNetV2, MobileNetV1, MobileNetV2
from kd_jax.models.mobilenet_v3 import LARGE, SMALL, MobileNetV3
from kd_jax.models.resnet import CifarResNet, ResNet
from kd_jax.models.shufflenet import ShuffleNetV1, ShuffleNetV2
from kd_jax.models.vgg import VGG, CifarVGG
from kd_jax.models.wide_resnet import WideResNet

MODELS: Mapping[str, 'partial[Any]'] = {
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
    'resnet18': partial(ResNet, stage_sizes=(2, 2, 2, 2)),
    'resnet34': partial(ResNet, stage_sizes=(3, 4, 6, 3)),
    'resnet50': partial(ResNet, stage_sizes=(3, 4, 6, 3), bottleneck=True),
    'resnet101': partial(ResNet, stage_sizes=(3, 4, 23, 3), bottleneck=True),
    'resnet152': partial(ResNet, stage_sizes=(3, 8, 36, 3), bottleneck=True),
    'wide_resnet50_2': partial(ResNet, stage_sizes=(3, 4, 6, 3), bottleneck=True, group_width=128),
    'resnext50_32x4d': partial(
        ResNet, stage_sizes=(3, 4, 6, 3), bottleneck=True, groups=32, group_width=4
    ),
    'cifar_resnet18': partial(ResNet, stage_sizes=(2, 2, 2, 2), small_images=True),
    'cifar_resnet34': partial(ResNet, stage_sizes=(3, 4, 6, 3), small_images=True),
    'cifar_resnet50': partial(ResNet, stage_sizes=(3, 4, 6, 3), bottleneck=True, small_images=True),
    'wrn_16_1': partial(WideResNet, stage_sizes=(2, 2, 2)),
    'wrn_16_2': partial(WideResNet, stage_sizes=(2, 2, 2), widen=2),
    'wrn_40_1': partial(WideResNet, stage_sizes=(6, 6, 6)),
    'wrn_40_2': partial(WideResNet, stage_sizes=(6, 6, 6), widen=2),
    'cifar_mobilenet_v2': partial(CifarMobileNetV2),
    'cifar_mobilenet_v2_x0.5': partial(CifarMobileNetV2, width=0.5),
    'imagenet_mobilenet_v2': partial(MobileNetV2, dropout=0.2),
    'mobilenet_v1': partial(MobileNetV1),
    'mobilenet_v3_large': partial(MobileNetV3, stages=LARGE, top_features=1280, dropout=0.2),
    'mobilenet_v3_small': partial(MobileNetV3, stages=SMALL, top_features=1024, dropout=0.2),
    'efficientnet_b0': partial(EfficientNet, dropout=0.2),
    'imagenet_shufflenet_v1': partial(ShuffleNetV1),
    'imagenet_shufflenet_v2_x0_5': partial(ShuffleNetV2, widths=(48, 96, 192)),
    'imagenet_shufflenet_v2_x1_0': partial(ShuffleNetV2),
    'imagenet_shufflenet_v2_x1_5': partial(ShuffleNetV2, widths=(176, 352, 704)),
    'imagenet_shufflenet_v2_x2_0': partial(ShuffleNetV2, widths=(244, 488, 976), top=2048),
    'cifar_shufflenet_v1': partial(ShuffleNetV1, small=True),
    'cifar_shufflenet_v2': partial(ShuffleNetV2, small=True, stem_kernel=1),
    'cifar_shufflenet_v2_x0_2': partial(
        ShuffleNetV2,
        widths=(40, 80, 160),
        top=512,
        stage_sizes=(4, 4, 4),
        small=True,
        stem_kernel=1,
    ),
    'cifar_shufflenet_v2_x0_3': partial(
        ShuffleNetV2, widths=(40, 80, 160), top=512, small=True, stem_kernel=1
    ),
    'cifar_shufflenet_v2_x0_5': partial(
        ShuffleNetV2, widths=(48, 96, 192), small=True, stem_kernel=1
    ),
    'cifar_shufflenet_v2_x1_5': partial(
        ShuffleNetV2, widths=(176, 352, 704), small=True, stem_kernel=1
    ),
    'cifar_shufflenet_v2_x2_0': partial(
        ShuffleNetV2, widths=(224, 488, 976), top=2048, small=True, stem_kernel=1
    ),
    'imagenet_vgg11': partial(VGG, stage_sizes=(1, 1, 2, 2, 2), dropout=0.5),
    'imagenet_vgg13': partial(VGG, stage_sizes=(2, 2, 2, 2, 2), dropout=0.5),
    'imagenet_vgg16': partial(VGG, stage_sizes=(2, 2, 3, 3, 3), dropout=0.5),
    'imagenet_vgg19': partial(VGG, stage_sizes=(2, 2, 4, 4, 4), dropout=0.5),
    'imagenet_vgg11_bn': partial(VGG, stage_sizes=(1, 1, 2, 2, 2), norm=True, dropout=0.5),
    'imagenet_vgg13_bn': partial(VGG, stage_sizes=(2, 2, 2, 2, 2), norm=True, dropout=0.5),
    'imagenet_vgg16_bn': partial(VGG, stage_sizes=(2, 2, 3, 3, 3), norm=True, dropout=0.5),
    'imagenet_vgg19_bn': partial(VGG, stage_sizes=(2, 2, 4, 4, 4), norm=True, dropout=0.5),
    'cifar_vgg8': partial(CifarVGG, stage_sizes=(1, 1, 1, 1, 1)),
    'cifar_vgg11': partial(CifarVGG, stage_sizes=(1, 1, 2, 2, 2)),
    'cifar_vgg13': partial(CifarVGG, stage_sizes=(2, 2, 2, 2, 2)),
    'cifar_vgg16': partial(CifarVGG, stage_sizes=(2, 2, 3, 3, 3)),
    'cifar_vgg19': partial(CifarVGG, stage_sizes=(2, 2, 4, 4, 4)),
    'inception_v3': partial(InceptionV3, dropout=0.5),
    'googlenet': partial(GoogLeNet, dropout=0.2),
}

# Names under which the literature has other networks than ours or several: which
# of them is meant must be said.
FORMS: Mapping[str, tuple[str, ...]] = {
    **{
        f'vgg{n}': (f'imagenet_vgg{n}', f'imagenet_vgg{n}_bn', f'cifar_vgg{n}')
        for n in (11, 13, 16, 19)
    },
    **{f'vgg{n}_bn': (f'imagenet_vgg{n}_bn',) for n in (11, 13, 16, 19)},
    'vgg8': ('cifar_vgg8',),
    'mobilenet_v2': ('imagenet_mobilenet_v2', 'cifar_mobilenet_v2', 'cifar_mobilenet_v2_x0.5'),
    'shufflenet_v1': ('imagenet_shufflenet_v1', 'cifar_shufflenet_v1'),
    'shufflenet_v2': tuple(name for name in MODELS if '_shufflenet_v2' in name),
    'shufflenet_v2_x1_0': ('imagenet_shufflenet_v2_x1_0', 'cifar_shufflenet_v2'),
    **{
        f'shufflenet_v2_{x}': (f'imagenet_shufflenet_v2_{x}', f'cifar_shufflenet_v2_{x}')
        for x in ('x0_5', 'x1_5', 'x2_0')
    },
}

# Fields that the program sets, not the user.
_OWN = ('num_classes', 'frozen', 'fast', 'axis_name', 'dtype', 'parent', 'name')


def family(name: str) -> type[Classifier]:
    """The class of a model in `MODELS`."""
    cls = MODELS[name].func
    assert isinstance(cls, type)
    return cls


def build(name: str, num_classes: int, **overrides: Any) -> Classifier | Foreign:
    """The model called `name` with `num_classes` outputs; an override of None
    keeps the variant's own value. A name such as 'mynets:TinyNet' means a module of the user's, see
    `kd_jax.models.foreign`.

    Raises:
      UserError: for a name that is not in `MODELS` (one that the literature uses for several
        networks is not), an override that the family does not have, or one outside its range. A
        `width` that leaves a layer without channels, or a head at a stage that does not exist,
        raises it when the model is first called.
    """
    if own.is_own(name):
        chosen = {key: value for key, value in overrides.items() if value is not None}
        return foreign.build(name, num_classes, **chosen)
    if len(FORMS.get(name, ())) == 1:
        raise UserError(f'{name!r} is called {FORMS[name][0]!r} here')
    if name in FORMS:
        raise UserError(f'{name!r} has several forms: {", ".join(FORMS[name])}; name one of them')
    if name not in MODELS:
        raise unknown('model', name, MODELS)
    cls = family(name)
    allowed = {f.name for f in dataclasses.fields(cls)} - {'parent', 'name'}
    limited = fields.own(cls)
    chosen = {key: value for key, value in overrides.items() if value is not None}
    for key, value in chosen.items():
        if key not in allowed:
            known = ', '.join(sorted(allowed - set(_OWN)))
            raise UserError(f'model {name!r} has no field {key!r}; its fields: {known}')
        chosen[key], words = fields.fit(value, limited[key]) if key in limited else (value, '')
        if words:
            raise UserError(f'{key} {value} of model {name!r} is not possible; it must be {words}')
    return MODELS[name](num_classes=num_classes, **chosen)


__all__ = ['FORMS', 'MODELS', 'Classifier', 'Foreign', 'Output', 'build', 'family']
