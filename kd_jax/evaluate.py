"""Evaluates finished runs: `python -m kd_jax.evaluate WORKDIR ...`, one alone or several as one."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from kd_jax import config as config_lib
from kd_jax import data, own, runtime, trained
from kd_jax.errors import Parser, UserError, told_to_the_user
from kd_jax.evaluation import evaluate
from kd_jax.networks import Ensemble
from kd_jax.parallel import Parallel
from kd_jax.workdir import find_run


def evaluate_run(workdir: epath.Path, split: str = 'test') -> dict[str, Any]:
    """Evaluates a finished run, in the precision it was trained in, on a split
    of the data it was trained on.

    Raises:
      UserError: for a workdir that is missing or unfinished, or another split
        than 'train', 'val', 'test'.
    """
    return evaluate_together([workdir], split)


def evaluate_together(workdirs: Sequence[epath.Path], split: str = 'test') -> dict[str, Any]:
    """Evaluates finished runs as one: the average of their probabilities, on a split of
    the data they were trained on.

    Each computes in the precision it was trained in; where those differ, products have float32's.

    Raises:
      UserError: for a workdir that is missing or unfinished, or runs of different data.
    """
    runs = [find_run(workdir, seed=0) for workdir in workdirs]
    paths = [os.path.realpath(run.path) for run in runs]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(
                f'{path} is given twice; an ensemble is of different runs, give each of them once'
            )
    models = [trained.load(run) for run in runs]
    configs = [run.info()['config'] for run in runs]
    for run, config in zip(runs, configs, strict=True):
        if 'data' not in config:
            raise UserError(
                f'{run.path} was imported and names no data; name it as a teacher in a '
                'study, whose table will show it'
            )
    fields = [config_lib.upgraded(config)['data'] for config in configs]
    images = [
        {name: value for name, value in of.items() if not name.startswith(('labels', 'unlabelled'))}
        for of in fields
    ]
    for run, trained_on in zip(runs, images, strict=True):
        if trained_on != images[0]:
            raise UserError(
                f'{run.path} was trained on other data than '
                f'{runs[0].path}; take runs of the same data'
            )
    source = data.load(fields[0] | {'unlabelled': ''}).source(split)
    precision = (
        models[0].precision if len({model.precision for model in models}) == 1 else 'float32'
    )
    parallel = Parallel('auto')
    if len(models) == 1:
        return evaluate(models[0].network, models[0].variables, source, parallel, precision)
    together = Ensemble(tuple(model.network for model in models))
    return evaluate(
        together, tuple(model.variables for model in models), source, parallel, precision
    )


def main() -> None:
    parser = Parser(
        prog='python -m kd_jax.evaluate',
        description='Evaluate a finished run, or several as one (average probabilities).',
    )
    parser.add_argument(
        'workdir',
        type=epath.Path,
        nargs='+',
        help='<workdir>/<run>/seed<k>, or <workdir>/<run> for its first seed; any number',
    )
    parser.add_argument('--split', default='test', choices=('train', 'val', 'test'))
    parser.add_argument(
        '--trust', action='store_true', help='import the code (models, data) that a workdir names'
    )
    arguments = parser.parse_args()
    with told_to_the_user():
        runtime.prepare()
        own.search_in(Path.cwd())
        if arguments.trust:
            own.trust_workdirs()
        print(json.dumps(evaluate_together(arguments.workdir, arguments.split), indent=1))


if __name__ == '__main__':
    main()
