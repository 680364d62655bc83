"""Files of PyTorch weights: read as PyTorch reads them, never run, and refused with one
sentence where they are damaged.
"""

import argparse
import io
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch_files as files
from helpers import TESTS
from refusals import refused_here

from kd_jax.errors import UserError
from kd_jax.pretrained import reader

GOLDEN = TESTS / 'golden' / 'files'
AGAIN = 'download or copy it again'
EXPECTED = np.load(GOLDEN / 'expected.npz')
READABLE = sorted({key.partition('/')[0] for key in EXPECTED})


def write(path, content):
    path.write_bytes(content)
    return path


def sentence(path, *parts):
    """The one sentence with which a file is refused; it names the file."""
    return refused_here(lambda: reader.read(path), says=(path, *parts))


@pytest.mark.parametrize('name', READABLE)
def test_files_of_pytorch_hold_what_pytorch_put_there(name):
    expected = {
        key.partition('/')[2]: EXPECTED[key] for key in EXPECTED if key.startswith(f'{name}/')
    }
    found = reader.read(GOLDEN / name)
    assert found.keys() == expected.keys()
    for key, x in found.items():
        assert x.shape == expected[key].shape
        np.testing.assert_array_equal(x.astype(np.float32), expected[key])
    types = {str(x.dtype) for key, x in found.items() if not key.endswith(reader.COUNTER)}
    special = {'half.pth': {'float16'}, 'bfloat16_float64.pth': {'float32', 'float64'}}
    assert types == special.get(
        name, special['bfloat16_float64.pth'] if 'safetensors' in name else {'float32'}
    )


def test_what_pytorch_reads_itself(tmp_path):
    """Against torch.load where PyTorch is installed; the values are
    not those of the golden files.
    """
    torch = pytest.importorskip('torch')
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, groups=1), torch.nn.BatchNorm2d(8)).to(
        memory_format=torch.channels_last
    )
    whole = torch.randn(4, 5, 6)
    tensors = {
        **net.state_dict(),
        'a': whole.transpose(0, 2),
        'b': whole[1:, ::2],
        'c': whole.half()[2],
        'd': whole.double(),
    }
    tensors |= {'e': torch.nn.Parameter(whole[0]), 'f': whole[:, 0].bfloat16()}
    torch.save({'args': argparse.Namespace(lr=0.1), 'net': tensors, 'epoch': 3}, tmp_path / 'x.pth')
    found = reader.read(tmp_path / 'x.pth')
    reference = torch.load(tmp_path / 'x.pth', weights_only=False)['net']
    assert found.keys() == reference.keys()
    for key, x in found.items():
        y = reference[key].detach()
        np.testing.assert_array_equal(x, (y.float() if y.dtype == torch.bfloat16 else y).numpy())


