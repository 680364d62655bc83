"""Python in a process of its own, as a user has it."""

import os
import subprocess
import sys

from helpers import REPOSITORY

from kd_jax.cache import VARIABLE

SET = (
    'XLA_FLAGS',
    'JAX_COMPILATION_CACHE_DIR',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS',
    'JAX_NUM_CPU_DEVICES',
)


def python(*arguments, **extra):
    """stdout of a process without what the tests and the user set for JAX."""
    environment = {
        name: value for name, value in os.environ.items() if name not in (*SET, VARIABLE)
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
