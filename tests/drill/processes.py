"""Commands in processes of their own: begun, waited for, and what may be in a workdir meanwhile."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import commands
from helpers import REPOSITORY, environment

BOUND = 240.0  # seconds that a command of a few seconds may take on a busy machine


def surroundings():
    """The environment of a command: programs are compiled quickly, once."""
    cache = os.environ.get('JAX_COMPILATION_CACHE_DIR', str(REPOSITORY / '.cache' / 'programs'))
    return environment(
        JAX_PLATFORMS='cpu',
        JAX_COMPILATION_CACHE_DIR=cache,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
        JAX_DISABLE_MOST_OPTIMIZATIONS='1',
    )


def unshield():
    """What is started from now on does not ignore SIGHUP, which nohup has its commands do; this
    process goes on as before.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # a handler of its own is not inherited


class Fresh:
    """`python -m MODULE FLAGS` as a user starts it, with the methods of commands.Command."""

    def __init__(self, module, *flags, env):
        self._files = [tempfile.TemporaryFile() for _ in commands.OUTPUTS]  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, '-m', module, *flags],
            stdin=subprocess.DEVNULL,
            stdout=self._files[0],
            stderr=self._files[1],
            cwd=REPOSITORY,
            env=env,
        )
        self.pid, self.poll = self._process.pid, self._process.poll
        self.send_signal = self._process.send_signal

    def output(self):
        """(stdout, stderr) so far."""
        found = (os.pread(f.fileno(), os.fstat(f.fileno()).st_size, 0) for f in self._files)
        return tuple(content.decode(errors='replace') for content in found)


def start(command, *, fresh=False):
    module, flags = command
    return (Fresh if fresh else commands.Command)(module, *flags, env=surroundings())


def handles(process, number):
    """Whether the process has a handler for this signal; True where that cannot be told."""
    try:
        status = Path(f'/proc/{process.pid}/status').read_text()
    except OSError:
        return True
    caught = next(line for line in status.splitlines() if line.startswith('SigCgt:'))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def ended(process):
    """(exit code, what is wrong with how it ended) of a process, once it has ended."""
    end, wrong = time.monotonic() + BOUND, []
    while process.poll() is None:
        if time.monotonic() > end:
            wrong.append(f'it did not end in {BOUND:.0f} s')
            process.send_signal(signal.SIGKILL)
            end += BOUND
        time.sleep(0.02)
    said = '\n'.join(process.output())
    if 'Traceback' in said:
        wrong.append(f'a traceback: {said[said.index("Traceback") :][-1500:]!r}')
    return process.poll(), wrong


def files(workdir):
    """What lies in it now; a command may be at work there."""
    return [Path(folder, name) for folder, _, names in os.walk(workdir) for name in names]


def blocks(sizes):
    """What files of these sizes take on a disk."""
    return sum(-(-size // 4096) * 4096 for size in sizes)
