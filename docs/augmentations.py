"""Draws the picture of the augmentations of `guide/augmentation.md`:

    python docs/augmentations.py    # writes docs/images/augmentations.png

Three views of one photograph by each field of `augment`, all from one key.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402
from sklearn.datasets import load_sample_images  # noqa: E402

from kd_jax.data import mixing  # noqa: E402
from kd_jax.data.mixing import Mixing  # noqa: E402
from kd_jax.data.views import Views  # noqa: E402

SIDE, GAP, BETWEEN, TEXT, COLUMNS, VIEWS = 104, 12, 2, 24, 3, 3
SEED = 2
PARTS = {
    'crop=12, flip=True': {'crop': 12, 'flip': True},
    'random_resized_crop=0.08': {'random_resized_crop': 0.08},
    'rotate=30.': {'rotate': 30.0},
    'rand_augment=2': {'rand_augment': 2},
    'trivial_augment=True': {'trivial_augment': True},
    'color_jitter=(.4, .4, .4, .1)': {'color_jitter': (0.4, 0.4, 0.4, 0.1)},
    'cutout=40': {'cutout': 40},
    'random_erasing=1.': {'random_erasing': 1.0},
}
MIXTURES = {'mixup=1.': Mixing(mixup=1.0), 'cutmix=1.': Mixing(cutmix=1.0)}


def photograph(number: int) -> np.ndarray:
    """The middle of one of scikit-learn's two photographs, in `SIDE` pixels."""
    picture = Image.fromarray(load_sample_images().images[number])
    short = min(picture.size)
    left, top = ((length - short) // 2 for length in picture.size)
    part = picture.crop((left, top, left + short, top + short))
    return np.asarray(part.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def views() -> dict[str, np.ndarray]:
    """Field -> three views."""
    one, other = (np.stack([photograph(k)] * VIEWS) for k in (0, 1))
    key, numbers = jax.random.key(SEED), jnp.arange(VIEWS)
    fill = tuple(map(float, one.mean((0, 1, 2))))
    found = {'as it is': one}
    for name, parts in PARTS.items():
        found[name] = np.asarray(Views(**parts, fill=fill).augment(key, one, numbers, numbers))
    for name, how in MIXTURES.items():
        batches = [
            mixing.mixed(
                one[:1], other[:1], mixing.draw(jax.random.fold_in(key, k), how, SIDE, SIDE)
            )
            for k in range(VIEWS)
        ]
        found[name] = np.concatenate(batches)
    several = {'random_resized_crop': 0.3, 'flip': True, 'trivial_augment': True}
    together = Views(**several, random_erasing=0.3, fill=fill)
    found['repeats=3, with several of these'] = np.asarray(
        together.augment(key, one, jnp.zeros(VIEWS, jnp.int32), numbers)
    )
    return found


def main() -> None:
    found = views()
    wide, high = VIEWS * (SIDE + BETWEEN) + GAP, SIDE + TEXT + GAP
    rows = -(-len(found) // COLUMNS)
    sheet = Image.new('RGB', (COLUMNS * wide + GAP, rows * high + GAP), 'white')
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for place, (name, images) in enumerate(found.items()):
        top, left = GAP + place // COLUMNS * high, GAP + place % COLUMNS * wide
        pen.text((left, top), name, 'black', font)
        for k, pixels in enumerate(np.uint8(np.clip(images, 0, 255))):
            sheet.paste(Image.fromarray(pixels), (left + k * (SIDE + BETWEEN), top + TEXT))
    path = DOCS / 'images' / 'augmentations.png'
    sheet.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f'{path.relative_to(DOCS.parent)}: {path.stat().st_size // 1024} KB, {sheet.size}')


if __name__ == '__main__':
    main()
