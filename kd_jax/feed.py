"""Batches whose images the host holds or decodes, read ahead of the devices by Grain."""

import contextlib
import dataclasses
import multiprocessing
import os
import queue
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator
from typing import Any, Self

import numpy as np
from absl import flags

from kd_jax import runtime
from kd_jax.data import stream
from kd_jax.data.crops import Crop
from kd_jax.data.dataset import Arrays, Source
from kd_jax.errors import UserError
from kd_jax.monitor import warn, warn_once
from kd_jax.spec import Images

AHEAD = 2  # dispatches that are ready before the devices want them
_A_WORKER = 2  # batches that a process has ready
_POLL = 0.002  # seconds between looks whether the devices are still busy
_SHOWN = 3  # files in a sentence
MOST_RESTARTS = 3
# Grain frees the memory that processes share in a thread of its own, which may not get to it at the
# end. A process of Python's frees it then; that is started with these options, and need not say so.
_NO_ADVICE = 'ignore::UserWarning:multiprocessing.resource_tracker'
FEW_CORES = 4  # with no more of them, processes are no faster than threads


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is read, in numbered batches: a source for Grain, which any of its processes can ask.

    at(number) -> a batch of indices, host arrays `[B]`. crop: of the photos.
    """

    source: Source
    at: Callable[[int], Arrays]
    first: int
    last: int  # the number after the last one
    crop: Crop | None = None

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, place: Any) -> Arrays:
        return stream.loaded(self.source, self.at(self.first + int(place)), self.crop)

    def batches(self, workers: int) -> Any:
        """An iterator of Grain's over all of them, in order."""
        import grain  # type: ignore[import-untyped]  # with JAX and absl; only streams need it

        if not flags.FLAGS.is_parsed():  # Grain reads some, also in a script that has none
            flags.FLAGS.mark_as_parsed()
        batches = grain.MapDataset.source(self)
        # two batches at a time, so that no thread is idle at the end of one; of small images most
        # is done in Python, whose threads take turns
        count = 2 if self.source.image_shape[0] > stream.SMALL else 1
        threads = grain.ReadOptions(num_threads=count, prefetch_buffer_size=2)
        if not workers:  # the threads of this process share each batch
            return iter(batches.to_iter_dataset(threads))
        if _NO_ADVICE not in sys.warnoptions:
            sys.warnoptions.append(_NO_ADVICE)
        options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=_A_WORKER)
        none = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        return iter(batches.to_iter_dataset(none).mp_prefetch(options, _begin_worker))


def _begin_worker(*_: Any) -> None:
    """A process that reads has one thread for it, and ends with the one that asked for it, however
    that ended.
    """
    stream.use_threads(1)
    parent = multiprocessing.parent_process()

    def end() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end, daemon=True).start()


class Feed:
    """Batches of a `Reading` in order, each ready before it is wanted; a context manager.

    groups(number) -> how many from there on belong together. finish(batches) -> what such a group
    becomes, in a thread of the feed's. workers: processes that read; 0: threads of this one.
    """

    def __init__(
        self,
        reading: Reading,
        groups: Callable[[int], int] = lambda number: 1,
        finish: Callable[[list[Arrays]], Any] = lambda batches: batches[0],
        workers: int = 0,
    ):
        self.reading, self.groups, self.finish, self.workers = reading, groups, finish, workers
        self.next = reading.first  # the number of the batch that comes next
        self._ready: queue.Queue[Any] = queue.Queue(AHEAD)
        self._unread: set[int] = set()  # which examples could not be read
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True, name='feed')
        self._thread.start()

    def get(self, busy: Callable[[], bool] = lambda: True) -> tuple[Any, float]:
        """(the next group, the seconds in which nobody was busy while it was not ready).

        Raises:
          UserError: for a file that cannot be read, where that is an error.
        """
        idle: float | None = None
        item = self._ready_item()
        while item is None:
            if idle is None and not busy():
                idle = time.perf_counter()
            item = self._ready_item()
            if item is None and not self._thread.is_alive() and self._ready.empty():
                raise RuntimeError('there are no more batches')
        if isinstance(item, Exception):
            self.close()
            raise item
        count, found = item
        self.next += count
        return found, 0.0 if idle is None else time.perf_counter() - idle

    def _ready_item(self) -> Any:
        with contextlib.suppress(queue.Empty):
            return self._ready.get(timeout=_POLL)
        return None

    def close(self) -> None:
        """Ends the threads and processes that read ahead."""
        self._closing.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._ready.get_nowait()
        self._thread.join()
        if (more := len(self._unread) - _SHOWN) > 0:
            warn(f'and {more} more files could not be read: they count nowhere')
            self._unread.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fill(self) -> None:
        try:
            number, batches = self.reading.first, self._batches()
            with contextlib.closing(batches):
                while number < self.reading.last and not self._closing.is_set():
                    count = min(self.groups(number), self.reading.last - number)
                    group = [next(batches) for _ in range(count)]
                    number += count
                    self._put((count, self.finish(group)))
        except Exception as error:  # told where the batch is wanted
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(queue.Full):
                return self._ready.put(item, timeout=0.1)
        return None

    def _batches(self) -> Generator[Arrays]:
        """The batches; those of a process that was killed are read again."""
        reading, restarts = self.reading, 0
        while len(reading):
            batches = reading.batches(self.workers)
            try:
                for number in range(reading.first, reading.last):
                    batch = _next_of(batches, number)
                    reading = dataclasses.replace(reading, first=number + 1)
                    self._note(batch)
                    yield batch
            except Killed as error:
                restarts += 1
                if restarts > MOST_RESTARTS:
                    raise UserError(
                        f'processes that read images ended {restarts} times ({error}); take '
                        'fewer of them with data.workers, or 0 for threads'
                    ) from None
                warn(f'a process that reads images ended ({error}); others go on in its place')
            finally:
                batches.close()

    def _note(self, batch: Arrays) -> None:
        """Tells which files of a batch could not be read."""
        unread, source = batch.pop('unread'), self.reading.source
        for index in batch['index'][unread].tolist():
            if index not in self._unread and len(self._unread) < _SHOWN:
                warn_once(f'{source.why(index)}: it counts nowhere')
            self._unread.add(index)
        if unread.all():
            raise UserError(
                f'no image of a batch of {len(unread)} can be read; look at the files, for their '
                'disk may be gone'
            )


class Killed(Exception):
    """A process that read ahead is gone."""


def _next_of(batches: Any, number: int) -> Arrays:
    try:
        with warnings.catch_warnings(action='ignore'):
            return next(batches)
    except RuntimeError as error:
        if 'terminated unexpectedly' in str(error):
            code = str(error).partition('exit code ')[2].partition('.')[0]
            raise Killed(f'exit code {code}') from None
        raise


def advice(images: Images, decode: str) -> str:
    """What may help where the devices wait for images."""
    if images.placement == 'host':
        return "data.placement='sharded' or 'resident' keeps them on the devices, if they fit"
    ways = []
    if decode == 'square':
        ways.append("data.placement='host' decodes them once, into the cache, if that has room")
    if not images.workers and runtime.cores() > FEW_CORES:
        ways.append(f'data.workers={runtime.cores() // 2} decodes in so many processes')
    else:
        ways.append('more processor cores decode more of them')
    return '; '.join([*ways, 'smaller files, such as photos of 300 pixels, are decoded faster'])


def stacked(batches: list[Arrays], size: int) -> Arrays:
    """Batches as one `[size, B, ...]`; what comes after them only fills up."""
    padded = batches + batches[-1:] * (size - len(batches))
    return {name: np.stack([batch[name] for batch in padded]) for name in batches[0]}
