"""The training order and the evaluation batches: every element as often as
promised, from the step number alone.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kd_jax.data.batches import TrainOrder, eval_batches
from kd_jax.errors import UserError


def draws(order, steps, start=0):
    """The first steps of an order, concatenated."""
    batches = [order.at(step) for step in range(start, start + steps)]
    return np.concatenate([batch['index'] for batch in batches]), np.concatenate(
        [batch['view'] for batch in batches]
    )


@pytest.mark.parametrize('size, batch', [(12, 4), (10, 4), (10, 3), (7, 7), (3, 8), (1, 5), (5, 1)])
def test_each_pass_draws_every_element_of_the_pool_once(size, batch):
    pool = np.arange(size) * 3 + 100
    index, view = draws(TrainOrder(pool, size, batch, seed=0), 6 * size)
    for number in range(len(index) // size):
        part = slice(number * size, (number + 1) * size)
        assert sorted(index[part]) == pool.tolist()
        assert (view[part] == number).all()
    assert len(set(zip(index, view, strict=True))) == len(index)


@pytest.mark.parametrize('size, batch, repeats', [(12, 6, 3), (10, 7, 3), (5, 8, 2), (1, 4, 3)])
def test_repeats_stand_side_by_side_and_each_is_another_view(size, batch, repeats):
    pool = np.arange(size) * 3 + 100
    once = TrainOrder(pool, size, batch, seed=5)
    order = TrainOrder(pool, size, batch, seed=5, repeats=repeats)
    assert order.steps_per_epoch == once.steps_per_epoch
    steps = 20 + 4 * size * repeats // batch
    index, view = draws(order, steps)
    images, passes = (x[: -(-len(index) // repeats)] for x in draws(once, steps))
    np.testing.assert_array_equal(index, images.repeat(repeats)[: len(index)])
    np.testing.assert_array_equal(view // repeats, passes.repeat(repeats)[: len(index)])
    assert len(set(zip(index, view, strict=True))) == len(index)
    for step in (17, 3, 0):
        other = TrainOrder(pool, size, batch, seed=5, repeats=repeats).at(step)
        np.testing.assert_array_equal(other['index'], index[step * batch : (step + 1) * batch])
        np.testing.assert_array_equal(other['view'], view[step * batch : (step + 1) * batch])
        assert other['view'].dtype == np.int32


def test_batches_have_one_shape_and_type():
    batch = TrainOrder(np.arange(10), 10, 4, seed=0).at(2)  # straddles two passes
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        'index': ((4,), 'int32'), 'view': ((4,), 'int32')
    }  # fmt: skip
    assert batch['view'].tolist() == [0, 0, 1, 1]


def test_a_pass_is_numpy_s_permutation_of_the_pool():
    pool = np.array([5, 3, 9, 1, 7])
    index, _ = draws(TrainOrder(pool, 5, 5, seed=4), 3)
    for number in range(3):
        expected = np.random.Generator(np.random.PCG64([4, number])).permutation(pool)
        np.testing.assert_array_equal(index[5 * number : 5 * number + 5], expected)


@pytest.mark.parametrize('start', [0, 1, 7, 31, 1000])
def test_an_order_resumed_at_a_step_goes_on_as_if_never_stopped(start):
    whole, resumed = (TrainOrder(np.arange(23), 23, 5, seed=1) for _ in range(2))
    for step in range(start):
        whole.at(step)
    for a, b in zip(draws(whole, 20, start), draws(resumed, 20, start), strict=True):
        np.testing.assert_array_equal(a, b)


def test_steps_may_be_asked_for_in_any_order():
    order = TrainOrder(np.arange(11), 11, 4, seed=2)
    forward = [order.at(step)['index'].tolist() for step in range(20)]
    backward = [order.at(step)['index'].tolist() for step in reversed(range(20))]
    assert forward == backward[::-1]
    assert order.at(np.int32(3))['index'].tolist() == forward[3]


def test_a_batch_may_be_changed_without_harm():
    order = TrainOrder(np.arange(8), 8, 8, seed=0)
    before = order.at(0)['index'].copy()
    order.at(0)['index'][:] = -7
    np.testing.assert_array_equal(order.at(0)['index'], before)


def test_the_order_depends_on_the_seed_and_differs_between_passes():
    first, second = (draws(TrainOrder(np.arange(100), 100, 10, seed), 20)[0] for seed in (0, 1))
    assert first.tolist() != second.tolist()
    assert first[:100].tolist() != first[100:].tolist()


def test_an_epoch_is_counted_in_the_size_given():
    assert TrainOrder(np.arange(10), 10, 4, 0).steps_per_epoch == 2.5
    assert TrainOrder(np.arange(10), 50000, 128, 0).steps_per_epoch == 390.625


def test_late_steps_are_exact():
    order = TrainOrder(np.arange(10), 10, 4, seed=0)
    batch = order.at(2_000_000_001)  # draws 8000000004 ... 7: beyond 32 bits
    assert batch['view'].tolist() == [800_000_000] * 4
    expected = np.random.Generator(np.random.PCG64([0, 800_000_000])).permutation(10)[4:8]
    np.testing.assert_array_equal(batch['index'], expected)


def test_bad_sizes_are_refused():
    for pool in ([], [1, 1], [[1], [2]]):
        with pytest.raises(ValueError, match='pool'):
            TrainOrder(np.array(pool), 10, 4, 0)
    with pytest.raises(ValueError, match='epoch_size'):
        TrainOrder(np.arange(3), 0, 4, 0)
    with pytest.raises(UserError, match='batch size is 0'):
        TrainOrder(np.arange(3), 3, 0, 0)
    with pytest.raises(UserError, match='seed is -1'):
        TrainOrder(np.arange(3), 3, 1, -1)
    for repeats in (0, 4, 9):
        with pytest.raises(UserError, match=f'repeats is {repeats} in batches of 4; .* take fewer'):
            TrainOrder(np.arange(9), 9, 4, 0, repeats)
    with pytest.raises(UserError, match='batch size is -2'):
        list(eval_batches(3, -2))


@pytest.mark.parametrize(
    'count, batch, batches', [(10, 4, 3), (8, 4, 2), (3, 8, 1), (1, 1, 1), (0, 4, 0)]
)
def test_evaluation_sees_every_example_once(count, batch, batches):
    found = list(eval_batches(count, batch))
    assert len(found) == batches
    seen = []
    for one in found:
        assert one['index'].shape == one['mask'].shape == (batch,)
        assert one['index'].dtype == np.int32 and one['mask'].dtype == np.float32
        assert set(one['mask']) <= {0.0, 1.0}
        assert (one['index'][one['mask'] == 0] == 0).all()
        seen += one['index'][one['mask'] == 1].tolist()
    assert seen == list(range(count))


def test_threads_may_share_an_order():
    """Also where they want other passes than those that are kept."""
    order, alone = (TrainOrder(np.arange(50), 50, 20, seed=1) for _ in range(2))
    expected = [alone.at(step)['index'] for step in range(2000)]
    steps = np.random.default_rng(0).permutation(2000).tolist()
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda step: order.at(step)['index'], steps))
    finally:
        sys.setswitchinterval(usual)
    for step, index in zip(steps, found, strict=True):
        np.testing.assert_array_equal(index, expected[step])
