"""The code bases that publish weights: which of our models they have, by which names, and for
which images.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kd_jax import models, own
from kd_jax.errors import UserError, unknown
from kd_jax.models.efficientnet import EfficientNet
from kd_jax.models.googlenet import GoogLeNet
from kd_jax.models.inception import InceptionV3
from kd_jax.models.mobilenet import CifarMobileNetV2, MobileNetV1, MobileNetV2
from kd_jax.models.mobilenet_v3 import MobileNetV3
from kd_jax.models.resnet import CifarResNet, ResNet
from kd_jax.models.shufflenet import ShuffleNetV1, ShuffleNetV2
from kd_jax.models.vgg import VGG, CifarVGG
from kd_jax.models.wide_resnet import WideResNet
from kd_jax.pretrained import inception, mobilenet, resnet, shufflenet, vgg

# (path of a module of ours, all names `stage<i>_block<j>` in order) -> PyTorch's prefix.
Rule = Callable[[str, Sequence[str]], str]


# The code bases that publish weights of a family, each by its names.
RULES: dict[type, tuple[Rule, ...]] = {
    CifarMobileNetV2: (mobilenet.repdistiller,),
    CifarResNet: (resnet.repdistiller, resnet.chenyaofo),
    CifarVGG: (vgg.repdistiller,),
    EfficientNet: (mobilenet.torchvision_efficientnet,),
    GoogLeNet: (inception.torchvision_googlenet,),
    InceptionV3: (inception.torchvision,),
    MobileNetV1: (mobilenet.mdistiller_v1,),
    MobileNetV2: (mobilenet.torchvision_v2,),
    MobileNetV3: (mobilenet.torchvision_v3,),
    ResNet: (resnet.torchvision, resnet.repdistiller_small),
    ShuffleNetV1: (shufflenet.repdistiller_v1,),
    ShuffleNetV2: (shufflenet.torchvision, shufflenet.repdistiller_v2),
    VGG: (vgg.torchvision, vgg.torchvision_bn),
    WideResNet: (resnet.repdistiller_wide,),
}

# A tensor that every model has under these names: files without it need not be looked at closely.
MARKS: dict[Rule, str] = {
    inception.torchvision: 'Conv2d_1a_3x3.bn.bias',
    inception.torchvision_googlenet: 'conv1.bn.bias',
    mobilenet.mdistiller_v1: 'model.0.1.bias',
    mobilenet.repdistiller: 'conv2.1.bias',
    mobilenet.torchvision_efficientnet: 'features.8.1.bias',
    mobilenet.torchvision_v2: 'features.18.1.bias',
    mobilenet.torchvision_v3: 'features.1.block.0.1.bias',
    resnet.chenyaofo: 'layer2.0.downsample.1.bias',
    resnet.repdistiller: 'layer2.0.downsample.1.bias',
    resnet.repdistiller_small: 'layer2.0.shortcut.1.bias',
    resnet.repdistiller_wide: 'block1.layer.0.bn1.bias',
    resnet.torchvision: 'layer4.0.downsample.1.bias',
    shufflenet.repdistiller_v1: 'layer1.3.bn3.bias',
    shufflenet.repdistiller_v2: 'bn2.bias',
    shufflenet.torchvision: 'conv5.1.bias',
    vgg.repdistiller: 'block0.0.bias',
    vgg.torchvision: 'features.0.bias',
    vgg.torchvision_bn: 'features.0.bias',
}

SMALL_IMAGES = re.compile(r'cnn|(cifar|wrn)_.+|resnet(8|14|20|32|38|44|56|110)(x4)?')

# Code bases by their published names: which of our models they have, and by which rules. Names
# alone do not tell forms for small and for large images apart, nor depths.
_TABLES = (
    mobilenet.repdistiller,
    resnet.repdistiller,
    resnet.repdistiller_small,
    resnet.repdistiller_wide,
    shufflenet.repdistiller_v1,
    shufflenet.repdistiller_v2,
    vgg.repdistiller,
)
_TORCHVISION = (
    inception.torchvision,
    inception.torchvision_googlenet,
    mobilenet.torchvision_efficientnet,
    mobilenet.torchvision_v2,
    mobilenet.torchvision_v3,
    resnet.torchvision,
    shufflenet.torchvision,
    vgg.torchvision,
    vgg.torchvision_bn,
)
SOURCES: dict[str, tuple[re.Pattern[str], tuple[Rule, ...]]] = {
    'torchvision': (re.compile(rf'(?!({SMALL_IMAGES.pattern})$).+'), _TORCHVISION),
    'RepDistiller': (SMALL_IMAGES, _TABLES),
    'mdistiller': (
        re.compile(rf'{SMALL_IMAGES.pattern}|mobilenet_v1'),
        (*_TABLES, mobilenet.mdistiller_v1),
    ),
    'pytorch-cifar-models': (re.compile(r'resnet(20|32|44|56)'), (resnet.chenyaofo,)),
}

IMAGENET: Mapping[str, Any] = {
    'size': 224,
    'mean': (0.485, 0.456, 0.406),
    'std': (0.229, 0.224, 0.225),
}
# What torchvision's `transform_input` amounts to.
HALVES: Mapping[str, Any] = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    'inception_v3': {**HALVES, 'size': 299},
    'googlenet': {**IMAGENET, **HALVES},
}


def input_of(name: str) -> dict[str, Any] | None:
    """{'size', 'mean', 'std'} of the images that published weights of the model expect;
    None for small-image models.
    """
    return None if SMALL_IMAGES.fullmatch(name) else dict(DEFAULTS.get(name, IMAGENET))


def family_of(name: str) -> type[models.Classifier]:
    """The class of the model called `name`; `UserError` if there is no such model."""
    if own.is_own(name):
        raise UserError(
            f'PyTorch weights are not known for {name!r}, a model of your own; start from a run or '
            'a workdir'
        )
    if name in models.FORMS or name not in models.MODELS:
        models.build(name, 1)  # says what is wrong with it
        raise unknown('model', name, models.MODELS)
    return models.family(name)
