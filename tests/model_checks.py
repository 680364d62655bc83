"""What several test files ask of a model: the vocabulary of its outputs, what depends on the
number of classes, how its layers start, what training reaches, and PyTorch's tensors and features.

The golden files are made by golden/make.py. The same random weights go through the importer, so
its names are proved too.
"""

import json
import re
import sys

import flax
import jax
import jax.numpy as jnp
import numpy as np
import small_models
from helpers import FASTEST_COMPILE, TESTS, quickly
from model_facts import EXPECTED
from small_models import RECTIFIED, image_of, random_variables, size

from kd_jax import models, pretrained
from kd_jax.models import Output, build, initial
from kd_jax.pretrained import matching

GOLDEN = TESTS / 'golden'
sys.path.insert(0, str(GOLDEN))

import weights  # noqa: E402

GOLDENS = sorted(path.stem for path in GOLDEN.glob('*.npz'))
SMALL_GOLDENS = ('resnet8x4', 'wrn_16_2')  # compared in unit/
COUNTS = json.loads((GOLDEN / 'counts.json').read_text())
# what the table of models does not list by itself
VARIANTS = {'googlenet_aux': {'name': 'googlenet', 'aux': True}}


def plan_of(name, classes, image, **overrides):
    """`initial.Plan` of a model, from the plain forms of its layers: they are traced in half the
    time.
    """
    model = build(name, classes, fast=False, **overrides)
    image = np.zeros(image, np.float32)
    return initial.Plan(lambda key: model.init_with_output(key, image, train=False))


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep='/')


def assert_vocabulary(name, output, image, classes):
    """Names, shapes and types of what a model returns for images of shape `image`."""
    stages = [f'stage{i}' for i in range(1, EXPECTED[name].stages + 1)]
    assert isinstance(output, Output)
    before = {f'{stage}_pre': stage for stage in stages if name in RECTIFIED}
    assert set(output.features) == {'stem', *stages, *before, 'pooled'}
    assert all(output.features[pre] == output.features[stage] for pre, stage in before.items())
    assert output.logits.shape == (image[0], classes) and output.logits.dtype == jnp.float32
    height, width = image[1:3]
    for key in ('stem', *stages):
        feature = output.features[key]
        assert feature.ndim == 4 and feature.shape[0] == image[0]
        # unpadded windows lose more; nothing ever grows
        halvings, lost = (3, 19) if key == 'stem' else (1, 7)
        assert (height - lost) // 2**halvings <= feature.shape[1] <= height
        assert (width - lost) // 2**halvings <= feature.shape[2] <= width
        height, width = feature.shape[1:3]
    assert output.features['pooled'].ndim == 2 and output.features['pooled'].dtype == jnp.float32


def assert_head_alone_depends_on_the_classes(name, these, others):
    """`these` and `others` are {path: shape} of the parameters with two numbers of classes."""
    assert these.keys() == others.keys()
    dependent = {path for path in these if these[path] != others[path]}
    assert {'head/kernel', 'head/bias'} <= dependent
    assert all(path.startswith('head') for path in dependent)
    assert not any(
        path.startswith('head') and path.count('/') == 1 for path in set(these) - dependent
    )
    for stage in range(1, EXPECTED[name].stages + 1):
        assert any(re.match(f'stage{stage}', path) for path in these)
    assert all(re.fullmatch(r'[a-z0-9_]+(/[a-z0-9_]+){1,4}', path) for path in these)
    assert not any('_0' in path for path in these)  # every module is named


def assert_drawn_on_the_host(plan, monkeypatch):
    """Every layer says how it starts; otherwise `draw` would fall back to compiling."""
    monkeypatch.setattr(jax, 'jit', None)
    got = flat(plan.draw((0,)))
    assert {p: (x.shape, x.dtype) for p, x in got.items()} == {
        p: (x.shape, x.dtype) for p, x in flat(plan.shapes).items()
    }
    assert all(isinstance(x, np.ndarray) for x in got.values())


def assert_training_reaches_everything(model, side, half=True):
    """Every parameter has a gradient, and only running statistics change. And `half` precision
    stays finite on the way.
    """
    image = image_of(4, side, side, 3)
    variables = random_variables(model, image.shape)

    def loss(params, model_state, image):
        rngs = {'dropout': jax.random.key(0)}
        output, new = model.apply(
            {'params': params, **model_state}, image, train=True, mutable=True, rngs=rngs
        )
        logits = [output.logits, *(head.logits for head in output.heads.values())]
        return sum((z * np.arange(40.0).reshape(4, 10)).mean() for z in logits), new

    def run(variables, image):
        state = {key: value for key, value in variables.items() if key != 'params'}
        found = jax.grad(loss, has_aux=True)(variables['params'], state, image)
        if not half:
            return found
        narrow = model.clone(dtype=jnp.bfloat16).apply(variables, image, train=False)
        return *found, narrow.logits

    gradients, new, *logits = jax.device_get(quickly(run, FASTEST_COMPILE)(variables, image))
    gradients = flat(gradients)
    assert size(gradients) == size(variables['params'])
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, path
    assert new.keys() == variables.keys()
    jax.tree.map(np.testing.assert_array_equal, new['params'], variables['params'])
    before = flat(variables.get('batch_stats', {}))
    for path, value in flat(new.get('batch_stats', {})).items():
        assert (value != before[path]).any(), path
    for values in logits:
        assert values.dtype == np.float32 and np.isfinite(values).all() and values.std() > 0


