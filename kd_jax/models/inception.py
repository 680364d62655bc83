"""Inception-v3."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.fields import flag
from kd_jax.models import layers
from kd_jax.models.common import Classifier, ConvBN, Exit, Features, block, check_size, scaled
from kd_jax.models.layers import Setting
from kd_jax.models.pooling import adaptive_avg_pool, avg_pool, global_pool, max_pool


class Mixed(nn.Module):
    """Base of the five modules: branches side by side, whose outputs
    `[B, H', W', C_i]` are concatenated.
    """

    width: float = 1.0
    setting: Setting = Setting()

    def unit(
        self,
        x: jax.Array,
        name: str,
        channels: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        *,
        train: bool,
    ) -> jax.Array:
        """ConvBN with `channels` times the width; the strided ones, which
        halve the map, are not padded.
        """
        padding = 0 if stride == 2 else None
        channels = scaled(channels, self.width)
        return ConvBN(channels, kernel, stride, padding=padding, setting=self.setting, name=name)(
            x, train=train
        )


class MixedA(Mixed):
    """1x1; 5x5; two 3x3; pooled 1x1 (figure 5 of the paper, but with a
    5x5 convolution in one branch).
    """

    pool: int = 64  # channels of the pooled branch

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        one = self.unit(x, 'one', 64, train=train)
        five = self.unit(x, 'five1', 48, train=train)
        five = self.unit(five, 'five2', 64, 5, train=train)
        double = self.unit(x, 'double1', 64, train=train)
        double = self.unit(double, 'double2', 96, 3, train=train)
        double = self.unit(double, 'double3', 96, 3, train=train)
        pool = self.unit(avg_pool(x, 3, 1, 1), 'pool', self.pool, train=train)
        return jnp.concatenate([one, five, double, pool], axis=-1)


class MixedB(Mixed):
    """Halves the map: strided 3x3; two 3x3, the second strided; max
    pool (figure 10 of the paper).
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        three = self.unit(x, 'three', 384, 3, 2, train=train)
        double = self.unit(x, 'double1', 64, train=train)
        double = self.unit(double, 'double2', 96, 3, train=train)
        double = self.unit(double, 'double3', 96, 3, 2, train=train)
        return jnp.concatenate([three, double, max_pool(x, 3, 2)], axis=-1)


class MixedC(Mixed):
    """1x1; 7x7 and two 7x7, each as 1x7 and 7x1; pooled 1x1 (figure 6 of the paper)."""

    hidden: int = 128  # channels inside the branches of 7x7

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        one = self.unit(x, 'one', 192, train=train)
        seven = self.unit(x, 'seven1', self.hidden, train=train)
        seven = self.unit(seven, 'seven2', self.hidden, (1, 7), train=train)
        seven = self.unit(seven, 'seven3', 192, (7, 1), train=train)
        double = self.unit(x, 'doubleseven1', self.hidden, train=train)
        double = self.unit(double, 'doubleseven2', self.hidden, (7, 1), train=train)
        double = self.unit(double, 'doubleseven3', self.hidden, (1, 7), train=train)
        double = self.unit(double, 'doubleseven4', self.hidden, (7, 1), train=train)
        double = self.unit(double, 'doubleseven5', 192, (1, 7), train=train)
        pool = self.unit(avg_pool(x, 3, 1, 1), 'pool', 192, train=train)
        return jnp.concatenate([one, seven, double, pool], axis=-1)


class MixedD(Mixed):
    """Halves the map: strided 3x3; 7x7 as 1x7 and 7x1, then strided 3x3; max pool."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        three = self.unit(x, 'three1', 192, train=train)
        three = self.unit(three, 'three2', 320, 3, 2, train=train)
        seven = self.unit(x, 'seventhree1', 192, train=train)
        seven = self.unit(seven, 'seventhree2', 192, (1, 7), train=train)
        seven = self.unit(seven, 'seventhree3', 192, (7, 1), train=train)
        seven = self.unit(seven, 'seventhree4', 192, 3, 2, train=train)
        return jnp.concatenate([three, seven, max_pool(x, 3, 2)], axis=-1)


class MixedE(Mixed):
    """1x1; 1x3 beside 3x1; 3x3, then 1x3 beside 3x1; pooled 1x1 (figure 7 of the paper)."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        one = self.unit(x, 'one', 320, train=train)
        three = self.unit(x, 'three1', 384, train=train)
        threes = [
            self.unit(three, 'three2a', 384, (1, 3), train=train),
            self.unit(three, 'three2b', 384, (3, 1), train=train),
        ]
        double = self.unit(x, 'double1', 448, train=train)
        double = self.unit(double, 'double2', 384, 3, train=train)
        doubles = [
            self.unit(double, 'double3a', 384, (1, 3), train=train),
            self.unit(double, 'double3b', 384, (3, 1), train=train),
        ]
        pool = self.unit(avg_pool(x, 3, 1, 1), 'pool', 192, train=train)
        return jnp.concatenate([one, *threes, *doubles, pool], axis=-1)


