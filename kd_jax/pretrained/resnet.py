"""PyTorch names of the residual networks' modules, by the code base that publishes the weights.

Each rule maps a module path of ours ('stage1_block1/conv1/conv') to the prefix of PyTorch's
parameter names ('layer1.0.conv1'). `blocks` are the names of all blocks of the model in order; here
the names themselves are enough.
"""

import re
from collections.abc import Sequence

from kd_jax.errors import UserError

# What ConvBN calls its two layers, in an nn.Sequential of both.
_PAIR = {'conv': '0', 'norm': '1'}


def _name(
    module: str, stem: dict[str, str], inside: dict[str, str], blocks: str, source: str
) -> str:
    """The prefix of `module`: of the layers around the blocks, or `blocks` (with {stage} and
    {index}) and a layer inside.
    """
    if module in stem:
        return stem[module]
    match = re.fullmatch(r'stage(\d+)_block(\d+)/(.+)', module)
    if match is None or match[3] not in inside:
        raise UserError(
            f'module {module!r} has no counterpart in the ResNets of '
            f'{source}; leave it as initialised'
        )
    return f'{blocks.format(stage=match[1], index=int(match[2]) - 1)}.{inside[match[3]]}'


def _post_activation(module: str, shortcut: str, head: str, source: str) -> str:
    stem = {'stem/conv': 'conv1', 'stem/norm': 'bn1', 'head': head}
    inside = {f'conv{i}/conv': f'conv{i}' for i in (1, 2, 3)} | {
        f'conv{i}/norm': f'bn{i}' for i in (1, 2, 3)
    }
    inside |= {f'shortcut/{ours}': f'{shortcut}.{theirs}' for ours, theirs in _PAIR.items()}
    return _name(module, stem, inside, 'layer{stage}.{index}', source)


def torchvision(module: str, blocks: Sequence[str]) -> str:
    """`ResNet` as torchvision names it: `conv1`, `layer1.0.conv1`,
    `layer2.0.downsample.0`, `fc`.
    """
    return _post_activation(module, 'downsample', 'fc', 'torchvision')


def repdistiller(module: str, blocks: Sequence[str]) -> str:
    """`CifarResNet` (resnet8 ... resnet110, resnet8x4, resnet32x4) as
    RepDistiller's models/resnet.py names it.
    """
    return _post_activation(module, 'downsample', 'fc', 'RepDistiller')


def chenyaofo(module: str, blocks: Sequence[str]) -> str:
    """`CifarResNet` (resnet20, resnet32, resnet44, resnet56) as
    chenyaofo/pytorch-cifar-models names it.
    """
    return _post_activation(module, 'downsample', 'fc', 'pytorch-cifar-models')


def repdistiller_small(module: str, blocks: Sequence[str]) -> str:
    """`ResNet` with `small_images` as RepDistiller's models/resnetv2.py names it:
    `layer2.0.shortcut.0`, `linear`.
    """
    return _post_activation(module, 'shortcut', 'linear', 'RepDistiller')


def repdistiller_wide(module: str, blocks: Sequence[str]) -> str:
    """`WideResNet` as RepDistiller's models/wrn.py names it:
    `block1.layer.0.convShortcut`, `bn1` for `top`, `fc`.
    """
    stem = {'stem': 'conv1', 'top': 'bn1', 'head': 'fc'}
    inside = {
        'conv1': 'conv1',
        'conv2': 'conv2',
        'norm1': 'bn1',
        'norm2': 'bn2',
        'shortcut': 'convShortcut',
    }
    return _name(module, stem, inside, 'block{stage}.layer.{index}', 'RepDistiller')
