"""Disturbs commands at random, runs each again until it is done, and compares what came out, bit
for bit, with the same command undisturbed:

    python -m tests.drill --faults=100 [--seed=0] [--only=run,search] [--number=17] [--workdir=DIR]

A line a fault, a table, and exit status 0 if there is no difference. A workdir with one is kept.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import shutil
import subprocess
import tempfile
import time
import traceback
from pathlib import Path

import commands

from drill import faults
from drill.outcome import differences, outcome, within
from drill.processes import blocks, ended, files, start, unshield
from drill.resuming import resume
from drill.subjects import subjects

SUBJECTS = ('run', 'stream', 'population', 'extraction', 'search')


@dataclasses.dataclass
class Undisturbed:
    """A subject without a fault: what came out, and how long it takes, by `Fault.fresh`.

    begun: the workdir in which it began. named: what of `outcome` was there.
    before, files: how many lay there then, and in the end.
    """

    begun: Path
    named: list[str]
    outcome: dict
    seconds: dict[bool, float]
    before: int
    files: int
    bytes: int
    largest: int


@dataclasses.dataclass
class Result:
    fault: faults.Fault
    cut_off: bool
    told: str
    mended: list[str]
    differences: list[str]
    seconds: float

    def line(self):
        what = [f'{len(self.differences)} DIFFERENCES'] if self.differences else ['the same']
        if self.mended:
            what.insert(0, 'refused, then mended as told')
        return ' · '.join(
            (
                f'#{self.fault.number:03d} {time.strftime("%H:%M:%S")}',
                self.fault.words(),
                self.told,
                *what,
                f'{self.seconds:.1f} s',
            )
        )


def prepared(subject, folder):
    """A workdir in which the command can begin; it is copied for each time it does."""
    workdir = folder / 'w'
    workdir.mkdir(parents=True)
    if subject.before:
        process = start(subject.preparation(workdir))
        code, wrong = ended(process)
        if code or wrong:
            raise SystemExit(f'{subject.name} cannot be prepared: {process.output()}')
    return workdir


def measure(subject, folder, begun):
    """The subject undisturbed, with its imports and without them, which must be the same."""
    outcomes, seconds, counted = [], {}, ()
    for fresh in (False, True, False):  # the first compiles
        workdir = folder / str(len(outcomes)) / 'w'
        shutil.copytree(begun, workdir)
        begin = time.monotonic()
        process = start(subject.command(workdir), fresh=fresh)
        code, wrong = ended(process)
        if code or wrong:
            raise SystemExit(f'{subject.name} undisturbed ended with {code}: {process.output()}')
        seconds[fresh] = time.monotonic() - begin
        outcomes.append(outcome(workdir))
        if unlike := differences(outcomes[0], outcomes[-1]):
            raise SystemExit(f'{subject.name} undisturbed is not always the same: {unlike}')
        sizes = [path.stat().st_size for path in files(workdir)]
        counted = len(files(begun)), len(sizes), blocks(sizes), max(sizes)
    return Undisturbed(begun, list(outcome(begun)), outcomes[0], seconds, *counted)


def try_one(fault, subject, undisturbed, folder):
    """A fault, and the command again."""
    begin, workdir = time.monotonic(), folder / f'{fault.number:03d}' / 'w'
    injected, mended = faults.Injected([]), []
    try:
        shutil.copytree(undisturbed.begun, workdir)
        injected = faults.inject(fault, subject, workdir, undisturbed)
        resumed = resume(subject, workdir, injected.unread, undisturbed.named)
        wrong, mended = injected.wrong + resumed.wrong, resumed.mended
        expected = undisturbed.outcome.items()
        if resumed.outcome is not None:
            there = {name: of for name, of in expected if not within(name, injected.unread)}
            wrong += differences(there, resumed.outcome)
    except Exception:
        wrong = [f'the drill itself: {traceback.format_exc()}']
    if os.path.ismount(workdir):
        if wrong:
            shutil.copytree(workdir, workdir.parent / 'kept')
        subprocess.run(['umount', workdir], check=True)
    if not wrong:
        shutil.rmtree(workdir.parent)
    took = time.monotonic() - begin
    return Result(fault, injected.cut_off, injected.told, mended, wrong, took)


def table(results):
    """The faults by kind and subject, as Markdown."""
    rows = [('fault', *SUBJECTS, 'cut off', 'mended as told', 'the same in the end', 'differences')]
    kinds = [kind for kind in faults.KINDS if any(r.fault.kind == kind for r in results)]
    for kind in (*kinds, 'all'):
        of = [result for result in results if kind in (result.fault.kind, 'all')]
        rows.append(
            (
                kind,
                *(str(sum(r.fault.subject == name for r in of)) for name in SUBJECTS),
                str(sum(r.cut_off for r in of)),
                str(sum(bool(r.mended) for r in of)),
                str(sum(not r.differences for r in of)),
                str(sum(bool(r.differences) for r in of)),
            )
        )
    rows.insert(1, ('---', *['---:'] * (len(rows[0]) - 1)))
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def options(arguments):
    parser = argparse.ArgumentParser(prog='python -m tests.drill', description=__doc__)
    parser.add_argument('--faults', type=int, default=100, help='how many')
    parser.add_argument('--seed', type=int, default=0, help='of what is drawn')
    parser.add_argument('--only', default=','.join(SUBJECTS), help='of ' + ','.join(SUBJECTS))
    parser.add_argument('--number', type=int, help='this fault alone')
    parser.add_argument('--workdir', help='where it works; a new folder if not given')
    parser.add_argument('--together', type=int, default=2, help='how many at once')
    given = parser.parse_args(arguments)
    given.only = given.only.split(',')
    if unknown := set(given.only) - set(SUBJECTS):
        parser.error(f'--only has {", ".join(unknown)}; it takes some of {",".join(SUBJECTS)}')
    return given


def main(arguments=None):
    given = options(arguments)
    unshield()
    workdir = Path(given.workdir or tempfile.mkdtemp(prefix='kd_jax_drill_')).resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix='drill_', dir=workdir))
    if not faults.small_disks():
        print('no file system can be mounted here: a limit on the size of files stands for it')
    all_subjects, undisturbed, results = subjects(folder), {}, []
    numbers = range(given.faults) if given.number is None else [given.number]
    drawn = [faults.draw(number, given.only, given.seed) for number in numbers]
    for name in sorted({fault.subject for fault in drawn}):
        begun = prepared(all_subjects[name], folder / f'{name}_begun')
        undisturbed[name] = measure(all_subjects[name], folder / f'{name}_undisturbed', begun)
        seconds = undisturbed[name].seconds
        print(
            f'{name} undisturbed: {len(undisturbed[name].outcome)} things to compare, '
            f'{seconds[False]:.1f} s, with its imports {seconds[True]:.1f} s',
            flush=True,
        )
    with concurrent.futures.ThreadPoolExecutor(given.together) as pool:
        waiting = [
            pool.submit(
                try_one, fault, all_subjects[fault.subject], undisturbed[fault.subject], folder
            )
            for fault in drawn
        ]
        for future in concurrent.futures.as_completed(waiting):
            result = future.result()
            results.append(result)
            lines = [result.line(), *result.mended, *result.differences]
            print('\n    '.join(lines), flush=True)
    commands.stop()
    unlike = [result for result in results if result.differences]
    print(f'\n{table(results)}\n\n{len(unlike)} differences')
    if unlike:
        for result in sorted(unlike, key=lambda result: result.fault.number):
            kept = folder / f'{result.fault.number:03d}'
            print('\n    '.join([f'{result.line()} · {kept}', *result.differences]))
        return 1
    shutil.rmtree(folder)
    return 0
