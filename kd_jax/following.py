"""What is told of jobs that train, one or several at once: to whoever shows how far they are."""

import statistics
from collections.abc import Callable, Mapping, Sequence

from kd_jax import display
from kd_jax.monitor import detail
from kd_jax.parallel import is_main
from kd_jax.progress import Part
from kd_jax.spec import RunSpec, Timing
from kd_jax.train_log import JobLog


def part_of(timing: Timing | None, trainings: int) -> Part:
    """Of a run or a sweep. timing: None where nothing is left of it."""
    return Part(timing.total_steps, len(timing.eval_steps), trainings) if timing else Part(0, 0, 0)


def plan(
    groups: Mapping[str, Sequence[str]],
    specs: Mapping[str, RunSpec],
    unfinished: Callable[[str], list[int]],
) -> None:
    """The runs and sweeps of a study with what is left of them. specs: of those that have
    something; unfinished: the seeds that are left of a run.
    """
    parts = {}
    for group, names in groups.items():
        seeds = [seed for name in names for seed in unfinished(name)]
        trainings = len(seeds) if [group] == list(names) else len({*seeds})
        timing = specs[group].timing if group in specs else None
        parts[group] = part_of(timing, trainings)
    display.tracker().plan(parts)


def begin(spec: RunSpec, trainings: int, about: str) -> None:
    """A run or a sweep begins."""
    if is_main():
        detail(f'{spec.name} · {about}')
    display.tracker().begin(spec.name, part_of(spec.timing, trainings))


def begins(logs: Sequence[JobLog], step: int) -> None:
    """These train from `step` on."""
    job = logs[0].job
    seeds, timing = list(job.config.seeds), job.run.timing
    place = f'{len(logs)} students'
    if len(logs) == 1:
        place = f'seed {job.seed}'
        if len(seeds) > 1 and job.seed in seeds:
            place += f' ({seeds.index(job.seed) + 1} of {len(seeds)})'
    due = sum(later > step for later in timing.eval_steps)
    epochs = timing.total_steps / timing.steps_per_epoch
    display.tracker().training(place, step, timing.total_steps, epochs, due)


def stepped(logs: Sequence[JobLog], step: int) -> None:
    """These have their first `step` steps behind them, or on the devices. The loss is that of the
    first of them, images a second are those of all.
    """
    monitor = logs[0].recorder.monitor
    top1 = [log.recorder.val['top1'] for log in logs if log.recorder.val]
    val = f'{100 * max(top1):.2f} %' if top1 else ''
    if len(logs) > 1 and top1:
        val = f'median {100 * statistics.median(top1):.2f} %, best {val}'
    rate = len(logs) * monitor.rate
    display.tracker().stepped(step, monitor.loss, val, rate, monitor.waits)


def tell_middle(step: int, logs: Sequence[JobLog]) -> None:
    """One line for all jobs."""
    timing = logs[0].job.run.timing
    top1 = {log.job.title: log.recorder.val['top1'] for log in logs}
    best, middle = max(top1, key=lambda title: top1[title]), statistics.median(top1.values())
    detail(
        'epoch '
        f'{step / timing.steps_per_epoch:.1f}/{timing.total_steps / timing.steps_per_epoch:.1f} · '
        f'val top-1 of {len(logs)} students: median {100 * middle:.2f} %, best '
        f'{100 * top1[best]:.2f} % ({best})'
    )
