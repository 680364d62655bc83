"""Results as tables and curves; `python -m kd_jax.report WORKDIR` shows a study again, and writes
its `report.html`.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from kd_jax import own, page, records
from kd_jax.data.batches import parts_of
from kd_jax.errors import Parser, UserError, told_to_the_user
from kd_jax.markdown import table
from kd_jax.models.common import param_count
from kd_jax.monitor import say, warn
from kd_jax.page import runs as page_runs
from kd_jax.parallel import Parallel
from kd_jax.spec import RunSpec
from kd_jax.spread import mean_std, with_spread
from kd_jax.workdir import PathLike, matches, read_metrics, to_json, write_json, write_text

# (heading, path in result.json, factor, digits)
COLUMNS = (
    ('top-1 %', ('test', 'top1'), 100, 2),
    ('macro F1 %', ('test', 'f1_macro'), 100, 2),
    ('NLL', ('test', 'nll'), 1, 3),
    ('ECE %', ('test', 'ece'), 100, 2),
    ('agreement %', ('teacher', 'agreement'), 100, 2),
    ('KL to teacher', ('teacher', 'kl'), 1, 3),
    ('parameters', ('params',), 1, 0),
    ('trainable', ('trainable',), 1, 0),
    ('MFLOPs', ('flops',), 1e-6, 2),
    ('latency ms', ('latency_ms',), 1, 2),
    ('images/s', ('images_per_second',), 1, 0),
    ('seconds', ('seconds',), 1, 0),
)
SPREAD = ('test', 'teacher')  # groups whose standard deviation over seeds means something


def _get(result: Mapping[str, Any], path: Sequence[str]) -> float | None:
    value: Any = result
    for key in path:
        if value is None:
            return None
        value = value.get(key)
    return value if isinstance(value, (int, float)) else None


def aggregate(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a run: {'run', 'model', 'seeds', heading: {'mean', 'std', 'n'} |
    None, ...}; std is the sample's.
    """
    rows = []
    for name in dict.fromkeys(r['run'] for r in results):
        mine = [r for r in results if r['run'] == name]
        row = {'run': name, 'model': mine[0]['model'], 'seeds': [r['seed'] for r in mine]}
        for heading, path, factor, _ in COLUMNS:
            values = [factor * v for v in (_get(r, path) for r in mine) if v is not None]
            row[heading] = mean_std(values) if values else None
        rows.append(row)
    return rows


WATCHED = 5.0  # seconds between two looks at a study
WIDTH = 150  # of the closing table on the terminal, in characters


