"""What the user sees while a run trains: progress, metrics.jsonl, TensorBoard events, Weights & Biases."""

import contextlib
import json
import os
import sys
import time
from typing import Any

from etils import epath

from kd_jax.errors import UserError


def say(text: str) -> None:
    """A line for the user, on stdout."""
    print(text, flush=True)


def warn(text: str) -> None:
    """A line for the user, on stderr."""
    print(f'warning: {text}', file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """`75 -> '1:15'`, `3700 -> '1:01:40'`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'


class Monitor:
    """Follows one run; a context manager. Only the main process (`active`) writes anything.

    A progress bar where stdout is a terminal, otherwise a plain line at every evaluation; neither unless it is `shown`.
    """

    def __init__(
        self,
        title: str,
        directory: str | os.PathLike[str],
        *,
        total_steps: int,
        steps_per_epoch: float,
        batch_size: int,
        active: bool = True,
        tensorboard: bool = True,
        wandb: str = '',
        config: dict[str, Any] | None = None,
        shown: bool = True,
    ):
        self.title, self.active, self._shown = title, active, shown
        self.total_steps, self.steps_per_epoch, self.batch_size = total_steps, steps_per_epoch, batch_size
        self._bar = self._events = self._wandb = self._file = None
        self._last = (time.perf_counter(), None)
        self._text = {'loss': '', 'val': ''}
        self._rate = 0.0
        self._files = contextlib.ExitStack()
        if not active:
            return
        directory = epath.Path(directory)
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(directory / 'tensorboard'))
        if wandb:
            self._wandb = import_wandb(wandb).init(project=wandb, name=title, dir=str(directory), config=config, resume='allow')
        self._file = self._files.enter_context((directory / 'metrics.jsonl').open('a'))

    def __enter__(self):
        if self.active and self._shown and sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = TextColumn('{task.description}'), BarColumn(), TextColumn('{task.fields[text]}'), TimeRemainingColumn()
            self._bar = Progress(*columns)
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total_steps, text='compiling')
        return self

    def __exit__(self, *_):
        if self._bar:
            self._bar.stop()
        self._files.close()
        if self._events:
            self._events.close()
        if self._wandb:
            self._wandb.finish()

    def advance(self, step: int, loss: float) -> float:
        """`step` updates are done; `loss` is that of the last one. Returns the seconds of training since the last call.

        After a pause, and at the first call, that is 0: what came before was not only training.
        """
        now, (then, before) = time.perf_counter(), self._last
        seconds = 0.0
        if before is None:
            self._mark = (now, step)
        else:
            seconds = now - then
            self._rate = (step - self._mark[1]) * self.batch_size / (now - self._mark[0])  # metrics come in bursts
        self._last = (now, step)
        self._text['loss'] = f'loss {loss:.4g}'
        if self._bar:
            self._bar.update(self._task, completed=step, text=self._line(step))
        return seconds

    def _line(self, step: int) -> str:
        epoch = f'epoch {step / self.steps_per_epoch:.1f}/{self.total_steps / self.steps_per_epoch:.1f}'
        rate = f'{self._rate:.0f} images/s' if self._rate else ''
        return ' · '.join(part for part in (epoch, self._text['loss'], self._text['val'], rate) if part)

    def evaluated(self, step: int, val: dict[str, float]) -> None:
        """Shows the validation accuracy; without a terminal, as a line."""
        self._text['val'] = f'val top-1 {100 * val["top1"]:.2f} %'
        if self._bar:
            self._bar.update(self._task, completed=step, text=self._line(step))
        elif self.active and self._shown:
            left = (self.total_steps - step) * self.batch_size / self._rate if self._rate else None
            say(f'{self.title} · {self._line(step)}' + (f' · {clock(left)} left' if left is not None else ''))

    def pause(self) -> None:
        """Until now it was not training: it does not count in images/s."""
        self._last = self._mark = (time.perf_counter(), self._last[1])

    def write(self, step: int, split: str, scalars: dict[str, float]) -> None:
        """One line of metrics.jsonl, and the same to TensorBoard and Weights & Biases."""
        if not self.active:
            return
        line = {'step': step, 'epoch': step / self.steps_per_epoch, 'split': split, **scalars}
        self._file.write(json.dumps(line) + '\n')
        self._file.flush()
        if self._events:
            for name, value in scalars.items():
                self._events.add_scalar(f'{split}/{name}', value, step)
        if self._wandb:
            self._wandb.log({f'{split}/{name}': value for name, value in scalars.items()}, step=step)


def import_wandb(project: str):
    """The module wandb; `UserError` where it is not installed."""
    try:
        import wandb
    except ImportError as error:
        fix = 'pip install -r requirements-extras.txt, or leave the field empty'
        raise UserError(f'--config.wandb={project} needs the package wandb; {fix}') from error
    return wandb
