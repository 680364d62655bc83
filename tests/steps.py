"""Steps of a study's own making, without the study: a run's spec, random
teachers, an executor, a few updates.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from helpers import random_splits

from kd_jax import build, config, executors, extraction, jobs, trained
from kd_jax.config_check import check_run
from kd_jax.initialization import initial_state
from kd_jax.models import initial
from kd_jax.parallel import Parallel

MODES = {'jit on 1': ('jit', 1), 'jit on 4': ('jit', 4), 'pmap on 4': ('pmap', 4)}
BATCH = 16


def run_of(changes=None, objective=None, augment=None, model='cnn'):
    """A run of small batches; changes: path of a field -> value."""
    study = config.study()
    study.augment.update(augment or {})
    run = config.run(
        study, model, config.distillation(0.7, 4.0) if objective is None else objective
    )
    run.model.width, run.batch_size, run.epochs = 0.25, BATCH, 4.0
    run.optim.learning_rate, run.optim.schedule = 0.05, 'constant'
    run.update_from_flattened_dict(changes or {})
    return run.copy_and_resolve_references()


def drawn(network, info, seed):
    """Variables of a network as NumPy arrays."""
    image = jnp.zeros((1, *info.image_shape))
    return initial.draw(lambda key: network.model.init(key, image, train=False), (seed,))


def teachers_of(run, info):
    """A random teacher for each name that is not the run's own."""
    models, model = {}, run.model.name if run.model.name == 'tiny' else 'cnn'
    for seed, name in enumerate(jobs.outside(run.teachers)):
        network = trained.build_network(
            {'name': model, 'width': 0.25}, info, run.precision, resize=True
        )
        models[name] = trained.Trained(
            name, network, info, run.precision, 0.1, drawn(network, info, 7 + seed)
        )
    return models


def start(run, dataset=None, mode='jit', devices=1, *, steps=2, workdir=None, seeds=(0,)):
    """(executor, its jobs), taught and loaded with their first states; of a sweep with all
    members. steps: of one dispatch.
    """
    dataset = dataset or random_splits()
    members = jobs.members_of('own', run) if run.sweep else {'own': run}
    for name, member in members.items():
        check_run(name, member)
    first = next(iter(members.values()))
    parallel, models = Parallel(mode, devices), teachers_of(first, dataset.info)
    spec = build.run_spec('own', first, dataset, models, parallel, steps)
    executor = (executors.MemberParallel if run.sweep else executors.DataParallel)(spec, parallel)
    rows = None
    if spec.targets is not None:
        wanted = extraction.Extraction(
            list(models.values()), dataset, spec.targets, parallel, run.precision, 'teachers'
        )
        rows = extraction.obtain(
            wanted, [Path(workdir) / f'{mode}{devices}' / name for name in models]
        )
    executor.teach(executor.placement.teachers(models, rows))
    todo = [
        build.job_of(spec, name, member, seed, Path())
        for name, member in members.items()
        for seed in seeds
    ]
    executor.load(todo, [initial_state(job) for job in todo])
    return executor, todo


def metrics_of(dispatches):
    """Of each job the metrics `[S]` of its steps."""
    histories = []
    for dispatch in dispatches:
        metrics = jax.device_get(dispatch.metrics)
        place = () if dispatch.place is None else (dispatch.place,)
        histories.append(
            {name: np.asarray(x)[place][: dispatch.count] for name, x in metrics.items()}
        )
    return histories


def train(executor, counts, begin=0):
    """Metrics of each job after dispatches of so many steps, joined."""
    history, step = None, begin
    for count in counts:
        more = metrics_of(executor.train(step, count))
        if history is None:
            history = more
        else:
            history = [
                {name: np.concatenate([a[name], b[name]]) for name in a}
                for a, b in zip(history, more, strict=True)
            ]
        step += count
    return history


def largest_difference(a, b):
    leaves = jax.tree.map(
        lambda x, y: np.max(np.abs(np.float64(x) - np.float64(y)), initial=0.0), a, b
    )
    return max(jax.tree.leaves(leaves))
