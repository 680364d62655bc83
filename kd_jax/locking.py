"""One process at a time in a directory.

The operating system takes the lock back when a process ends, however it ends; on shared storage
too, where that has locks (NFS; others keep a file that names the process). Buckets have none.
"""

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator

import filelock
from etils import epath

from kd_jax import records
from kd_jax.errors import UserError
from kd_jax.workdir import PathLike, make_directory, write_json

LOCK, HOLDER = 'lock', 'lock.json'


class InUse(UserError):
    """Another process is there."""


@contextlib.contextmanager
def locked(directory: PathLike, doing: str, *, timeout: float = 0.0) -> Iterator[None]:
    """Inside, no other process is in `directory` under this lock; it is made if it is not there.

    doing: what the process does there, for the sentence that another one gets. timeout: seconds to
    wait for another one.

    Raises:
      InUse: if another process is there.
      UserError: if there cannot be a lock.
    """
    path = epath.Path(directory)
    make_directory(path)
    if '://' in os.fspath(path):
        yield
        return
    lock = filelock.FileLock(os.fspath(path / LOCK))
    try:
        lock.acquire(timeout=timeout, poll_interval=0.1)
    except filelock.Timeout:
        raise InUse(_elsewhere(path)) from None
    except OSError as error:
        raise UserError(
            f'cannot lock {path / LOCK}: {error.strerror or error}; choose another --workdir'
        ) from error
    try:
        now = datetime.datetime.now(datetime.UTC).isoformat(' ', 'seconds')
        about = {'host': socket.gethostname(), 'process': os.getpid(), 'since': now, 'doing': doing}
        write_json(path / HOLDER, about)
        yield
    finally:
        with contextlib.suppress(OSError):
            (path / HOLDER).unlink(missing_ok=True)
        lock.release()


def _elsewhere(path: epath.Path) -> str:
    try:
        about = records.read(path / HOLDER, records.Holder, '')
        who = (
            f'process {about["process"]} on {about["host"]}, since {about["since"]} '
            f'({about["doing"]})'
        )
    except UserError:  # it has just begun, or ends
        who = 'another process'
    return f'{path} is in use by {who}; wait for it, or choose another --workdir'
