"""Layers by themselves, forward and with their gradients, against PyTorch's:

    python -m benchmarks.ops [--batch=64] [--kinds=3x3,1x1,depthwise,grouped,BatchNorm] [--cores=1]

`kd_jax` is the form that kd_jax takes on a CPU, `lax` the one that XLA is usually given, with its
own gradients; PyTorch has its images in both memory formats. Contenders take turns at each layer.
Gradients are with respect to image and parameters. Everything runs on the CPU, by default on one
core, as kd_jax gives each core a device; with --cores=0 all cores share one.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import race
from benchmarks.step import ALLOCATOR

PEERS = ('channels_last', 'NCHW')  # the first is what ratios are of
OURS = ('kd_jax', 'lax')
PASSES = ('forward', 'with gradients')
EPSILON = 1e-5
SLOW = 1.0  # seconds: a call that takes longer is measured once, not in every round


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution (`kernel` > 0) or BatchNorm with ReLU, of images of `size` pixels."""

    kind: str
    inputs: int
    outputs: int
    size: int
    kernel: int = 0
    stride: int = 1
    groups: int = 1

    @property
    def name(self) -> str:
        if not self.kernel:
            return f'BatchNorm, ReLU {self.inputs} @{self.size}'
        kernel = f'{self.kernel}x{self.kernel}' + (f' /{self.stride}' if self.stride > 1 else '')
        if self.kind == 'depthwise':
            return f'depthwise {kernel}, {self.inputs} @{self.size}'
        groups = f' in {self.groups} groups' if self.groups > 1 else ''
        return f'{kernel}, {self.inputs} -> {self.outputs}{groups} @{self.size}'

    def arrays(self, batch: int) -> list[np.ndarray]:
        """Image `[B, H, W, C]`, weights of its outputs in the sum whose gradient
        is taken, parameters; random.
        """
        rng = np.random.default_rng(0)
        shapes = [(batch, self.size, self.size, self.inputs)]
        shapes.append((batch, self.size // self.stride, self.size // self.stride, self.outputs))
        if self.kernel:
            shapes.append((self.kernel, self.kernel, self.inputs // self.groups, self.outputs))
        else:
            shapes += [(self.inputs,)] * 2
        return [rng.standard_normal(shape, np.float32) for shape in shapes]


LAYERS = (
    Layer('3x3', 16, 16, 32, 3),
    Layer('3x3', 32, 32, 16, 3),
    Layer('3x3', 64, 64, 8, 3),
    Layer('3x3', 64, 64, 32, 3),
    Layer('3x3', 16, 32, 32, 3, stride=2),
    Layer('3x3', 3, 16, 32, 3),
    Layer('1x1', 64, 256, 32, 1),
    Layer('1x1', 16, 96, 16, 1),
    Layer('depthwise', 96, 96, 16, 3, groups=96),
    Layer('depthwise', 96, 96, 16, 3, stride=2, groups=96),
    Layer('depthwise', 192, 192, 8, 5, groups=192),
    Layer('grouped', 128, 128, 16, 3, groups=32),
    Layer('BatchNorm', 16, 16, 32),
    Layer('BatchNorm', 256, 256, 32),
)
KINDS = tuple(dict.fromkeys(layer.kind for layer in LAYERS))


def use_cores(cores: int) -> int:
    """Keeps this process to so many cores, 0: all; before a library counts
    them. How many there are then.
    """
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[-cores:])
    return len(os.sched_getaffinity(0))


def build_jax(layer: Layer, gradients: bool, fast: bool, batch: int) -> Callable[[], None]:
    """One call of the layer, compiled with the options of kd_jax's train step."""
    import jax

    from kd_jax import parallel
    from kd_jax.models import convolution, normalization

    def forward(x, *parameters):
        if not layer.kernel:
            normalize = normalization.fast if fast else normalization.plain
            y, mean, var = normalize(x, *parameters, EPSILON, None)
            return jax.nn.relu(y), mean, var
        convolve = convolution.fast if fast else convolution.plain
        pad = layer.kernel // 2
        return (convolve(x, *parameters, (layer.stride,) * 2, (pad, pad), layer.groups),)

    def both(x, weights, *parameters):
        # With the value: the gradients alone would not need the outputs of a convolution.
        def total(*arguments):
            return (forward(*arguments)[0] * weights).sum()

        return jax.value_and_grad(total, argnums=tuple(range(1 + len(parameters))))(x, *parameters)

    x, weights, *parameters = map(jax.device_put, layer.arrays(batch))
    arguments = (x, weights, *parameters) if gradients else (x, *parameters)
    options = parallel.KEEP_BARRIERS if fast else None
    compiled = jax.jit(both if gradients else forward, compiler_options=options)
    return lambda: jax.block_until_ready(compiled(*arguments))


def build_torch(
    layer: Layer, gradients: bool, channels_last: bool, batch: int
) -> Callable[[], None]:
    import torch
    import torch.nn.functional as F

    def convert(array):
        if array.ndim == 1:
            return torch.from_numpy(array)
        to = torch.from_numpy(array).permute((3, 2, 0, 1) if array is kernel else (0, 3, 1, 2))
        return to.contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )

    arrays = layer.arrays(batch)
    kernel = arrays[2]
    x, weights, *parameters = map(convert, arrays)

    def forward():
        if not layer.kernel:
            return F.relu(
                F.batch_norm(x, None, None, *parameters, training=True, eps=EPSILON), inplace=True
            )
        return F.conv2d(
            x, *parameters, stride=layer.stride, padding=layer.kernel // 2, groups=layer.groups
        )

    if not gradients:
        return torch.no_grad()(forward)
    wanted = [tensor.requires_grad_() for tensor in (x, *parameters)]
    return lambda: torch.autograd.grad((forward() * weights).sum(), wanted)


def contend(spec: dict[str, Any]) -> None:
    """A contender's process. A unit of work is one call; the items are the
    numbers of a layer and of a pass.
    """

    def build():
        cores = use_cores(spec['cores'])
        if spec['kind'] in PEERS:
            import torch

            torch.set_num_threads(cores)
            make, choice = build_torch, spec['kind'] == 'channels_last'
        else:
            from kd_jax import runtime

            runtime.prepare(single_process=False)  # one device, whatever the cores
            make, choice = build_jax, spec['kind'] == 'kd_jax'

        @functools.cache
        def prepared(layer: int, number: int) -> Callable[[], None]:
            return make(LAYERS[layer], number == 1, choice, spec['batch'])

        def work(units: int, layer: int, number: int) -> None:
            call = prepared(layer, number)
            for _ in range(units):
                call()

        return work, {'cores': cores}

    race.serve(build)


def measure(
    spec: dict[str, Any], layers: list[int], rounds: int, turn: float
) -> dict[tuple[int, int], dict[str, race.Lap]]:
    """Laps by (layer, pass) and contender; a turn takes about `turn` seconds."""
    environment = {'KD_JAX_CACHE': 'off', 'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}
    running, info = {}, {}
    for name in OURS + PEERS:
        running[name] = race.Contender(
            'ops', spec | {'kind': name}, environment | (ALLOCATOR if name in PEERS else {})
        )
        info[name] = running[name].ready()
    races = {}
    for item in [(layer, number) for layer in layers for number in range(len(PASSES))]:
        print(f'{LAYERS[item[0]].name}, {PASSES[item[1]]}', file=sys.stderr, flush=True)
        laps = races[item] = {name: race.Lap(info[name], [], 0.0) for name in running}
        units = {}
        for name, contender in running.items():
            contender.run(1, *item)  # compiles
            once = contender.run(1, *item)
            if once > SLOW:
                laps[name].seconds.append(once)
            else:
                units[name] = max(1, min(1000, round(turn / once)))
        for _ in range(rounds):
            for name in units:
                laps[name].seconds.append(running[name].run(units[name], *item) / units[name])
    for contender in running.values():
        contender.stop()
    return races


def ratio(laps: dict[str, race.Lap], name: str) -> tuple[float, float, float]:
    """As `race.ratio`, of the medians where a contender was measured only once."""
    base, lap = laps[PEERS[0]], laps[name]
    if len(base.seconds) == len(lap.seconds):
        return race.ratio(base, lap)
    return (base.median / lap.median,) * 3


def tell(races: Mapping[tuple[int, int], dict[str, race.Lap]]) -> list[dict[str, Any]]:
    """Prints the table of the layers; returns their figures."""
    rows = [
        (
            'layer',
            'pass',
            *(f'{name} ms' for name in OURS + PEERS),
            'kd_jax',
            'quartiles',
            'lax',
            'NCHW',
        )
    ]
    figures = []
    for (layer, number), laps in races.items():
        ratios = {name: ratio(laps, name) for name in laps}
        middle, low, high = ratios['kd_jax']
        rows.append(
            (
                LAYERS[layer].name,
                PASSES[number],
                *(f'{1e3 * laps[name].median:.2f}' for name in OURS + PEERS),
                f'{middle:.2f}',
                race.between(low, high),
                f'{ratios["lax"][0]:.2f}',
                f'{ratios["NCHW"][0]:.2f}',
            )
        )
        contenders = {
            name: {'seconds': lap.seconds, 'ratio': ratios[name]} for name, lap in laps.items()
        }
        figures.append(
            {'layer': LAYERS[layer].name, 'pass': PASSES[number], 'contenders': contenders}
        )
    print(race.table(rows))
    return figures


def main() -> None:
    parser = race.parser('Layers side by side.')
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--kinds', default=','.join(KINDS), help='of layers')
    parser.add_argument('--cores', type=int, default=1, help='that each contender may use; 0: all')
    parser.add_argument(
        '--turn',
        type=float,
        default=0.05,
        help='seconds that a contender works at a layer in its turn',
    )
    arguments = parser.parse_args()
    if arguments.work:
        contend(arguments.work)
        return
    kinds = arguments.kinds.split(',')
    for kind in kinds:
        if kind not in KINDS:
            sys.exit(f'unknown kind of layer {kind!r}; known: {", ".join(KINDS)}')
    spec = {'batch': arguments.batch, 'cores': arguments.cores}
    layers = [number for number, layer in enumerate(LAYERS) if layer.kind in kinds]
    races = measure(spec, layers, arguments.rounds, arguments.turn)

    cores = next(iter(races[layers[0], 0].values())).info['cores']
    print(
        f'batch {arguments.batch}, float32, {cores} core{"s" if cores > 1 else ""} '
        f'each; medians of {arguments.rounds} rounds; the last four columns: how '
        f'many times as fast as {PEERS[0]}'
    )
    figures = {'spec': spec, 'base': PEERS[0], 'layers': tell(races)}
    race.conclude(figures, arguments.json)


if __name__ == '__main__':
    main()
