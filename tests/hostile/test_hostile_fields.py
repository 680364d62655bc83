"""Every field of a study with values that make no sense: a sentence, or a check that ends soon."""

import signal
from functools import partial

import flax
import pytest
from helpers import SMALL, random_splits, save_npz
from refusals import refused, refused_here, refused_or_taken
from studies import config_of

from configs import common
from kd_jax import study

INF, NAN = float('inf'), float('nan')
VALUES = {
    'not a number': NAN,
    'infinite': -INF,
    'beyond float32': 1e300,
    'beyond int32': 2**31,
    'thirty digits': 10**30,
    'below zero': -1,
    'a billion': 1e9,
    'true': True,
    'text': 'x',
    'nothing': '',
    'lines': '\n',
    'a zero byte': '\0',
    'bytes': b'x',
    'a mapping': {'a': 1},
    'a list of lists': [[1]],
    'not a number, in a tuple': (NAN,),
    'true, in a tuple': (True,),
    'text, in a tuple': ('x',),
    'thirty digits, in a tuple': (10**30,),
}
PATHS = [
    path
    for path in flax.traverse_util.flatten_dict(
        config_of('none', student=(common.distillation(), {'teachers': ('teacher',)})).to_dict(),
        sep='.',
    )
    if not path.startswith('data.') and path != 'wandb'
]


class TooLong(BaseException):
    pass


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return save_npz(tmp_path_factory.mktemp('data') / 'three.npz', random_splits())


def stop(*_):
    raise TooLong


def study_with(data, path, value):
    config = config_of(
        data,
        teacher=(None, {}),
        student=(common.distillation(), {'teachers': ('teacher',)}),
    )
    config.unlock()
    *above, last = path.split('.')
    node = config
    for name in above:
        node = node[name]
    with config.ignore_type():
        node[last] = value
    return config


def check(config, workdir):
    study.Study(config, workdir).check()


@pytest.mark.parametrize('path', PATHS)
def test_a_field(data, tmp_path, path):
    """What is refused is refused by a sentence with the field's name, or of the value; what makes
    sense is checked as soon.
    """
    signal.signal(signal.SIGALRM, stop)
    for value in VALUES.values():
        signal.alarm(20)
        try:
            config = study_with(data, path, value)
            told = refused_or_taken(partial(check, config, tmp_path), keeps=[tmp_path])
        finally:
            signal.alarm(0)
        named = (path.rpartition('.')[2], repr(value), 'is neither a run of this study')
        assert told is None or any(name in told for name in named), told


@pytest.mark.parametrize(
    ('flag', 'words'),
    [
        ('runs.student.epochs=-1.0', 'runs.student.epochs is -1'),
        ('runs.student.objective.kl.tau=nan', 'tau is nan'),
        ('runs.student.optim.learning_rate=1e300', 'learning_rate is 1e+300'),
        ('runs.student.batch_size=1000000000000000000000000000000', 'batch_size'),
        ('runs.student.select=x', "'x'"),
        ('seeds=(-1,)', '-1'),
    ],
)
def test_the_command(data, tmp_path, flag, words):
    about = ('--config.data.source=npz', f'--config.data.path={data}', f'--config.{flag}')
    workdir = tmp_path / 'w'
    flags = (*SMALL, f'--workdir={workdir}', *about)
    refused('kd_jax.main', *flags, says=[words], keeps=[tmp_path])


@pytest.mark.parametrize('name', ['crop', 'cutout'])
@pytest.mark.parametrize('pixels', [8, 9, 1000])
def test_nothing_is_left_of_an_image(data, tmp_path, name, pixels):
    config = study_with(data, f'augment.{name}', pixels)
    says = (f'.{name} is {pixels} for images of 8 x 8', 'less than 8')
    refused_here(partial(check, config, tmp_path), says, [tmp_path])
    check(study_with(data, f'augment.{name}', 7), tmp_path)
