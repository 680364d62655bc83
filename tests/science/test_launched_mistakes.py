"""launch/local.sh: a mistake ends all processes."""

import os
import subprocess
import sys

import pytest
from helpers import REPOSITORY, environment

LOCAL, CLOUD, NOTEBOOK = (
    REPOSITORY / 'launch' / name for name in ('local.sh', 'cloud_tpu.sh', 'colab.ipynb')
)


def local(processes, *arguments, devices=None, timeout=300, **extra):
    """`launch/local.sh` to its end."""
    extra = (
        {'PYTHON': sys.executable} | extra | ({'KD_JAX_DEVICES': str(devices)} if devices else {})
    )
    command, env = [str(LOCAL), str(processes), *arguments], environment(**extra)
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=REPOSITORY,
        env=env,
        check=False,
    )


def test_a_mistake_ends_all_processes_with_its_sentence_and_status_2(tmp_path):
    done = local(2, '--config=configs/digits.py', '--only=tracher', f'--workdir={tmp_path}')
    assert done.returncode == 2
    assert "error: unknown run 'tracher'; did you mean 'teacher'?" in done.stderr
    assert 'Traceback' not in done.stdout + done.stderr


@pytest.fixture(autouse=True)
def no_google(tmp_path_factory, monkeypatch):
    """A `gcloud` that fails, so that no test can reach the real one."""
    gcloud = tmp_path_factory.mktemp('bin') / 'gcloud'
    gcloud.write_text('#!/bin/sh\nexit 99\n')
    gcloud.chmod(0o755)
    monkeypatch.setenv('PATH', f'{gcloud.parent}:{os.environ["PATH"]}')
