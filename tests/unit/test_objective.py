"""The weighted sum of losses that a run minimises: teachers, masks, ramps, `only_where`, labels."""

from functools import cache
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logit_losses import (
    FORMULAS,
    cross_entropy_oracle,
    kl_oracle,
    make_batch,
    random_logits,
    softmax,
)

from kd_jax import objectives
from kd_jax.fields import number
from kd_jax.models.common import Output
from kd_jax.objectives import Loss, Objective, build, defaults, ensemble_logits

B, K = 6, 5
LABELS = (0, 4, -1, 2, 2, 1)
LN2, LN3 = np.log(2.0), np.log(3.0)


def logits(seed):
    return random_logits(seed, shape=(B, K))


def batch_of(labels=LABELS, **more):
    return make_batch(labels, **more)


def output(z):
    return Output(z, {})


@cache
def program(module, labels):
    """(student's logits, teachers', batch, a number for each of the labels) -> (values by label,
    gradient for the student's logits of the sum of the values, each times its label's number)
    """

    def total(zs, teachers, batch, shares):
        values = module.apply({}, output(zs), tuple(map(output, teachers)), batch)
        return sum(shares[label] * values[label].sum() for label in labels), values

    def run(*given):
        (_, values), gradient = jax.value_and_grad(total, has_aux=True)(*given)
        return values, gradient

    return jax.jit(run)


def evaluate(module, zs, teachers, batch, shares=None):
    shares = shares or {label: 1.0 for label, _ in module.losses}
    return jax.device_get(program(module, tuple(shares))(zs, tuple(teachers), batch, shares))


class Learned(Loss):
    """A term with a learned scale per teacher, that lets gradient through to the teacher."""

    start: float = number(2.0, at_least=0)
    needs_teacher: ClassVar[bool] = True

    @nn.compact
    def __call__(self, student, teacher, batch):
        scale = self.param('scale', lambda key: jnp.float32(self.start) + jax.random.normal(key))
        return ((student.logits - scale * teacher.logits) ** 2).sum(-1)


class Reduces(Loss):
    needs_teacher: ClassVar[bool] = False

    def __call__(self, student, teacher, batch):
        return student.logits.mean()


def test_a_run_with_labels_alone_needs_no_teacher_output():
    z, batch = logits(24), batch_of()
    module = build({'cross_entropy': {}})
    assert jax.eval_shape(module.init, jax.random.key(0), output(z), (), batch) == {}
    values, _ = evaluate(module, z, (), batch)
    assert list(values) == ['cross_entropy']
    own = defaults('cross_entropy')
    want = cross_entropy_oracle(z.astype(np.float64), None, batch['label'], own)[0]
    np.testing.assert_allclose(values['cross_entropy'], want, rtol=1e-5)


def test_terms_are_unweighted_and_the_steps_loss_is_their_weighted_masked_mean():
    zs, zt = logits(25), logits(26)
    batch = batch_of([0, 4, -1, 2, -1, 1]) | {'mask': np.float32([1, 1, 1, 1, 1, 0])}
    module = build({'cross_entropy': {'weight': 0.1}, 'kl': {'weight': 0.9, 'tau': 2.0}}, (1.0,))
    values, _ = evaluate(module, zs, [zt], batch)
    masks, weights = module.masks(batch), module.weights(0.0)
    z64 = zs.astype(np.float64), zt.astype(np.float64)
    ce = cross_entropy_oracle(*z64, batch['label'], defaults('cross_entropy'))[0]
    soft = kl_oracle(*z64, None, {'tau': 2.0})[0]
    np.testing.assert_allclose(values['cross_entropy'], ce, rtol=1e-5)
    np.testing.assert_allclose(values['kl'], soft, rtol=1e-5)
    np.testing.assert_array_equal(masks['cross_entropy'], [1, 1, 0, 1, 0, 0])
    np.testing.assert_array_equal(masks['kl'], [1, 1, 1, 1, 1, 0])
    loss = sum(
        float(weights[n]) * float((values[n] * masks[n]).sum() / max(masks[n].sum(), 1))
        for n in values
    )
    np.testing.assert_allclose(loss, 0.1 * ce[[0, 1, 3]].mean() + 0.9 * soft[:5].mean(), rtol=1e-5)


# Several teachers


WEIGHTS = (1.0, 2.0, 5.0)
OF_EACH = [('kl', {'tau': 3.0}), ('soft_cross_entropy', {'tau': 3.0}), ('logit_mse', {})]
OF_ENSEMBLE = [
    ('dkd', {}),
    ('nkd', {}),
    ('dist', {}),
    ('dist', {'tau': 4.0}),
    ('dkd', {'standardize': True}),
    ('nkd', {'standardize': True}),
]


