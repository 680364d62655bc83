"""PyTorch names of the ShuffleNets' modules, by the code base that publishes the weights.

Each rule maps a module path of ours ('stage1_block1/conv1/conv') to the prefix of PyTorch's
parameter names ('stage2.0.branch2.0'). `blocks` are the names of all blocks of the model in order;
here the names themselves are enough.
"""

import re
from collections.abc import Sequence

from kd_jax.errors import UserError

# What ConvBN calls its two layers: (ours, theirs, distance in an nn.Sequential).
_LAYERS = (('conv', 'conv', 0), ('norm', 'bn', 1))
# The convolutions of a unit of torchvision's: its branch and the place there.
_BRANCHES = {
    'conv1': ('branch2', 0),
    'conv2': ('branch2', 3),
    'conv3': ('branch2', 5),
    'shortcut1': ('branch1', 0),
    'shortcut2': ('branch1', 2),
}
# RepDistiller numbers the convolutions of a unit; those of version 2 that
# stride begin with the shortcut.
_PLAIN = {'conv1': 1, 'conv2': 2, 'conv3': 3}
_STRIDING = {'shortcut1': 1, 'shortcut2': 2, 'conv1': 3, 'conv2': 4, 'conv3': 5}


def _name(
    module: str,
    around: dict[str, str],
    inside: Sequence[dict[str, str]],
    unit: str,
    shift: int,
    source: str,
) -> str:
    """The prefix of `module`: of the layers around the units, or `unit`
    (a format) and a layer inside.

    inside: of a stage's first unit, and of the others. shift: how much
    higher they count the stages.
    """
    if module in around:
        return around[module]
    match = re.fullmatch(r'stage(\d+)_block(\d+)/(.+)', module)
    layers = {} if match is None else inside[int(match[2]) > 1]
    if match is None or match[3] not in layers:
        raise UserError(
            f'module {module!r} has no counterpart in the ShuffleNets of '
            f'{source}; leave it as initialised'
        )
    return f'{unit.format(stage=int(match[1]) + shift, index=int(match[2]) - 1)}.{layers[match[3]]}'


def torchvision(module: str, blocks: Sequence[str]) -> str:
    """`ShuffleNetV2` as torchvision names it: `conv1.0`, `stage2.0.branch1.0`, `conv5.0`, `fc`.

    pytorch-cifar-models took over the names; its networks are the small ones with `stem_kernel` 3.
    """
    around = {'head': 'fc'}
    for ours, _, step in _LAYERS:
        around |= {f'stem/{ours}': f'conv1.{step}', f'top/{ours}': f'conv5.{step}'}
    first = {
        f'{n}/{ours}': f'{branch}.{place + step}'
        for n, (branch, place) in _BRANCHES.items()
        for ours, _, step in _LAYERS
    }
    further = {path: name for path, name in first.items() if not path.startswith('shortcut')}
    return _name(module, around, (first, further), 'stage{stage}.{index}', 1, 'torchvision')


def _repdistiller(module: str, first: dict[str, int], top: bool) -> str:
    around = {'head': 'linear'}
    for ours, theirs, _ in _LAYERS:
        around |= {f'stem/{ours}': f'{theirs}1'} | ({f'top/{ours}': f'{theirs}2'} if top else {})
    inside = [
        {f'{n}/{ours}': f'{theirs}{i}' for n, i in numbers.items() for ours, theirs, _ in _LAYERS}
        for numbers in (first, _PLAIN)
    ]
    return _name(module, around, inside, 'layer{stage}.{index}', 0, 'RepDistiller')


def repdistiller_v1(module: str, blocks: Sequence[str]) -> str:
    """The small `ShuffleNetV1` as RepDistiller's models/ShuffleNetv1.py names
    it: `layer1.0.conv1`, `linear`.
    """
    return _repdistiller(module, _PLAIN, top=False)


def repdistiller_v2(module: str, blocks: Sequence[str]) -> str:
    """The small `ShuffleNetV2` as RepDistiller's models/ShuffleNetv2.py names it:
    `layer1.0.conv1`, `conv2` for `top`.
    """
    return _repdistiller(module, _STRIDING, top=True)
