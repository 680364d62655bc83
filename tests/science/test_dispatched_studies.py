"""What changes the speed of a study and nothing else: dispatches, overlap, fast forms."""

import json

import flax
import numpy as np
import pytest
from dispatches import CHANGES, DEEP, dispatched, executor_of
from helpers import FAST_COMPILE, random_splits, save_npz
from steps import largest_difference
from studies import config_of, final_params, train

from kd_jax import executors, parallel
from kd_jax.checkpoint import load_variables
from kd_jax.parallel import Parallel


@pytest.fixture(autouse=True)
def quickly_compiled(monkeypatch):
    """With the options of a run and those that compile fast: the order of the sums is
    what is tested, not their speed.
    """
    options = parallel._options
    monkeypatch.setattr(parallel, '_options', lambda of: (options(of) or {}) | FAST_COMPILE)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return save_npz(tmp_path_factory.mktemp('data') / 'three.npz', random_splits())


def studied(data, workdir, *, steps_per_dispatch=0, fast=True, **changes):
    """A whole study of one run on one device: (parameters at its end, its
    metrics.jsonl, its result without clocks).
    """
    config = config_of(data, alone=(None, CHANGES | {'select': 'last'} | changes))
    config.steps_per_dispatch, config.fast, config.devices = steps_per_dispatch, fast, 1
    (result,) = train(config, workdir).values()
    for clocked in ('seconds', 'images_per_second', 'latency_ms'):
        del result[clocked]
    lines = (workdir / 'alone/seed0/metrics.jsonl').read_text().splitlines()
    return final_params(workdir, 'alone'), [json.loads(line) for line in lines], result


# 5, 10, 15, 20 and 24: no multiples of a dispatch
UNEVEN = {'eval_every': 5 / 3, 'epochs': 8.0}


def places(lines):
    return [(line['step'], line['split']) for line in lines]


def test_a_study_is_the_same_with_any_number_of_steps_in_a_dispatch(data, tmp_path):
    one, four, seven = (
        studied(data, tmp_path / str(n), steps_per_dispatch=n, **UNEVEN) for n in (1, 4, 7)
    )
    assert places(one[1]) == [
        (step, split) for step in (5, 10, 15, 20, 24) for split in ('train', 'val')
    ]
    for params, lines, result in (four, seven):
        assert largest_difference(params, one[0]) <= 1e-5
        assert places(lines) == places(one[1])
        for line, other in zip(lines, one[1], strict=True):
            assert line == pytest.approx(other, abs=1e-5)
        assert result['test'] == pytest.approx(one[2]['test'], abs=1e-5)
        assert (result['steps'], result['checkpoint']) == (24, 24)


def test_without_what_is_fast_on_a_cpu_training_is_the_same(data, tmp_path):
    """A whole study without BatchNorm, and a few steps with it: another program, the same sums."""
    params, lines, result = studied(data, tmp_path / 'fast', **UNEVEN)
    plain_params, plain_lines, plain_result = studied(
        data, tmp_path / 'plain', fast=False, **UNEVEN
    )
    assert 0 < largest_difference(params, plain_params) <= 1e-4
    assert places(lines) == places(plain_lines)
    assert [line['loss'] for line in lines[::2]] == pytest.approx(
        [line['loss'] for line in plain_lines[::2]], abs=1e-4
    )
    assert result['test']['nll'] == pytest.approx(plain_result['test']['nll'], abs=1e-4)
    (state, history), (plain_state, plain_history) = (
        dispatched(
            executor_of(Parallel('jit', 1, fast=fast), steps, **DEEP), [steps] * (4 // steps)
        )
        for fast, steps in ((True, 4), (False, 1))
    )
    assert 0 < largest_difference((state, history), (plain_state, plain_history)) <= 1e-4


@pytest.mark.parametrize('select', ['last', 'best'])
def test_training_on_during_a_validation_changes_no_bit(data, tmp_path, monkeypatch, select):
    """What is written down is what was known at the validation, though the
    next steps reuse its buffers.
    """
    found, initialise = {}, executors.DataParallel.__init__
    for overlap in (False, True):

        def overlapping(self, *arguments, overlap=overlap):
            initialise(self, *arguments)
            self.overlap = overlap

        monkeypatch.setattr(executors.DataParallel, '__init__', overlapping)
        workdir = tmp_path / str(overlap)
        _, lines, result = studied(data, workdir, **UNEVEN, select=select)
        directory = workdir / 'alone/seed0'
        steps = sorted(
            int(path.name) for path in (directory / 'checkpoints').iterdir() if path.name.isdigit()
        )
        saved = [
            flax.traverse_util.flatten_dict(load_variables(directory, step), sep='/')
            for step in steps
        ]
        found[overlap] = lines, result, steps, saved
    assert found[False][:3] == found[True][:3]
    assert found[True][2][-2:] == [20, 24]
    for one, other in zip(found[False][3], found[True][3], strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
