"""Every loss in a few steps on one device and on four."""

import pytest
from method_steps import NAMES, one_and_four_agree


@pytest.mark.parametrize('mode', ['pmap on 4', pytest.param('jit on 4', marks=pytest.mark.long)])
@pytest.mark.parametrize('name', NAMES)
def test_one_device_and_four_give_the_same_after_three_steps(name, mode):
    one_and_four_agree([name], mode)
