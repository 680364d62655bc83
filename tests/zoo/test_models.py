"""The model zoo against published counts, arithmetic and float64 numpy."""

import re
from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FASTEST_COMPILE, quickly
from model_facts import EXPECTED, Facts
from model_reference import Reference
from small_models import (
    NAMES,
    RECTIFIED,
    SIBLINGS_SLOWLY,
    feature_shapes,
    image_of,
    macs_of,
    narrow,
    predict,
    random_variables,
    shapes_of,
    side_of,
    size,
)

from kd_jax.errors import UserError
from kd_jax.models import MODELS, Output, build
from kd_jax.models.common import scaled


def test_every_model_of_the_table_has_its_expectation():
    assert MODELS.keys() == EXPECTED.keys()


@pytest.mark.parametrize('name', NAMES)
def test_parameters_statistics_and_macs_are_the_published_ones(name):
    facts = EXPECTED[name]
    model = build(name, facts.classes, fast=False)  # the fast forms are other sums of the same
    image = (1, facts.size, facts.size, 3)
    variables = shapes_of(model, image)
    assert size(variables['params']) == facts.params
    assert size(variables.get('batch_stats', {})) == facts.statistics
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    jaxpr = jax.make_jaxpr(partial(model.apply, train=False))(variables, jnp.zeros(image))
    assert macs_of(jaxpr.jaxpr) == facts.macs


def conv_cost(side, kernel, inputs, outputs):
    """(weights, BatchNorm channels, multiply-accumulates) of a convolution with
    BatchNorm on a square output.
    """
    weights = kernel * kernel * inputs * outputs
    return np.array([weights, outputs, weights * side * side])


def resnet_facts(blocks, stem, widths):
    total, inputs = conv_cost(32, 3, 3, stem), stem
    for side, width in zip((32, 16, 8), widths, strict=True):
        total += conv_cost(side, 3, inputs, width) + (2 * blocks - 1) * conv_cost(
            side, 3, width, width
        )
        if side < 32 or inputs != width:
            total += conv_cost(side, 1, inputs, width)
        inputs = width
    return total, inputs, 3


def mobilenet_facts(width):
    stem = int(32 * width)
    total, inputs = conv_cost(16, 3, 3, stem), stem
    # channels, output side, expansion of the blocks of the published structure, one entry a block
    blocks = [(16, 16, 1)] + [(24, 16, 6)] * 2 + [(32, 8, 6)] * 3 + [(64, 4, 6)] * 4
    blocks += [(96, 4, 6)] * 3 + [(160, 2, 6)] * 3 + [(320, 2, 6)]
    before = 16
    for channels, side, expansion in blocks:
        outputs, hidden = int(channels * width), inputs * expansion
        total += conv_cost(before, 1, inputs, hidden)
        total += conv_cost(side, 3, 1, hidden) + conv_cost(side, 1, hidden, outputs)
        inputs, before = outputs, side
    return total + conv_cost(2, 1, inputs, 1280), 1280, 7


ARITHMETIC = {
    **{f'resnet{6 * n + 2}': resnet_facts(n, 16, (16, 32, 64)) for n in (1, 2, 3, 5, 7, 9, 18)},
    **{f'resnet{6 * n + 2}x4': resnet_facts(n, 32, (64, 128, 256)) for n in (1, 5)},
    'cifar_mobilenet_v2': mobilenet_facts(1.0),
    'cifar_mobilenet_v2_x0.5': mobilenet_facts(0.5),
}


