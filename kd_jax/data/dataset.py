"""What a model must know of a data set, and where its batches come from: the
one door to images and labels.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

Arrays = dict[str, Any]
_CHUNK = 4096  # images hashed at once; bounds the memory where they are mapped from a file


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a model must know of the data it is trained on; recorded in each run's config.json.

    image_shape: (H, W, C). mean, std: one value a channel, of the training
      images, for images scaled to 0..1.
    count: examples by split; 'labelled': training examples with a label; and, where there are any,
      'unlabelled': the images of `data.unlabelled`, which come after those of 'train'.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    count: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def same_classes(self, other: 'DatasetInfo', *, sure: bool = False) -> bool:
        """Whether the classes of another data set may be these: as many, of the same names where
        both have some. Numbers are no names; with `sure` they are.
        """
        numbers = tuple(map(str, range(self.num_classes)))
        named = {tuple(info.class_names) for info in (self, other)}
        known = named if sure else named - {(), numbers}
        return self.num_classes == other.num_classes and len(known) < 2

    @property
    def mean_pixel(self) -> tuple[float, ...]:
        """In 0..255."""
        return tuple(255 * m for m in self.mean)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, recorded: Mapping[str, Any]) -> 'DatasetInfo':
        """Of what an earlier run recorded; what that did not know yet is what is usual."""
        usual: dict[str, Any] = {'name': '', 'class_names': (), 'count': {}}
        values: dict[str, Any] = {}
        for name in (field.name for field in dataclasses.fields(cls)):
            value = recorded.get(name, usual.get(name))
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


class Source(Protocol):
    """Examples of one split. streamed: whether their images are decoded when a batch wants them."""

    @property
    def streamed(self) -> bool: ...

    def __len__(self) -> int: ...

    @property
    def labels(self) -> np.ndarray:
        """`[N]` int32 on the host (-1: unlabelled)."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C)."""

    def images(self, index: np.ndarray, crops: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 `[B, H, W, C]`, bool `[B]`: which of them cannot be read, and are black).

        crops: of photos, what is cut out of each; None: they are seen whole.
        """

    def why(self, index: int) -> str:
        """Which image an example is, and what is wrong with it."""

    def take(self, rows: np.ndarray, label: np.ndarray | None = None) -> 'Source':
        """Some of the examples, perhaps with other labels."""

    def add_to(self, digest: Any) -> None:
        """Adds the images to a hash: a teacher sees no labels."""


class Labelled:
    """What sources with a column `label`, int32 `[N]`, have in common."""

    label: np.ndarray
    streamed = False

    def __len__(self) -> int:
        return len(self.label)

    @property
    def labels(self) -> np.ndarray:
        """`[N]` int32 on the host."""
        return self.label

    def why(self, index: int) -> str:
        """See `Source`."""
        return f'image {index}'


@dataclasses.dataclass(frozen=True)
class ArraySource(Labelled):
    """Examples whose images are an array: `image` uint8 `[N, H, W, C]`, `label` int32 `[N]` (-1:
    unlabelled).
    """

    image: np.ndarray
    label: np.ndarray

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C)."""
        return self.image.shape[1:]

    def images(self, index: np.ndarray, crops: None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`; all of them can be read."""
        return self.image[index], np.zeros(len(index), bool)

    def take(
        self, rows: np.ndarray, label: np.ndarray | None = None
    ) -> 'ArraySource | MappedSource':
        """Some of the examples, perhaps with other labels."""
        label = self.label[rows] if label is None else label
        if isinstance(self.image, np.memmap):
            return MappedSource(self.image, label, rows)
        return ArraySource(self.image[rows], label)

    def arrays(self) -> Arrays:
        """Its columns, as host arrays."""
        return {'image': self.image, 'label': self.label}

    def add_to(self, digest: Any) -> None:
        """Adds the images to a hash: a teacher sees no labels."""
        digest.update(f'{self.image.shape};'.encode())
        for start in range(0, len(self.image), _CHUNK):
            digest.update(np.ascontiguousarray(self.image[start : start + _CHUNK]))


@dataclasses.dataclass(frozen=True)
class MappedSource(Labelled):
    """Some of the images of a file, `rows` `[N]` of `file` uint8 `[M, H, W, C]`, which may be
    larger than the memory.
    """

    file: np.ndarray
    label: np.ndarray
    rows: np.ndarray

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C)."""
        return self.file.shape[1:]

    @property
    def image(self) -> np.ndarray:
        """All of them, read."""
        return np.asarray(self.file[self.rows])

    def images(self, index: np.ndarray, crops: None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`; all of them can be read."""
        return np.asarray(self.file[self.rows[index]]), np.zeros(len(index), bool)

    def take(self, rows: np.ndarray, label: np.ndarray | None = None) -> 'MappedSource':
        """Some of the examples, perhaps with other labels."""
        label = self.label[rows] if label is None else label
        return MappedSource(self.file, label, self.rows[rows])

    def arrays(self) -> Arrays:
        """Its columns, as host arrays."""
        return {'image': self.image, 'label': self.label}

    def add_to(self, digest: Any) -> None:
        """As `ArraySource` does."""
        digest.update(f'{(len(self), *self.image_shape)};'.encode())
        for start in range(0, len(self), _CHUNK):
            digest.update(np.ascontiguousarray(self.file[self.rows[start : start + _CHUNK]]))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set: three sources that share no example, and what a model must know about it. notes:
    sentences that the user should read.
    """

    info: DatasetInfo
    train: Source
    val: Source
    test: Source
    notes: tuple[str, ...] = ()

    def source(self, split: str) -> Source:
        """Of 'train', 'val' or 'test'."""
        return getattr(self, split)

    @property
    def unlabelled(self) -> int:
        """How many images of `data.unlabelled` are the last ones of `train`."""
        return self.info.count.get('unlabelled', 0)

    @functools.cached_property
    def checksum(self) -> str:
        """SHA-256 of all images."""
        digest = hashlib.sha256()
        for split in ('train', 'val', 'test'):
            digest.update(f'{split}:'.encode())
            self.source(split).add_to(digest)
        return digest.hexdigest()
