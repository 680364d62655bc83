"""The file in which a search keeps its trials: Optuna's journal, one line of JSON an operation."""

import ast
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import msgspec
from etils import epath

from kd_jax import records
from kd_jax.errors import UserError
from kd_jax.search_report import values_of
from kd_jax.search_space import optuna


def journal(path: epath.Path) -> Any:
    """Optuna's storage in the file `path`. It leaves out the half of a line with which a power
    failure left the file, but must not write before `drop_half_line`.

    Raises:
      UserError: for anything else than a journal; nothing of it is changed.
    """
    storages = optuna().storages
    name = os.fspath(path)
    if os.path.lexists(name):
        if not os.path.isfile(name):
            raise _no_journal(path, 'it is no regular file')
        _checked(path)
    try:
        return storages.JournalStorage(storages.journal.JournalFileBackend(name))
    except Exception as error:  # of any type, where a line lacks what its operation needs
        why = f'Optuna cannot go through it: {type(error).__name__}'
        raise _no_journal(path, why) from error


def drop_half_line(path: epath.Path) -> None:
    """Ends the file `path`, a journal, if it is there, after its last whole line."""
    name = os.fspath(path)
    if os.path.exists(name):
        lock = optuna().storages.journal.JournalFileSymlinkLock(name)
        lock.acquire()  # another worker may be writing a line
        try:
            whole = _checked(path)
            if whole < os.stat(name).st_size:
                os.truncate(name, whole)
        finally:
            lock.release()


def begun(study: Any, where: object) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(space, config of the run) that a search began with; None for a new one.

    Raises:
      UserError: if something else stands there, or in a trial. where: what to name.
    """
    attributes = study.user_attrs
    if 'space' not in attributes:
        return None
    try:
        # `run` is how earlier versions wrote it.
        config = attributes.get('config') or ast.literal_eval(attributes['run'])
        msgspec.convert(config, records.Config)
        return msgspec.convert(attributes['space'], dict[str, str]), config
    except (LookupError, ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise _no_journal(where, 'what it began with is not there') from None


def check_trials(study: Any, space: Mapping[str, Any], where: object) -> None:
    """Raises `UserError` for a trial of something else than `space`."""
    try:
        trials = study.get_trials(deepcopy=False)
        optuna().create_study().add_trials(trials)  # which checks each
    except Exception as error:  # of any type, as above
        raise _no_journal(where, f'its trials: {type(error).__name__}') from error
    for trial in trials:
        mappings = (trial.user_attrs, trial.system_attrs, trial.intermediate_values)
        fits = all(isinstance(one, dict) for one in mappings)
        fits = (
            fits
            and trial.params.keys() <= space.keys()
            and all(trial.distributions[field] == space[field] for field in trial.params)
        )
        if trial.state.name == 'COMPLETE':
            fits = fits and trial.params.keys() == space.keys() and _numbers(values_of(trial))
        if not fits:
            raise _no_journal(where, f'trial {trial.number} is not one of this search')


def _numbers(values: Any) -> bool:
    return (
        isinstance(values, list)
        and bool(values)
        and all(type(value) in (int, float) and math.isfinite(value) for value in values)
    )


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


def _no_journal(path: object, why: str) -> UserError:
    return UserError(
        f'{path} is not the journal of a search ({why}); choose another --workdir, or move it away'
    )
