"""Checkpoints of one run: asynchronous, verified by checksum; the
latest two and the best are kept.
"""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Self

import flax
import jax
import msgspec
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from kd_jax.errors import UserError, system_reason

RENAMED = {'past': 'snapshot'}  # fields of the state by the names that they had in earlier versions


def checksum(tree: dict[str, Any]) -> str:
    """SHA-256 over names, types, shapes and bytes of a nested dict of arrays."""
    digest = hashlib.sha256()
    flat = flax.traverse_util.flatten_dict(tree, sep='/')
    for name in sorted(flat):
        if flat[name] is not None:
            x = np.asarray(flat[name])
            digest.update(f'{name}:{x.dtype}:{x.shape};'.encode())
            digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()


class Damaged(Exception):
    """A checkpoint that cannot be read, or whose contents are not what was saved."""


def _checksum_of(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """Orbax narrates every save, and logs with a traceback what it also raises."""
    return 'orbax' not in record.pathname


def _ignore_closed_loops() -> None:
    """After a failed save or restore, tensorstore calls back into orbax's closed event
    loop, each time with a traceback.
    """
    previous = sys.unraisablehook
    if getattr(previous, 'ignores_closed_loops', False):
        return

    def hook(unraisable: 'sys.UnraisableHookArgs') -> None:
        if 'Event loop is closed' not in str(unraisable.exc_value):
            previous(unraisable)

    hook.ignores_closed_loops = True  # type: ignore[attr-defined]  # a mark for the next call
    sys.unraisablehook = hook


class _KeepLatestAndBest:
    """Keeps the latest two (so that a damaged one has one before it) and the best;
    an orbax preservation policy.
    """

    def __init__(self) -> None:
        self.best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        latest = {info.step for info in list(checkpoints)[-2:]}
        return [info.step in latest or info.step == self.best_step for info in checkpoints]


class Checkpoints:
    """The checkpoints in `directory`; a context manager that waits for the
    pending save on the way out.

    A checkpoint is the state as host arrays (so that any number of devices can read it), and
    `meta`: JSON with `best_step` and whatever the caller adds; checksums are added here. record:
    a dataclass whose fields those of `meta` are.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        read_only: bool = False,
        record: type = dict,
    ):
        path = epath.Path(directory)  # whose own `absolute` takes buckets for directories here
        self.directory = path if path.is_absolute() else epath.Path(os.getcwd(), path)
        self._policy, self._record = _KeepLatestAndBest(), record
        logging.getLogger('absl').addFilter(_not_from_orbax)
        _ignore_closed_loops()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_names=('state', 'meta')
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        refused: UserError | None = None
        try:
            self.wait()
        except UserError as first:
            refused = first
        finally:
            try:
                self._guarded(self._manager.close)
            except UserError as again:  # also what `wait` raised
                refused = refused or again
        if refused and error is None:  # the first failure is the one to tell
            raise refused

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts to save `state`; the previous save is finished first.

        Raises:
          UserError: if the file system refuses; the checkpoints already there are untouched.
        """
        tree = flax.serialization.to_state_dict(jax.device_get(state))
        meta = dict(meta, checksum=checksum(tree))
        meta['meta_checksum'] = _checksum_of(meta)
        self._policy.best_step = meta.get('best_step')
        items = ocp.args.Composite(state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta))
        self._guarded(lambda: self._manager.save(step, args=items))

    def wait(self) -> None:
        """Returns when the pending save is on disk; raises as `save` does."""
        self._guarded(self._manager.wait_until_finished)

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            # The types are tensorstore's and orbax's own; the text is what they share.
            reason = system_reason(error)
            if reason is None:
                raise
            steps = [s for s in self.steps() if (self.directory / str(s)).exists()]
            last = (
                f'the last good checkpoint is that of step {steps[-1]}'
                if steps
                else 'no checkpoint was saved yet'
            )
            raise UserError(
                f'cannot save a checkpoint in {self.directory}: {reason}; {last}; make room '
                'and run the same command again'
            ) from error

    def read(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """(state as nested dicts of numpy arrays, meta) of `step`; raises `Damaged`, and
        `UserError` where the file system does not let it be read.
        """
        wanted = ocp.args.Composite(state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
        try:
            items = self._manager.restore(step, args=wanted)
        except Exception as error:  # orbax and tensorstore raise many types for damaged files
            reason = system_reason(error)
            if reason is not None:
                raise UserError(
                    f'the checkpoint of step {step} in {self.directory} cannot be read: {reason}; '
                    'mend that and run the same command again'
                ) from error
            raise Damaged(f'cannot be read ({type(error).__name__})') from error
        if not isinstance(items.meta, dict) or not isinstance(items.state, dict):
            raise Damaged('holds something else')
        meta = dict(items.meta)
        # Earlier versions had no checksum of `meta`.
        if meta.pop('meta_checksum', None) not in (None, _checksum_of(meta)):
            raise Damaged('has a record that does not match its checksum')
        if checksum(items.state) != meta.pop('checksum', None):
            raise Damaged('does not match its checksum')
        try:
            msgspec.convert(meta, self._record)
        except (msgspec.ValidationError, UnicodeError) as error:
            raise Damaged(f'has a record of another kind ({error})') from error
        return items.state, meta

    def restore_latest(
        self, target: Any, warn: Callable[[str], None], *, with_best: bool = True
    ) -> tuple[Any, dict[str, Any]] | None:
        """The newest good checkpoint as (state like `target`, meta); None without one.

        with_best: the one that its `best_step` names must be good, too. What is left of a damaged
        one is removed, `warn(sentence)` says so, and one before it is used.
        """
        useless = []
        for step in reversed(self.steps()):
            try:
                tree, meta = self.read(step)
                state = restored(target, tree)
                best = meta.get('best_step')
                if with_best and best not in (None, step):
                    self._check_best(best, step)
            except Damaged as error:
                warn(
                    f'the checkpoint of step {step} in {self.directory} {error}; '
                    'going back to the one before it'
                )
                useless.append(step)
                continue
            self._delete(useless)
            self._policy.best_step = best
            return state, meta
        self._delete(useless)
        return None

    def _check_best(self, best: Any, step: int) -> None:
        """Raises `Damaged` if the checkpoint of step `best`, which that of `step` needs, is."""
        if best not in self.steps() or best > step:
            raise Damaged(f'needs that of step {best}, the best one, which is not there')
        try:
            self.read(best)
        except Damaged as error:
            raise Damaged(f'needs that of step {best}, the best one, which {error}') from error

    def _delete(self, steps: Sequence[int]) -> None:
        for step in steps:
            self._manager.delete(step)


def restored(target: Any, tree: dict[str, Any]) -> Any:
    """A state like `target` of what `Checkpoints.read` gave, also of an earlier version's;
    what that did not have is None. Raises `Damaged` for the state of another run.
    """
    fields = dict(tree)
    for old, new in RENAMED.items():
        if old in fields:
            fields[new] = fields.pop(old)
    missing = dict.fromkeys(set(flax.serialization.to_state_dict(target)) - set(fields))
    try:
        state = flax.serialization.from_state_dict(target, fields | missing)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Damaged('is that of another run') from None
    if jax.tree.map(np.shape, state) != jax.tree.map(np.shape, target):
        raise Damaged('is that of another run')
    return state


def load_variables(run_directory: str | os.PathLike[str], step: int) -> dict[str, Any]:
    """The student's Flax variables (numpy arrays) of a run's checkpoint; the
    averaged ones if it kept an average.

    Raises:
      UserError: if the checkpoint is missing or damaged.
    """
    directory = epath.Path(run_directory) / 'checkpoints'
    fix = f'delete {run_directory} and run its study again'
    if not (directory / str(step)).is_dir():
        raise UserError(f'{run_directory} has no checkpoint of step {step}; {fix}')
    with Checkpoints(directory, read_only=True) as checkpoints:
        try:
            state, _ = checkpoints.read(step)
        except Damaged as error:
            raise UserError(
                f'the checkpoint of step {step} in {directory} {error}; {fix}'
            ) from error
    if state.get('ema'):
        return {'params': state['ema']['params'], **state['ema']['model_state']}
    return {'params': state['params']['student'], **state['model_state']['student']}
