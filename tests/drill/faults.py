"""The faults: which, when, and how they are done to a command."""

import dataclasses
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import numpy as np

from drill.outcome import ended_trials
from drill.processes import BOUND, blocks, ended, files, handles, start

SIGNALS = ('SIGKILL', 'SIGTERM', 'SIGINT', 'SIGHUP')
DAMAGES = ('truncated', 'emptied', 'a bit flipped', 'random bytes', 'deleted', 'half a last line')
FULL_LIMIT, FULL_DISK, TWO = 'full disk: a limit', 'full disk: a small one', 'two processes'
KINDS = (*SIGNALS, *DAMAGES, FULL_LIMIT, FULL_DISK, TWO)


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is done to which subject.

    fresh: in a process that also imports the package. moment: 0 to 1, of the undisturbed time, or
    `by_files` of the number of files that the undisturbed command leaves. seed: of what else is
    drawn.
    """

    number: int
    subject: str
    kind: str
    fresh: bool
    by_files: bool
    moment: float
    seed: int

    def words(self):
        where = 'with its imports' if self.fresh else 'imported before'
        of = 'files' if self.by_files else 'time'
        return f'{self.subject} · {self.kind} at {100 * self.moment:.0f} % of its {of}, {where}'


def draw(number, subjects, seed):
    """Fault `number`: all kinds in turn, each in all subjects, at random moments."""
    rng = np.random.default_rng([seed, number])
    cycle, place = divmod(number, len(KINDS) * len(subjects))
    order = np.random.default_rng([seed, cycle, 10**6]).permutation(len(KINDS) * len(subjects))
    kind, subject = divmod(int(order[place]), len(subjects))
    fresh = KINDS[kind] in SIGNALS and rng.random() < 0.4
    return Fault(
        number,
        subjects[subject],
        KINDS[kind],
        bool(fresh),
        bool(rng.random() < 0.5 and not fresh),
        float(rng.uniform(0.0, 1.02)),
        int(rng.integers(2**31)),
    )


@dataclasses.dataclass
class Injected:
    """What came of a fault. wrong: sentences about what should not have been."""

    wrong: list[str]
    cut_off: bool = False  # the command was at work when it came
    told: str = ''  # what was done, for the reader
    unread: str = ''  # what was damaged, or its folder, if no command reads that any more


def inject(fault, subject, workdir, undisturbed):
    """Does it; the command has ended when this returns."""
    rng = np.random.default_rng(fault.seed)
    if fault.kind in SIGNALS:
        return _signalled(fault, subject, workdir, undisturbed)
    if fault.kind in DAMAGES:
        return _damaged(fault, subject, workdir, undisturbed, rng)
    if fault.kind == TWO:
        return _two(fault, subject, workdir, undisturbed)
    if fault.kind == FULL_DISK and small_disks():
        return _full_disk(subject, workdir, undisturbed, rng)
    return _full_limit(fault, subject, workdir, undisturbed, rng)


def _until(fault, process, workdir, undisturbed):
    """Waits for the moment of a fault; the process may end before it."""
    begin = time.monotonic()
    end = begin + (BOUND if fault.by_files else fault.moment * undisturbed.seconds[fault.fresh])
    wanted = undisturbed.before + fault.moment * (undisturbed.files - undisturbed.before)
    while process.poll() is None:
        # before that it is Python that ends
        begun = fault.kind == 'SIGKILL' or handles(process, signal.SIGTERM)
        if begun and (time.monotonic() >= end or (fault.by_files and len(files(workdir)) > wanted)):
            return
        time.sleep(0.01)


def _signalled(fault, subject, workdir, undisturbed):
    process = start(subject.command(workdir), fresh=fault.fresh)
    _until(fault, process, workdir, undisturbed)
    number = signal.Signals[fault.kind]
    process.send_signal(number)
    code, wrong = ended(process)
    expected = -number if number == signal.SIGKILL else 128 + number
    if code not in (0, expected):
        wrong.append(f'it ended with {code}, not {expected}')
    if code == expected != -signal.SIGKILL and len(process.output()[1].splitlines()) > 1:
        wrong.append(f'it said {process.output()[1]!r}')
    return Injected(wrong, code != 0, f'ended with {code}')


def _damaged(fault, subject, workdir, undisturbed, rng):
    process = start(subject.command(workdir))
    _until(fault, process, workdir, undisturbed)
    process.send_signal(signal.SIGKILL)
    code, wrong = ended(process)
    there = sorted(files(workdir))
    if fault.kind == 'half a last line':
        there = [path for path in there if path.suffix in ('.jsonl', '.journal')] or there
    if not there:
        return Injected(wrong, code != 0, f'ended with {code}, nothing to damage')
    path = _one_of(there, rng)
    name = path.relative_to(workdir)
    # The winner of a search is tested; the other trials are not read again.
    winner = undisturbed.outcome.get('search.json', {'best': {'run': ''}})['best']['run']
    ended_ones = ended_trials(workdir) - {winner}
    # Of the study before, an extraction reads the teacher, and not the tables.
    of_before = bool(subject.before) and len(name.parts) == 1
    unread = name.parts[0] if name.parts[0] in ended_ones or of_before else ''
    damage(path, fault.kind, rng)
    return Injected(wrong, code != 0, f'ended with {code}, {name} damaged', unread)


def _one_of(there, rng):
    """One of the files; most are those of checkpoints, and the others are hit as often."""
    others = [path for path in there if 'checkpoints' not in path.parts]
    some = others if others and rng.random() < 0.5 else there
    return some[rng.integers(len(some))]


def damage(path, kind, rng):
    """What a disk can do to a file."""
    content = path.read_bytes()
    place = int(rng.integers(max(len(content), 1)))
    if kind == 'deleted':
        path.unlink()
        return
    if kind == 'emptied' or not content:
        content = b''
    elif kind == 'truncated':
        content = content[:place]
    elif kind == 'a bit flipped':
        flipped = content[place] ^ (1 << int(rng.integers(8)))
        content = content[:place] + bytes([flipped]) + content[place + 1 :]
    elif kind == 'random bytes':
        content = rng.bytes(len(content))
    else:
        last = content.rstrip(b'\n').rfind(b'\n') + 1
        content = content[: last + (len(content) - last) // 2]
    path.write_bytes(content)


def _refused(process, sentence=''):
    """Why an end is not that of a command which refuses in one sentence; '' if it is."""
    code, (_, errors) = process.poll(), process.output()
    lines = [line for line in errors.splitlines() if line.startswith('error: ')]
    if code == 2 and len(lines) == 1 and sentence in lines[0]:
        return ''
    return f'it ended with {code} and said {errors[-1500:]!r}'


def _full_limit(fault, subject, workdir, undisturbed, rng):
    """No file may get larger than a random limit, from a random moment on."""
    process = start(subject.command(workdir))
    _until(fault, process, workdir, undisturbed)
    # no less than what the command says, which goes to a file, too
    most = int(np.exp(rng.uniform(np.log(2**13), np.log(undisturbed.largest))))
    if process.poll() is None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
    code, wrong = ended(process)
    if code != 0 and (why := _refused(process)):
        wrong.append(why)
    return Injected(wrong, code != 0, f'ended with {code}, {most} bytes a file')


def small_disks():
    """Whether file systems can be mounted here."""
    return os.geteuid() == 0 and Path('/proc/self/mounts').exists()


def _full_disk(subject, workdir, undisturbed, rng):
    """The workdir is a file system with too little room, which gets more afterwards; the mount is
    left to the caller.
    """
    held = {path: path.read_bytes() for path in files(workdir)}
    least = blocks(len(content) for content in held.values())
    size = int(least + rng.uniform(0.02, 0.8) * max(undisturbed.bytes - least, 65536))
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'drill', workdir], check=True)
    for path, content in held.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    process = start(subject.command(workdir))
    code, wrong = ended(process)
    if code != 0 and (why := _refused(process)):
        wrong.append(why)
    subprocess.run(['mount', '-o', 'remount,size=64m', workdir], check=True)
    return Injected(wrong, code != 0, f'ended with {code}, {size >> 10} KiB in all')


def _two(fault, subject, workdir, undisturbed):
    """A second process, which is refused. Between two runs of a study it may be the first that is
    refused.
    """
    first = start(subject.command(workdir))
    _until(dataclasses.replace(fault, by_files=True), first, workdir, undisturbed)
    was_over = first.poll() is not None
    second = start(subject.command(workdir))
    wrong = []
    for process in (first, second):
        wrong += ended(process)[1]
    codes = first.poll(), second.poll()
    for process in (first, second):
        if process.poll() != 0 and (why := _refused(process, ' is in use by ')):
            wrong.append(why)
    if codes == (2, 2):
        wrong.append('both were refused')
    return Injected(wrong, not was_over and 2 in codes, f'ended with {codes[0]} and {codes[1]}')
