"""What of a run lies on the devices besides its state: the splits of its
data, and what its teachers give.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import evaluation, extraction, feed
from kd_jax.data import Dataset
from kd_jax.data.batches import JoinedOrder, Order, Share, TrainOrder, parts_of, with_partners
from kd_jax.data.columns import Sharded
from kd_jax.data.dataset import Source
from kd_jax.objectives import ensemble_logits
from kd_jax.parallel import Parallel, free_memory, shards, share
from kd_jax.spec import Arrays, RunSpec, TeacherData
from kd_jax.target_store import columns, decoded
from kd_jax.trained import Trained


def choose(dataset: Dataset, wanted: str, parallel: Parallel) -> str:
    """Where the images of a data set lie while a run trains: 'resident', 'sharded', 'host' or
    'stream', see `kd_jax.data.Settings`. 'auto' is the first of them that fits: images take at
    most half of the memory that is free.
    """
    splits = [dataset.source(split) for split in ('train', 'val', 'test')]
    if any(source.streamed for source in splits):
        return 'stream'
    if wanted != 'auto':
        return wanted
    need, room = nbytes(dataset), free_memory(parallel) / 2
    # the cores of a processor have one memory, with a copy for each
    copies = len(parallel.local) if parallel.on_cpu else 1
    if need * copies <= room:
        return 'resident'
    return 'sharded' if need * copies / len(parallel) <= room and len(parallel) > 1 else 'host'


def nbytes(dataset: Dataset) -> int:
    """Of all images, decoded."""
    count = sum(len(dataset.source(split)) for split in ('train', 'val', 'test'))
    return count * math.prod(dataset.info.image_shape)


def order_of(run: RunSpec, seed: int) -> Order:
    """Which examples the steps of a run see. Where it has images of `data.unlabelled`, each batch
    has some of them after the others, and both are drawn in passes of their own.
    """
    count, size = len(run.dataset.train), run.config.batch_size
    repeats, more = run.config.augment.repeats, run.dataset.unlabelled
    if not more:
        return TrainOrder(run.pool, count, size, seed, repeats)
    mine, others = parts_of(size, run.config.data.unlabelled_share)
    return JoinedOrder(
        TrainOrder(run.pool, count - more, mine, seed, repeats),
        TrainOrder(np.arange(count - more, count), more, others, seed, repeats, stream=1),
    )


class Placement:
    """The data of a run on the devices, each split when it is first asked for;
    and the batches of its steps.
    """

    def __init__(self, run: RunSpec, parallel: Parallel):
        self.run, self.parallel = run, parallel
        self.waited = 0.0  # seconds in which the devices had nothing to do but wait for images
        self._splits: dict[str, evaluation.Split] = {}
        self._slots: Callable[..., Any] | None = None
        self._feed: feed.Feed | None = None
        self._sharded: Sharded | None = None
        self._order: Order | None = None  # that the feed follows

    @property
    def _far(self) -> int:
        """How far an example's partner in a mixture is; 0: it has none."""
        return self.run.config.augment.repeats if self.run.step.mixing.on else 0

    def close(self) -> None:
        """Nothing is read ahead any more."""
        if self._feed is not None:
            self._feed.close()
        self._feed = None

    def split(self, name: str) -> evaluation.Split:
        """A split as `RunSpec.images` says."""
        if name not in self._splits:
            # a process that decodes takes seconds to start, so that only training has some
            self._splits[name] = evaluation.on_devices(
                self.parallel, self.run.dataset.source(name), self.run.images.placement
            )
        return self._splits[name]

    def training(self) -> Arrays | Sharded:
        """The columns of the training images that lie on the devices."""
        if self.run.images.placement != 'sharded':
            return self.split('train').arrays
        if self._sharded is None:
            source = self.run.dataset.train
            columns = {'image': source.image, 'label': source.labels}  # type: ignore[attr-defined]
            parts = {name: shards(self.parallel, of) for name, of in columns.items()}
            self._sharded = Sharded(parts, self.parallel.axis_name)
        return self._sharded

    def evaluated(self, split: str, teachers: TeacherData) -> evaluation.Split:
        """A split with the columns that an evaluation wants besides."""
        logits, of = teachers.logits(split), self.split(split)
        if logits is None:
            return of
        return of._replace(arrays=of.arrays | {'teacher_logits': logits})

    def batches(
        self,
        order: Order,
        step: int,
        count: int,
        teachers: TeacherData,
        busy: Callable[[], bool] = lambda: True,
    ) -> Arrays:
        """Indices and view numbers `[S, B]` of `count` steps from `step` on, laid out for the
        steps; what comes after those is not used.

        With mixtures also each example's partner, its neighbour in the batch (with repeats the
        next other image's view); and the soft targets and the images that no device holds.
        busy(): whether the devices are.
        """
        on_devices = self.run.images.placement in ('resident', 'sharded')
        source = None if on_devices else self.split('train').source
        if source is None:
            stack = order.stacked(step, count, self.run.timing.steps_per_dispatch)
            stack = with_partners(stack, self._far, axis=1)
            return self.parallel.divide(self._with_targets(order, stack, teachers), axis=1)
        timing = self.run.timing
        if count != timing.count_at(step):  # not as a training goes on
            with self._fed(source, order, teachers, step, step + count) as once:
                return once.get()[0]
        if self._feed is None or self._feed.next != step or self._order is not order:
            self.close()
            self._feed = self._fed(source, order, teachers, step, timing.total_steps)
            self._order = order
        found, waited = self._feed.get(busy)
        self.waited += waited
        return found

    def _fed(
        self, source: Source, order: Order, teachers: TeacherData, first: int, last: int
    ) -> feed.Feed:
        """The batches from one step to another."""
        timing, crop = self.run.timing, self.run.step.views.cut(order.seed)
        mine = share(self.parallel, self.run.config.batch_size)
        at = Share(order, *mine, self._far)
        reading = feed.Reading(source, at, first, last, crop)

        def finish(group: list[Arrays]) -> Arrays:
            stack = feed.stacked(group, timing.steps_per_dispatch)
            return self.parallel.lay_out(self._with_targets(order, stack, teachers), axis=1)

        going_on = last == timing.total_steps
        groups = timing.count_at if going_on else lambda step: last - step
        workers = self.run.images.workers if going_on else 0
        return feed.Feed(reading, groups, finish, workers)

    def _with_targets(self, order: Order, stack: Arrays, teachers: TeacherData) -> Arrays:
        if not teachers.streamed:
            return stack
        slot = self.slots(order.seed, stack['index'], stack['view'])
        rows = {
            name: columns(table[stack['index'], slot]) for name, table in teachers.streamed.items()
        }
        return stack | {'targets': rows}

    def slots(self, seed: int, index: np.ndarray, view: np.ndarray) -> np.ndarray:
        """`views.slot` on the host, of arrays of any shape."""
        if self._slots is None:
            views = self.run.step.views
            self._slots = jax.jit(lambda s, i, v: views.slot(jax.random.key(s), i, v))
        with jax.default_device(jax.local_devices(backend='cpu')[0]):
            return np.asarray(self._slots(seed, index.ravel(), view.ravel())).reshape(index.shape)

    def teachers(
        self, trained: Mapping[str, Trained], rows: Sequence[Mapping[str, np.ndarray]] | None = None
    ) -> TeacherData:
        """What the steps need of these teachers: their variables, or the soft targets
        that `extraction.obtain` gave.
        """
        run, parallel = self.run, self.parallel
        # a teacher of other classes is compared with nothing; where no term compares logits, its
        # classes may be others of the same number
        sure = not any(loss.reads_logits() for _, loss in run.step.objective.losses)
        same = [
            name
            for name, teacher in trained.items()
            if teacher.info.same_classes(run.dataset.info, sure=sure)
        ]
        weights = [teacher.weight for teacher in run.step.teachers if teacher.name in same]
        weights = weights if any(weights) else [1.0] * len(weights)
        if rows is None:
            variables = {
                name: parallel.replicate(teacher.variables) for name, teacher in trained.items()
            }
            networks = [
                teacher.network
                for teacher in run.step.teachers
                if teacher.name in same and teacher.network is not None
            ]

            def predicted(split: str) -> list[np.ndarray]:
                placed = tuple(variables[name] for name in same)
                return extraction.predicted(
                    networks, placed, self.split(split), parallel, run.step.precision
                )

            return TeacherData(variables, self._averaged(predicted, weights))

        def kept(split: str) -> list[jax.Array]:
            return [
                decoded(
                    {k: x[:, 0] for k, x in columns(r[split]).items()}, run.dataset.info.num_classes
                )
                for r in rows
            ]

        logits, names = self._averaged(kept, weights), list(trained)
        train = dict(zip(names, (r['train'] for r in rows), strict=True))
        if extraction.fits(
            run.targets, len(rows) * len(run.dataset.train), run.dataset.info.num_classes, parallel
        ):
            return TeacherData(
                {name: parallel.replicate(columns(table)) for name, table in train.items()}, logits
            )
        return TeacherData(dict.fromkeys(names, ()), logits, train)

    def _averaged(
        self, of: Callable[[str], Sequence[Any]], weights: Sequence[float]
    ) -> Callable[[str], Any]:
        """split -> the average of the teachers' probabilities as
        logits on the devices, made once.
        """
        averages: dict[str, Any] = {}

        def logits(split: str) -> Any:
            if not weights:
                return None
            if split not in averages:
                average = ensemble_logits([jnp.asarray(x) for x in of(split)], weights)
                averages[split] = self.parallel.replicate(jax.device_get(average))
            return averages[split]

        return logits
