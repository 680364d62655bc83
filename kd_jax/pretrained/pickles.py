"""The pickles inside PyTorch's files, interpreted without running anything.

A pickle is a program for a stack machine that may call any function of any module. This
interpreter knows the few functions that a state dict needs, and does itself what they would do;
every other name is refused when it is named. No name is ever looked up, so there is nothing
that a hostile file could call.

Python's own `pickle.Unpickler`, however few names its `find_class` allows, cannot be bounded: it
hashes what a file makes a key or an element of a set, where tuples in tuples take for ever or
overflow the stack and end the process, and it makes room for as many values as the number says
under which one is remembered.
"""

import pickletools
import struct
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple


class Refused(Exception):
    """The pickle names a function or class that a state dict does not
    need; `str` is its dotted name.
    """


class Malformed(Exception):
    """The bytes are not a whole pickle that this interpreter knows."""


class Global(NamedTuple):
    """A function or class, by name only."""

    name: str


class Storage(NamedTuple):
    """The memory of one or several tensors: an entry of the archive."""

    kind: str  # 'FloatStorage'
    key: str
    numel: int


class Tensor(NamedTuple):
    """A view of a storage; all numbers count elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Inert:
    """What stands for a value that weights do not need, such as a training script's arguments;
    made by the function or class `name`.
    """

    def __init__(self, name: str):
        self.name = name


_KINDS = (
    'Float Double Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble Untyped'
)
STORAGES = tuple(f'{kind}Storage' for kind in _KINDS.split())
REBUILD = ('torch._utils._rebuild_tensor_v2', 'torch._utils._rebuild_tensor')
# Harmless companions of the weights in checkpoints of training scripts. They are not made:
# an `Inert` takes their place.
INERT = {
    *(
        f'torch.{name}'
        for name in ('Size', 'device', 'memory_format', 'contiguous_format', 'strided')
    ),
    *(f'torch.{kind}{bits}' for kind in ('int', 'uint') for bits in (8, 16, 32, 64)),
    *(
        f'torch.{name}'
        for name in ('float16', 'bfloat16', 'float32', 'float64', 'complex64', 'complex128', 'bool')
    ),
    'torch._utils._rebuild_tensor_v3',  # of element types that weights do not have
    'torch.Generator',
    'argparse.Namespace',
    'collections.Counter',
    'collections.defaultdict',
    'builtins.set',
    '__builtin__.set',
    'builtins.dict',
    'builtins.list',
    'builtins.int',
    'builtins.float',
    '__builtin__.dict',
    '__builtin__.list',
    '_codecs.encode',
    'numpy.dtype',
    'numpy.ndarray',
    'numpy.float64',
    *(
        f'numpy.{core}.multiarray.{name}'
        for core in ('core', '_core')
        for name in ('scalar', '_reconstruct')
    ),
}
KNOWN = {
    'collections.OrderedDict',
    'torch._utils._rebuild_parameter',
    'torch.storage.UntypedStorage',
    *(f'torch.{name}' for name in STORAGES),
    *REBUILD,
    *INERT,
}

# What a file may hold instead of a state dict, in words.
_WORDS = {
    list: 'a list',
    tuple: 'a tuple',
    str: 'text',
    bytes: 'bytes',
    bytearray: 'bytes',
    bool: 'a truth value',
    int: 'a number',
    float: 'a number',
    type(None): 'nothing',
    Global: 'the name of a function or class',
    Storage: 'memory of a tensor without its shape',
    Tensor: 'a single tensor',
}

_VALUES = {
    'INT',
    'BININT',
    'BININT1',
    'BININT2',
    'LONG',
    'LONG1',
    'LONG4',
    'FLOAT',
    'BINFLOAT',
    'STRING',
    'BINSTRING',
}
_VALUES |= {
    'SHORT_BINSTRING',
    'UNICODE',
    'SHORT_BINUNICODE',
    'BINUNICODE',
    'BINUNICODE8',
    'BINBYTES',
    'SHORT_BINBYTES',
}
_VALUES |= {'BINBYTES8', 'BYTEARRAY8'}
_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
_TUPLES = {'EMPTY_TUPLE': 0, 'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}
_EMPTY: dict[str, Callable[[], Any]] = {
    'EMPTY_DICT': dict,
    'EMPTY_LIST': list,
    'EMPTY_SET': partial(Inert, 'builtins.set'),
}


def interpret(data: bytes) -> Any:
    """What the pickle describes, with `Tensor`s whose storages are still to be read.

    Raises:
      Refused: if it names something that is not in `KNOWN`.
      Malformed: if it is cut short or is no pickle of a known kind.
    """
    try:
        # Warnings of what damaged text would be in Python's source.
        with warnings.catch_warnings(action='ignore'):
            return _Machine().run(data)
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        EOFError,
        struct.error,
    ) as error:
        # Python's own readers raise these for a pickle with damaged bytes.
        raise Malformed(str(error)) from error


def in_words(value: Any) -> str:
    """What a pickle holds, such as 'a list'; of a dict, the first names in it."""
    if isinstance(value, Inert):
        return f'an object of {value.name}'
    if isinstance(value, dict):
        return f'a dict of {", ".join(repr(key[:80]) for key in [*value][:8]) or "nothing"}'
    return _WORDS.get(type(value), 'something else')


class _Machine:
    """The stack machine: `stack` is the part above the last mark, `marked` what is below it."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.left = 0  # items that calls may still go through: one list may be an argument of many

    def run(self, data: bytes) -> Any:
        self.left = len(data)
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == 'STOP':
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise Malformed('no end')

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            stack.append(tuple(self.take(_TUPLES[name])))
        elif name == 'MARK':
            self.marked.append(stack)
            self.stack = []
        elif name in ('TUPLE', 'LIST', 'DICT'):
            items = self.above_mark()
            value = _dict_of(zip(items[::2], items[1::2], strict=True)) if name == 'DICT' else items
            self.stack.append(tuple(items) if name == 'TUPLE' else value)
        elif name in ('APPEND', 'APPENDS', 'ADDITEMS'):
            items = self.take(1) if name == 'APPEND' else self.above_mark()
            if isinstance(self.stack[-1], list):
                self.stack[-1].extend(items)
        elif name in ('SETITEM', 'SETITEMS'):
            items = self.take(2) if name == 'SETITEM' else self.above_mark()
            if isinstance(self.stack[-1], dict):
                self.stack[-1].update(_dict_of(zip(items[::2], items[1::2], strict=True)))
        elif name in ('BINPUT', 'LONG_BINPUT', 'PUT', 'MEMOIZE'):
            self.memo[len(self.memo) if name == 'MEMOIZE' else argument] = stack[-1]
        elif name in ('BINGET', 'LONG_BINGET', 'GET'):
            stack.append(self.memo[argument])
        elif name == 'GLOBAL':
            stack.append(_known(argument.replace(' ', '.', 1)))
        elif name == 'STACK_GLOBAL':
            module, attribute = self.take(2)
            stack.append(
                _known(
                    f'{module}.{attribute}'
                    if isinstance(module, str) and isinstance(attribute, str)
                    else '?'
                )
            )
        elif name in ('REDUCE', 'NEWOBJ', 'NEWOBJ_EX'):
            function, arguments, *_ = self.take(3 if name == 'NEWOBJ_EX' else 2)
            self.spend(arguments)
            self.stack.append(_call(function, arguments))
        elif name == 'BUILD':
            # Attributes of an object, such as a state dict's `_metadata`: nobody reads them.
            self.take(1)
        elif name == 'BINPERSID':
            stack.append(_storage(stack.pop()))
        elif name == 'POP':
            self.take(1)
        elif name == 'DUP':
            stack.append(stack[-1])
        elif name == 'INST':
            raise Refused(argument.replace(' ', '.', 1))
        elif name not in ('PROTO', 'FRAME'):
            raise Malformed(f'opcode {name}')

    def take(self, count: int) -> list[Any]:
        """The last `count` values, removed from the stack."""
        if count > len(self.stack):
            raise Malformed('the stack is empty')
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def spend(self, arguments: Any) -> None:
        """Counts the items of a call's arguments. A file has a byte for each, unless
        it names them over and over.
        """
        if isinstance(arguments, tuple):
            self.left -= sum(
                len(argument) for argument in arguments if type(argument) in (list, tuple, dict)
            )
        if self.left < 0:
            raise Malformed('the same values are arguments many times')

    def above_mark(self) -> list[Any]:
        """All values since the last mark, which is removed."""
        items, self.stack = self.stack, self.marked.pop()
        return items


