"""Strict where users are not: four fake CPU devices, rank promotion raises, warnings are
errors, one compilation cache.

Nearly all of a test's time is the compiler's: programs, those of the commands it starts too, are
compiled without most of its optimisations (unless JAX_DISABLE_MOST_OPTIMIZATIONS=0 is set) and
without XLA's newer fusions for CPUs, which take three times as long. A test of what optimisations
do takes the fixture `optimised`.

When a worker process crashes, the end of the report says where: what its threads were doing is
otherwise lost in the output.
"""

import faulthandler
import gc
import itertools
import os
import tempfile
from functools import partial
from pathlib import Path

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=4'
)
os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
# That of a fresh clone is cold.
os.environ.setdefault(
    'JAX_COMPILATION_CACHE_DIR', str(Path(__file__).parent.parent / '.cache' / 'programs')
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')

import jax
import pytest

from kd_jax import models, runtime

gc.disable()  # until all is collected: nothing of that is garbage
jax.config.update('jax_numpy_rank_promotion', 'raise')


TESTS = itertools.count(1)


@pytest.fixture(autouse=True)
def few_programs():
    """Thousands of programs would stay in a worker; to count them takes a while."""
    yield
    if next(TESTS) % 20 == 0:
        runtime.forget_programs()


@pytest.fixture
def optimised(monkeypatch):
    """Programs, those of commands too, are compiled as a user's are; those
    compiled before are not used.
    """
    before = jax.config.read('jax_disable_most_optimizations')
    monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '0')
    jax.config.update('jax_disable_most_optimizations', False)
    jax.clear_caches()
    yield
    jax.config.update('jax_disable_most_optimizations', before)
    jax.clear_caches()


@pytest.fixture
def tiny_model(monkeypatch):
    """`Tiny` is in the table of models, as `tiny`."""
    from tiny_model import Tiny  # not before assertions are rewritten

    monkeypatch.setitem(models.MODELS, 'tiny', partial(Tiny))


# Assertions of what tests share say what they saw, too.
pytest.register_assert_rewrite(*(path.stem for path in Path(__file__).parent.glob('*.py')))
pytest_plugins = ['cpu_time']
SLOW_TIERS = ('zoo', 'science')


def pytest_collection_finish():
    """What was imported and collected stays; collections of garbage need not look at it, nor come
    often: tracing allocates much that lives on.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    gc.enable()


def pytest_collection_modifyitems(items):
    """A tier is a folder; all tests of some are slow, but for those that are `long`."""
    for item in items:
        if item.path.parent.name in SLOW_TIERS and not item.get_closest_marker('long'):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)  # after pytest's own, which writes to stderr
def pytest_configure(config):
    worker = os.environ.get('PYTEST_XDIST_WORKER')
    if not hasattr(config, 'workerinput'):  # pytest started in a test is no worker
        config.crashes = os.environ['KD_JAX_CRASHES'] = tempfile.mkdtemp(prefix='kd_jax_crashes_')
    else:
        path = Path(os.environ['KD_JAX_CRASHES'], f'{worker}-{os.getpid()}')
        config.crash_file = path.open('w')
        faulthandler.enable(config.crash_file)


def pytest_terminal_summary(terminalreporter, config):
    for path in sorted(Path(config.crashes).iterdir()):
        dull = ('Extension modules', '/_pytest/', '/pluggy/', '/xdist/', '/execnet/')
        lines = [
            line for line in path.read_text().splitlines() if not any(word in line for word in dull)
        ]
        if lines:
            terminalreporter.section(f'worker {path.name} crashed')
            for line in lines[:40]:
                terminalreporter.line(line)
