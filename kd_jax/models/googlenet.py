"""GoogLeNet (Inception-v1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.fields import flag
from kd_jax.models import layers
from kd_jax.models.common import (
    Classifier,
    ConvBN,
    Dropout,
    Exit,
    Features,
    block,
    check_size,
    scaled,
)
from kd_jax.models.layers import Setting
from kd_jax.models.pooling import adaptive_avg_pool, global_pool, max_pool

# Channels of 1x1; 1x1 and 3x3; 1x1 and "5x5"; pooled 1x1 (table 1 of the paper), one row
# a module, one tuple a stage.
STAGES = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)
POOLS = {2: 3, 3: 2}  # the kernel of the max pool, of stride 2, with which a stage begins
AUX_DROPOUT = 0.7  # inside an auxiliary head
AUX = {(2, 1): 'aux1', (2, 4): 'aux2'}  # the auxiliary head on (stage, module)


class Inception(nn.Module):
    """Four branches side by side, `[B, H, W, C] -> [B, H, W, sum]`:
    1x1; 3x3; "5x5"; max-pooled 1x1.

    The third has a 3x3 convolution where the paper has 5x5, a known slip of
    torchvision's that its weights depend on.
    """

    channels: tuple[int, ...]  # see STAGES
    width: float = 1.0
    setting: Setting = Setting()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels = [scaled(n, self.width) for n in self.channels]

        def unit(name: str, number: int, x: jax.Array, kernel: int = 1) -> jax.Array:
            return ConvBN(channels[number], kernel, setting=self.setting, name=name)(x, train=train)

        one = unit('one', 0, x)
        three = unit('three2', 2, unit('three1', 1, x), 3)
        five = unit('five2', 4, unit('five1', 3, x), 3)
        pool = unit('pool', 5, max_pool(x, 3, 1, 1))
        return jnp.concatenate([one, three, five, pool], axis=-1)


class GoogLeNetAux(nn.Module):
    """An auxiliary head: averaged to 4x4, 1x1 to 128, dense 1024 with ReLU, which is
    its `pooled`, dropout, dense.

    The paper has a 5x5 average pool of stride 3 in front, which gives 4x4 for images of 224x224.
    """

    num_classes: int
    width: float = 1.0
    setting: Setting = Setting()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Exit:
        x = adaptive_avg_pool(x, (4, 4))
        x = ConvBN(scaled(128, self.width), 1, setting=self.setting, name='conv')(x, train=train)
        # Flattened as PyTorch does: channels first.
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        x = nn.relu(
            layers.Dense(scaled(1024, self.width), dtype=self.setting.dtype, name='dense1')(x)
        )
        pooled = x.astype(jnp.float32)
        dropped = Dropout(AUX_DROPOUT, self.setting.axis_name, name='dropout')(pooled, train=train)
        return Exit(layers.Dense(self.num_classes, name='dense2')(dropped), pooled)


class GoogLeNet(Classifier, kw_only=True):
    """GoogLeNet (Szegedy et al. 2014, arXiv:1409.4842) as torchvision has it, for
    224x224 images; 15x15 at least.

    Features: `stem`, after the second max pool (28x28x192); `stage1`, `stage2`, `stage3`, the
    modules 3a-3b, 4a-4e and 5a-5b (480, 832 and 1024 channels), where the max pool in front of a
    stage is its first layer. It differs from the paper: BatchNorm instead of local response
    normalisation, 3x3 instead of 5x5 convolutions, a last max pool of 2x2, dropout of 0.2 (0.4).
    With `aux` the auxiliary heads `aux1` and `aux2`, on 4a and 4d, are computed in evaluation too
    (torchvision: in training only). Convolutions start from He's normal distribution (torchvision:
    a truncated one of standard deviation 0.01). `width` scales all channels.
    """

    aux: bool = flag(False)  # auxiliary heads in evaluation too

    EPSILON = 1e-3

    def backbone(self, x: jax.Array, setting: Setting, train: bool) -> Features:
        check_size(x, 15, 'GoogLeNet')

        def stem(
            x: jax.Array, number: int, channels: int, kernel: int, stride: int = 1
        ) -> jax.Array:
            return ConvBN(
                scaled(channels, self.width), kernel, stride, setting=setting, name=f'stem{number}'
            )(x, train=train)

        x = max_pool(stem(x, 1, 64, 7, stride=2), 3, 2, ceil=True)
        x = stem(stem(x, 2, 64, 1), 3, 192, 3)
        x = max_pool(x, 3, 2, ceil=True)
        features = {'stem': x}
        for stage, blocks in enumerate(STAGES, start=1):
            if stage in POOLS:
                x = max_pool(x, POOLS[stage], 2, ceil=True)
            for number, channels in enumerate(blocks, start=1):
                x = block(
                    Inception(channels, self.width, setting, name=f'stage{stage}_block{number}'),
                    x,
                    train=train,
                )
                if self.aux and (stage, number) in AUX:
                    # It is inside a stage: `own_heads` takes it out again.
                    features[AUX[stage, number]] = x
            features[f'stage{stage}'] = x
        return features | {'pooled': global_pool(x)}

    def own_heads(self, features: Features, setting: Setting, train: bool) -> dict[str, Exit]:
        heads = {}
        for name in AUX.values() if self.aux else ():
            make = GoogLeNetAux(self.num_classes, self.width, setting, name=f'head_{name}')
            heads[name] = make(features.pop(name), train=train)
        return heads
