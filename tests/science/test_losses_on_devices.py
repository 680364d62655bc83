"""Losses that look across the batch or keep something, all at once in a few steps; tests/science
has every loss by itself.
"""

from method_steps import one_and_four_agree


def test_one_device_and_four_give_the_same_after_three_steps():
    one_and_four_agree(['crd', 'dist', 'ofd'], 'pmap on 4', 'cnn')
