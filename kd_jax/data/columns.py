"""How a step reads a data set whose columns lie on the devices."""

from typing import Any

import flax
import jax
import jax.numpy as jnp

from kd_jax.data.dataset import Arrays


@flax.struct.dataclass
class Sharded:
    """Columns of which each device has a part, the examples being divided in order.

    columns: name -> `[N, ...]`, or under `axis_name` one device's `[N / D, ...]`.
    """

    columns: dict[str, Any]
    axis_name: str | None = flax.struct.field(pytree_node=False, default=None)

    def take(self, name: str, index: jax.Array) -> jax.Array:
        """The rows `[B, ...]` that `index` `[B]` names; each device asks for its own, and all have
        as many to ask for.
        """
        column, axis = self.columns[name], self.axis_name
        if axis is None:  # XLA divides that
            return jnp.take(column, index, axis=0)
        asked = jax.lax.all_gather(index, axis) - jax.lax.axis_index(axis) * len(column)  # [D, B]
        here = (asked >= 0) & (asked < len(column))
        rows = jnp.take(column, jnp.where(here, asked, 0), axis=0)  # [D, B, ...]
        rows = jnp.where(here.reshape(here.shape + (1,) * (rows.ndim - 2)), rows, 0)
        # one device has each row, and the others zeros
        return jax.lax.psum_scatter(rows, axis)


def read(arrays: Arrays | Sharded, batch: Arrays) -> Arrays:
    """`batch` with the columns of `arrays`: the rows that its `index` names, inside a step.

    With `partner_index`, image and label of those too, as `partner_image` and `partner_label`.
    Columns that come with the batch stay. Without `mask`, all examples count.
    """
    index = batch['index']
    names = arrays.columns if isinstance(arrays, Sharded) else arrays

    def take(name: str, index: jax.Array) -> Any:
        if isinstance(arrays, Sharded):
            return arrays.take(name, index)
        return jax.tree.map(lambda column: jnp.take(column, index, axis=0), arrays[name])

    columns = {name: take(name, index) for name in names}
    if 'partner_index' in batch:
        columns |= {
            f'partner_{name}': take(name, batch['partner_index'])
            for name in ('image', 'label')
            if name in names
        }
    return {'mask': jnp.ones(index.shape, jnp.float32), **columns, **batch}
