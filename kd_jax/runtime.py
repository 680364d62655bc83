"""What is set once for the whole process, before JAX starts its devices: memory, CPU
devices, compilation cache, profile.
"""

import contextlib
import ctypes
import functools
import gc
import hashlib
import os
import platform
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import jax

from kd_jax import cache
from kd_jax.errors import UserError

MOST_CPU_DEVICES = 8
MOST_MAPS = 15_000

# mallopt's parameters (malloc.h of glibc) and their values.
_KEEP_MEMORY = {
    # M_MMAP_MAX: no buffer gets pages of its own, which the kernel would zero again at every step
    -4: 0,
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD: freed memory is not given back
    -2: 2**28,  # M_TOP_PAD: grow in large pieces
    # M_ARENA_MAX: XLA's threads would otherwise keep arenas of their
    # own, which use mmap all the same
    -8: 1,
}


def prepare(*, fast: bool = True, single_process: bool = True) -> None:
    """Sets up this process; to be called before anything asks JAX for its devices.

    Programs that XLA compiled are kept on disk (see `cache_directory`) unless JAX was given
    a cache already. With `fast`, Python looks for garbage less often; on Linux with glibc,
    freed memory stays with the process; and where there is no accelerator and the process is
    alone, the processor's cores become devices, up to `MOST_CPU_DEVICES`, unless XLA_FLAGS
    or JAX say how many there are.
    """
    # A cache on a full disk costs time only.
    warnings.filterwarnings('ignore', 'Error (reading|writing) persistent compilation cache')
    directory = cache_directory()
    config: Any = jax.config  # which has its options at run time only
    if directory is not None and not config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', str(directory))
        if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
            jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
    if not fast:
        return
    # Tracing makes millions of small objects that live on: Python would search them for cycles
    # every 700, a tenth of a start.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    if _has_glibc():
        library = ctypes.CDLL(None)
        for parameter, value in _KEEP_MEMORY.items():
            library.mallopt(parameter, value)
    chosen = (
        'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
        or cpu_devices() > 0
    )
    if single_process and not chosen:
        with contextlib.suppress(RuntimeError):  # a notebook may have started them
            jax.config.update('jax_num_cpu_devices', min(cores(), MOST_CPU_DEVICES))


def cpu_devices() -> int:
    """How many devices JAX was told to make of the processor; 0 or less: it was not told."""
    config: Any = jax.config  # which has its options at run time only
    return config.jax_num_cpu_devices


def trim() -> None:
    """Gives freed memory back to the system, with glibc; what was freed and is needed
    at every step is better kept.
    """
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def forget_programs(most: int = MOST_MAPS) -> None:
    """Frees compiled programs that nobody uses any more, if this process has
    more than `most` maps of memory.

    Each program for a CPU takes several. Linux allows a process 65,530, and XLA
    crashes when it gets no more.
    """
    maps = Path('/proc/self/maps')
    if maps.exists() and len(maps.read_bytes().splitlines()) > most:
        jax.clear_caches()
        gc.collect()


@functools.cache
def _has_glibc() -> bool:
    return platform.libc_ver()[0] == 'glibc'


def cores() -> int:
    """The processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def device_kind(device: jax.Device) -> str:
    """The name of an accelerator; of a CPU that of the processor, where Linux tells it."""
    if device.platform != 'cpu':
        return device.device_kind
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return device.device_kind
    names = (line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    return next(names, device.device_kind)


def cache_directory() -> Path | None:
    """Where compiled programs are kept, in `cache.folder`; None: nowhere.

    Programs for a CPU hold its machine code: each kind of processor has a folder of its own, so
    that machines can share a home directory.
    """
    base = cache.folder()
    if base is None:
        return None
    try:
        lines = [
            line
            for line in Path('/proc/cpuinfo').read_text().splitlines()
            if line.startswith(('flags', 'Features'))
        ]
    except OSError:
        lines = []
    kind = hashlib.sha256((platform.machine() + ''.join(lines[:1])).encode()).hexdigest()[:12]
    return base / f'{platform.machine()}-{kind}'


class Trace:
    """Writes a trace of some of a run's steps to `directory`, for TensorBoard and
    Perfetto; a context manager.

    steps: (first, last), by the number of updates done before; () for no trace. It
    begins and ends with a dispatch.
    """

    def __init__(self, directory: Path, steps: Sequence[int]):
        self.directory, self.steps = directory, tuple(steps)
        self._active = self.begun = False

    def at(self, step: int) -> None:
        """To be called before each dispatch with the updates done.

        Raises:
          UserError: if the profiler cannot start, such as when another one is active.
        """
        if self.steps and not self._active and self.steps[0] <= step < self.steps[1]:
            options = jax.profiler.ProfileOptions()
            # Python's own calls would fill the trace and slow the steps
            options.python_tracer_level = 0
            try:
                jax.profiler.start_trace(
                    str(self.directory), create_perfetto_trace=True, profiler_options=options
                )
            except RuntimeError as error:
                raise UserError(
                    f'the profiler cannot start ({error}); set --config.profile="()"'
                ) from error
            self._active = self.begun = True
        elif self._active and step >= self.steps[1]:
            self._stop()

    def _stop(self) -> None:
        jax.block_until_ready(jax.device_put(0) + 1)  # which comes after the steps
        jax.profiler.stop_trace()
        self._active, self.steps = False, ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            self._stop()
