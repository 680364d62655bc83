"""What is set once for a process: compilation cache, memory, cores as devices,
profile; and the flags that say so.
"""

import json
import os
import platform
from pathlib import Path

import jax
import pytest
from helpers import SMALL, run_main
from processes import python

from kd_jax import runtime
from kd_jax.cache import VARIABLE
from kd_jax.errors import UserError


def test_the_cache_is_where_the_user_says_or_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, 'off')
    assert runtime.cache_directory() is None
    monkeypatch.setenv(VARIABLE, str(tmp_path / 'given'))
    assert runtime.cache_directory().parent == tmp_path / 'given'
    monkeypatch.setenv(VARIABLE, '~/given')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert runtime.cache_directory().parent == tmp_path / 'given'
    monkeypatch.setenv(VARIABLE, '')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert runtime.cache_directory().parent == tmp_path / 'xdg' / 'kd_jax'
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delenv('XDG_CACHE_HOME')
    assert runtime.cache_directory().parent == tmp_path / '.cache' / 'kd_jax'


def test_each_kind_of_processor_has_a_cache_of_its_own(monkeypatch):
    """The kind is what the processor can do, not its clock or which core was asked."""

    def name(info, machine='x86_64'):
        def read(path):
            assert path == Path('/proc/cpuinfo')
            if info is None:
                raise FileNotFoundError(path)
            return info

        with monkeypatch.context() as patch:
            patch.setattr(Path, 'read_text', read)
            patch.setattr(platform, 'machine', lambda: machine)
            return runtime.cache_directory().name

    old, new = (
        'cpu MHz\t\t: {}\nflags\t\t: fpu avx\n',
        'cpu MHz\t\t: {}\nflags\t\t: fpu avx avx512f\n',
    )
    assert name(old.format(2000)) == name(old.format(3000)) == name(old.format(1) * 4)
    arm = 'Features\t: fp asimd\n'
    kinds = [
        (old, 'x86_64'),
        (new, 'x86_64'),
        (None, 'x86_64'),
        (None, 'arm64'),
        (arm, 'aarch64'),
        (arm + 'sve', 'aarch64'),
    ]
    names = [name(*kind) for kind in kinds]
    assert len(set(names)) == 5  # Arm's second core is the same machine's
    assert [n.rsplit('-', 1)[0] for n in names] == [machine for _, machine in kinds]


# Each line of its input in a process of its own, forked before JAX has a device.
PREPARED = """
import ctypes, json, os, platform, sys, types
import jax
from kd_jax import runtime
memory = []
ctypes.CDLL = lambda name: types.SimpleNamespace(mallopt=lambda *pair: memory.append(pair))
for line in sys.argv[1:]:
    if os.fork():
        status = os.wait()[1]
        if status:
            sys.exit(os.waitstatus_to_exitcode(status))
        continue
    cores, libc, arguments, environment = json.loads(line)
    os.environ.update(environment)
    runtime.cores = lambda: cores
    platform.libc_ver = lambda: (libc, '')
    before = jax.config.jax_num_cpu_devices
    runtime.prepare(**arguments)
    asked = jax.config.jax_num_cpu_devices
    cache = jax.config.jax_compilation_cache_dir
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    found = [None if asked == before else asked, len(jax.devices()), len(memory), cache, least]
    print(json.dumps(found), flush=True)
    os._exit(0)
"""


def prepared(*ways, **extra):
    """Of each of `ways` the state after `runtime.prepare`: (CPU devices that it asked for, devices,
    settings of the allocator, cache, its threshold). extra: environment before JAX is imported.
    """
    lines = [
        json.dumps(
            [
                way.get('cores', 3),
                way.get('libc', 'glibc'),
                way.get('arguments', {}),
                way.get('environment', {}),
            ]
        )
        for way in ways
    ]
    return [json.loads(line) for line in python('-c', PREPARED, *lines, **extra).splitlines()]


COUNT = '--xla_force_host_platform_device_count=2'