@pytest.mark.parametrize('name', ['cnn', *sorted(ARITHMETIC)])
def test_the_expected_counts_follow_from_arithmetic(name):
    if name == 'cnn':
        convs = (9 * 3 * 32 + 32) + (9 * 32 * 64 + 64)
        dense = 8 * 8 * 64 * 128 + 128
        macs = 32 * 32 * 27 * 32 + 16 * 16 * 288 * 64 + 8 * 8 * 64 * 128 + 128 * 100
        facts = Facts(convs + dense + 129 * 100, 0, macs, 2, 128)
    else:
        (weights, channels, macs), pooled, stages = ARITHMETIC[name]
        body = weights + 2 * channels
        facts = Facts(body + (pooled + 1) * 100, 2 * channels, macs + pooled * 100, stages, pooled)
    assert facts == EXPECTED[name]


@pytest.mark.parametrize('shape', [(4, 28, 28, 1), (2, 8, 8, 1), (2, 31, 33, 3)])
@pytest.mark.parametrize('name', SIBLINGS_SLOWLY)
def test_every_model_speaks_the_output_vocabulary(name, shape):
    least = side_of(name)
    shape = (shape[0], max(shape[1], least), max(shape[2], least), shape[3])
    model = build(name, 7)
    init = partial(model.init_with_output, train=False)
    output, variables = jax.eval_shape(init, jax.random.key(0), jnp.zeros(shape))
    stages = [f'stage{i}' for i in range(1, EXPECTED[name].stages + 1)]
    assert isinstance(output, Output)
    before = {f'{stage}_pre': stage for stage in stages if name in RECTIFIED}
    assert set(output.features) == {'stem', *stages, *before, 'pooled'}
    # shapes and types
    assert all(output.features[pre] == output.features[stage] for pre, stage in before.items())
    assert output.logits.shape == (shape[0], 7) and output.logits.dtype == jnp.float32
    height, width = shape[1:3]
    for key in ('stem', *stages):
        feature = output.features[key]
        assert feature.ndim == 4 and feature.shape[0] == shape[0]
        # unpadded windows lose more; nothing ever grows
        halvings, lost = (3, 19) if key == 'stem' else (1, 7)
        assert (height - lost) // 2**halvings <= feature.shape[1] <= height
        assert (width - lost) // 2**halvings <= feature.shape[2] <= width
        height, width = feature.shape[1:3]
    assert output.features['pooled'].ndim == 2 and output.features['pooled'].dtype == jnp.float32
    assert variables['params']['head']['kernel'].shape == (output.features['pooled'].shape[1], 7)


# stem, stage1, ..., pooled
FEATURES = {
    'cnn': [(32, 32, 32), (32, 32, 32), (16, 16, 64), (128,)],
    'resnet56': [(32, 32, 16), (32, 32, 16), (16, 16, 32), (8, 8, 64), (64,)],
    'resnet8x4': [(32, 32, 32), (32, 32, 64), (16, 16, 128), (8, 8, 256), (256,)],
    'cifar_mobilenet_v2_x0.5': [
        *[
            (16, 16, 16),
            (16, 16, 8),
            (16, 16, 12),
            (8, 8, 16),
            (4, 4, 32),
            (4, 4, 48),
            (2, 2, 80),
            (2, 2, 160),
            (1280,),
        ]
    ],
}


@pytest.mark.parametrize('name', sorted(FEATURES))
def test_the_feature_shapes_at_32_pixels(name):
    keys = ['stem', *(f'stage{i + 1}' for i in range(EXPECTED[name].stages)), 'pooled']
    assert feature_shapes(build(name, 10), 3, 32, 32, 3) == dict(
        zip(keys, FEATURES[name], strict=True)
    )


@pytest.mark.parametrize('name', SIBLINGS_SLOWLY)
def test_only_the_head_depends_on_the_classes_and_paths_are_the_same_in_every_family(name):
    image = (2, *[max(side_of(name), 32)] * 2, 3)
    ten, seven = (
        flax.traverse_util.flatten_dict(shapes_of(build(name, k), image)['params'], sep='/')
        for k in (10, 7)
    )
    assert ten.keys() == seven.keys()
    dependent = {path for path in ten if ten[path].shape != seven[path].shape}
    assert {'head/kernel', 'head/bias'} <= dependent and all(
        path.startswith('head') for path in dependent
    )
    assert not any(
        path.startswith('head') and path.count('/') == 1 for path in set(ten) - dependent
    )
    for stage in range(1, EXPECTED[name].stages + 1):
        assert any(re.match(f'stage{stage}', path) for path in ten)
    assert all(re.fullmatch(r'[a-z0-9_]+(/[a-z0-9_]+){1,4}', path) for path in ten)
    assert not any('_0' in path for path in ten)  # every module is named


