"""VGG: structure, float64 numpy, overrides, and the names of published weights."""

import itertools
import math
import re
from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quickly
from model_checks import assert_equal_to_reference
from model_facts import EXPECTED, Facts
from model_reference import Reference, conv_reference, rectified
from small_models import image_of, predict, random_variables, shapes_of

from kd_jax.errors import UserError
from kd_jax.models import build
from kd_jax.pretrained import vgg as names

CHANNELS = (64, 128, 256, 512, 512)
STAGES = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def facts_of(name):
    """Counts from the structure: the number in the name counts the convolutions and
    the paper's three dense layers.
    """
    large = name.startswith('imagenet')
    convolutions = STAGES[int(re.search(r'\d+', name)[0])]
    sides = (224, 112, 56, 28, 14) if large else (32, 16, 8, 4, 4)
    norm = name.endswith('_bn') or not large
    params = statistics = macs = 0
    inputs = 3
    for count, channels, side in zip(convolutions, CHANNELS, sides, strict=True):
        for _ in range(count):
            params += 9 * inputs * channels + channels + 2 * channels * norm
            statistics += 2 * channels * norm
            macs += side * side * 9 * inputs * channels
            inputs = channels
    dense = [7 * 7 * 512, 4096, 4096, 1000] if large else [512, 100]
    for inputs, outputs in itertools.pairwise(dense):
        params += (inputs + 1) * outputs
        macs += inputs * outputs
    return Facts(params, statistics, macs, 5, dense[-2], dense[-1], 224 if large else 32)


@pytest.mark.parametrize('name', sorted(name for name in EXPECTED if 'vgg' in name))
def test_the_expected_counts_follow_from_arithmetic(name):
    assert facts_of(name) == EXPECTED[name]


def feature_shapes(name, image):
    model = build(name, 10)
    features = jax.eval_shape(
        partial(model.apply, train=False), shapes_of(model, image), jnp.zeros(image)
    ).features
    return [
        features[key].shape[1:]
        for key in ('stem', 'stage1', 'stage2', 'stage3', 'stage4', 'stage5', 'pooled')
    ]


def test_the_small_networks_pool_a_fourth_time_in_images_64_high_and_in_no_others():
    last = [
        feature_shapes('cifar_vgg13', (1, *side, 3))[4:6]
        for side in ((64, 64), (64, 32), (32, 64), (65, 65))
    ]
    assert [(a[:2], b[:2]) for a, b in last] == [
        ((8, 8), (4, 4)),
        ((8, 4), (4, 2)),
        ((4, 8), (4, 8)),
        ((8, 8), (8, 8)),
    ]


