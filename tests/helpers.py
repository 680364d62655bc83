"""What several test files need: tiny studies, and the command line in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from kd_jax.data import Split, Splits

REPOSITORY = Path(__file__).parent.parent


def random_splits(seed=0, train=60, val=22, test=26, size=8, channels=1, classes=3, unlabelled=0):
    """Splits of images whose brightness pattern depends on the class, so that something can be learnt."""
    rng = np.random.default_rng(seed)
    patterns = rng.uniform(0, 200, (classes, size, size, channels))

    def split(count):
        label = rng.integers(0, classes, count).astype(np.int32)
        noise = rng.uniform(0, 55, (count, size, size, channels))
        return Split((patterns[label] + noise).astype(np.uint8), label)

    parts = [split(n) for n in (train, val, test)]
    if unlabelled:
        label = parts[0].label.copy()
        label[:unlabelled] = -1
        parts[0] = Split(parts[0].image, label)
    return Splits(*parts, classes, tuple(map(str, range(classes))), (0.5,) * channels, (0.25,) * channels, 'random')


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
    return os.environ | {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'} | extra


def run_main(*flags, devices=1, timeout=300, cwd=REPOSITORY, **extra):
    """`python -m kd_jax.main ...` to its end."""
    command = [sys.executable, '-m', 'kd_jax.main', *flags]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, cwd=cwd, env=environment(devices, **extra), check=False
    )


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
