"""Runs contenders side by side: each in a process of its own, which does its share
of work when it is its turn.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from kd_jax import markdown

REPOSITORY = Path(__file__).parent.parent


@dataclasses.dataclass
class Lap:
    """What a contender measured."""

    info: dict[str, Any]  # what it said when it was ready: 'start_s', and whatever else it knows
    seconds: list[float]  # of a unit of work, one entry a round
    peak_mb: float  # of its memory, in MiB

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Contender:
    """The process of one contender:
    `python -m benchmarks.<module> --work=<JSON>`, which calls `serve`.
    """

    def __init__(
        self, module: str, spec: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ):
        self._begin = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, '-m', f'benchmarks.{module}', f'--work={json.dumps(spec)}'],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {'PYTHONPATH': str(REPOSITORY)} | (environment or {}),
        )

    def ready(self) -> dict[str, Any]:
        """Waits until it can start; 'start_s' is the time from the start of the process
        to the end of its first unit.
        """
        info = self._read()
        return {'start_s': time.perf_counter() - self._begin, **info}

    def run(self, units: int, *item: Any) -> float:
        """Seconds for `units` units of work; on `item`, where a
        contender knows several kinds of it.
        """
        self._write({'units': units, 'item': item})
        return self._read()['seconds']

    def stop(self) -> float:
        """Ends it; the peak of its memory in MiB."""
        self._write({'units': 0})
        peak = self._read()['peak_mb']
        self._process.communicate(timeout=60)  # also closes the pipes
        return peak

    def _write(self, message: dict[str, Any]) -> None:
        self._process.stdin.write(json.dumps(message) + '\n')
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            self._process.communicate()  # also closes the pipes
            status = self._process.returncode
            sys.exit(f'a contender ended with status {status}; its message stands above')
        return json.loads(line)


def race(
    contenders: Mapping[str, Callable[[], Contender]],
    *,
    rounds: int,
    units: Mapping[str, int] | int,
    warm_up: int = 1,
) -> dict[str, Lap]:
    """Lets the contenders take turns. Each is started alone, so that the times
    to start can be compared too.
    """
    running, info = {}, {}
    for name, start in contenders.items():
        running[name] = start()
        info[name] = running[name].ready()
        print(f'{name}: ready after {info[name]["start_s"]:.1f} s', file=sys.stderr, flush=True)
    laps = {name: Lap(info[name], [], 0.0) for name in running}
    for number in range(-warm_up, rounds):
        for name, contender in running.items():
            count = units if isinstance(units, int) else units[name]
            seconds = contender.run(count) / count
            if number >= 0:
                laps[name].seconds.append(seconds)
    for name, contender in running.items():
        laps[name].peak_mb = contender.stop()
    return laps


def ratio(base: Lap, other: Lap) -> tuple[float, float, float]:
    """How many times as fast `other` is as `base`: median, first and third
    quartile of the rounds' ratios.
    """
    ratios = [a / b for a, b in zip(base.seconds, other.seconds, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return middle, low, high


def between(low: float, high: float) -> str:
    """`1.02 – 1.10`: the quartiles of `ratio`, as text."""
    return f'{low:.2f} – {high:.2f}'


def serve(build: Callable[[], tuple[Callable[..., None], dict[str, Any]]]) -> None:
    """A contender's side: `build` returns `work(units)`, which has already
    done one unit, and `Lap.info`.

    It is `work(units, *item)` where `Contender.run` is given an item. Whatever
    libraries print goes to stderr.
    """
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + '\n')
        answers.flush()

    work, info = build()
    answer(info)
    for line in sys.stdin:
        message = json.loads(line)
        units = message['units']
        if not units:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            answer({'peak_mb': peak / (1024 if platform.system() == 'Linux' else 1024**2)})
            return
        begin = time.perf_counter()
        work(units, *message['item'])
        answer({'seconds': time.perf_counter() - begin})


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as a Markdown table, the first row as its head, padded to be read as it is."""
    return markdown.table(rows[0], rows[1:], padded=True)


def hardware() -> str:
    """The machine and the versions, for the line under a table."""
    name = platform.processor()
    with contextlib.suppress(OSError):
        text = Path('/proc/cpuinfo').read_text()
        name = next(
            line.split(':')[1].strip()
            for line in text.splitlines()
            if line.startswith('model name')
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    versions = []
    for package in ('jax', 'flax', 'torch'):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f'{package} {metadata.version(package)}')
    return (
        f'{cores} cores of {name}, Python {platform.python_version()}, '
        f'{", ".join(versions)}, {time.strftime("%Y-%m-%d")}'
    )


def conclude(figures: dict[str, Any], path: Path | None) -> None:
    """Prints the line under the tables, and writes the figures with
    it to `path`, if one is given.
    """
    line = hardware()
    print(line)
    if path:
        path.write_text(json.dumps({'hardware': line, **figures}, indent=1) + '\n')


def parser(description: str) -> argparse.ArgumentParser:
    """What all benchmarks understand."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        '--rounds', type=int, default=9, help='how often each contender has its turn'
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the figures there')
    parser.add_argument('--work', type=json.loads, help=argparse.SUPPRESS)
    return parser
