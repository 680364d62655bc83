"""What a study is about to do, in about ten lines; with `--verbose` its fields before them."""

from collections.abc import Sequence
from typing import Any

import jax
import yaml
from ml_collections import ConfigDict

from kd_jax.config import changed
from kd_jax.data import DatasetInfo
from kd_jax.models.common import param_count
from kd_jax.study import Study
from kd_jax.workdir import matches, to_json

MOST_RUNS = 12  # lines of the table
MOST_DATA = 3  # kinds of data
WIDEST = 36  # characters of a cell
HEAD = ('run', 'model', 'params', 'epochs', 'seeds', 'teachers', 'objective')
RIGHT = ('params', 'epochs')


def fields(study: Study) -> str:
    """What differs from the defaults, as YAML."""
    shown = to_json(changed(study.config))
    text = yaml.safe_dump(shown, default_flow_style=None, width=100, sort_keys=False)
    return f'{text}\nThe other fields are the defaults; all are in config.json of each run.\n'


def overview(study: Study) -> str:
    """The runs that are chosen, the data, the devices, and what there is already. After
    `Study.check`.
    """
    groups = study.plan.groups(study.chosen)
    rows = [_imported(study, name) for name in study.library.imports]
    rows += [_row(study, group, names) for group, names in groups.items()]
    lines = table(HEAD, rows[:MOST_RUNS])
    if len(rows) > MOST_RUNS:
        lines.insert(-1, f'and {len(rows) - MOST_RUNS} more, which study.json and --verbose list')
    facts = [('data', text) for text in _data(study, groups)]
    facts += [('devices', _devices(study)), ('workdir', str(study.workdir))]
    facts.append(('so far', _so_far(study)))
    known = ''
    for name, text in facts:
        lines.append(f'{"" if name == known else name:<9}{text}')
        known = name
    return '\n'.join(lines) + '\n'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Its lines, and an empty one; columns in which nothing stands are left out."""
    kept = [k for k in range(len(head)) if any(row[k] for row in rows)]
    widths = {k: max(len(line[k]) for line in (head, *rows)) for k in kept}

    def line(cells: Sequence[str]) -> str:
        return '  '.join(
            cells[k].rjust(widths[k]) if head[k] in RIGHT else cells[k].ljust(widths[k])
            for k in kept
        ).rstrip()

    return [*map(line, (head, *rows)), '']


def _row(study: Study, group: str, names: Sequence[str]) -> tuple[str, ...]:
    run, sweep = study.plan.runs[names[0]], group in study.plan.members
    seeds = sum(len(study.plan.runs[name].seeds) for name in names)
    teachers = [*run.teachers, *([f'from {run.init}'] if run.init else [])]
    return (
        group,
        run.model.name,
        _parameters(study, group, names),
        f'{run.epochs:g}',
        f'{seeds} students' if sweep else numbers(tuple(run.seeds)),
        _short(', '.join(teachers)),
        objective_in_short(run),
    )


def _imported(study: Study, name: str) -> tuple[str, ...]:
    given = study.library.imports[name]
    what = given['function'] or given['model']['name']
    return name, what, '', '', '', '', 'given' if given['function'] else 'imported'


def _parameters(study: Study, group: str, names: Sequence[str]) -> str:
    """'' where that is not known."""
    if group in study.specs:
        return f'{param_count(study.specs[group].plans["student"].shapes):,}'
    finished = study.library.directory(names[0], study.plan.runs[names[0]].seeds[0])
    return f'{finished.result()["params"]:,}' if finished.finished() else ''


def objective_in_short(run: ConfigDict) -> str:
    """`0.1 cross_entropy + 0.9 kl`."""
    terms = []
    for label, loss in run.objective.items():
        weight = loss.get('weight', 1.0)
        terms.append(label if weight == 1 else f'{weight:.3g} {label}')
    return _short(' + '.join(terms))


def numbers(values: tuple[int, ...]) -> str:
    """`(0, 1, 2) -> '0-2'`, `(3, 5) -> '3, 5'`."""
    if len(values) > 2 and values == tuple(range(values[0], values[0] + len(values))):
        return f'{values[0]}-{values[-1]}'
    return _short(', '.join(map(str, values)), 16)


def _short(text: str, widest: int = WIDEST) -> str:
    return text if len(text) <= widest else f'{text[: widest - 1]}…'


def _data(study: Study, groups: dict[str, list[str]]) -> list[str]:
    """A line for each kind of data, with the runs that see it where there are several."""
    kinds: dict[str, list[str]] = {}
    few: dict[str, list[str]] = {}
    for group, names in groups.items():
        info = _info(study, group, names)
        if info is None:
            continue
        kinds.setdefault(data_in_short(info), []).append(group)
        train, labelled = (info.count.get(name, 0) for name in ('train', 'labelled'))
        if 0 < labelled < train:
            few.setdefault(f'{labelled:,} of {train:,} have a label', []).append(group)
    lines = [
        f'{text}; {_short(", ".join(of))}' if len(kinds) > 1 else text for text, of in kinds.items()
    ]
    lines += [f'{_short(", ".join(of))}: {text}' for text, of in few.items()]
    more = [f'and {len(lines) - MOST_DATA} more'] if len(lines) > MOST_DATA else []
    return lines[:MOST_DATA] + more


def _info(study: Study, group: str, names: Sequence[str]) -> DatasetInfo | None:
    """Of the data of a run; None where that is not known."""
    if group in study.specs:
        return study.specs[group].dataset.info
    directory = study.library.directory(names[0], study.plan.runs[names[0]].seeds[0])
    return DatasetInfo.from_json(directory.info()['data']) if directory.finished() else None


def data_in_short(info: DatasetInfo) -> str:
    """`digits: 1,020 train, 180 val, 597 test; 10 classes; 8 × 8 × 1`."""
    count: Any = info.count
    there = (split for split in ('train', 'val', 'test') if split in count)  # of earlier versions
    sizes = ', '.join(f'{count[split]:,} {split}' for split in there)
    if count.get('unlabelled'):
        sizes += f', {count["unlabelled"]:,} more without labels'
    shape = ' × '.join(map(str, info.image_shape))
    return f'{info.name}: {sizes}; {info.num_classes} classes; {shape}'


def _devices(study: Study) -> str:
    kind = study.parallel.devices[0].device_kind
    processes = f', {jax.process_count()} processes' if jax.process_count() > 1 else ''
    return f'{len(study.parallel)} × {kind} ({study.parallel.mode}){processes}'


def _so_far(study: Study) -> str:
    """How many trainings are finished, and which have begun."""
    wanted = [(name, seed) for name in study.chosen for seed in study.plan.runs[name].seeds]
    places = {run: study.library.directory(*run) for run in wanted}
    finished = sum(place.finished() for place in places.values())
    begun = [
        f'{name} seed {seed}'
        for (name, seed), place in places.items()
        if not place.finished() and any(p.name.isdigit() for p in matches(place.checkpoints, '*'))
    ]
    text = f'{finished} of {len(wanted)} trainings are finished'
    return f'{text}, {_short(", ".join(begun), 48)} has begun' if begun else text
