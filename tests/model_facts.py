"""What is expected of every model: published counts, by family; `unit/test_models.py`
checks that none is missing, `zoo/test_table.py` compares them with the models.
"""

from typing import NamedTuple


class Facts(NamedTuple):
    """Counts of a model with `classes` outputs for images of `size` x `size` x 3.

    macs: multiply-accumulates of convolutions and dense layers, padding included,
      of one image's forward pass.
    width: of what the classifier sees.
    """

    params: int
    statistics: int
    macs: int
    stages: int
    width: int
    classes: int = 100
    size: int = 32


# resnet20, resnet56, resnet32x4, cifar_mobilenet_v2_x0.5: as the code behind the published tables
# has them. The others follow from the same structure (see the arithmetic in zoo/).
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

# Counted on torchvision's models, and for small images on the structures behind the
# published tables, in PyTorch.
RESNETS = {
    'resnet18': Facts(11_689_512, 9_600, 1_814_073_344, 4, 512, 1000, 224),
    'resnet34': Facts(21_797_672, 17_024, 3_663_761_408, 4, 512, 1000, 224),
    'resnet50': Facts(25_557_032, 53_120, 4_089_184_256, 4, 2048, 1000, 224),
    'resnet101': Facts(44_549_160, 105_344, 7_801_405_440, 4, 2048, 1000, 224),
    'resnet152': Facts(60_192_808, 151_424, 11_513_626_624, 4, 2048, 1000, 224),
    'wide_resnet50_2': Facts(68_883_240, 68_224, 11_398_021_120, 4, 2048, 1000, 224),
    'resnext50_32x4d': Facts(25_028_904, 68_224, 4_230_479_872, 4, 2048, 1000, 224),
    'cifar_resnet18': Facts(11_220_132, 9_600, 555_468_800, 4, 512),
    'cifar_resnet34': Facts(21_328_292, 17_024, 1_159_448_576, 4, 512),
    'cifar_resnet50': Facts(23_705_252, 53_120, 1_298_014_208, 4, 2048),
    'wrn_16_1': Facts(180_916, 928, 26_663_168, 3, 64),
    'wrn_16_2': Facts(703_284, 1_824, 101_118_464, 3, 128),
    'wrn_40_1': Facts(569_780, 2_720, 83_286_272, 3, 64),
    'wrn_40_2': Facts(2_255_156, 5_408, 327_610_880, 3, 128),
}

# Counted on torchvision's models, and for MobileNetV1 on the same structure in PyTorch.
MOBILENETS = {
    'imagenet_mobilenet_v2': Facts(3_504_872, 34_112, 300_774_272, 7, 1280, 1000, 224),
    'mobilenet_v1': Facts(4_231_976, 21_888, 568_740_352, 5, 1024, 1000, 224),
    'mobilenet_v3_large': Facts(5_483_032, 24_400, 216_589_760, 6, 1280, 1000, 224),
    'mobilenet_v3_small': Facts(2_542_856, 12_112, 56_510_400, 5, 1024, 1000, 224),
    'efficientnet_b0': Facts(5_288_548, 42_016, 385_814_752, 7, 1280, 1000, 224),
}

