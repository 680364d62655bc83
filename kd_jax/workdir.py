"""The files of a run: `<workdir>/<run>/seed<k>/` with config.json,
checkpoints/, metrics.jsonl, result.json.

A path may be text, a `pathlib.Path` or an `epath.Path`, which also names buckets (`gs://...`).
"""

import glob
import io
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from kd_jax import records
from kd_jax.errors import UserError

PathLike = str | os.PathLike[str]
_MISSING = object()
_AWAY = 'move it away and run the same command again'


def to_json(value: Any) -> Any:
    """`value` as JSON types: tuples become lists, as they will be when they are read back."""
    return json.loads(json.dumps(value))


def write_text(path: PathLike, text: str, suffix: str = '.tmp') -> None:
    """Writes all of it or nothing: a reader never sees half a file, nor does a crash leave one.

    suffix: of the file that becomes it; processes that may write at once need different ones.
    """
    target = epath.Path(path)
    if target.is_dir():
        raise UserError(f'{target} is a directory, must be a file; move it away')
    new = target.with_suffix(suffix)
    with new.open('w') as file:
        file.write(text)
        file.flush()
        try:
            number = file.fileno()
        except (AttributeError, io.UnsupportedOperation):
            # A file of a bucket has none; it is whole once it is closed.
            number = None
        if number is not None:
            os.fsync(number)
    new.replace(target)


def write_json(path: PathLike, value: Any) -> None:
    """`write_text` of a value in JSON."""
    write_text(path, json.dumps(value, indent=1))


def differences(here: Mapping[str, Any], there: Mapping[str, Any], prefix: str = '') -> list[str]:
    """The fields in which two nested configs differ, as
    `optim.learning_rate: 0.05 there, 0.1 here`.
    """
    lines = []
    for key in [*there, *(k for k in here if k not in there)]:
        a, b = there.get(key, _MISSING), here.get(key, _MISSING)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(b, a, f'{prefix}{_word(key)}.')
        elif a != b:
            was, now = ('nothing' if x is _MISSING else _short(repr(x)) for x in (a, b))
            lines.append(f'{_short(prefix + _word(key))}: {was} there, {now} here')
    return lines


def _word(key: object) -> str:
    return str(key) if str(key).isprintable() else repr(key)


def _short(text: str) -> str:
    return text if len(text) <= 200 else f'{text[:100]} ... {text[-80:]}'


def listed(fields: Sequence[str]) -> str:
    """What `differences` found, in a sentence that ends."""
    shown = [fields[0]]
    while len(shown) < len(fields) and len('; '.join(shown)) < 600:
        shown.append(fields[len(shown)])
    more = len(fields) - len(shown)
    return '; '.join(shown) + (f'; and {more} more' if more else '')


def _text_of(lines: Sequence[dict[str, Any]]) -> str:
    return ''.join(json.dumps(line) + '\n' for line in lines)


def log_checksum(lines: Sequence[dict[str, Any]]) -> int:
    """CRC-32 of a metrics.jsonl with these lines."""
    return zlib.crc32(_text_of(lines).encode())


