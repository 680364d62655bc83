"""The names that published VGG code gives to our modules:
`(module, blocks) -> prefix` of the PyTorch parameters.

`module` is one of our module paths, `stage1_block1/conv`; `blocks` are the model's
`stage<i>_block<j>`, in order.
"""

import re
from collections.abc import Sequence

from kd_jax.errors import UserError

UNIT = re.compile(r'stage(\d+)_block(\d+)/(conv|norm)')
DENSE = {'top_dense1': 'classifier.0', 'top_dense2': 'classifier.3', 'head': 'classifier.6'}


def torchvision(module: str, blocks: Sequence[str]) -> str:
    """torchvision's vgg11, vgg13, vgg16, vgg19: `stage2_block1/conv` -> `features.3`."""
    return _features(module, blocks, ('conv', 'ReLU'))


def torchvision_bn(module: str, blocks: Sequence[str]) -> str:
    """torchvision's vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn:
    `stage2_block1/conv` -> `features.4`.
    """
    return _features(module, blocks, ('conv', 'norm', 'ReLU'))


def repdistiller(module: str, blocks: Sequence[str]) -> str:
    """The CIFAR networks of RepDistiller: `stage2_block1/conv` -> `block1.0`."""
    if module == 'head':
        return 'classifier'
    unit = UNIT.fullmatch(module)
    if unit is None:
        raise _no_counterpart(module, 'RepDistiller')
    stage, number, part = unit.groups()
    # In the order convolution, BatchNorm, ReLU.
    return f'block{int(stage) - 1}.{3 * (int(number) - 1) + (part == "norm")}'


def _features(module: str, blocks: Sequence[str], layers: Sequence[str]) -> str:
    """torchvision's one list of all layers: `layers` for each convolution, and
    a max pool after each stage.
    """
    if module in DENSE:
        return DENSE[module]
    unit = UNIT.fullmatch(module)
    if unit is None or unit[3] not in layers:
        raise _no_counterpart(module, 'torchvision')
    before = list(blocks).index(module.partition('/')[0])
    pools = int(unit[1]) - 1
    return f'features.{before * len(layers) + pools + layers.index(unit[3])}'


def _no_counterpart(module: str, source: str) -> UserError:
    return UserError(
        f'module {module!r} has no counterpart in this VGG of {source}; leave it as initialised'
    )
