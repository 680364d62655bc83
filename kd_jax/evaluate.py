"""Evaluation of a model on a split, every example counted once; `python -m kd_jax.evaluate WORKDIR` for a finished run."""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kd_jax import data as data_lib
from kd_jax import metrics, networks, runtime, step, teachers
from kd_jax.data import Split, batches
from kd_jax.errors import UserError, told_to_the_user
from kd_jax.parallel import Parallel
from kd_jax.workdir import find_run


def on_device(parallel: Parallel, split: Split) -> dict[str, jax.Array]:
    """The split's images (uint8) and labels on every device."""
    return parallel.replicate({'image': split.image, 'label': split.label})


def batch_size_for(parallel: Parallel, count: int, most: int = 512) -> int:
    """A batch size that the devices can share, not much larger than the split needs."""
    return -(-min(most, count) // len(parallel)) * len(parallel)


def start(
    eval_step: Callable, parallel: Parallel, variables: Any, teacher_variables: tuple, data: dict[str, jax.Array]
) -> list[dict[str, jax.Array]]:
    """Sets the devices to evaluate `variables` on all of `data`; `finish` waits for them.

    eval_step: `kd_jax.step.make_eval_step`'s function, compiled by `parallel`.
    """
    count = data['label'].shape[0]
    return [
        eval_step(variables, teacher_variables, data, parallel.divide(batch))
        for batch in batches.eval_batches(count, batch_size_for(parallel, count))
    ]


def finish(pending: list[dict[str, jax.Array]]) -> dict[str, Any]:
    """The metrics of what `start` returned: {'top1', ..., 'count'}, and 'teacher': {'agreement', 'kl'} with teachers."""
    total = None
    for sums in jax.device_get(pending):
        total = metrics.add(total, sums)
    teacher = metrics.finalize_teacher(total)
    return metrics.finalize(total) | ({'teacher': teacher} if teacher else {})


def evaluate(
    eval_step: Callable, parallel: Parallel, variables: Any, teacher_variables: tuple, data: dict[str, jax.Array]
) -> dict[str, Any]:
    """`finish` of `start`."""
    return finish(start(eval_step, parallel, variables, teacher_variables, data))


def forward_cost(network: networks.Network, variables: Any, image_shape: tuple[int, ...]) -> dict[str, float]:
    """{'flops': of one image's forward pass as XLA counts them for plain layers, 'latency_ms': median of a batch of one}."""
    plain = network._replace(model=network.model.clone(fast=False))
    variables, pixels = jax.device_put((variables, jnp.zeros((1, *image_shape))), jax.local_devices()[0])
    lowered = [jax.jit(lambda v, x, n=n: n.predict(v, x).logits).lower(variables, pixels) for n in (plain, network)]
    flops = float((lowered[0].cost_analysis() or {}).get('flops', float('nan')))
    run = lowered[1].compile()
    jax.block_until_ready(run(variables, pixels))
    times = []
    for _ in range(50):
        begin = time.perf_counter()
        jax.block_until_ready(run(variables, pixels))
        times.append(time.perf_counter() - begin)
    return {'flops': flops, 'latency_ms': 1e3 * float(np.median(times))}


def evaluate_run(workdir: Path, split: str = 'test') -> dict[str, Any]:
    """Evaluates a finished run on a split of the data it was trained on.

    Raises:
      UserError: for a workdir that is missing or unfinished, or another split than 'train', 'val', 'test'.
    """
    return evaluate_together([workdir], split)


def evaluate_together(workdirs: Sequence[Path], split: str = 'test') -> dict[str, Any]:
    """Evaluates finished runs as one: the average of their probabilities, on a split of the data they were trained on.

    Raises:
      UserError: for a workdir that is missing or unfinished, or runs of different data.
    """
    runs = [find_run(workdir, seed=0) for workdir in workdirs]
    paths = [run.path.resolve() for run in runs]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f'{path} is given twice; an ensemble is of different runs, give each of them once')
    trained = [teachers.load(run) for run in runs]
    data = []
    for run in runs:
        config = run.info()['config']
        if 'data' not in config:
            raise UserError(
                f'{run.path} was imported and names no data; name it as a teacher in a study, whose table will show it'
            )
        data.append({name: value for name, value in config['data'].items() if not name.startswith('labels')})
    for run, own in zip(runs, data, strict=True):
        if own != data[0]:
            raise UserError(f'{run.path} was trained on other data than {runs[0].path}; take runs of the same data')
    splits = data_lib.load(ConfigDict(runs[0].info()['config']['data']))
    parallel = Parallel('auto')
    student = trained[0].network if len(trained) == 1 else networks.Ensemble(tuple(t.network for t in trained))
    fn = step.make_eval_step(student=student, teachers=(), teacher_weights=(), axis_name=parallel.axis_name)
    variables = parallel.replicate(trained[0].variables if len(trained) == 1 else tuple(t.variables for t in trained))
    placed = on_device(parallel, getattr(splits, split))
    return evaluate(parallel.compile(fn, arguments=4), parallel, variables, (), placed)


def main() -> None:
    parser = argparse.ArgumentParser(description='Evaluate a finished run, or several as one (average probabilities).')
    parser.add_argument(
        'workdir', type=Path, nargs='+', help='<workdir>/<run>/seed<k>, or <workdir>/<run> for its first seed; any number'
    )
    parser.add_argument('--split', default='test', choices=('train', 'val', 'test'))
    arguments = parser.parse_args()
    with told_to_the_user():
        runtime.prepare()
        print(json.dumps(evaluate_together(arguments.workdir, arguments.split), indent=1))


if __name__ == '__main__':
    main()
