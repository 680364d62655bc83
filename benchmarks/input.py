"""Where the images of a training step come from, and how much of the step that is:

    python -m benchmarks.input [--images=10000] [--size=32] [--batch=64] [--student=resnet8]

First the pipelines alone: crop with 4 pixels of padding, flip, normalise, float32 batches of which
only the sum is used. `loader` is a PyTorch DataLoader that augments image by image, `numpy` whole
batches on the host, `kd_jax` the part of its train step that does this on the device. Then
training steps of a small student without a teacher, with their pipelines; PyTorch's `eager` has
its batches from memory for free.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import race, step

# With the number of the DataLoader's workers.
PIPELINES = {'loader': 0, 'loader, 2 workers': 2, 'numpy': None, 'kd_jax': None}
STEPS = ('loader', 'eager', 'kd_jax')
CROP, MEAN, STD = 4, 0.5, 0.25


def torch_loader(
    images: np.ndarray, labels: np.ndarray, batch: int, workers: int
) -> Callable[[], float]:
    """One pass over the images; what it returns is the sum of all batches."""
    import torch

    from benchmarks import torch_side

    # A new pass throws away what the workers fetched ahead, so that
    # nothing is made between two turns.
    loader = torch.utils.data.DataLoader(
        torch_side.Images(images, labels), batch, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    return lambda: sum(x.sum().item() for x, _ in loader)


def host(images: np.ndarray, batch: int) -> Callable[[], float]:
    rng = np.random.default_rng(0)
    size = images.shape[1]
    padded = np.pad(images, ((0, 0), (CROP, CROP), (CROP, CROP), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    windows = np.moveaxis(windows, 3, -1)  # [N, 2 * CROP + 1, 2 * CROP + 1, H, W, C]

    def work() -> float:
        total, order = 0.0, rng.permutation(len(images))
        for start in range(0, len(images) - batch + 1, batch):
            y, x = rng.integers(0, 2 * CROP + 1, (2, batch))
            pixels = windows[order[start : start + batch], y, x]
            flip = rng.random(batch) < 0.5
            pixels[flip] = pixels[flip, :, ::-1]
            pixels = pixels.astype(np.float32)
            pixels *= np.float32(1 / (255 * STD))
            pixels -= np.float32(MEAN / STD)
            total += float(pixels.sum())
        return total

    return work


def device(images: np.ndarray, labels: np.ndarray, batch: int) -> Callable[[], float]:
    """As in `kd_jax.step`: the images stay on the device, and the program of several
    steps makes a view of each batch.
    """
    import jax

    from kd_jax import evaluation, runtime, timing
    from kd_jax.data import ArraySource, batches
    from kd_jax.data.columns import read
    from kd_jax.data.views import Views
    from kd_jax.dispatch import scan_steps
    from kd_jax.networks import Network
    from kd_jax.parallel import Parallel

    runtime.prepare()
    parallel = Parallel().for_batch(batch)
    network = Network(None, (MEAN,) * 3, (STD,) * 3, images.shape[1:])
    views = Views(crop=CROP, flip=True)

    def one(state, seed, arrays, batch):
        batch = read(arrays, batch)
        pixels = views.augment(jax.random.key(seed), batch['image'], batch['index'], batch['view'])
        # Else the sum would be fused with the normalisation, and there would never be a batch.
        total = jax.lax.optimization_barrier(network.normalize(pixels)).sum()
        return state, {
            'sum': jax.lax.psum(total, parallel.axis_name) if parallel.axis_name else total
        }

    steps = timing.CPU_STEPS if parallel.on_cpu else timing.STEPS
    run = parallel.compile(scan_steps(one), 'float32', arguments=5, axis=1)
    arrays = evaluation.on_devices(parallel, ArraySource(images, labels)).arrays
    order = batches.TrainOrder(np.arange(len(images)), len(images), batch, 0)
    done = 0

    def work() -> float:
        nonlocal done
        total, goal = 0.0, done + len(images) // batch
        while done < goal:
            count = min(steps, goal - done)
            stack = parallel.divide(order.stacked(done, count, steps), axis=1)
            sums = run(np.int32(0), np.int32(0), arrays, np.int32(count), stack)[1]['sum']
            total += float(np.asarray(sums)[:count].sum())
            done += count
        return total

    return work


def contend(spec: dict[str, Any]) -> None:
    """A contender's process. A unit of work is a pass over the images."""

    def build():
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (spec['images'], spec['size'], spec['size'], 3), np.uint8)
        labels = rng.integers(0, 100, len(images)).astype(np.int32)
        if spec['kind'] == 'kd_jax':
            run = device(images, labels, spec['batch'])
        elif spec['kind'] == 'numpy':
            run = host(images, spec['batch'])
        else:
            run = torch_loader(images, labels, spec['batch'], PIPELINES[spec['kind']])

        def work(units: int) -> None:
            for _ in range(units):
                run()

        # The mean of the normalised images is the same for all, but for what
        # their random places cut off.
        return work, {
            'mean': run() / (len(images) // spec['batch'] * spec['batch'] * images[0].size)
        }

    race.serve(build)


def contender(spec: dict[str, Any], kind: str) -> Callable[[], race.Contender]:
    environment = {'KD_JAX_CACHE': 'off'} | ({} if kind == 'kd_jax' else step.ALLOCATOR)
    return lambda: race.Contender('input', spec | {'kind': kind}, environment)


def tell_pipelines(laps: Mapping[str, race.Lap], batch: int, passes: int) -> dict[str, Any]:
    """Prints the table of the pipelines alone; returns their figures."""
    figures = {}
    rows = [('pipeline', 'ms a batch', 'images/s', 'times as fast', 'quartiles')]
    for name, lap in laps.items():
        middle, low, high = race.ratio(laps['loader'], lap)
        seconds = lap.median / passes
        rows.append(
            (
                name,
                f'{1e3 * seconds:.2f}',
                f'{batch / seconds:,.0f}',
                f'{middle:.2f}',
                race.between(low, high),
            )
        )
        figures[name] = {
            'seconds_a_batch': [s / passes for s in lap.seconds],
            'ratio': [middle, low, high],
            **lap.info,
        }
    print(race.table(rows))
    return figures


def tell_steps(
    laps: Mapping[str, race.Lap], pipelines: Mapping[str, race.Lap], batch: int, passes: int
) -> dict[str, Any]:
    """Prints the table of the training steps; returns their figures."""
    figures = {}
    rows = [
        (
            'training step',
            'ms',
            'images/s',
            'times as fast',
            'quartiles',
            'its pipeline alone ms',
            'share of the step',
        )
    ]
    for name, lap in laps.items():
        middle, low, high = race.ratio(laps['loader'], lap)
        # The batches of `eager` are there already.
        pipeline = pipelines[name].median / passes if name in pipelines else 0.0
        rows.append(
            (
                name,
                f'{1e3 * lap.median:.2f}',
                f'{batch / lap.median:,.0f}',
                f'{middle:.2f}',
                race.between(low, high),
                f'{1e3 * pipeline:.2f}' if pipeline else '–',
                f'{100 * pipeline / lap.median:.0f} %' if pipeline else '–',
            )
        )
        figures[name] = {
            'seconds': lap.seconds,
            'ratio': [middle, low, high],
            'pipeline_share': pipeline / lap.median,
            **lap.info,
        }
    print(race.table(rows))
    return figures


def main() -> None:
    parser = race.parser('Data pipelines side by side, alone and in a training step.')
    parser.add_argument('--images', type=int, default=10000)
    parser.add_argument('--size', type=int, default=32, help='of the images, in pixels')
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--student', default='resnet8', help='of the training step')
    parser.add_argument('--steps', type=int, default=8, help='training steps in one turn')
    arguments = parser.parse_args()
    if arguments.work:
        contend(arguments.work)
        return
    if not 0 < arguments.batch <= arguments.images:
        parser.error(
            f'--images={arguments.images} must hold at least one batch of {arguments.batch}'
        )
    spec = {name: getattr(arguments, name) for name in ('images', 'size', 'batch')}
    alone = race.race(
        {kind: contender(spec, kind) for kind in PIPELINES}, rounds=arguments.rounds, units=1
    )
    whole = {
        'teacher': '',
        'student': arguments.student,
        'batch': arguments.batch,
        'size': arguments.size,
    }
    whole |= {'classes': 100, 'precision': 'float32', 'cache': 'off', 'steps': 0}
    training = race.race(
        {kind: step.contender(whole, kind) for kind in STEPS},
        rounds=arguments.rounds,
        units=arguments.steps,
    )
    passes = arguments.images // arguments.batch
    print(
        f'{arguments.images} images of {arguments.size} px, batch {arguments.batch}; '
        f'medians of {arguments.rounds} rounds'
    )
    figures = {'spec': spec, 'student': arguments.student}
    figures['pipelines'] = tell_pipelines(alone, arguments.batch, passes)
    print(f'\n{arguments.student} alone, batch {arguments.batch}, {arguments.size} px, float32')
    figures['steps'] = tell_steps(training, alone, arguments.batch, passes)
    race.conclude(figures, arguments.json)


if __name__ == '__main__':
    main()
