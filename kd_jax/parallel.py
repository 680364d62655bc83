"""Running one step on one or many devices: `jit` over a mesh or `pmap`. The only module
that knows which of the two.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kd_jax import runtime
from kd_jax.errors import UserError, unknown
from kd_jax.locking import locked
from kd_jax.networks import PRECISIONS
from kd_jax.workdir import PathLike

AXIS = 'batch'
# XLA's CPU backend removes optimisation barriers before it fuses, so that a residual
# network's sums are computed again and again, and rematerialisation saves no memory;
# without that pass neither happens.
KEEP_BARRIERS = {'xla_disable_hlo_passes': 'cse_barrier_expander'}
# One device a core leaves nothing to run concurrently within a device.
ONE_DEVICE_A_CORE = {'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED'}


class Parallel:
    """Data parallelism over all devices of all processes.

    `mode` is 'jit' (global view: XLA divides the batch), 'pmap' (each device sees its share, under
    the axis name 'batch') or 'auto' (jit on one device, pmap on several). State, teachers and data
    are replicated and have no device axis in either mode; only the last argument of a step, the
    batch, is divided. `fast` allows options of XLA's CPU backend that change speed alone.
    """

    def __init__(self, mode: str = 'auto', devices: int | None = None, *, fast: bool = True):
        if mode not in ('auto', 'jit', 'pmap'):
            raise unknown('parallel mode', mode, ('auto', 'jit', 'pmap'))
        if devices is not None and devices > jax.device_count():
            raise UserError(
                f'devices is {devices}; it must be 0 (all) or at most '
                f'{jax.device_count()}, which is how many there are'
            )
        self.asked, self.fast = mode, fast
        self.devices = jax.devices()[:devices]
        self.mode = mode if mode != 'auto' else ('jit' if len(self.devices) == 1 else 'pmap')
        self.axis_name = AXIS if self.mode == 'pmap' else None
        self.local = [d for d in self.devices if d.process_index == jax.process_index()]
        # Under pmap each process holds its own replicas; under jit an array spans
        # the devices of all processes.
        mesh = Mesh(np.array(self.local if self.mode == 'pmap' else self.devices), (AXIS,))
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self._pmap_devices = None if len(self.devices) == jax.device_count() else self.devices

    def for_batch(self, batch_size: int, parts: int = 1) -> 'Parallel':
        """This, or fewer of its devices where they are the cores of a CPU: those that share the
        batch with 16 examples each.

        Devices that are no cores are all used: a batch that does not fit them is
        refused (`check_batch_size`).
        """
        if not _cores_are_devices() or not self.on_cpu:
            return self
        fits = [
            n
            for n in range(1, len(self) + 1)
            if batch_size % (n * parts) == 0 and batch_size >= 16 * n
        ]
        return Parallel(self.asked, max(fits, default=1), fast=self.fast)

    def __len__(self) -> int:
        return len(self.devices)

    @property
    def on_cpu(self) -> bool:
        return self.devices[0].platform == 'cpu'

    def check_batch_size(self, batch_size: int, field: str, parts: int = 1) -> None:
        """Raises `UserError` unless the devices can share `batch_size` examples equally,
        each in `parts` equal parts.
        """
        unit = len(self) * parts
        if batch_size <= 0 or batch_size % unit:
            how = f'{len(self)} devices' + (f' in {parts} parts each' if parts > 1 else '')
            near = max(round(batch_size / unit), 1) * unit
            raise UserError(
                f'a batch of {batch_size} cannot be shared equally by {how}; '
                f'take a multiple of {unit}, such as --config.{field}={near}'
            )

    def replicate(self, tree: Any) -> Any:
        """A copy of every array of `tree` on every device."""

        def put(x: Any) -> jax.Array:
            x = np.asarray(x)
            if self.replicated.is_fully_addressable:
                return jax.device_put(x, self.replicated)
            return jax.make_array_from_process_local_data(self.replicated, x, x.shape)

        return jax.tree.map(put, tree)

    def divide(self, batch: dict[str, Any], *, axis: int = 0) -> dict[str, Any]:
        """This process's share of a global batch, host arrays with B on `axis`,
        laid out for `compile`d steps.
        """
        return self.lay_out(self.mine(batch, axis=axis), axis=axis)

    def mine(self, batch: dict[str, Any], *, axis: int = 0) -> dict[str, Any]:
        """This process's share of a global batch, host arrays with B on `axis`."""
        if len(self.local) == len(self):
            return batch

        def of(x: np.ndarray) -> np.ndarray:
            first, size = share(self, x.shape[axis])
            return x.take(np.arange(first, first + size), axis)

        return jax.tree.map(of, batch)

    def lay_out(self, batch: dict[str, Any], *, axis: int = 0) -> dict[str, Any]:
        """What `mine` gave, laid out for `compile`d steps."""
        local = len(self.local)

        def of(x: np.ndarray) -> np.ndarray | jax.Array:
            if self.mode == 'pmap':
                size = x.shape[axis] // local
                x = x[(slice(None),) * axis + (slice(0, size * local),)]
                return np.stack(np.split(x, local, axis))
            shape = list(x.shape)
            shape[axis] *= len(self) // local
            return jax.make_array_from_process_local_data(self._divided(axis), x, tuple(shape))

        return batch if len(self) == 1 and self.mode == 'jit' else jax.tree.map(of, batch)

    def _divided(self, axis: int) -> NamedSharding:
        return NamedSharding(self.replicated.mesh, PartitionSpec(*[None] * axis, AXIS))

    def compile(
        self,
        step: Callable[..., Any],
        precision: str,
        *,
        arguments: int,
        donate_first: bool = False,
        axis: int = 0,
        sharded: int | None = None,
    ) -> Callable[..., Any]:
        """`step(a1, ..., batch)` with `arguments` arguments, of which all
        but the last, and the one numbered `sharded` (see `shards`), are replicated.

        precision: of its products, in `PRECISIONS`. Outputs are replicated. With `donate_first`
        the buffers of the first argument are reused for the output and must not be read
        afterwards; where there is no such argument, several CPU devices finish one call before the
        next. `axis` is that of `divide`.
        """
        step, donate = with_products(step, precision), (0,) if donate_first else ()
        if self.mode == 'pmap':
            axes = (*(None if k != sharded else 0 for k in range(arguments - 1)), 0)
            compiled = jax.pmap(
                step,
                AXIS,
                in_axes=axes,
                out_axes=None,
                donate_argnums=donate,
                devices=self._pmap_devices,
            )
        else:
            whole = [self.replicated] * (arguments - 1)
            if sharded is not None:
                whole[sharded] = self._divided(0)
            shardings = (*whole, self._divided(axis))
            compiled = jax.jit(
                step, in_shardings=shardings, out_shardings=self.replicated, donate_argnums=donate
            )
        options = _options(self)
        compiled = _with_options(compiled, options) if options else compiled
        alone = len(self) == 1 or not self.on_cpu
        return compiled if alone or donate_first else _one_at_a_time(compiled)

    def compile_each(
        self,
        step: Callable[..., Any],
        precision: str,
        *,
        own: int,
        shared: int,
        donate_first: bool = False,
    ) -> Callable[..., Any]:
        """`step` on each device by itself: the first `own` arguments and all outputs
        have a device axis `[D, ...]`.

        The other arguments, `shared` of them, are the same for all. For one process.
        """
        axes = (0,) * own + (None,) * shared
        step, donate = with_products(step, precision), (0,) if donate_first else ()
        compiled = jax.pmap(
            step, in_axes=axes, out_axes=0, donate_argnums=donate, devices=self._pmap_devices
        )
        options = _options(self)
        return _with_options(compiled, options) if options else compiled


