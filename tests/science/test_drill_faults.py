"""The fault drill itself, short: `python -m tests.drill`."""

import subprocess
import sys

from helpers import REPOSITORY, environment

FAULTS = 8


def test_commands_that_are_disturbed_and_run_again_end_as_if_undisturbed(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'tests.drill', f'--faults={FAULTS}', f'--workdir={tmp_path}'],
        capture_output=True,
        text=True,
        timeout=1800,
        cwd=REPOSITORY,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *_, total, _, differences = done.stdout.splitlines()
    assert differences == '0 differences'
    kind, *counts, cut_off, mended, same, unlike = total.strip('| ').split(' | ')
    assert (kind, int(same), int(unlike)) == ('all', FAULTS, 0)
    assert sum(map(int, counts)) == FAULTS and 0 <= int(mended) <= FAULTS
    assert 0 < int(cut_off) <= FAULTS  # a drill that disturbs nothing finds nothing