def gains(results: Sequence[Mapping[str, Any]], runs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each run against the first one of the same model that has neither teachers nor a
    start: points of test top-1.

    Paired by seed. Runs from which others start are left out: they are not trained to their end.
    """
    rows = []
    found = {(r['run'], r['seed']): _get(r, ('test', 'top1')) for r in results}
    top1 = {key: 100 * value for key, value in found.items() if value is not None}
    started_from = {run['init'] for run in runs.values()}
    models = {
        name: json.dumps(to_json(dict(run['model'])), sort_keys=True) for name, run in runs.items()
    }
    alone: dict[str, str] = {}
    for name, run in runs.items():
        if not run['teachers'] and not run['init']:
            alone.setdefault(models[name], name)
    for name, run in runs.items():
        against = alone.get(models[name], name)
        pairs = [s for s in run['seeds'] if (name, s) in top1 and (against, s) in top1]
        if against != name and name not in started_from and pairs:
            difference = mean_std([top1[name, s] - top1[against, s] for s in pairs])
            rows.append({'run': name, 'against': against, 'top-1 points': difference})
    return rows


def _cell(value: Mapping[str, Any] | None, path: Sequence[str], digits: int) -> str:
    if value is None:
        return '–'
    return with_spread(value if path[0] in SPREAD else {**value, 'std': None}, digits)


def _cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    used = [c for c in COLUMNS if any(row.get(c[0]) is not None for row in rows)]
    # The usual case says nothing.
    if all(row.get('trainable') in (None, row.get('parameters')) for row in rows):
        used = [c for c in used if c[0] != 'trainable']
    head = ['run', 'model', 'seeds'] + [c[0] for c in used]
    body = [
        [row['run'], row['model'], str(len(row['seeds']))]
        + [_cell(row[h], path, digits) for h, path, _, digits in used]
        for row in rows
    ]
    return head, body


def gain_line(gain: Mapping[str, Any]) -> str:
    """`student against alone: +14.32 ± 1.20 points of test top-1 (n = 5, paired by seed)`."""
    d = gain['top-1 points']
    points = with_spread(d, sign='+')
    return (
        f'{gain["run"]} against {gain["against"]}: {points} points of test top-1 '
        f'(n = {d["n"]}, paired by seed)'
    )


def markdown(rows: Sequence[Mapping[str, Any]], gain_rows: Sequence[Mapping[str, Any]]) -> str:
    """The closing table and the gains as Markdown."""
    head, body = _cells(rows)
    text = table(head, body, 'lll' + 'r' * (len(head) - 3))
    note = '\nTest split, read once after training; mean ± sample standard deviation over seeds.\n'
    return (
        text
        + '\n'
        + note
        + ''.join(f'\n- {gain_line(g)}' for g in gain_rows)
        + ('\n' if gain_rows else '')
    )


def show(rows: Sequence[Mapping[str, Any]], gain_rows: Sequence[Mapping[str, Any]]) -> None:
    """The closing table on the terminal, one column a run, in several pieces if it
    would be wider than `WIDTH`.
    """
    head, body = _cells(rows)
    first, widths = max(map(len, head)), [max(map(len, line)) for line in body]
    pieces: list[list[int]] = [[]]
    for k, width in enumerate(widths):
        if pieces[-1] and first + sum(2 + widths[j] for j in pieces[-1]) + 2 + width > WIDTH:
            pieces.append([])
        pieces[-1].append(k)
    for piece in pieces:
        print()
        for i, name in enumerate(head):
            print(
                '  '.join(
                    [name.ljust(first), *(body[k][i].rjust(widths[k]) for k in piece)]
                ).rstrip()
            )
            if i == 0:
                print('  '.join('-' * width for width in (first, *(widths[k] for k in piece))))
    print()
    for gain in gain_rows:
        print(gain_line(gain))
    sys.stdout.flush()


def write(workdir: PathLike, results: Sequence[Mapping[str, Any]], runs: Mapping[str, Any]) -> None:
    """Writes a study's results.json, report.md and report.html, and shows the table."""
    rows, gained = aggregate(results), gains(results, runs)
    write_json(
        epath.Path(workdir) / 'results.json',
        {'results': list(results), 'table': rows, 'gains': gained},
    )
    write_text(epath.Path(workdir) / 'report.md', markdown(rows, gained))
    show(rows, gained)
    try:
        page.write(workdir, page_table(rows, gained), page_runs.found(workdir), finished=True)
    except (
        UserError
    ) as error:  # a record of another run that lies here, such as a trial of a search
        warn(f'{epath.Path(workdir) / page.FILE} is not written: {error}')


def page_table(
    rows: Sequence[Mapping[str, Any]], gain_rows: Sequence[Mapping[str, Any]]
) -> page.Table:
    """The closing table as `kd_jax.page` takes it."""
    return page.Table(*_cells(rows), gain_rows)


def write_page(workdir: PathLike, predict: int) -> bool:
    """Writes report.html of what is there, and shows the table of a study that is finished; returns
    whether it is. predict: see `kd_jax.page.write`; of a study that is not finished, nothing is.

    Raises:
      UserError: if there is no run, or a record is damaged.
    """
    folder = epath.Path(workdir)
    path, results = folder / 'results.json', None
    if path.exists():
        results = records.read(path, records.Results, 'run its study again')
        _check_rows(path, results['table'])
    seeds = page_runs.found(folder)
    finished = page_runs.is_finished(folder, seeds)
    if finished and results is not None:
        rows, gained = results['table'], results['gains']
    elif seeds:
        there = [seed.result for seed in seeds if seed.result is not None]
        rows, gained = aggregate(there), gains(there, page_runs.configs(seeds))
    else:
        raise UserError(f'{folder} holds no results.json; run its study first')
    table = page_table(rows, gained)
    predict = predict if finished else 0
    written = page.write(folder, table, seeds, finished=finished, predict=predict)
    if finished:
        say(str(written))
        show(rows, gained)
    return finished


# Where images lie, if that is not on every device.
LIE = {
    'resident': '',
    'sharded': ', divided among the devices',
    'host': ', held by the host',
    'stream': ', streamed',
}


def describe(spec: RunSpec, parallel: Parallel) -> str:
    """One line on what is about to be trained."""
    count = spec.dataset.info.count
    images = f'{count["train"]} images'
    if count['labelled'] < count['train']:
        images += f', {count["labelled"]} of them labelled'
    if len(spec.pool) < count['train']:
        images = f'the {len(spec.pool)} labelled of {count["train"]} images'
    if more := spec.dataset.unlabelled:
        _, here = parts_of(spec.config.batch_size, spec.config.data.unlabelled_share)
        images += f', and {more} without labels, {here} in each batch,'
    devices = '1 device' if len(parallel) == 1 else f'{len(parallel)} devices'
    params = param_count(spec.plans['student'].shapes)
    return (
        f'{spec.config.model.name}, {params:,} parameters, on {images} of '
        f'{spec.dataset.info.name}{LIE[spec.images.placement]}; {spec.timing.total_steps} steps '
        f'of {spec.config.batch_size} '
        f'({parallel.mode} on {devices})'
    )


def _check_rows(path: epath.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        for heading, kind in (('run', str), ('model', str), ('seeds', list)):
            if not isinstance(row.get(heading), kind):
                raise UserError(f'{path} has a row without {heading}; run its study again')
        for heading in (column[0] for column in COLUMNS):
            if not isinstance(row.get(heading), dict | None):
                raise UserError(
                    f'{path} has {heading!r} that is no mean with its spread; run its study again'
                )


def plot(workdir: PathLike) -> epath.Path:
    """Validation top-1 over epochs, one line a run (mean over seeds) in
    `<workdir>/curves.png`; needs matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError('plots need matplotlib; pip install matplotlib') from error
    matplotlib.use('Agg')
    from matplotlib import pyplot

    folder = epath.Path(workdir)
    figure, axes = pyplot.subplots(figsize=(6, 4), layout='constrained')
    runs: dict[str, list[epath.Path]] = {}
    for config in matches(folder, '*/seed*/config.json'):
        runs.setdefault(config.parent.parent.name, []).append(config.parent)
    for name, directories in runs.items():
        points = [
            [
                (m.get('epoch', 0.0), 100 * m['top1'])
                for m in read_metrics(d)
                if m['split'] == 'val' and m.get('top1') is not None
            ]
            for d in directories
        ]
        curves = [np.array(of_run) for of_run in points if of_run]
        if not curves:
            continue
        length = min(map(len, curves))
        top1 = np.stack([c[:length, 1] for c in curves])
        (line,) = axes.plot(
            curves[0][:length, 0], top1.mean(0), label=f'{name} (n = {len(curves)})'
        )
        axes.fill_between(
            curves[0][:length, 0], top1.min(0), top1.max(0), alpha=0.2, color=line.get_color()
        )
    if not axes.lines:
        raise UserError(
            f'{folder} holds no validation of a run to draw; run its study, or leave --plot out'
        )
    axes.set(
        xlabel='epoch',
        ylabel='validation top-1 (%)',
        title=f'{folder.name}: mean and range over seeds',
    )
    axes.legend()
    axes.grid(alpha=0.3)
    with (folder / 'curves.png').open('wb') as file:
        figure.savefig(file, dpi=120, format='png')
    pyplot.close(figure)
    return folder / 'curves.png'


def main() -> None:
    parser = Parser(
        prog='python -m kd_jax.report',
        description='Show the closing table of a study again, and write its report.html.',
    )
    parser.add_argument('workdir', type=epath.Path)
    parser.add_argument(
        '--plot', action='store_true', help='also draw the validation curves to curves.png'
    )
    parser.add_argument(
        '--predict',
        type=int,
        default=page.MOST_PREDICTED,
        metavar='RUNS',
        help='predict the test images with so many runs at most, where that was not done before '
        '(default: %(default)s; 0: with none)',
    )
    parser.add_argument(
        '--watch',
        action='store_true',
        help='write report.html again every few seconds until the study is finished',
    )
    parser.add_argument(
        '--trust', action='store_true', help='import the code (models, data) that the workdir names'
    )
    arguments = parser.parse_args()
    with told_to_the_user(arguments.workdir / page.FILE):
        own.search_in(Path.cwd())
        if arguments.trust:
            own.trust_workdirs()
        begin = time.perf_counter()
        finished = write_page(arguments.workdir, arguments.predict)
        if not finished:
            say(f'{arguments.workdir / page.FILE} · the study is not finished')
        while arguments.watch and not finished:
            # Most of the time it waits, also where there are many runs to read.
            time.sleep(max(WATCHED, 4 * (time.perf_counter() - begin)))
            begin = time.perf_counter()
            finished = write_page(arguments.workdir, arguments.predict)
        if arguments.plot:
            print(plot(arguments.workdir))


if __name__ == '__main__':
    main()