def free_memory(parallel: Parallel) -> float:
    """Bytes of memory that are free: of each device, or those of all that are cores."""
    memory = None if parallel.on_cpu else parallel.devices[0].memory_stats()
    if memory:
        return memory['bytes_limit'] - memory['bytes_in_use']
    return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def shards(parallel: Parallel, x: np.ndarray) -> jax.Array:
    """An array `[N, ...]` of which each device has a part, in order; the last part is filled up."""
    wide = len(parallel)
    size = -(-len(x) // wide)
    pieces = []
    for device in parallel.local:
        first = parallel.devices.index(device) * size
        rows = np.minimum(np.arange(first, first + size), len(x) - 1)
        piece = x[first : first + size] if first + size <= len(x) else x[rows]
        piece = np.asarray(piece)
        pieces.append(jax.device_put(piece[None] if parallel.mode == 'pmap' else piece, device))
    shape = (wide * size, *x.shape[1:])
    if parallel.mode == 'pmap':
        shape = (len(parallel.local), size, *x.shape[1:])
    return jax.make_array_from_single_device_arrays(shape, parallel._divided(0), pieces)


def share(parallel: Parallel, batch_size: int) -> tuple[int, int]:
    """(the first example of a global batch that is this process's, how many are)."""
    size = batch_size // len(parallel) * len(parallel.local)
    first = size * jax.process_index() if len(parallel.local) < len(parallel) else 0
    return first, size


def _options(parallel: Parallel) -> dict[str, str] | None:
    if not parallel.fast or not parallel.on_cpu or jax.process_count() > 1:
        return None
    return KEEP_BARRIERS | (ONE_DEVICE_A_CORE if len(parallel.local) > 1 else {})


class Collectives(NamedTuple):
    """Means and sums over the devices of an axis; without one, what there is."""

    axis_name: str | None

    def mean(self, tree: Any) -> Any:
        return jax.lax.pmean(tree, self.axis_name) if self.axis_name else tree

    def total(self, tree: Any) -> Any:
        return jax.lax.psum(tree, self.axis_name) if self.axis_name else tree

    def gather(self, tree: Any) -> Any:
        """The examples of all devices; what has no examples stays."""
        if not self.axis_name:
            return tree
        return jax.tree.map(
            lambda x: jax.lax.all_gather(x, self.axis_name, tiled=True) if x.ndim else x, tree
        )


def with_products(step: Callable[..., Any], precision: str) -> Callable[..., Any]:
    """`step`, traced with the products of a precision."""

    def traced(*arguments: Any) -> Any:
        with jax.default_matmul_precision(PRECISIONS[precision][1]):
            return step(*arguments)

    return traced


def _one_at_a_time(compiled: Any) -> Callable[..., Any]:
    """`compiled`, which waits for its results.

    Where calls do not wait for each other's results, one device can begin several; in each it keeps
    a thread while it waits for the other devices, until none is left for those to get there (XLA
    ends the process after 40 seconds).
    """

    def call(*arguments: Any) -> Any:
        return jax.block_until_ready(compiled(*arguments))

    call.lower = compiled.lower  # type: ignore[attr-defined]  # as jitted functions have it
    return call


def _with_options(jitted: Any, options: dict[str, str]) -> Callable[..., Any]:
    """A jit- or pmapped function compiled with options (which pmap does not take),
    once for each set of shapes.

    The compiler's memory, often more than a step's, is given back before the first step needs its
    own. For one process: a compiled function wants the shapes of all processes' shares together.
    """
    compiled: dict[Any, Callable[..., Any]] = {}

    def call(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        key = structure, tuple(map(jax.typeof, leaves))
        if key not in compiled:
            compiled[key] = jitted.lower(*arguments).compile(compiler_options=options)
            runtime.trim()
        return compiled[key](*arguments)

    call.lower = jitted.lower  # type: ignore[attr-defined]  # as jitted functions have it
    return call


def _cores_are_devices() -> bool:
    return runtime.cpu_devices() > 0


def in_any_process(flag: bool) -> bool:
    """Whether `flag` is set in any process; all processes must ask together."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


@contextlib.contextmanager
def only_here(directories: Iterable[PathLike], doing: str) -> Iterator[None]:
    """`kd_jax.locking.locked` of all these, by the process that writes files; all processes enter
    together, and get the sentence together.
    """
    with contextlib.ExitStack() as stack:
        found: UserError | None = None
        if is_main():
            try:
                for directory in directories:
                    stack.enter_context(locked(directory, doing))
            except UserError as error:
                found = error
        if in_any_process(found is not None):
            raise found or UserError(
                'the first process did not begin; what stands in its output is to be mended'
            )
        yield


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
