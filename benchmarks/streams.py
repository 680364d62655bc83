"""How fast files of images become batches: our stream beside tf.data and PyTorch's DataLoader, on
the same files, with nothing behind it.

    pip install -r requirements-benchmarks.txt -r requirements-tf.txt
    python -m benchmarks.streams --kind=photos
    python -m benchmarks.streams --kind=small --files=/path/to/fashion

photos: JPEGs of 500 x 375 pixels, a random part of each (8 to 100 % of its area) resized to 224 x
224. small: files of 28 x 28 grey pixels as they are. All give shuffled uint8 batches. The files are
in the page cache: this measures decoding.
"""

import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import race

SIDE, PHOTO = 224, (500, 375)
QUALITY = 90


def photos(folder: Path, count: int) -> None:
    """`count` JPEGs of 500 x 375 pixels, cut out of scikit-learn's two photos."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    sources = [Image.fromarray(image) for image in load_sample_images().images]
    for k in range(count):
        photo, wide = sources[k % 2], int(rng.integers(250, 480))
        high = wide * 3 // 4
        left = int(rng.integers(0, photo.width - wide))
        top = int(rng.integers(0, photo.height - high))
        part = photo.crop((left, top, left + wide, top + high)).resize(PHOTO)
        place = folder / f'class {k % 10}'
        place.mkdir(parents=True, exist_ok=True)
        part.save(place / f'{k:05d}.jpg', quality=QUALITY)


def ours(spec: dict[str, Any], paths: list[str], workers: int) -> Callable[[], Any]:
    """Batches of `kd_jax.feed`."""
    from kd_jax import runtime
    from kd_jax.data.batches import Share, TrainOrder
    from kd_jax.data.crops import Crop
    from kd_jax.data.decoding import Form
    from kd_jax.data.photos import Files, StreamSource
    from kd_jax.feed import Feed, Reading

    runtime.prepare()  # as every command
    part = spec['work'] == 'photos'
    form = Form(SIDE, 3, bilinear=True) if part else Form(28, 1)
    label = np.zeros(len(paths), np.int32)
    files = Files('', tuple(paths), np.ones(len(paths)))
    source = StreamSource(files, label, np.arange(len(paths)), form)
    order = TrainOrder(np.arange(len(paths)), len(paths), spec['batch'], 0)
    crop = Crop(0.08, 0) if part else None
    feed = Feed(Reading(source, Share(order, 0, spec['batch']), 0, 10**6, crop), workers=workers)
    return lambda: feed.get()[0]['image']


def tf_data(spec: dict[str, Any], paths: list[str], workers: int) -> Callable[[], Any]:
    """As in TensorFlow's own ImageNet pipelines: the part is decoded alone, and resized."""
    import tensorflow as tf

    from kd_jax.data.crops import Crop

    # its own sampler takes smaller parts: these are of the distribution of the others
    drawn = [Crop(0.08, 0).draw(k, 0)(*PHOTO) for k in range(len(paths))]
    boxes = [(top, left, high, wide) for left, top, wide, high in drawn]

    def part(path: Any, box: Any) -> Any:
        content = tf.io.read_file(path)
        if spec['work'] == 'small':
            return tf.io.decode_image(content, channels=1, expand_animations=False)
        image = tf.image.decode_and_crop_jpeg(content, box, 3)
        return tf.cast(tf.image.resize(image, (SIDE, SIDE)), tf.uint8)

    data = tf.data.Dataset.from_tensor_slices((paths, boxes)).shuffle(len(paths), seed=0).repeat()
    data = data.map(part, tf.data.AUTOTUNE).batch(spec['batch']).prefetch(tf.data.AUTOTUNE)
    batches = data.as_numpy_iterator()
    return lambda: next(batches)


