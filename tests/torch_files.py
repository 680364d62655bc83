"""PyTorch's zip format written by hand, so that tests need no PyTorch and can
write what PyTorch never would.
"""

import io
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
