"""The smallest network that has what the large ones have: two stages, BatchNorm, dropout before the
classifier. Its programs compile in a third of a resnet8's time.
"""

import jax

from kd_jax.models.common import Classifier, ConvBN, Features, run_stage, scaled
from kd_jax.models.layers import Setting
from kd_jax.models.pooling import global_pool


class Tiny(Classifier, kw_only=True):
    """Two 3x3 convolutions of stride 2 with BatchNorm; the mean over pixels is classified."""

    def backbone(self, x: jax.Array, setting: Setting, train: bool) -> Features:
        features: Features = {}
        for stage, channels in enumerate((32, 64), start=1):
            conv = ConvBN(
                scaled(channels, self.width),
                stride=2,
                act=None,
                setting=setting,
                name=f'stage{stage}',
            )
            features |= run_stage(stage, [conv], x, train=train)
            x = features[f'stage{stage}']
        return features | {'stem': features['stage1'], 'pooled': global_pool(x)}
