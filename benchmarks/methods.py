"""What a step of each method costs, relative to plain distillation (`kl`) of the same pair:

    python -m benchmarks.methods [--config=fashion_mnist] [--arguments=method=all]
        [--rounds=7] [--json=FILE]

The runs of the config, on random images of the shape and number given, take turns in one
process; runs that a method has beforehand (`ab_before`) stand in lines of their own. With
`--results=WORKDIR/results.json` of a study of the same config, top-1 stands beside the cost:
the table of methods in docs/results.md.
"""

import importlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks import race
from configs import methods
from kd_jax.errors import UserError, told_to_the_user, unknown
from kd_jax.spread import with_spread


def measure(
    config: ConfigDict, dataset: Any, rounds: int, steps: int, only: set[str]
) -> dict[str, list[float]]:
    """Seconds a step of each run of the student, or of those named and `kl`, one entry a round."""
    from benchmarks import our_side
    from kd_jax.parallel import Parallel
    from kd_jax.teacher_outputs import outside

    placement, workers = None, {}
    for name in config.runs:
        run = config.runs[name].copy_and_resolve_references()
        if run.model == config.runs.alone.model and (not only or name in only | {'kl'}):
            models = {teacher: config.runs[teacher].model for teacher in outside(run.teachers)}
            teachers = our_side.random_teachers(models, dataset.info, run.precision)
            parallel = Parallel(
                config.parallel, config.devices or None, fast=config.fast
            ).for_batch(run.batch_size)
            executor = our_side.start(run, dataset, teachers, parallel)
            placement = placement or executor.placement
            executor.placement.split = placement.split  # the images lie on the devices once
            workers[name] = our_side.stepper(executor)
            workers[name](1)
            print(f'{name}: ready', flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(-1, rounds):
        for name, work in workers.items():
            begin = time.perf_counter()
            work(steps)
            if number >= 0:
                seconds[name].append((time.perf_counter() - begin) / steps)
    return seconds


def read(path: Path, config: ConfigDict) -> dict[str, Any]:
    """results.json of a study of this config.

    Raises:
      UserError: if there is none, or it is of a study with other runs.
    """
    if not path.is_file():
        raise UserError(
            f'{path} does not exist; give results.json of a finished study of the same '
            'config, which is in its workdir'
        )
    results = json.loads(path.read_text())
    missing = set(config.runs) - {row['run'] for row in results['table']}
    if missing:
        raise UserError(
            f'{path} is of another study: it has no runs {", ".join(sorted(missing))}; give that '
            'of the same config, all of whose runs are finished'
        )
    return results


def objective(run: ConfigDict) -> str:
    """The weighted sum that a run minimises, such as `0.1 CE + 0.9 kl`."""
    terms = sorted(run.objective.items(), key=lambda item: item[0] != 'cross_entropy')
    return ' + '.join(
        (f'{term.weight:g} ' if term.weight != 1 else '')
        + ('CE' if name == 'cross_entropy' else name)
        for name, term in terms
    )


def rows(
    seconds: Mapping[str, list[float]], config: ConfigDict, results: dict[str, Any] | None
) -> list[tuple[str, ...]]:
    """The table: the student alone first, then the methods in the order of `configs.methods`."""
    results = results or {'table': [], 'gains': []}
    top1 = {row['run']: row['top-1 %'] for row in results['table']}
    gains = {row['run']: row['top-1 points'] for row in results['gains']}

    def text(value, sign=''):
        return with_spread(value, sign=sign) if value else '–'

    lines = [
        (
            'run',
            'source',
            'objective',
            'test top-1 %',
            'against alone',
            'ms a step',
            'of `kl`',
            'quartiles',
        )
    ]
    if 'teacher' in top1:
        lines.append(('teacher', '', 'CE', text(top1['teacher']), '', '', '', ''))
    order = ['alone']
    for name in methods.METHODS:  # what a method needs beforehand, then itself
        order += [
            *sorted(
                run for run in seconds if run.startswith(f'{name}_') and run not in methods.METHODS
            ),
            name,
        ]
    laps = {name: race.Lap({}, taken, 0.0) for name, taken in seconds.items()}
    for name in filter(laps.__contains__, dict.fromkeys(order)):
        cost, low, high = race.ratio(laps[name], laps['kl'])
        source = methods.METHODS[name].source if name in methods.METHODS else ''
        figures = f'{1e3 * laps[name].median:.1f}', f'{cost:.2f}', race.between(low, high)
        quality = text(top1.get(name)), text(gains.get(name), '+')
        lines.append((f'`{name}`', source, objective(config.runs[name]), *quality, *figures))
    return lines


def main() -> None:
    parser = race.parser('Steps of the methods.')
    parser.add_argument(
        '--config', default='fashion_mnist', help='a name in configs/ whose argument takes methods'
    )
    parser.add_argument(
        '--arguments', default='method=all', help='of the config; it must have all methods'
    )
    parser.add_argument('--only', default='', help='of these runs, such as at,ab_before')
    parser.add_argument('--shape', default='28,28,1', help='of the random images')
    parser.add_argument('--count', type=int, default=54_000, help='of the random images')
    parser.add_argument('--steps', type=int, default=8, help='in a turn')
    parser.add_argument('--results', type=Path, help='results.json of such a study')
    arguments = parser.parse_args()

    from benchmarks import our_side
    from kd_jax import runtime

    runtime.prepare()
    only = set(filter(None, arguments.only.split(',')))
    with told_to_the_user():
        config = importlib.import_module(f'configs.{arguments.config}').get_config(
            arguments.arguments
        )
        for name in ('kl', *only):
            if name not in config.runs:
                raise unknown('run', name, config.runs)
        results = read(arguments.results, config) if arguments.results else None
    rng = np.random.default_rng(0)
    shape = tuple(map(int, arguments.shape.split(',')))
    images = rng.integers(0, 256, (arguments.count, *shape), np.uint8)
    labels = rng.integers(0, 10, arguments.count).astype(np.int32)
    seconds = measure(
        config, our_side.dataset_of(images, labels, 10), arguments.rounds, arguments.steps, only
    )
    print(race.table(rows(seconds, config, results)))
    race.conclude({'seconds': seconds}, arguments.json)


if __name__ == '__main__':
    main()
