"""Where what can be made again is kept: compiled programs, decoded images."""

import os
from pathlib import Path

VARIABLE = 'KD_JAX_CACHE'  # environment: the folder; 'off' keeps nothing


def folder() -> Path | None:
    """`KD_JAX_CACHE`, or a folder of the user's cache; None: nowhere."""
    given = os.environ.get(VARIABLE, '')
    if given == 'off':
        return None
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'kd_jax'
