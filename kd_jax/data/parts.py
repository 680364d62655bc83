"""Random parts of one large photo, as images without labels."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from kd_jax.data import decoding
from kd_jax.data.crops import TRIES, Box, random_box
from kd_jax.data.stream import each_piece
from kd_jax.errors import UserError

SMALLEST = 1 / 500  # share that a part has of its square, at least
_ENOUGH = 2  # pixels of a smaller copy for each of the part that is resized


def box_of(seed: int, number: int, side: int, width: int, height: int) -> tuple[int, int, int, int]:
    """A part of a photo of `width` x `height` pixels, (left, top, width, height): a function of
    (seed, number).

    As Asano and Saeed 2023 (arXiv:2112.00725) take parts: a square of half the photo's shorter
    side, anywhere, and of it `SMALLEST` to all of the area, of a ratio of 3/4 to 4/3; but no fewer
    pixels than the `side` x `side` of the image that it becomes.
    """
    rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 1, number]))
    across, down = rng.random(2).tolist()
    square = max(min(width, height) // 2, side)
    left, top = int(across * (width - square + 1)), int(down * (height - square + 1))
    smallest = min(max(SMALLEST, (side / square) ** 2), 1.0)
    x, y, wide, high = random_box(rng.random((TRIES, 4)), smallest, square, square)
    return left + x, top + y, wide, high


@dataclasses.dataclass(frozen=True)
class PartsSource:
    """Parts of a photo, each cut when it is wanted. numbers: `[N]`, which they are.

    pixels: the photo uint8 `[H, W, C]` and smaller copies of it, each of half the size.
    """

    pixels: tuple[np.ndarray, ...]
    numbers: np.ndarray
    form: decoding.Form
    seed: int
    name: str

    streamed = True

    @classmethod
    def of(
        cls, content: bytes, count: int, form: decoding.Form, seed: int, name: str
    ) -> 'PartsSource':
        """Of a file's content; `UserError` for one that cannot be read or is too small."""
        try:
            pixels = [decoding.pixels_of(content, form.channels)]
        except decoding.Bad as error:
            raise UserError(
                f'data.unlabelled {name} {error}; name a JPEG or PNG file of one large photo'
            ) from None
        height, width = pixels[0].shape[:2]
        if min(height, width) < form.side:
            raise UserError(
                f'data.unlabelled {name} has {width} x {height} pixels, of which no parts of '
                f'{form.side} x {form.side} can be cut; take a larger photo'
            )
        while min(pixels[-1].shape[:2]) >= 2 * _ENOUGH * form.side:
            pixels.append(decoding.halved(pixels[-1]))
        return cls(tuple(pixels), np.arange(count), form, seed, name)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def labels(self) -> np.ndarray:
        """`[N]` int32: none has one."""
        return np.full(len(self), -1, np.int32)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.form.shape

    def box(self, index: int) -> tuple[int, int, int, int]:
        """Where in the photo an image is: (left, top, width, height)."""
        height, width = self.pixels[0].shape[:2]
        return box_of(self.seed, int(self.numbers[index]), self.form.side, width, height)

    def images(
        self, index: np.ndarray, crops: Sequence[Box | None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`; all of them can be read. crops: of the parts."""
        images = np.empty((len(index), *self.image_shape), np.uint8)

        def cut(places: range) -> None:
            for place in places:
                left, top, wide, high = self.box(index[place])
                if crops is not None and (crop := crops[place]) is not None:
                    x, y, wide, high = crop(wide, high)
                    left, top = left + x, top + y
                images[place] = self.form.stretched(self._seen(left, top, wide, high))

        each_piece(cut, len(index))
        return images, np.zeros(len(index), bool)

    def _seen(self, left: int, top: int, wide: int, high: int) -> np.ndarray:
        """The pixels of a box, of the smallest copy that has enough of them."""
        level = 0
        while (
            level + 1 < len(self.pixels)
            and min(wide, high) >> (level + 1) >= _ENOUGH * self.form.side
        ):
            level += 1
        rows, columns = (
            slice(first >> level, max((first + size) >> level, (first >> level) + 1))
            for first, size in ((top, high), (left, wide))
        )
        return self.pixels[level][rows, columns]

    def why(self, index: int) -> str:
        """See `Source`."""
        return f'part {self.box(index)} of {self.name}'

    def take(self, rows: np.ndarray, label: np.ndarray | None = None) -> 'PartsSource':
        """Some of the parts, which have no labels."""
        del label
        return dataclasses.replace(self, numbers=self.numbers[rows])

    def add_to(self, digest: Any) -> None:
        """Adds what tells the images from others."""
        photo = hashlib.sha256(self.pixels[0].tobytes()).hexdigest()
        digest.update(f'parts {photo} {self.pixels[0].shape} {self.form} {self.seed}'.encode())
        digest.update(np.ascontiguousarray(self.numbers, np.int64))
