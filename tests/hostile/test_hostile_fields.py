"""Every field of a study with values that make no sense: a sentence, or a check that ends soon."""

import resource
import signal
import time

import flax
import pytest
from helpers import random_splits, save_npz
from studies import config_of

from configs import common
from kd_jax import study
from kd_jax.errors import UserError

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


@pytest.mark.parametrize('path', PATHS)
def test_a_field(data, tmp_path, path):
    signal.signal(signal.SIGALRM, stop)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, value in VALUES.items():
        began = time.process_time()
        signal.alarm(20)
        try:
            study.Study(study_with(data, path, value), tmp_path).check()
        except UserError as error:
            assert '\n' not in str(error) and len(str(error)) < 1500, (name, error)
        finally:
            signal.alarm(0)
        assert time.process_time() - began < 5, name
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


@pytest.mark.parametrize('name', ['crop', 'cutout'])
@pytest.mark.parametrize('pixels', [8, 9, 1000])
def test_nothing_is_left_of_an_image(data, tmp_path, name, pixels):
    config = study_with(data, f'augment.{name}', pixels)
    with pytest.raises(UserError, match=rf'\.{name} is {pixels} for images of 8 x 8.* less than 8'):
        study.Study(config, tmp_path).check()
    study.Study(study_with(data, f'augment.{name}', 7), tmp_path).check()
