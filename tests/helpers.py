"""What several test files need: tiny studies, and the command line in a process of its own."""

import os
import tempfile
from functools import cache
from pathlib import Path

import commands
import jax
import numpy as np

from kd_jax.data import ArraySource, Dataset, DatasetInfo

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
# as conftest.py has it for the tests themselves
COMPILES_FAST = '--xla_cpu_use_fusion_emitters=false'


# For a program that runs once or twice: compiled in a fraction of the usual time.
FAST_COMPILE = {
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
    'xla_cpu_use_fusion_emitters': True,
}
# In half of that again, by the emitters that XLA had before; they round sums in other ways, and
# equal numbers to unequal ones.
FASTEST_COMPILE = FAST_COMPILE | {'xla_cpu_use_fusion_emitters': False}


def quickly(function, options=FAST_COMPILE):
    """`function` as one program; op by op the first call would compile
    hundreds, each of them for one use.
    """
    return jax.jit(function, compiler_options=options)


def random_splits(seed=0, train=60, val=22, test=26, size=8, channels=1, classes=3, unlabelled=0):
    """Splits of images whose brightness pattern depends on the class, so
    that something can be learnt.
    """
    rng = np.random.default_rng(seed)
    patterns = rng.uniform(0, 200, (classes, size, size, channels))

    def split(count):
        label = rng.integers(0, classes, count).astype(np.int32)
        noise = rng.uniform(0, 55, (count, size, size, channels))
        return ArraySource((patterns[label] + noise).astype(np.uint8), label)

    parts = [split(n) for n in (train, val, test)]
    if unlabelled:
        label = parts[0].label.copy()
        label[:unlabelled] = -1
        parts[0] = ArraySource(parts[0].image, label)
    count = {'train': train, 'labelled': int((parts[0].label >= 0).sum()), 'val': val, 'test': test}
    names, shape = tuple(map(str, range(classes))), (size, size, channels)
    return Dataset(
        DatasetInfo('random', classes, names, shape, (0.5,) * channels, (0.25,) * channels, count),
        *parts,
    )


@cache
def folder_of_images():
    """The path of one with two classes."""
    from PIL import Image

    root = Path(tempfile.mkdtemp(prefix='kd_jax_images_'))
    for k in range(8):
        (root / f'class {k % 2}').mkdir(exist_ok=True)
        Image.new('RGB', (40, 60), (30 * k, 0, 0)).save(root / f'class {k % 2}/{k}.png')
    return str(root)


def save_npz(path, splits):
    """The splits as a file for data.source = 'npz'."""
    arrays = {
        f'{name}_{field}': getattr(getattr(splits, name), field)
        for name in ('train', 'val', 'test')
        for field in ('image', 'label')
    }
    np.savez(path, **arrays)
    return path


def environment(devices=1, **extra):
    """The environment of a user with `devices` CPU devices."""
    return (
        os.environ
        | {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} {COMPILES_FAST}'}
        | extra
    )


def run_main(*flags, devices=1, timeout=300, **extra):
    """`python -m kd_jax.main ...` to its end."""
    return commands.run('kd_jax.main', *flags, env=environment(devices, **extra), timeout=timeout)


# A study of seconds: two small networks on the digits.
SMALL = (
    '--config=configs/digits.py',
    '--config.seeds=(0,)',
    '--config.runs.teacher.model.name=cnn',
    '--config.runs.teacher.epochs=2.',
    '--config.runs.alone.epochs=2.',
    '--config.runs.student.epochs=2.',
    '--config.runs.teacher.eval_every=1.',
    '--config.runs.alone.eval_every=1.',
    '--config.runs.student.eval_every=1.',
    '--config.tensorboard=False',
)
TINY = (*SMALL, '--only=alone', '--config.runs.alone.epochs=1.')


def assert_refused(done, *parts):
    """Exit status 2 and one sentence on stderr that holds all `parts`; no traceback."""
    message = done.stderr.strip()
    assert done.returncode == 2, done.stderr + done.stdout
    assert 'Traceback' not in done.stderr, done.stderr
    assert message.count('\n') == 0, message
    assert message.startswith('error: ')
    for part in parts:
        assert part in message