def test_parameter_paths_of_the_families_are_stable():
    def paths(name):
        return set(flax.traverse_util.flatten_dict(shapes_of(build(name, 10)), sep='/'))

    modules = ('stage1/conv', 'stage2/conv', 'dense', 'head')
    assert paths('cnn') == {
        f'params/{module}/{kind}' for module in modules for kind in ('kernel', 'bias')
    }
    head = {'params/head/kernel', 'params/head/bias'}
    units = ['stem', 'stage1_block1/conv1', 'stage1_block1/conv2']
    units += [f'stage{i}_block1/{u}' for i in (2, 3) for u in ('conv1', 'conv2', 'shortcut')]
    kinds = ('params/{}/conv/kernel', 'params/{}/norm/scale', 'params/{}/norm/bias')
    kinds += ('batch_stats/{}/norm/mean', 'batch_stats/{}/norm/var')
    assert paths('resnet8') == {kind.format(unit) for unit in units for kind in kinds} | head
    blocks = [
        (i, j)
        for i, count in enumerate((1, 2, 3, 4, 3, 3, 1), start=1)
        for j in range(1, count + 1)
    ]
    units = [
        'stem',
        'top',
        *(f'stage{i}_block{j}/{u}' for i, j in blocks for u in ('expand', 'depthwise', 'project')),
    ]
    assert (
        paths('cifar_mobilenet_v2')
        == {kind.format(unit) for unit in units for kind in kinds} | head
    )


@pytest.mark.parametrize(
    ('name', 'width', 'image', 'reference'),
    [
        ('cnn', None, (2, 8, 8, 1), Reference.cnn),
        ('cnn', 0.25, (2, 7, 10, 3), Reference.cnn),
        ('resnet14', None, (2, 8, 8, 3), partial(Reference.resnet, blocks=2)),
        ('resnet8', 0.5, (2, 9, 7, 1), partial(Reference.resnet, blocks=1)),
        ('resnet8x4', 0.25, (2, 8, 8, 3), partial(Reference.resnet, blocks=1)),
        ('cifar_mobilenet_v2', 0.25, (2, 16, 16, 3), Reference.mobilenet),
    ],
)
def test_logits_and_features_equal_a_float64_forward_pass(name, width, image, reference):
    model = build(name, 5, width=width)
    variables, x = random_variables(model, image), image_of(*image)
    output = predict(model, variables, x)
    expected = reference(Reference(variables), np.float64(x))
    got = {**output.features, 'logits': output.logits}
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert value.std() > 1e-2  # a dead network would prove nothing
        np.testing.assert_allclose(got[key], value, atol=2e-4 * np.abs(value).max(), err_msg=key)


