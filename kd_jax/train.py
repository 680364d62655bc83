"""One run with one seed: train from the latest checkpoint (or from nothing) to result.json."""

import time
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import evaluate, parallel, soft_targets
from kd_jax.checkpoint import Checkpoints
from kd_jax.data import batches
from kd_jax.monitor import Monitor, say, warn
from kd_jax.program import Program, Taught
from kd_jax.record import Dispatch, Due, Progress, Recorder
from kd_jax.runtime import Trace
from kd_jax.step import TrainState, variables_of
from kd_jax.teachers import Trained
from kd_jax.workdir import RunDirectory, to_json


class Stopped(Exception):
    """The run was asked to stop, and has saved its state."""


def train(
    program: Program,
    directory: RunDirectory,
    seed: int,
    *,
    taught: Taught,
    start: Trained | None,
    should_stop: Callable[[], bool],
    tensorboard: bool = True,
    wandb: str = '',
    profile: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Trains `seed` of a run to the end and returns what went into its result.json.

    taught: what the teachers of this seed give. start: the run whose weights it starts from, if any. profile: (first, last)
    step of which a trace is written.

    Raises:
      Stopped: when `should_stop()`; the state is saved.
      UserError: when the loss is not finite or nothing can be saved; the last good checkpoint stays.
    """
    run, par, title = program.run, program.parallel, f'{program.name} seed {seed}'
    begin = time.perf_counter()
    config = to_json(run.to_dict())
    if parallel.is_main():
        facts = {'run': program.name, 'seed': seed, 'learning_rate': program.learning_rate, 'data': program.facts()}
        directory.start(to_json(facts | {'config': config}))
    parallel.barrier(f'{title} directory')
    order = batches.TrainOrder(program.pool, program.train_count, run.batch_size, seed)
    fresh = program.fresh_state(seed, start)

    with Checkpoints(directory.checkpoints) as checkpoints:
        state, meta = checkpoints.restore_latest(fresh, warn) or (fresh, {})
        progress = Progress(**meta)
        step = int(state.step)
        if parallel.is_main():
            directory.forget_after(step)
            if step:
                say(f'{title} · resumed at step {step} of {program.total_steps}')
        state = par.replicate(state)
        monitor = Monitor(
            title,
            directory.path,
            total_steps=program.total_steps,
            steps_per_epoch=program.steps_per_epoch,
            batch_size=run.batch_size,
            active=parallel.is_main(),
            tensorboard=tensorboard,
            wandb=wandb,
            config=config,
        )
        recorder = Recorder(
            title,
            progress,
            monitor,
            checkpoints,
            batch_size=run.batch_size,
            learning_rate=lambda step: float(program.schedule(step)),
            peak=program.learning_rate,
            begin=begin,
        )
        evaluated = False
        with monitor, Trace(directory.path / 'profile', profile) as trace:
            while step < program.total_steps and not (run.patience and progress.since_best >= run.patience):
                trace.at(step)
                count = program.steps_at_once(step)
                batch = par.divide(stacked(order, step, count, program, seed, taught), axis=1)
                state, metrics = program.train_steps(
                    state, np.int32(seed), taught.variables['train'], program.data('train'), np.int32(count), batch
                )
                step += count
                waited = recorder.dispatched(Dispatch(step, count, metrics))
                if waited is not None and parallel.is_main():
                    say(f'{title} · first step after {waited:.1f} s')
                due = step in program.eval_steps
                # Several processes must agree to stop, which costs a message: they ask at evaluations only.
                stopping = should_stop() if jax.process_count() == 1 else due and par.any(should_stop())
                if due or stopping:
                    if not (program.overlap and evaluated):  # evaluating, and compiling that, is no training
                        recorder.collect()
                    evaluated = True
                    sums = _start_evaluation(program, selected(state), taught, 'val') if due else None
                    saved = jax.tree.map(jnp.copy, state) if program.overlap else state  # the next steps reuse its buffers
                    recorder.due(Due(step, sums, saved))
                    if stopping or run.patience or not program.overlap:
                        recorder.settle()
                if stopping:
                    raise Stopped
            recorder.settle()
        checkpoints.wait()
        chosen = progress.best_step if run.select == 'best' else step
        if chosen != step:
            state = par.replicate(flax.serialization.from_state_dict(fresh, checkpoints.read(chosen)[0]))

    variables = selected(state)
    val, test = (evaluate.finish(_start_evaluation(program, variables, taught, split)) for split in ('val', 'test'))
    val.pop('teacher', None)
    result = {
        'run': program.name,
        'seed': seed,
        'model': run.model.name,
        'params': program.params,
        'trainable': program.trainable,
        **program.cost(variables),
        'steps': step,
        'checkpoint': chosen,
        'seconds': recorder.seconds(),
        'images_per_second': progress.images / progress.train_seconds if progress.train_seconds else None,
        'teacher': test.pop('teacher', None),
        'val': val,
        'test': test,
    }
    if parallel.is_main():
        directory.finish(to_json(result))
        say(f'{title} · test top-1 {100 * test["top1"]:.2f} % · {result["seconds"]:.0f} s')
    parallel.barrier(f'{title} finished')
    return result


def selected(state: TrainState) -> dict[str, Any]:
    """The variables that are evaluated and teach: the average if the run keeps one."""
    if state.ema is not None:
        return variables_of(state.ema['params'], state.ema['model_state'])
    return variables_of(state.params['student'], state.model_state['student'])


def stacked(order: batches.TrainOrder, step: int, count: int, program: Program, seed: int, taught: Taught) -> dict[str, Any]:
    """Indices and view numbers `[S, B]` of `count` steps from `step` on; what comes after those is not used.

    With mixup also each example's partner, its neighbour in the batch; and the soft targets, unless the devices hold them.
    """
    several = order.several(step, count, program.steps_per_dispatch)
    partners = {f'partner_{name}': np.roll(value, 1, axis=1) for name, value in several.items()} if program.mixup else {}
    if taught.streamed:
        slot = program.slots(np.int32(seed), several['index'], several['view'])
        rows = tuple(soft_targets.columns(table[several['index'], slot]) for table in taught.streamed)
        return several | partners | {'stored': rows}
    return several | partners


def _start_evaluation(program: Program, variables: Any, taught: Taught, split: str) -> list:
    return evaluate.start(program.eval_step, program.parallel, variables, taught.variables[split], program.data(split))
