"""Runs a study: `python -m kd_jax.main --config=configs/digits.py [--workdir=...] [--only=run]`."""

import functools
import logging
import signal
import sys

from absl import app, flags
from etils import epath
from ml_collections import config_flags

from kd_jax import config_check, display, distributed, overview, parallel, runtime, signals
from kd_jax.command import load_config, local, parse
from kd_jax.errors import UserError, fail, fail_for_the_system
from kd_jax.monitor import say, warn
from kd_jax.study import Study
from kd_jax.train import Stopped

config_flags.DEFINE_config_file(
    'config', lock_config=True, help_string='The study, such as configs/digits.py'
)
_WORKDIR = flags.DEFINE_string('workdir', '', "Where results go; '' = runs/<config>")
_ONLY = flags.DEFINE_list('only', [], 'Train these runs of the study only')
_VERBOSE = flags.DEFINE_boolean('verbose', False, 'Begin with every field that is no default')
_COORDINATOR = flags.DEFINE_string(
    'coordinator', '', "host:port of process 0; 'auto' on Cloud TPU and SLURM; '' = one process"
)
_PROCESSES = flags.DEFINE_integer(
    'processes', None, 'How many processes there are, with --coordinator=host:port'
)
_PROCESS = flags.DEFINE_integer('process', None, 'Which of them this is')
_TIMEOUT = flags.DEFINE_integer(
    'process_timeout',
    distributed.SECONDS,
    'Seconds without a sign of life after which a process counts as lost, and the others end',
)


def default_workdir() -> epath.Path:
    """`configs/digits.py:all` -> `runs/digits-all`."""
    name, _, argument = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    safe = ''.join(c if c.isalnum() or c in '._' else '-' for c in argument)
    return epath.Path('runs') / '-'.join(filter(None, (epath.Path(name).stem, safe)))


def begin(study: Study) -> None:
    """What is said before anything trains."""
    if not parallel.is_main():
        return
    if _VERBOSE.value:
        say(overview.fields(study))
    say(overview.overview(study))
    for sentence in config_check.without_effect(study.plan.runs):
        warn(sentence)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        fail(f'unexpected argument {argv[1]!r}; options look like --config=configs/digits.py')
    logging.getLogger().setLevel(logging.WARNING)  # jax tells which backends it did not find
    stop: list[int] = []
    try:
        config = load_config()
        processes = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value, _TIMEOUT.value
        distributed.check(*processes)
        runtime.prepare(fast=config.fast, single_process=not _COORDINATOR.value)
        distributed.initialize(*processes)
        stop = signals.note()  # after `initialize`, which installs a handler of its own
        workdir = local(_WORKDIR.value) if _WORKDIR.value else default_workdir()
        study = Study(config, workdir, _ONLY.value)
        with display.showing(display.choose(parallel.is_main(), lambda: bool(stop))):
            study.run(lambda: bool(stop), lambda: begin(study))
    except UserError as error:
        fail(error)
    except Stopped:
        # None was received here: another process was asked to stop.
        received = signal.Signals(stop[0] if stop else signal.SIGTERM)
        say(f'stopped by {received.name}; the same command continues')
        sys.exit(128 + received)
    except Exception as error:
        distributed.end_if_lost(error, _TIMEOUT.value)
        if isinstance(error, OSError):
            fail_for_the_system(error, _WORKDIR.value or 'a file of the workdir')
        raise


if __name__ == '__main__':
    app.run(main, flags_parser=functools.partial(parse, about=__doc__))
