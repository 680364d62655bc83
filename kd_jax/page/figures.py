"""The numbers of the figures, as columns, of what a workdir holds."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kd_jax.metrics import BINS
from kd_jax.page import charts
from kd_jax.page.charts import Columns, Figure
from kd_jax.page.predictions import Predictions
from kd_jax.page.runs import Seed
from kd_jax.spread import mean_std

MOST_POINTS = 150  # of a curve; those of a longer one are thinned out
MOST_NAMED = 5  # runs whose names are written beside their points
MOST_CLASSES = 20  # of a confusion matrix
# key of result.json -> (heading, factor, form of its numbers)
COSTS = {
    'params': ('parameters', 1.0, '~s'),
    'flops': ('MFLOPs of one image', 1e-6, ',.3~g'),
    'latency_ms': ('latency of one image (ms)', 1.0, ',.3~g'),
    'images_per_second': ('training images/s', 1.0, '~s'),
}
VALIDATION = {'top1': ('top-1', 100.0), 'nll': ('NLL', 1.0), 'teacher_kl': ('KL to teacher', 1.0)}


def number(value: Any) -> float | None:
    """Four significant digits; None for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(f'{value:.4g}')


def columns(rows: Iterable[Mapping[str, Any]]) -> Columns:
    """Rows of the same fields as columns."""
    every = list(rows)
    return {name: [row[name] for row in every] for name in (every[0] if every else ())}


def by_run(seeds: Sequence[Seed]) -> dict[str, list[Seed]]:
    found: dict[str, list[Seed]] = {}
    for seed in seeds:
        found.setdefault(seed.run, []).append(seed)
    return found


def curve(seeds: Sequence[Seed], split: str, name: str, factor: float) -> list[dict[str, Any]]:
    """The mean over the seeds that logged `name` at an epoch, with the sample's standard
    deviation below and above.
    """
    at: dict[float, list[float]] = {}
    for seed in seeds:
        for line in seed.lines:
            value = number(line.get(name)) if line['split'] == split else None
            if value is not None:
                at.setdefault(round(line.get('epoch', 0.0), 4), []).append(factor * value)
    points: list[dict[str, Any]] = []
    for epoch in sorted(at):
        of = mean_std(at[epoch])
        std = of['std'] or 0.0
        low, high = of['mean'] - std, of['mean'] + std
        points.append(
            {'epoch': epoch, 'n': of['n']} | _numbers(mean=of['mean'], low=low, high=high)
        )
    if len(points) <= MOST_POINTS:
        return points
    keep = np.unique(np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(int))
    return [points[k] for k in keep]


def _numbers(**values: float) -> dict[str, float | None]:
    return {name: number(value) for name, value in values.items()}


def learning_curves(seeds: Sequence[Seed]) -> list[Figure]:
    """Validation, then the loss and each of its terms, unweighted."""
    terms = {
        name: None
        for seed in seeds
        for line in seed.lines
        if line['split'] == 'train'
        for name in line
        if name not in ('step', 'epoch', 'split', 'top1', 'learning_rate', 'loss')
    }
    wanted = [('val', name, *of) for name, of in VALIDATION.items()]
    wanted += [('train', 'loss', 'loss', 1.0), *(('train', name, name, 1.0) for name in terms)]
    figures: list[Figure] = []
    for split, name, heading, factor in wanted:
        rows = [
            {'run': run, **point}
            for run, of_run in by_run(seeds).items()
            for point in curve(of_run, split, name, factor)
        ]
        if rows:
            unit = '%' if name == 'top1' else ''
            longest = max(Counter(row['run'] for row in rows).values())
            chart = charts.curves(heading, unit, points=longest <= 40)
            title = f'{"Validation" if split == "val" else "Training"} {heading}'
            figures.append(Figure(f'curve-{split}-{len(figures)}', title, chart, columns(rows)))
    return figures


def top1(seed: Seed, split: str = 'test') -> float | None:
    """In percent, of a finished run."""
    value = number((((seed.result or {}).get(split)) or {}).get('top1'))
    return None if value is None else 100 * value


