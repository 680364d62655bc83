"""Cheap checks of the model zoo: one small model of each family is traced, some are run. All
models of the table are in zoo/.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import model_checks as checks
import numpy as np
import pytest
from helpers import FASTEST_COMPILE, quickly
from model_checks import flat
from model_facts import EXPECTED
from model_reference import Reference
from shufflenet_reference import Shuffled
from small_models import image_of, predict, random_variables, shapes_of, side_of, size

from kd_jax.errors import UserError
from kd_jax.models import MODELS, build
from kd_jax.models.common import scaled
from kd_jax.models.shufflenet import ShuffleNetV2, shuffle

# One model of each family, with as few blocks as it can have.
SHALLOW = {'width': 0.25, 'depth': 0.1}
SMALL = {
    'cnn': {},
    'resnet8': {'width': 0.5},
    'resnet18': SHALLOW,
    'wrn_16_1': {'depth': 0.1},
    'cifar_mobilenet_v2': SHALLOW,
    'imagenet_mobilenet_v2': SHALLOW,
    'mobilenet_v1': SHALLOW,
    'mobilenet_v3_small': SHALLOW,
    'efficientnet_b0': SHALLOW,
    'cifar_shufflenet_v1': SHALLOW,
    'cifar_shufflenet_v2': SHALLOW,
    'imagenet_vgg11_bn': {'width': 0.0625},
    'cifar_vgg8': {'width': 0.25},
    'inception_v3': {'width': 0.125},
    'googlenet': {'width': 0.125},
}
LONG = ('inception_v3', 'googlenet')  # with all their modules: traced once
# A few are run: without stages, with them, and with depthwise convolutions
RUN = ('cnn', 'resnet8', 'cifar_mobilenet_v2')


def small(name, classes=10, **changes):
    return build(name, classes, **(SMALL[name] | changes))


def test_every_model_of_the_table_has_its_expectation_and_every_family_a_small_model():
    assert MODELS.keys() == EXPECTED.keys()
    assert {MODELS[name].func for name in SMALL} == {make.func for make in MODELS.values()}


# The dearest ones have it in the zoo's tests.
@pytest.mark.parametrize('name', [n for n in SMALL if n not in ('inception_v3', 'googlenet')])
def test_a_family_speaks_the_vocabulary_and_says_how_its_layers_start(name, monkeypatch):
    image = (2, side_of(name) + 1, side_of(name), 3)
    plan = checks.plan_of(name, 10, image, **SMALL[name])
    checks.assert_vocabulary(name, plan.output, image, 10)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(plan.shapes))
    checks.assert_drawn_on_the_host(plan, monkeypatch)
    if name not in LONG:
        other = checks.plan_of(name, 7, image, **SMALL[name])
        shapes = (
            {path: x.shape for path, x in flat(p.shapes['params']).items()} for p in (plan, other)
        )
        checks.assert_head_alone_depends_on_the_classes(name, *shapes)


def test_parameter_paths_of_the_families_are_stable():
    def paths(name, **overrides):
        return set(flat(shapes_of(build(name, 10, **overrides))))

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
        for i, count in enumerate((1, 1, 1, 2, 1, 1, 1), start=1)
        for j in range(1, count + 1)
    ]
    units = [
        'stem',
        'top',
        *(f'stage{i}_block{j}/{u}' for i, j in blocks for u in ('expand', 'depthwise', 'project')),
    ]
    assert (
        paths('cifar_mobilenet_v2', depth=0.3)
        == {kind.format(unit) for unit in units for kind in kinds} | head
    )


@pytest.mark.parametrize('name', checks.SMALL_GOLDENS)
def test_imported_weights_give_the_features_and_logits_of_pytorch(name, monkeypatch, tmp_path):
    """The other golden files are in zoo/."""
    checks.assert_equal_to_pytorch(name, monkeypatch, tmp_path)


SHUFFLED = ShuffleNetV2(
    num_classes=5,
    stage_sizes=(2, 1, 1),
    width=0.25,
    small=True,
    stem_kernel=1,
    kernel=5,
    fast=False,
)
FORWARD = {
    'cnn': (build('cnn', 5), (2, 8, 8, 1), Reference.cnn),
    'narrow cnn': (build('cnn', 5, width=0.25), (2, 7, 10, 3), Reference.cnn),
    'resnet8': (small('resnet8', 5), (2, 9, 7, 1), partial(Reference.resnet, blocks=1)),
    'mobilenet': (
        small('cifar_mobilenet_v2', 5, depth=0.3),
        (2, 16, 16, 3),
        partial(Reference.mobilenet, blocks=(1, 1, 1, 2, 1, 1, 1)),
    ),
    'shufflenet': (SHUFFLED, (2, 9, 8, 1), partial(Shuffled.v2, small=True)),
}


@pytest.mark.parametrize(('model', 'image', 'reference'), FORWARD.values(), ids=FORWARD)
def test_logits_and_features_equal_a_float64_forward_pass(model, image, reference):
    variables, x = random_variables(model, image), image_of(*image)
    kind = Shuffled if model is SHUFFLED else Reference
    checks.assert_equal_to_reference(
        predict(model, variables, x), reference(kind(variables), np.float64(x))
    )


def test_shuffle_interleaves_the_groups():
    x = np.arange(2 * 3 * 12).reshape(2, 1, 3, 12)
    assert shuffle(x, 3)[0, 0, 0].tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert shuffle(x, 2)[1, 0, 2].tolist() == [60, 66, 61, 67, 62, 68, 63, 69, 64, 70, 65, 71]
    assert shuffle(x, 1).tolist() == x.tolist()


@pytest.mark.parametrize('name', RUN[:2])
def test_training_reaches_every_parameter_and_changes_only_running_statistics(name):
    """The other families are in zoo/."""
    checks.assert_training_reaches_everything(small(name, fast=False), 16, half=False)


@pytest.mark.parametrize('name', RUN)
def test_evaluation_changes_nothing_needs_no_device_axis_and_treats_each_image_alone(name):
    model = small(name, axis_name='batch', dropout=0.5, fast=False)
    image = image_of(4, 8, 8, 3)
    variables = random_variables(model, image.shape)
    forward = quickly(partial(model.apply, train=False, mutable=True), FASTEST_COMPILE)
    output, new = forward(variables, image)
    jax.tree.map(np.testing.assert_array_equal, new, variables)
    shuffled, _ = forward(variables, image[[0, 3, 1, 1]])
    np.testing.assert_allclose(shuffled.logits, np.asarray(output.logits)[[0, 3, 1, 1]], atol=1e-4)


@pytest.mark.parametrize('name', RUN[:2])
def test_bfloat16_keeps_parameters_logits_and_pooled_in_float32_and_stays_close(name):
    checks.assert_bfloat16_stays_close(name, **SMALL[name])


def test_a_model_with_dropout_drops_only_before_the_head_and_only_in_training():
    model, plain = (build('cnn', 10, dropout=rate) for rate in (0.5, 0.0))
    image = image_of(4, 8, 8, 1)
    variables = random_variables(model, image.shape)

    def run(variables, image):
        rngs = {'dropout': jax.random.key(1)}
        return (
            model.apply(variables, image, train=True, rngs=rngs),
            plain.apply(variables, image, train=True),
            model.apply(variables, image, train=False),
        )

    train, expected, evaluated = jax.device_get(quickly(run, FASTEST_COMPILE)(variables, image))
    np.testing.assert_array_equal(train.features['pooled'], expected.features['pooled'])
    assert (train.logits != expected.logits).any()
    np.testing.assert_array_equal(evaluated.logits, expected.logits)


def test_a_model_with_a_device_axis_and_dropout_can_be_initialised_in_training_mode_outside_pmap():
    model = build('resnet8', 10, axis_name='batch', dropout=0.5, fast=False)
    variables = jax.eval_shape(
        partial(model.init, train=True), jax.random.key(0), np.zeros((2, 8, 8, 3), np.float32)
    )
    assert size(variables['params']) == EXPECTED['resnet8'].params - 90 * 65


def test_width_scales_every_layer_and_rounds():
    params = shapes_of(build('resnet8', 10, width=0.4))['params']
    assert params['stem']['conv']['kernel'].shape == (3, 3, 3, 6)  # 6.4
    last = [params[f'stage{i}_block1']['conv2']['conv']['kernel'] for i in (1, 2, 3)]
    assert [kernel.shape[-1] for kernel in last] == [6, 13, 26]  # 6.4, 12.8, 25.6
    wide = shapes_of(build('cifar_mobilenet_v2', 10, width=2.0, depth=0.1))['params']
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
