"""What a student costs when the teacher runs once: against a live run of one, and against PyTorch runs one after the other:

    python -m benchmarks.students --pair=resnet56,resnet20 [--populations=4,8,12] [--json=FILE]

Contenders take turns (see `benchmarks.race`). `live` is one student with its teacher, `stored` one student that reads kept soft
targets, `4 live` four students of one population, `4 stored` the same with kept targets; `extraction` is the teacher on a
batch. The ceiling is what the networks' multiplications would give if nothing else took time. At the end the time to an
answer: 4 temperatures x 3 seeds, 30 epochs of 50,000 images, extrapolated from these steps, with what it takes to start.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import race, step

EPOCHS, IMAGES, VIEWS, RUNS = 30, 50_000, 8, 12


def build(spec: dict[str, Any]) -> tuple[Callable[[int], None], dict[str, Any]]:
    """`(work(steps), facts)` of one of our contenders; one step is done."""
    import jax

    from benchmarks import our_side
    from kd_jax import population, program, runtime, soft_targets, train
    from kd_jax.data import batches
    from kd_jax.data.views import Views

    begin = time.perf_counter()
    runtime.prepare()
    number, _, how = spec['kind'].rpartition(' ')
    stored = how == 'stored'
    changes = {'soft_targets': str(VIEWS)} if stored else {}
    images, labels = step.data(spec)
    splits = our_side.make_splits(images, labels, spec['classes'])
    made, trained = our_side.make_program(spec | {'variant': 'kd_jax', 'run': changes}, splits, True)
    par, data = made.parallel, made.data('train')

    if how == 'extraction':
        variables = par.replicate(tuple(t.variables for t in trained))
        run = par.compile(soft_targets.make_step(made.networks, Views(crop=4, flip=True), par.axis_name), arguments=3)
        where = {'index': np.arange(spec['batch'], dtype=np.int32), 'slot': np.zeros(spec['batch'], np.int32)}

        def extract(steps: int) -> None:
            for _ in range(steps):
                np.asarray(run(variables, data, par.divide(where))[0])

        extract(1)
        return extract, {'first_s': time.perf_counter() - begin}

    if stored:
        rows = np.zeros((len(images), VIEWS), soft_targets.Kind(made.views).row_type('train', spec['classes']))
        rows['logits'] = np.random.default_rng(0).normal(0, 3, rows['logits'].shape)
        taught = program.Taught({'train': par.replicate((soft_targets.columns(rows),))})
    else:
        taught = made.taught(trained)
    order = batches.TrainOrder(made.pool, made.train_count, spec['batch'], 0)
    done = 0

    def advance(one: Callable, steps: int) -> None:
        nonlocal done
        goal = done + steps
        while done < goal:
            count = min(made.steps_per_dispatch, goal - done)
            batch = par.divide(train.stacked(order, done, count, made, taught), axis=1)
            metrics = one(np.int32(done), np.int32(count), batch)
            done += count
        jax.block_until_ready(metrics)

    given = taught.variables['train'], data
    if not number:
        state = par.replicate(made.fresh_state(0, None))

        def alone(_, count, batch):
            nonlocal state
            state, metrics = made.train_steps(state, np.int32([0, 0]), *given, count, batch)
            return metrics

        one = alone
    else:
        together = population.Population(made, ('objective.kl.tau', 'optim.learning_rate'))
        wide = len(par)
        hyper = {
            'objective.kl.tau': np.arange(1, wide + 1, dtype=np.float32),
            'optim.learning_rate': np.full(wide, 0.05, np.float32),
        }
        fresh = made.fresh_state(0, None)
        states = [jax.tree.map(lambda x: np.stack([x] * wide), fresh) for _ in range(-(-int(number) // wide))]

        def all_of_them(at, count, batch):
            _, seen = together.look(at, np.int32(0), *given, count, batch)
            for k, state in enumerate(states):
                states[k], metrics = together.steps(state, np.zeros(wide, np.int32), hyper, (), count, seen)
            return metrics

        one = all_of_them

    advance(one, 1)
    return lambda steps: advance(one, steps), {'first_s': time.perf_counter() - begin, 'devices': len(par)}


def contend(spec: dict[str, Any]) -> None:
    race.serve(lambda: build(spec))


def contender(spec: dict[str, Any], kind: str) -> Callable[[], race.Contender]:
    if kind in step.PEERS:
        return step.contender(spec, kind)
    return lambda: race.Contender('students', spec | {'kind': kind}, {'KD_JAX_CACHE': 'off'})


def main() -> None:
    parser = step.parser('Students of one teacher.')
    parser.add_argument('--populations', default='4,8,12', help='how many students at once')
    parser.add_argument('--peer', default='eager', help='the PyTorch loop; empty: none')
    arguments = parser.parse_args()
    if arguments.work:
        contend(arguments.work)
        return
    teacher, student = arguments.pair.split(',')
    spec = {'teacher': teacher, 'student': student, 'cache': 'off', 'steps': 0}
    spec |= {name: getattr(arguments, name) for name in step.TASK}
    counts = [int(text) for text in arguments.populations.split(',') if text]
    groups = [f'{count} {how}' for count in counts for how in ('live', 'stored')]
    kinds = [*filter(None, [arguments.peer]), 'extraction', 'live', 'stored', *groups]
    whole, alone = ({'teacher': name} for name in (teacher, ''))
    peak = [
        race.race({'peak': step.contender(spec | t, 'peak')}, rounds=1, units=1, warm_up=0)['peak'].facts
        for t in (whole, alone)
    ]
    total, own = (facts['flops'] for facts in peak)
    laps = race.race({kind: contender(spec, kind) for kind in kinds}, rounds=arguments.rounds, units=arguments.steps)

    rows = [('', 'ms a step', 'ms a student', 'as cheap as live', 'quartiles', 'ceiling', 'share of it')]
    figures = {'spec': spec, 'flops': total, 'student_flops': own, 'contenders': {}}
    for kind, lap in laps.items():
        students = int(kind.split()[0]) if kind[0].isdigit() else 1
        ratios = [students * r for r in race.ratio(laps['live'], lap)]
        needed = own + (0 if kind.endswith('stored') else (total - own) / students)
        ceiling = total / needed if kind not in (arguments.peer, 'extraction') else None
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
        figures['contenders'][kind] = {'seconds': lap.seconds, 'ratio': ratios, 'ceiling': ceiling, **lap.facts}
    print(f'{teacher} -> {student}, batch {arguments.batch}, {arguments.size} px, {arguments.precision}; '
          f'the teacher is {100 * (1 - own / total):.0f} % of a step; medians of {arguments.rounds} rounds')  # fmt: skip
    print(race.table(rows))
    if arguments.peer and f'{RUNS} stored' in laps:
        figures['answer'] = answer(laps, arguments.peer, arguments.batch)
        print(race.table([('time to an answer', 'hours', 'times as fast'), *figures['answer']]))
    race.conclude(figures, arguments.json)


def answer(laps: dict[str, race.Lap], peer: str, batch: int) -> list[tuple[str, str, str]]:
    """Hours for RUNS runs of EPOCHS epochs, by way."""
    steps = EPOCHS * IMAGES / batch
    start = {kind: lap.facts['start_s'] for kind, lap in laps.items()}
    extraction = VIEWS * IMAGES / batch * laps['extraction'].median + start['extraction']
    hours = {
        f'{RUNS} PyTorch runs ({peer})': RUNS * (steps * laps[peer].median + start[peer]),
        f'{RUNS} live runs': RUNS * steps * laps['live'].median + start['live'],
        f'a population of {RUNS}, live': steps * laps[f'{RUNS} live'].median + start[f'{RUNS} live'],
        f'{VIEWS} views extracted, then a population of {RUNS}': (
            extraction + steps * laps[f'{RUNS} stored'].median + start[f'{RUNS} stored']
        ),
    }
    base = next(iter(hours.values()))
    return [(name, f'{seconds / 3600:.1f}', f'{base / seconds:.2f}') for name, seconds in hours.items()]


if __name__ == '__main__':
    main()
