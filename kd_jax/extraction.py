"""Runs teachers once over a data set and keeps what they say, for students
that then train without them.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath

from kd_jax import checkpoint, evaluation
from kd_jax.data import Dataset
from kd_jax.data.mixing import Mixing
from kd_jax.data.views import Views
from kd_jax.display import clock, tracker
from kd_jax.errors import UserError
from kd_jax.monitor import detail, say
from kd_jax.networks import Network
from kd_jax.parallel import (
    Parallel,
    barrier,
    free_memory,
    in_any_process,
    is_main,
    only_here,
)
from kd_jax.spec import ON_DEVICES, Arrays, Images, RunSpec
from kd_jax.step import make_predict_step
from kd_jax.target_store import CHUNK, TargetStore, description, row_type, rows_of
from kd_jax.trained import Trained
from kd_jax.workdir import matches

FORMAT = 1
SPLITS = ('train', 'val', 'test')
_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is kept of a teacher. views: those of the training images; the other splits are
    seen as they are, in float32.
    """

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


def kind(
    field: str, wanted: str, dtype: str, top_k: int, views: Views, mixing: Mixing, num_classes: int
) -> Kind:
    """What `wanted`, 'exact' or the number of views, means for a run with these views.

    Raises:
      UserError: if that cannot be kept, or is no such number.
    """
    if mixing.on:
        those = ' and '.join(f'augment.{name}={value}' for name, value in mixing.on.items())
        off = ' and '.join(f'augment.{name}=0.' for name in mixing.on)
        raise UserError(
            f'{field} is {wanted!r}, but with {those} every image is mixed with another one every '
            f"time; set {off} or soft_targets='live'"
        )
    top_k_field = '--top_k' if field.startswith('--') else f'{field}_top_k'
    if top_k >= num_classes:
        raise UserError(
            f'{top_k_field} is {top_k}; it must be 0 (all classes) or less than the '
            f'number of classes, {num_classes}'
        )
    if wanted == 'exact':
        if not views.countable:
            drawn = ' and '.join(views.uncountable)
            raise UserError(
                f"{field} is 'exact', but augment.{drawn} makes more views than can be kept; turn "
                "that off, or give the number of views to keep, such as '8', or 'live'"
            )
        return Kind(views, dtype, top_k)
    return Kind(dataclasses.replace(views, repeated=int(wanted)), dtype, top_k)


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What is extracted: from which teachers, over which data, computed where and in which
    precision. title: for messages.
    """

    teachers: Sequence[Trained]
    dataset: Dataset
    kind: Kind
    parallel: Parallel
    precision: str
    title: str
    images: Images = ON_DEVICES  # how they come to the teachers, see `evaluation.on_devices`

    def manifest(self, teacher: Trained) -> dict[str, Any]:
        """Everything that a teacher's targets depend on."""
        assert teacher.variables is not None
        info, kind = self.dataset.info, self.kind

        def shape(split: str) -> list[Any]:
            width = kind.views.count if split == 'train' else 1
            return [
                len(self.dataset.source(split)),
                width,
                description(kind.row_type(split, info.num_classes)),
            ]

        return {
            'format': FORMAT,
            'made_from': teacher.source,
            'teacher': {
                'checksum': checkpoint.checksum(teacher.variables),
                'mean': teacher.info.mean,
                'std': teacher.info.std,
                'image_shape': teacher.network.image_shape or teacher.info.image_shape,
            },
            'data': {
                'name': info.name,
                'num_classes': info.num_classes,
                'checksum': self.dataset.checksum,
            },
            'augment': kind.views.record,
            'precision': self.precision,
            'dtype': kind.dtype,
            'top_k': kind.top_k,
            'splits': {split: shape(split) for split in SPLITS},
        }

    def run(self, stores: Sequence[TargetStore], should_stop: Callable[[], bool]) -> bool:
        """Writes what is missing in the teachers' stores, all of them in one pass; False if
        it was stopped before the end.

        Each store is the same to the last byte however often it was interrupted.
        """
        if is_main():
            for store in stores:
                store.begin()
        barrier(f'{self.title} stores')
        missing = [set(store.missing()) for store in stores]
        work = [key for key in stores[0].chunks() if any(key in keys for keys in missing)]
        barrier(f'{self.title} listed')
        if not work:
            return True
        begin = said = time.perf_counter()
        if is_main():
            count, width, _ = stores[0].splits['train']
            say(f'{self.title} · soft targets of {count} images in {width} views')
        tracker().counting(f'soft targets of {self.title}', len(work))
        tables = {split: of[0] * of[1] for split, of in stores[0].splits.items()}
        rows_of_chunk = [
            np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, tables[split]))
            for split, chunk in work
        ]
        widths = [stores[0].splits[split][1] for split, _ in work]
        plan = [(split, r, w) for (split, _), r, w in zip(work, rows_of_chunk, widths, strict=True)]
        with contextlib.ExitStack() as closing:
            logits_of = self._predictor(plan, closing)
            for number, (split, chunk) in enumerate(work):
                if in_any_process(should_stop()):
                    return False
                logits = logits_of(*plan[number])
                for k, store in enumerate(stores):
                    if (split, chunk) in missing[k] and is_main():
                        store.write(split, chunk, rows_of(logits[k], store.splits[split][2]))
                tracker().stepped(number + 1)
                if is_main() and time.perf_counter() - said > 30:
                    said = time.perf_counter()
                    left = (said - begin) / (number + 1) * (len(work) - number - 1)
                    detail(
                        f'{self.title} · soft targets '
                        f'{100 * (number + 1) / len(work):.0f} % · {clock(left)} left'
                    )
        barrier(f'{self.title} written')
        return True

    def _predictor(
        self, work: Sequence[tuple[str, np.ndarray, int]], closing: contextlib.ExitStack
    ) -> Callable[[str, np.ndarray, int], list[np.ndarray]]:
        """(split, rows of its table, views an image) -> each teacher's logits, for all that is to
        be done, in its order. One split at a time is on the devices, or read ahead.
        """
        parallel = self.parallel
        networks = [
            teacher.network.computing(self.precision, parallel.fast) for teacher in self.teachers
        ]
        variables = parallel.replicate(tuple(teacher.variables for teacher in self.teachers))
        current: dict[str, Any] = {}

        def begin(split: str) -> Any:
            views = self.kind.views if split == 'train' else Views()
            step = make_predict_step(networks, views, parallel.axis_name)
            run = parallel.compile(step, self.precision, arguments=3)
            source = self.dataset.source(split)
            of = evaluation.on_devices(parallel, source, self.images.placement, self.images.workers)
            every = [
                index for s, rows, w in work if s == split for index in _indices(rows, w, parallel)
            ]
            crop = self.kind.views.cut(0) if split == 'train' else None
            ahead = closing.enter_context(contextlib.closing(of.batches(parallel, every, crop)))
            return partial(run, variables), of, ahead

        def logits_of(split: str, rows: np.ndarray, width: int) -> list[np.ndarray]:
            if split not in current:
                closing.close()
                current.clear()
                current[split] = begin(split)
            count = len(_indices(rows, width, parallel))
            run, of, ahead = current[split]
            return _logits(run, of, itertools.islice(ahead, count), len(rows))

        return logits_of


