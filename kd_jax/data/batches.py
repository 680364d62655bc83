"""Which examples a training step and an evaluation see: exact index arithmetic in numpy."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from kd_jax.errors import UserError

_KEPT = 2  # permutations held at once: a batch mostly touches one pass, or two where it straddles


class TrainOrder:
    """An endless order over `pool`, a pure function of `(seed, step)`.

    The draws are passes over the pool, one after the other, each a random permutation of it; step s
    takes draws s*B ... s*B + B - 1. So batches straddle passes, nothing is dropped, and every
    element is drawn equally often.

    Args:
      pool: distinct integers `[P]`, the indices that may be drawn.
      epoch_size: how many draws are an epoch (the length of the train split, even
        if the pool is a part of it).
      batch_size: B; may be larger than the pool.
      seed: 0 or more.
    """

    def __init__(self, pool: np.ndarray, epoch_size: int, batch_size: int, seed: int):
        self._pool = np.asarray(pool, np.int32)
        if (
            self._pool.ndim != 1
            or not len(self._pool)
            or len(np.unique(self._pool)) != len(self._pool)
        ):
            raise ValueError('pool must be a non-empty list of distinct indices')
        if epoch_size < 1:
            raise ValueError(f'epoch_size is {epoch_size}, must be 1 or more')
        if seed < 0:
            raise UserError(f'the seed is {seed}, must be 0 or more; choose another one')
        _check_batch_size(batch_size)
        self.steps_per_epoch: float = epoch_size / batch_size
        self._batch_size = int(batch_size)
        self.seed = int(seed)
        self._passes: dict[int, np.ndarray] = {}

    def at(self, step: int) -> dict[str, np.ndarray]:
        """The batch of `step` (from 0): `index` int32 `[B]` and `view` int32 `[B]`, the
        pass that a draw belongs to.

        No `(index, view)` comes twice: an augmentation made from (seed, index, view) never repeats.
        """
        first = int(step) * self._batch_size
        index, view = np.empty(self._batch_size, np.int32), np.empty(self._batch_size, np.int32)
        filled = 0
        while filled < self._batch_size:
            number, place = divmod(first + filled, len(self._pool))
            drawn = self._permutation(number)[place : place + self._batch_size - filled]
            index[filled : filled + len(drawn)] = drawn
            view[filled : filled + len(drawn)] = number
            filled += len(drawn)
        return {'index': index, 'view': view}

    def stacked(self, step: int, count: int, size: int) -> dict[str, np.ndarray]:
        """The batches of `count` steps from `step` on, stacked `[size, B]`; what
        comes after those only fills up.
        """
        steps = [self.at(step + min(k, count - 1)) for k in range(size)]
        return {name: np.stack([batch[name] for batch in steps]) for name in steps[0]}

    def _permutation(self, number: int) -> np.ndarray:
        if number not in self._passes:
            while len(self._passes) >= _KEPT:
                del self._passes[next(iter(self._passes))]
            rng = np.random.Generator(np.random.PCG64([self.seed, number]))
            self._passes[number] = rng.permutation(self._pool)
        return self._passes[number]


def with_partners(batch: dict[str, np.ndarray], axis: int = 0) -> dict[str, np.ndarray]:
    """A batch, or a stack of them, with each example's partner in a mixture: its neighbour, B being
    on `axis`.
    """
    return batch | {f'partner_{name}': np.roll(of, 1, axis) for name, of in batch.items()}


@dataclasses.dataclass(frozen=True)
class Share:
    """What one process sees of the batches of an order: `size` examples of each from `first` on.
    partners: with them.
    """

    order: TrainOrder
    first: int
    size: int
    partners: bool = False

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Of the batch of `step`."""
        batch = self.order.at(step)
        batch = with_partners(batch) if self.partners else batch
        return {name: of[self.first : self.first + self.size] for name, of in batch.items()}


def eval_batches(count: int, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `index` int32 `[B]` and `mask` float32 `[B]` over 0 ... count-1,
    each exactly once, in order.

    The last batch is padded with index 0 and mask 0, so that all have one shape.
    """
    _check_batch_size(batch_size)
    for start in range(0, count, batch_size):
        place = np.arange(start, start + batch_size, dtype=np.int64)
        inside = place < count
        yield {
            'index': np.where(inside, place, 0).astype(np.int32),
            'mask': inside.astype(np.float32),
        }


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f'the batch size is {batch_size}, must be 1 or more; choose another one')
