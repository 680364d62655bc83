"""One run with one seed: train from the latest checkpoint (or from nothing) to result.json."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kd_jax import evaluate, parallel, soft_targets
from kd_jax.checkpoint import Checkpoints
from kd_jax.data import batches
from kd_jax.monitor import Monitor, say, warn
from kd_jax.networks import variables_of
from kd_jax.program import Program, Taught
from kd_jax.record import Dispatch, Due, Progress, Recorder
from kd_jax.runtime import Trace
from kd_jax.step import TrainState
from kd_jax.teachers import Trained
from kd_jax.workdir import RunDirectory, to_json


class Stopped(Exception):
    """The run was asked to stop, and has saved its state."""


class Trainee:
    """A seed of a run on its way to result.json: what it is, its files, and its state as it was saved last.

    A context manager, in which its metrics and checkpoints can be written. learning_rate: its peak.
    """

    def __init__(
        self,
        program: Program,
        name: str,
        run: ConfigDict,
        seed: int,
        directory: RunDirectory,
        start: Trained | None,
        *,
        learning_rate: float,
        tensorboard: bool = True,
        wandb: str = '',
        shown: bool = True,
    ):
        self.name, self.run, self.seed, self.directory = name, run, seed, directory
        self.title = f'{name} seed {seed}'
        self.learning_rate = learning_rate
        self._program, self._start = program, start
        self._shown = {'tensorboard': tensorboard, 'wandb': wandb, 'shown': shown}
        self._stack = contextlib.ExitStack()
        self.order_seed = seed if run.order_seed is None else run.order_seed

    def __enter__(self):
        begin, program = time.perf_counter(), self._program
        config = to_json(self.run.to_dict())
        if parallel.is_main():
            facts = {'run': self.name, 'seed': self.seed, 'learning_rate': self.learning_rate, 'data': program.facts()}
            self.directory.start(to_json(facts | {'config': config}))
        parallel.barrier(f'{self.title} directory')
        self._fresh = program.fresh_state(self.seed, self._start)
        with contextlib.ExitStack() as stack:
            self.checkpoints = stack.enter_context(Checkpoints(self.directory.checkpoints))
            self.state, meta = self.checkpoints.restore_latest(self._fresh, warn) or (self._fresh, {})
            self.progress = Progress(**meta)
            self.step = int(self.state.step)
            if parallel.is_main():
                self.directory.forget_after(self.step)
                if self.step:
                    say(f'{self.title} · resumed at step {self.step} of {program.total_steps}')
            monitor = stack.enter_context(
                Monitor(
                    self.title,
                    self.directory.path,
                    total_steps=program.total_steps,
                    steps_per_epoch=program.steps_per_epoch,
                    batch_size=self.run.batch_size,
                    active=parallel.is_main(),
                    config=config,
                    **self._shown,
                )
            )
            factor = self.learning_rate / program.learning_rate
            self.recorder = Recorder(
                self.title,
                self.progress,
                monitor,
                self.checkpoints,
                batch_size=self.run.batch_size,
                learning_rate=lambda step: factor * float(program.schedule(step)),
                peak=self.learning_rate,
                begin=begin,
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        return self._stack.__exit__(*error)

    def has_enough(self, step: int) -> bool:
        """Whether the training is over after `step` updates."""
        return step >= self._program.total_steps or bool(self.run.patience and self.progress.since_best >= self.run.patience)

    def chosen(self, step: int) -> tuple[int, TrainState | None]:
        """The step whose weights count after the last one, and its state as it was saved; None: that is the last one's."""
        self.checkpoints.wait()
        chosen = self.progress.best_step if self.run.select == 'best' else step
        if chosen == step:
            return chosen, None
        return chosen, flax.serialization.from_state_dict(self._fresh, self.checkpoints.read(chosen)[0])

    def conclude(
        self,
        step: int,
        chosen: int,
        variables: Any,
        val: dict[str, Any],
        test: dict[str, Any] | None,
        peer: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Writes result.json and returns what is in it, all of the `chosen` step; `test` is None if that split is not read.

        peer: what the second student of the run achieved, if there is one.
        """
        program = self._program
        taught = (val if test is None else test).get('teacher')
        val, test = (split and {name: value for name, value in split.items() if name != 'teacher'} for split in (val, test))
        result = {
            'run': self.name,
            'seed': self.seed,
            'model': self.run.model.name,
            'params': program.params,
            'trainable': program.trainable,
            **program.cost(variables),
            'steps': step,
            'checkpoint': chosen,
            'seconds': self.recorder.seconds(),
            'images_per_second': self.progress.images / self.progress.train_seconds if self.progress.train_seconds else None,
            'teacher': taught,
            'val': val,
            'test': test,
        } | ({'peer': peer} if peer else {})
        if parallel.is_main():
            self.directory.finish(to_json(result))
            if test is not None:
                say(f'{self.title} · test top-1 {100 * test["top1"]:.2f} % · {result["seconds"]:.0f} s')
        parallel.barrier(f'{self.title} finished')
        return result


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
    par, kept = program.parallel, {'tensorboard': tensorboard, 'wandb': wandb}
    trainee = Trainee(program, program.name, program.run, seed, directory, start, learning_rate=program.learning_rate, **kept)
    order = batches.TrainOrder(program.pool, program.train_count, program.run.batch_size, trainee.order_seed)
    seeds = np.array([trainee.order_seed, seed], np.int32)
    with trainee as one:
        state, step, recorder = par.replicate(one.state), one.step, one.recorder
        evaluated = False
        with Trace(directory.path / 'profile', profile) as trace:
            while not one.has_enough(step):
                trace.at(step)
                count = program.steps_at_once(step)
                batch = par.divide(stacked(order, step, count, program, taught), axis=1)
                state, metrics = program.train_steps(
                    state, seeds, taught.variables['train'], program.data('train'), np.int32(count), batch
                )
                step += count
                waited = recorder.dispatched(Dispatch(step, count, metrics))
                if waited is not None and parallel.is_main():
                    say(f'{one.title} · first step after {waited:.1f} s')
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
                    if stopping or program.run.patience or not program.overlap:
                        recorder.settle()
                if stopping:
                    raise Stopped
            recorder.settle()
        if profile and not trace.begun and parallel.is_main():
            warn(f'no trace of {one.title}: profile={profile} lies outside of what was trained now, up to step {step}')
        chosen, saved = one.chosen(step)
    state = state if saved is None else par.replicate(saved)
    variables, peer = selected(state), None
    val, test = (evaluate.finish(_start_evaluation(program, variables, taught, split)) for split in ('val', 'test'))
    if program.peer is not None:
        second = variables_of(state.params['peer'], state.model_state['peer'])
        step_ = program.peer_eval_step
        peer = {
            split: evaluate.evaluate(step_, par, second, taught.judged(split), program.data(split)) for split in ('val', 'test')
        }
    return trainee.conclude(step, chosen, variables, val, test, peer)


def selected(state: TrainState) -> dict[str, Any]:
    """The variables that are evaluated and teach: the average if the run keeps one."""
    if state.ema is not None:
        return variables_of(state.ema['params'], state.ema['model_state'])
    return variables_of(state.params['student'], state.model_state['student'])


def stacked(order: batches.TrainOrder, step: int, count: int, program: Program, taught: Taught) -> dict[str, Any]:
    """Indices and view numbers `[S, B]` of `count` steps from `step` on; what comes after those is not used.

    With mixup also each example's partner, its neighbour in the batch; and the soft targets, unless the devices hold them.
    """
    several = order.several(step, count, program.steps_per_dispatch)
    partners = {f'partner_{name}': np.roll(value, 1, axis=1) for name, value in several.items()} if program.mixup else {}
    if taught.streamed:
        slot = program.slots(order.seed, several['index'], several['view'])
        rows = tuple(soft_targets.columns(table[several['index'], slot]) for table in taught.streamed)
        return several | partners | {'stored': rows}
    return several | partners


def _start_evaluation(program: Program, variables: Any, taught: Taught, split: str) -> list:
    return evaluate.start(program.eval_step, program.parallel, variables, taught.judged(split), program.data(split))