def paired(seeds: Sequence[Seed], gains: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Runs against the one alone that they are compared with, a point a seed."""
    found = {(seed.run, seed.seed): top1(seed) for seed in seeds}
    rows = []
    for gain in gains:
        run, against = gain['run'], gain['against']
        for (name, seed), own in found.items():
            alone = found.get((against, seed))
            if name == run and own is not None and alone is not None:
                values = _numbers(alone=alone, own=own, gain=own - alone)
                rows.append({'run': run, 'against': against, 'seed': seed} | values)
    if not rows:
        return []
    return [
        Figure('paired', 'Test top-1 of each seed', charts.paired(), columns(rows)),
        Figure('gains', 'Points gained, seed by seed', charts.differences(), columns(rows)),
    ]


def costs(seeds: Sequence[Seed]) -> tuple[list[Figure], list[str]]:
    """Test top-1 against what a model costs, and the measures that no run has."""
    figures, missing = [], []
    for key, (heading, factor, form) in COSTS.items():
        rows = []
        for run, of_run in by_run(seeds).items():
            accuracy = [value for value in map(top1, of_run) if value is not None]
            values = [number((seed.result or {}).get(key)) for seed in of_run]
            known = [factor * value for value in values if value]
            if accuracy and known:
                of = mean_std(accuracy)
                low, high = (of['mean'] + sign * (of['std'] or 0.0) for sign in (-1, 1))
                spread = _numbers(mean=of['mean'], low=low, high=high, cost=sum(known) / len(known))
                rows.append({'run': run, 'n': of['n'], **spread})
        if rows:
            chart = charts.cost(heading, form, named=len(rows) <= MOST_NAMED)
            title = f'Test top-1 by {heading.partition(" of ")[0]}'
            figures.append(Figure(f'cost-{key}', title, chart, columns(rows), 'all'))
        else:
            missing.append(heading)
    return figures, missing


def reliability(predicted: Mapping[str, tuple[Seed, Predictions]]) -> list[Figure]:
    """How often the predicted class is right, by its probability: equal bins, as in the ECE."""
    right_rows, count_rows = [], []
    for run, (_, of) in predicted.items():
        confidence, known = of['share'][:, 0].astype(np.float64), of['label'] >= 0
        right = (of['classes'][:, 0] == of['label']) & known
        bins = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(int)
        for k in range(BINS):
            inside = (bins == k) & known
            count = int(inside.sum())
            edges = _numbers(low=k / BINS, middle=(k + 0.5) / BINS, high=(k + 1) / BINS)
            share = number(100 * count / max(int(known.sum()), 1))
            count_rows.append({'run': run, 'images': count, 'share': share, **edges})
            if count:
                values = _numbers(
                    confidence=float(confidence[inside].mean()),
                    accuracy=right[inside].sum() / count,
                )
                right_rows.append({'run': run, 'images': count, **values})
    if not right_rows:
        return []
    right_columns, count_columns = columns(right_rows), columns(count_rows)
    return [
        Figure('reliability', 'Accuracy by confidence', charts.reliability(), right_columns),
        Figure('confidence', 'Images by confidence', charts.confidence(), count_columns),
    ]


def class_names(seed: Seed, count: int) -> list[str]:
    """As the data names them; numbers where it does not, or names two of them alike."""
    names = [str(name) for name in seed.recorded['data'].get('class_names') or ()]
    if len(names) < count or len(set(names)) < len(names):
        return [str(k) for k in range(max(count, len(names)))]
    return names


def confusion(predicted: Mapping[str, tuple[Seed, Predictions]]) -> list[Figure]:
    """Images by label and prediction; of many classes those that are mistaken most."""
    rows, largest = [], 0
    for run, (seed, of) in predicted.items():
        known = of['label'] >= 0
        label, guess = of['label'][known], of['classes'][known, 0]
        if not len(label):
            continue
        size = 1 + int(max(label.max(), guess.max()))
        names = class_names(seed, size)
        size, largest = max(size, len(names)), max(largest, len(names))
        wrong = label != guess
        mistakes = np.bincount(label[wrong], minlength=size) + np.bincount(
            guess[wrong], minlength=size
        )
        of_interest = np.sort(np.argsort(-mistakes, kind='stable')[:MOST_CLASSES])
        total = np.bincount(label, minlength=size)
        for row in of_interest:
            found = np.bincount(guess[label == row], minlength=size)
            for column in of_interest:
                share = number(found[column] / total[row]) if total[row] else 0.0
                cell = {'label': names[row], 'predicted': names[column], 'share': share}
                rows.append({'run': run, **cell, 'images': int(found[column])})
    if not rows:
        return []
    title = 'Images by label and prediction'
    longest = max(len(row['label']) for row in rows)
    chart = charts.confusion(angle=0 if longest <= 3 else -40)
    if largest > MOST_CLASSES:
        title += f', the {MOST_CLASSES} of {largest} classes that are mistaken most'
    return [Figure('confusion', title, chart, columns(rows), 'one')]


def sweeps(seeds: Sequence[Seed], study: Mapping[str, Any] | None) -> list[Figure]:
    """Validation top-1 by the value of each field that a sweep varies."""
    figures: list[Figure] = []
    runs = (study or {}).get('runs') or {}
    for name, fields in runs.items() if isinstance(runs, dict) else ():
        if not (isinstance(fields, dict) and fields.get('sweep')):
            continue
        members = [seed for seed in seeds if seed.run.startswith(f'{name}-')]
        flat = [_flat(seed.config) for seed in members]
        varied = [
            field for field in (flat[0] if flat else ()) if len({of.get(field) for of in flat}) > 1
        ]
        for field in varied:
            rows = [
                {'run': seed.run, 'seed': seed.seed, 'value': of.get(field), 'top1': number(value)}
                for seed, of in zip(members, flat, strict=True)
                if (value := top1(seed, 'val')) is not None
            ]
            if rows:
                title = f'{name}: validation top-1 by {field}'
                chart = charts.swept(field)
                figures.append(Figure(f'sweep-{len(figures)}', title, chart, columns(rows), 'all'))
    return figures


def _flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, float]:
    """The numbers of a config by their paths."""
    found: dict[str, float] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f'{prefix}{name}.')
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[prefix + name] = value
    return found
