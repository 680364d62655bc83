"""Runs a teacher once over a data set and keeps what it says, for students that then train without it; also a command:

python -m kd_jax.soft_targets --teacher=runs/digits/teacher --data=configs/digits.py --views=exact
"""

import dataclasses
import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from kd_jax import checkpoint, evaluate, runtime, teachers
from kd_jax import data as data_lib
from kd_jax.command import load_config, parse
from kd_jax.data import Splits
from kd_jax.data.views import Views
from kd_jax.errors import UserError, fail, told_to_the_user, unknown
from kd_jax.monitor import clock, say
from kd_jax.networks import Network, exactly
from kd_jax.parallel import Parallel, barrier, is_main
from kd_jax.tables import CHUNK, Tables, description, row_type, rows_of
from kd_jax.workdir import RunDirectory, find_run

FORMAT = 1
DTYPES = ('float16', 'float32')
SPLITS = ('train', 'val', 'test')
_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is kept of a teacher. views: those of the training images; the other splits are seen as they are, in float32."""

    views: Views
    dtype: str = 'float16'
    top_k: int = 0  # so many classes of each view; 0: all

    def row_type(self, split: str, num_classes: int) -> np.dtype:
        if split == 'train':
            return row_type(num_classes, self.dtype, self.top_k)
        return row_type(num_classes, 'float32', 0)

    def nbytes(self, count: int, num_classes: int) -> int:
        """Of the training images' table."""
        return count * self.views.count * self.row_type('train', num_classes).itemsize


def kind(field: str, wanted: str, dtype: str, top_k: int, views: Views, mixup: float, num_classes: int) -> Kind:
    """What `wanted`, 'exact' or the number of views, means for a run with these views.

    Raises:
      UserError: if that cannot be kept, or is no such number.
    """
    if mixup:
        raise UserError(
            f'{field} is {wanted!r}, but with augment.mixup={mixup} every image is mixed with another one every time; '
            "set augment.mixup=0. or soft_targets='live'"
        )
    if dtype not in DTYPES:
        raise unknown(f'value of {field}_dtype', dtype, DTYPES)
    if not 0 <= top_k < num_classes or top_k > 65536:
        raise UserError(
            f'{field}_top_k is {top_k}; it must be 0 (all classes) or less than the number of classes, {num_classes}'
        )
    if wanted == 'exact':
        if not views.countable:
            drawn = ' and '.join(name for name in ('rotate', 'cutout') if getattr(views, name))
            raise UserError(
                f"{field} is 'exact', but augment.{drawn} makes more views than can be kept; turn that off, or give the "
                f"number of views to keep, such as '8', or 'live'"
            )
        return Kind(views, dtype, top_k)
    if not (wanted.isascii() and wanted.isdigit() and int(wanted) > 0):
        live = '' if field.startswith('--') else "'live', "
        raise UserError(f"{field} is {wanted!r}; it must be {live}'exact' or a number of views, such as '8'")
    return Kind(dataclasses.replace(views, repeated=int(wanted)), dtype, top_k)


def manifest(trained: teachers.Trained, splits: Splits, kept: Kind, precision: str) -> dict[str, Any]:
    """Everything that the targets depend on."""
    facts = trained.facts
    views = dataclasses.asdict(kept.views)
    if not kept.views.cutout:
        del views['fill']
    counts = {split: len(getattr(splits, split).label) for split in SPLITS}
    return {
        'format': FORMAT,
        'made_from': trained.source,
        'teacher': {'checksum': checkpoint.checksum(trained.variables), 'mean': facts['mean'], 'std': facts['std'],
                    'image_shape': trained.network.image_shape or facts['image_shape']},
        'data': {'name': splits.name, 'num_classes': splits.num_classes, 'checksum': _checksum(splits)},
        'augment': views,
        'precision': precision,
        'dtype': kept.dtype,
        'top_k': kept.top_k,
        'splits': {split: [counts[split], kept.views.count if split == 'train' else 1,
                           description(kept.row_type(split, splits.num_classes))] for split in SPLITS},
    }  # fmt: skip


