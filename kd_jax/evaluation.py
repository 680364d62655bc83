"""Evaluation of networks on a split, every example counted once, and what a forward pass costs."""

import math
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import feed, metrics, step
from kd_jax.data import ArraySource, batches
from kd_jax.data.crops import Crop
from kd_jax.data.dataset import MappedSource, Source
from kd_jax.data.joined import JoinedSource
from kd_jax.networks import Ensemble, Network
from kd_jax.parallel import Parallel, free_memory, with_products
from kd_jax.spec import Arrays

_UNDER_WAY = 3  # batches with images that the devices have at once


class Split(NamedTuple):
    """A split as steps read it. arrays: columns on the devices. source: whose images come with each
    batch; None: they are among the arrays. workers: see `kd_jax.feed.Feed`.
    """

    arrays: Arrays
    size: int  # examples
    source: Source | None = None
    workers: int = 0

    def batches(
        self,
        parallel: Parallel | None,
        indices: Sequence[Arrays],
        crop: Crop | None = None,
    ) -> Generator[Arrays]:
        """Global batches of indices with what comes with them, this process's share laid out on
        the devices; without `parallel` as they are.
        """
        if self.source is None:
            yield from (parallel.divide(batch) if parallel else batch for batch in indices)
            return
        mine = [parallel.mine(batch) if parallel else batch for batch in indices]

        def finish(group: list[Arrays]) -> Arrays:
            return parallel.lay_out(group[0]) if parallel else group[0]

        reading = feed.Reading(self.source, mine.__getitem__, 0, len(mine), crop)
        with feed.Feed(reading, finish=finish, workers=self.workers) as ahead:
            for _ in mine:
                yield ahead.get()[0]


def on_devices(
    parallel: Parallel, source: Source, placement: str = 'auto', workers: int = 0
) -> Split:
    """A source as `placement` says, see `kd_jax.data.Settings`: 'auto' holds on every device what
    fits there. A stream stays one; what is sharded for training comes from the host.
    """
    if placement == 'auto':
        copies = len(parallel.local) if parallel.on_cpu else 1
        size = len(source) * math.prod(source.image_shape) * copies
        placement = 'resident' if size <= free_memory(parallel) / 2 else 'host'
    if source.streamed or placement in ('host', 'sharded'):
        return Split({}, len(source), source, workers)
    assert isinstance(source, (ArraySource, MappedSource, JoinedSource))
    return Split(parallel.replicate(source.arrays()), len(source))


def batch_size_for(parallel: Parallel, count: int, most: int = 512) -> int:
    """A batch size that the devices can share, not much larger than the split needs."""
    return -(-min(most, count) // len(parallel)) * len(parallel)


def start(
    eval_step: Callable[..., Any], parallel: Parallel, variables: Any, split: Split
) -> list[dict[str, jax.Array]]:
    """Sets the devices to evaluate `variables` on all of a split; `finish` waits for them.

    eval_step: `kd_jax.step.make_eval_step`'s function, compiled by `parallel`.
    """
    sums: list[dict[str, jax.Array]] = []
    for batch in evaluated(parallel, split):
        if split.source is not None and len(sums) >= _UNDER_WAY:
            jax.block_until_ready(sums[-_UNDER_WAY])  # the images of all would fill the memory
        sums.append(eval_step(variables, split.arrays, batch))
    return sums


def evaluated(parallel: Parallel, split: Split, *, whole: bool = False) -> Generator[Arrays]:
    """Batches that have each example of a split once, divided among the devices or `whole`."""
    size = batch_size_for(parallel, split.size)
    indices = list(batches.eval_batches(split.size, size))
    return split.batches(None if whole else parallel, indices)


def finish(pending: list[dict[str, jax.Array]]) -> dict[str, Any]:
    """The metrics of what `start` returned: {'top1', ..., 'count'}, and 'teacher':
    {'agreement', 'kl'} with teachers.
    """
    first, *others = jax.device_get(pending)
    total = metrics.add(None, first)
    for sums in others:
        total = metrics.add(total, sums)
    teacher = metrics.finalize_teacher(total)
    return metrics.finalize(total) | ({'teacher': teacher} if teacher else {})


def evaluate(
    network: Network | Ensemble,
    variables: Any,
    source: Source,
    parallel: Parallel,
    precision: str,
) -> dict[str, Any]:
    """The metrics of a network, computed in a precision, on a split."""
    eval_step = parallel.compile(
        step.make_eval_step(network, parallel.axis_name), precision, arguments=3
    )
    return finish(
        start(eval_step, parallel, parallel.replicate(variables), on_devices(parallel, source))
    )


def forward_cost(
    network: Network, variables: Any, image_shape: tuple[int, ...], precision: str
) -> dict[str, float]:
    """{'flops': of one image's forward pass as XLA counts them for plain layers,
    'latency_ms': median of a batch of one}.
    """
    plain = network._replace(model=network.model.clone(fast=False))
    variables, pixels = jax.device_put(
        (variables, jnp.zeros((1, *image_shape))), jax.local_devices()[0]
    )
    forward = [
        with_products(lambda v, x, n=n: n.predict(v, x).logits, precision) for n in (plain, network)
    ]
    lowered = [jax.jit(function).lower(variables, pixels) for function in forward]
    flops = float((lowered[0].cost_analysis() or {}).get('flops', float('nan')))
    run = lowered[1].compile()
    jax.block_until_ready(run(variables, pixels))
    times = []
    for _ in range(50):
        begin = time.perf_counter()
        jax.block_until_ready(run(variables, pixels))
        times.append(time.perf_counter() - begin)
    return {'flops': flops, 'latency_ms': 1e3 * float(np.median(times))}