# Counted on torchvision's models, and for the others on the same structures in PyTorch.
SHUFFLENETS = {
    'imagenet_shufflenet_v1': Facts(1_865_728, 24_480, 137_460_672, 3, 960, 1000, 224),
    'imagenet_shufflenet_v2_x0_5': Facts(1_366_792, 7_952, 40_476_448, 3, 1024, 1000, 224),
    'imagenet_shufflenet_v2_x1_0': Facts(2_278_604, 16_180, 144_907_992, 3, 1024, 1000, 224),
    'imagenet_shufflenet_v2_x1_5': Facts(3_503_624, 23_440, 295_759_392, 3, 1024, 1000, 224),
    'imagenet_shufflenet_v2_x2_0': Facts(7_393_996, 33_716, 583_253_464, 3, 2048, 1000, 224),
    'cifar_shufflenet_v1': Facts(949_258, 23_736, 38_691_456, 3, 960),
    'cifar_shufflenet_v2': Facts(1_355_528, 16_180, 44_504_448, 3, 1024),
    'cifar_shufflenet_v2_x0_2': Facts(220_388, 5_000, 5_636_864, 3, 512),
    'cifar_shufflenet_v2_x0_3': Facts(235_588, 5_960, 6_548_224, 3, 512),
    'cifar_shufflenet_v2_x0_5': Facts(443_716, 7_952, 10_404_352, 3, 1024),
    'cifar_shufflenet_v2_x1_5': Facts(2_580_548, 23_440, 93_762_048, 3, 1024),
    'cifar_shufflenet_v2_x2_0': Facts(5_521_860, 33_416, 181_239_936, 3, 2048),
}

# Counted on torchvision's models, and for small images on the structure behind the
# published tables, in PyTorch.
VGGS = {
    'imagenet_vgg11': Facts(132_863_336, 0, 7_609_090_048, 5, 4096, 1000, 224),
    'imagenet_vgg13': Facts(133_047_848, 0, 11_308_466_176, 5, 4096, 1000, 224),
    'imagenet_vgg16': Facts(138_357_544, 0, 15_470_264_320, 5, 4096, 1000, 224),
    'imagenet_vgg19': Facts(143_667_240, 0, 19_632_062_464, 5, 4096, 1000, 224),
    'imagenet_vgg11_bn': Facts(132_868_840, 5_504, 7_609_090_048, 5, 4096, 1000, 224),
    'imagenet_vgg13_bn': Facts(133_053_736, 5_888, 11_308_466_176, 5, 4096, 1000, 224),
    'imagenet_vgg16_bn': Facts(138_365_992, 8_448, 15_470_264_320, 5, 4096, 1000, 224),
    'imagenet_vgg19_bn': Facts(143_678_248, 11_008, 19_632_062_464, 5, 4096, 1000, 224),
    'cifar_vgg8': Facts(3_965_028, 2_944, 96_192_512, 5, 512),
    'cifar_vgg11': Facts(9_277_284, 5_504, 209_438_720, 5, 512),
    'cifar_vgg13': Facts(9_462_180, 5_888, 284_936_192, 5, 512),
    'cifar_vgg16': Facts(14_774_436, 8_448, 398_182_400, 5, 512),
    'cifar_vgg19': Facts(20_086_692, 11_008, 511_428_608, 5, 512),
}

# Counted on torchvision's models; Inception-v3's with its auxiliary head.
INCEPTIONS = {
    'inception_v3': Facts(27_161_264, 36_224, 5_718_899_296, 3, 2048, 1000, 299),
    'googlenet': Facts(6_624_904, 14_560, 1_498_376_192, 3, 1024, 1000, 224),
}

EXPECTED = {**CIFAR, **RESNETS, **MOBILENETS, **SHUFFLENETS, **VGGS, **INCEPTIONS}


def _of(sides, widths, pooled):
    return [*zip(sides, widths, strict=True), pooled]


def _shuffled(large, widths, pooled):
    sides = (56, 28, 14, 7) if large else (32, 16, 8, 4)
    return _of(sides, (24, *widths), pooled)


_VGG_WIDTHS = (64, 64, 128, 256, 512, 512)
_V2 = (116, 232, 464)
_SHUFFLENET_V2 = {
    'x0_2': ((40, 80, 160), 512),
    'x0_3': ((40, 80, 160), 512),
    'x0_5': ((48, 96, 192), 1024),
    'x1_5': ((176, 352, 704), 1024),
}

