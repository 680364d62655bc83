"""How commands read their flags and configs: a mistake there is one sentence."""

import re
import runpy
import traceback
from pathlib import Path
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from kd_jax.errors import UserError, fail, unknown
from kd_jax.fields import RENAMED


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; a mistake is one sentence. For `app.run(main, flags_parser=parse)`."""
    try:
        return flags.FLAGS(argv)
    except UserError as error:
        fail(error)
    except Exception as error:  # a config file may raise anything
        for name in ('config', 'data'):
            message = _mistake(name, argv[1:])
            if message:
                fail(message)
        fail(f'{error}; python -m kd_jax.{Path(argv[0]).stem} --help lists the flags')


def load_config(name: str = 'config') -> ConfigDict:
    """The study that the flag `name` gives; a file that cannot be read is one sentence."""
    path = config_flags.get_config_filename(flags.FLAGS[name])
    try:
        config: ConfigDict = flags.FLAGS[name].value
        config.runs  # noqa: B018  (a config that failed to load says so when it is used)
    except OSError:
        fail(
            f'cannot read the config {path!r}; name a file such as configs/digits.py, '
            'from the directory that holds it'
        )
    except AttributeError as error:
        fail(f'{path} is not a study: {error}; start from configs.common.study()')
    return config


def local(workdir: str) -> epath.Path:
    """The path of a workdir; `UserError` for a bucket."""
    if '://' in workdir:
        raise UserError(
            f'--workdir={workdir} is a bucket, which a run cannot append to; mount it (gcsfuse) or '
            'take a local directory'
        )
    return epath.Path(workdir)


def check_processes(where: str, count: int | None, this: int | None) -> None:
    """Raises `UserError` for flags of several processes that do not fit together."""
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


def _mistake(name: str, arguments: list[str]) -> str:
    """What is wrong with the file that flag `name` gives, or with the fields that
    follow it; '' if nothing is.
    """
    text = '\n'.join(arguments)  # a value stands behind '=' or is the next argument
    path, colon, argument = (re.findall(rf'^--?{name}[=\n](.*)$', text, re.MULTILINE) or [''])[
        -1
    ].partition(':')
    if not Path(path).is_file():
        return ''
    try:
        names = runpy.run_path(path)
        if 'get_config' not in names:
            return (
                f'{path} has no function get_config(), which gives the study; '
                'start from the files in configs/'
            )
        config = names['get_config'](*([argument] if colon else []))
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == path
        ]
        if isinstance(error, SyntaxError) and error.filename == path:
            lines.append(error.lineno)
        return f'{path}{f", line {lines[-1]}" if lines else ""}: {type(error).__name__}: {error}'
    fields = re.findall(rf'^--?(?:no)?{name}\.([\w.]+)(?:=|$)', text, re.MULTILINE)
    return next(filter(None, (_wrong_field(field, config) for field in fields)), '')


def _wrong_field(field: str, config: ConfigDict) -> str:
    """Where `field`, such as 'runs.student.epoch', leaves the config; '' if it does not."""
    at: Any = config
    path: list[str] = []
    for name in field.split('.'):
        if not isinstance(at, ConfigDict):
            return f'{".".join(path)} is {at!r}; it has no fields, such as {name!r}'
        if name in RENAMED and RENAMED[name] in at:
            return (
                f'{".".join([*path, name])} is called {RENAMED[name]} now; write '
                f'{".".join([*path, RENAMED[name]])}'
            )
        if name not in at:
            here, last = '.'.join(path), path[-1] if path else ''
            kind = {'runs': 'run', 'objective': f'term of {here}', '': 'field'}.get(
                last, f'field of {here}'
            )
            add = (
                f'; a config file adds terms: run.objective.{name} = common.term({name!r})'
                if last == 'objective'
                else ''
            )
            return f'{unknown(kind, name, at)}{add}'
        at = at[name]
        path.append(name)
    return ''
