"""The training loop of kd_jax as a study runs it, and the same as a plain
Flax program, for comparison.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kd_jax import config, executors, jobs, models, runtime, trained
from kd_jax.build import job_of, run_spec
from kd_jax.data import ArraySource, Dataset, DatasetInfo
from kd_jax.initialization import initial_state
from kd_jax.models import initial
from kd_jax.parallel import Parallel
from kd_jax.spec import RunSpec

Teachers = dict[str, trained.Trained]


def dataset_of(images: np.ndarray, labels: np.ndarray, classes: int) -> Dataset:
    """Images to train on; a few of them are there for evaluations too, of which there are none."""
    few, shape = ArraySource(images[:64], labels[:64]), images.shape[1:]
    norm = (0.5,) * shape[-1], (0.25,) * shape[-1]
    return Dataset(
        DatasetInfo('random', classes, tuple(map(str, range(classes))), shape, *norm),
        ArraySource(images, labels),
        few,
        few,
    )


def run_of(spec: Mapping[str, Any]) -> ConfigDict:
    """The student's run. `run` of the spec: path of a field -> value."""
    study = config.study()
    study.augment.crop, study.augment.flip = 4, spec['size'] <= 64
    study.precision = spec['precision']
    run = config.run(
        study, spec['student'], config.distillation() if spec['teacher'] else config.labels()
    )
    run.batch_size, run.teachers = spec['batch'], ('teacher',) if spec['teacher'] else ()
    run.update_from_flattened_dict(spec.get('run', {}))
    return run.copy_and_resolve_references()


def random_teachers(
    named: Mapping[str, Mapping[str, Any]], info: DatasetInfo, precision: str, fast: bool = True
) -> Teachers:
    """Teachers with random weights. named: name -> `model` of its run. Without `fast` each
    layer's are drawn on the device.
    """
    image = jnp.zeros((1, *info.image_shape))

    def random(name, model):
        network = trained.build_network(model, info, precision)

        def init(key):
            return network.model.init(key, image, train=False)

        variables = initial.draw(init, (0,)) if fast else jax.device_get(init(jax.random.key(0)))
        return trained.Trained(name, network, info, precision, 0.1, variables)

    return {name: random(name, model) for name, model in named.items()}


def needs(
    spec: Mapping[str, Any], images: np.ndarray, labels: np.ndarray
) -> tuple[Dataset, Teachers, Parallel]:
    """What the student's run needs: its data, its teacher, and devices: all of
    them for kd_jax, otherwise one.
    """
    fast, dataset = spec['variant'] != 'plain_flax', dataset_of(images, labels, spec['classes'])
    named = {'teacher': {'name': spec['teacher']}} if spec['teacher'] else {}
    devices = None if spec['variant'] == 'kd_jax' else 1
    parallel = Parallel('auto', devices, fast=fast).for_batch(spec['batch'])
    return dataset, random_teachers(named, dataset.info, spec['precision'], fast), parallel


def start(
    run: ConfigDict, dataset: Dataset, teachers: Teachers, parallel: Parallel, steps: int = 0
) -> executors.Executor:
    """A run, or all members of a sweep, before the first step. Kept
    soft targets are random numbers.

    steps: of one dispatch at the most; 0: the usual number.
    """
    members = jobs.members_of('student', run) if run.sweep else {'student': run}
    spec = run_spec('student', next(iter(members.values())), dataset, teachers, parallel, steps)
    executor = (executors.MemberParallel if run.sweep else executors.DataParallel)(spec, parallel)
    rows = None if spec.targets is None else [{'train': _random_rows(spec)} for _ in teachers]
    executor.teach(executor.placement.teachers(teachers, rows))
    students = [job_of(spec, name, member, 0, Path()) for name, member in members.items()]
    executor.load(students, [initial_state(students[0])] * len(students))
    return executor


def _random_rows(spec: RunSpec) -> np.ndarray:
    """As kept of a teacher: `[N, V]`."""
    kind, info = spec.targets, spec.dataset.info
    rows = np.zeros(
        (len(spec.dataset.train), kind.views.count), kind.row_type('train', info.num_classes)
    )
    rows['logits'] = np.random.default_rng(0).normal(0, 3, rows['logits'].shape)
    return rows


def stepper(executor: executors.Executor) -> Callable[[int], None]:
    """`work(steps)`: the training of what the executor has, from its first step on."""
    done = 0

    def work(steps: int) -> None:
        nonlocal done
        goal = done + steps
        while done < goal:
            count = min(executor.run.timing.steps_per_dispatch, goal - done)
            dispatches = executor.train(done, count)
            done += count
        jax.block_until_ready([dispatch.metrics for dispatch in dispatches])

    return work


def build(
    spec: Mapping[str, Any], images: np.ndarray, labels: np.ndarray
) -> tuple[Callable[[int], None], dict[str, Any]]:
    """`(work(steps), info)`; one step is done.

    `plain_flax` is the same step with Flax's usual layers, initial values traced operation by
    operation, one device, one step a call, and no compilation cache.
    """
    begin = time.perf_counter()
    fast = spec['variant'] != 'plain_flax'
    runtime.prepare(fast=fast)
    dataset, teachers, parallel = needs(spec, images, labels)
    executor = start(run_of(spec), dataset, teachers, parallel, spec.get('steps', 0) if fast else 1)
    executor.placement.training()
    if not fast:
        student = executor.run.step.students['student']
        image = jnp.zeros((1, *dataset.info.image_shape))
        jax.block_until_ready(student.model.init(jax.random.key(0), image, train=False))
    work = stepper(executor)

    ready = time.perf_counter()
    work(1)
    end = time.perf_counter()
    info = {
        'first_s': end - begin,
        'initial_s': ready - begin,
        'compile_s': end - ready,
        'devices': len(parallel),
    }
    steps = executor.run.timing.steps_per_dispatch
    return work, info | {'device': parallel.devices[0].platform, 'steps_per_dispatch': steps}


def flops(spec: Mapping[str, Any], size: int) -> float:
    """Of one step's networks: the teacher forward, the student forward and backward, with
    plain layers, as XLA counts them.
    """
    image = jax.ShapeDtypeStruct((spec['batch'], size, size, 3), jnp.float32)

    def count(name: str, trains: bool) -> float:
        model = models.build(name, spec['classes'], dropout=0.0).clone(fast=False)
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)

        def forward(params, rest, x):
            if trains:
                return model.apply({'params': params, **rest}, x, train=True, mutable=list(rest))[
                    0
                ].logits.sum()
            return model.apply({'params': params, **rest}, x, train=False).logits.sum()

        rest = {key: value for key, value in variables.items() if key != 'params'}
        lowered = jax.jit(jax.grad(forward) if trains else forward).lower(
            variables['params'], rest, image
        )
        return float(lowered.cost_analysis()['flops'])

    return count(spec['student'], True) + (
        count(spec['teacher'], False) if spec['teacher'] else 0.0
    )


def matmul_peak(seconds: float = 2.0) -> float:
    """FLOP/s of the largest float32 product seen, on all cores or on the accelerator."""
    size = 2048 if jax.default_backend() == 'cpu' else 8192
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(a, a))
    best, end = np.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        jax.block_until_ready(product(a, a))
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
