"""Whatever a step can do, together: the same on one device and on four, under jit and pmap, and
resumed; or one sentence.
"""

import itertools

import pytest
from combinations import PAIRS, REFUSED, REST, TOGETHER, check, configured
from helpers import random_splits
from steps import start

from kd_jax.errors import UserError

pytestmark = pytest.mark.usefixtures('tiny_model')


def test_every_pair_is_together_somewhere_or_refused():
    together, rest = (
        {pair for names in several for pair in itertools.combinations(names, 2)}
        for several in (TOGETHER, REST)
    )
    assert together | rest | set(REFUSED) == set(PAIRS)
    assert not (together | rest) & set(REFUSED)
    assert len(together) > 0.8 * len(together | rest)


@pytest.mark.parametrize('names', REFUSED, ids=' + '.join)
def test_what_does_not_go_together_is_one_sentence_before_the_first_step(names, tmp_path):
    with pytest.raises(UserError, match=REFUSED[names]) as caught:
        start(configured(names), random_splits(unlabelled=20), workdir=tmp_path)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('names', TOGETHER, ids=', '.join)
def test_they_agree_on_all_devices_and_resume(names, tmp_path):
    check(names, tmp_path)
