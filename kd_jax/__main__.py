"""`kd_jax [COMMAND] ...`, or `python -m kd_jax [COMMAND] ...`; without COMMAND, train."""

import importlib
import importlib.util
import runpy
import sys
import textwrap

from kd_jax import __version__, signals
from kd_jax.errors import fail, unknown

# command -> its module, what it does
COMMANDS = {
    'train': ('kd_jax.main', 'train the runs of a study, and compare them'),
    'evaluate': ('kd_jax.evaluate', 'evaluate finished runs, one alone or several as one'),
    'report': (
        'kd_jax.report',
        'show the closing table of a study again, and write its report.html',
    ),
    'search': ('kd_jax.search', 'search over fields of a run'),
    'soft-targets': ('kd_jax.soft_targets', 'run a teacher once and keep what it says'),
    'data': ('kd_jax.data', 'look at a folder of images before anything trains'),
    'pretrained': ('kd_jax.pretrained', 'make a run that can teach of PyTorch weights'),
    'zoo': ('kd_jax.zoo', 'print the table of the networks'),
}
USAGE = """kd_jax {version}: knowledge distillation of image classifiers

  kd_jax --config=digits           a study of the stock ones:{stock}
  kd_jax --config=my_study.py      a study of your own
  kd_jax COMMAND ...

{commands}

kd_jax COMMAND --help says what each takes.
"""


def main() -> None:
    signals.end_at_once()  # what commands import takes seconds
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ('-h', '--help', 'help'):
        print(usage(), end='')
        return
    if arguments[0] == '--version':
        print(__version__)
        return
    command = 'train' if arguments[0].startswith('-') else arguments.pop(0)
    if command not in COMMANDS:
        fail(unknown('command', command, COMMANDS))
    module, _ = COMMANDS[command]
    sys.argv = [f'kd_jax {command}', *arguments]
    runpy.run_module(_file_of(module), run_name='__main__')


def usage() -> str:
    """What `--help` prints."""
    from kd_jax.command import stock

    lines = (f'  {name:<14}{does}' for name, (_, does) in COMMANDS.items())
    names = textwrap.wrap(', '.join(stock()), 62)
    below = ''.join(f'\n{" " * 35}{line}' for line in names)
    return USAGE.format(version=__version__, commands='\n'.join(lines), stock=below.lstrip(' '))


def _file_of(module: str) -> str:
    """A module, or of a package its `__main__`."""
    package = importlib.util.find_spec(module)
    inside = package is not None and package.submodule_search_locations is not None
    return f'{module}.__main__' if inside else module


if __name__ == '__main__':
    main()
