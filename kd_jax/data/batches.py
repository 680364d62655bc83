"""Which examples a training step and an evaluation see: exact index arithmetic in numpy."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from kd_jax.errors import UserError

_KEPT = 2  # permutations held at once: a batch mostly touches one pass, or two where it straddles


class Order:
    """Which examples each step sees: a pure function of `(seed, step)`."""

    seed: int
    steps_per_epoch: float

    def at(self, step: int) -> dict[str, np.ndarray]:
        """The batch of `step` (from 0): `index` int32 `[B]` and `view` int32 `[B]`."""
        raise NotImplementedError

    def stacked(self, step: int, count: int, size: int) -> dict[str, np.ndarray]:
        """The batches of `count` steps from `step` on, stacked `[size, B]`; what
        comes after those only fills up.
        """
        steps = [self.at(step + min(k, count - 1)) for k in range(size)]
        return {name: np.stack([batch[name] for batch in steps]) for name in steps[0]}


class TrainOrder(Order):
    """An endless order over `pool`, a pure function of `(seed, step)`.

    The draws are passes over the pool, one after the other, each a random permutation of it; step s
    takes draws s*B ... s*B + B - 1. So batches straddle passes, nothing is dropped, and every
    element is drawn equally often. With `repeats` each draw of a pass counts so often, one after
    the other (Hoffer et al. 2020, arXiv:1901.09335, Berman et al. 2019, arXiv:1902.05509); a batch
    may end among them, and the next one goes on.

    Args:
      pool: distinct integers `[P]`, the indices that may be drawn.
      epoch_size: how many draws are an epoch (the length of the train split, even
        if the pool is a part of it).
      batch_size: B; may be larger than the pool.
      seed: 0 or more.
      repeats: how often an element is drawn at once, each time for another view.
      stream: of the random numbers; orders of different streams have nothing in common.
    """

    def __init__(
        self,
        pool: np.ndarray,
        epoch_size: int,
        batch_size: int,
        seed: int,
        repeats: int = 1,
        stream: int = 0,
    ):
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
        check_repeats(repeats, batch_size, 'repeats')
        self.steps_per_epoch = epoch_size / batch_size
        self._batch_size = int(batch_size)
        self.seed, self._repeats = int(seed), int(repeats)
        self._stream = (stream,) if stream else ()
        self._passes: dict[int, np.ndarray] = {}

    def at(self, step: int) -> dict[str, np.ndarray]:
        """The batch of `step` (from 0): `index` int32 `[B]` and `view` int32 `[B]`, the
        pass that a draw belongs to; with repeats, the pass and the repetition together.

        No `(index, view)` comes twice: an augmentation made from (seed, index, view) never repeats.
        """
        first, again = divmod(int(step) * self._batch_size, self._repeats)
        count = -(-(again + self._batch_size) // self._repeats)
        index, view = np.empty(count, np.int32), np.empty(count, np.int32)
        filled = 0
        while filled < count:
            number, place = divmod(first + filled, len(self._pool))
            drawn = self._permutation(number)[place : place + count - filled]
            index[filled : filled + len(drawn)] = drawn
            view[filled : filled + len(drawn)] = number * self._repeats
            filled += len(drawn)
        view = (view[:, None] + np.arange(self._repeats, dtype=np.int32)[None, :]).ravel()
        mine = slice(again, again + self._batch_size)
        return {'index': index.repeat(self._repeats)[mine], 'view': view[mine]}

    def _permutation(self, number: int) -> np.ndarray:
        found = self._passes.get(number)
        if found is None:
            rng = np.random.Generator(np.random.PCG64([self.seed, number, *self._stream]))
            found = rng.permutation(self._pool)
            # a new dict: another thread may look at the old one
            last = list(self._passes.items())[1 - _KEPT :]
            self._passes = dict([*last, (number, found)])
        return found


class JoinedOrder(Order):
    """Two orders side by side: each batch has one of the first and after it one of the second. An
    epoch is that of the first.
    """

    def __init__(self, first: TrainOrder, second: TrainOrder):
        self._parts = first, second
        self.seed, self.steps_per_epoch = first.seed, first.steps_per_epoch

    def at(self, step: int) -> dict[str, np.ndarray]:
        """See `Order`."""
        first, second = (part.at(step) for part in self._parts)
        return {name: np.concatenate([first[name], second[name]]) for name in first}


def parts_of(batch_size: int, share: float) -> tuple[int, int]:
    """(labelled, unlabelled) images of each batch: `share` of it is unlabelled, and at least one
    image is of either kind.
    """
    if batch_size < 2:
        raise UserError(
            f'the batch size is {batch_size}, which leaves no place for images of data.unlabelled '
            'beside the others; take 2 or more'
        )
    unlabelled = min(max(round(share * batch_size), 1), batch_size - 1)
    return batch_size - unlabelled, unlabelled


def with_partners(batch: dict[str, np.ndarray], far: int, axis: int = 0) -> dict[str, np.ndarray]:
    """A batch, or a stack of them, with each example's partner in a mixture: `far` places before
    it, B being on `axis`; 0: it has none.
    """
    if not far:
        return batch
    return batch | {f'partner_{name}': np.roll(of, far, axis) for name, of in batch.items()}


@dataclasses.dataclass(frozen=True)
class Share:
    """What one process sees of the batches of an order: `size` examples of each from `first` on.
    far: see `with_partners`.
    """

    order: Order
    first: int
    size: int
    far: int = 0

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Of the batch of `step`."""
        batch = with_partners(self.order.at(step), self.far)
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


def check_repeats(repeats: int, batch_size: int, path: str, what: str = 'batches') -> None:
    """Raises `UserError` for repeats that leave one image to what is of `batch_size`. path: of the
    field.
    """
    if repeats < 1 or 1 < repeats >= batch_size:
        raise UserError(
            f'{path} is {repeats} in {what} of {batch_size}; it must be at least 1 and less than '
            'that size, so that there are several images: take fewer'
        )


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f'the batch size is {batch_size}, must be 1 or more; choose another one')
