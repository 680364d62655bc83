"""Which part of a photo a view is, where it is cut out on the host."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

TRIES, WIDEST = 10, math.log(4 / 3)  # of a random box
# (width, height) of a photo -> (left, top, width, height) of a part
Box = Callable[[int, int], tuple[int, int, int, int]]


class Crop(NamedTuple):
    """Which part of a photo a view is (Szegedy et al. 2015): a function of (seed, index, view).

    smallest: share of the area. repeated: so many views come again and again; 0: none does.
    """

    smallest: float
    seed: int
    repeated: int = 0

    def draw(self, index: int, view: int) -> Box:
        """What cuts the part out of a photo of any size."""
        number = view % self.repeated if self.repeated else view
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, number, index]))
        return functools.partial(random_box, rng.random((TRIES, 4)), self.smallest)


def random_box(
    numbers: np.ndarray, smallest: float, width: int, height: int
) -> tuple[int, int, int, int]:
    """A part of a photo, (left, top, width, height): `smallest` to all of its area, of a ratio of
    3/4 to 4/3; the middle where none of the tries fits.

    numbers: `[TRIES, 4]`, uniform in 0..1. That is torchvision's RandomResizedCrop (Szegedy et al.
    2015, arXiv:1409.4842).
    """
    for share, ratio, across, down in numbers.tolist():
        area = width * height * (smallest + (1 - smallest) * share)
        aspect = math.exp((2 * ratio - 1) * WIDEST)
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            return int(across * (width - wide + 1)), int(down * (height - high + 1)), wide, high
    least, most = math.exp(-WIDEST), math.exp(WIDEST)
    wide = min(width, max(round(height * most), 1))
    high = min(height, max(round(width / least), 1))
    return (width - wide) // 2, (height - high) // 2, wide, high