@pytest.mark.parametrize('name', SIBLINGS_SLOWLY)
def test_training_reaches_every_parameter_and_changes_only_running_statistics(name):
    """At full depth; the forms for ImageNet narrower, which changes no path. And
    bfloat16 stays finite on the way.
    """
    model = build(name, 10, fast=False, **narrow(name))  # the plain forms are fewer operations
    image = image_of(4, *[max(side_of(name), 16)] * 2, 3)
    variables = random_variables(model, image.shape)

    def loss(params, model_state, image):
        rngs = {'dropout': jax.random.key(0)}
        output, new = model.apply(
            {'params': params, **model_state}, image, train=True, mutable=True, rngs=rngs
        )
        logits = [output.logits, *(head.logits for head in output.heads.values())]
        return sum((z * jnp.arange(40.0).reshape(4, 10)).mean() for z in logits), new

    model_state = {key: value for key, value in variables.items() if key != 'params'}
    gradients, new = quickly(jax.grad(loss, has_aux=True), FASTEST_COMPILE)(
        variables['params'], model_state, image
    )
    gradients = flax.traverse_util.flatten_dict(gradients, sep='/')
    assert size(gradients) == size(variables['params'])
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, path
    assert new.keys() == variables.keys()
    jax.tree.map(np.testing.assert_array_equal, new['params'], variables['params'])
    for path, value in flax.traverse_util.flatten_dict(new.get('batch_stats', {})).items():
        before = variables['batch_stats']
        for part in path:
            before = before[part]
        assert (value != before).any(), path
    half = predict(model.clone(dtype=jnp.bfloat16), variables, image)
    assert (
        half.logits.dtype == jnp.float32
        and jnp.isfinite(half.logits).all()
        and half.logits.std() > 0
    )


@pytest.mark.parametrize('name', ['cnn', 'resnet8', 'cifar_mobilenet_v2_x0.5'])
def test_evaluation_changes_nothing_needs_no_device_axis_and_treats_each_image_alone(name):
    model = build(name, 10, axis_name='batch', dropout=0.5)
    image = image_of(4, 8, 8, 3)
    variables = random_variables(model, image.shape)
    output, new = predict(model, variables, image, mutable=True)
    jax.tree.map(np.testing.assert_array_equal, new, variables)
    shuffled, _ = predict(model, variables, image[[0, 3, 1, 1]], mutable=True)
    np.testing.assert_allclose(shuffled.logits, output.logits[jnp.array([0, 3, 1, 1])], atol=1e-4)


@pytest.mark.parametrize('name', ['cnn', 'resnet8', 'cifar_mobilenet_v2_x0.5'])
def test_bfloat16_keeps_parameters_logits_and_pooled_in_float32_and_stays_close(name):
    image = image_of(4, 16, 16, 3)
    full, half = (build(name, 10, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    variables = random_variables(full, image.shape)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(half, image.shape))} == {
        jnp.dtype('float32')
    }
    full, half = (predict(model, variables, image) for model in (full, half))
    assert half.logits.dtype == half.features['pooled'].dtype == jnp.float32
    assert {value.dtype for key, value in half.features.items() if key != 'pooled'} == {
        jnp.dtype('bfloat16')
    }
    assert np.isfinite(half.logits).all() and (half.logits != full.logits).any()
    np.testing.assert_allclose(half.logits, full.logits, atol=0.1 * np.abs(full.logits).max())
    # The classifier itself is not in half precision: few logits would
    # survive a trip through bfloat16.
    assert (half.logits.astype(jnp.bfloat16).astype(jnp.float32) == half.logits).mean() < 0.2


def test_batch_norm_over_four_devices_equals_one_device():
    image = image_of(16, 8, 8, 3)
    one, four = build('resnet8', 10, width=0.5), build('resnet8', 10, width=0.5, axis_name='batch')
    variables = random_variables(one, image.shape)

    def forward(model, image):
        return model.apply(variables, image, train=True, mutable=['batch_stats'])

    expected, expected_state = quickly(partial(forward, one))(image)
    shards = image.reshape(4, 4, 8, 8, 3)
    output, state = jax.pmap(partial(forward, four), axis_name='batch')(shards)
    for key, value in {**expected.features, 'logits': expected.logits}.items():
        sharded = output.logits if key == 'logits' else output.features[key]
        np.testing.assert_allclose(
            np.asarray(sharded).reshape(value.shape), value, atol=1e-5, err_msg=key
        )
    for device in range(4):
        jax.tree.map(
            lambda a, b, d=device: np.testing.assert_allclose(a[d], b, atol=1e-5),
            state,
            expected_state,
        )
    local, _ = jax.pmap(partial(forward, one), axis_name='batch')(shards)
    # the axis name matters
    assert np.abs(np.asarray(local.logits).reshape(16, 10) - expected.logits).max() > 1e-2


