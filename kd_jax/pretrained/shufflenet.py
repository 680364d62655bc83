"""PyTorch's names of the layers of the ShuffleNets.

Each function maps the path of one of our layers, without its collection and leaf, to the prefix that published code gives it.
"""

from collections.abc import Sequence

# Place of the convolution in torchvision's branches; its BatchNorm is the next.
_BRANCHES = {
    'shortcut1': ('branch1', 0),
    'shortcut2': ('branch1', 2),
    'conv1': ('branch2', 0),
    'conv2': ('branch2', 3),
    'conv3': ('branch2', 5),
}
_ENDS = {'stem': 'conv1', 'top': 'conv5'}
# A unit of version 2 that strides numbers its five convolutions in the order of its branches.
_STRIDING = {'shortcut1': 1, 'shortcut2': 2, 'conv1': 3, 'conv2': 4, 'conv3': 5}


def _place(name: str) -> tuple[int, int]:
    """Stage and unit, both counting from 1, of `stage<i>_block<j>`."""
    stage, number = name.removeprefix('stage').split('_block')
    return int(stage), int(number)


def torchvision(module: str, blocks: Sequence[str]) -> str:
    """ShuffleNetV2 as torchvision names it, and the CIFAR networks of pytorch-cifar-models, which took its code."""
    if module == 'head':
        return 'fc'
    *path, leaf = module.split('/')
    step = {'conv': 0, 'norm': 1}[leaf]
    if len(path) == 1:
        return f'{_ENDS[path[0]]}.{step}'
    stage, number = _place(path[0])
    branch, first = _BRANCHES[path[1]]
    return f'stage{stage + 1}.{number - 1}.{branch}.{first + step}'


def _repdistiller(module: str, striding: dict[str, int]) -> str:
    if module == 'head':
        return 'linear'
    *path, leaf = module.split('/')
    kind = {'conv': 'conv', 'norm': 'bn'}[leaf]
    if len(path) == 1:
        return f'{kind}1' if path[0] == 'stem' else f'{kind}2'
    stage, number = _place(path[0])
    index = striding[path[1]] if number == 1 else path[1].removeprefix('conv')
    return f'layer{stage}.{number - 1}.{kind}{index}'


def repdistiller_v1(module: str, blocks: Sequence[str]) -> str:
    """The small ShuffleNetV1 as RepDistiller names it."""
    return _repdistiller(module, {'conv1': 1, 'conv2': 2, 'conv3': 3})


def repdistiller_v2(module: str, blocks: Sequence[str]) -> str:
    """The small ShuffleNetV2 as RepDistiller names it."""
    return _repdistiller(module, _STRIDING)
