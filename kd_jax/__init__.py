"""Knowledge distillation of image classifiers in JAX and Flax."""

import importlib
import sys
from typing import TYPE_CHECKING

from kd_jax import signals

if TYPE_CHECKING:  # the others import JAX, which takes seconds: see `_LAZY`
    from kd_jax import config, data, methods, models, objectives
    from kd_jax.api import Predictor, Result, Teacher, distill, run_study
    from kd_jax.loop import TrainStep, make_train_step

__version__ = '0.1.0'

if sys.argv[:1] == ['-m']:  # `python -m kd_jax.main`: what it imports takes seconds
    signals.end_at_once()

# Modules by the names that they had in earlier versions.
RENAMED = {
    'population': 'kd_jax.jobs (what a sweep is) and kd_jax.executors (how it trains)',
    'program': 'kd_jax.build',
    'record': 'kd_jax.train_log',
    'tables': 'kd_jax.target_store',
    'teachers': 'kd_jax.trained',
}

# What stands in other modules, which are imported when it is asked for: JAX takes seconds.
_LAZY = {
    **dict.fromkeys(('Predictor', 'Result', 'Teacher', 'distill', 'run_study'), 'kd_jax.api'),
    **dict.fromkeys(('TrainStep', 'make_train_step'), 'kd_jax.loop'),
}
_MODULES = ('config', 'data', 'methods', 'models', 'objectives')
__all__ = [
    'Predictor',
    'Result',
    'Teacher',
    'TrainStep',
    '__version__',
    'config',
    'data',
    'distill',
    'make_train_step',
    'methods',
    'models',
    'objectives',
    'run_study',
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f'kd_jax.{name}')
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in RENAMED:
        raise ImportError(f'kd_jax.{name} is called {RENAMED[name]} now; import that')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
