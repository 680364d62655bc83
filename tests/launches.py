"""What stands in launch/, and its local.sh to its end."""

import subprocess
import sys

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
