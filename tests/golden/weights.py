"""Random weights that depend on nothing but a tensor's PyTorch name and shape: the script and
the test make the same ones.
"""

import math
import re
import zlib

import numpy as np

# Scales of BatchNorm weights, so that activations neither vanish nor explode over the depth:
# the first pattern that matches.
GAINS = (
    (r'^layer\d\.\d+\.bn[23]\.weight', 0.5),  # late in a residual or shuffle block
    (r'^stage\d\.\d+\.branch\d\.\d\.weight', 0.7),
    (r'^features\.\d+\.block\.2\.1\.weight', 0.4),
    (r'^features\.\d+\.conv\.3\.weight', 0.5),
    (r'^blocks\.\d\.\d\.conv\.7\.weight', 0.5),
)


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 values of a tensor called `name` in a state dict."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith('running_var') or (name.endswith('weight') and len(shape) == 1):
        gain = next((gain for pattern, gain in GAINS if re.search(pattern, name)), 1.0)
        return np.float32(gain) * rng.uniform(0.5, 1.5, shape).astype(np.float32)
    scale = math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.1
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= np.float32(scale)
    return values


def image(*shape: int) -> np.ndarray:
    """Normally distributed images `[B, H, W, 3]`."""
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def sample(values: np.ndarray, count: int = 256) -> np.ndarray:
    """At most `count` values spread over the array; the step has no
    factor in common with any axis.
    """
    flat = values.reshape(-1)
    step = max(flat.size // count, 1)
    while math.gcd(step, flat.size) != 1:
        step += 1
    return flat[np.arange(min(count, flat.size)) * step % flat.size]
