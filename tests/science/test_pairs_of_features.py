"""Each pair of what a step can do, alone."""

import pytest
from combinations import PAIRS, REFUSED, SWEPT_TOO, check


@pytest.mark.long
@pytest.mark.parametrize('names', [pair for pair in PAIRS if pair not in REFUSED], ids=' + '.join)
def test_they_agree_on_all_devices_and_resume(names, tmp_path):
    check(names, tmp_path)


def test_a_sweep_with_peers_and_mixtures(tmp_path):
    check(SWEPT_TOO, tmp_path)
