"""Each pair of what a step can do, alone; and more of it together than the fast tests have."""

import pytest
from combinations import PAIRS, REFUSED, REST, check

pytestmark = pytest.mark.usefixtures('tiny_model')


@pytest.mark.long
@pytest.mark.parametrize('names', [pair for pair in PAIRS if pair not in REFUSED], ids=' + '.join)
def test_they_agree_on_all_devices_and_resume(names, tmp_path):
    check(names, tmp_path)


@pytest.mark.parametrize('names', REST, ids=', '.join)
def test_what_the_fast_tests_leave_out(names, tmp_path):
    check(names, tmp_path)
