"""The same command again, until it is done; what a refusal tells to do is done."""

import dataclasses
import re
import shutil
from pathlib import Path

from drill.outcome import outcome
from drill.processes import ended, start
from kd_jax.errors import UserError

MOST = 6  # commands until it counts as stuck


@dataclasses.dataclass
class Resumed:
    """outcome: of the workdir in the end; None: it did not get there. mended: what was told to be
    moved or deleted.
    """

    outcome: dict | None
    wrong: list[str]
    mended: list[str]


def resume(subject, workdir, unread='', begun=()):
    """Runs the command until it is done, and reads what it left but for `unread`.

    begun: names that were in the outcome before it began. The command that made them restores one
    that is gone, since this one need not read them.
    """
    mended, prepare = [], False
    for _ in range(MOST):
        commands = [subject.command(workdir)]
        if prepare and subject.before:
            commands.insert(0, subject.preparation(workdir))
        refusal, wrong = _run(commands)
        if wrong:
            return Resumed(None, wrong, mended)
        if not refusal:
            try:
                found = outcome(workdir, unread)
                gone = [name for name in begun if name not in found]
                if prepare or not gone:
                    return Resumed(found, [], mended)
                refusal = (
                    f'{gone[0]} is gone, which this command does not read; run its study again'
                )
            except UserError as error:  # a file that this command need not read
                refusal = str(error)
        done, prepare = follow(refusal, workdir), 'run its study again' in refusal
        mended.append(refusal + (f' [{done.relative_to(workdir)}]' if done else ''))
        if not (done or prepare or 'run the same command again' in refusal):
            return Resumed(None, [f'no fix that can be done: {refusal}'], mended)
    return Resumed(None, [f'stuck after {MOST} commands: {refusal}'], mended)


def _run(commands):
    """(the sentence of the first that refuses, '' if none does; what was wrong)."""
    for command in commands:
        process = start(command)
        code, wrong = ended(process)
        errors = process.output()[1]
        told = [line for line in errors.splitlines() if line.startswith('error: ')]
        if wrong or code not in (0, 2) or len(told) != (code == 2):
            return '', wrong or [f'run again it ended with {code} and said {errors[-1500:]!r}']
        if told:
            return told[0].removeprefix('error: '), []
    return '', []


def follow(sentence, workdir):
    """Does what the sentence tells: deletes, or moves away, what it names. Returns that; None: it
    tells nothing of the kind.
    """
    path = rf'{re.escape(str(workdir))}/[^\s;,:()]*[^\s;,:().]'
    there = re.search(rf'delete ({path})', sentence)
    if not there and re.search('delete that directory|delete it|move it away', sentence):
        there = re.search(rf'({path})', sentence)
    if not there or not Path(there[1]).exists():
        return None
    target = Path(there[1])
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    return target