def test_a_model_with_dropout_drops_only_before_the_head_and_only_in_training():
    model, plain = (build('cnn', 10, dropout=rate) for rate in (0.5, 0.0))
    image = image_of(4, 8, 8, 1)
    variables = random_variables(model, image.shape)
    rngs = {'dropout': jax.random.key(1)}
    train = model.apply(variables, image, train=True, rngs=rngs)
    expected = plain.apply(variables, image, train=True)
    np.testing.assert_array_equal(train.features['pooled'], expected.features['pooled'])
    assert (train.logits != expected.logits).any()
    np.testing.assert_array_equal(
        model.apply(variables, image, train=False).logits, expected.logits
    )


def test_a_model_with_a_device_axis_and_dropout_can_be_initialised_in_training_mode_outside_pmap():
    model = build('resnet8', 10, axis_name='batch', dropout=0.5)
    variables = jax.eval_shape(
        partial(model.init, train=True), jax.random.key(0), jnp.zeros((2, 8, 8, 3))
    )
    assert size(variables['params']) == EXPECTED['resnet8'].params - 90 * 65


def test_width_scales_every_layer_and_rounds():
    params = shapes_of(build('resnet8', 10, width=0.4))['params']
    assert params['stem']['conv']['kernel'].shape == (3, 3, 3, 6)  # 6.4
    last = [params[f'stage{i}_block1']['conv2']['conv']['kernel'] for i in (1, 2, 3)]
    assert [kernel.shape[-1] for kernel in last] == [6, 13, 26]  # 6.4, 12.8, 25.6
    wide = shapes_of(build('cifar_mobilenet_v2', 10, width=2.0))['params']
    # only here does the last layer scale
    assert wide['top']['conv']['kernel'].shape == (1, 1, 640, 2560)
    assert shapes_of(build('cnn', 10, width=2.0))['params']['dense']['kernel'].shape == (
        8 * 8 * 128,
        256,
    )


def test_none_keeps_the_variants_own_value():
    assert build('cifar_mobilenet_v2_x0.5', 10, width=None, dropout=None) == build(
        'cifar_mobilenet_v2_x0.5', 10
    )
    assert build('cifar_mobilenet_v2', 10, width=0.5) == build('cifar_mobilenet_v2_x0.5', 10)


def test_an_unknown_model_names_the_closest_and_the_known_ones():
    with pytest.raises(
        UserError, match=r"^unknown model 'resnet65'; did you mean 'resnet56'\? known: "
    ) as error:
        build('resnet65', 10)
    assert all(name in str(error.value) for name in MODELS)


def test_an_unknown_field_names_the_allowed_ones():
    with pytest.raises(UserError) as error:
        build('resnet20', 10, hight=3)
    allowed = (
        'adapter, average_heads, depth, dropout, heads, kernel, stage_sizes, stem, width, widths'
    )
    assert str(error.value) == f"model 'resnet20' has no field 'hight'; its fields: {allowed}"


@pytest.mark.parametrize('rate', [-0.1, 1.0, 50])
def test_a_dropout_rate_outside_its_range_is_refused(rate):
    with pytest.raises(
        UserError,
        match=re.escape(f"dropout {rate} of model 'cnn' is not possible; it must be at least 0"),
    ):
        build('cnn', 10, dropout=rate)


def test_a_width_that_leaves_no_channel_is_refused():
    assert scaled(16, 0.0625) == 1
    with pytest.raises(
        UserError, match=r'^width 0\.01 leaves none of a layer of 16 channels; use 0\.0625 or more'
    ):
        shapes_of(build('resnet20', 10, width=0.01))