def _checksum(splits: Splits) -> str:
    """Of the images: a teacher sees no labels."""
    digest = hashlib.sha256()
    for split in SPLITS:
        image = getattr(splits, split).image
        digest.update(f'{split}:{image.shape};'.encode())
        digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()


def usual_directory(run: Path, made: Mapping[str, Any]) -> Path:
    """Where a teacher's targets lie beside its checkpoints: one folder for each thing they depend on."""
    text = repr(sorted((key, value) for key, value in made.items() if key != 'made_from'))
    name, views = made['data']['name'].replace('/', '-'), made['augment']['repeated'] or 'exact'
    return run / 'soft_targets' / f'{name}-{views}-{hashlib.sha256(text.encode()).hexdigest()[:10]}'


def extract(
    trained: Sequence[teachers.Trained],
    tables: Sequence[Tables],
    views: Views,
    splits: Splits,
    par: Parallel,
    precision: str,
    title: str,
    should_stop: Callable[[], bool],
) -> bool:
    """Writes what is missing in the teachers' tables, all of them in one pass; False if it was stopped before the end.

    Each table is the same to the last byte however often it was interrupted.
    """
    if is_main():
        for table in tables:
            table.begin()
    barrier(f'{title} tables')
    missing = [set(table.missing()) for table in tables]
    work = [key for key in tables[0].chunks() if any(key in keys for keys in missing)]
    barrier(f'{title} listed')
    if not work:
        return True
    networks = [teacher.network.computing(precision, par.fast) for teacher in trained]
    placed = par.replicate(tuple(teacher.variables for teacher in trained))
    begin = said = time.perf_counter()
    current = run = data = None
    if is_main():
        count, width, _ = tables[0].splits['train']
        say(f'{title} · soft targets of {count} images in {width} views')
    for number, (split, chunk) in enumerate(work):
        if par.any(should_stop()):
            return False
        if split != current:
            current, data = split, evaluate.on_device(par, getattr(splits, split))
            seen = views if split == 'train' else Views()
            run = par.compile(exactly(make_step(networks, seen, par.axis_name), precision), arguments=3)
        count, width, _ = tables[0].splits[split]
        rows = np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, count * width))
        logits = _logits(run, placed, data, rows, width, par)
        for k, table in enumerate(tables):
            if (split, chunk) in missing[k] and is_main():
                table.write(split, chunk, rows_of(logits[k], table.splits[split][2]))
        if is_main() and time.perf_counter() - said > 30:
            said = time.perf_counter()
            left = (said - begin) / (number + 1) * (len(work) - number - 1)
            say(f'{title} · soft targets {100 * (number + 1) / len(work):.0f} % · {clock(left)} left')
    barrier(f'{title} written')
    return True


def judged(
    networks: Sequence[Network], placed: Any, data: dict[str, jax.Array], par: Parallel, precision: str
) -> list[np.ndarray]:
    """The teachers' logits `[N, K]` for images as they are. placed: their variables; data: a split's, both on the devices."""
    run = par.compile(exactly(make_step(networks, Views(), par.axis_name), precision), arguments=3)
    return _logits(run, placed, data, np.arange(len(data['label'])), 1, par)


