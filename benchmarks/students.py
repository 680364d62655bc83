"""What a student costs when the teacher runs once: against a live run of one, and against
PyTorch runs one after the other:

    python -m benchmarks.students --pair=resnet56,resnet20 [--sweeps=4,8,12] [--json=FILE]

Contenders take turns (see `benchmarks.race`). `live` is one student with its teacher, `stored`
one student that reads kept soft targets, `4 live` four students of one sweep, `4 stored` the
same with kept targets; `extraction` is the teacher on a batch. The ceiling is what the
networks' multiplications would give if nothing else took time. At the end the time to an
answer: 4 temperatures x 3 seeds, 30 epochs of 50,000 images, extrapolated from these steps,
with what it takes to start.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import race, step

EPOCHS, IMAGES, VIEWS, RUNS = 30, 50_000, 8, 12


def build(spec: dict[str, Any]) -> tuple[Callable[[int], None], dict[str, Any]]:
    """`(work(steps), info)` of one of our contenders; one step is done."""
    from benchmarks import our_side

    if spec['kind'] == 'extraction':
        return build_extraction(spec)
    count, _, how = spec['kind'].rpartition(' ')
    changes = {'soft_targets': str(VIEWS)} if how == 'stored' else {}
    if count:
        changes['sweep'] = 'objective.kl.tau=' + ','.join(
            str(tau) for tau in range(1, int(count) + 1)
        )
    return our_side.build(spec | {'variant': 'kd_jax', 'run': changes}, *step.data(spec))


def build_extraction(spec: dict[str, Any]) -> tuple[Callable[[int], None], dict[str, Any]]:
    """The same of the teacher of the student's run, which sees a batch a step."""
    from benchmarks import our_side
    from kd_jax import build, evaluation, runtime
    from kd_jax.data.views import Views
    from kd_jax.step import make_predict_step

    begin = time.perf_counter()
    runtime.prepare()
    dataset, teachers, parallel = our_side.needs(spec | {'variant': 'kd_jax'}, *step.data(spec))
    run = build.run_spec('student', our_side.run_of(spec), dataset, teachers, parallel)
    networks = [teacher.network for teacher in run.step.teachers]
    predict = make_predict_step(networks, Views(crop=4, flip=True), parallel.axis_name)
    predict = parallel.compile(predict, spec['precision'], arguments=3)
    variables = parallel.replicate(tuple(teacher.variables for teacher in teachers.values()))
    arrays = evaluation.on_devices(parallel, dataset.train).arrays
    where = {
        'index': np.arange(spec['batch'], dtype=np.int32),
        'slot': np.zeros(spec['batch'], np.int32),
    }

    def extract(steps: int) -> None:
        for _ in range(steps):
            np.asarray(predict(variables, arrays, parallel.divide(where))[0])

    extract(1)
    return extract, {'first_s': time.perf_counter() - begin}


def contend(spec: dict[str, Any]) -> None:
    race.serve(lambda: build(spec))


def contender(spec: dict[str, Any], kind: str) -> Callable[[], race.Contender]:
    if kind in step.PEERS:
        return step.contender(spec, kind)
    return lambda: race.Contender('students', spec | {'kind': kind}, {'KD_JAX_CACHE': 'off'})


def tell(
    laps: Mapping[str, race.Lap], total: float, student_flops: float, peer: str
) -> dict[str, Any]:
    """Prints the table of the contenders; returns their figures."""
    rows = [
        ('', 'ms a step', 'ms a student', 'as cheap as live', 'quartiles', 'ceiling', 'share of it')
    ]
    figures = {}
    for kind, lap in laps.items():
        students = int(kind.split()[0]) if kind[0].isdigit() else 1
        ratios = [students * r for r in race.ratio(laps['live'], lap)]
        needed = student_flops + (
            0 if kind.endswith('stored') else (total - student_flops) / students
        )
        ceiling = total / needed if kind not in (peer, 'extraction') else None
        rows.append(
            (
                kind,
                f'{1e3 * lap.median:.1f}',
                f'{1e3 * lap.median / students:.1f}',
                f'{ratios[0]:.2f}',
                race.between(*ratios[1:]),
                f'{ceiling:.2f}' if ceiling else '',
                f'{100 * ratios[0] / ceiling:.0f} %' if ceiling else '',
            )
        )
        figures[kind] = {
            'seconds': lap.seconds,
            'ratio': ratios,
            'ceiling': ceiling,
            **lap.info,
        }
    print(race.table(rows))
    return figures


