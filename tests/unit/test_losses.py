"""What holds for every loss: it has the values and the gradients of its oracle, whatever the
precision, the order of the batch, the number of devices, and the input.
"""

from functools import partial

import jax
import losses
import numpy as np
import pytest
from loss_inputs import Inputs, float64
from losses import CASES, FAMILIES, FAMILY, expected, outcome, usual, usual_share

from kd_jax.objectives import OBJECTIVES, swept

ACROSS = [name for family in FAMILIES for name in family.LOOKS_ACROSS]


@pytest.fixture(scope='module', params=CASES, ids=str)
def case(request):
    """Tests of a case come one after another: they share its programs."""
    return request.param


def close(got, want, rtol, share):
    """Up to `rtol`, or `share` of the mean size."""
    np.testing.assert_allclose(got, want, rtol=rtol, atol=share * np.abs(want).mean())


def size(tree):
    return np.sqrt(sum((np.float64(g) ** 2).sum() for g in jax.tree.leaves(tree)))


def test_every_loss_has_one_oracle_and_a_case():
    oracles = [name for family in FAMILIES for name in family.ORACLES]
    assert sorted(oracles) == sorted(OBJECTIVES)
    assert {case.name for case in CASES} == set(OBJECTIVES)
    assert set(ACROSS) <= set(OBJECTIVES)
    for name in OBJECTIVES:  # what a sweep varies is no number that is compiled in
        assert set(swept(name)) - {'weight'} <= set(losses.numbers_of(name))


def test_values_equal_the_oracle(case):
    inputs, found = usual(case)
    want = expected(case, inputs, found.drawn)
    assert found.values.shape == want.shape and found.values.dtype == np.float32
    close(found.values, want, 3e-5, 2e-5)
    # the examples differ: their order was seen
    assert np.std(want) > 1e-3 * np.abs(want).mean() or case.fields.get('beta') == 0


def directions(rng, tree, fixed):
    def draw(path, leaf):
        return rng.standard_normal(leaf.shape) * (not fixed(path))

    return jax.tree_util.tree_map_with_path(draw, tree)


def test_the_gradient_is_that_of_the_oracle(case):
    """In random directions for the student and the parameters; for each logit."""
    if hasattr(case.family, 'GRADIENTS'):
        check_each_logit(case)
    inputs, found = usual(case)
    inputs, share = float64(inputs), usual_share(len(found.values))
    rng, step = np.random.default_rng(3), 1e-6
    # The deepest head has no gradient, nor has FT's paraphraser that of the student's factor.
    student = partial(directions, rng, fixed=lambda path: names_of(path) & {'head'})
    learned = partial(directions, rng, fixed=lambda _: case.name == 'ft')
    gradients, scale = (found.student, found.params), size((found.student, found.params))
    assert scale > 0
    for _ in range(3):
        ways = student(inputs.student), learned(inputs.variables.get('params', {}))

        def moved(h, ways=ways):
            kept = inputs.variables
            if 'params' in kept:
                params = jax.tree.map(lambda x, w: x + h * w, kept['params'], ways[1])
                kept = kept | {'params': params}
            there = jax.tree.map(lambda x, w: x + h * w, inputs.student, ways[0])
            given = Inputs(there, inputs.teacher, inputs.batch, kept)
            return (expected(case, given, found.drawn) * share).sum()

        slopes = jax.tree.map(lambda g, w: (np.float64(g) * w).sum(), gradients, ways)
        want = (moved(step) - moved(-step)) / (2 * step)
        np.testing.assert_allclose(sum(jax.tree.leaves(slopes)), want, rtol=1e-4, atol=2e-4 * scale)


def check_each_logit(case):
    """The gradient against one that is worked out by hand, also at extreme logits."""
    gradients = case.family.GRADIENTS
    for inputs, bounds in (
        (case.inputs(), {'rtol': 2e-5, 'atol': 5e-6}),
        (case.family.extreme(case.name), {'rtol': 1e-4, 'atol': 1e-5}),
    ):
        exact = case.family.exact(case, inputs)
        want = gradients[case.name](inputs, case.fields)[exact]
        np.testing.assert_allclose(outcome(case, inputs).student.logits[exact], want, **bounds)


def test_four_devices_give_what_one_gives(case):
    """A loss that looks across the batch."""
    if case.name in ACROSS and case == losses.first_of_variants(case.name)[0]:
        check_four_devices(case)


