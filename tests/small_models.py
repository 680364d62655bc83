"""Models of the table, small and with random variables, for tests that need one."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from helpers import FASTEST_COMPILE, quickly
from logit_losses import softmax
from model_facts import EXPECTED, NARROWEST, SMALLEST

from kd_jax.models import MODELS, build
from kd_jax.pretrained import matching, resnet

NAMES = sorted(EXPECTED)

# Models whose stages end in a ReLU of the whole; blocks of the others end in a sum, a
# linear layer or a concatenation.
RECTIFIED = {
    name
    for name, make in MODELS.items()
    if make.func.__name__
    in ('CNN', 'CifarResNet', 'ResNet', 'VGG', 'CifarVGG', 'MobileNetV1', 'ShuffleNetV1')
}


def side_of(name):
    """The smallest image, in pixels, on which the tests call the model."""
    return SMALLEST.get(name, 32 if EXPECTED[name].size > 32 else 8)


def narrow(name):
    """Overrides under which a large model is quick."""
    return {'width': NARROWEST.get(name, 0.125)} if EXPECTED[name].size > 32 else {}


@cache
def traced(model, image_shape):
    """(output, variables) as shapes."""
    init = partial(model.init_with_output, train=False)
    return jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct(image_shape, jnp.float32))


def shapes_of(model, image_shape=(2, 32, 32, 3)):
    """The shapes of the variables, from the plain forms of the layers: they
    are traced in half the time.
    """
    plain = model.clone(fast=False) if hasattr(model, 'fast') else model
    return traced(plain, tuple(image_shape))[1]


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def random_variables(model, image_shape, seed=0):
    """Variables with nothing at a special value: no zero bias, unit scale or zero
    mean. Much faster than `init`.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == 'kernel':
            return np.float32(
                rng.normal(size=leaf.shape) * math.sqrt(2 / math.prod(leaf.shape[:-1]))
            )
        if name in ('scale', 'var'):
            return np.float32(rng.uniform(0.5, 1.5, leaf.shape))
        return np.float32(rng.normal(size=leaf.shape) * 0.1)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(model, image_shape))


def image_of(*shape, seed=0):
    return np.float32(np.random.default_rng(seed).normal(size=shape))


def predict(model, variables, image, options=FASTEST_COMPILE, **kwargs):
    """`model.apply` in evaluation mode; where the last bit matters,
    `options` are `FAST_COMPILE`.
    """
    return quickly(partial(model.apply, train=False, **kwargs), options)(variables, image)


def feature_shapes(model, *image):
    """The features' shapes without the batch; what comes before a ReLU has
    its stage's and is left out.
    """
    output, _ = traced(model.clone(fast=False), image)
    return {
        key: value.shape[1:] for key, value in output.features.items() if not key.endswith('_pre')
    }


def macs_of(jaxpr):
    """Multiply-accumulates of every convolution and matrix product in a jaxpr, padding included."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == 'conv_general_dilated':
            total += math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.invars[1].aval.shape[:-1])
        elif eqn.primitive.name == 'dot_general':
            ((contracted, _), _) = eqn.params['dimension_numbers']
            total += math.prod(eqn.outvars[0].aval.shape) * math.prod(
                eqn.invars[0].aval.shape[i] for i in contracted
            )
        for value in eqn.params.values():
            total += macs_of(value.jaxpr) if hasattr(value, 'jaxpr') else 0
    return total


def state_of(classes, seed=0, **overrides):
    """(state dict with the names of the distillation tables' code,
    variables) of a random resnet8.
    """
    variables = random_variables(build('resnet8', classes, **overrides), (2, 8, 8, 3), seed)
    shapes = {('params', *p): x for p, x in flat(variables['params'])} | {
        ('batch_stats', *p): x for p, x in flat(variables['batch_stats'])
    }
    state = {}
    for path, x in shapes.items():
        name = f'{resnet.repdistiller("/".join(path[1:-1]), ())}.{matching.LEAVES[path[-1]]}'
        state[name] = np.ascontiguousarray(x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T)
    return state, variables


def flat(tree, path=()):
    for key, value in tree.items():
        yield from (
            flat(value, (*path, key)) if isinstance(value, dict) else [((*path, key), value)]
        )


def leave_the_rest_alone(name, shape, stages=(2, 1)):
    """Heads change nothing else of a model, and predict the mean of their probabilities."""
    names = {f'stage{k}' for k in stages}
    plain, heads, average = (
        build(name, 5, **more).clone(fast=False)  # traced in half the time
        for more in ({}, {'heads': stages}, {'heads': stages, 'average_heads': True})
    )
    variables = random_variables(heads, shape)
    own = {
        key: {k: v for k, v in tree.items() if not k.startswith('head_')}
        for key, tree in variables.items()
    }
    assert set(variables['params']) - set(own['params']) == {f'head_{name}' for name in names}

    @jax.jit
    def outputs(variables, own, image):
        return (
            plain.apply(own, image, train=False),
            heads.apply(variables, image, train=False),
            average.apply(variables, image, train=False),
            average.apply(variables, image, train=True, mutable=['batch_stats'])[0],
        )

    one, several, mean, trained = outputs(variables, own, image_of(*shape))
    np.testing.assert_allclose(one.logits, several.logits, rtol=1e-5, atol=1e-5)
    assert one.heads == {} and set(several.heads) == {*names, 'head'}
    np.testing.assert_array_equal(several.heads['head'].logits, several.logits)
    assert several.heads['stage1'].pooled.shape == several.features['pooled'].shape
    p = np.mean([softmax(np.float64(head.logits)) for head in several.heads.values()], axis=0)
    np.testing.assert_allclose(mean.logits, np.log(p), atol=1e-5)
    # training is left to the terms
    np.testing.assert_array_equal(trained.logits, trained.heads['head'].logits)


def gradients_reach_the_heads(name, shape, stages=(1, 2)):
    """Every parameter of each of them."""
    model = build(name, 5, heads=stages).clone(fast=False)
    variables, image = random_variables(model, shape), image_of(*shape)
    heads = {k: v for k, v in variables['params'].items() if k.startswith('head')}

    def loss(heads):
        params = variables['params'] | heads
        given = {**variables, 'params': params}
        out, _ = model.apply(given, image, train=True, mutable=['batch_stats'])
        scores = jnp.arange(5.0 * shape[0]).reshape(-1, 5)
        return sum((head.logits * scores).sum() for head in out.heads.values())

    assert set(heads) == {'head', *(f'head_stage{k}' for k in stages)}
    gradients = jax.jit(jax.grad(loss))(heads)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))
