"""PyTorch's names for the modules of MobileNets and EfficientNet.

Every function maps a module's path, such as `stage1_block1/expand/conv`, to the prefix of its
entries in a state dict; `blocks` are the names of all blocks of the model in order.
"""

import re
from collections.abc import Sequence

from kd_jax.errors import UserError

PARTS = {'conv': 0, 'norm': 1}  # places in PyTorch's sequence of convolution, BatchNorm, activation
SQUEEZE = {'reduce': 'fc1', 'expand': 'fc2'}


def _place(name: str) -> tuple[int, int]:
    """(stage, number), both from 1, of the block called `name`."""
    match = re.fullmatch(r'stage(\d+)_block(\d+)', name)
    if match is None:
        raise UserError(f'module {name!r} has no counterpart in PyTorch; leave it as initialised')
    return int(match[1]), int(match[2])


def _index(units: Sequence[str], unit: str) -> int:
    if unit not in units:
        raise UserError(
            f'a block of {", ".join(units)} in PyTorch has no {unit!r}; leave it as initialised'
        )
    return units.index(unit)


def torchvision_v2(module: str, blocks: Sequence[str]) -> str:
    """`MobileNetV2` in torchvision, and in chenyaofo/pytorch-cifar-models,
    which keeps torchvision's names.
    """
    name, *rest = module.split('/')
    if name == 'head':
        return 'classifier.1'
    if name in ('stem', 'top'):
        return f'features.{0 if name == "stem" else len(blocks) + 1}.{PARTS[rest[0]]}'
    units = ['depthwise', 'project'] if _place(name)[0] == 1 else ['expand', 'depthwise', 'project']
    prefix = f'features.{blocks.index(name) + 1}.conv'
    unit, part = rest
    place = _index(units, unit)
    return (
        f'{prefix}.{place + PARTS[part]}'
        if unit == 'project'
        else f'{prefix}.{place}.{PARTS[part]}'
    )


def _squeezed(prefix: str, units: Sequence[str], rest: Sequence[str]) -> str:
    """A part of a block of `units`, which torchvision numbers."""
    unit, part = rest
    return f'{prefix}.{_index(units, unit)}.{SQUEEZE[part] if unit == "se" else PARTS[part]}'


def torchvision_v3(module: str, blocks: Sequence[str]) -> str:
    """`MobileNetV3` in torchvision; Large has six stages, Small has five."""
    name, *rest = module.split('/')
    if name in ('top_dense', 'head'):
        return f'classifier.{0 if name == "top_dense" else 3}'
    if name in ('stem', 'top'):
        return f'features.{0 if name == "stem" else len(blocks) + 1}.{PARTS[rest[0]]}'
    stages = max(_place(other)[0] for other in blocks)
    stage, _ = _place(name)
    squeezed = stage in ((3, 5, 6) if stages == 6 else (1, 3, 4, 5))
    units = ['expand'] * (stage > 1) + ['depthwise'] + ['se'] * squeezed + ['project']
    return _squeezed(f'features.{blocks.index(name) + 1}.block', units, rest)


def torchvision_efficientnet(module: str, blocks: Sequence[str]) -> str:
    """`EfficientNet` in torchvision."""
    name, *rest = module.split('/')
    if name == 'head':
        return 'classifier.1'
    if name in ('stem', 'top'):
        stages = max(_place(other)[0] for other in blocks)
        return f'features.{0 if name == "stem" else stages + 1}.{PARTS[rest[0]]}'
    stage, number = _place(name)
    units = ['expand'] * (stage > 1) + ['depthwise', 'se', 'project']
    return _squeezed(f'features.{stage}.{number - 1}.block', units, rest)


def repdistiller(module: str, blocks: Sequence[str]) -> str:
    """`CifarMobileNetV2` in HobbitLong/RepDistiller and megvii-research/mdistiller."""
    name, *rest = module.split('/')
    if name == 'head':
        return 'classifier.0'
    if name in ('stem', 'top'):
        return f'conv{1 if name == "stem" else 2}.{PARTS[rest[0]]}'
    stage, number = _place(name)
    unit, part = rest
    place = 3 * _index(('expand', 'depthwise', 'project'), unit) + PARTS[part]
    return f'blocks.{stage - 1}.{number - 1}.conv.{place}'


def mdistiller_v1(module: str, blocks: Sequence[str]) -> str:
    """`MobileNetV1` in megvii-research/mdistiller: `model`, a sequence of the
    stem and the blocks, and `fc`.
    """
    name, *rest = module.split('/')
    if name == 'head':
        return 'fc'
    if name == 'stem':
        return f'model.0.{PARTS[rest[0]]}'
    _place(name)
    unit, part = rest
    number = 3 * _index(('depthwise', 'pointwise'), unit) + PARTS[part]
    return f'model.{blocks.index(name) + 1}.{number}'