def names_of(path):
    return {getattr(key, 'key', getattr(key, 'name', None)) for key in path}


def test_no_gradient_reaches_the_teacher(case):
    _, found = usual(case)
    assert not any(np.any(g) for g in jax.tree.leaves(found.teacher))
    assert any(np.any(g) for g in jax.tree.leaves(found.student))
    # nor the deepest head, which is the teacher of the others
    assert not any(np.any(g) for g in jax.tree.leaves(found.student.heads.get('head')))


def test_values_follow_their_examples_when_the_batch_is_permuted(case):
    inputs, found = usual(case)
    count = len(found.values)
    order = np.random.default_rng(6).permutation(count)
    student, teacher, batch = jax.tree.map(lambda x: x[order], inputs[:3])
    moved = outcome(
        case, Inputs(student, teacher, batch, inputs.variables), usual_share(count)[order]
    )
    if case.name == 'cc':  # as published it compares neighbours
        want = found.values[order]
        assert np.abs(moved.values - want).max() > 0.1 * np.mean(want) and found.values[-1] == 0
        assert abs(np.mean(moved.values) - np.mean(want)) > 1e-2 * np.mean(want)
        return
    close(moved.values, found.values[order], 1e-5, 1e-5)
    at = 1e-5 * max(np.abs(g).max() for g in jax.tree.leaves(found.student))
    gradient = jax.tree.map(lambda g: g[order], found.student)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=at), moved.student, gradient)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), moved.state, found.state
    )


def test_values_and_gradients_are_finite_at_degenerate_input(case):
    """And equal to the oracle's where it is not rounding alone."""
    for kind, make in case.family.DEGENERATE.items() if case.pre else ():
        inputs = make(case.name)
        found = outcome(case, inputs)
        parts = (found.values, found.state, found.student, found.params)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(parts)), kind
        if (case.name, kind) in getattr(case.family, 'INEXACT', ()):
            continue
        exact = case.family.exact(case, inputs) if kind == 'extreme logits' else slice(None)
        want = expected(case, inputs, found.drawn)
        bounds = {'rtol': 2e-3, 'atol': 1e-3 * np.abs(want).mean() + 1e-9}
        if kind == 'extreme logits':
            bounds = {'rtol': 1e-5, 'atol': 1e-3}
        np.testing.assert_allclose(found.values[exact], want[exact], **bounds, err_msg=kind)


@pytest.mark.parametrize('name', [n for n in OBJECTIVES if FAMILY[n] is not losses.head_losses])
def test_bfloat16_inputs_are_computed_in_float32(name):
    """But of heads, which are always float32. The fields are compiled in here."""
    for case in losses.first_of_variants(name):
        check_bfloat16(case)


def check_bfloat16(case):
    inputs, (values, state, drawn) = losses.of_bfloat16(case)
    assert values.dtype == np.float32
    assert all(x.dtype in (np.float32, np.int32) for x in jax.tree.leaves(state))
    close(values, expected(case, inputs, drawn), 3e-5, 5e-5)


def check_four_devices(case):
    """Values and gradients, and on each device the same state."""
    make = getattr(case.family, 'inputs_of_the_first_batch', case.family.inputs)
    inputs = make(case.name)
    want = outcome(case, inputs, usual_share(len(inputs.batch['label'])))
    found = losses.on_four_devices(case, inputs)
    joined = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:]), (found.values, found.student, found.teacher)
    )
    np.testing.assert_allclose(
        joined[0], want.values, rtol=1e-4, atol=1e-5 * np.abs(want.values).mean()
    )
    gradients = joined[1], jax.tree.map(lambda g: g.sum(0), found.params)
    for got, right in zip(gradients, (want.student, want.params), strict=True):
        at = 1e-5 * max((np.abs(g).max() for g in jax.tree.leaves(right)), default=0)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=at), got, right)
    assert not any(np.any(g) for g in jax.tree.leaves(joined[2]))

    def same(got, right):
        assert got.dtype == right.dtype
        np.testing.assert_array_equal(got, np.stack([got[0]] * 4))
        np.testing.assert_allclose(got[0], right, rtol=1e-4, atol=1e-6)

    jax.tree.map(same, found.state, want.state)
    assert ('memory' in want.state) == (case.name == 'crd')
