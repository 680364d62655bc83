"""Runs a teacher once over a data set and keeps what it says, for
students that then train without it:

python -m kd_jax.soft_targets --teacher=runs/digits/teacher --data=configs/digits.py --views=exact
"""

import functools
import logging
import signal
import sys

from absl import app, flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from kd_jax import data as data_lib
from kd_jax import display, extraction, placement, runtime, signals, trained
from kd_jax.command import load_config, parse
from kd_jax.config import Run
from kd_jax.config_check import check_study
from kd_jax.data.mixing import Mixing
from kd_jax.data.views import Views
from kd_jax.errors import UserError, fail, told_to_the_user
from kd_jax.fields import checked
from kd_jax.fields import own as fields_of
from kd_jax.monitor import say
from kd_jax.parallel import Parallel
from kd_jax.spec import Images
from kd_jax.workdir import RunDirectory, find_run, matches

_TEACHER = flags.DEFINE_multi_string(
    'teacher', [], 'Workdir of a trained run, or of one of its seeds; may be given several times'
)
_DATA = config_flags.DEFINE_config_file(
    'data', lock_config=True, help_string='The config whose data and augment are used'
)
_VIEWS = flags.DEFINE_string(
    'views', 'exact', "How many views of each training image; 'exact': all that there are"
)
_DTYPE = flags.DEFINE_enum('dtype', 'float16', ('float16', 'float32'), 'In which numbers are kept')
_TOP_K = flags.DEFINE_integer('top_k', 0, 'Keep so many classes of each view only; 0 = all')


def _runs(path: epath.Path) -> list[RunDirectory]:
    """The run of a seed, or all finished seeds of a run."""
    seeds = sorted(p.parent for p in matches(path, 'seed*/result.json'))
    return [RunDirectory(seed) for seed in seeds] or [find_run(path, 0)]


def _kind(config: ConfigDict, dataset: data_lib.Dataset) -> extraction.Kind:
    """What the flags ask to keep."""
    limits, wanted, info = fields_of(Run), _VIEWS.value, dataset.info
    if wanted == 'live' or not limits['soft_targets'].metadata['limit'].allowed(wanted):
        raise UserError(
            f"--views is {wanted!r}; it must be 'exact' or a number of views, such as '8'"
        )
    top_k = checked('--top_k', _TOP_K.value, limits['soft_targets_top_k'])
    photos, mixing = config.data.decode == 'photo', Mixing.of(config.augment)
    views = Views.of(config.augment, info.mean_pixel, photos=photos)
    views.check(info.image_shape, 'augment')
    return extraction.kind('--views', wanted, _DTYPE.value, top_k, views, mixing, info.num_classes)


def main(argv: list[str]) -> None:
    logging.getLogger().setLevel(logging.WARNING)  # jax tells which backends it did not find
    with told_to_the_user('the soft targets beside the teacher'):
        if len(argv) > 1 or not _TEACHER.value or _DATA.value is None:
            fail(
                'give --teacher=WORKDIR and --data=CONFIG, such as '
                '--teacher=runs/digits/teacher --data=configs/digits.py'
            )
        config = load_config('data').copy_and_resolve_references()
        check_study(config)
        runtime.prepare(fast=config.fast)
        stop = signals.note()
        runs = [run for path in _TEACHER.value for run in _runs(epath.Path(path).expanduser())]
        teachers = [trained.load(run) for run in runs]
        dataset = data_lib.load(config.data)
        for teacher in teachers:
            trained.check_teacher(teacher, dataset.info)
        parallel = Parallel(config.parallel, config.devices or None, fast=config.fast)
        title = ', '.join(str(run.path) for run in runs)
        lie = placement.choose(dataset, config.data.placement, parallel)
        images, kept = Images(lie, config.data.workers), _kind(config, dataset)
        wanted = extraction.Extraction(
            teachers, dataset, kept, parallel, config.precision, title, images
        )
        places = [run.path for run in runs]
        with display.showing(display.choose(stopping=lambda: bool(stop))):
            rows = extraction.obtain(wanted, places, lambda: bool(stop))
        if rows is None:
            say(f'stopped by {signal.Signals(stop[0]).name}; the same command continues')
            sys.exit(128 + stop[0])


if __name__ == '__main__':
    app.run(main, flags_parser=functools.partial(parse, about=__doc__))