def test_a_file_written_by_hand_and_one_of_the_other_byte_order(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = write(
        tmp_path / 'x.anything', files.state_dict({'a': x, 'n.num_batches_tracked': np.array(3)})
    )
    found = reader.read(path)
    np.testing.assert_array_equal(found['a'], x)
    assert found['n.num_batches_tracked'] == 3
    foreign = 'big' if sys.byteorder == 'little' else 'little'
    data = files.pickled({'a': files.tensor('0', 6, (3, 2), (1, 3))})
    buffer = io.BytesIO(files.archive(data, {'0': x.byteswap().tobytes()}))
    with zipfile.ZipFile(buffer, 'a') as file:
        file.writestr('archive/byteorder', foreign)
    np.testing.assert_array_equal(reader.read(write(path, buffer.getvalue()))['a'], x.T)


def test_of_several_state_dicts_the_first_in_the_documented_order_is_taken_and_named(tmp_path):
    def inner(key):
        return files.pickled({'module.model.w': files.tensor(key, 1, (1,), (1,))})[2:-1]

    items = {
        'ema': inner('0'),
        'model': inner('1'),
        'epoch': files.integer(7),
        'model_ema': inner('2'),
    }
    path = write(
        tmp_path / 'x.pth',
        files.archive(files.pickled(items), {str(i): np.float32(i).tobytes() for i in range(3)}),
    )
    notes = []
    found = reader.read(path, notes.append)
    assert found.keys() == {'w'} and found['w'] == [1.0]
    assert notes == [f"{path} holds several state dicts; 'model' is taken, not 'model_ema', 'ema'"]


def test_a_prefix_is_removed_only_where_all_names_have_it(tmp_path):
    one = np.ones(1, np.float32)
    found = reader.read(write(tmp_path / 'x.pth', files.state_dict({'module.a': one, 'b': one})))
    assert found.keys() == {'module.a', 'b'}
    found = reader.read(
        write(
            tmp_path / 'x.pth',
            files.state_dict({'_orig_mod.module.a': one, '_orig_mod.module.b': one}),
        )
    )
    assert found.keys() == {'a', 'b'}


# --- what is no file of weights


@pytest.mark.parametrize(
    ('name', 'parts'),
    [
        (
            'module.pth',
            [
                'a whole pickled model',
                'torch.nn.modules.container.Sequential',
                'model.state_dict()',
            ],
        ),
        (
            'legacy.pth',
            [
                'before 1.6',
                'torch.load(..., weights_only=True)',
                'torch.save(state_dict, new_path)',
            ],
        ),
        ('script.pt', ['TorchScript', 'torch.jit.load']),
        ('expected.npz', ['NumPy', 'torch.save']),
    ],
)
def test_what_pytorch_and_numpy_write_besides_state_dicts(name, parts):
    sentence(GOLDEN / name, *parts)


def zipped(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as file:
        for name in names:
            file.writestr(name, 'x')
    return buffer.getvalue()


@pytest.mark.parametrize(
    ('content', 'parts'),
    [
        (b'', ['is empty', 'download']),
        (b'<!DOCTYPE html><html>404</html>', ['web page']),
        (b'\n <html>', ['web page']),
        (b'\x89HDF\r\n\x1a\n' + bytes(100), ['HDF5', 'Keras']),
        (b'\x08\x07\x12\x07pytorch' + bytes(100), ['ONNX']),
        (b'\x1f\x8b\x08' + bytes(100), ['gzip', 'unpack']),
        (bytes(257) + b'ustar' + bytes(300), ['tar archive', 'unpack']),
        (
            b'version https://git-lfs.github.com/spec/v1\noid sha256:1\n',
            ['Git LFS', 'git lfs pull'],
        ),
        (pickle.dumps({'a': np.ones(2)}), ['pickle', 'torch.save']),
        (b'epoch,loss\n1,2\n', ['neither a .pth nor a .safetensors']),
        (zipped('config.json', 'model.weights.h5'), ['Keras']),
        (zipped('weights/model.pth'), ['weights/model.pth', 'unpack']),
        (zipped('word/document.xml'), ['torch.save did not write']),
        (zipped('a/data.pkl', 'b/data.pkl'), ['twice']),
        (files.archive(files.pickled({})), ['a dict of nothing']),
        (files.archive(b'\x80\x02K\x01.'), ['holds a number, not a state dict']),
        (files.archive(files.pickled({'lr': files.integer(1)})), ["a dict of 'lr'"]),
        (files.archive(b'\x80\x02' + files.tensor('0', 1, (1,), (1,)) + b'.'), ['a single tensor']),
        (files.state_dict({'steps': np.array([1, 2])}), ['no floating-point tensors']),
        (
            files.archive(files.pickled({'a': files.tensor('0', 1, (1,), (1,))})),
            ["'a' are missing"],
        ),
        ((10).to_bytes(8, 'little') + b'{"a":1}   ', ['no complete .safetensors']),
        ((2**20).to_bytes(8, 'little') + b'{"a":', ['no complete .safetensors']),
    ],
    ids=lambda value: '' if isinstance(value, list) else None,
)
def test_other_files(content, parts, tmp_path):
    sentence(write(tmp_path / 'x.pth', content), *parts)


def test_missing_files_and_directories(tmp_path):
    sentence(tmp_path / 'no.pth', 'No such file')
    sentence(tmp_path, 'is a directory')
    sentence(tmp_path / ('x' * 300), 'too long')
    with pytest.raises(UserError, match='null'):
        reader.read('a\0b')


def test_compressed_archives_and_bombs_are_refused(tmp_path):
    tensors = files.pickled({'a': files.tensor('0', 2**20, (2**20,), (1,))})
    content = files.archive(tensors, {'0': bytes(2**22)}, method=zipfile.ZIP_DEFLATED)
    assert len(content) < 2**14
    sentence(write(tmp_path / 'x.pth', content), 'compressed')
    # a hundred times the same
    shared = {f'a{i}': files.tensor('0', 1000, (1000,), (1,)) for i in range(100)}
    content = files.archive(files.pickled(shared), {'0': bytes(4000)})
    sentence(write(tmp_path / 'x.pth', content), 'many times larger')


@pytest.mark.parametrize(
    ('size', 'stride', 'offset', 'numel'),
    [
        ((7,), (1,), 0, 6),
        ((2, 3), (4, 1), 0, 6),
        ((6,), (1,), 1, 6),
        ((3,), (1,), -1, 6),
        ((-2,), (1,), 0, 6),
        ((3,), (-1,), 3, 6),
        ((2, 3), (1,), 0, 6),
        ((2**31, 2**31), (0, 0), 0, 6),
        ((7, 1), (0, 0), 0, 6),
        ((2**62,), (2**62,), 0, 6),
        ((0, 2**60), (1, 1), 0, 6),
        ((6,), (1,), 0, 7),
        ((6,), (1,), 0, 2**60),
        ((6,), (1,), 0, -6),
        ((1,) * 40, (1,) * 40, 0, 6),
    ],
)
def test_tensors_beyond_their_storage(size, stride, offset, numel, tmp_path):
    data = files.pickled({'a': files.tensor('0', numel, size, stride, offset)})
    sentence(write(tmp_path / 'x.pth', files.archive(data, {'0': bytes(24)})), 'is damaged')


def test_a_size_one_axis_may_have_any_stride(tmp_path):
    data = files.pickled({'a': files.tensor('0', 2, (1, 2), (2**60, 1))})
    path = write(tmp_path / 'x.pth', files.archive(data, {'0': np.float32([1, 2]).tobytes()}))
    np.testing.assert_array_equal(reader.read(path)['a'], [[1, 2]])


def test_names_that_leave_the_archive_are_names_of_nothing(tmp_path):
    write(tmp_path / 'secret', bytes(4))
    for key in ('../../secret', str(tmp_path / 'secret'), '..\\secret', '\0'):
        data = files.pickled({'a': files.tensor(key, 1, (1,), (1,))})
        sentence(write(tmp_path / 'x.pth', files.archive(data, {'0': bytes(4)})), 'are missing')
    data = files.pickled({'a': files.tensor('../../../out', 1, (1,), (1,))})
    path = write(tmp_path / 'x.pth', files.archive(data, {'../../../out': bytes(4)}))
    before = sorted(tmp_path.rglob('*'))
    reader.read(path)  # an entry as any other: nothing is unpacked
    assert sorted(tmp_path.rglob('*')) == before


# --- files that attack


def call(module, attribute, argument):
    return files.name(module, attribute) + b'(' + files.text(argument) + b'tR'


def attacks(command):
    """{description: opcodes of a value that runs `command` in a shell when
    Python's own pickle reads it}.
    """
    stack_global = b'\x8c\x05posix\x8c\x06system\x93(' + files.text(command) + b'tR'
    python = f'__import__("os").system({command!r})'
    getattr_system = (
        files.name('builtins', 'getattr')
        + b'('
        + call('builtins', '__import__', 'os')
        + files.text('system')
        + b'tR'
    )
    getattr_system += b'(' + files.text(command) + b'tR'
    partial = (
        files.name('functools', 'partial')
        + b'('
        + files.name('posix', 'system')
        + files.text(command)
        + b'tR)R'
    )
    return {
        'REDUCE': call('posix', 'system', command),
        'os': call('os', 'system', command),
        'STACK_GLOBAL': stack_global,
        'eval': call('builtins', 'eval', python),
        'exec': call('builtins', 'exec', python),
        'getattr': getattr_system,
        'partial': partial,
        'INST': b'(' + f'S{command!r}\n'.encode() + b'iposix\nsystem\n',
        'OBJ': b'(' + files.name('posix', 'system') + files.text(command) + b'o',
        'subprocess': files.name('subprocess', 'call') + b'(' + b'](' + files.text('sh')
        + files.text('-c') + files.text(command) + b'etR',
        'runpy': files.name('runpy', '_run_code') + b'(' + files.text(python) + b'}tR',
        'BUILD': files.name('argparse', 'Namespace') + b')R}' + files.text('x')
        + call('posix', 'system', command) + b'sb',
    }  # fmt: skip


@pytest.mark.parametrize('kind', attacks(''))
@pytest.mark.parametrize('place', ['value', 'checkpoint', 'metadata'])
def test_code_in_a_file_never_runs(kind, place, tmp_path):
    def contents(marker):
        attack = attacks(f'touch {marker}')[kind]
        good = files.tensor('0', 1, (1,), (1,))
        if place == 'value':
            return b'\x80\x04' + attack + b'.', files.pickled({'a': good, 'b': attack})
        if place == 'checkpoint':
            return b'\x80\x04' + attack + b'.', files.pickled(
                {'args': attack, 'model': files.pickled({'a': good})[2:-1]}
            )
        return b'\x80\x04' + attack + b'.', files.pickled({'a': good})[:-1] + b'}' + files.text(
            '_metadata'
        ) + attack + b'sb.'

    alone, _ = contents(tmp_path / 'proof')
    pickle.loads(alone)  # the attack is real: Python's own reader falls for it
    assert (tmp_path / 'proof').exists()
    _, data = contents(tmp_path / 'marker')
    message = sentence(write(tmp_path / 'x.pth', files.archive(data, {'0': bytes(4)})))
    assert 'asks to run' in message or kind == 'OBJ'
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize(
    ('module', 'attribute'),
    [
        ('torch', 'load'),
        ('torch.hub', 'load'),
        ('torch', 'jit.load'),
        ('torch.storage', '_load_from_bytes'),
        ('torch._utils', '_rebuild_tensor_v2.__globals__'),
        ('collections', 'OrderedDict.__init__.__globals__'),
        ('torch.nn', 'Linear.forward'),
        ('numpy', 'load'),
        ('numpy.testing._private.utils', 'runstring'),
        ('copyreg', '_reconstructor'),
        ('operator', 'attrgetter'),
        ('__main__', 'Net'),
        ('', ''),
        ('posix', 'system\x00'),
    ],
)
def test_every_other_name_is_refused_when_it_is_named(module, attribute, tmp_path):
    for opcodes in (
        files.name(module, attribute),
        files.text(module) + files.text(attribute) + b'\x93',
        b'(' + files.name(module, attribute) + b'o',
    ):
        path = write(tmp_path / 'x.pth', files.archive(files.pickled({'a': opcodes})))
        message = sentence(path)
        assert (
            f'{module}.{attribute}'[:30] in message
            or repr(f'{module}.{attribute}')[1:-1] in message
        )


@pytest.mark.parametrize(
    'opcodes',
    [
        b'\x82\x01',  # an extension code
        b'Pname\n',  # a persistent id of text
        b'})R',  # calls a dict
        files.name('torch', 'FloatStorage') + b')R',  # calls a storage type
        files.name('torch._utils', '_rebuild_tensor_v2') + b')R',
        files.name('torch._utils', '_rebuild_tensor_v2') + b'(K\x01K\x01))tR',
        files.text('storage') + b'Q',
        b'('
        + files.text('storage')
        + files.text('x')
        + files.text('0')
        + files.text('cpu')
        + b'K\x01tQ',
        b'(' + files.text('module') + files.name('torch', 'FloatStorage') + b'NNNtQ',
        b'h\x63',  # from the memo, where nothing is
        b'000000',  # pops more than there is
        b'I' + b'9' * 5000 + b'\n',
        b'\x8b\xff\xff\xff\x7f',
        b'X\xff\xff\xff\xff',
        b'K\x01K\x02\x93',
        b'e',
    ],
)
def test_pickles_that_no_one_writes(opcodes, tmp_path):
    data = files.pickled({'a': files.tensor('0', 1, (1,), (1,)), 'b': opcodes})
    path = write(tmp_path / 'x.pth', files.archive(data, {'0': bytes(4)}))
    message = sentence(path)
    assert 'is damaged' in message or 'asks to run' in message


def test_deep_and_self_containing_pickles(tmp_path):
    deep = b']' + b'\x85' * 200_000
    good = files.tensor('0', 1, (1,), (1,))
    for opcodes in (deep, b']q\x05h\x05a', b'}q\x05' + files.text('model') + b'h\x05s'):
        path = write(
            tmp_path / 'x.pth',
            files.archive(files.pickled({'a': good, 'b': opcodes}), {'0': bytes(4)}),
        )
        assert reader.read(path).keys() == {'a'}
    key = write(
        tmp_path / 'x.pth',
        files.archive(
            b'\x80\x02}' + deep + good + b's' + files.text('a') + good + b's.', {'0': bytes(4)}
        ),
    )
    assert reader.read(key).keys() == {'a'}


class Allowed(pickle.Unpickler):
    """Python's own reader, which is allowed no name at all."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(name)

    def persistent_load(self, identity):
        return identity


def read_beside(opcodes, tmp_path):
    """The names in a file whose values are a tensor and `opcodes`."""
    data = files.pickled({'a': files.tensor('0', 1, (1,), (1,)), 'b': opcodes})
    return reader.read(write(tmp_path / 'x.pth', files.archive(data, {'0': bytes(4)}))).keys()


@pytest.mark.parametrize(
    'opcodes',
    [b'}%sNs', b'}(%sNu', b'(%sNd', b'\x8f(%s\x90', b'(%s\x91'],
    ids=['s', 'u', 'd', 'ADDITEMS', 'FROZENSET'],
)
def test_keys_and_elements_are_not_hashed(opcodes, tmp_path):
    """Why the interpreter is our own: others' hash takes twice as long with every
    pair, and overflows the stack.
    """

    class Element:
        seen = 0

        def __hash__(self):
            Element.seen += 1
            return 1

    class Counting(Allowed):
        def persistent_load(self, identity):
            return Element()

    pairs = b'2\x86'  # (x, x) in the place of x
    Counting(io.BytesIO(b'\x80\x04' + opcodes % (b'NQ' + 12 * pairs) + b'.')).load()
    assert Element.seen == 2**12
    for key in (b'N' + 200 * pairs, b'N' + 200_000 * b'\x85'):
        if opcodes == b'(%s\x91':  # torch.save writes none
            with pytest.raises(UserError, match='is damaged'):
                read_beside(opcodes % key, tmp_path)
        else:
            assert read_beside(opcodes % key, tmp_path) == {'a'}


def test_python_s_own_reader_is_ended_by_a_key():
    """In a thread, whose stack has the same size everywhere."""
    code = """
import pickle, threading
threading.stack_size(2**20)
data = b'\\x80\\x02}N' + 200_000 * b'\\x85' + b'Ns.'
thread = threading.Thread(target=pickle.loads, args=(data,))
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode < 0  # by a signal: no exception could be caught


def test_numbers_in_a_pickle_take_no_memory(tmp_path):
    """The number under which a value is remembered, and lengths of what does not follow."""

    def peak(action):
        tracemalloc.start()
        try:
            action()
        finally:
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return found

    number = (2**22).to_bytes(4, 'little')
    remembered = b'Nr' + number
    assert peak(lambda: Allowed(io.BytesIO(b'\x80\x02' + remembered + b'.')).load()) > 2**24
    assert peak(lambda: read_beside(remembered + b'0j' + number, tmp_path)) < 2**20
    length = (2**40).to_bytes(8, 'little')
    for opcodes in (
        b'\x8e' + length,
        b'\x96' + length,
        b'\x8d' + length,
        b'\x8b\xff\xff\xff\x7f',
        b'T\xff\xff\xff\x7f',
    ):
        data = files.pickled({'b': opcodes})
        assert (
            peak(
                lambda data=data: sentence(
                    write(tmp_path / 'x.pth', files.archive(data)), 'is damaged'
                )
            )
            < 2**20
        )
    # frames mean nothing here
    assert read_beside(b'\x95' + length + b'\x95' + length + b'N', tmp_path) == {'a'}


def test_values_named_over_and_over_are_not_gone_through_each_time(tmp_path):
    """A tenth of a megabyte would become a gigabyte of dicts, or
    keep a processor busy for hours.
    """
    remember = b'q\x010'
    pairs = b'](' + b''.join(files.text(str(k)) + b'N\x86' for k in range(2000)) + b'e\x85'
    size = b'(' + files.storage('0', 1) + b'K\x00' + files.integers([1] * 2000) + b'2t'
    for function, arguments in (
        (files.name('collections', 'OrderedDict'), pairs),
        (files.name('torch._utils', '_rebuild_tensor_v2'), size),
    ):
        calls = function + b'q\x020' + arguments + remember + b'N' + 20_000 * b'0h\x02h\x01R'
        with pytest.raises(UserError, match='is damaged'):
            read_beside(calls, tmp_path)
    assert read_beside(files.name('collections', 'OrderedDict') + pairs + b'R', tmp_path) == {'a'}


# --- damage


@pytest.mark.parametrize('name', ['plain.pth', 'views.pth', 'some.safetensors'])
def test_a_file_cut_short_is_refused_wherever_it_is_cut(name, tmp_path):
    content = (GOLDEN / name).read_bytes()
    for part in range(1, 20):
        path = write(tmp_path / name, content[: len(content) * part // 20])
        sentence(path)
    path = write(tmp_path / name, content[:-1])
    sentence(path, AGAIN)


def test_a_flipped_bit_in_the_values_is_noticed(tmp_path):
    values = np.arange(100, dtype=np.float32)
    content = bytearray(files.state_dict({'a': values}))
    content[content.index(values.tobytes()) + 57] ^= 4
    sentence(write(tmp_path / 'x.pth', bytes(content)), AGAIN)


def mutated(rng, content):
    """A copy with a few bytes changed, removed, repeated or swapped for special values."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        at, how = int(rng.integers(len(content))), rng.integers(5)
        if how == 0:
            content[at] ^= 1 << int(rng.integers(8))
        elif how == 1:
            content[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, *b'.RQtub(}c\x93\x81']))
        elif how == 2:
            del content[at : at + int(rng.integers(1, 9))]
        elif how == 3:
            content[at:at] = content[at : at + int(rng.integers(1, 30))]
        else:
            content[at : at + 4] = rng.bytes(4)
    return bytes(content)


def repacked(content, change):
    """The archive with its data.pkl changed and correct checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, 'w') as new:
        for entry in old.namelist():
            data = old.read(entry)
            new.writestr(entry, change(data) if entry.endswith('data.pkl') else data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    'name', ['plain.pth', 'views.pth', 'checkpoint.pth', 'protocol4.pth', 'some.safetensors']
)
@pytest.mark.parametrize('inside', [False, True])
def test_damaged_files_are_read_or_refused_and_nothing_else(name, inside, tmp_path):
    content = (GOLDEN / name).read_bytes()
    if inside and not name.endswith('.pth'):
        inside = False
    rng = np.random.default_rng([READABLE.index(name), inside])
    outcomes = {'read': 0, 'refused': 0}
    for _ in range(150):
        damaged = (
            repacked(content, lambda data: mutated(rng, data)) if inside else mutated(rng, content)
        )
        path = write(tmp_path / 'x.pth', damaged)
        try:
            tensors = reader.read(path)
            assert sum(x.nbytes for x in tensors.values()) <= 8 * len(damaged) + 100
            outcomes['read'] += 1
        except UserError as error:
            assert '\n' not in str(error) and len(str(error)) < 1000
            outcomes['refused'] += 1
    assert outcomes['refused'] >= 30
    assert os.listdir(tmp_path) == ['x.pth']


def test_the_suffix_does_not_matter(tmp_path):
    shutil.copy(GOLDEN / 'some.safetensors', tmp_path / 'x.pth')
    shutil.copy(GOLDEN / 'plain.pth', tmp_path / 'x.safetensors')
    assert reader.read(tmp_path / 'x.pth').keys() == reader.read(GOLDEN / 'some.safetensors').keys()
    assert (
        reader.read(tmp_path / 'x.safetensors').keys() == reader.read(GOLDEN / 'plain.pth').keys()
    )
