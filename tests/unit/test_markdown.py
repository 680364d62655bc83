"""Tables in Markdown: both sides, padded and not."""

import pytest

from kd_jax.markdown import table

HEAD, ROWS = ('run', 'top-1 %'), [('student', '9.5'), ('a', '10.25 ± 1.00')]


def test_columns_are_aligned_by_the_rule():
    lines = ['| run | top-1 % |', '| --- | ---: |', '| student | 9.5 |', '| a | 10.25 ± 1.00 |']
    assert table(HEAD, ROWS, 'lr').splitlines() == lines
    assert table(HEAD, ROWS).splitlines()[1] == '| --- | --- |'
    assert table(HEAD, ROWS, 'rr', rule='').splitlines()[1] == '|---:|---:|'


def test_padded_columns_have_equal_widths():
    assert table(HEAD, ROWS, 'lr', padded=True).splitlines() == [
        '| run     |      top-1 % |',
        '|---------|-------------:|',
        '| student |          9.5 |',
        '| a       | 10.25 ± 1.00 |',
    ]


def test_a_table_may_have_a_head_only_but_no_row_of_another_length():
    assert table(HEAD, []).splitlines() == ['| run | top-1 % |', '| --- | --- |']
    with pytest.raises(ValueError):
        table(HEAD, [('one',)])
