"""A disk that fills up."""

import shlex
import subprocess
import sys

from helpers import REPOSITORY, TINY, assert_refused, environment, run_main


def test_a_disk_that_fills_up_keeps_the_last_good_checkpoint(tmp_path):
    """A limit on the size of files stands in for the full disk: JSON fits, arrays do not."""
    flags = (*TINY, f'--workdir={tmp_path}')
    command = shlex.join([sys.executable, '-m', 'kd_jax.main', *flags])
    done = subprocess.run(
        # KiB a file: enough for the JSON files, not for the arrays
        ['bash', '-c', f'ulimit -f 8; exec {command}'],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=REPOSITORY,
        check=False,
        env=environment(JAX_ENABLE_COMPILATION_CACHE='false'),
    )
    assert_refused(
        done,
        'cannot save a checkpoint',
        'it would be larger than files may be here',
        'run the same command again',
    )
    done = run_main(*flags)  # there is room again
    assert done.returncode == 0, done.stderr
