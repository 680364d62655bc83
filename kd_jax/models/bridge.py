"""Modules of `flax.nnx` as modules of `flax.linen`; imported where there are some, since nnx takes
a fifth of a second.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kd_jax import own

Flags = Callable[[Any, str, bool], dict[str, bool]]


class Bridged(nnx.bridge.ToLinen):
    """A module of `flax.nnx` as one of `flax.linen`: `train` sets what `nnx.Module.train` and
    `eval` set.

    flags: (module, title, train) -> the keyword arguments that tell it whether it trains.
    """

    flags: Flags = lambda module, title, train: {}

    def __call__(self, image: jax.Array, train: bool) -> Any:  # type: ignore[override]
        def call(module: nnx.Module, x: jax.Array) -> Any:
            (module.train if train else module.eval)()
            state = nnx.state(module, nnx.Not(nnx.RngState))
            nnx.update(module, jax.tree.map(jnp.asarray, state))  # of NumPy's it would write into
            return module(x, **self.flags(module, type(module).__name__, train))

        return super().__call__(image, nnx_method=call)


def bridged(cls: Any, fields: Mapping[str, Any], flags: Flags) -> Bridged:
    """A module of the class, made with `fields`."""
    make = functools.partial(_with_rngs, cls)
    skip = 'rngs' not in own.parameters(cls)
    return Bridged(nnx_class=make, kwargs=fields, skip_rng=skip, flags=flags)


def _with_rngs(cls: Any, rngs: nnx.Rngs | None = None, **fields: Any) -> Any:
    """A module of `flax.nnx`; streams of random numbers that it lacks are those of `params`."""
    if rngs is None:
        return cls(**fields)
    streams = {name: rngs[name]() for name in ('default', 'params', 'dropout') if name in rngs}
    return cls(**fields, rngs=nnx.Rngs(**{'default': streams.get('params', 0), **streams}))
