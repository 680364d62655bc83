"""Files of photos, decoded when a batch wants them."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kd_jax.data import decoding
from kd_jax.data.crops import Box
from kd_jax.data.dataset import Labelled
from kd_jax.data.stream import SMALL, each_piece
from kd_jax.errors import UserError


class Reader(Protocol):
    """Where the images of a data set stand. It can be sent to another process, which opens the
    files itself.
    """

    def content(self, number: int) -> bytes:
        """A file; raises `decoding.Bad`."""

    def name(self, number: int) -> str:
        """For sentences."""

    def describe(self) -> str:
        """What tells these images from others, without reading them."""


@dataclasses.dataclass(frozen=True)
class Files:
    """Files under a folder."""

    root: str
    paths: tuple[str, ...]
    sizes: np.ndarray  # in bytes

    def content(self, number: int) -> bytes:
        try:
            with open(os.path.join(self.root, self.paths[number]), 'rb') as file:
                return file.read()
        except (OSError, ValueError) as error:
            raise decoding.Bad(f'cannot be read ({getattr(error, "strerror", error)})') from None

    def name(self, number: int) -> str:
        return os.path.join(self.root, self.paths[number])

    def describe(self) -> str:
        digest = hashlib.sha256(self.sizes.astype(np.int64).tobytes())
        for path in self.paths:
            digest.update(os.fsencode(path) + b'\0')
        return f'files {digest.hexdigest()}'


@dataclasses.dataclass(frozen=True)
class StreamSource(Labelled):
    """Examples whose files are decoded each time. label: int32 `[N]` (-1: unlabelled).

    rows: `[N]`, which of the reader's images they are. on_bad_image: 'skip' or 'error'.
    """

    reader: Reader
    label: np.ndarray
    rows: np.ndarray
    form: decoding.Form
    on_bad_image: str = 'skip'

    streamed = True

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.form.shape

    def take(self, rows: np.ndarray, label: np.ndarray | None = None) -> 'StreamSource':
        """Some of the examples, perhaps with other labels."""
        label = self.label[rows] if label is None else label
        return dataclasses.replace(self, label=label, rows=self.rows[rows])

    def images(
        self, index: np.ndarray, crops: Sequence[Box | None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 `[B, H, W, C]`, bool `[B]`: which of them cannot be read, and are black).

        Raises:
          UserError: for one that cannot be read, with `on_bad_image='error'`.
        """
        images = np.zeros((len(index), *self.image_shape), np.uint8)
        bad = np.zeros(len(index), bool)
        cut = crops or [None] * len(index)

        def decode(places: range) -> None:
            for place in places:
                number = int(self.rows[index[place]])
                try:
                    self.form.into(images[place], self.reader.content(number), cut[place])
                except decoding.Bad as error:
                    if self.on_bad_image == 'error':
                        raise UserError(
                            f'{self.reader.name(number)} {error}; mend it, or set '
                            "data.on_bad_image='skip' to train without it"
                        ) from None
                    bad[place] = True

        # of small files most of the time is Python's, whose threads take turns
        each_piece(decode, len(index), 0 if self.form.side > SMALL else 1)
        return images, bad

    def why(self, index: int) -> str:
        """Which file an example is, and why it cannot be read, if it still cannot."""
        number = int(self.rows[index])
        try:
            self.form.into(np.zeros(self.image_shape, np.uint8), self.reader.content(number), None)
        except decoding.Bad as error:
            return f'{self.reader.name(number)} {error}'
        return f'{self.reader.name(number)} could not be read'

    def add_to(self, digest: Any) -> None:
        """Adds what tells the images from others: a teacher sees no labels."""
        rows = np.ascontiguousarray(self.rows, np.int64)
        digest.update(f'{self.reader.describe()} {self.form}'.encode())
        digest.update(rows)


def sizes_of(root: Path, paths: Sequence[str]) -> np.ndarray:
    """In bytes; 0 of what is not there."""

    def one(path: str) -> int:
        try:
            return os.stat(os.path.join(root, path)).st_size
        except (OSError, ValueError):
            return 0

    return np.array([one(path) for path in paths], np.int64)
