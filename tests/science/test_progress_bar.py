"""The progress bar of a run in a terminal."""

import os
import pty
import re
import subprocess
import sys

from helpers import REPOSITORY, SMALL, environment


def test_in_a_terminal_there_is_a_progress_bar(tmp_path):
    parent, child = pty.openpty()
    command = [sys.executable, '-m', 'kd_jax.main', *SMALL, '--only=alone', f'--workdir={tmp_path}']
    env = environment(TERM='xterm', COLUMNS='120')
    process = subprocess.Popen(
        command, stdout=child, stderr=subprocess.STDOUT, env=env, cwd=REPOSITORY
    )
    os.close(child)
    shown = b''
    while True:
        try:
            chunk = os.read(parent, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(parent)
    assert process.wait() == 0
    text = shown.decode()
    assert '━' in text and '\x1b[' in text
    assert re.search(r'epoch 2\.0/2\.0 · loss [\d.e-]+ · val top-1 \d+\.\d\d %', text)
