"""Mixtures of two images and of their labels: what is drawn is one for a batch, on every device."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.data import boxes
from kd_jax.fields import number, own

OFF = '0 (off) or more'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
    """How batches are mixed with a permutation of themselves; with both, one of the two by a fair
    coin for each batch.
    """

    # Beta(mixup, mixup) share of a second image; 0 = off
    mixup: float = number(0.0, at_least=0, words=OFF)
    # a box of the second image, its area a Beta(cutmix, cutmix) share; 0 = off
    cutmix: float = number(0.0, at_least=0, words=OFF)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> 'Mixing':
        """What the fields `augment` of a run say about it."""
        return cls(**{name: settings[name] for name in own(cls)})

    @property
    def on(self) -> dict[str, float]:
        """The fields that mix."""
        return {name: value for name in own(Mixing) if (value := getattr(self, name))}


def draw(key: jax.Array, mixing: Mixing, height: int, width: int) -> dict[str, Any]:
    """The mixture of a batch of images `height` x `width`: scalars.

    mix: what each image's own label counts, in 0..1. With cutmix also `cut`: `box`, four numbers of
    the box that is the second image's (see `boxes`); and, with mixup too, `own`: the share of each
    image's own outside of it. A batch of mixup has an empty box.
    """
    if not mixing.cutmix:
        return {'mix': mixup_share(key, mixing.mixup)}
    share_key, box_key, coin = (jax.random.fold_in(key, place) for place in range(1, 4))
    share = jax.random.beta(share_key, mixing.cutmix, mixing.cutmix)
    box = boxes.draw_cut(box_key, height, width, share)
    mix = 1.0 - box[2] * box[3] / (height * width)
    if not mixing.mixup:
        return {'mix': mix, 'cut': {'box': tuple(box)}}
    cuts, share = jax.random.bernoulli(coin), mixup_share(key, mixing.mixup)
    cut = {'box': tuple(jnp.where(cuts, box, 0)), 'own': jnp.where(cuts, 1.0, share)}
    return {'mix': jnp.where(cuts, mix, share), 'cut': cut}


def mixed(image: jax.Array, other: jax.Array, batch: Mapping[str, Any]) -> jax.Array:
    """The mixtures of two batches of images `[B, H, W, C]`. batch: with what `draw` gave."""
    if 'cut' not in batch:
        return batch['mix'] * image + (1 - batch['mix']) * other
    cut = batch['cut']
    if 'own' in cut:
        image = cut['own'] * image + (1 - cut['own']) * other
    return jnp.where(boxes.inside(cut['box'], *image.shape[1:3])[None], other, image)


def mixup_share(key: jax.Array, alpha: float) -> jax.Array:
    """The own share of a mixed batch, in 0.5..1: max(a, 1 - a) with a ~ Beta(alpha, alpha).

    Mixup is Zhang et al. 2018 (arXiv:1710.09412), one share a batch. The maximum is big_vision's:
    the mixture of a batch with a permutation of itself has the same distribution, and the image's
    own label stays the larger one.
    """
    share = jax.random.beta(key, alpha, alpha)
    return jnp.maximum(share, 1.0 - share)
