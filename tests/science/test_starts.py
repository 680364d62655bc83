"""Starts: a second one finds the programs of the first, a profile changes nothing, and a process
forgets programs that nobody uses.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers import SMALL
from processes import python

from kd_jax import runtime
from kd_jax.cache import VARIABLE

# `python -m kd_jax.main`, which says at its end how many programs it found in the cache.
COUNTED = """
import atexit, runpy
from jax import monitoring
hits = []
def count(event, **_):
    if event.endswith('compilation_cache/cache_hits'):
        hits.append(1)
monitoring.register_event_listener(count)
atexit.register(lambda: print('hits', len(hits)))
runpy.run_module('kd_jax.main', run_name='__main__', alter_sys=True)
"""


TINY = (*SMALL, '--only=alone', '--config.runs.alone.epochs=1.')  # 16 steps


@pytest.fixture(scope='module')
def studies(tmp_path_factory):
    """The same study three times, with one cache: {name: (hits, programs in the cache
    afterwards, run directory)}.
    """
    directory, found = tmp_path_factory.mktemp('studies'), {}
    for name, flags in {'first': (), 'second': (), 'profiled': ('--config.profile=(2,6)',)}.items():
        command = ('-c', COUNTED, *TINY, *flags, f'--workdir={directory / name}')
        out = python(*command, **{VARIABLE: str(directory / 'cache')})
        programs = {path.name for path in (directory / 'cache').glob('*/*-cache')}
        found[name] = int(out.split('hits')[-1]), programs, directory / name / 'alone' / 'seed0'
    return found


def test_a_second_start_finds_all_programs_that_the_first_one_kept(studies):
    hits, kept, _ = studies['first']
    assert hits == 0
    assert len(kept) >= 3  # training, evaluation on val, and on test: half a second each and more
    assert studies['second'][0] == len(kept)


@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='Linux counts maps')
def test_programs_that_nobody_uses_are_forgotten():
    """XLA crashes when a process has as many maps of memory as Linux
    allows; each program takes some.
    """

    def count():
        return len(Path('/proc/self/maps').read_bytes().splitlines())

    runtime.forget_programs(0)
    before = count()
    functions = [jax.jit(lambda x, k=k: jnp.sin(x) * k + jnp.cos(x @ x)) for k in range(60)]
    for function in functions:
        function(jnp.ones((3, 3)))
    made = count()
    runtime.forget_programs(made)  # allowed: nothing happens
    assert count() >= made > before + 60
    runtime.forget_programs(before)
    assert count() < before + (made - before) / 2


def outcome(directory):
    """What does not depend on the clock."""
    result = json.loads((directory / 'result.json').read_text())
    for clocked in ('seconds', 'images_per_second', 'latency_ms'):
        del result[clocked]
    return result, (directory / 'metrics.jsonl').read_text()


def test_a_profile_is_written_and_changes_nothing(studies):
    first, second, profiled = (directory for *_, directory in studies.values())
    assert outcome(first) == outcome(second) == outcome(profiled)
    for pattern in ('*.xplane.pb', 'perfetto_trace.json.gz'):
        (trace,) = (profiled / 'profile').rglob(pattern)
        assert trace.stat().st_size > 1000
    assert not (first / 'profile').exists()