def test_a_loss_learns_from_each_of_several_teachers_or_from_their_average_probabilities():
    """The gradient is that of the sum of the first losses with random factors."""
    zs, teachers, w = logits(27), [logits(28 + k) for k in range(3)], np.array(WEIGHTS) / 8
    losses = [*OF_EACH, *OF_ENSEMBLE]
    config = {f'loss{k}': {'loss': name} | fields for k, (name, fields) in enumerate(losses)}
    factors = np.random.default_rng(1).standard_normal(6)
    shares = dict(zip(config, factors, strict=False))
    values, gradient = evaluate(build(config, WEIGHTS), zs, teachers, batch_of(), shares)
    z64, t64 = np.float64(zs), np.float64(teachers)
    average = np.log(sum(share * softmax(t) for share, t in zip(w, t64, strict=True)))
    want = 0.0
    for label, (name, fields) in zip(config, losses, strict=True):
        f = defaults(name) | fields
        each = [FORMULAS[name](z64, t, LABELS, f) for t in t64]
        of_each = [sum(share * x[k] for share, x in zip(w, each, strict=True)) for k in (0, 1)]
        of_average = FORMULAS[name](z64, average, LABELS, f)
        of_logits = FORMULAS[name](z64, np.tensordot(w, t64, 1), LABELS, f)
        right, other = (of_each, of_average) if (name, fields) in OF_EACH else (of_average, of_each)
        np.testing.assert_allclose(values[label], right[0], rtol=2e-5, atol=2e-5)
        for wrong in (other, of_logits):
            assert np.abs(values[label] - wrong[0]).max() > 0.01
        want = want + shares.get(label, 0.0) * right[1]
    np.testing.assert_allclose(gradient, want, rtol=5e-5, atol=2e-5)


@pytest.mark.parametrize('name', ['kl', 'soft_cross_entropy'])
def test_several_teachers_pull_towards_the_average_of_their_probabilities(name):
    """The formulas do, to which the test above holds the losses."""
    zs, teachers, tau = logits(27), [np.float64(logits(28 + k)) for k in range(3)], 3.0
    w, ps = np.array(WEIGHTS) / 8, softmax(np.float64(zs), tau)
    each = [FORMULAS[name](np.float64(zs), t, None, {'tau': tau})[1] for t in teachers]
    average = sum(share * softmax(t, tau) for share, t in zip(w, teachers, strict=True))
    np.testing.assert_allclose(np.tensordot(w, each, 1), tau * (ps - average), rtol=1e-9)
    of_logits = softmax(np.tensordot(w, teachers, 1), tau)
    assert np.abs(average - of_logits).max() > 0.05 / tau


def test_learned_parameters_are_one_set_a_teacher():
    zs, teachers, batch = logits(34), [logits(35), logits(36)], batch_of()
    outputs = tuple(map(output, teachers))
    alone = Objective((('hint', Learned()),), (1.0,))
    one = jax.eval_shape(alone.init, jax.random.key(0), output(zs), outputs[:1], batch)
    assert list(one['params']) == ['hint']
    module = Objective((('hint', Learned()),), (1.0, 3.0))
    params = {
        'params': {'hint_0': {'scale': np.float32(0.5)}, 'hint_1': {'scale': np.float32(-2.0)}}
    }

    @jax.jit
    def start_and_values(zs, outputs):
        start = module.init(jax.random.key(0), output(zs), outputs, batch)
        return start, module.apply(params, output(zs), outputs, batch)['hint']

    two, values = start_and_values(zs, outputs)
    assert sorted(two['params']) == ['hint_0', 'hint_1']
    assert float(two['params']['hint_0']['scale']) != float(two['params']['hint_1']['scale'])
    squares = [((zs - 0.5 * teachers[0]) ** 2).sum(1), ((zs + 2 * teachers[1]) ** 2).sum(1)]
    np.testing.assert_allclose(values, 0.25 * squares[0] + 0.75 * squares[1], rtol=1e-5)


def test_the_weighted_sum_stops_the_gradient_to_a_teacher_that_a_term_lets_through():
    zs, batch = output(logits(37)), batch_of()
    module = Objective((('hint', Learned()),), (1.0,))

    def total(z, variables):
        return module.apply(variables, zs, (output(z),), batch)['hint'].sum()

    variables = {'params': {'hint': {'scale': np.float32(2.3)}}}
    to_teacher, to_params = jax.jit(jax.grad(total, argnums=(0, 1)))(logits(38), variables)
    assert (np.asarray(to_teacher) == 0).all()
    assert abs(float(to_params['params']['hint']['scale'])) > 0.1


