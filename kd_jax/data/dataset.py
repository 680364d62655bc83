"""What a model must know of a data set, and where its batches come from: the
one door to images and labels.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a model must know of the data it is trained on; recorded in each run's config.json.

    image_shape: (H, W, C). mean, std: one value a channel, of the training
      images, for images scaled to 0..1.
    count: examples by split, and 'labelled': training examples with a label.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    count: Mapping[str, int] = dataclasses.field(default_factory=dict)

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


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Examples that lie on every device: `image` uint8 `[N, H, W, C]`, `label`
    int32 `[N]` (-1: unlabelled).
    """

    image: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    @property
    def labels(self) -> np.ndarray:
        """`[N]` int32 on the host."""
        return self.label

    def arrays(self) -> Arrays:
        """What lies on the devices while a run trains or is evaluated, as host arrays."""
        return {'image': self.image, 'label': self.label}

    def add_to(self, digest: Any) -> None:
        """Adds the images to a hash: a teacher sees no labels."""
        digest.update(f'{self.image.shape};'.encode())
        digest.update(np.ascontiguousarray(self.image))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set: three sources that share no example, and what a model must know about it. notes:
    sentences that the user should read.
    """

    info: DatasetInfo
    train: ArraySource
    val: ArraySource
    test: ArraySource
    notes: tuple[str, ...] = ()

    def source(self, split: str) -> ArraySource:
        """Of 'train', 'val' or 'test'."""
        return getattr(self, split)

    @functools.cached_property
    def checksum(self) -> str:
        """SHA-256 of all images."""
        digest = hashlib.sha256()
        for split in ('train', 'val', 'test'):
            digest.update(f'{split}:'.encode())
            self.source(split).add_to(digest)
        return digest.hexdigest()
