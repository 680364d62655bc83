"""What the host adds to a batch of indices: images, which it holds or decodes, and labels."""

import concurrent.futures
import functools
import itertools
import os
from collections.abc import Callable

import numpy as np

from kd_jax.data.crops import Crop
from kd_jax.data.dataset import Arrays, Source

SMALL = 64  # pixels of a side
_SLICES = 16  # pieces of a batch a thread: none waits long for the others


def each_piece(work: Callable[[range], None], count: int, threads: int = 0) -> None:
    """Calls `work` for pieces of `range(count)` in threads of this process, side by side: decoders
    let others run meanwhile. threads: 0 for as many as `use_threads` said.
    """
    threads = threads or _threads()
    pieces = min(threads * _SLICES, count)
    if pieces < 2 or threads < 2:
        return work(range(count))
    bounds = np.linspace(0, count, pieces + 1).astype(int)
    spans = [range(a, b) for a, b in itertools.pairwise(bounds.tolist())]
    list(_pool(os.getpid(), threads).map(work, spans))
    return None


_most_threads = 0


def use_threads(count: int) -> None:
    """So many decode in this process from now on; 0: one a core."""
    global _most_threads
    _most_threads = count


def _threads() -> int:
    if _most_threads:
        return _most_threads
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@functools.cache
def _pool(process: int, threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix='decode')


def loaded(source: Source, batch: Arrays, crop: Crop | None = None) -> Arrays:
    """A batch of indices with the columns that the host holds: `image`, `label`, with
    `partner_index` those of the partners, `mask`, and `unread`: bool `[B]`.

    crop: of the photos; None: they are seen whole.
    """
    index, view = batch['index'], batch['view' if 'view' in batch else 'index']
    pairs = list(zip(index.tolist(), view.tolist(), strict=True))
    places = {pair: place for place, pair in enumerate(pairs)}
    partners = []
    if 'partner_index' in batch:
        partners = list(
            zip(batch['partner_index'].tolist(), batch['partner_view'].tolist(), strict=True)
        )
        for pair in partners:
            if pair not in places:  # one of another process
                places[pair] = len(pairs)
                pairs.append(pair)
    wanted = np.array([number for number, _ in pairs], np.int64)
    crops = [crop.draw(*pair) for pair in pairs] if crop else None
    image, bad = source.images(wanted, crops)
    count = len(index)
    found = batch | {'image': image[:count], 'label': source.labels[index], 'unread': bad[:count]}
    if partners:
        there = np.array([places[pair] for pair in partners])
        found['partner_image'] = image[there]
        found['partner_label'] = source.labels[batch['partner_index']]
        bad = bad[:count] | bad[there]
    mask = batch.get('mask', np.ones(count, np.float32))
    return found | {'mask': mask * ~bad[:count]}