@pytest.mark.parametrize('count', [1, 2])
def test_learned_parameters_go_by_the_label(monkeypatch, count):
    monkeypatch.setitem(objectives.OBJECTIVES, 'hint', Learned)
    module = build(
        {'hint': {'start': 2.0}, 'second': {'loss': 'hint'}, 'cross_entropy': {'loss': ''}},
        (1.0,) * count,
    )
    zs, teachers = output(logits(81)), (output(logits(82)),) * count
    params = jax.eval_shape(module.init, jax.random.key(0), zs, teachers, batch_of())['params']
    assert set(params) == (
        {'hint', 'second'} if count == 1 else {'hint_0', 'hint_1', 'second_0', 'second_1'}
    )


def test_a_term_that_reduces_over_the_batch_is_refused():
    module = Objective((('mean', Reduces()),))
    with pytest.raises(ValueError, match=r"'mean' returned shape \(\)"):
        jax.eval_shape(module.apply, {}, output(logits(39)), (), batch_of())


def test_as_many_teacher_outputs_as_weights_are_needed():
    with pytest.raises(ValueError, match='2 teacher outputs but 1 teacher weights'):
        z = output(logits(40))
        build({'kl': {}}, (1.0,)).apply({}, z, (z, z), batch_of())


def test_ensemble_logits_are_the_log_of_the_average_probabilities():
    members, weights = [logits(41), logits(42), logits(43)], (1.0, 0.0, 3.0)
    z64 = np.float64(members)
    want = np.log(0.25 * softmax(z64[0]) + 0.75 * softmax(z64[2]))
    found = jax.jit(lambda members: ensemble_logits(members, weights))(members)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_ensemble_logits_by_hand_and_at_extremes():
    one_four, even = np.float32([[0.0, LN3]]), np.float32([[7.0, 7.0]])
    first, second = np.float32([[120, -120]]), np.float32([[-120, 120]])
    both = jax.jit(lambda a, b: ensemble_logits([a, b], (2, 2)))
    # 1/2 (1/4, 3/4) + 1/2 (1/2, 1/2) = (3/8, 5/8)
    np.testing.assert_allclose(both(one_four, even), [[-0.98082925, -0.47000363]], rtol=1e-6)
    np.testing.assert_allclose(both(first, second), [[-LN2, -LN2]], rtol=1e-6)
    np.testing.assert_allclose(both(first, first), [[0.0, -240.0]], rtol=1e-6)


# Where a term counts


RIGHT, SURER = ({'only_where': f'teacher_{which}'} for which in ('right', 'surer'))
# label -> name of the loss
RIGHTS = {f'{name}_right': name for name in ('kl', 'dkd', 'dist', 'three_term')}
SURERS = {f'{name}_surer': name for name in ('kl', 'nkd', 'logit_mse')}


@cache
def conditions():
    return build(
        {label: {'loss': name} | RIGHT for label, name in RIGHTS.items()}
        | {label: {'loss': name} | SURER for label, name in SURERS.items()},
        (1.0,),
        num_classes=K,
    )


def check_condition(labels, counts, zs, zt, batch):
    """The values of the labels' losses, and the gradient of their sum, are the formulas'
    where an example counts and 0 elsewhere.
    """
    shares = {label: float(label in labels) for label in (*RIGHTS, *SURERS)}
    shares['dist_right'] = 0.0  # whose second part, of any example, moves all
    values, gradient = evaluate(conditions(), zs, [zt], batch, shares)
    total = 0.0
    for label, name in labels.items():
        want = FORMULAS[name](np.float64(zs), np.float64(zt), batch['label'], defaults(name))
        np.testing.assert_allclose(values[label], counts * want[0], rtol=2e-5, atol=2e-5)
        total = total + shares[label] * counts[:, None] * want[1]
    np.testing.assert_allclose(gradient, total, rtol=5e-5, atol=2e-5)
    return conditions().masks(batch)


def test_only_where_the_teacher_is_right():
    zs, zt, batch = logits(71), logits(72), batch_of()
    for i, k in enumerate([0, 3, 1, 2, 4, 1]):
        zt[i, k] = 9.0
    masks = check_condition(RIGHTS, np.array([1, 0, 0, 1, 0, 1]), zs, zt, batch)
    for label in RIGHTS:
        np.testing.assert_array_equal(masks[label], [1, 1, 0, 1, 1, 1])
    plain = build({name: {} for name in RIGHTS.values()}, (1.0,)).masks(batch)
    for name in RIGHTS.values():
        np.testing.assert_array_equal(plain[name], [1] * B)