def _logits(run: Callable, placed: Any, data: Any, rows: np.ndarray, width: int, par: Parallel) -> list[np.ndarray]:
    """The teachers' logits for the rows of a table with `width` views an image; `run`: `make_step`'s function."""
    batch, pending = evaluate.batch_size_for(par, len(rows), _BATCH), []
    for first in range(0, len(rows), batch):
        some = rows[first : first + batch]
        padded = np.concatenate([some, np.zeros(batch - len(some), some.dtype)])
        where = {'index': (padded // width).astype(np.int32), 'slot': (padded % width).astype(np.int32)}
        pending.append((run(placed, data, par.divide(where)), len(some)))
    teachers_ = range(len(pending[0][0]))
    return [np.concatenate([np.asarray(outputs[k])[:length] for outputs, length in pending]) for k in teachers_]


def make_step(networks: Sequence[Network], views: Views, axis_name: str | None) -> Callable:
    """`(teacher_variables, data, {'index', 'slot' [B]}) -> logits [B, K]` float32, one a teacher."""

    def step(teacher_variables, data, batch):
        pixels = views.of_slot(data, batch['index'], batch['slot'])
        logits = tuple(net.predict(v, pixels).logits for net, v in zip(networks, teacher_variables, strict=True))
        return jax.lax.all_gather(logits, axis_name, tiled=True) if axis_name else logits

    return step


def fits(kept: Kind, count: int, num_classes: int, par: Parallel) -> bool:
    """Whether the training images' table may lie on every device, as the images do: it takes at most half of what is free."""
    need = kept.nbytes(count, num_classes)
    memory = par.devices[0].memory_stats() if par.devices[0].platform != 'cpu' else None
    if memory:
        return need <= (memory['bytes_limit'] - memory['bytes_in_use']) / 2
    return need * len(par.local) <= os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2


def columns(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Rows as arrays, as `kd_jax.networks.Stored` reads them."""
    return {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names}


def obtain(
    trained: Sequence[teachers.Trained],
    directories: Sequence[Path],
    kept: Kind,
    splits: Splits,
    par: Parallel,
    *,
    precision: str,
    title: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, np.ndarray]] | None:
    """Each teacher's targets: split -> rows `[N, V]` (`kd_jax.tables`), extracted first where they are not there yet.

    directories: one a teacher; a folder for these very targets is made in each, beside its checkpoints, unless the
    directory itself holds targets. None: it was stopped.

    Raises:
      UserError: if a directory's targets belong to something else, or are damaged.
    """
    tables = []
    for teacher, directory in zip(trained, directories, strict=True):
        made = manifest(teacher, splits, kept, precision)
        own = (directory / 'manifest.json').exists()
        tables.append(Tables(directory if own else usual_directory(directory, made), made))
    if not extract(trained, tables, kept.views, splits, par, precision, title, should_stop):
        return None
    if is_main():
        for table in tables:
            say(f'soft targets in {table.path}')
    return [table.read() for table in tables]


_TEACHER = flags.DEFINE_multi_string(
    'teacher', [], 'Workdir of a trained run, or of one of its seeds; may be given several times'
)
_DATA = config_flags.DEFINE_config_file('data', lock_config=True, help_string='The config whose data and augment are used')
_VIEWS = flags.DEFINE_string('views', 'exact', "How many views of each training image; 'exact': all that there are")
_DTYPE = flags.DEFINE_enum('dtype', 'float16', DTYPES, 'In which numbers are kept')
_TOP_K = flags.DEFINE_integer('top_k', 0, 'Keep so many classes of each view only; 0 = all')


def _runs(path: Path) -> list[RunDirectory]:
    """The run of a seed, or all finished seeds of a run."""
    seeds = sorted(p.parent for p in path.glob('seed*/result.json'))
    return [RunDirectory(seed) for seed in seeds] or [find_run(path, 0)]


def main(argv: list[str]) -> None:
    logging.getLogger().setLevel(logging.WARNING)  # jax tells which backends it did not find
    with told_to_the_user():
        if len(argv) > 1 or not _TEACHER.value or _DATA.value is None:
            fail('give --teacher=WORKDIR and --data=CONFIG, such as --teacher=runs/digits/teacher --data=configs/digits.py')
        config = load_config('data').copy_and_resolve_references()
        runtime.prepare(fast=config.fast)
        runs = [run for path in _TEACHER.value for run in _runs(Path(path).expanduser())]
        loaded = [teachers.load(run) for run in runs]
        splits = data_lib.load(config.data)
        for trained in loaded:
            teachers.check_teacher(trained, splits)
        augment = dict(config.augment)
        mixup = augment.pop('mixup')
        views = Views(**augment, fill=splits.mean_pixel)
        kept = kind('--views', _VIEWS.value, _DTYPE.value, _TOP_K.value, views, mixup, splits.num_classes)
        title = ', '.join(str(run.path) for run in runs)
        par = Parallel(config.parallel, config.devices or None, fast=config.fast)
        obtain(loaded, [run.path for run in runs], kept, splits, par, precision=config.precision, title=title)


if __name__ == '__main__':
    app.run(main, flags_parser=parse)
