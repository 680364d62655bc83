"""The training loop of kd_jax as a study runs it, and the same as a plain Flax program, for comparison."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import common
from kd_jax import models, parallel, program, runtime, teachers, train
from kd_jax.data import Split, Splits, batches
from kd_jax.models import initial


def make_splits(images: np.ndarray, labels: np.ndarray, classes: int) -> Splits:
    few = Split(images[:64], labels[:64])
    return Splits(Split(images, labels), few, few, classes, tuple(map(str, range(classes))), (0.5,) * 3, (0.25,) * 3, 'random')


def make_program(spec: Mapping[str, Any], splits: Splits, fast: bool) -> tuple[program.Program, list[teachers.Trained]]:
    """The student's program, and its teacher with random weights."""
    config = common.study()
    config.augment.crop, config.augment.flip, config.precision = 4, splits.train.image.shape[1] <= 64, spec['precision']
    run = common.run(config, spec['student'], common.distillation() if spec['teacher'] else common.labels())
    run.batch_size = spec['batch']
    run.update_from_flattened_dict(spec.get('run', {}))
    trained = []
    if spec['teacher']:
        run.teachers = ('teacher',)
        facts = {'num_classes': splits.num_classes, 'image_shape': splits.train.image.shape[1:]}
        facts |= {'mean': splits.mean, 'std': splits.std}
        network = teachers.build_network({'name': spec['teacher']}, facts)
        image = jnp.zeros((1, *facts['image_shape']))
        if fast:
            variables = initial.draw(lambda key: network.model.init(key, image, train=False), (0,))
        else:
            variables = network.model.init(jax.random.key(0), image, train=False)  # operation by operation, as most programs do
        trained = [teachers.Trained('teacher', network, facts, 0.1, jax.device_get(variables))]
    devices = 1 if spec['variant'] != 'kd_jax' else None
    par = parallel.Parallel('auto', devices, fast=fast).for_batch(spec['batch'])
    return program.Program('student', run.copy_and_resolve_references(), splits, trained, par, spec.get('steps', 0)), trained


def stepper(made: program.Program, taught: program.Taught, data: dict[str, Any]) -> Callable[[int], None]:
    """`work(steps)`: the training of a run, from its first step on, with the training images `data` on the devices."""
    par, done = made.parallel, 0
    state = par.replicate(made.fresh_state(0, None))
    order = batches.TrainOrder(made.pool, made.train_count, made.run.batch_size, 0)

    def work(steps: int) -> None:
        nonlocal state, done
        goal = done + steps
        while done < goal:
            count = min(made.steps_per_dispatch, goal - done)
            batch = par.divide(train.stacked(order, done, count, made, taught), axis=1)
            state, metrics = made.train_steps(state, np.int32(0), taught.variables['train'], data, np.int32(count), batch)
            done += count
        jax.block_until_ready(metrics)

    return work


def build(spec: Mapping[str, Any], images: np.ndarray, labels: np.ndarray) -> tuple[Callable[[int], None], dict[str, Any]]:
    """`(work(steps), facts)`; one step is done.

    `plain_flax` is the same step with Flax's usual layers, initial values traced operation by operation, one device, one
    step a call, and no compilation cache.
    """
    begin = time.perf_counter()
    fast = spec['variant'] != 'plain_flax'
    runtime.prepare(fast=fast)
    splits = make_splits(images, labels, spec['classes'])
    made, trained = make_program(spec | ({} if fast else {'steps': 1}), splits, fast)
    par, data = made.parallel, made.data('train')
    if not fast:
        image = jnp.zeros((1, *splits.train.image.shape[1:]))
        jax.block_until_ready(made.student.model.init(jax.random.key(0), image, train=False))
    work = stepper(made, made.taught(trained), data)

    ready = time.perf_counter()
    work(1)
    end = time.perf_counter()
    facts = {'first_s': end - begin, 'initial_s': ready - begin, 'compile_s': end - ready, 'devices': len(par)}
    return work, facts | {'device': par.devices[0].platform, 'steps_per_dispatch': made.steps_per_dispatch}


def flops(spec: Mapping[str, Any], size: int) -> float:
    """Of one step's networks: the teacher forward, the student forward and backward, with plain layers, as XLA counts them."""
    image = jax.ShapeDtypeStruct((spec['batch'], size, size, 3), jnp.float32)

    def count(name: str, trains: bool) -> float:
        model = models.build(name, spec['classes'], dropout=0.0).clone(fast=False)
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)

        def forward(params, rest, x):
            if trains:
                return model.apply({'params': params, **rest}, x, train=True, mutable=list(rest))[0].logits.sum()
            return model.apply({'params': params, **rest}, x, train=False).logits.sum()

        rest = {key: value for key, value in variables.items() if key != 'params'}
        lowered = jax.jit(jax.grad(forward) if trains else forward).lower(variables['params'], rest, image)
        return float(lowered.cost_analysis()['flops'])

    return count(spec['student'], True) + (count(spec['teacher'], False) if spec['teacher'] else 0.0)


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