def test_only_where_the_teacher_is_surer_at_temperature_1():
    """And no gradient comes through the comparison."""
    zs, zt, batch = logits(73), logits(74), batch_of()
    zs[4], zt[4] = 120 * np.eye(K)[1], 119 * np.eye(K)[2]  # both are certain
    zt[5] = zs[5]  # equally sure
    surer = softmax(np.float64(zt)).max(1) > softmax(np.float64(zs)).max(1)
    surer[4:] = False
    assert 0 < surer[:4].sum() < 4
    masks = check_condition(SURERS, surer, zs, zt, batch)
    for label in SURERS:
        np.testing.assert_array_equal(masks[label], [1] * B)


def test_only_where_judges_each_teacher_by_itself_and_the_ensemble_as_one():
    zs, batch = logits(75), batch_of([0, 1, 2, 3, 4, 0])
    teachers = [
        2 * np.float32(np.eye(K)[[0, 1, 0, 0, 4, 1]]),
        5 * np.float32(np.eye(K)[[0, 0, 2, 0, 4, 1]]),
    ]
    each = np.array([[1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 1, 0]])
    tau = defaults('kl')
    alone = [kl_oracle(np.float64(zs), np.float64(t), None, tau)[0] for t in teachers]
    config = {'kl_right': {'loss': 'kl'} | RIGHT, 'dkd_right': {'loss': 'dkd'} | RIGHT, 'dkd': {}}
    both = build(config, (1.0, 1.0), num_classes=K)
    values, _ = evaluate(both, zs, teachers, batch)
    np.testing.assert_allclose(values['kl_right'], 0.5 * (each * alone).sum(0), rtol=1e-5)
    # the second is the surer: its class is the average's
    np.testing.assert_allclose(values['dkd_right'], each[1] * values['dkd'], rtol=1e-5)


@pytest.mark.parametrize('mix', [0.8, 0.3])
def test_only_where_the_teacher_is_right_under_mixup_looks_at_the_label_of_the_larger_share(mix):
    zs, mixed = logits(76), np.array([1, 1, 0, 3, 2, 3], np.int32)
    batch = batch_of(mixed_label=mixed, mix=np.float32(mix))
    zt = 4 * np.float32(np.eye(K)[[0, 1, 0, 3, 2, 4]])
    right = np.array([1, 0, 0, 0, 1, 0]) if mix > 0.5 else np.array([0, 1, 1, 1, 1, 0])
    module = build({'kl': RIGHT}, (1.0,), num_classes=K)
    values, mask = evaluate(module, zs, [zt], batch)[0]['kl'], module.masks(batch)['kl']
    np.testing.assert_allclose((values * mask) != 0, right * [1, 1, 0, 1, 1, 1])
    np.testing.assert_array_equal(mask, [1, 1, 0, 1, 1, 1])


# Ramps and labels


def test_a_ramp_is_linear_in_the_epoch_from_ramp_from_to_weight():
    module = build(
        {
            'cross_entropy': {'weight': 0.5},
            'kl': {'weight': 3.0, 'ramp_epochs': 20, 'ramp_from': 1.0},
        },
        (1.0,),
    )
    weights = jax.jit(module.weights)
    for epoch, want in ((0.0, 1.0), (5.0, 1.5), (10.5, 2.05), (20.0, 3.0), (300.0, 3.0)):
        got = weights(np.float32(epoch))
        np.testing.assert_allclose([got['cross_entropy'], got['kl']], [0.5, want], rtol=1e-6)
        assert got['kl'].dtype == got['cross_entropy'].dtype == jnp.float32
        assert got['kl'].shape == ()


def test_two_of_the_same_loss_are_the_sum_of_both():
    zs, zt, batch = logits(79), logits(80), batch_of()
    late = {'loss': 'kl', 'tau': 1.0, 'weight': 0.5, 'ramp_epochs': 10.0, 'ramp_from': 0.1}
    early = {'loss': 'kl', 'tau': 3.0, 'weight': 0.0, 'ramp_epochs': 4.0, 'ramp_from': 2.0}
    module = build({'kl_late': late, 'kl_early': early}, (1.0,))

    def total(z, epoch):
        values, weights = module.apply({}, output(z), (output(zt),), batch), module.weights(epoch)
        assert list(values) == list(weights) == list(module.masks(batch)) == ['kl_late', 'kl_early']
        return sum(weights[label] * values[label] for label in values).sum()

    run, z64 = jax.jit(jax.value_and_grad(total)), (np.float64(zs), np.float64(zt))
    first, second = (kl_oracle(*z64, None, {'tau': tau}) for tau in (1.0, 3.0))
    for epoch, a, b in ((0.0, 0.1, 2.0), (2.0, 0.18, 1.0), (20.0, 0.5, 0.0)):
        value, gradient = run(zs, np.float32(epoch))
        np.testing.assert_allclose(value, (a * first[0] + b * second[0]).sum(), rtol=2e-5)
        np.testing.assert_allclose(gradient, a * first[1] + b * second[1], rtol=2e-5, atol=5e-6)