# The features of images of the size of `Facts`: (side, channels) of the stem and of every stage,
# and what the classifier sees; from the papers' tables.
FEATURES = {
    'cnn': [(32, 32), (32, 32), (16, 64), 128],
    **{
        f'resnet{n}': [(32, 16), (32, 16), (16, 32), (8, 64), 64]
        for n in (8, 14, 20, 32, 44, 56, 110)
    },
    **{f'resnet{n}x4': [(32, 32), (32, 64), (16, 128), (8, 256), 256] for n in (8, 32)},
    **{
        name: _of(
            (32, 32, 16, 8, 4) if name.startswith('cifar') else (56, 56, 28, 14, 7),
            (64, *(64 * times * 2**stage for stage in range(4))),
            512 * times,
        )
        for name in RESNETS
        if not name.startswith('wrn')
        for times in [1 if name.endswith(('18', '34')) else 4]
    },
    **{
        f'wrn_{depth}_{k}': [(32, 16), (32, 16 * k), (16, 32 * k), (8, 64 * k), 64 * k]
        for depth in (16, 40)
        for k in (1, 2)
    },
    **{
        name: _of((16, 16, 16, 8, 4, 4, 2, 2), widths, 1280)
        for name, widths in {
            'cifar_mobilenet_v2': (32, 16, 24, 32, 64, 96, 160, 320),
            'cifar_mobilenet_v2_x0.5': (16, 8, 12, 16, 32, 48, 80, 160),
        }.items()
    },
    'imagenet_mobilenet_v2': _of(
        (112, 112, 56, 28, 14, 14, 7, 7), (32, 16, 24, 32, 64, 96, 160, 320), 1280
    ),
    'mobilenet_v1': _of((112, 112, 56, 28, 14, 7), (32, 64, 128, 256, 512, 1024), 1024),
    'mobilenet_v3_large': _of((112, 112, 56, 28, 14, 14, 7), (16, 16, 24, 40, 80, 112, 160), 1280),
    'mobilenet_v3_small': _of((112, 56, 28, 14, 14, 7), (16, 16, 24, 40, 48, 96), 1024),
    'efficientnet_b0': _of(
        (112, 112, 56, 28, 14, 14, 7, 7), (32, 16, 24, 40, 80, 112, 192, 320), 1280
    ),
    'imagenet_shufflenet_v1': _shuffled(True, (240, 480, 960), 960),
    'cifar_shufflenet_v1': _shuffled(False, (240, 480, 960), 960),
    'imagenet_shufflenet_v2_x1_0': _shuffled(True, _V2, 1024),
    'cifar_shufflenet_v2': _shuffled(False, _V2, 1024),
    'imagenet_shufflenet_v2_x2_0': _shuffled(True, (244, 488, 976), 2048),
    'cifar_shufflenet_v2_x2_0': _shuffled(False, (224, 488, 976), 2048),
    **{
        name: _shuffled(name.startswith('imagenet'), *_SHUFFLENET_V2[name[-4:]])
        for name in SHUFFLENETS
        if name[-4:] in _SHUFFLENET_V2
    },
    **{
        name: _of((224, 224, 112, 56, 28, 14), _VGG_WIDTHS, 4096)
        if name.startswith('imagenet')
        else _of((32, 32, 16, 8, 4, 4), _VGG_WIDTHS, 512)
        for name in VGGS
    },
    'inception_v3': [(35, 192), (35, 288), (17, 768), (8, 2048), 2048],
    'googlenet': [(28, 192), (28, 480), (14, 832), (7, 1024), 1024],
}


def expected_shapes(features):
    """{feature: shape without the batch} of an entry of `FEATURES`."""
    *maps, pooled = features
    keys = ['stem', *(f'stage{i}' for i in range(1, len(maps)))]
    return {key: (side, side, width) for key, (side, width) in zip(keys, maps, strict=True)} | {
        'pooled': (pooled,)
    }


# Exceptions of what the tests use: the smallest image (otherwise 8 pixels, 32 for
# ImageNet's models) and width (0.125).
SMALLEST = {'inception_v3': 75}
NARROWEST = {'resnext50_32x4d': 0.25}
