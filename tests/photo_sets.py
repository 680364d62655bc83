"""Photos of 500 x 375 pixels in the forms of ImageNet: folders, and records as TFDS prepares them.

python tests/photo_sets.py DIR --classes=1000 --train=2 --test=1
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image


def photo(label, number, classes):
    """A JPEG of a class, which is its colour and its pattern; phase, size and noise vary."""
    rng = np.random.default_rng([label, number])
    y, x = np.mgrid[:75, :100] / 100
    angle, turns = np.pi * label / classes, 3 + label % 7
    along = x * np.sin(angle) + y * np.cos(angle)
    wave = np.sin(2 * np.pi * (turns * along + rng.random()))
    colour = np.random.default_rng(label).uniform(60, 200, 3)
    pixels = colour + 50 * wave[..., None] + rng.normal(0, 12, (75, 100, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    image.resize((500, 375), Image.Resampling.BICUBIC).save(file, 'JPEG', quality=90)
    return file.getvalue()


def examples(classes, count, first=0):
    """(label, number, JPEG), shuffled."""
    rng = np.random.default_rng(first)
    for which in rng.permutation(classes * count).tolist():
        label, number = divmod(which, count)
        yield label, first + number, photo(label, first + number, classes)


def folders(root, classes, train, test):
    """`root/{train,val}/n0000/*.JPEG`."""
    for split, count, first in (('train', train, 0), ('val', test, train)):
        for label, number, content in examples(classes, count, first):
            place = Path(root) / split / f'n{label:04d}'
            place.mkdir(parents=True, exist_ok=True)
            (place / f'n{label:04d}_{number}.JPEG').write_bytes(content)


def records(root, classes, train, test):
    """The set 'imagenet2012' with ImageNet's features, under the data_dir `root`."""
    import tensorflow_datasets as tfds
    import tfds_sets

    features = {
        'file_name': tfds.features.Text(),
        'image': tfds.features.Image(shape=(None, None, 3), encoding_format='jpeg'),
        'label': tfds.features.ClassLabel(names=[f'n{label:04d}' for label in range(classes)]),
    }

    def split(count, first):
        return [
            {'file_name': f'{label}_{number}', 'image': io.BytesIO(content), 'label': label}
            for label, number, content in examples(classes, count, first)
        ]

    splits = {'train': split(train, 0), 'validation': split(test, train)}
    tfds_sets.prepare(Path(root), features, splits, tfds_sets.Imagenet2012)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('root', type=Path)
    for name, usual in (('classes', 1000), ('train', 2), ('test', 1)):
        parser.add_argument(f'--{name}', type=int, default=usual)
    given = parser.parse_args()
    sizes = given.classes, given.train, given.test
    folders(given.root / 'folders', *sizes)
    records(given.root / 'records', *sizes)
