"""Networks as the steps use them: a model with its normalisation, alone or as an ensemble."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models import Output
from kd_jax.models.common import mean_probabilities

# (the compute type of the networks, the least precision of float32 products: 'highest'
# means float32 on every backend)
PRECISIONS = {
    'float32': (jnp.float32, 'highest'),
    'tf32': (jnp.float32, 'tensorfloat32'),
    'bfloat16': (jnp.bfloat16, 'highest'),
}


class Network(NamedTuple):
    """A model with the normalisation and the image shape it was trained
    with; it takes pixels in 0..255.
    """

    model: nn.Module
    mean: tuple[float, ...]  # per channel, for images in 0..1
    std: tuple[float, ...]
    # (H, W, C) of its input; None: that of what it gets
    image_shape: tuple[int, int, int] | None = None

    def computing(self, precision: str, fast: bool) -> 'Network':
        """This with the compute type of a precision, and with `fast` in the
        forms that are fast on a CPU.
        """
        return self._replace(model=self.model.clone(dtype=PRECISIONS[precision][0], fast=fast))

    def training(self, axis_name: str | None, freeze: Sequence[str] = ()) -> 'Network':
        """This as it trains: BatchNorm over all devices of `axis_name`, and where
        `freeze` matches not at all.
        """
        return self._replace(model=self.model.clone(axis_name=axis_name, frozen=tuple(freeze)))

    def normalize(self, pixels: jax.Array) -> jax.Array:
        """`[B, H, W, C]` pixels in 0..255 -> the model's input: resized (bilinear,
        antialiased), grey as three channels.
        """
        if self.image_shape is not None:
            height, width, channels = self.image_shape
            if pixels.shape[-1] == 1 and channels > 1:
                pixels = jnp.repeat(pixels, channels, axis=-1)
            if pixels.shape[1:3] != (height, width):
                pixels = jax.image.resize(
                    pixels, (pixels.shape[0], height, width, channels), 'bilinear'
                )
        shape = (1, 1, 1, -1)
        return (pixels / 255.0 - jnp.reshape(jnp.float32(self.mean), shape)) / jnp.reshape(
            jnp.float32(self.std), shape
        )

    def predict(self, variables: dict[str, Any], pixels: jax.Array) -> Output:
        """The model's output in evaluation mode, without gradient."""
        output = self.model.apply(variables, self.normalize(pixels), train=False)
        return cast(Output, jax.lax.stop_gradient(output))


class Ensemble(NamedTuple):
    """Networks that predict together: the average of their probabilities, each from its own
    normalisation of the pixels.
    """

    networks: tuple[Network, ...]

    def predict(self, variables: tuple[dict[str, Any], ...], pixels: jax.Array) -> Output:
        members = [
            network.predict(v, pixels).logits
            for network, v in zip(self.networks, variables, strict=True)
        ]
        return Output(mean_probabilities(members), {})


def variables_of(params: Mapping[str, Any], model_state: Mapping[str, Any]) -> dict[str, Any]:
    """The student's Flax variables."""
    return {'params': params, **model_state}