class VGGReference(Reference):
    def convolution(self, name, x):
        y = conv_reference(x, self.param(f'{name}/conv/kernel')) + self.param(f'{name}/conv/bias')
        if f'batch_stats/{name}/norm/mean' in self.values:
            y = (y - self.statistic(f'{name}/norm/mean')) / np.sqrt(
                self.statistic(f'{name}/norm/var') + 1e-5
            )
            y = y * self.param(f'{name}/norm/scale') + self.param(f'{name}/norm/bias')
        return y

    def stages(self, x, counts, pools):
        features = {}
        for stage, count in enumerate(counts, start=1):
            for number in range(1, count + 1):
                features |= rectified(stage, self.convolution(f'stage{stage}_block{number}', x))
                x = features[f'stage{stage}']
            if stage <= pools:
                b, h, w, c = x.shape
                x = (
                    x[:, : h // 2 * 2, : w // 2 * 2]
                    .reshape(b, h // 2, 2, w // 2, 2, c)
                    .max(axis=(2, 4))
                )
        return features | {'stem': features['stage1']}, x

    def large(self, x, counts):
        features, x = self.stages(x, counts, 5)
        b, h, w, c = x.shape
        flat = np.zeros((b, c, 7, 7))
        for i in range(7):
            for j in range(7):
                rows = slice(math.floor(i * h / 7), math.ceil((i + 1) * h / 7))
                columns = slice(math.floor(j * w / 7), math.ceil((j + 1) * w / 7))
                flat[:, :, i, j] = x[:, rows, columns].mean(axis=(1, 2))
        x = np.maximum(self.linear('top_dense1', flat.reshape(b, -1)), 0)
        features['pooled'] = np.maximum(self.linear('top_dense2', x), 0)
        return features | {'logits': self.linear('head', features['pooled'])}

    def small(self, x, counts, pools):
        features, x = self.stages(x, counts, pools)
        features['pooled'] = x.mean(axis=(1, 2))
        return features | {'logits': self.linear('head', features['pooled'])}


@pytest.mark.parametrize(
    ('name', 'image', 'reference'),
    [
        ('imagenet_vgg11', (2, 33, 70, 3), partial(VGGReference.large, counts=STAGES[11])),
        ('imagenet_vgg13_bn', (2, 32, 32, 1), partial(VGGReference.large, counts=STAGES[13])),
        ('cifar_vgg11', (2, 16, 19, 3), partial(VGGReference.small, counts=STAGES[11], pools=3)),
        ('cifar_vgg8', (2, 64, 16, 3), partial(VGGReference.small, counts=STAGES[8], pools=4)),
    ],
)
def test_logits_and_features_equal_a_float64_forward_pass(name, image, reference):
    model = build(name, 5, width=0.0625)
    variables, x = random_variables(model, image), image_of(*image)
    assert_equal_to_reference(
        predict(model, variables, x), reference(VGGReference(variables), np.float64(x))
    )


def test_dropout_acts_before_the_second_dense_layer_too_and_only_in_training():
    model, plain = (build('imagenet_vgg11', 5, width=0.0625, dropout=rate) for rate in (None, 0.0))
    assert model.dropout == 0.5
    image = image_of(2, 32, 32, 3)
    variables = random_variables(model, image.shape)
    expected = predict(plain, variables, image)
    np.testing.assert_array_equal(predict(model, variables, image).logits, expected.logits)

    train = quickly(
        lambda key: model.apply(variables, image, train=True, rngs={'dropout': key}).features
    )
    drawn = [train(jax.random.key(seed)) for seed in range(2)]
    for features in drawn:
        np.testing.assert_allclose(features['stage5'], expected.features['stage5'], atol=1e-4)
    first, second, without = (np.asarray(f['pooled']) for f in (*drawn, expected.features))
    scale = np.abs(without).max()
    assert (
        np.abs(first - second).max() > 0.1 * scale and np.abs(first - without).max() > 0.1 * scale
    )


def named(name, rule):
    """{path of our module: PyTorch's prefix} of a model."""
    shapes = shapes_of(build(name, 10), (1, 32, 32, 3))['params']
    paths = dict.fromkeys('/'.join(path[:-1]) for path in flax.traverse_util.flatten_dict(shapes))
    blocks = [
        f'stage{i}_block{j}'
        for i, n in enumerate(STAGES[int(re.search(r'\d+', name)[0])], 1)
        for j in range(1, n + 1)
    ]
    return {path: rule(path, blocks) for path in paths}


def test_the_names_of_torchvision():
    dense = {'classifier.0', 'classifier.3', 'classifier.6'}
    convolutions = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    prefixes = named('imagenet_vgg16', names.torchvision)
    assert set(prefixes.values()) == {f'features.{n}' for n in convolutions} | dense
    assert prefixes['stage3_block2/conv'] == 'features.12' and prefixes['head'] == 'classifier.6'
    convolutions = [0, 4, 8, 11, 15, 18, 22, 25]
    prefixes = named('imagenet_vgg11_bn', names.torchvision_bn)
    assert (
        set(prefixes.values())
        == {f'features.{n + k}' for n in convolutions for k in (0, 1)} | dense
    )
    assert (
        prefixes['stage3_block2/norm'] == 'features.12' and prefixes['top_dense2'] == 'classifier.3'
    )


def test_the_names_of_repdistiller():
    prefixes = named('cifar_vgg13', names.repdistiller)
    assert set(prefixes.values()) == {f'block{i}.{j}' for i in range(5) for j in (0, 1, 3, 4)} | {
        'classifier'
    }
    assert (
        prefixes['stage2_block2/conv'] == 'block1.3'
        and prefixes['stage5_block1/norm'] == 'block4.1'
    )


@pytest.mark.parametrize(
    ('rule', 'module'),
    [
        (names.torchvision, 'stage1_block1/norm'),
        (names.torchvision_bn, 'stage1_block1_adapter/down'),
        (names.repdistiller, 'top_dense1'),
    ],
)
def test_a_module_that_the_published_code_does_not_have_is_refused(rule, module):
    with pytest.raises(UserError, match=f"^module '{module}' has no counterpart in this VGG of "):
        rule(module, ['stage1_block1'])
