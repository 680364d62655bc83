"""Several processes of one run: how they find each other, and end when one of them is lost."""

import ctypes
import os
import re
import signal
import sys
import threading
import time
from typing import Any, NoReturn

import jax
from jaxlib import utils

from kd_jax import signals
from kd_jax.errors import UserError

SECONDS = 30  # without a sign of life until a process counts as lost
# What collectives and the service that connects the processes say when one is lost.
_LOST = re.compile(r'gloo|nccl|unavailable|connection (reset|closed)|coordination|heartbeat', re.I)
_HANDLERS: list[Any] = []  # C calls them, Python must keep them

_ENDING = threading.Lock()


def check(where: str, count: int | None, this: int | None, seconds: int) -> None:
    """Raises `UserError` for flags of several processes that do not fit together."""
    if not 5 <= seconds <= 86400:
        raise UserError(f'--process_timeout is {seconds}; it must be from 5 to 86400 seconds')
    if not where or where == 'auto':
        if count is not None or this is not None:
            raise UserError('--processes and --process go with --coordinator=host:port; give that')
        return
    host, _, port = where.rpartition(':')
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(
            f"--coordinator is {where!r}; it must be 'auto' or the host:port of process 0, such as "
            'localhost:1234'
        )
    if count is None or this is None:
        raise UserError(
            f'--coordinator={where} needs --processes, how many there are, and --process, which of '
            'them this is'
        )
    if count < 1 or not 0 <= this < count:
        raise UserError(
            f'--process is {this} of {count}; it must be from 0 to {max(count - 1, 0)}, and '
            '--processes 1 or more'
        )


def initialize(where: str, count: int | None, this: int | None, seconds: int = SECONDS) -> None:
    """Waits for the other processes, unless `where` is '' and this one is alone. From then on, each
    ends with one sentence and exit status 2 at most `seconds` and a few after one of them is lost.

    Args:
      where: host:port of process 0, or 'auto' (Cloud TPU, SLURM, MPI, Kubernetes).
    """
    if not where:
        return
    signals.end_by_default()  # a call that waits would keep Python from its own handlers
    utils.absl_set_min_log_level(4)  # of a lost process its libraries would say 90 lines
    _HANDLERS.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: _end(seconds)))
    # The client of JAX's coordination service, which notices it, aborts the process.
    ctypes.CDLL(None).signal(signal.SIGABRT, _HANDLERS[-1])
    jax.distributed.initialize(
        None if where == 'auto' else where,
        count,
        this,
        heartbeat_timeout_seconds=seconds,
        shutdown_timeout_seconds=seconds,
    )


def end_if_lost(error: Exception, seconds: int = SECONDS) -> None:
    """Ends this process if `error` comes of another one that is lost; returns if it does not."""
    if jax.process_count() > 1 and not isinstance(error, UserError) and _LOST.search(str(error)):
        _end(seconds)


def _end(seconds: int) -> NoReturn:
    if not _ENDING.acquire(blocking=False):  # another thread says it
        time.sleep(60)
    sys.stdout.flush()
    sentence = (
        f'error: another process has ended, or gave no sign of life for {seconds} s '
        '(--process_timeout); see what it said, then start all of them again with the same '
        'command, which continues\n'
    )
    os.write(2, sentence.encode())
    os._exit(2)  # what usually comes at the end would wait for the others