class Pictures:
    """A data set for PyTorch, by torchvision's transforms on Pillow's images."""

    def __init__(self, paths: list[str], small: bool):
        self.paths, self.small = paths, small

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Any:
        from PIL import Image
        from torchvision.transforms import v2

        with Image.open(self.paths[number]) as image:
            if self.small:
                return v2.functional.pil_to_tensor(image.convert('L'))
            image = image.convert('RGB')
        return v2.functional.pil_to_tensor(v2.RandomResizedCrop(SIDE)(image))


def loader(spec: dict[str, Any], paths: list[str], workers: int) -> Callable[[], Any]:
    """PyTorch's DataLoader."""
    import torch

    torch.set_num_threads(1)
    data = torch.utils.data.DataLoader(
        Pictures(paths, spec['work'] == 'small'),
        spec['batch'],
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )
    batches = itertools.chain.from_iterable(itertools.repeat(data))
    return lambda: next(batches).numpy()


KINDS = {'kd_jax': ours, 'tf.data': tf_data, 'DataLoader': loader}


def contend(spec: dict[str, Any]) -> None:
    """A contender's process. A unit of work is a batch."""

    def build() -> Any:
        paths = sorted(map(str, Path(spec['files']).rglob('*.*')))
        get = KINDS[spec['kind']](spec, paths, spec['workers'])
        first = np.asarray(get())
        assert first.dtype == np.uint8 and len(first) == spec['batch']

        def work(units: int) -> None:
            for _ in range(units):
                get()

        return work, {'mean': float(first.mean()), 'shape': list(first.shape)}

    race.serve(build)


def taken_in_turns(
    contenders: dict[str, Callable[[], race.Contender]], rounds: int, units: int
) -> dict[str, race.Lap]:
    """One process at a time, a new one each turn: between turns others would read ahead."""
    laps: dict[str, race.Lap] = {}
    for number in range(rounds):
        for name, start in contenders.items():
            contender = start()
            info = contender.ready()
            contender.run(max(units // 4, 1))
            lap = laps.setdefault(name, race.Lap(info, [], 0.0))
            lap.seconds.append(contender.run(units) / units)
            lap.peak_mb = contender.stop()
            print(f'{number + 1}. {name}: {lap.seconds[-1]:.3f} s', file=sys.stderr, flush=True)
    return laps


def main() -> None:
    parser = race.parser(__doc__)
    parser.add_argument('--kind', default='photos', choices=('photos', 'small'), help='of files')
    parser.add_argument('--files', default='', help="the folder; '': photos are made")
    parser.add_argument('--count', type=int, default=4000, help='of photos that are made')
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--units', type=int, default=24, help='batches a turn')
    parser.add_argument('--workers', default='0,2', help='numbers of processes')
    args = parser.parse_args()
    if args.work:
        contend(args.work)
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(args.files or made)
        if not args.files:
            photos(folder, args.count)
        spec = {'work': args.kind, 'files': str(folder), 'batch': args.batch}
        contenders = {}
        for kind in KINDS:
            for workers in (0,) if kind == 'tf.data' else map(int, args.workers.split(',')):
                name = f'{kind}, {workers} processes' if workers else kind
                contenders[name] = lambda kind=kind, workers=workers: race.Contender(
                    'streams',
                    spec | {'kind': kind, 'workers': workers},
                    {'CUDA_VISIBLE_DEVICES': ''},
                )
        laps = taken_in_turns(contenders, args.rounds, args.units)
    rows = [('stream', 'images/s', 'of tf.data', 'quartiles', 'mean of a batch', 'start, s')]
    for name, lap in laps.items():
        middle, low, high = race.ratio(laps['tf.data'], lap)
        rows.append(
            (
                name,
                f'{args.batch / lap.median:,.0f}',
                f'{middle:.2f}',
                race.between(low, high),
                f'{lap.info["mean"]:.0f}',
                f'{lap.info["start_s"]:.1f}',
            )
        )
    print(race.table(rows))
    race.conclude({name: lap.seconds for name, lap in laps.items()}, args.json)


if __name__ == '__main__':
    main()
