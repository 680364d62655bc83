"""The profile of a run."""

import json
import os
import subprocess
import sys

import pytest
from helpers import REPOSITORY, SMALL

from kd_jax import runtime

SET = (
    'XLA_FLAGS',
    'JAX_COMPILATION_CACHE_DIR',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS',
    'JAX_NUM_CPU_DEVICES',
)


def python(*arguments, **extra):
    """stdout of a process without what the tests and the user set for JAX."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in (*SET, runtime.CACHE_VARIABLE)
    }
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=REPOSITORY,
        env=environment | extra,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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
        out = python(*command, **{runtime.CACHE_VARIABLE: str(directory / 'cache')})
        programs = {path.name for path in (directory / 'cache').glob('*/*-cache')}
        found[name] = int(out.split('hits')[-1]), programs, directory / name / 'alone' / 'seed0'
    return found


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