def test_cores_become_devices_and_memory_is_kept_unless_the_user_says_otherwise(tmp_path):
    ways = [
        ({}, (3, 3, 4)),
        ({'cores': 11}, (8, 8, 4)),
        ({'libc': ''}, (3, 3, 0)),
        ({'environment': {'XLA_FLAGS': '--xla_cpu_enable_fast_math=false'}}, (3, 3, 4)),
        ({'environment': {'XLA_FLAGS': COUNT}}, (None, 2, 4)),
        ({'arguments': {'single_process': False}}, (None, 1, 4)),
        ({'arguments': {'fast': False}}, (None, 1, 0)),
        ({'environment': {VARIABLE: 'off'}}, (3, 3, 4)),
    ]
    cache = {VARIABLE: str(tmp_path)}
    states = prepared(*(how for how, _ in ways), **cache)
    for (how, expected), (*found, cache, threshold) in zip(ways, states, strict=True):
        assert tuple(found) == expected, how
        if VARIABLE in how.get('environment', {}):
            assert cache is None
        else:
            assert (Path(cache).parent, threshold) == (tmp_path, 0.1)


def test_what_jax_was_given_stays(tmp_path):
    own = {
        'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'own'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '7',
        'JAX_NUM_CPU_DEVICES': '5',
        VARIABLE: str(tmp_path / 'other'),
    }
    (found,) = prepared({}, **own)
    assert found == [None, 5, 4, str(tmp_path / 'own'), 7]


def test_cores_are_those_the_process_may_use(monkeypatch):
    assert runtime.cores() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 5, 6})
    assert runtime.cores() == 3
    monkeypatch.delattr(os, 'sched_getaffinity')
    monkeypatch.setattr(os, 'cpu_count', lambda: 7)
    assert runtime.cores() == 7


TINY = (*SMALL, '--only=alone', '--config.runs.alone.epochs=1.')  # 16 steps


def test_a_trace_takes_whole_dispatches_and_ends_with_the_run(tmp_path, monkeypatch):
    """Steps 2 to 6 of a run that dispatches 4 at a time, and of one that ends before."""
    events = []
    monkeypatch.setattr(jax.profiler, 'start_trace', lambda *_, **__: events.append('start'))
    monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: events.append('stop'))
    for steps, expected in (
        ((0, 4, 8, 12), [0, 4, 'start', 8, 'stop', 12]),
        ((0, 3, 5), [0, 3, 'start', 5, 'stop']),
        ((6, 10), [6, 10]),
    ):
        events.clear()
        with runtime.Trace(tmp_path, (2, 6)) as trace:
            for step in steps:
                events.append(step)
                trace.at(step)
        assert events == expected


def test_a_second_profiler_is_refused(tmp_path):
    message = r'^the profiler cannot start \(.*\); set --config.profile="\(\)"$'
    with jax.profiler.trace(str(tmp_path / 'other')), pytest.raises(UserError, match=message):
        runtime.Trace(tmp_path / 'own', (0, 2)).at(0)


@pytest.mark.parametrize(
    ('flag', 'message'),
    [
        (
            'profile=(6,2)',
            (
                'profile is (6, 2); it must be two step numbers, such as '
                '--config.profile="(10,20)", or "()"'
            ),
        ),
        (
            'profile=(1,2,3)',
            (
                'profile is (1, 2, 3); it must be two step numbers, such as '
                '--config.profile="(10,20)", or "()"'
            ),
        ),
        (
            'steps_per_dispatch=-1',
            'steps_per_dispatch is -1; it must be 0 (the usual number) or more',
        ),
        (
            'devices=99',
            'devices is 99; it must be 0 (all) or at most 2, which is how many there are',
        ),
        ('precision=fp8', "unknown value of precision 'fp8'; known: bfloat16, float32, tf32"),
    ],
    ids=lambda value: value.split()[0],
)
def test_bad_values_are_refused_in_one_sentence(tmp_path, flag, message):
    done = run_main(*TINY, f'--config.{flag}', f'--workdir={tmp_path / "w"}', devices=2)
    assert (done.returncode, done.stderr) == (2, f'error: {message}\n')
    assert not (tmp_path / 'w').exists()
