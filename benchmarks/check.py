"""Has anything become slower? A few minutes of races, whose ratios are compared
with those that were stored:

    python -m benchmarks.check            # against benchmarks/ratios.json; 1 if something is slower
    python -m benchmarks.check --store    # after a change that is meant to change them

The ratios are between contenders of one run (kd_jax against PyTorch where that is installed,
and against plain Flax), so that another machine of the same kind gives about the same;
absolute times are not stored.
"""

import json
import statistics
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks import race, step

STORED = Path(__file__).parent / 'ratios.json'
# Of the stored ratio; the medians of seven rounds vary by a tenth or two on a shared machine.
TOLERANCE = 0.75

# name -> (pair, contenders, steps in a turn); the first contender is what the ratio is of.
RACES = {
    'resnet20 <- resnet56': ('resnet56', 'resnet20', ('eager', 'kd_jax'), 4),
    'MobileNetV2 x0.5 alone': ('', 'cifar_mobilenet_v2_x0.5', ('eager', 'kd_jax'), 4),
    'resnet56 alone against plain Flax': ('', 'resnet56', ('plain_flax', 'kd_jax'), 2),
}


def measure(rounds: int) -> dict[str, float]:
    """The ratio of each race: how many times as fast kd_jax is as its first contender."""
    ratios = {}
    for name, (teacher, student, kinds, steps) in RACES.items():
        if 'eager' in kinds and find_spec('torch') is None:
            print(f'{name}: left out, PyTorch is not installed', file=sys.stderr)
            continue
        spec = {
            'teacher': teacher,
            'student': student,
            'batch': 64,
            'size': 32,
            'classes': 100,
            'precision': 'float32',
        }
        spec |= {'cache': 'off', 'steps': 0}
        laps = race.race(
            {kind: step.contender(spec, kind) for kind in kinds}, rounds=rounds, units=steps
        )
        ratios[name] = statistics.median(
            a / b for a, b in zip(*(laps[kind].seconds for kind in kinds), strict=True)
        )
    return ratios


def main() -> None:
    parser = race.parser('Compare the ratios of a few races with those stored.')
    parser.set_defaults(rounds=7)
    parser.add_argument(
        '--store', action='store_true', help=f'write the ratios to {STORED.name} instead'
    )
    arguments = parser.parse_args()
    ratios = measure(arguments.rounds)
    if arguments.store:
        STORED.write_text(
            json.dumps({'hardware': race.hardware(), 'ratios': ratios}, indent=1) + '\n'
        )
        print(json.dumps(ratios, indent=1))
        return
    stored = json.loads(STORED.read_text())
    slower = [name for name, value in ratios.items() if value < TOLERANCE * stored['ratios'][name]]
    rows = [('race', 'stored', 'now', '')]
    for name, value in ratios.items():
        rows.append(
            (
                name,
                f'{stored["ratios"][name]:.2f}',
                f'{value:.2f}',
                'slower' if name in slower else '',
            )
        )
    print(race.table(rows))
    print(f'stored on {stored["hardware"]}; now on')
    race.conclude({'ratios': ratios}, arguments.json)
    if slower:
        sys.exit(f'slower: {", ".join(slower)}')


if __name__ == '__main__':
    main()
