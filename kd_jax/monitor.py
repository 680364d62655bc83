"""What the user sees while a run trains: progress, metrics.jsonl,
TensorBoard events, Weights & Biases.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

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


Sink = Callable[[int, str, Mapping[str, float]], None]  # (step, split, scalars)


def sinks(
    title: str,
    directory: epath.Path,
    closing: contextlib.ExitStack,
    *,
    tensorboard: bool,
    wandb: str,
    config: dict[str, Any] | None,
) -> list[Sink]:
    """What takes a run's scalars: metrics.jsonl and, if asked, TensorBoard and Weights &
    Biases; `closing` closes them.
    """
    writers: list[Sink] = []
    if tensorboard:
        from tensorboardX import SummaryWriter

        events = closing.enter_context(
            contextlib.closing(SummaryWriter(str(directory / 'tensorboard')))
        )

        def to_tensorboard(step: int, split: str, scalars: Mapping[str, float]) -> None:
            for name, value in scalars.items():
                events.add_scalar(f'{split}/{name}', value, step)

        writers.append(to_tensorboard)
    if wandb:
        # beside other runs of the same process
        options = {
            'dir': str(directory),
            'config': config,
            'resume': 'allow',
            'reinit': 'create_new',
        }
        run = import_wandb(wandb).init(project=wandb, name=title, **options)
        closing.callback(run.finish)
        writers.append(
            lambda step, split, scalars: run.log(
                {f'{split}/{k}': v for k, v in scalars.items()}, step=step
            )
        )
    return writers


class Monitor:
    """Follows one run; a context manager. Only the main process (`active`) writes anything.

    A progress bar where stdout is a terminal, otherwise a plain line at every evaluation;
    neither unless it is `shown`.
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
        self.title, self._active, self._shown = title, active, shown and active
        # in steps, steps and images
        self._total, self._epoch, self._batch = total_steps, steps_per_epoch, batch_size
        self._show: Callable[[int], None] | None = None  # a step, in the progress bar
        self._pace = Pace()
        self._text = {'loss': '', 'val': ''}
        self._closing = contextlib.ExitStack()
        self._sinks: list[Sink] = []
        if active:
            path = epath.Path(directory)
            self._sinks = sinks(
                title, path, self._closing, tensorboard=tensorboard, wandb=wandb, config=config
            )
            file = self._closing.enter_context((path / 'metrics.jsonl').open('a'))
            self._sinks.append(self._to(file))

    def _to(self, file: Any) -> Sink:
        """One JSON object a line."""

        def to_file(step: int, split: str, scalars: Mapping[str, float]) -> None:
            file.write(json.dumps(self._logged(step, split, scalars)) + '\n')
            file.flush()

        return to_file

    def _logged(self, step: int, split: str, scalars: Mapping[str, float]) -> dict[str, Any]:
        return {'step': step, 'epoch': step / self._epoch, 'split': split, **scalars}

    def __enter__(self) -> Self:
        if self._shown and sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn('{task.description}'),
                BarColumn(),
                TextColumn('{task.fields[text]}'),
                TimeRemainingColumn(),
            )
            bar = self._closing.enter_context(Progress(*columns))
            task = bar.add_task(self.title, total=self._total, text='compiling')
            self._show = lambda step: bar.update(task, completed=step, text=self._line(step))
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def advance(self, step: int, loss: float) -> float:
        """`step` updates are done; `loss` is that of the last one. Returns the seconds of
        training since the last call.

        After a pause, and at the first call, that is 0: what came before was not only training.
        """
        seconds = self._pace.advance(step)
        self._text['loss'] = f'loss {loss:.4g}'
        if self._show:
            self._show(step)
        return seconds

    def _line(self, step: int) -> str:
        epoch = f'epoch {step / self._epoch:.1f}/{self._total / self._epoch:.1f}'
        rate = f'{self._pace.rate * self._batch:.0f} images/s' if self._pace.rate else ''
        return ' · '.join(
            part for part in (epoch, self._text['loss'], self._text['val'], rate) if part
        )

    def evaluated(self, step: int, val: Mapping[str, Any]) -> None:
        """Shows the validation accuracy; without a terminal, as a line."""
        self._text['val'] = f'val top-1 {100 * val["top1"]:.2f} %'
        if self._show:
            self._show(step)
        elif self._shown:
            rate = self._pace.rate
            say(
                f'{self.title} · {self._line(step)}'
                + (f' · {clock((self._total - step) / rate)} left' if rate else '')
            )

    def pause(self) -> None:
        """Until now it was not training: it does not count in images/s."""
        self._pace.pause()

    def write(self, step: int, split: str, scalars: Mapping[str, float]) -> dict[str, Any]:
        """One line of metrics.jsonl, and the same to TensorBoard and Weights & Biases; returns
        the line.
        """
        for sink in self._sinks:
            sink(step, split, scalars)
        return self._logged(step, split, scalars)


class Pace:
    """How fast steps are done."""

    def __init__(self) -> None:
        self.rate = 0.0  # steps a second since the last pause
        # the time of the last call, and the step then; None: there was none
        self._last: tuple[float, int | None] = (time.perf_counter(), None)
        self._mark = (self._last[0], 0)  # where the rate counts from

    def advance(self, step: int) -> float:
        """`step` steps are done; the seconds since the last call, 0 at the first one."""
        now, (then, before) = time.perf_counter(), self._last
        self._last = (now, step)
        if before is None:
            self._mark = (now, step)
            return 0.0
        self.rate = (step - self._mark[1]) / (now - self._mark[0])  # metrics come in bursts
        return now - then

    def pause(self) -> None:
        """What comes until now does not count."""
        self._last = (time.perf_counter(), self._last[1])
        self._mark = (self._last[0], self._last[1] or 0)


def import_wandb(project: str) -> Any:
    """The module wandb; `UserError` where it is not installed."""
    try:
        import wandb
    except ImportError as error:
        fix = 'pip install wandb, or leave the field empty'
        raise UserError(f'--config.wandb={project} needs the package wandb; {fix}') from error
    return wandb
