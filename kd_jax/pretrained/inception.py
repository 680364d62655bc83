"""The names that torchvision gives to the modules of Inception-v3 and GoogLeNet:
`(module, blocks) -> prefix`.

`module` is one of our module paths, `stage1_block1/one/conv`; `blocks` are the model's
`stage<i>_block<j>`, in order.
"""

import re
from collections.abc import Callable, Sequence

from kd_jax.errors import UserError

UNIT = re.compile(r'(.+)/(conv|norm)')  # ConvBN
BLOCK = re.compile(r'stage(\d+)_block(\d+)/([a-z]+)(\w*)')
STEM = ('Conv2d_1a_3x3', 'Conv2d_2a_3x3', 'Conv2d_2b_3x3', 'Conv2d_3b_1x1', 'Conv2d_4a_3x3')
BRANCHES = {
    'one': 'branch1x1',
    'three': 'branch3x3',
    'five': 'branch5x5',
    'double': 'branch3x3dbl',
    'seven': 'branch7x7',
    'doubleseven': 'branch7x7dbl',
    'seventhree': 'branch7x7x3',
    'pool': 'branch_pool',
}
GOOGLENET_BRANCHES = {
    'one': 'branch1',
    'three1': 'branch2.0',
    'three2': 'branch2.1',
    'five1': 'branch3.0',
    'five2': 'branch3.1',
    'pool': 'branch4.1',
}


def torchvision(module: str, blocks: Sequence[str]) -> str:
    """torchvision's inception_v3: `stage1_block1/five2/conv` -> `Mixed_5b.branch5x5_2.conv`."""
    dense = {'head': 'fc', 'head_aux/dense': 'AuxLogits.fc'}
    return dense.get(module) or _unit(module, _inception_v3, 'Inception-v3')


def torchvision_googlenet(module: str, blocks: Sequence[str]) -> str:
    """torchvision's googlenet: `stage1_block1/five2/conv` -> `inception3a.branch3.1.conv`."""
    if module == 'head':
        return 'fc'
    if dense := re.fullmatch(r'head_(aux[12])/dense([12])', module):
        return f'{dense[1]}.fc{dense[2]}'
    return _unit(module, _googlenet, 'GoogLeNet')


def _unit(module: str, name_of: Callable[[str], str | None], network: str) -> str:
    """A convolution with BatchNorm: `name_of` names it, its two layers
    have the same names everywhere.
    """
    unit = UNIT.fullmatch(module)
    name = name_of(unit[1]) if unit else None
    if unit is None or name is None:
        raise UserError(
            f'module {module!r} has no counterpart in the {network} of '
            'torchvision; leave it as initialised'
        )
    return f'{name}.{"bn" if unit[2] == "norm" else "conv"}'


def _inception_v3(unit: str) -> str | None:
    if auxiliary := re.fullmatch(r'head_aux/(conv[01])', unit):
        return f'AuxLogits.{auxiliary[1]}'
    if stem := re.fullmatch(r'stem([1-5])', unit):
        return STEM[int(stem[1]) - 1]
    block = BLOCK.fullmatch(unit)
    if block is None or block[3] not in BRANCHES:
        return None
    # In torchvision's count Mixed_5a is the max pool in front.
    letters = '_bcd' if block[1] == '1' else '_abcde'
    name = f'Mixed_{int(block[1]) + 4}{letters[int(block[2])]}.{BRANCHES[block[3]]}'
    return f'{name}_{block[4]}' if block[4] else name


def _googlenet(unit: str) -> str | None:
    if auxiliary := re.fullmatch(r'head_(aux[12])/conv', unit):
        return f'{auxiliary[1]}.conv'
    if stem := re.fullmatch(r'stem([1-3])', unit):
        return f'conv{stem[1]}'
    block = BLOCK.fullmatch(unit)
    if block is None or block[3] + block[4] not in GOOGLENET_BRANCHES:
        return None
    branch = GOOGLENET_BRANCHES[block[3] + block[4]]
    return f'inception{int(block[1]) + 2}{"_abcde"[int(block[2])]}.{branch}'
