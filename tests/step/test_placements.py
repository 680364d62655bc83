"""Where the images of a run lie makes no difference to what it learns."""

import jax
import numpy as np
import pytest
from PIL import Image
from steps import largest_difference, run_of, start, train

from kd_jax import data as data_lib
from kd_jax import evaluation, placement
from kd_jax.data import ArraySource
from kd_jax.data.columns import Sharded
from kd_jax.parallel import Parallel, shards

LABELS = {'cross_entropy': {'weight': 1.0}}
STEPS = 20


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """60 pictures of three classes, all of 12 x 12 pixels."""
    root, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for k in range(60):
        folder = root / f'class {k % 3}'
        folder.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'{k}.png')
    return root


def learned(fields, mode, devices=1, **changes):
    """(state after 20 steps, losses, validation, where the images lay)."""
    config = run_of(
        {f'data.{name}': value for name, value in fields.items()} | {'epochs': 8.0} | changes,
        LABELS,
        {'crop': 2, 'flip': True, 'mixup': 0.5},
    )
    executor, _ = start(config, data_lib.load(config.data), mode, devices, steps=4)
    try:
        metrics = train(executor, (4,) * (STEPS // 4))
        states = [jax.device_get(state) for state in executor.states()]
        val = [evaluation.finish(sums) for sums in executor.evaluate('val')]
    finally:
        executor.placement.close()
    return states, metrics, val, executor.run.images.placement


@pytest.fixture(scope='module')
def folder(root):
    return {'source': 'folder', 'path': str(root), 'cache': 'off', 'test_share': 0.2}


@pytest.fixture(scope='module')
def resident(folder):
    return learned(folder, 'jit')


def test_images_from_the_host_teach_the_same(folder, resident):
    """What is decoded once and what is decoded each time, bit for bit; images that lie on the
    device are read by another program.
    """
    *host, lay = learned(folder | {'placement': 'host'}, 'jit')
    *stream, flowed = learned(folder | {'placement': 'stream'}, 'jit')
    assert (resident[-1], lay, flowed) == ('resident', 'host', 'stream')
    assert largest_difference(host, stream) == 0
    assert largest_difference(host, list(resident[:-1])) <= 2e-5


@pytest.mark.parametrize(
    'where, mode, steps',
    [('stream', 'pmap', 4), ('sharded', 'pmap', 4), ('sharded', 'jit', 4)],
)
def test_several_devices_learn_the_same_from_parts(folder, resident, where, mode, steps):
    *found, lay = learned(folder | {'placement': where}, mode, steps)
    assert lay == where
    for one, other in zip(found, resident, strict=False):
        assert largest_difference(one, other) <= 2e-5


def test_a_sweep_learns_the_same_from_a_stream(folder):
    sweep = {'sweep': 'optim.learning_rate=0.01,0.05'}
    *known, _ = learned(folder, 'pmap', 2, **sweep)
    *found, _ = learned(folder | {'placement': 'stream'}, 'pmap', 2, **sweep)
    assert largest_difference(found, known) == 0


@pytest.mark.parametrize('mode', ['jit', 'pmap'])
def test_each_device_gets_the_rows_that_it_asks_for(mode):
    """Of 10 rows on 4 devices, which two devices have less than a part of."""
    parallel, column = Parallel(mode, 4), np.arange(20, dtype=np.uint8).reshape(10, 2)
    arrays = Sharded({'image': shards(parallel, column)}, parallel.axis_name)
    assert {piece.data.size for piece in arrays.columns['image'].addressable_shards} == {6}
    asked = np.array([9, 0, 3, 3, 8, 7, 2, 5], np.int32)

    def sums(arrays, batch):
        rows = arrays.take('image', batch['index']).astype(np.int32)
        total = (rows * batch['weight'][:, None]).sum(0)
        return jax.lax.psum(total, parallel.axis_name) if parallel.axis_name else total

    step = parallel.compile(sums, 'float32', arguments=2, sharded=0)
    for place in range(8):  # a row at each place
        weight = (np.arange(8) == place).astype(np.int32)
        found = step(arrays, parallel.divide({'index': asked, 'weight': weight}))
        np.testing.assert_array_equal(found, column[asked[place]])


def test_images_lie_where_they_fit(monkeypatch):
    array = ArraySource(np.zeros((100, 4, 4, 1), np.uint8), np.zeros(100, np.int32))
    info = data_lib.DatasetInfo('some', 2, ('a', 'b'), (4, 4, 1), (0.5,), (0.1,))
    dataset, parallel = data_lib.Dataset(info, array, array, array), Parallel('pmap', 4)
    assert placement.nbytes(dataset) == 4800
    for free, where in ((2 * 4 * 4800, 'resident'), (8 * 4800 - 1, 'sharded'), (9599, 'host')):
        monkeypatch.setattr(placement, 'free_memory', lambda _, free=free: free)
        assert placement.choose(dataset, 'auto', parallel) == where
        assert placement.choose(dataset, 'host', parallel) == 'host'
