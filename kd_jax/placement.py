"""What of a run lies on the devices besides its state: the splits of its
data, and what its teachers give.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import evaluation, extraction
from kd_jax.data import batches
from kd_jax.objectives import ensemble_logits
from kd_jax.parallel import Parallel
from kd_jax.spec import Arrays, RunSpec, TeacherData
from kd_jax.target_store import columns, decoded
from kd_jax.trained import Trained


class Placement:
    """The data of a run on the devices, each split when it is first asked for;
    and the batches of its steps.
    """

    def __init__(self, run: RunSpec, parallel: Parallel):
        self.run, self.parallel = run, parallel
        self._arrays: dict[str, Arrays] = {}
        self._slots: Callable[..., Any] | None = None

    def arrays(self, split: str) -> Arrays:
        """The columns of a split."""
        if split not in self._arrays:
            self._arrays[split] = evaluation.on_devices(
                self.parallel, self.run.dataset.source(split)
            )
        return self._arrays[split]

    def evaluated(self, split: str, teachers: TeacherData) -> Arrays:
        """The columns of a split, with those that an evaluation wants besides."""
        logits = teachers.logits(split)
        return self.arrays(split) | ({} if logits is None else {'teacher_logits': logits})

    def batches(
        self, order: batches.TrainOrder, step: int, count: int, teachers: TeacherData
    ) -> Arrays:
        """Indices and view numbers `[S, B]` of `count` steps from `step` on; what
        comes after those is not used.

        With mixtures also each example's partner, its neighbour in the batch (with repeats the
        next other image's view); and the soft targets that no device holds.
        """
        stack = order.stacked(step, count, self.run.timing.steps_per_dispatch)
        far, partners = self.run.config.augment.repeats, {}
        if self.run.step.mixing.on:
            partners = {f'partner_{name}': np.roll(x, far, axis=1) for name, x in stack.items()}
        if not teachers.streamed:
            return stack | partners
        slot = self.slots(order.seed, stack['index'], stack['view'])
        rows = {
            name: columns(table[stack['index'], slot]) for name, table in teachers.streamed.items()
        }
        return stack | partners | {'targets': rows}

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
        weights = [teacher.weight for teacher in run.step.teachers if teacher.name in trained]
        weights = weights if any(weights) else [1.0] * len(weights)
        if rows is None:
            variables = {
                name: parallel.replicate(teacher.variables) for name, teacher in trained.items()
            }
            networks = [
                teacher.network
                for teacher in run.step.teachers
                if teacher.name in trained and teacher.network is not None
            ]

            def predicted(split: str) -> list[np.ndarray]:
                placed = tuple(variables.values())
                return extraction.predicted(
                    networks, placed, self.arrays(split), parallel, run.step.precision
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
