"""What a workdir holds of its runs: configs, results, logs, also before it is finished."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from kd_jax import config as config_lib
from kd_jax import records
from kd_jax.teacher_outputs import outside
from kd_jax.workdir import PathLike, RunDirectory, find_run, matches, read_metrics

MOST_SHOWN = 8  # runs that the charts show at once: as many colours can be told apart


@dataclasses.dataclass(frozen=True)
class Seed:
    """A run with one seed. config: in today's names; result: None as long as it trains; lines: of
    its metrics.jsonl.
    """

    run: str
    seed: int
    directory: RunDirectory
    recorded: Mapping[str, Any]
    config: Mapping[str, Any]
    result: Mapping[str, Any] | None
    lines: Sequence[Mapping[str, Any]]

    @property
    def imported(self) -> bool:
        """Whether its weights came from a file."""
        return 'data' not in self.recorded['config']


def found(workdir: PathLike) -> list[Seed]:
    """The runs whose directories are there, in the order of study.json; imported teachers first.

    Raises:
      UserError: if a record is damaged.
    """
    folder, seeds = epath.Path(workdir), []
    for path in matches(folder, '*/seed*/config.json'):
        directory = RunDirectory(path.parent)
        recorded = directory.info()
        config = config_lib.upgraded(recorded['config'])
        result = directory.result() if directory.finished() else None
        lines = read_metrics(directory.path)
        run, seed = recorded['run'], recorded['seed']
        seeds.append(Seed(run, seed, directory, recorded, config, result, lines))
    planned = list((study(folder) or {}).get('runs') or {})

    def place(of: Seed) -> tuple[int, str, int]:
        where = [k for k, name in enumerate(planned) if _is_of(of.run, name)]
        return (-1 if of.imported else where[-1] if where else len(planned), of.run, of.seed)

    return sorted(seeds, key=place)


def _is_of(run: str, name: str) -> bool:
    """Whether `run` is the run `name` of a study, or a member of that sweep."""
    return run == name or run.startswith(f'{name}-')


def study(workdir: PathLike) -> dict[str, Any] | None:
    """The config of the study; None where an earlier version did not write it down."""
    path = epath.Path(workdir) / 'study.json'
    return records.read(path, dict, 'run its study again') if path.exists() else None


def command(workdir: PathLike) -> dict[str, Any] | None:
    """How the study was called last; None where an earlier version did not write it down."""
    path = epath.Path(workdir) / 'command.json'
    return records.read(path, records.Command, 'run its study again') if path.exists() else None


def configs(seeds: Sequence[Seed]) -> dict[str, Mapping[str, Any]]:
    """Name -> config of the runs that were trained, as `kd_jax.report.gains` takes them."""
    of: dict[str, Mapping[str, Any]] = {}
    for seed in seeds:
        if not seed.imported:
            every = [other.seed for other in seeds if other.run == seed.run]
            of.setdefault(seed.run, {**seed.config, 'seeds': every})
    return of


def is_finished(workdir: PathLike, seeds: Sequence[Seed]) -> bool:
    """Whether the study came to its end: it has its results, and nothing began after them."""
    folder = epath.Path(workdir)
    results, config = folder / 'results.json', folder / 'study.json'
    if not results.exists():
        return False
    if all(seed.result is not None for seed in seeds) or not config.exists():
        return True
    return bool(results.stat().mtime >= config.stat().mtime)


def teachers(seed: Seed, workdir: PathLike) -> list[RunDirectory]:
    """Those that are other runs.

    Raises:
      UserError: if one is not there any more.
    """
    directories = []
    for name in outside(tuple(seed.config['teachers'])):
        inside = epath.Path(workdir) / name
        path = inside if inside.exists() else epath.Path(name).expanduser()
        directories.append(find_run(path, seed.seed))
    return directories


def shown(seeds: Sequence[Seed], most: int = MOST_SHOWN) -> list[str]:
    """The runs that the charts show at first: all of them, or the teachers, those that have
    neither teacher nor start, and the best on validation.
    """
    names = list(dict.fromkeys(seed.run for seed in seeds))
    if len(names) <= most:
        return names
    teach = {name.partition('/')[0] for seed in seeds for name in seed.config['teachers']}
    alone = {s.run for s in seeds if not s.config['teachers'] and not s.config['init']}
    first = [name for name in names if name in teach | alone][: most // 2]
    best = sorted((name for name in names if name not in first), key=lambda n: -_val(n, seeds))
    chosen = {*first, *best[: most - len(first)]}
    return [name for name in names if name in chosen]


def _val(name: str, seeds: Sequence[Seed]) -> float:
    """The mean validation top-1 of a run; -1 where there is none."""
    found = [((s.result or {}).get('val') or {}).get('top1') for s in seeds if s.run == name]
    known = [value for value in found if isinstance(value, (int, float))]
    return sum(known) / len(known) if known else -1.0
