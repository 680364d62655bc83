"""The names that torchvision gives to the modules of Inception-v3 and GoogLeNet: `(module, blocks) -> prefix`.

`module` is one of our module paths, `stage1_block1/one/conv`; `blocks` are the model's `stage<i>_block<j>`, in order.
A module that torchvision does not have keeps its own name, which no published file contains.

torchvision's published weights of both networks expect images normalised with mean 0.5 and standard deviation 0.5 in
every channel (its `transform_input`), and their files contain the auxiliary heads whether or not the model has them;
GoogLeNet's are not trained.
"""

import re
from collections.abc import Sequence

AUXILIARY = ('AuxLogits.', 'aux1.', 'aux2.')  # in the published files also where the model has `aux=False`
MEAN = STD = (0.5, 0.5, 0.5)

UNIT = re.compile(r'(.+)/(conv|norm)')
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
GOOGLENET_BRANCHES = {'one': 'branch1', 'three': 'branch2', 'five': 'branch3', 'pool': 'branch4'}


def torchvision(module: str, blocks: Sequence[str]) -> str:
    """torchvision's inception_v3: `stage1_block1/five2/conv` -> `Mixed_5b.branch5x5_2.conv`."""
    return {'head': 'fc', 'head_aux/dense': 'AuxLogits.fc'}.get(module) or _unit(module, _inception_v3)


def torchvision_googlenet(module: str, blocks: Sequence[str]) -> str:
    """torchvision's googlenet: `stage1_block1/five2/conv` -> `inception3a.branch3.1.conv`."""
    if module == 'head':
        return 'fc'
    if dense := re.fullmatch(r'head_(aux[12])/dense([12])', module):
        return f'{dense[1]}.fc{dense[2]}'
    return _unit(module, _googlenet)


def _unit(module, name_of):
    """A convolution with BatchNorm has the same two names everywhere in both networks."""
    unit = UNIT.fullmatch(module)
    name = name_of(unit[1]) if unit else None
    return module if name is None else f'{name}.{"bn" if unit[2] == "norm" else "conv"}'


def _inception_v3(unit):
    if unit in ('head_aux/conv0', 'head_aux/conv1'):
        return f'AuxLogits.{unit[-5:]}'
    if stem := re.fullmatch(r'stem([1-5])', unit):
        return STEM[int(stem[1]) - 1]
    if found := BLOCK.fullmatch(unit):
        stage, number, branch, part = int(found[1]), int(found[2]), found[3], found[4]
        first = 'b' if stage == 1 else 'a'  # there is no Mixed_5a: the letter counts the pool in front
        letter = chr(ord(first) + number - 1)
        return f'Mixed_{stage + 4}{letter}.{BRANCHES[branch]}' + (f'_{part}' if part else '')
    return None


def _googlenet(unit):
    if unit in ('head_aux1/conv', 'head_aux2/conv'):
        return f'{unit[5:9]}.conv'
    if stem := re.fullmatch(r'stem([1-3])', unit):
        return f'conv{stem[1]}'
    if found := BLOCK.fullmatch(unit):
        stage, number, branch, part = int(found[1]), int(found[2]), found[3], found[4]
        place = {'one': '', 'pool': '.1'}.get(branch) or (f'.{int(part) - 1}' if part else '')
        return f'inception{stage + 2}{"abcde"[number - 1]}.{GOOGLENET_BRANCHES[branch]}{place}'
    return None
