"""Evaluation of networks on a split, every example counted once, and what a forward pass costs."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import metrics, step
from kd_jax.data import ArraySource, batches
from kd_jax.networks import Ensemble, Network
from kd_jax.parallel import Parallel, with_products
from kd_jax.spec import Arrays


def on_devices(parallel: Parallel, source: ArraySource) -> Arrays:
    """The columns of a source on every device."""
    return parallel.replicate(source.arrays())


def batch_size_for(parallel: Parallel, count: int, most: int = 512) -> int:
    """A batch size that the devices can share, not much larger than the split needs."""
    return -(-min(most, count) // len(parallel)) * len(parallel)


def start(
    eval_step: Callable[..., Any], parallel: Parallel, variables: Any, arrays: Arrays
) -> list[dict[str, jax.Array]]:
    """Sets the devices to evaluate `variables` on all of a split; `finish` waits for them.

    eval_step: `kd_jax.step.make_eval_step`'s function, compiled by `parallel`. arrays: see there.
    """
    count = arrays['label'].shape[0]
    return [
        eval_step(variables, arrays, parallel.divide(batch))
        for batch in batches.eval_batches(count, batch_size_for(parallel, count))
    ]


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
    source: ArraySource,
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
