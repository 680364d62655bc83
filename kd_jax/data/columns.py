"""How a step reads a data set whose columns lie on the devices."""

import jax
import jax.numpy as jnp

from kd_jax.data.dataset import Arrays


def read(arrays: Arrays, batch: Arrays) -> Arrays:
    """`batch` with the columns of `arrays`: the rows that its `index` names, inside a step.

    With `partner_index`, image and label of those too, as `partner_image` and `partner_label`.
    Without `mask`, all examples count.
    """
    index = batch['index']
    columns = {
        name: jax.tree.map(lambda column: jnp.take(column, index, axis=0), arrays[name])
        for name in arrays
    }
    if 'partner_index' in batch:
        columns |= {
            f'partner_{name}': jnp.take(arrays[name], batch['partner_index'], axis=0)
            for name in ('image', 'label')
        }
    return {'mask': jnp.ones(index.shape, jnp.float32), **columns, **batch}
