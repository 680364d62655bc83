"""Means with their spread, as numbers and as text."""

import statistics

import numpy as np
import pytest

from kd_jax.spread import mean_std, percent, with_spread


def test_the_spread_is_the_samples_and_one_value_has_none():
    assert mean_std([1.0, 2.0, 6.0]) == {'mean': 3.0, 'std': pytest.approx(7**0.5), 'n': 3}
    assert mean_std([5.0]) == {'mean': 5.0, 'std': None, 'n': 1}
    assert with_spread(mean_std([1.0, 2.0, 6.0])) == '3.00 ± 2.65'
    assert with_spread({'mean': 12345.678, 'std': None}, 1, '+') == '+12,345.7'


def test_shares_in_percent_are_rounded_once():
    assert percent([0.5]) == '50.00'
    assert percent([0.5, 0.75]) == '62.50 ± 17.68'
    rng = np.random.default_rng(0)
    for _ in range(200):  # accuracies on 2000 images
        values = [float(k) / 2000 for k in rng.integers(1000, 2000, 2)]
        assert (
            percent(values)
            == f'{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f}'
        )
