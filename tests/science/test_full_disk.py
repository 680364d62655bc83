"""A disk that fills up."""

import shlex
import subprocess
import sys

from helpers import REPOSITORY, SMALL, environment, run_main

TINY = (*SMALL, '--only=alone', '--config.runs.alone.epochs=1.')


def assert_refused(done, *parts):
    """Exit status 2 and one sentence on stderr that holds all `parts`; no traceback."""
    message = done.stderr.strip()
    assert done.returncode == 2, done.stderr + done.stdout
    assert 'Traceback' not in done.stderr
    assert message.count('\n') == 0, message
    assert message.startswith('error: ')
    for part in parts:
        assert part in message


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
        done, 'cannot save a checkpoint', 'a file would be too large', 'run the same command again'
    )
    done = run_main(*flags)  # there is room again
    assert done.returncode == 0, done.stderr
