"""Every model of the zoo against what is expected of it, from few traces of each.

The tests of a model are neighbours and share its traces. What is expected is checked by itself: by
arithmetic in the families' files, and by PyTorch's counts in test_golden.py.
"""

from functools import cached_property, partial

import jax
import jax.numpy as jnp
import model_checks as checks
import numpy as np
import pytest
from convolutions import KINDS, convolutions, kind_of
from model_checks import flat
from model_facts import EXPECTED, FEATURES, expected_shapes
from small_models import NAMES, RECTIFIED, macs_of, side_of, size, traced

from kd_jax import models, pretrained
from kd_jax.models import build, initial
from kd_jax.pretrained import matching
from kd_jax.pretrained.code_bases import MARKS, RULES, family_of


class Model:
    """A model with its expected number of classes, at its native size."""

    def __init__(self, name):
        self.name, self.facts = name, EXPECTED[name]
        self.image = (1, self.facts.size, self.facts.size, 3)
        model = build(name, self.facts.classes, fast=False)  # fast forms are other sums
        init = partial(model.init_with_output, train=False)

        def start(key):
            image = jax.ShapeDtypeStruct(self.image, 'float32')
            forward, shapes = jax.make_jaxpr(init, return_shape=True)(key, image)
            self.jaxpr, self.output = forward.jaxpr, shapes[0]
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        self.plan = initial.Plan(start)
        self.shapes = {path: leaf.shape for path, leaf in flat(self.plan.shapes).items()}

    @cached_property
    def variables(self):
        """Of the output: {feature: variable of the jaxpr}."""
        return jax.tree.unflatten(
            jax.tree.structure(self.output), self.jaxpr.outvars[: len(jax.tree.leaves(self.output))]
        ).features


@pytest.fixture(scope='module', params=NAMES)
def model(request):
    return Model(request.param)


def test_parameters_statistics_and_macs_are_the_published_ones(model):
    shapes = model.plan.shapes
    assert size(shapes['params']) == model.facts.params
    assert size(shapes.get('batch_stats', {})) == model.facts.statistics
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    assert macs_of(model.jaxpr) == model.facts.macs


def test_every_convolution_is_of_a_kind_whose_fast_form_is_tested(model):
    assert {kind_of(eqn) for eqn in convolutions(model.jaxpr)} <= {*KINDS}


def test_the_features_have_the_published_shapes(model):
    checks.assert_vocabulary(model.name, model.output, model.image, model.facts.classes)
    found = {
        key: value.shape[1:]
        for key, value in model.output.features.items()
        if not key.endswith('_pre')
    }
    assert found == expected_shapes(FEATURES[model.name])
    head = model.plan.shapes['params']['head']['kernel']
    assert head.shape == (model.facts.width, model.facts.classes)


def test_a_stage_is_the_relu_of_what_comes_before(model):
    if model.name not in RECTIFIED:
        assert not any(key.endswith('_pre') for key in model.output.features)
        return
    made = {var: eqn for eqn in model.jaxpr.eqns for var in eqn.outvars}
    for stage in range(1, model.facts.stages + 1):
        relu = made[model.variables[f'stage{stage}']]
        assert relu.primitive.name == 'custom_jvp_call'
        assert [eqn.params.get('name') for eqn in relu.params['call_jaxpr'].eqns] == ['relu']
        assert relu.invars == [model.variables[f'stage{stage}_pre']]


def test_every_layer_says_how_it_starts(model, monkeypatch):
    for kind in (initial.Normal, initial.Uniform):  # hundreds of millions of numbers
        monkeypatch.setattr(
            kind, 'draw', lambda self, rng, shape: np.broadcast_to(np.float32(0), shape)
        )
    checks.assert_drawn_on_the_host(model.plan, monkeypatch)


def test_only_the_head_depends_on_the_classes_and_paths_are_the_same_in_every_family(model):
    """From the trace with other classes and channels that the importer makes."""
    theirs = {'/'.join(path): x for path, x in matching.shapes_of(model.name, {}).items()}
    assert theirs.keys() == model.shapes.keys()
    given = {matching.CLASSES: model.facts.classes, matching.CHANNELS: 3}
    assert {path: tuple(given.get(n, n) for n in x) for path, x in theirs.items()} == model.shapes
    params = {path: x for path, x in model.shapes.items() if path.startswith('params')}
    checks.assert_head_alone_depends_on_the_classes(
        model.name,
        *(
            {
                path.removeprefix('params/'): tuple(3 if n == matching.CHANNELS else n for n in x)
                for path, x in shapes.items()
                if path in params
            }
            for shapes in (model.shapes, theirs)
        ),
    )


def test_the_tensors_are_found_and_are_no_other_models(model):
    if models.MODELS[model.name].func in pretrained.RULES:
        checks.assert_tensors_are_found(model.name)


# Of each family; siblings differ in numbers alone.
FIRST = {models.MODELS[name].func: name for name in reversed(models.MODELS)}.values()


@pytest.mark.parametrize(
    'name',
    [n if n in FIRST else pytest.param(n, marks=pytest.mark.long) for n in NAMES],
)
def test_the_fast_form_speaks_the_same_vocabulary_on_odd_grey_images(name):
    image = (2, max(31, side_of(name)), max(33, side_of(name)), 1)
    model = build(name, 7)
    output, variables = traced(model, image)
    checks.assert_vocabulary(name, output, image, 7)
    theirs = matching.shapes_of(name, {})
    assert flat(variables).keys() == {'/'.join(path) for path in theirs}


def test_no_two_models_for_the_same_images_have_the_same_tensors():
    """Otherwise the hint would name several; forms for small and for large images
    may differ in strides alone.
    """
    seen = {}
    for name in (n for n in NAMES if models.MODELS[n].func in pretrained.RULES):
        shapes = sorted((key, x.shape) for key, x in checks.torch_like(name).items())
        signature = (pretrained.input_of(name) is None, *shapes)
        assert signature not in seen, (name, seen[signature])
        seen[signature] = name


def test_of_all_models_the_one_whose_weights_they_are_is_named(monkeypatch, tmp_path):
    tensors = checks.torch_like('wrn_16_2')
    fit = matching.best_fit(tensors, 'resnet50', {})
    sentence = matching.misfit(tmp_path, tensors, 'resnet50', {}, fit)
    assert sentence.endswith("these are the weights of 'wrn_16_2'")


def test_every_model_has_the_tensor_by_which_its_weights_are_looked_for():
    """Also without the auxiliary heads that a file may lack."""
    ruled, seen = {rule for rules in RULES.values() for rule in rules}, set()
    assert MARKS.keys() == ruled
    for name in models.MODELS:
        family = family_of(name)
        plain = {'aux': False} if hasattr(family, 'aux') else {}
        for rule in RULES.get(family, ()):
            names = matching.names_of(matching.shapes_of(name, plain), rule)
            assert names is None or MARKS[rule] in names, (name, rule)
            seen |= {rule} if names else set()
    assert seen == ruled