def of_run(run: RunSpec, teachers: Sequence[Trained], parallel: Parallel, title: str) -> Extraction:
    """What is extracted for the students of a run."""
    precision = run.step.precision
    return Extraction(teachers, run.dataset, run.targets, parallel, precision, title, run.images)


def usual_directory(run: epath.Path, manifest: Mapping[str, Any]) -> epath.Path:
    """Where a teacher's targets lie beside its checkpoints: one folder
    for each thing they depend on.

    That is one that is there and holds these targets, also by an earlier
    version's manifest, or a new one.
    """
    for path in matches(run / 'soft_targets', '*/manifest.json'):
        try:
            if not TargetStore(path.parent, manifest).differences():
                return path.parent
        except UserError:  # cannot be read, and so is not this one
            continue
    text = repr(sorted((key, value) for key, value in manifest.items() if key != 'made_from'))
    name = manifest['data']['name'].replace('/', '-')
    views = manifest['augment']['repeated'] or 'exact'
    return run / 'soft_targets' / f'{name}-{views}-{hashlib.sha256(text.encode()).hexdigest()[:10]}'


def predicted(
    networks: Sequence[Network],
    variables: Any,
    split: evaluation.Split,
    parallel: Parallel,
    precision: str,
) -> list[np.ndarray]:
    """The networks' logits `[N, K]` for images as they are. variables: theirs, on the devices."""
    run = parallel.compile(
        make_predict_step(networks, None, parallel.axis_name), precision, arguments=3
    )
    indices = _indices(np.arange(split.size), 1, parallel)
    with contextlib.closing(split.batches(parallel, indices)) as ahead:
        return _logits(partial(run, variables), split, ahead, split.size)


