"""Flags and names that make no sense: one sentence and exit status 2, and nothing is written."""

import pytest
from helpers import TINY, assert_refused, run_main
from ml_collections import ConfigDict

from configs import common
from kd_jax import jobs
from kd_jax.errors import UserError

FLAGS = {
    'no processes': ['--coordinator=localhost:1234'],
    'no process': ['--coordinator=localhost:1234', '--processes=2'],
    'the fifth of two': ['--coordinator=localhost:1234', '--processes=2', '--process=5'],
    'before the first': ['--coordinator=localhost:1234', '--processes=2', '--process=-1'],
    'of none': ['--coordinator=localhost:1234', '--processes=0', '--process=0'],
    'no port': ['--coordinator=localhost', '--processes=2', '--process=0'],
    'a port in words': ['--coordinator=localhost:http', '--processes=2', '--process=0'],
    'a port that is none': ['--coordinator=localhost:99999', '--processes=2', '--process=0'],
    'no host': ['--coordinator=:1234', '--processes=2', '--process=0'],
    'a process alone': ['--process=1'],
    'processes alone': ['--processes=2'],
    'a process in words': ['--process=first'],
    'a bucket': ['--workdir=gs://bucket/runs'],
    'a bucket of another kind': ['--workdir=s3://bucket/runs'],
}
NAMES = ['/tmp/outside', '../outside', 'a/b', '.', '..', '.hidden', '', ' ', 'a b', 'a\nb', 'a\0b']
NAMES += ['-x', '~', 'a' * 101, 'a\\b', 'a:b', '*', '"', 'a;b', '$HOME']


@pytest.mark.parametrize('name', FLAGS)
def test_flags(tmp_path, name):
    flags = FLAGS[name]
    if not any(flag.startswith('--workdir') for flag in flags):
        flags = [*flags, f'--workdir={tmp_path / "w"}']
    assert_refused(run_main(*TINY, *flags))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('kind', ['runs', 'teachers'])
@pytest.mark.parametrize('name', NAMES)
def test_names(name, kind):
    study = common.study()
    with study.unlocked():
        study[kind] = ConfigDict({name: {}}, allow_dotted_keys=True)
    with pytest.raises(UserError, match='cannot name a run') as caught:
        jobs.plan(study)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['a', 'teacher_2', 'kl.tau=1,4', 'lr=1e-3', 'Lehrer', '老师', '3'])
def test_sensible_names(name):
    jobs._check_name(name)