# Modules with their fields, one tuple a stage.
STAGES: tuple[tuple[tuple[Callable[..., Mixed], dict[str, int]], ...], ...] = (
    ((MixedA, {'pool': 32}), (MixedA, {}), (MixedA, {})),
    (
        (MixedB, {}),
        (MixedC, {}),
        (MixedC, {'hidden': 160}),
        (MixedC, {'hidden': 160}),
        (MixedC, {'hidden': 192}),
    ),
    ((MixedD, {}), (MixedE, {}), (MixedE, {})),
)


class InceptionAux(nn.Module):
    """The auxiliary head on stage 2: 5x5 average pool of stride 3, 1x1 to 128,
    unpadded 5x5 to 768, pooled, dense.

    The 5x5 convolution needs a map of 17x17, an image of 299x299. Smaller maps, at which
    torchvision's training fails, are averaged to the 5x5 that the convolution sees there.
    """

    num_classes: int
    width: float = 1.0
    setting: Setting = Setting()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Exit:
        x = adaptive_avg_pool(x, (5, 5)) if min(x.shape[1:3]) < 17 else avg_pool(x, 5, 3)
        x = ConvBN(scaled(128, self.width), 1, setting=self.setting, name='conv0')(x, train=train)
        x = ConvBN(scaled(768, self.width), 5, padding=0, setting=self.setting, name='conv1')(
            x, train=train
        )
        pooled = global_pool(x)
        return Exit(layers.Dense(self.num_classes, name='dense')(pooled), pooled)


class InceptionV3(Classifier, kw_only=True):
    """Inception-v3 (Szegedy et al. 2015, arXiv:1512.00567) as torchvision has it, for
    299x299 images; 75x75 at least.

    Features: `stem`, after the second max pool (35x35x192); `stage1`, `stage2`, `stage3`, the
    modules at 35x35, 17x17 and 8x8 (288, 768 and 2048 channels), where the module that halves the
    map is the first of its stage. It differs from the paper's table 1: after the first max pool
    come 1x1, 3x3 and a second max pool instead of three 3x3 convolutions, the second of them
    strided, and one branch of stage 1 keeps a 5x5 convolution. With `aux` the auxiliary head
    `aux` on stage 2 is computed in evaluation too (torchvision: in training only). Convolutions
    start from He's normal distribution (torchvision: a truncated one of standard deviation 0.1).
    `width` scales all channels.
    """

    aux: bool = flag(True)  # auxiliary heads in evaluation too

    EPSILON = 1e-3

    def backbone(self, x: jax.Array, setting: Setting, train: bool) -> Features:
        check_size(x, 75, 'Inception-v3')

        def stem(
            x: jax.Array, number: int, channels: int, kernel: int, stride: int = 1, padding: int = 0
        ) -> jax.Array:
            channels = scaled(channels, self.width)
            unit = ConvBN(
                channels, kernel, stride, padding=padding, setting=setting, name=f'stem{number}'
            )
            return unit(x, train=train)

        x = stem(x, 1, 32, 3, stride=2)
        x = stem(x, 2, 32, 3)
        x = max_pool(stem(x, 3, 64, 3, padding=1), 3, 2)
        x = stem(x, 4, 80, 1)
        x = max_pool(stem(x, 5, 192, 3), 3, 2)
        features = {'stem': x}
        for stage, blocks in enumerate(STAGES, start=1):
            for number, (make, fields) in enumerate(blocks, start=1):
                module = make(
                    width=self.width, setting=setting, name=f'stage{stage}_block{number}', **fields
                )
                x = block(module, x, train=train)
            features[f'stage{stage}'] = x
        return features | {'pooled': global_pool(x)}

    def own_heads(self, features: Features, setting: Setting, train: bool) -> dict[str, Exit]:
        if not self.aux:
            return {}
        make = InceptionAux(self.num_classes, self.width, setting, name='head_aux')
        return {'aux': make(features['stage2'], train=train)}
