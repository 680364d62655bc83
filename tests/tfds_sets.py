"""A small data set with CIFAR-10's exact features, prepared by TFDS as array_record without TensorFlow.

A builder class must live in an importable module: TFDS refuses one in `__main__`.
"""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

NAMES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """`tfds.image_classification.Cifar10` (3.0.2) over given arrays."""

    VERSION = tfds.core.Version('3.0.2')

    def __init__(self, splits, **kwargs):
        self.given = splits
        super().__init__(**kwargs)

    def _info(self):
        features = {
            'id': tfds.features.Text(),
            'image': tfds.features.Image(shape=(32, 32, 3)),
            'label': tfds.features.ClassLabel(names=NAMES),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=('image', 'label')
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {name: self._generate_examples(name, *pair) for name, pair in self.given.items()}

    def _generate_examples(self, split, image, label):
        for number in range(len(label)):
            yield number, {'id': f'{split}_{number:05d}', 'image': png(image[number]), 'label': int(label[number])}


def png(image: np.ndarray) -> io.BytesIO:
    """TFDS writes encoded images as they are; arrays it would encode with TensorFlow."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'PNG', compress_level=1)
    buffer.seek(0)
    return buffer


def images(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Learnable stand-ins: `(image uint8 [count, 32, 32, 3], label int64 [count])`, the labels balanced and shuffled.

    A class is a colour and the direction and width of stripes; phase and noise vary.
    """
    label = rng.permutation(np.arange(count) % 10)
    grid = np.arange(32)
    angle, width = np.pi * (label % 5) / 5, np.where(label < 5, 4.0, 8.0)
    along = grid[None, :, None] * np.sin(angle)[:, None, None] + grid[None, None, :] * np.cos(angle)[:, None, None]
    phase = rng.uniform(0, 2 * np.pi, count)[:, None, None]
    stripes = np.sin(2 * np.pi * along / width[:, None, None] + phase)
    colour = np.random.default_rng(10).uniform(-40, 40, (10, 3))[label]
    image = 128 + colour[:, None, None, :] + 40 * stripes[..., None] + rng.normal(0, 30, (count, 32, 32, 3))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), label


def prepare(directory, splits: dict[str, tuple[np.ndarray, np.ndarray]], builder=Cifar10):
    """Writes `{split: (image, label)}` as `directory/<set>/<version>` in array_record format; returns that path."""
    tfds.disable_progress_bar()
    try:
        made = builder(splits, data_dir=str(directory), file_format='array_record')
        made.download_and_prepare()
    finally:
        tfds.enable_progress_bar()
    return made.data_dir


def prepare_cifar10_like(directory, train: int = 1000, test: int = 200, seed: int = 0) -> dict:
    """Prepares `directory/cifar10/3.0.2`; returns the `{split: (image, label)}` that it holds (TFDS shuffles the order)."""
    rng = np.random.default_rng(seed)
    splits = {'train': images(train, rng), 'test': images(test, rng)}
    prepare(directory, splits)
    return splits
