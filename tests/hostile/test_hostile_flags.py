"""Flags and names that make no sense: one sentence and exit status 2, and nothing is written."""

import pytest
from helpers import TINY
from ml_collections import ConfigDict
from refusals import refused, refused_here

from configs import common
from kd_jax import jobs

FLAGS = {
    'no processes': (['--coordinator=localhost:1234'], ['--processes']),
    'no process': (['--coordinator=localhost:1234', '--processes=2'], ['--process']),
    'the fifth of two': (['--coordinator=localhost:1234', '--processes=2', '--process=5'], ['5']),
    'before the first': (['--coordinator=localhost:1234', '--processes=2', '--process=-1'], ['-1']),
    'of none': (['--coordinator=localhost:1234', '--processes=0', '--process=0'], ['0']),
    'no port': (['--coordinator=localhost', '--processes=2', '--process=0'], ['localhost']),
    'a port in words': (
        ['--coordinator=localhost:http', '--processes=2', '--process=0'],
        ['localhost:http'],
    ),
    'a port that is none': (
        ['--coordinator=localhost:99999', '--processes=2', '--process=0'],
        ['localhost:99999'],
    ),
    'no host': (['--coordinator=:1234', '--processes=2', '--process=0'], [':1234']),
    'a process alone': (['--process=1'], ['--process']),
    'processes alone': (['--processes=2'], ['--processes']),
    'a process in words': (['--process=first'], ['first']),
    'a bucket': (['--workdir=gs://bucket/runs'], ['gs://bucket/runs']),
    'a bucket of another kind': (['--workdir=s3://bucket/runs'], ['s3://bucket/runs']),
}
NAMES = ['/tmp/outside', '../outside', 'a/b', '.', '..', '.hidden', '', ' ', 'a b', 'a\nb', 'a\0b']
NAMES += ['-x', '~', 'a' * 101, 'a\\b', 'a:b', '*', '"', 'a;b', '$HOME']


@pytest.mark.parametrize('name', FLAGS)
def test_flags(tmp_path, name):
    flags, says = FLAGS[name]
    if not any(flag.startswith('--workdir') for flag in flags):
        flags = [*flags, f'--workdir={tmp_path / "w"}']
    refused('kd_jax.main', *TINY, *flags, says=says, keeps=[tmp_path])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('kind', ['runs', 'teachers'])
@pytest.mark.parametrize('name', NAMES)
def test_names(name, kind):
    study = common.study()
    with study.unlocked():
        study[kind] = ConfigDict({name: {}}, allow_dotted_keys=True)
    refused_here(lambda: jobs.plan(study), says=[f'{name!r} cannot name a run'])


NAMED = """
from ml_collections import ConfigDict
from configs import digits

def get_config():
    config = digits.get_config()
    with config.unlocked():
        runs = {{{name!r}: config.runs.alone}}
        config.runs = ConfigDict(runs, allow_dotted_keys=True)
    return config.lock()
"""


@pytest.mark.parametrize('name', ['../outside', 'a\0b', 'a' * 101])
def test_the_name_of_a_run_of_a_command(tmp_path, name):
    config, workdir = tmp_path / 'named.py', tmp_path / 'w'
    config.write_text(NAMED.format(name=name))
    flags = (f'--config={config}', f'--workdir={workdir}')
    refused('kd_jax.main', *flags, says=[f'{name!r} cannot name a run'], keeps=[tmp_path])
    assert not workdir.exists()


@pytest.mark.parametrize('name', ['a', 'teacher_2', 'kl.tau=1,4', 'lr=1e-3', 'Lehrer', '老师', '3'])
def test_sensible_names(name):
    jobs._check_name(name)
