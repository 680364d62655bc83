"""A term of the training objective, and the weighted sum of terms that a run minimises."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models.common import Output


class Term(nn.Module):
    """One objective: `__call__(student, teacher, batch) -> [B]`, one value an example, unweighted.

    Its weight in the run's loss is `weight`, reached linearly from `ramp_from` during the first `ramp_epochs`
    epochs (0: from the start). A subclass's fields are its hyper-parameters, with the paper's defaults.
    """

    weight: float = 1.0
    ramp_epochs: float = 0.0
    ramp_from: float = 0.0
    axis_name: str | None = None  # the device axis, for terms that look across the batch

    needs_teacher: ClassVar[bool] = True
    needs_label: ClassVar[bool] = False

    def weight_at(self, epoch):
        """The weight after `epoch` epochs (a float; fractions count)."""
        if self.ramp_epochs == 0:
            return jnp.float32(self.weight)
        share = jnp.clip(epoch / self.ramp_epochs, 0.0, 1.0)
        return self.ramp_from + (self.weight - self.ramp_from) * share

    def valid(self, batch) -> jax.Array:
        """`[B]` float: 1 where this term can judge the example, 0 for padding and (if it needs them) missing labels."""
        mask = batch['mask']
        if self.needs_label:
            mask = mask * (batch['label'] >= 0)
            if 'mixed_label' in batch:
                mask = mask * (batch['mixed_label'] >= 0)
        return mask.astype(jnp.float32)
