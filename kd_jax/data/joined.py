"""Two sources as one: the images of a data set, and further ones without labels."""

import dataclasses
from typing import Any

import numpy as np

from kd_jax.data.dataset import Arrays, Dataset, Labelled, Source


@dataclasses.dataclass(frozen=True)
class JoinedSource(Labelled):
    """The examples of `first` and after them those of `second`, of which `rows` `[N]` are taken;
    label: int32 `[N]` (-1: unlabelled). It is a stream if one of the two is.
    """

    first: Source
    second: Source
    label: np.ndarray
    rows: np.ndarray
    streamed: bool

    @classmethod
    def of(cls, first: Source, second: Source) -> 'JoinedSource':
        """All of both."""
        label = np.concatenate([first.labels, second.labels])
        streamed = first.streamed or second.streamed
        return cls(first, second, label, np.arange(len(label)), streamed)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C)."""
        return self.first.image_shape

    @property
    def image(self) -> np.ndarray:
        """All of them, read."""
        return self.images(np.arange(len(self)))[0]

    def images(self, index: np.ndarray, crops: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`."""
        rows = self.rows[index]
        image = np.empty((len(rows), *self.image_shape), np.uint8)
        bad, count = np.zeros(len(rows), bool), len(self.first)
        parts = (self.first, rows < count, 0), (self.second, rows >= count, count)
        for source, here, begin in parts:
            if here.any():
                places = np.flatnonzero(here)
                cut = None if crops is None else [crops[place] for place in places]
                image[places], bad[places] = source.images(rows[places] - begin, cut)
        return image, bad

    def why(self, index: int) -> str:
        """See `Source`."""
        row, count = int(self.rows[index]), len(self.first)
        return self.first.why(row) if row < count else self.second.why(row - count)

    def take(self, rows: np.ndarray, label: np.ndarray | None = None) -> 'JoinedSource':
        """Some of the examples, perhaps with other labels."""
        label = self.label[rows] if label is None else label
        return dataclasses.replace(self, label=label, rows=self.rows[rows])

    def arrays(self) -> Arrays:
        """Its columns, as host arrays."""
        return {'image': self.image, 'label': self.label}

    def add_to(self, digest: Any) -> None:
        """Adds the images to a hash: a teacher sees no labels."""
        for source in (self.first, self.second):
            digest.update(b'joined:')
            source.add_to(digest)
        digest.update(np.ascontiguousarray(self.rows, np.int64))


def without_unlabelled(dataset: Dataset) -> Dataset:
    """A data set without the images of `data.unlabelled`."""
    if not isinstance(dataset.train, JoinedSource):
        return dataset
    count = {name: of for name, of in dataset.info.count.items() if name != 'unlabelled'}
    info = dataclasses.replace(dataset.info, count=count)
    return dataclasses.replace(dataset, info=info, train=dataset.train.first)