class RunDirectory:
    """One run with one seed on disk."""

    def __init__(self, path: PathLike):
        self.path = epath.Path(path)

    @property
    def checkpoints(self) -> epath.Path:
        return self.path / 'checkpoints'

    @property
    def metrics(self) -> epath.Path:
        return self.path / 'metrics.jsonl'

    def finished(self) -> bool:
        return (self.path / 'result.json').exists()

    def result(self) -> dict[str, Any]:
        return records.read(self.path / 'result.json', records.Result, self._again())

    def info(self) -> dict[str, Any]:
        """{'run', 'seed', 'config', 'data': {'num_classes', 'image_shape', 'mean', 'std',
        ...}} as saved at the start.
        """
        return records.read(self.path / 'config.json', records.Info, self._again())

    def _again(self) -> str:
        return f'delete {self.path} and run its study again'

    def check_same(
        self, config: dict[str, Any], upgrade: Callable[[dict[str, Any]], dict[str, Any]] = dict
    ) -> None:
        """Raises `UserError` if this directory belongs to another config; the
        sentence names the differing fields.

        Which other seeds the run has makes no difference to this one. upgrade: gives a config that
        another version recorded in today's names, with the defaults of what it did not know.
        """
        if not (self.path / 'config.json').exists():
            if self.finished():
                raise UserError(
                    f'{self.path} holds a finished run without its config.json; delete that '
                    'directory and run the same command again, which trains it again'
                )
            return
        here, there = (
            {**upgrade(c), 'seeds': None} for c in (to_json(config), self.info()['config'])
        )
        fields = differences(to_json(here), to_json(there))
        if fields:
            raise UserError(
                f'{self.path} holds a run with another config ({listed(fields)}); choose '
                'another --workdir, or undo the change, or delete that directory'
            )

    def start(self, info: dict[str, Any]) -> None:
        """Makes the directory and writes config.json."""
        make_directory(self.path)
        if not (self.path / 'config.json').exists():
            write_json(self.path / 'config.json', info)

    def finish(self, result: dict[str, Any]) -> None:
        """Writes result.json: from now on the run counts as finished."""
        write_json(self.path / 'result.json', result)

    def log_is_whole(self) -> bool:
        """Whether metrics.jsonl is that of this finished run, as far as its version says."""
        expected = self.result().get('log')
        if expected is None:
            return True
        if not self.metrics.exists():
            return False
        return zlib.crc32(records.text_of(self.metrics, _AWAY, 2**30).encode()) == expected

    def forget_after(self, step: int, lines: Sequence[dict[str, Any]] | None = None) -> bool:
        """Makes metrics.jsonl what it was at `step`: what comes after will be written again.
        Returns whether there was less.

        lines: what it was; None: not known, as of an earlier version.

        Raises:
          UserError: if it holds something else.
        """
        if lines is None:
            if self.metrics.exists():
                found = records.lines(self.metrics, records.Line, _AWAY)
                kept = [line for line, content in found if content['step'] <= step]
                write_text(self.metrics, ''.join(line + '\n' for line in kept))
            return False
        expected, there = _text_of(lines), ''
        if self.metrics.exists():
            there = records.text_of(self.metrics, _AWAY, 2**30)
        if not there.startswith(expected) and not expected.startswith(there):
            list(records.lines(self.metrics, records.Line, _AWAY))  # which says where
            raise UserError(f'{self.metrics} is not what was logged until step {step}; {_AWAY}')
        if there != expected:
            write_text(self.metrics, expected)
        return len(there) < len(expected)


def is_whole(run: RunDirectory) -> bool:
    """Whether it is finished and has its config and its log."""
    return run.finished() and (run.path / 'config.json').exists() and run.log_is_whole()


def read_metrics(run_directory: PathLike) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    path = epath.Path(run_directory) / 'metrics.jsonl'
    fix = f'delete {run_directory} and run its study again'
    run = RunDirectory(run_directory)
    if run.finished() and not run.log_is_whole():
        raise UserError(
            f'{path} is not what was logged; run its study again, which mends it or says how'
        )
    return [of for _, of in records.lines(path, records.Line, fix)] if path.exists() else []


def make_directory(path: PathLike) -> None:
    """`mkdir -p`; `UserError` where that is impossible."""
    directory = epath.Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / '.write_test'
        probe.write_text('')
        probe.unlink(missing_ok=True)  # another process may have been here
    except OSError as error:
        raise UserError(
            f'cannot write to {directory}: {error.strerror or error}; choose another --workdir'
        ) from error


def matches(path: PathLike, pattern: str) -> list[epath.Path]:
    """What is in the directory `path` and fits to `pattern`, sorted; brackets and the
    like in `path` mean themselves.
    """
    return sorted(epath.Path(glob.escape(os.fspath(epath.Path(path)))).glob(pattern))


def find_run(path: PathLike, seed: int) -> RunDirectory:
    """The run that `path` means for a student of `seed`: a run's seed
    directory, or a run's directory.

    Of a run's directory the same seed is taken if it is there, otherwise the first one.

    Raises:
      UserError: if nothing is there, or `path` is a whole study.
    """
    directory = epath.Path(path)
    if (directory / 'config.json').exists():
        return RunDirectory(directory)
    seeds = sorted(
        matches(directory, 'seed*/config.json'), key=lambda p: (len(p.parent.name), p.parent.name)
    )
    if seeds:
        same = directory / f'seed{seed}'
        return RunDirectory(same if same / 'config.json' in seeds else seeds[0].parent)
    runs = sorted({p.parent.parent.name for p in matches(directory, '*/seed*/config.json')})
    if runs:
        raise UserError(
            f'{directory} is a study, not a run; name one of its runs, such as '
            f'{directory / runs[0]} (it has {", ".join(runs)})'
        )
    raise UserError(
        f'{directory} is neither a run of this study nor the workdir of a run; it should '
        'hold config.json and checkpoints'
    )
