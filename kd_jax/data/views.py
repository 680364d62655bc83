"""Which view of an image a step sees: a new one at every pass, or one of a
known set that can be met again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.data import augment
from kd_jax.data.colour import CHANNELS
from kd_jax.data.crops import Crop
from kd_jax.errors import UserError
from kd_jax.fields import defaults, own

_TOGETHER = ('crop', 'random_resized_crop'), ('rand_augment', 'trivial_augment')
_COLOURED = ('rand_augment', 'trivial_augment', 'color_jitter')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views(augment.Parts):
    """The views of a run's training images; every one is a function of (key, index, number) alone:
    batch size, order, the number of devices and a restart change nothing. `number` is the pass over
    the data, as `batches.TrainOrder` counts.

    fill: of what is blanked, see `kd_jax.data.augment.augment`.
    repeated: so many views of an image, the same for every key, come again and again;
      0: every pass has a new one.
    seed: of the repeated views.
    photos: the random resized crops are cut out of photos before, on the host, see `cut`.
    """

    fill: tuple[float, ...] = (0.0,)
    repeated: int = 0
    seed: int = 0
    photos: bool = False

    @classmethod
    def of(
        cls, settings: Mapping[str, Any], fill: Sequence[float], *, photos: bool = False
    ) -> 'Views':
        """What the fields `augment` of a run say about them."""
        parts = {name: settings[name] for name in own(augment.Parts)}
        return cls(**parts, fill=tuple(fill), photos=photos)

    def check(self, image_shape: Sequence[int], path: str) -> None:
        """Raises `UserError` for parts that exclude each other, that need other channels than those
        of images `(H, W, C)`, or that may leave nothing of them. path: of the fields, for the
        sentence.
        """
        if self.photos and not self.random_resized_crop:
            raise UserError(
                f"data.decode is 'photo', of which {path}.random_resized_crop cuts the views, but "
                "that is 0; set it to 0.08, or data.decode='square'"
            )
        usual = defaults(augment.Parts)
        for one, other in _TOGETHER:
            if getattr(self, one) and getattr(self, other):
                raise UserError(
                    f'{path}.{one} is {getattr(self, one)} and {path}.{other} is '
                    f'{getattr(self, other)}; they do not go together: set {path}.{one}=0 or '
                    f'{path}.{other}={usual[other]}'
                )
        coloured = [name for name in _COLOURED if getattr(self, name)]
        if coloured and image_shape[2] not in CHANNELS:
            raise UserError(
                f'{path}.{coloured[0]} is {getattr(self, coloured[0])} for images of '
                f'{image_shape[2]} channels; it knows grey and red-green-blue images, of 1 or 3: '
                'turn it off'
            )
        side = min(image_shape[:2])
        for name in ('crop', 'cutout'):
            if getattr(self, name) >= side:
                raise UserError(
                    f'{path}.{name} is {getattr(self, name)} for images of {image_shape[0]} x '
                    f'{image_shape[1]}, of which nothing may be left; take less than {side}'
                )

    @property
    def count(self) -> int:
        """How many different views an image has: the repeated ones, or all that
        cropping and flipping can make.
        """
        return self.repeated or augment.windows(crop=self.crop, flip=self.flip)

    @property
    def countable(self) -> bool:
        """Whether `count` is all that there are."""
        return bool(self.repeated) or not self.uncountable

    @property
    def uncountable(self) -> list[str]:
        """The parts that are on and make more views than can be counted."""
        return [name for name in augment.UNCOUNTABLE if getattr(self, name)]

    @property
    def record(self) -> dict[str, Any]:
        """The fields that say which views these are: without those that change nothing."""
        fields = dataclasses.asdict(self)
        if not any(part.blanks and getattr(self, name) for name, part in augment.DRAWN.items()):
            del fields['fill']
        if not self.rand_augment:
            del fields['rand_augment_magnitude']
        return fields

    def augment(
        self, key: jax.Array, images: jax.Array, index: jax.Array, number: jax.Array
    ) -> jax.Array:
        """The views, float32 in 0..255, of the images `[B, H, W, C]` that are `index` `[B]`
        in the passes `number` `[B]`.
        """
        key, number = self._which(key, number)
        return jax.vmap(self._one, in_axes=(None, 0, 0, 0))(
            key, images.astype(jnp.float32), index, number
        )

    def slot(self, key: jax.Array, index: jax.Array, number: jax.Array) -> jax.Array:
        """Which of the `count` views those are: int32 `[B]`."""
        if self.repeated:
            return number % self.repeated

        def one(index: jax.Array, number: jax.Array) -> jax.Array:
            return augment.draw_window(_key(key, index, number), crop=self.crop, flip=self.flip)

        return jax.vmap(one)(index, number)

    def of_slot(self, images: jax.Array, index: jax.Array, slot: jax.Array) -> jax.Array:
        """The views, of the `count` that there are, that `slot` `[B]`
        numbers; as `augment` makes them.
        """
        if self.repeated:
            return self.augment(jax.random.key(0), images, index, slot)
        images = images.astype(jnp.float32)
        return jax.vmap(
            lambda image, number: augment.window(image, number, crop=self.crop, flip=self.flip)
        )(images, slot)

    def cut(self, seed: int) -> Crop | None:
        """What of the views is cut out of photos on the host, for a run that draws by `seed`."""
        if not self.photos:
            return None
        drawn_by = self.seed if self.repeated else seed
        return Crop(self.random_resized_crop, drawn_by, self.repeated)

    def _which(self, key: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        return (
            (jax.random.key(self.seed), number % self.repeated) if self.repeated else (key, number)
        )

    def _one(
        self, key: jax.Array, image: jax.Array, index: jax.Array, number: jax.Array
    ) -> jax.Array:
        here = dataclasses.replace(self, random_resized_crop=0.0) if self.photos else self
        return augment.augment(_key(key, index, number), image, here, self.fill)


def _key(key: jax.Array, index: jax.Array, number: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(key, index), number)
