"""PyTorch's zip format written by hand, so that tests need no PyTorch and can
write what PyTorch never would.
"""

import io
import math
import zipfile

import numpy as np

KINDS = {'f4': 'FloatStorage', 'f8': 'DoubleStorage', 'f2': 'HalfStorage', 'i8': 'LongStorage'}


def text(value):
    data = value.encode()
    return b'X' + len(data).to_bytes(4, 'little') + data


def integer(value):
    return b'\x8a\x09' + value.to_bytes(9, 'little', signed=True)


def name(module, attribute):
    """The opcode that names a function or class."""
    return f'c{module}\n{attribute}\n'.encode()


def integers(values):
    return b'(' + b''.join(map(integer, values)) + b't'


def storage(key, numel, kind='FloatStorage'):
    return (
        b'('
        + text('storage')
        + name('torch', kind)
        + text(key)
        + text('cpu')
        + integer(numel)
        + b'tQ'
    )


def tensor(key, numel, size, stride, offset=0, kind='FloatStorage'):
    arguments = (
        storage(key, numel, kind) + integer(offset) + integers(size) + integers(stride) + b'\x89'
    )
    return (
        name('torch._utils', '_rebuild_tensor_v2')
        + b'('
        + arguments
        + name('collections', 'OrderedDict')
        + b')RtR'
    )


def pickled(items):
    """{name: opcodes of a value} as an OrderedDict with the attribute
    `_metadata`, as a state dict has it.
    """
    pairs = b''.join(text(key) + value for key, value in items.items())
    return (
        b'\x80\x02'
        + name('collections', 'OrderedDict')
        + b')R('
        + pairs
        + b'u}'
        + text('_metadata')
        + b'}sb.'
    )


def archive(data, entries=(), root='archive', method=zipfile.ZIP_STORED):
    """The bytes of a zip archive with `data.pkl` and storages {key: bytes}."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', method) as file:
        file.writestr(f'{root}/data.pkl', data)
        for key, content in dict(entries).items():
            file.writestr(f'{root}/data/{key}', content)
    return buffer.getvalue()


def state_dict(arrays):
    """The bytes of a file with these arrays, as torch.save writes a state dict."""
    items, entries = {}, {}
    for number, (key, x) in enumerate(arrays.items()):
        strides = [s // x.itemsize for s in np.ascontiguousarray(x).reshape(x.shape).strides]
        items[key] = tensor(str(number), x.size, x.shape, strides, kind=KINDS[x.dtype.str[1:]])
        entries[str(number)] = x.tobytes()
    return archive(pickled(items), entries)


def cifar_resnet(blocks, classes, seed=0, channels=3):
    """A state dict of RepDistiller's `resnet{6 * blocks + 2}`, names and
    shapes written from its structure.
    """
    rng = np.random.default_rng(seed)
    tensors = {}

    def conv(name, outputs, inputs, kernel):
        tensors[f'{name}.weight'] = rng.normal(size=(outputs, inputs, kernel, kernel)) / (
            kernel * math.sqrt(inputs)
        )

    def norm(name, channels):
        tensors[f'{name}.weight'] = rng.uniform(0.5, 1.5, channels)
        tensors[f'{name}.bias'] = rng.normal(size=channels) * 0.1
        tensors[f'{name}.running_mean'] = rng.normal(size=channels) * 0.1
        tensors[f'{name}.running_var'] = rng.uniform(0.5, 1.5, channels)
        tensors[f'{name}.num_batches_tracked'] = np.array(12)

    conv('conv1', 16, channels, 3)
    norm('bn1', 16)
    inputs = 16
    for layer, width in enumerate((16, 32, 64), start=1):
        for block in range(blocks):
            name = f'layer{layer}.{block}'
            conv(f'{name}.conv1', width, inputs, 3)
            norm(f'{name}.bn1', width)
            conv(f'{name}.conv2', width, width, 3)
            norm(f'{name}.bn2', width)
            if inputs != width:
                conv(f'{name}.downsample.0', width, inputs, 1)
                norm(f'{name}.downsample.1', width)
            inputs = width
    tensors['fc.weight'] = rng.normal(size=(classes, 64)) * 0.1
    tensors['fc.bias'] = rng.normal(size=classes)
    return {name: x if x.dtype == np.int64 else x.astype(np.float32) for name, x in tensors.items()}
