"""Many steps in one call of a compiled program: what a dispatch is."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def scan_steps(step: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Many steps in one program: `(state, ..., count, batches) -> (state, outputs [S])`
    of `step(state, ..., batch)`.

    batches: as the step's, stacked `[S, B]`; only the first `count` (int32 scalar) of them are
    used, and only the first `count` outputs mean anything. One program thus serves every number of
    steps up to S. For S = 1 there is no loop.
    """
    step = jax.jit(step)  # traced once, though used twice

    def steps(state: Any, *arguments: Any) -> tuple[Any, Any]:
        *shared, count, batches = arguments

        def one(state: Any, number: jax.Array | int) -> tuple[Any, Any]:
            batch = jax.tree.map(
                lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), batches
            )
            return step(state, *shared, batch)

        size = jax.tree.leaves(batches)[0].shape[0]
        if size == 1:
            state, outputs = one(state, 0)
            return state, jax.tree.map(lambda x: x[None], outputs)
        empty = jax.tree.map(
            lambda x: jnp.zeros((size, *x.shape), x.dtype), jax.eval_shape(one, state, 0)[1]
        )

        def body(number: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            state, outputs = carry
            state, new = one(state, number)
            return state, jax.tree.map(lambda all_, x: all_.at[number].set(x), outputs, new)

        return jax.lax.fori_loop(0, count, body, (state, empty))

    return steps
