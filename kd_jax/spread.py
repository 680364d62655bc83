"""Means over seeds with their spread, as numbers and as text."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np


class Spread(TypedDict):
    mean: float
    std: float | None  # the sample's; None for one value
    n: int


def mean_std(values: Sequence[float]) -> Spread:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {'mean': float(np.mean(values)), 'std': std, 'n': len(values)}


def with_spread(value: Mapping[str, Any], digits: int = 2, sign: str = '') -> str:
    """`14.32 ± 1.20`: what `mean_std` gives, as text."""
    text = f'{value["mean"]:{sign},.{digits}f}'
    std = value.get('std')
    return text if std is None else f'{text} ± {std:.{digits}f}'


def percent(values: Sequence[float]) -> str:
    """Shares (0 … 1) as text in percent.

    Rounded once only: accuracies often lie halfway between two hundredths of a percent.
    """
    std = 100 * statistics.stdev(values) if len(values) > 1 else None
    return with_spread({'mean': 100 * statistics.mean(values), 'std': std})
