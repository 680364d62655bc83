"""Which view of an image a step sees: a new one at every pass, or one of a known set that can be met again."""

import dataclasses

import jax
import jax.numpy as jnp

from kd_jax.data import augment


def look_up(data: dict[str, jax.Array], index: jax.Array, name: str) -> jax.Array:
    return jnp.take(data[name], index, axis=0)


@dataclasses.dataclass(frozen=True)
class Views:
    """The views of a run's training images; every one is a function of (key, index, number) alone: batch size, order, the
    number of devices and a restart change nothing. `number` is the pass over the data, as `batches.TrainOrder` counts.

    crop, flip, rotate, cutout, fill: see `kd_jax.data.augment.augment`.
    repeated: so many views of an image, the same for every key, come again and again; 0: every pass has a new one.
    seed: of the repeated views.
    """

    crop: int = 0
    flip: bool = False
    rotate: float = 0.0
    cutout: int = 0
    fill: tuple[float, ...] = (0.0,)
    repeated: int = 0
    seed: int = 0

    @property
    def count(self) -> int:
        """How many different views an image has: the repeated ones, or all that cropping and flipping can make."""
        return self.repeated or augment.windows(crop=self.crop, flip=self.flip)

    @property
    def countable(self) -> bool:
        """Whether `count` is all that there are."""
        return bool(self.repeated) or not (self.rotate or self.cutout)

    def pixels(self, key: jax.Array, data: dict[str, jax.Array], index: jax.Array, number: jax.Array) -> jax.Array:
        """The views `[B, H, W, C]`, float32 in 0..255, of the images `index` `[B]` in the passes `number` `[B]`."""
        key, number = self._which(key, number)
        images = look_up(data, index, 'image').astype(jnp.float32)
        return jax.vmap(self._one, in_axes=(None, 0, 0, 0))(key, images, index, number)

    def slot(self, key: jax.Array, index: jax.Array, number: jax.Array) -> jax.Array:
        """Which of the `count` views those are: int32 `[B]`."""
        if self.repeated:
            return number % self.repeated

        def one(index, number):
            return augment.draw_window(_key(key, index, number), crop=self.crop, flip=self.flip)

        return jax.vmap(one)(index, number)

    def of_slot(self, data: dict[str, jax.Array], index: jax.Array, slot: jax.Array) -> jax.Array:
        """`pixels` of the views that `slot` numbers."""
        if self.repeated:
            return self.pixels(jax.random.key(0), data, index, slot)
        images = look_up(data, index, 'image').astype(jnp.float32)
        return jax.vmap(lambda image, number: augment.window(image, number, crop=self.crop, flip=self.flip))(images, slot)

    def _which(self, key, number):
        return (jax.random.key(self.seed), number % self.repeated) if self.repeated else (key, number)

    def _one(self, key, image, index, number):
        parts = {'crop': self.crop, 'flip': self.flip, 'rotate': self.rotate, 'cutout': self.cutout, 'fill': self.fill}
        return augment.augment(_key(key, index, number), image, **parts)


def _key(key, index, number):
    return jax.random.fold_in(jax.random.fold_in(key, index), number)
