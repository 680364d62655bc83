"""How commands read their flags and configs: a mistake there is one sentence."""

import importlib.metadata
import logging
import os
import re
import runpy
import shlex
import sys
import textwrap
import traceback
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from kd_jax import __version__, own
from kd_jax.errors import UserError, called, fail, unknown
from kd_jax.fields import RENAMED

_TRUST = flags.DEFINE_boolean(
    'trust', False, 'Import the code (models, losses, data) that workdirs name'
)


def stock() -> dict[str, Path]:
    """Name -> file of the configs that come with the package."""
    package = Path(__file__).parent
    # in a wheel they lie inside, in a checkout beside it
    folder = next(f for f in (package / 'configs', package.parent / 'configs') if f.is_dir())
    return {
        path.stem: path
        for path in sorted(folder.glob('*.py'))
        if path.stem not in ('__init__', 'common', 'methods')
    }


def parse(argv: list[str], about: str = '') -> list[str]:
    """Parses the flags; a mistake is one sentence. For `app.run(main, flags_parser=parse)`.

    about: what `--help` begins with. A config may be the name of a stock one.
    """
    if {'-h', '-help', '--help'} & {*argv[1:]}:
        print(f'{about.strip()}\n\n{_flags_in_words(argv[0])}')
        sys.exit(0)
    argv = [_with_stock(one, before) for one, before in zip(argv, ['', *argv], strict=False)]
    own.search_in(Path.cwd())
    for name in ('config', 'data'):
        path, _ = _given(name, argv[1:])
        if path:
            own.search_in(Path(path).absolute().parent)
        if sum(bool(re.match(rf'--?{name}(=|$)', one)) for one in argv[1:]) > 1:
            fail(f'--{name} is given twice; give it once, and fields as --{name}.FIELD=VALUE')
        if path and not os.path.lexists(path):
            _fail_to_read(path)
        if path and Path(path).exists() and not Path(path).is_file():
            fail(f'--{name}={path} is no file; name one such as configs/digits.py')
    logging.disable(logging.WARNING)  # what ml_collections says of a config that returns nothing
    try:
        return flags.FLAGS(argv)
    except UserError as error:
        fail(error)
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # a config file may raise anything
        for name in ('config', 'data'):
            message = _mistake(name, argv[1:])
            if message:
                fail(message)
        if isinstance(error, SystemExit):  # --help
            raise
        program = called(f'python -m kd_jax.{Path(argv[0]).stem}')
        fail(f'{error}; {program} --help lists the flags')
    finally:
        logging.disable(logging.NOTSET)


def as_called() -> dict[str, str]:
    """The command that this process runs, as it could be given to a shell again, and versions."""
    spec = getattr(sys.modules['__main__'], '__spec__', None)
    program, *arguments = sys.argv
    if not program.startswith('kd_jax '):
        program = f'python -m {spec.name}' if spec else f'python {shlex.quote(program)}'
    called = ' '.join([program, *map(shlex.quote, arguments)])
    return {'command': called, 'version': __version__, 'jax': importlib.metadata.version('jax')}


def load_config(name: str = 'config') -> ConfigDict:
    """The study that the flag `name` gives; a file that cannot be read is one sentence."""
    if _TRUST.value:
        own.trust_workdirs()
    if not flags.FLAGS[name].present:
        fail(f'--{name} is missing; give it, such as --{name}=configs/digits.py')
    path = config_flags.get_config_filename(flags.FLAGS[name])
    try:
        config: ConfigDict = flags.FLAGS[name].value
        if config is None:
            fail(f'{path} returns nothing from get_config(); end it with `return config`')
        config.runs  # noqa: B018  (a config that failed to load says so when it is used)
    except OSError:
        _fail_to_read(path)
    except AttributeError as error:
        fail(f'{path} is not a study: {error}; start from kd_jax.config.study()')
    return config


def _fail_to_read(path: str) -> NoReturn:
    fail(
        f'cannot read the config {path!r}; name a file such as configs/digits.py, '
        'from the directory that holds it'
    )


def local(workdir: str) -> epath.Path:
    """The path of a workdir; `UserError` for a bucket."""
    if '://' in workdir:
        raise UserError(
            f'--workdir={workdir} is a bucket, which a run cannot append to; mount it (gcsfuse) or '
            'take a local directory'
        )
    return epath.Path(workdir)


def _with_stock(argument: str, before: str) -> str:
    """An argument of the command line, with the file of a stock config instead of its name."""
    found = re.fullmatch(r'(--?(?:config|data)=|)(\w+)(:.*|)', argument, re.DOTALL)
    if not found or not (found[1] or before in ('--config', '-config', '--data', '-data')):
        return argument
    start, name, rest = found.groups()
    if Path(name).is_file():
        return argument
    if name not in stock():
        fail(f'{unknown("config", name, stock())}; a file of your own is such as ./{name}.py')
    return f'{start}{stock()[name]}{rest}'


def _flags_in_words(program: str) -> str:
    """The flags that the package defines, a line or two each."""
    ours = {
        flag.name: flag
        for module, several in flags.FLAGS.flags_by_module_dict().items()
        if module.startswith('kd_jax') or module == program
        for flag in several
    }
    words = {
        f'--{name}': f'{flag.help}{f" (default: {flag.default})" if flag.default else ""}'
        for name, flag in sorted(ours.items())
    }
    config = 'config' if 'config' in ours else 'data'
    words[f'--{config}.FIELD=VALUE'] = (
        f'Another value for a field of the config, such as --{config}.runs.student.epochs=5. or '
        f'--{config}.seeds="(0,1)"'
    )
    return '\n'.join(
        textwrap.fill(help_, 98, initial_indent=f'  {name:<22}', subsequent_indent=' ' * 24)
        for name, help_ in words.items()
    )


def _given(name: str, arguments: list[str]) -> tuple[str, list[str]]:
    """The path that flag `name` gives last, '' if none, and its argument if it has one."""
    text = '\n'.join(arguments)  # a value stands behind '=' or is the next argument
    values = re.findall(rf'^--?{name}[=\n](.*)$', text, re.MULTILINE) or ['']
    path, colon, argument = values[-1].partition(':')
    return path, [argument] if colon else []


def _mistake(name: str, arguments: list[str]) -> str:
    """What is wrong with the file that flag `name` gives, or with the fields that
    follow it; '' if nothing is.
    """
    path, given = _given(name, arguments)
    if not Path(path).is_file():
        return ''
    try:
        names = runpy.run_path(path)
        if 'get_config' not in names:
            return (
                f'{path} has no function get_config(), which gives the study; '
                'start from the files in configs/'
            )
        config = names['get_config'](*given)
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == path
        ]
        if isinstance(error, SyntaxError) and error.filename == path:
            lines.append(error.lineno)
        told = f'{path}{f", line {lines[-1]}" if lines else ""}: {type(error).__name__}: {error}'
        if isinstance(error, ModuleNotFoundError) and error.name == 'configs':
            told += '; outside of a checkout write `from kd_jax import config as common`'
        return told
    if config is None:
        return f'{path} returns nothing from get_config(); end it with `return config`'
    text = '\n'.join(arguments)
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
