"""Running one step on one or many devices: `jit` over a mesh or `pmap`. The only module that knows which of the two."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kd_jax.errors import UserError, unknown

AXIS = 'batch'


class Parallel:
    """Data parallelism over all devices of all processes.

    `mode` is 'jit' (global view: XLA divides the batch), 'pmap' (each device sees its share, under the axis name
    'batch') or 'auto' (jit on one device, pmap on several). State, teachers and data are replicated and have no
    device axis in either mode; only the last argument of a step, the batch, is divided.
    """

    def __init__(self, mode: str = 'auto', devices: int | None = None):
        if mode not in ('auto', 'jit', 'pmap'):
            raise unknown('parallel mode', mode, ('auto', 'jit', 'pmap'))
        self.devices = jax.devices()[:devices]
        self.mode = mode if mode != 'auto' else ('jit' if len(self.devices) == 1 else 'pmap')
        self.axis_name = AXIS if self.mode == 'pmap' else None
        self.local = [d for d in self.devices if d.process_index == jax.process_index()]
        # Under pmap each process holds its own replicas; under jit an array spans the devices of all processes.
        mesh = Mesh(np.array(self.local if self.mode == 'pmap' else self.devices), (AXIS,))
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.divided = NamedSharding(mesh, PartitionSpec(AXIS))

    def __len__(self) -> int:
        return len(self.devices)

    def check_batch_size(self, batch_size: int, field: str, parts: int = 1) -> None:
        """Raises `UserError` unless the devices can share `batch_size` examples equally, each in `parts` equal parts."""
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
        return jax.tree.map(lambda x: self._put(np.asarray(x)), tree)

    def _put(self, x: np.ndarray) -> jax.Array:
        if self.replicated.is_fully_addressable:
            return jax.device_put(x, self.replicated)
        return jax.make_array_from_process_local_data(self.replicated, x, x.shape)

    def divide(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """This process's share of a global batch of `[B, ...]` host arrays, laid out for `compile`d steps."""
        return {name: self._divide(x) for name, x in batch.items()}

    def _divide(self, x: np.ndarray):
        if len(self) == 1 and self.mode == 'jit':
            return x
        share = x.shape[0] // len(self) * len(self.local)
        first = share * jax.process_index() if len(self.local) < len(self) else 0
        mine = x[first : first + share]
        if self.mode == 'pmap':
            return mine.reshape(len(self.local), -1, *x.shape[1:])
        return jax.make_array_from_process_local_data(self.divided, mine, x.shape)

    def compile(self, step: Callable, *, arguments: int, donate_first: bool = False) -> Callable:
        """`step(a1, ..., batch)` with `arguments` arguments, of which all but the last are replicated.

        Outputs are replicated. With `donate_first` the buffers of the first argument are reused for the output and
        must not be read afterwards.
        """
        donate = (0,) if donate_first else ()
        if self.mode == 'pmap':
            axes = (None,) * (arguments - 1) + (0,)
            return jax.pmap(step, AXIS, in_axes=axes, out_axes=None, donate_argnums=donate, devices=self._pmap_devices())
        shardings = (self.replicated,) * (arguments - 1) + (self.divided,)
        return jax.jit(step, in_shardings=shardings, out_shardings=self.replicated, donate_argnums=donate)

    def _pmap_devices(self):
        return None if len(self) == jax.device_count() else self.devices

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process; all processes must ask together."""
        if jax.process_count() == 1:
            return flag
        return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
