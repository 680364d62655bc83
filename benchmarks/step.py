"""The training step against PyTorch loops:

    python -m benchmarks.step --pair=resnet56,resnet20 --batch=64 [--teacher=live|none]
        [--peers=eager,channels_last,compile]

Each contender trains on the same random images; steps take turns (see `benchmarks.race`). The ratio
is how many times as fast as the first peer. `share of peak` is the FLOPs of the networks (XLA's
count, plain layers) in a second against the largest matrix product's. Give both sides the same
allocator or neither: --allocator (the default) sets glibc's for the peers too.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import race

PEERS = ('eager', 'channels_last', 'compile', 'loader')
OURS = ('kd_jax', 'one_device', 'plain_flax')
# What `kd_jax.runtime` sets for itself, in glibc's own words; not imported, for the
# peers would load JAX with it.
ALLOCATOR = {
    'MALLOC_MMAP_MAX_': '0',
    'MALLOC_TRIM_THRESHOLD_': str(2**31 - 1),
    'MALLOC_TOP_PAD_': str(2**28),
    'MALLOC_ARENA_MAX': '1',
}


def data(spec: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Random images uint8 `[N, S, S, 3]` and labels."""
    rng = np.random.default_rng(0)
    count = max(2048 if spec['size'] <= 64 else 512, 2 * spec['batch'])
    images = rng.integers(0, 256, (count, spec['size'], spec['size'], 3), np.uint8)
    return images, rng.integers(0, spec['classes'], count).astype(np.int32)


def contend(spec: dict[str, Any]) -> None:
    """A contender's process."""

    def build():
        if spec['kind'] == 'peak':
            from benchmarks import our_side

            peak, count = our_side.matmul_peak(), our_side.flops(spec, spec['size'])
            return lambda units: None, {'peak': peak, 'flops': count}
        if spec['kind'] in PEERS:
            from benchmarks import torch_side

            return torch_side.build(spec | {'peer': spec['kind']}, *data(spec))
        from benchmarks import our_side

        return our_side.build(spec | {'variant': spec['kind']}, *data(spec))

    race.serve(build)


def contender(
    spec: dict[str, Any], kind: str, allocator: bool = True
) -> Callable[[], race.Contender]:
    def start():
        environment = (
            {'KD_JAX_CACHE': spec['cache']}
            if kind in ('kd_jax', 'one_device')
            else {'KD_JAX_CACHE': 'off'}
        )
        if kind in PEERS or kind == 'plain_flax':
            environment |= ALLOCATOR if allocator else {}
        return race.Contender('step', spec | {'kind': kind}, environment)

    return start


TASK = ('batch', 'size', 'classes', 'precision')


def parser(description: str) -> argparse.ArgumentParser:
    """What the benchmarks of a teacher and a student understand; the fields `TASK` are
    part of a contender's `spec`.
    """
    parser = race.parser(description)
    parser.add_argument('--pair', default='resnet56,resnet20', help='teacher,student')
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--size', type=int, default=32, help='of the images, in pixels')
    parser.add_argument('--classes', type=int, default=100)
    parser.add_argument('--precision', default='float32', choices=('float32', 'tf32', 'bfloat16'))
    parser.add_argument('--steps', type=int, default=4, help='in one turn')
    return parser


def tell(laps: Mapping[str, race.Lap], counted: Mapping[str, float], batch: int) -> dict[str, Any]:
    """Prints the table of the contenders; returns their figures."""
    rows = [
        (
            '',
            'ms a step',
            'images/s',
            'times as fast',
            'quartiles',
            'first step s',
            'peak MB',
            'share of peak',
        )
    ]
    first = laps[next(iter(laps))]
    figures = {}
    for name, lap in laps.items():
        middle, low, high = race.ratio(first, lap)
        share = counted['flops'] / lap.median / counted['peak']
        rows.append(
            (
                name,
                f'{1e3 * lap.median:.1f}',
                f'{batch / lap.median:,.0f}',
                f'{middle:.2f}',
                race.between(low, high),
                f'{lap.info["start_s"]:.1f}',
                f'{lap.peak_mb:,.0f}',
                f'{100 * share:.0f} %',
            )
        )
        figures[name] = {
            'seconds': lap.seconds,
            'ratio': [middle, low, high],
            'peak_mb': lap.peak_mb,
            'share_of_peak': share,
            **lap.info,
        }
    print(race.table(rows))
    return figures


def main() -> None:
    asked = parser('Training steps side by side.')
    asked.add_argument('--teacher', default='live', choices=('live', 'none'))
    asked.add_argument(
        '--peers',
        default='eager,channels_last',
        help=f'some of {", ".join(PEERS)}; the first is what ratios are of',
    )
    asked.add_argument('--ours', default='kd_jax', help=f'some of {", ".join(OURS)}')
    asked.add_argument(
        '--steps-per-dispatch', type=int, default=0, help="kd_jax's; 0: the usual number"
    )
    asked.add_argument('--allocator', default=True, action=argparse.BooleanOptionalAction)
    asked.add_argument(
        '--cache', default='off', help="kd_jax's compilation cache: 'off', or a directory"
    )
    arguments = asked.parse_args()
    if arguments.work:
        contend(arguments.work)
        return
    teacher, student = arguments.pair.split(',')
    spec = {
        'teacher': teacher if arguments.teacher == 'live' else '',
        'student': student,
        **{name: getattr(arguments, name) for name in (*TASK, 'cache')},
        'steps': arguments.steps_per_dispatch,
    }
    peers, ours = (
        tuple(filter(None, text.split(','))) for text in (arguments.peers, arguments.ours)
    )
    for name in (*peers, *ours):
        if name not in PEERS + OURS:
            sys.exit(f'unknown contender {name!r}; known: {", ".join(PEERS + OURS)}')
    counted = race.race({'peak': contender(spec, 'peak')}, rounds=1, units=1, warm_up=0)[
        'peak'
    ].info
    contenders = {name: contender(spec, name, arguments.allocator) for name in (*peers, *ours)}
    laps = race.race(contenders, rounds=arguments.rounds, units=arguments.steps)
    print(
        f'{"student alone" if not spec["teacher"] else teacher + " ->"} {student}, '
        f'batch {arguments.batch}, {arguments.size} px, {arguments.precision}; '
        f'{counted["flops"] / 1e9:.1f} GFLOP a step; '
        f'largest product {counted["peak"] / 1e9:.0f} GFLOP/s; medians of {arguments.rounds} rounds'
    )
    figures = {'spec': spec, **counted, 'contenders': tell(laps, counted, arguments.batch)}
    race.conclude(figures, arguments.json)


if __name__ == '__main__':
    main()
