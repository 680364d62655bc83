"""The file in which a search keeps its trials: Optuna's journal, one line of JSON an operation."""

import json
import os
from typing import Any

from etils import epath

from kd_jax.errors import UserError
from kd_jax.search_space import optuna


def journal(path: epath.Path) -> Any:
    """Optuna's storage in the file `path`. The half of a line with which a power failure left it
    is dropped.

    Raises:
      UserError: for anything else than a journal; nothing of it is changed.
    """
    storages = optuna().storages
    name = os.fspath(path)
    if os.path.lexists(name):
        if not os.path.isfile(name):
            raise _no_journal(path, 'it is no regular file')
        lock = storages.journal.JournalFileSymlinkLock(name)
        lock.acquire()  # another worker may be writing a line
        try:
            whole = _checked(path)
            if whole < os.stat(name).st_size:
                os.truncate(name, whole)
        finally:
            lock.release()
    return storages.JournalStorage(storages.journal.JournalFileBackend(name))


def _checked(path: epath.Path) -> int:
    """How many bytes of whole lines the journal has."""
    whole = 0
    with open(path, 'rb') as file:
        for number, line in enumerate(file, 1):
            ended = line.endswith(b'\n')
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                found = None
            if not (isinstance(found, dict) and isinstance(found.get('op_code'), int)):
                if not ended and number > 1:
                    break
                raise _no_journal(path, f'line {number} is not one of Optuna')
            if ended:
                whole += len(line)
    return whole


def _no_journal(path: epath.Path, why: str) -> UserError:
    return UserError(
        f'{path} is not the journal of a search ({why}); choose another --workdir, or move it away'
    )
