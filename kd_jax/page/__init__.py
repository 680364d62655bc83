"""`report.html` of a study: one page with its table, figures, predictions, objective and config."""

import dataclasses
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from etils import epath

from kd_jax import objectives
from kd_jax.display import clock
from kd_jax.page import charts, figures, predictions, runs
from kd_jax.page import document as d
from kd_jax.page.charts import Figure
from kd_jax.page.runs import MOST_SHOWN, Seed
from kd_jax.spread import with_spread
from kd_jax.workdir import PathLike, write_text

FILE = 'report.html'
MOST_PREDICTED = 12
MOST_ROWS = 12  # of a table that is not folded up
MOST_CONFIG = 300_000  # characters of the study's config that are shown


@dataclasses.dataclass(frozen=True)
class Table:
    """The closing table as text, and the gains: `kd_jax.report`."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    gains: Sequence[Mapping[str, Any]]


def write(
    workdir: PathLike, table: Table, seeds: Sequence[Seed], *, finished: bool, predict: int = 0
) -> epath.Path:
    """Writes `<workdir>/report.html`. predict: test images are predicted with so many runs at most
    where that was not done before.

    Raises:
      UserError: if a record is damaged, or the file cannot be written.
    """
    folder = epath.Path(workdir)
    place = {row[0]: k for k, row in enumerate(table.rows)}
    seeds = sorted(seeds, key=lambda seed: place.get(seed.run, len(place)))
    names = runs.shown(seeds)
    wanted = [*names, *(name for name in figures.by_run(seeds) if name not in names)]
    predicted, failures = predictions.obtain(folder, seeds, wanted, predict)
    study = runs.study(folder)
    drawn: list[Figure] = []

    def grid(of: Sequence[Figure]) -> str:
        drawn.extend(of)
        return d.cards(of)

    sections = [
        _runs(table),
        _curves(seeds, grid),
        _paired(seeds, table, grid),
        _costs(seeds, grid),
        *_sweeps(seeds, study, grid),
        *_predictions(predicted, failures, grid),
        _made(folder, seeds, study),
    ]
    every = list(dict.fromkeys([*(row[0] for row in table.rows), *(seed.run for seed in seeds)]))
    data = {
        'runs': every,
        'shown': [name for name in every if name in names] or every[:MOST_SHOWN],
        'most': MOST_SHOWN,
        'predicted': list(predicted),
        'figures': [_packed(figure, every) for figure in drawn],
    }
    title, lead = folder.name or str(folder), _lead(seeds, table, finished)
    # A study that ends and a command that watches it may both be here.
    target, suffix = folder / FILE, f'.{os.getpid()}.tmp'
    try:
        write_text(target, d.document(title, lead, sections, data, finished=finished), suffix)
    finally:
        target.with_suffix(suffix).unlink(missing_ok=True)
    return target


def _packed(figure: Figure, every: Sequence[str]) -> dict[str, Any]:
    """With runs by their number."""
    number = {name: k for k, name in enumerate(every)}
    columns = {**figure.columns, 'run': [number[name] for name in figure.columns['run']]}
    return {**dataclasses.asdict(figure), 'columns': columns}


def _lead(seeds: Sequence[Seed], table: Table, finished: bool) -> str:
    few = len(table.gains) <= 3
    tiles = [
        (
            f'{with_spread(gain["top-1 points"], sign="+")}',
            f'points of test top-1: {gain["run"]} against {gain["against"]}, '
            f'{gain["top-1 points"]["n"]} paired by seed',
        )
        for gain in (table.gains if few else ())
    ]
    if not few:
        means = [gain['top-1 points']['mean'] for gain in table.gains]
        against = ', '.join(dict.fromkeys(gain['against'] for gain in table.gains))
        words = f'points of test top-1, the gains of {len(means)} runs against {against}'
        tiles.append((f'{min(means):+.2f} … {max(means):+.2f}', words))
    done = [seed for seed in seeds if seed.result is not None]
    count = len({seed.run for seed in seeds} | {row[0] for row in table.rows})
    if seeds:
        tiles.append((str(count), f'runs; {len(done)} of {len(seeds)} seeds begun are finished'))
    seconds = [s.result.get('seconds') for s in done if s.result]
    known = [value for value in map(figures.number, seconds) if value is not None]
    if known:
        tiles.append((clock(sum(known)), 'of training and evaluation, all seeds together'))
    state = ''
    if not finished:
        words = 'This study is not finished; the page looks again every few seconds'
        state = d.paragraph(f'{words} while kd_jax report --watch writes it.', 'state')
    return state + d.tiles(tiles)


def _runs(table: Table) -> d.Section:
    if not table.rows:
        return d.Section('runs-of', 'Runs', d.paragraph('No run is finished yet.'))
    gain = {of['run']: of for of in table.gains}
    head, rows = list(table.head), [list(row) for row in table.rows]
    if gain:
        place = 4 if len(head) > 3 else len(head)
        head.insert(place, 'gain')
        for row in rows:
            of = gain.get(row[0])
            row.insert(place, with_spread(of['top-1 points'], sign='+') if of else '–')
    note = 'Test split, read once after training; mean ± sample standard deviation over seeds.'
    if gain:
        against = ', '.join(dict.fromkeys(of['against'] for of in table.gains))
        note += f' Gain: points of test top-1 against {against}, paired by seed.'
    note += ' What is ticked is shown in the charts.'
    return d.Section('runs-of', 'Runs', d.runs_table(head, rows) + d.paragraph(note))


def _curves(seeds: Sequence[Seed], grid: Any) -> d.Section:
    of = figures.learning_curves(seeds)
    body = d.paragraph('There is no log of a run here (metrics.jsonl).')
    if of:
        body = grid(of) + d.paragraph(
            'Mean over the seeds, with their sample standard deviation as a band. Losses are means '
            'since the line before; each term is unweighted.'
        )
    training = [seed for seed in seeds if seed.result is None]
    if training:
        rows = [[seed.run, seed.seed, *_progress(seed)] for seed in training]
        head = ('run', 'seed', 'epoch', 'of', 'validation top-1 %')
        body = d.table(head, rows, (1, 2, 3, 4)) + body
    return d.Section('curves', 'Learning curves', body)


def _progress(seed: Seed) -> tuple[str, str, str]:
    """(epoch of the last line, epochs, validation top-1) of a run that is not finished."""
    last = max((line.get('epoch', 0.0) for line in seed.lines), default=0.0)
    val = [line['top1'] for line in seed.lines if line['split'] == 'val' and line.get('top1')]
    top1 = f'{100 * val[-1]:.2f}' if val else '–'
    return f'{last:.1f}', f'{seed.config["epochs"]:g}', top1


def _paired(seeds: Sequence[Seed], table: Table, grid: Any) -> d.Section:
    of = figures.paired(seeds, table.gains)
    missing = 'No finished run has a teacher or a start and the same model as one that has neither.'
    note = 'A point is a seed; above the dashed line it gained by what it was taught.'
    body = grid(of) + d.paragraph(note) if of else d.paragraph(missing)
    return d.Section('paired', 'Student against alone', body)


def _costs(seeds: Sequence[Seed], grid: Any) -> d.Section:
    of, missing = figures.costs(seeds)
    note = 'FLOPs as XLA counts them; latency and throughput on the machine of the study.'
    if missing:
        note = f'Not recorded: {", ".join(missing)}. ' + (note if of else '')
    return d.Section('cost', 'Accuracy and cost', (grid(of) if of else '') + d.paragraph(note))


def _sweeps(seeds: Sequence[Seed], study: Any, grid: Any) -> list[d.Section]:
    of = figures.sweeps(seeds, study)
    note = 'A point is a member with a seed, the line the mean of a value.'
    return [d.Section('sweep', 'Sweep', grid(of) + d.paragraph(note))] if of else []


def _predictions(
    predicted: Mapping[str, tuple[Seed, predictions.Predictions]],
    failures: Sequence[str],
    grid: Any,
) -> list[d.Section]:
    why = ''.join(d.paragraph(f'Not predicted: {sentence}.') for sentence in failures)
    if not predicted:
        why = why or d.paragraph(
            'The test images were not predicted one by one yet; kd_jax report WORKDIR does that.'
        )
        return [d.Section('calibration', 'Calibration, confusion and differences', why)]
    of_seed = ', '.join(f'{run} seed {seed.seed}' for run, (seed, _) in predicted.items())
    words = f'Lines leave out what fewer than {charts.FEW} images say.'
    note = d.paragraph(f'Predicted on the test split: {of_seed}. {words}')
    taught = {run: of for run, of in predicted.items() if len(of[1]['picked'])}
    names = [*taught, *(run for run in predicted if run not in taught)]
    parts = ''.join(
        f'<div data-of="{d.text(run)}">{d.pictures(*of)}</div>' for run, of in taught.items()
    ) + ''.join(
        f'<div data-of="{d.text(run)}">{d.paragraph(f"{run} has no teacher that is another run.")}'
        '</div>'
        for run in predicted
        if run not in taught
    )
    many = 'A cell holds how many images; its colour, the share of the row.'
    return [
        d.Section('calibration', 'Calibration', grid(figures.reliability(predicted)) + note + why),
        d.Section(
            'confusion',
            'Confusion, and where teacher and student differ',
            d.chooser(names)
            + grid(figures.confusion(predicted))
            + d.paragraph(many)
            + '<h3>The test images on which student and teacher differ most</h3>'
            + parts,
        ),
    ]


def objective_of(config: Mapping[str, Any]) -> str:
    """`0.1 cross_entropy + 0.9 kl(tau=4)`: numbers but 0, and words that are not the usual ones."""
    terms = []
    for label, fields in config.get('objective', {}).items():
        weight, name = fields.get('weight', 1.0), str(fields.get('loss', label))
        usual = objectives.defaults(name) if name in objectives.OBJECTIVES else {}
        own = {k: v for k, v in fields.items() if _says(k, v, usual)}
        inner = ', '.join(
            f'{k}={v:g}' if isinstance(v, float) else f'{k}={v}' for k, v in own.items()
        )
        times = f'{weight:g} ' if isinstance(weight, (int, float)) and weight != 1 else ''
        terms.append(f'{times}{name}' + (f'({inner})' if inner else ''))
    return ' + '.join(terms) or '–'


def _says(field: str, value: Any, usual: Mapping[str, Any]) -> bool:
    """Whether a field of a loss is worth a word."""
    if field in ('weight', 'loss'):
        return False
    if isinstance(value, (bool, str)):
        return value != usual.get(field)
    return isinstance(value, (int, float)) and value != 0


def _made(folder: epath.Path, seeds: Sequence[Seed], study: Any) -> d.Section:
    command = runs.command(folder)
    parts = ['<h3>Command</h3>']
    if command:
        parts.append(d.code(command['command'], 'wrap'))
        about = f'kd_jax {command.get("version", "?")}, JAX {command.get("jax", "?")}.'
        parts.append(d.paragraph(about))
    else:
        parts.append(d.paragraph('The command was not recorded by the version that ran it.'))
    of = figures.by_run(seeds)
    head = ('run', 'objective', 'teachers', 'epochs', 'batch', 'learning rate', 'time', 'hardware')
    if of:
        rows = [[run, *_row(seeds_of)] for run, seeds_of in of.items()]
        parts.append('<h3>Objective, time and hardware</h3>')
        made = d.table(head, rows, (3, 4, 5, 6))
        parts.append(made if len(rows) <= MOST_ROWS else d.details(f'Of {len(rows)} runs', made))
        parts.append(d.paragraph('Time: the mean of a seed, compilation and evaluation included.'))
    if study:
        written = yaml.safe_dump(study, default_flow_style=None, width=100, sort_keys=False)
        rest = len(written) - MOST_CONFIG
        if rest > 0:
            written = f'{written[:MOST_CONFIG]}\n... {rest} more characters in study.json'
        parts.append(d.details('The config of the study (study.json)', d.code(written)))
    elif seeds:
        written = yaml.safe_dump(dict(seeds[0].recorded['config']), width=100, sort_keys=False)
        parts.append(d.details(f'The config of {seeds[0].run}', d.code(written[:MOST_CONFIG])))
    return d.Section('made', 'How it was made', ''.join(parts))


def _row(of_run: Sequence[Seed]) -> list[str]:
    """Objective, teachers, epochs, batch, learning rate, time, hardware."""
    first = of_run[0]
    results = [seed.result for seed in of_run if seed.result]
    seconds = [figures.number(result.get('seconds')) for result in results]
    known = [value for value in seconds if value is not None]
    time = clock(statistics.mean(known)) if known else '–'
    if first.imported:
        return ['imported', '–', '–', '–', '–', time, _hardware(results)]
    rate = figures.number(first.recorded.get('learning_rate'))
    config = first.config
    teachers = ', '.join(config['teachers']) or '–'
    numbers = [
        f'{config["epochs"]:g}',
        str(config['batch_size']),
        '–' if rate is None else f'{rate:g}',
    ]
    return [objective_of(config), teachers, *numbers, time, _hardware(results)]


def _hardware(results: Sequence[Mapping[str, Any]]) -> str:
    kinds = dict.fromkeys(
        f'{of["devices"]} × {of["device"]}'
        for of in results
        if of.get('device') and of.get('devices')
    )
    return ', '.join(kinds) or 'not recorded'
