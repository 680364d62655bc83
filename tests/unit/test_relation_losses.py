"""What is particular to the losses on relations: what they do not see, the Huber loss, and CRD's
negatives and memory.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_inputs import KEYS, float64
from losses import Case, apply, as_objective, outcome
from relation_losses import (
    SMALL,
    TRAIN,
    B,
    N,
    contrast_oracle,
    crd_step,
    features_of,
    inputs,
    inputs_of_the_first_batch,
    make_batch,
    parts_of,
    smooth_l1,
)

from kd_jax.errors import UserError
from kd_jax.objectives import OBJECTIVES, contrast, relations

# Identities


def rotation(size):
    return np.linalg.qr(np.random.default_rng(8).standard_normal((size, size)))[0].astype(
        np.float32
    )


@jax.jit
def functions(s, t):
    names = ('rkd_distance', 'rkd_angle', 'sp', 'pkt')
    return {name: getattr(relations, name)(s, t) for name in names}


def test_what_relations_do_not_see():
    s, t = (features_of(seed, {'pooled': (9,)})['pooled'] for seed in (1, 2))
    turn = rotation(9)
    turned, want = s @ turn, jax.device_get(functions(s, t))
    shifted = [functions(*pair) for pair in ((s + 1, t), (s, t - 2), (0.1 * s + 3, t))]
    kept = [functions(*pair) for pair in ((turned, t), (s, t @ turn), (5 * s, t), (s, 0.2 * t))]
    equal = [functions(same, s) for same in (s, turned, 3 * s, turned + 1)]
    for name, values in want.items():
        assert np.min(values) > 1e-4
        for other in kept:
            np.testing.assert_allclose(other[name], values, rtol=1e-4)
        for other in equal if 'rkd' in name else equal[:3]:
            np.testing.assert_allclose(other[name], 0, atol=1e-7)
        if 'rkd' in name:
            for other in shifted:
                np.testing.assert_allclose(other[name], values, rtol=1e-4)
        else:
            assert np.abs(shifted[0][name] - values).max() > 1e-2 * np.max(values)


def test_the_huber_loss_has_the_published_values_and_gradients_also_at_its_bends():
    gaps = np.float32([-3, -1, -0.7, -1e-3, 0, 1e-6, 0.5, 1, 1 + 1e-6, 2])
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(relations.huber_loss)))(gaps)
    np.testing.assert_allclose(values, smooth_l1(np.float64(gaps), 0.0), rtol=1e-6)
    # of sums with 1: rounded as that is
    np.testing.assert_allclose(gradients, np.clip(gaps, -1, 1), atol=1e-7)


# CRD


UNSET = {'constant_student': np.float32(-1), 'constant_teacher': np.float32(-1)}
PLACES = np.arange(N), np.array([7, 3, 0])


@cache
def drawn_at_places():
    """A function of a seed: for each of some arrays of indices `[B, 4000]`."""
    groups = contrast.by_class(TRAIN)
    groups = {name: jnp.asarray(array) for name, array in groups.items()}
    return jax.jit(
        lambda seed: [
            contrast.draw_negatives(jax.random.key(seed), jnp.asarray(i), groups, 4000)
            for i in PLACES
        ]
    )


def draw(seed=3):
    return jax.device_get(drawn_at_places()(seed))


def test_negatives_are_all_images_of_other_classes_equally_often():
    for i, row in enumerate(draw()[0]):
        own = (TRAIN[i] == TRAIN) if TRAIN[i] >= 0 else np.arange(N) == i
        candidates = np.flatnonzero(~own)
        counts = np.bincount(row, minlength=N)
        assert set(np.flatnonzero(counts)) == set(candidates)
        expected = len(row) / len(candidates)
        # chi-square with at most 13 degrees of freedom
        assert ((counts[candidates] - expected) ** 2 / expected).sum() < 40


def test_negatives_depend_on_the_images_index_and_the_key_only():
    every, *others = draw()
    assert every.shape == (N, 4000)  # more than there are images
    for index, drawn in zip(PLACES[1:], others, strict=True):
        np.testing.assert_array_equal(drawn, every[index])
    assert (draw(4)[0][0] != every[0]).any()
    # of one class, not the same
    assert len({tuple(every[i]) for i in np.flatnonzero(TRAIN == 1)}) == np.sum(TRAIN == 1)


def test_contrast_is_the_published_loss():
    p = np.random.default_rng(10).uniform(0, 2, (B, 21)).astype(np.float32)
    found = jax.jit(lambda p: contrast.contrast(p[:, 0], p[:, 1:], N))(p)
    np.testing.assert_allclose(found, contrast_oracle(np.float64(p), N), rtol=1e-5)


def test_memory_starts_as_published():
    terms = as_objective('crd', OBJECTIVES['crd'](dim=48, negatives=5 * N))
    given = inputs('crd')
    first = given.batch | {'train_label': TRAIN}

    @jax.jit
    def start(student, teacher):
        return terms.init(KEYS, student, (teacher,), first)['memory']['crd']

    memory = jax.device_get(start(*given[:2]))
    for bank in (memory['student'], memory['teacher']):
        assert bank.shape == (N, 48) and bank.dtype == np.float32
        # uniform up to 1 / sqrt(48 / 3)
        assert 0.24 < np.abs(bank).max() <= 0.25 and abs(np.mean(bank)) < 0.02
    assert np.abs(memory['student'] - memory['teacher']).max() > 0.1
    assert memory['constant_student'] == memory['constant_teacher'] == -1


def test_two_steps_of_memory_and_constants_equal_the_published_code():
    case = Case('crd', tuple(sorted((SMALL['crd'] | {'momentum': 0.8}).items())))
    given = inputs_of_the_first_batch('crd')
    for number, index in enumerate(([3, 0, 9, 11, 7, 14, 5, 8], [14, 1, 2, 0, 4, 5, 12, 6])):
        given = given._replace(batch=make_batch(index))
        found = outcome(case, given)
        known = float64(given)._replace(batch=given.batch | {'drawn': found.drawn})
        want, memory = crd_step(*parts_of('crd', known), case.fields)
        np.testing.assert_allclose(found.values, want, rtol=1e-4)
        after, before = found.state['memory']['crd'], given.variables['memory']['crd']
        assert set(after) == set(memory)
        rest = np.setdiff1d(np.arange(N), index)
        for name, array in after.items():
            np.testing.assert_allclose(array, memory[name], rtol=1e-5, atol=1e-6, err_msg=name)
            if name in ('student', 'teacher'):
                np.testing.assert_array_equal(array[rest], before[name][rest])
            elif number or not name.startswith('constant'):
                np.testing.assert_array_equal(array, before[name])
        given = given._replace(variables=given.variables | {'memory': {'crd': after}})


def test_no_gradient_flows_through_the_memory_and_the_constants():
    loss, given = OBJECTIVES['crd'](**SMALL['crd']), inputs_of_the_first_batch('crd')
    floats = {k: v for k, v in given.variables['memory']['crd'].items() if v.dtype == np.float32}

    def run(pooled, own, given):
        memory = given.variables['memory']['crd']
        student = given.student.replace(features=given.student.features | {'pooled': pooled})
        variables = given.variables | {'memory': {'crd': memory | own}}
        there = given._replace(student=student, variables=variables)
        values, state, _ = apply('crd', loss, there)
        return values.sum(), {k: state['memory']['crd'][k] for k in floats}

    def of_memory(pooled, given):
        return sum(x[:, 0].sum() if x.ndim else x for x in run(pooled, {}, given)[1].values())

    @jax.jit
    def gradients(pooled, given):
        (_, after), first = jax.value_and_grad(run, has_aux=True)(pooled, {}, given)
        set_by_first = floats | {k: after[k] for k in UNSET}
        later = jax.grad(lambda *all_: run(*all_)[0], (0, 1))(pooled, set_by_first, given)
        return first, *later, jax.grad(of_memory)(pooled, given)

    found = jax.device_get(gradients(given.student.features['pooled'], given))
    first, later, to_memory, from_memory = found
    np.testing.assert_allclose(first, later, rtol=1e-5, atol=1e-6)
    assert np.any(first) and not np.any(from_memory)
    assert {k for k, g in to_memory.items() if np.any(g)} == set()


def test_a_single_class_has_no_negatives():
    given = inputs('crd')
    batch = given.batch | {'train_label': np.zeros(N, np.int32)}
    with pytest.raises(UserError, match='class') as caught:
        jax.eval_shape(
            lambda: OBJECTIVES['crd'](dim=8).init(KEYS, given.student, given.teacher, batch)
        )
    assert '\n' not in str(caught.value)
