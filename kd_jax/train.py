"""One run with one seed: train from the latest checkpoint (or from nothing) to result.json."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import numpy as np

from kd_jax import evaluate, parallel
from kd_jax.checkpoint import Checkpoints
from kd_jax.data import batches
from kd_jax.errors import UserError
from kd_jax.monitor import Monitor, say, warn
from kd_jax.program import Program
from kd_jax.step import TrainState, variables_of
from kd_jax.teachers import Trained
from kd_jax.workdir import RunDirectory, to_json

SYNC_EVERY = 50  # steps between looks at the losses: rarely enough that the device never waits for the host


class Stopped(Exception):
    """The run was asked to stop, and has saved its state."""


@dataclasses.dataclass
class Progress:
    """What a resumed run must know besides the state; saved as JSON in every checkpoint."""

    best_step: int | None = None
    best: list[float] | None = None  # [top-1, -NLL] on validation: the NLL decides between equal accuracies
    since_best: int = 0  # validations
    interval_steps: int = 0  # since the last validation
    interval_sums: dict[str, float] = dataclasses.field(default_factory=dict)
    images: int = 0  # trained on, and the seconds that took: no compilation, no evaluation
    train_seconds: float = 0.0
    seconds: float = 0.0  # of everything

    def add(self, sums: dict[str, Any]) -> None:
        """One step's metrics."""
        self.interval_steps += 1
        for name, value in sums.items():
            self.interval_sums[name] = self.interval_sums.get(name, 0.0) + float(value)

    def close_interval(self) -> dict[str, float]:
        """The mean metrics of the steps since the last call."""
        means = {name: value / self.interval_steps for name, value in self.interval_sums.items()}
        self.interval_steps, self.interval_sums = 0, {}
        return means

    def judge(self, step: int, val: dict[str, float]) -> None:
        """Notes whether the validation at `step` is the best so far."""
        value = [val['top1'], -val['nll']]
        if self.best is None or value > self.best:
            self.best, self.best_step, self.since_best = value, step, 0
        else:
            self.since_best += 1


def train(
    program: Program,
    directory: RunDirectory,
    seed: int,
    *,
    trained: Sequence[Trained],
    start: Trained | None,
    should_stop: Callable[[], bool],
    tensorboard: bool = True,
    wandb: str = '',
) -> dict[str, Any]:
    """Trains `seed` of a run to the end and returns what went into its result.json.

    trained: the teachers of this seed. start: the run whose weights it starts from, if any.

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
    teacher_variables = tuple(par.replicate(t.variables) for t in trained)
    fresh = program.fresh_state(seed, start)

    with Checkpoints(directory.checkpoints) as checkpoints:
        state, meta = checkpoints.restore_latest(fresh, warn) or (fresh, {})
        progress = Progress(**meta)
        before = progress.seconds
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
        with monitor:
            pending: list[dict[str, jax.Array]] = []
            while step < program.total_steps and not (run.patience and progress.since_best >= run.patience):
                batch = par.divide(_batch(order, step, program.mixup))
                state, sums = program.train_step(state, np.int32(seed), teacher_variables, program.data('train'), batch)
                step += 1
                pending.append(sums)
                due = step in program.eval_steps
                # Several processes must agree to stop, which costs a message: they ask at evaluations only.
                stopping = should_stop() if jax.process_count() == 1 else due and par.any(should_stop())
                if due or stopping or len(pending) == SYNC_EVERY or step == 1:
                    _collect(pending, step, progress, title, program.learning_rate)
                    seconds = monitor.advance(step, float(jax.device_get(sums['loss'])))
                    progress.images += run.batch_size * len(pending) * (seconds > 0)
                    progress.train_seconds += seconds
                    pending = []
                if due:
                    means = progress.close_interval()
                    monitor.write(step, 'train', means | {'learning_rate': float(program.schedule(step - 1))})
                    val = _evaluate(program, selected(state), teacher_variables, 'val')
                    monitor.write(step, 'val', _flat(val))
                    monitor.evaluated(step, val)
                    progress.judge(step, val)
                if due or stopping:
                    progress.seconds = before + time.perf_counter() - begin
                    checkpoints.save(step, state, dataclasses.asdict(progress))
                    monitor.pause()
                if stopping:
                    raise Stopped
        checkpoints.wait()
        chosen = progress.best_step if run.select == 'best' else step
        if chosen != step:
            state = par.replicate(flax.serialization.from_state_dict(fresh, checkpoints.read(chosen)[0]))

    variables = selected(state)
    val, test = (_evaluate(program, variables, teacher_variables, split) for split in ('val', 'test'))
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
        'seconds': before + time.perf_counter() - begin,
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


def _batch(order: batches.TrainOrder, step: int, mixup: float) -> dict[str, np.ndarray]:
    """The indices and view numbers of a step; with mixup also each example's partner, its neighbour in the batch."""
    batch = order.at(step)
    partners = {f'partner_{name}': np.roll(value, 1) for name, value in batch.items()} if mixup else {}
    return batch | partners


def _collect(pending: list, step: int, progress: Progress, title: str, learning_rate: float) -> None:
    """Adds the metrics of the pending steps, the last of which is `step`; refuses a loss that is not finite."""
    for number, sums in enumerate(jax.device_get(pending), start=step - len(pending) + 1):
        if not math.isfinite(sums['loss']):
            raise UserError(
                f'the loss of {title} became {sums["loss"]} at step {number}; the last good checkpoint is kept; '
                f'lower optim.learning_rate (now {learning_rate:g}) or set optim.clip_norm, in a new --workdir'
            )
        progress.add(sums)


def _evaluate(program: Program, variables: Any, teacher_variables: tuple, split: str) -> dict[str, Any]:
    return evaluate.evaluate(program.eval_step, program.parallel, variables, teacher_variables, program.data(split))


def _flat(metrics: dict[str, Any]) -> dict[str, float]:
    """Metrics for a log line: the groups 'teacher' and 'heads' become names with a prefix."""
    flat = {name: value for name, value in metrics.items() if name not in ('teacher', 'heads')}
    for group, prefix in (('teacher', 'teacher_'), ('heads', 'top1_')):
        flat |= {f'{prefix}{name}': value for name, value in (metrics.get(group) or {}).items()}
    return flat