def _dict_of(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """The pairs whose key is a name. No weights have another key, and hashing one
    could take any time and depth.
    """
    return {key: value for key, value in pairs if isinstance(key, str)}


def _known(name: str) -> Global:
    if name not in KNOWN:
        raise Refused(name)
    return Global(name)


def _call(function: Any, arguments: Any) -> Any:
    """What `function(*arguments)` would return."""
    if not isinstance(function, Global):
        raise Malformed('calls what is no function')
    if not isinstance(arguments, tuple):
        raise Malformed('arguments are no tuple')
    if function.name == 'collections.OrderedDict':
        return _dict_of((key, value) for key, value in (arguments[0] if arguments else ()))
    if function.name == 'torch._utils._rebuild_parameter':
        return arguments[0]
    if function.name in REBUILD:
        storage, offset, size, stride = arguments[:4]
        if (
            not isinstance(storage, Storage)
            or not isinstance(size, tuple)
            or not isinstance(stride, tuple)
        ):
            raise Malformed('a tensor without storage, size or stride')
        if not all(type(n) is int for n in (offset, *size, *stride)):
            raise Malformed('a size that is no integer')
        return Tensor(storage, offset, size, stride)
    if function.name in INERT:
        return arguments[0] if function.name == 'torch.Size' and arguments else Inert(function.name)
    raise Refused(function.name)


def _storage(identity: Any) -> Storage:
    """The storage that the persistent id `('storage', type, key, location, numel)` means."""
    if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != 'storage':
        raise Malformed('an unknown persistent id')
    _, kind, key, _, numel = identity
    short = kind.name.rsplit('.', 1)[-1]
    if (
        short not in (*STORAGES, 'UntypedStorage')
        or not isinstance(key, str)
        or type(numel) is not int
        or numel < 0
    ):
        raise Malformed('an unknown storage')
    return Storage(short, key, numel)