def _indices(rows: np.ndarray, width: int, parallel: Parallel) -> list[Arrays]:
    """Batches of the rows of a table with `width` views an image; the last one is filled up."""
    size, found = evaluation.batch_size_for(parallel, len(rows), _BATCH), []
    for first in range(0, len(rows), size):
        some = rows[first : first + size]
        padded = np.concatenate([some, np.zeros(size - len(some), some.dtype)])
        slot = (padded % width).astype(np.int32)
        found.append({'index': (padded // width).astype(np.int32), 'slot': slot, 'view': slot})
    return found


def _logits(
    run: Callable[..., Any], split: evaluation.Split, batches: Iterable[Arrays], count: int
) -> list[np.ndarray]:
    """The teachers' logits for the first `count` examples; run(arrays, batch): those of a batch."""
    pending: list[Any] = []
    for batch in batches:
        if split.source is not None and pending:
            pending[-1] = jax.device_get(pending[-1])  # else the images of all would be there
        pending.append(run(split.arrays, batch))
    return [
        np.concatenate([np.asarray(of[k]) for of in pending])[:count]
        for k in range(len(pending[0]))
    ]


def fits(kept: Kind, count: int, num_classes: int, parallel: Parallel) -> bool:
    """Whether the training images' table may lie on every device, as the images do: it takes
    at most half of what is free.
    """
    copies = len(parallel.local) if parallel.on_cpu else 1
    return kept.nbytes(count, num_classes) * copies <= free_memory(parallel) / 2


def obtain(
    extraction: Extraction,
    directories: Sequence[epath.Path],
    should_stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, np.ndarray]] | None:
    """Each teacher's targets: split -> rows `[N, V]` (`kd_jax.target_store`), extracted first
    where they are not there yet.

    directories: one a teacher; a folder for these very targets is made in each, beside its
    checkpoints, unless the directory itself holds targets. None: it was stopped.

    Raises:
      UserError: if a directory's targets belong to something else, or are damaged.
    """
    stores = []
    for teacher, directory in zip(extraction.teachers, directories, strict=True):
        manifest = extraction.manifest(teacher)
        named = (directory / 'manifest.json').exists()
        stores.append(
            TargetStore(directory if named else usual_directory(directory, manifest), manifest)
        )
    # Together: where one process sees what another one does not yet, all enter.
    if in_any_process(not all(store.complete() for store in stores)):
        folders = [store.path for store in stores]
        with only_here(folders, f'extracting soft targets of {extraction.title}'):
            if not extraction.run(stores, should_stop):
                return None
    if is_main():
        for store in stores:
            say(f'soft targets in {store.path}')
    return [store.read() for store in stores]
