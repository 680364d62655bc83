"""What the user is told: sentences, a line at each validation, metrics.jsonl, TensorBoard
events, Weights & Biases.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from etils import epath

from kd_jax import display
from kd_jax.display import clock, waiting
from kd_jax.errors import UserError


def say(text: str) -> None:
    """A line for the user, on stdout, above what moves there."""
    display.current().say(text)


def detail(text: str) -> None:
    """A line that only a log needs: what moves on a terminal says it as well."""
    if not display.current().live:
        say(text)


def warn(text: str) -> None:
    """A line for the user, on stderr, above what moves there."""
    display.current().warn(text)


_told: set[str] = set()


def warn_once(text: str) -> None:
    """`warn`, the first time only."""
    if text not in _told:
        _told.add(text)
        warn(text)


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

    A plain line at every evaluation, where nothing else shows that and if it is `shown`.
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
        self.loss: float | None = None  # of the latest step that is known
        self._pace = Pace()
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
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def advance(self, step: int, loss: float, waited: float = 0.0) -> float:
        """`step` updates are done; `loss` is that of the last one; the devices waited so many
        seconds for images. Returns the seconds of training since the last call.

        After a pause, and at the first call, that is 0: what came before was not only training.
        """
        self.loss = loss
        return self._pace.advance(step, waited)

    @property
    def waits(self) -> float:
        """The share of the time since the last pause in which the devices waited for images."""
        return self._pace.waits

    @property
    def rate(self) -> float:
        """Images a second since the last pause; 0: not known."""
        return self._pace.rate * self._batch

    def evaluated(self, step: int, val: Mapping[str, Any]) -> None:
        """Tells the validation accuracy as a line, where only lines are shown."""
        if not self._shown:
            return
        parts = [
            self.title,
            f'epoch {step / self._epoch:.1f}/{self._total / self._epoch:.1f}',
            '' if self.loss is None else f'loss {self.loss:.4g}',
            f'val top-1 {100 * val["top1"]:.2f} %',
        ]
        if self.rate:
            left = (self._total - step) / self._pace.rate
            parts += [f'{self.rate:.0f} images/s', waiting(self.waits), f'{clock(left)} left']
        detail(' · '.join(part for part in parts if part))

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
        self.waits = self._waited = 0.0  # share of that time, and seconds
        # the time of the last call, and the step then; None: there was none
        self._last: tuple[float, int | None] = (time.perf_counter(), None)
        self._mark = (self._last[0], 0)  # where the rate counts from

    def advance(self, step: int, waited: float = 0.0) -> float:
        """`step` steps are done, with so many seconds of waiting; the seconds since the last call,
        0 at the first one.
        """
        now, (then, before) = time.perf_counter(), self._last
        self._last = (now, step)
        if before is None:
            self._mark, self._waited = (now, step), 0.0
            return 0.0
        self._waited += waited
        self.waits = self._waited / (now - self._mark[0])
        self.rate = (step - self._mark[1]) / (now - self._mark[0])  # metrics come in bursts
        return now - then

    def pause(self) -> None:
        """What comes until now does not count."""
        self._last = (time.perf_counter(), self._last[1])
        self._mark, self._waited = (self._last[0], self._last[1] or 0), 0.0


def import_wandb(project: str) -> Any:
    """The module wandb; `UserError` where it is not installed."""
    try:
        import wandb
    except ImportError as error:
        fix = 'pip install wandb, or leave the field empty'
        raise UserError(f'--config.wandb={project} needs the package wandb; {fix}') from error
    return wandb
