"""What is expected of every model: published counts, by family; `tests/test_models.py` checks that none is missing."""

from typing import NamedTuple


class Facts(NamedTuple):
    """Counts of a model with `classes` outputs for images of `size` x `size` x 3.

    macs: multiply-accumulates of convolutions and dense layers, padding included, of one image's forward pass.
    width: of what the classifier sees.
    """

    params: int
    statistics: int
    macs: int
    stages: int
    width: int
    classes: int = 100
    size: int = 32


# resnet20, resnet56, resnet32x4, cifar_mobilenet_v2_x0.5: as the code behind the published tables has them. The others
# follow from the same structure (see the arithmetic in test_models.py).
CIFAR = {
    'cnn': Facts(556_708, 0, 6_140_416, 2, 128),
    'resnet8': Facts(83_892, 672, 12_507_392, 3, 64),
    'resnet14': Facts(181_108, 1_120, 26_663_168, 3, 64),
    'resnet20': Facts(278_324, 1_568, 40_818_944, 3, 64),
    'resnet32': Facts(472_756, 2_464, 69_130_496, 3, 64),
    'resnet44': Facts(667_188, 3_360, 97_442_048, 3, 64),
    'resnet56': Facts(861_620, 4_256, 125_753_600, 3, 64),
    'resnet110': Facts(1_736_564, 8_288, 253_155_584, 3, 64),
    'resnet8x4': Facts(1_233_540, 2_752, 177_071_104, 3, 256),
    'resnet32x4': Facts(7_433_860, 9_920, 1_083_040_768, 3, 256),
    'cifar_mobilenet_v2': Facts(2_353_060, 34_176, 22_381_056, 7, 1280),
    'cifar_mobilenet_v2_x0.5': Facts(812_836, 18_368, 6_523_648, 7, 1280),
}

EXPECTED = {**CIFAR}