def assert_bfloat16_stays_close(name, **overrides):
    """And parameters, logits and `pooled` are float32."""
    image = image_of(4, 16, 16, 3)
    full, half = (
        build(name, 10, dtype=dtype, fast=False, **overrides)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    variables = random_variables(full, image.shape)
    assert {leaf.dtype for leaf in jax.tree.leaves(small_models.shapes_of(half, image.shape))} == {
        jnp.dtype('float32')
    }
    full, half = (small_models.predict(model, variables, image) for model in (full, half))
    assert half.logits.dtype == half.features['pooled'].dtype == jnp.float32
    assert {value.dtype for key, value in half.features.items() if key != 'pooled'} == {
        jnp.dtype('bfloat16')
    }
    full, half = np.asarray(full.logits), np.asarray(half.logits)
    assert np.isfinite(half).all() and (half != full).any()
    np.testing.assert_allclose(half, full, atol=0.1 * np.abs(full).max())
    # The classifier itself is not in half precision: few logits would
    # survive a trip through bfloat16.
    assert (half.astype(jnp.bfloat16).astype(np.float32) == half).mean() < 0.2


def torch_like(name, classes=7, **overrides):
    """{PyTorch's name: zeros} of a model under its first rule that fits; broadcast,
    so that they cost no memory.
    """
    shapes = matching.shapes_of(name, overrides)
    for rule in pretrained.RULES[models.MODELS[name].func]:
        places = matching.names_of(shapes, rule)
        if places:
            break
    tensors = {}
    for key, place in places.items():
        shape = [{matching.CLASSES: classes, matching.CHANNELS: 3}.get(n, n) for n in shapes[place]]
        shape = (
            [shape[i] for i in {2: (1, 0), 4: (3, 2, 0, 1)}[len(shape)]]
            if place[-1] == 'kernel'
            else shape
        )
        tensors[key] = np.broadcast_to(np.float32(0), shape)
    return tensors


def assert_tensors_are_found(name):
    """By names and shapes alone; that the names are those of the published code is
    tested with the golden files.
    """
    tensors = torch_like(name)
    assert sum(x.size for x in tensors.values()) > 50_000
    assert matching.fits(tensors, name)
    fit = matching.best_fit(tensors, name, {})
    assert fit.sizes == {matching.CLASSES: 7, matching.CHANNELS: 3}
    assert len(set(fit.places.values())) == len(fit.places) == len(tensors)
    one = next(iter(tensors))
    assert not matching.fits({key: x for key, x in tensors.items() if key != one}, name)
    assert not matching.fits(tensors | {'another.weight': tensors[one]}, name)


def variant(name):
    """{'name', and overrides} of what golden/ calls `name`."""
    return VARIANTS.get(name, {'name': name})


def features_and_logits(imported, images):
    """Features, logits and the auxiliary heads' logits (`head_<name>`)."""
    model = build(num_classes=imported.num_classes, **imported.model)
    output = jax.device_get(small_models.predict(model, imported.variables, images))
    heads = {f'head_{key}': head.logits for key, head in output.heads.items() if key != 'head'}
    found = {**output.features, **heads, 'logits': output.logits}
    return {key: value for key, value in found.items() if not key.endswith('_pre')}


def assert_equal_to_pytorch(name, monkeypatch, tmp_path):
    """Imported weights give the features and logits of the golden file."""
    with np.load(GOLDEN / f'{name}.npz') as file:
        expected = dict(file)
    lines = [line.split() for line in bytes(expected.pop('inventory')).decode().splitlines()]
    state = {key: weights.tensor(key, tuple(map(int, shape))) for key, *shape in lines}
    # real files are read elsewhere
    monkeypatch.setattr(pretrained.reader, 'read', lambda path, note: state)
    path = tmp_path / 'weights.pth'
    path.touch()
    imported = pretrained.load(path, variant(name))
    assert sum(x.size for x in state.values()) == sum(
        size(tree) for tree in imported.variables.values()
    )
    got = features_and_logits(imported, weights.image(*expected.pop('image')))
    assert got.keys() == {key.partition('.')[0] for key in expected}
    for key, value in got.items():
        assert value.shape == tuple(expected[f'{key}.shape']), key
        assert expected[key].std() > 0.01, key  # a dead network would prove nothing
        value = value.reshape(-1) if key == 'logits' else weights.sample(value)
        np.testing.assert_allclose(
            value, expected[key], rtol=0, atol=1e-4 * expected[f'{key}.max'], err_msg=key
        )


def assert_equal_to_reference(output, expected):
    """Features and logits are those of a float64 forward pass."""
    got = {**output.features, 'logits': output.logits}
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert value.std() > 1e-2, key  # a dead network would prove nothing
        np.testing.assert_allclose(got[key], value, atol=2e-4 * np.abs(value).max(), err_msg=key)
