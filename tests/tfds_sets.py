"""A small data set with CIFAR-10's exact features, prepared by TFDS as
array_record without TensorFlow.

A builder class must live in an importable module: TFDS refuses one in `__main__`.
"""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

NAMES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')


CIFAR10_FEATURES = {
    'id': tfds.features.Text(),
    'image': tfds.features.Image(shape=(32, 32, 3)),
    'label': tfds.features.ClassLabel(names=NAMES),
}


class Custom(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The set 'custom' 1.0.0 of given features and `{split: examples}`."""

    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, features, splits, **kwargs):
        self.given = features, splits
        super().__init__(**kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self.given[0])
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {
            split: self._generate_examples(examples) for split, examples in self.given[1].items()
        }

    def _generate_examples(self, examples):
        yield from enumerate(examples)


class Cifar10(Custom, skip_registration=True):
    """The set 'cifar10' of the version that TFDS has."""

    VERSION = tfds.core.Version('3.0.2')


class Imagenet2012(Custom, skip_registration=True):
    """The set 'imagenet2012' of the version that TFDS has."""

    VERSION = tfds.core.Version('5.1.0')


def png(image: np.ndarray) -> io.BytesIO:
    """TFDS writes encoded images as they are; arrays it would encode with TensorFlow."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'PNG', compress_level=1)
    buffer.seek(0)
    return buffer


def images(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Learnable stand-ins: `(image uint8 [count, 32, 32, 3], label int64 [count])`, the
    labels balanced and shuffled.

    A class is a colour and the direction and width of stripes; phase and noise vary.
    """
    label = rng.permutation(np.arange(count) % 10)
    grid = np.arange(32)
    angle, width = np.pi * (label % 5) / 5, np.where(label < 5, 4.0, 8.0)
    along = (
        grid[None, :, None] * np.sin(angle)[:, None, None]
        + grid[None, None, :] * np.cos(angle)[:, None, None]
    )
    phase = rng.uniform(0, 2 * np.pi, count)[:, None, None]
    stripes = np.sin(2 * np.pi * along / width[:, None, None] + phase)
    colour = np.random.default_rng(10).uniform(-40, 40, (10, 3))[label]
    image = (
        128
        + colour[:, None, None, :]
        + 40 * stripes[..., None]
        + rng.normal(0, 30, (count, 32, 32, 3))
    )
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), label


def prepare(directory, features: dict, splits: dict[str, list[dict]], builder=Custom) -> str:
    """Writes `{split: examples}` as `directory/<set>/<version>` in
    array_record format; returns that path.
    """
    tfds.disable_progress_bar()
    try:
        made = builder(features, splits, data_dir=str(directory), file_format='array_record')
        made.download_and_prepare()
    finally:
        tfds.enable_progress_bar()
    return made.data_dir


def prepare_cifar10_like(directory, train: int = 1000, test: int = 200, seed: int = 0) -> dict:
    """Prepares `directory/cifar10/3.0.2`; returns the `{split: (image, label)}` that it
    holds (TFDS shuffles the order).
    """
    rng = np.random.default_rng(seed)
    splits = {'train': images(train, rng), 'test': images(test, rng)}
    examples = {
        split: [
            {'id': f'{split}_{k:05d}', 'image': png(image), 'label': int(label)}
            for k, (image, label) in enumerate(zip(*pair, strict=True))
        ]
        for split, pair in splits.items()
    }
    prepare(directory, CIFAR10_FEATURES, examples, Cifar10)
    return splits
