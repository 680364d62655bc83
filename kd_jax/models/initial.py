"""Initial values drawn on the host: no random operation is traced or compiled,
which saves seconds a model.

Every layer says how its parameters start (`Normal`, `Uniform`, `Constant`) through `param`;
`draw` collects that while it traces shapes only, and draws with NumPy. `module.init` works as
usual, with other random numbers.
"""

import contextlib
import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Normal:
    std: float

    def __call__(self, key: jax.Array, shape: Sequence[int]) -> jax.Array:
        return self.std * jax.random.normal(key, shape)

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        return np.float32(self.std) * rng.standard_normal(shape, np.float32)


@dataclasses.dataclass(frozen=True)
class Uniform:
    bound: float  # from minus this to this

    def __call__(self, key: jax.Array, shape: Sequence[int]) -> jax.Array:
        return jax.random.uniform(key, shape, minval=-self.bound, maxval=self.bound)

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        return np.float32(self.bound) * (2 * rng.random(shape, np.float32) - 1)


@dataclasses.dataclass(frozen=True)
class Constant:
    value: float

    def __call__(self, key: jax.Array, shape: Sequence[int]) -> jax.Array:
        return jnp.full(shape, self.value, jnp.float32)

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        return np.full(shape, self.value, np.float32)


Start = Normal | Uniform | Constant

# BatchNorm's running statistics, and the parameters of norms that Flax makes.
KNOWN = {'scale': Constant(1.0), 'bias': Constant(0.0), 'mean': Constant(0.0), 'var': Constant(1.0)}

_recorded: ContextVar[dict[tuple[str, ...], Start] | None] = ContextVar('recorded', default=None)


def param(module: nn.Module, name: str, start: Start, shape: Sequence[int]) -> jax.Array:
    """`module.param(name, ...)` that starts as `start` says."""
    record = _recorded.get()
    if record is not None:
        record[*module.path, name] = start
    return module.param(name, start, tuple(shape))


def starts_by_itself() -> None:
    """Called in a module whose parameters are not made by `param`, whatever they are called."""
    record = _recorded.get()
    if record is not None:
        record[()] = Constant(0.0)


@contextlib.contextmanager
def _recording() -> Iterator[dict[tuple[str, ...], Start]]:
    record: dict[tuple[str, ...], Start] = {}
    token = _recorded.set(record)
    try:
        yield record
    finally:
        _recorded.reset(token)


class Plan:
    """How a module's variables start. `init(key)` is its `init` with its other
    arguments, or its `init_with_output`.

    Tracing it once is enough for all seeds. shapes: of the variables; output: of the
    output, with `init_with_output`.
    """

    def __init__(self, init: Callable[[jax.Array], Any]):
        with _recording() as record:
            result = jax.eval_shape(lambda: init(jax.random.key(0)))
        self.output, shapes = result if isinstance(result, tuple) else (None, result)
        self.shapes = flax.core.unfreeze(shapes)
        self._init = init
        flat = flax.traverse_util.flatten_dict(self.shapes)
        known = {} if () in record else KNOWN
        self._starts = {path: record.get(path[1:], known.get(path[-1])) for path in flat}

    def draw(self, seed: Sequence[int]) -> dict[str, Any]:
        """The variables as NumPy arrays; a parameter's values depend on
        `seed` and on its path alone.

        A module with parameters that were not made by `param` is initialised by `init` itself.
        """
        flat = flax.traverse_util.flatten_dict(self.shapes)
        starts = {path: start for path, start in self._starts.items() if start is not None}
        if starts.keys() != flat.keys():
            key = jax.random.key(0)
            for number in seed:
                key = jax.random.fold_in(key, number)
            result = jax.device_get(jax.jit(self._init)(key))
            return result[1] if isinstance(result, tuple) else result
        for path, leaf in flat.items():
            rng = np.random.default_rng([*seed, zlib.crc32('/'.join(path).encode())])
            flat[path] = starts[path].draw(rng, leaf.shape)
        return flax.traverse_util.unflatten_dict(flat)


def draw(init: Callable[[jax.Array], Any], seed: Sequence[int]) -> dict[str, Any]:
    """The variables that `init(key)` makes, for one seed; see `Plan`."""
    return Plan(init).draw(seed)
