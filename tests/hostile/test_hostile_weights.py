"""Files of PyTorch weights that hold something else, or values that no training leaves. Damaged
ones are in `unit/test_pretrained_reader.py`.
"""

import numpy as np
import pytest
import torch_files as files
from refusals import refused, refused_here
from safetensors.numpy import save_file

from kd_jax import pretrained

STATE = files.cifar_resnet(1, 7)
FLAGS = ('--model=resnet8', '--mean=0.5,0.5,0.5', '--std=0.5,0.5,0.5')


def write(path, state):
    if path.suffix == '.safetensors':
        save_file(state, path)
    else:
        path.write_bytes(files.state_dict(state))


def with_value(name, value):
    """The weights with one number of the tensor changed."""
    changed = STATE[name].copy()
    changed.reshape(-1)[-1] = value
    return STATE | {name: changed}


VALUES = {
    'a variance below zero': ('layer1.0.bn2.running_var', -1e-6, 'holds the variance -1e-06'),
    'an infinite variance': ('bn1.running_var', np.inf, 'not finite'),
    'a mean that is no number': ('layer2.0.bn1.running_mean', np.nan, 'not finite'),
    'a weight that is no number': ('layer3.0.conv2.weight', np.nan, 'not finite'),
    'an infinite weight': ('conv1.weight', -np.inf, 'not finite'),
    'an infinite bias': ('fc.bias', np.inf, 'not finite'),
}


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
@pytest.mark.parametrize('name', VALUES)
def test_values(tmp_path, name, suffix):
    path, (tensor, value, why) = tmp_path / f'x.{suffix}', VALUES[name]
    write(path, with_value(tensor, value))
    says = (f'tensor {tensor!r} of {path}', why, 'take a checkpoint of a run that went well')
    flags = (path, *FLAGS, f'--workdir={tmp_path / "w"}')
    refused('kd_jax.pretrained', *flags, says=says, keeps=[tmp_path])
    assert not (tmp_path / 'w').exists()


def test_a_variance_of_zero_is_one(tmp_path):
    """Of a channel that is always the same."""
    write(tmp_path / 'x.pth', with_value('bn1.running_var', 0.0))
    loaded = pretrained.load(tmp_path / 'x.pth', {'name': 'resnet8'})
    assert min(x.min() for x in _variances(loaded.variables['batch_stats'])) == 0


def _variances(tree):
    for key, node in tree.items():
        yield from [node] if key == 'var' else _variances(node) if isinstance(node, dict) else ()


CONTENTS = {
    'a number': (b'K\x01', 'a number'),
    'text': (files.text('weights'), 'text'),
    'nothing': (b'N', 'nothing'),
    'a truth value': (b'\x88', 'a truth value'),
    'a list': (b']', 'a list'),
    'a tuple': (b')', 'a tuple'),
    'a set': (b'\x8f', 'an object of builtins.set'),
    'arguments': (
        files.name('argparse', 'Namespace') + b')R',
        'an object of argparse.Namespace',
    ),
    'an array of NumPy': (
        files.name('numpy.core.multiarray', '_reconstruct') + b')R',
        'an object of numpy.core.multiarray._reconstruct',
    ),
    'a class': (files.name('argparse', 'Namespace'), 'the name of a function or class'),
    'a storage': (files.storage('0', 1), 'memory of a tensor without its shape'),
    'a tensor': (files.tensor('0', 1, (1,), (1,)), 'a single tensor'),
    'an empty dict': (b'}', 'a dict of nothing'),
    'long names': (
        b'}(' + files.text('a' * 10_000) + b'K\x01' + files.text('b') + b'K\x01u',
        f"a dict of '{'a' * 80}', 'b'",
    ),
}


@pytest.mark.parametrize('name', CONTENTS)
def test_what_is_no_state_dict(tmp_path, name):
    (tmp_path / 'x.pth').write_bytes(
        files.archive(b'\x80\x04' + CONTENTS[name][0] + b'.', {'0': bytes(4)})
    )
    says = f'{tmp_path / "x.pth"} holds {CONTENTS[name][1]}, not a state dict; save the weights'
    refused_here(
        lambda: pretrained.load(tmp_path / 'x.pth', {'name': 'resnet8'}), [says], [tmp_path]
    )