def main() -> None:
    parser = step.parser('Students of one teacher.')
    parser.add_argument('--sweeps', default='4,8,12', help='how many students at once')
    parser.add_argument('--populations', help=argparse.SUPPRESS)
    parser.add_argument('--peer', default='eager', help='the PyTorch loop; empty: none')
    arguments = parser.parse_args()
    if arguments.work:
        contend(arguments.work)
        return
    if arguments.populations is not None:
        sys.exit(f'--populations is called --sweeps now; write --sweeps={arguments.populations}')
    teacher, student = arguments.pair.split(',')
    spec = {'teacher': teacher, 'student': student, 'cache': 'off', 'steps': 0}
    spec |= {name: getattr(arguments, name) for name in step.TASK}
    counts = [int(text) for text in arguments.sweeps.split(',') if text]
    groups = [f'{count} {how}' for count in counts for how in ('live', 'stored')]
    kinds = [*filter(None, [arguments.peer]), 'extraction', 'live', 'stored', *groups]
    whole, alone = ({'teacher': name} for name in (teacher, ''))
    peak = [
        race.race({'peak': step.contender(spec | t, 'peak')}, rounds=1, units=1, warm_up=0)[
            'peak'
        ].info
        for t in (whole, alone)
    ]
    total, student_flops = (info['flops'] for info in peak)
    laps = race.race(
        {kind: contender(spec, kind) for kind in kinds},
        rounds=arguments.rounds,
        units=arguments.steps,
    )
    share = 100 * (1 - student_flops / total)
    print(
        f'{teacher} -> {student}, batch {arguments.batch}, {arguments.size} px, '
        f'{arguments.precision}; the teacher is {share:.0f} % of a step; '
        f'medians of {arguments.rounds} rounds'
    )
    figures = {'spec': spec, 'flops': total, 'student_flops': student_flops}
    figures['contenders'] = tell(laps, total, student_flops, arguments.peer)
    if arguments.peer and f'{RUNS} stored' in laps:
        figures['answer'] = answer(laps, arguments.peer, arguments.batch)
        print(race.table([('time to an answer', 'hours', 'times as fast'), *figures['answer']]))
    race.conclude(figures, arguments.json)


def answer(laps: dict[str, race.Lap], peer: str, batch: int) -> list[tuple[str, str, str]]:
    """Hours for RUNS runs of EPOCHS epochs, by way."""
    steps = EPOCHS * IMAGES / batch
    start = {kind: lap.info['start_s'] for kind, lap in laps.items()}
    extraction = VIEWS * IMAGES / batch * laps['extraction'].median + start['extraction']
    hours = {
        f'{RUNS} PyTorch runs ({peer})': RUNS * (steps * laps[peer].median + start[peer]),
        f'{RUNS} live runs': RUNS * steps * laps['live'].median + start['live'],
        f'a sweep of {RUNS}, live': steps * laps[f'{RUNS} live'].median + start[f'{RUNS} live'],
        f'{VIEWS} views extracted, then a sweep of {RUNS}': (
            extraction + steps * laps[f'{RUNS} stored'].median + start[f'{RUNS} stored']
        ),
    }
    base = next(iter(hours.values()))
    return [
        (name, f'{seconds / 3600:.1f}', f'{base / seconds:.2f}') for name, seconds in hours.items()
    ]


if __name__ == '__main__':
    main()
