"""What configs start from; all of it stands in `kd_jax.config`, every field of a study
and of a run with its comment.
"""

from kd_jax.config import (
    arguments,
    distillation,
    follow,
    imported,
    labels,
    own_teacher,
    run,
    share,
    study,
    term,
)

__all__ = [
    'arguments',
    'distillation',
    'follow',
    'imported',
    'labels',
    'own_teacher',
    'run',
    'share',
    'study',
    'term',
]
