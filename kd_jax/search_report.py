"""What a search tells of its trials: their numbers in words, and as a picture."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from kd_jax.spread import mean_std


def name_of(trial: Any) -> str:
    """Of its run."""
    return f'trial{trial.number:04d}'


def entry_of(trial: Any) -> dict[str, Any]:
    """Of search.json."""
    return {'run': name_of(trial), 'params': trial.params, 'val': values_of(trial)}


def word(value: Any) -> str:
    return f'{value:.3g}' if isinstance(value, float) else str(value)


def words(params: Mapping[str, Any]) -> str:
    return ', '.join(f'{field}={word(value)}' for field, value in params.items())


def values_of(trial: Any) -> Any:
    """The validation top-1 of a trial that is complete, of each seed."""
    return trial.user_attrs.get('val', [trial.value])


def plot(path: epath.Path, space: Mapping[str, Any], trials: Sequence[Any]) -> None:
    """Validation accuracy over each number that was searched, as a PNG file."""
    numbers = [f for f in space if all(isinstance(t.params[f], float) for t in trials)]
    try:
        import matplotlib
    except ImportError:
        return
    if not numbers:
        return
    matplotlib.use('Agg')
    from matplotlib import pyplot

    size = (4 * len(numbers), 3.2)
    figure, axes = pyplot.subplots(
        1, len(numbers), figsize=size, layout='constrained', squeeze=False, sharey=True
    )
    accuracies = [mean_std([100 * value for value in values_of(t)]) for t in trials]
    values, spread = [a['mean'] for a in accuracies], [a['std'] or 0.0 for a in accuracies]
    for ax, field in zip(axes[0], numbers, strict=True):
        ax.errorbar([t.params[field] for t in trials], values, spread, fmt='o', capsize=2)
        ax.set_xlabel(field)
        if getattr(space[field], 'log', False):
            ax.set_xscale('log')
            low, high = ax.get_xlim()
            ticks = [low * (high / low) ** (k / 4) for k in range(5)]
            ax.set_xticks(ticks, [f'{tick:.2g}' for tick in ticks])
            ax.set_xticks([], minor=True)
    # A trial that went wrong would press all others into a line at the top.
    best, middle = max(values), statistics.median(values)
    floor = best - max(4 * (best - middle), 1.0)
    below = sum(value < floor for value in values)
    axes[0][0].set_ylim(bottom=floor if below else None, top=best + 0.15 * (best - floor))
    axes[0][0].set_ylabel('validation top-1 %' + (f' ({below} below)' if below else ''))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
