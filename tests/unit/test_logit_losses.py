"""What is particular to the losses on logits: numbers worked out by hand, identities, standardised
logits, unlabelled examples and mixup.
"""

from functools import partial

import jax
import logit_losses
import numpy as np
import pytest
from helpers import FAST_COMPILE
from logit_losses import CASES, FORMULAS, B, K, given, make_batch, random_logits, softmax
from losses import evaluate

from kd_jax.objectives import OBJECTIVES, defaults
from kd_jax.objectives import logits as pure

LN3 = np.log(3.0)
LABELLED = np.resize([0, 4, 3, 2, 2, 1], B)


@pytest.mark.parametrize(
    ('name', 'fields'), CASES, ids=['-'.join([n, *map(str, f.items())]) for n, f in CASES]
)
def test_the_gradients_of_the_formulas_are_those_of_their_values(name, fields):
    f, rows, step = defaults(name) | fields, 4, 1e-5
    zs, zt = (np.float64(random_logits(seed))[:rows] for seed in (1, 2))
    labels = make_batch()['label'][:rows]
    gradient = FORMULAS[name](zs, zt, labels, f)[1]
    for i, k in np.ndindex(zs.shape):
        up, down = zs.copy(), zs.copy()
        up[i, k], down[i, k] = zs[i, k] + step, zs[i, k] - step
        ends = [FORMULAS[name](z, zt, labels, f)[0] for z in (up, down)]
        difference = (ends[0] - ends[1]).sum() / (2 * step)
        np.testing.assert_allclose(gradient[i, k], difference, rtol=1e-6, atol=1e-7)


# Numbers worked out by hand: the student's probabilities are 1/4 and 3/4, the teacher's 1/2
# and 1/2 (at temperature tau)

ONE_FOUR = np.float32([[0.0, LN3]])
EVEN = np.float32([[7.0, 7.0]])
# of three classes: the student's probabilities are 1/4, 1/4 and 1/2, the teacher's 1/2, 3/8 and 1/8
THREE_S, THREE_T = np.log(np.float32([[2, 2, 4]])), np.log(np.float32([[4, 3, 1]]))
FIRST, NONE = np.array([0]), np.array([-1])

BY_HAND = [
    (lambda: pure.cross_entropy(ONE_FOUR, np.array([0])), 1.3862944),  # log 4
    (lambda: pure.cross_entropy(ONE_FOUR, np.array([1])), 0.2876821),  # log 4/3
    # .9 log 4 + .1 log 4/3
    (lambda: pure.cross_entropy(ONE_FOUR, np.array([0]), 0.2), 1.2764332),
    # 1.8 log 4 + .5 log 4/3
    (lambda: pure.cross_entropy(ONE_FOUR, np.array([0]), 0.2, (2.0, 5.0)), 2.6391710),
    (lambda: pure.cross_entropy(ONE_FOUR, np.array([-1]), 0.2, (2.0, 5.0)), 0.0),
    (lambda: pure.kl(ONE_FOUR, EVEN, 1.0), 0.1438410),  # 1/2 log 2 + 1/2 log 2/3
    (lambda: pure.kl(2 * ONE_FOUR, EVEN, 2.0), 0.5753641),  # 4 times that
    # 1/2 log 4 + 1/2 log 4/3
    (lambda: pure.soft_cross_entropy(ONE_FOUR, EVEN, 1.0), 0.8369882),
    (lambda: pure.soft_cross_entropy(2 * ONE_FOUR, EVEN, 2.0), 3.3479528),  # 4 times that
    # (4 + 0 + 9) / 3
    (lambda: pure.logit_mse(np.float32([[1, 2, 3]]), np.float32([[3, 2, 0]])), 4.3333333),
    # log 4 + 2 * .837 + 3 * .144
    (lambda: pure.three_term(ONE_FOUR, EVEN, np.array([0]), 2.0, 3.0, 1.0), 3.4917938),
    # log 4 + (2 + 3/6) log 2
    (lambda: pure.three_term(ONE_FOUR, EVEN, np.array([0]), 2.0, 3.0, 6.0, True), 3.1191623),
    (lambda: pure.three_term(ONE_FOUR, EVEN, np.array([-1]), 2.0, 3.0, 6.0, True), 1.7328680),
    (lambda: pure.tckd(THREE_S, THREE_T, FIRST, 1.0), 0.1438410),  # 1/2 log 2 + 1/2 log 2/3
    (lambda: pure.nckd(THREE_S, THREE_T, FIRST, 1.0), 0.3629902),  # 3/4 log 9/4 + 1/4 log 3/8
    # 2 * .144 + 3 * .363
    (lambda: pure.dkd(THREE_S, THREE_T, FIRST, 2.0, 3.0, 1.0), 1.3766526),
    # 4 times that
    (lambda: pure.dkd(2 * THREE_S, 2 * THREE_T, FIRST, 2.0, 3.0, 2.0), 5.5066104),
    # the teacher's likeliest is the first
    (lambda: pure.dkd(THREE_S, THREE_T, NONE, 2.0, 3.0, 1.0), 1.3766526),
    # 1/2 log 4 + 2 (3/4 log 3 + 1/4 log 3/2)
    (lambda: pure.nkd(THREE_S, THREE_T, FIRST, 2.0, 1.0), 2.5437982),
    (lambda: pure.nkd(THREE_S, THREE_T, NONE, 2.0, 1.0), 2.5437982),
    (lambda: pure.dist(THREE_S, THREE_T, 1.0, 0.0, 1.0), 1.9449112),  # 1 + 15 / sqrt(252)
    (lambda: pure.dist(2 * THREE_S, 2 * THREE_T, 1.0, 0.0, 2.0), 7.7796448),  # 4 times that
    # nothing correlates over a batch of one
    (lambda: pure.dist(THREE_S, THREE_T, 0.0, 2.0, 1.0), 2.0),
    # the virtual teacher's probabilities are 3/4 and 1/4: the 1/2 between its scores is log 3
    # at this temperature 3/4 log 3 + 1/4 log 1/3
    (lambda: pure.virtual_teacher(ONE_FOUR, FIRST, 0.75, 0.5 / LN3), 0.5493061),
    (lambda: pure.virtual_teacher(ONE_FOUR, NONE, 0.75, 0.5 / LN3), 0.0),
]


def test_values_by_hand():
    values = jax.jit(lambda: [value() for value, _ in BY_HAND])()
    for number, (value, (_, want)) in enumerate(zip(values, BY_HAND, strict=True)):
        np.testing.assert_allclose(value, [want], rtol=2e-6, err_msg=f'number {number}')


# Identities of the functions


@jax.jit
def functions(zs, zt, labels, tau):
    return {
        'kl': pure.kl(zs, zt, tau),
        'soft_cross_entropy': pure.soft_cross_entropy(zs, zt, tau),
        'logit_mse': pure.logit_mse(zs, zt),
        'tckd': pure.tckd(zs, zt, labels, tau),
        'nckd': pure.nckd(zs, zt, labels, tau),
        'nkd': pure.nkd(zs, zt, labels, 0.0, tau),
        'cross_entropy': pure.cross_entropy(zs, labels),
        'weighted': pure.cross_entropy(zs, labels, 0.0, (1.0, 2.0, 0.0, 0.5, 4.0)),
        'three_term': pure.three_term(zs, zt, labels),
        'three_term_as_documented': pure.three_term(zs, zt, labels, 1.0, 1.0, 4.0, False),
        'standardized': pure.standardize(zs),
    }


def values_of(zs, zt, tau=4.0, labels=LABELLED):
    return jax.device_get(functions(zs, zt, labels, np.float32(tau)))


def test_no_gradient_reaches_the_teacher_of_a_function():
    def total(zt):
        zs, labels = random_logits(1), LABELLED
        functions = [
            pure.kl(zs, zt, 2.0),
            pure.soft_cross_entropy(zs, zt, 2.0),
            pure.logit_mse(zs, zt),
            pure.three_term(zs, zt, labels),
            pure.three_term(zs, zt, labels, printed=True),
            pure.tckd(zs, zt, labels, 2.0),
            pure.nckd(zs, zt, labels, 2.0),
            pure.nkd(zs, zt, labels),
            pure.dist(zs, zt),
        ]
        return sum(values.sum() for values in functions)

    assert not np.any(jax.jit(jax.grad(total))(random_logits(2)))


def test_three_terms_defaults_are_the_documented_ones():
    found = values_of(random_logits(44), random_logits(45))
    np.testing.assert_array_equal(found['three_term'], found['three_term_as_documented'])


@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_soft_cross_entropy_exceeds_kl_by_the_teachers_entropy(tau):
    zs, zt = random_logits(13), random_logits(14)
    p, found = softmax(zt.astype(np.float64), tau), values_of(zs, zt, tau)
    np.testing.assert_allclose(
        found['soft_cross_entropy'] - found['kl'], -(tau**2) * (p * np.log(p)).sum(1), rtol=1e-4
    )


@pytest.mark.parametrize('tau', [1.0, 4.0, 16.0])
def test_shifting_all_of_an_examples_logits_changes_no_probability(tau):
    z = random_logits(12)
    np.testing.assert_allclose(values_of(z + 5, z, tau)['kl'], 0, atol=2e-5 * tau)


def test_kl_at_a_high_temperature_is_half_the_squared_difference_of_centred_logits():
    zs, zt = (z - z.mean(1, keepdims=True) for z in (random_logits(17), random_logits(18)))
    found = values_of(zs, zt, 200.0)
    np.testing.assert_allclose(found['kl'], found['logit_mse'] / 2, rtol=0.03)


def test_class_weights_multiply_the_cross_entropy_of_their_class():
    z, labels = random_logits(20), np.resize([0, 1, 2, 3, 4, 0], B)
    found = values_of(z, z, labels=labels)
    want = found['cross_entropy'] * np.float32([1, 2, 0, 0.5, 4])[labels]
    np.testing.assert_allclose(found['weighted'], want, rtol=1e-6)


@pytest.mark.parametrize('tau', [0.5, 1.0, 4.0, 16.0])
def test_kl_is_the_targets_part_and_the_other_classes_part_weighted_with_the_teachers_doubt(tau):
    zs, zt = random_logits(46), random_logits(47)
    doubt = 1 - softmax(np.float64(zt), tau)[np.arange(B), LABELLED]
    found = values_of(zs, zt, tau)
    want = found['tckd'] + doubt * found['nckd']
    np.testing.assert_allclose(found['kl'], want, rtol=1e-5, atol=5e-7 * tau**2)


@pytest.mark.parametrize('tau', [1.0, 4.0])  # both probabilities are at temperature 1
def test_nkd_without_the_other_classes_is_cross_entropy_weighted_with_the_certainty(tau):
    zs, zt = random_logits(50), random_logits(51)
    certainty = softmax(np.float64(zt))[np.arange(B), LABELLED]
    found = values_of(zs, zt, tau)
    want = certainty * found['cross_entropy']
    np.testing.assert_allclose(found['nkd'], want, rtol=1e-5, atol=1e-6)


# Properties of the losses


@pytest.mark.parametrize(
    'fields', [{}, {'label_smoothing': 0.1, 'class_weights': (0.5, 1.0, 2.0, 0.0, 3.0)}], ids=str
)
def test_an_unlabelled_example_has_exactly_no_value_and_no_gradient(fields):
    z = random_logits(9)
    values, gradient = evaluate('cross_entropy', fields, z, z, [-1] * B)
    assert (values == 0).all() and (gradient == 0).all()


@pytest.mark.parametrize('printed', [False, True])
def test_an_unlabelled_example_keeps_the_teachers_part_of_three_term(printed):
    zs, zt, fields = random_logits(10), random_logits(11), {'printed': True} if printed else {}
    without, labelled = (
        evaluate('three_term', fields, zs, zt, [label] * B)[0] for label in (-1, 2)
    )
    own = defaults('cross_entropy')
    want = logit_losses.cross_entropy_oracle(zs.astype(np.float64), zt, [2] * B, own)[0]
    np.testing.assert_allclose(labelled - without, want, rtol=1e-4, atol=1e-5)
    assert (without > 0).all()
    assert (np.asarray(OBJECTIVES['three_term']().valid(make_batch([-1] * B))) == 1).all()


@pytest.mark.parametrize('tau', [1.0, 4.0, 16.0])
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(tau):
    z = random_logits(12)
    values, gradient = evaluate('kl', {'tau': tau}, z, z)
    # float32 rounding of two log-softmaxes compiled differently
    np.testing.assert_allclose(values, 0, atol=1e-6 * tau**2)
    np.testing.assert_allclose(gradient, 0, atol=1e-6 * tau)
    values, gradient = evaluate('logit_mse', {}, z, z)
    assert (values == 0).all() and (gradient == 0).all()


def test_the_gradient_of_kl_at_small_logits_does_not_depend_on_the_temperature():
    zs, zt = random_logits(15, scale=0.01), random_logits(16, scale=0.01)
    norms = [np.linalg.norm(evaluate('kl', {'tau': tau}, zs, zt)[1]) for tau in (1.0, 4.0, 16.0)]
    np.testing.assert_allclose(norms, norms[0], rtol=0.02)
    centred = (zs - zt) - (zs - zt).mean(1, keepdims=True)
    # not merely equal: all of them zero
    np.testing.assert_allclose(norms[0], np.linalg.norm(centred) / K, rtol=0.02)


def test_only_the_printed_three_term_pulls_a_student_away_from_its_teacher():
    z, unlabelled = random_logits(19, scale=1.0), [-1] * B
    plain = evaluate('three_term', {}, z, z, unlabelled)[1]
    np.testing.assert_allclose(plain, 0, atol=1e-6)
    gradient = evaluate('three_term', {'printed': True}, z, z, unlabelled)[1]
    first, last = z.argmax(1), z.argmin(1)
    # a step downhill raises the teacher's first class still further
    assert (gradient[np.arange(B), first] < -1e-3).all()
    assert (gradient[np.arange(B), last] > 1e-4).all()


def test_dkd_with_the_teachers_doubt_as_beta_is_kl():
    tau, label = 2.0, 3
    zs, zt = random_logits(48), np.tile(random_logits(49)[:1], (B, 1))
    doubt = float(1 - softmax(np.float64(zt), tau)[0, label])
    fields = {'alpha': 1.0, 'beta': doubt, 'tau': tau}
    got = evaluate('dkd', fields, zs, zt, [label] * B)
    want = evaluate('kl', {'tau': tau}, zs, zt, [label] * B)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ('name', 'fields'),
    [
        ('dkd', {}),
        ('dkd', {'tau': 1.0, 'beta': 2.0}),
        ('dist', {}),
        ('dist', {'tau': 4.0}),
        ('kl', {'standardize': True}),
        ('dkd', {'standardize': True}),
        ('dist', {'standardize': True}),
        ('logit_mse', {'standardize': True}),
    ],
)
def test_a_student_equal_to_its_teacher_is_at_the_minimum(name, fields):
    z, own = random_logits(52), defaults(name) | fields
    values, gradient = evaluate(name, fields, z, z)
    # Rounding times tau^2, and for DIST the 1e-8 of its denominator.
    scale = own.get('tau', 1.0) ** 2 * own.get('beta', 1.0)
    np.testing.assert_allclose(values, 0, atol=2e-6 * scale)
    np.testing.assert_allclose(gradient, 0, atol=2e-6 * scale)
    other = evaluate(name, fields, random_logits(53), z)
    assert (other[0] > 1e-3).all() and np.abs(other[1]).max() > 0.1


def test_dist_of_an_example_is_0_where_probabilities_are_affinely_related_and_2_where_opposed():
    p = softmax(np.float64(random_logits(54)))
    for share, want in ((0.3, 0.0), (1.0, 0.0), (-0.2, 2.0)):
        related = share * p + (1 - share) / K  # sums to 1
        values, gradient = evaluate(
            'dist', {'gamma': 0.0}, np.float32(np.log(related)), np.float32(np.log(p))
        )
        np.testing.assert_allclose(values, want, atol=1e-5)
        np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.parametrize(('correct', 'tau'), [(0.99, 20.0), (0.9, 0.25)])
def test_virtual_teacher_is_least_at_its_own_probabilities(correct, tau):
    scores = np.where(np.eye(K)[LABELLED] > 0, correct, (1 - correct) / (K - 1)) / tau
    loss = partial(evaluate, 'virtual_teacher', {'correct': correct, 'tau': tau}, labels=LABELLED)
    for shift in (0.0, 3.0):
        values, gradient = loss(*2 * [np.float32(scores + shift)])
        np.testing.assert_allclose(values, 0, atol=1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)
    away = loss(*2 * [np.float32(scores) + random_logits(62, scale=0.3)])[0]
    assert (away > 1e-5).all()


def test_virtual_teacher_judges_only_the_labelled():
    term, labels = OBJECTIVES['virtual_teacher'](), np.resize([-1, 0, -1, 1, 2, 3], B)
    assert not term.needs_teacher
    np.testing.assert_array_equal(term.valid(make_batch(labels)), labels >= 0)
    z = random_logits(63)
    values, gradient = evaluate('virtual_teacher', {}, z, z, labels)
    assert (values[labels < 0] == 0).all() and (gradient[labels < 0] == 0).all()
    assert (values[labels >= 0] > 0).all()


@pytest.mark.parametrize('name', ['dkd', 'nkd'])
def test_of_an_unlabelled_example_the_teachers_likeliest_class_is_the_target(name):
    zs, zt = random_logits(64), random_logits(65)
    values, gradient = evaluate(name, {}, zs, zt, [-1] * B)
    want = evaluate(name, {}, zs, zt, zt.argmax(1))
    np.testing.assert_allclose(values, want[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, want[1], rtol=1e-5, atol=1e-6)
    assert (np.asarray(OBJECTIVES[name]().valid(make_batch([-1] * B))) == 1).all()
    least = evaluate(name, {}, zs, zt, zt.argmin(1))[0]
    assert (np.abs(values - least) > 1e-3).all()


# Standardised logits


def test_standardised_logits_have_mean_0_and_unbiased_standard_deviation_1():
    z, equal = random_logits(57), np.full((B, K), -3.0, np.float32)
    z[:2] = [[3, 5, 7, 5, 5], [-1, -1, 2, -1, 1]]
    found, moved, same = (
        values_of(x, x)['standardized'] for x in (z, np.float32(0.37 * z - 20), equal)
    )
    np.testing.assert_allclose(found[0], np.array([-2, 0, 2, 0, 0]) / 2**0.5, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found[1], np.array([-1, -1, 2, -1, 1]) / 2**0.5, rtol=1e-6)
    want = logit_losses.standardize(np.float64(z))[0]
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved, found, rtol=1e-4, atol=1e-5)
    assert (same == 0).all()


STANDARDISED = ['kl', 'soft_cross_entropy', 'logit_mse', 'three_term', 'dkd', 'nkd', 'dist']


@pytest.mark.parametrize('name', STANDARDISED)
def test_standardised_terms_do_not_see_the_shift_and_the_scale_of_either_networks_logits(name):
    # no label: three_term's own part is raw
    zs, zt, unlabelled, fields = random_logits(58), random_logits(59), [-1] * B, {}
    moved_to = np.float32(3 * zs + 10), np.float32(0.5 * zt - 2)
    values, gradient = evaluate(name, {'standardize': True}, zs, zt, unlabelled)
    moved = evaluate(name, {'standardize': True}, *moved_to, unlabelled)
    np.testing.assert_allclose(moved[0], values, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(3 * moved[1], gradient, rtol=1e-4, atol=2e-5)
    along = [gradient.sum(1), (gradient * zs).sum(1)]  # a step along either would change nothing
    np.testing.assert_allclose(along, 0, atol=5e-5)
    assert np.abs(evaluate(name, fields, *moved_to, unlabelled)[0] - values).max() > 0.1


def test_standardised_terms_at_equal_logits_are_exact_as_a_user_compiles_them():
    """Rounding decides there: see `exact` in logit_losses."""
    cases = {name: (name, f) for name, f in CASES if f.get('standardize')}.values()
    inputs = logit_losses.extreme('')

    def values(inputs):
        return [
            OBJECTIVES[name](**f).apply({}, inputs.student, inputs.teacher, inputs.batch)
            for name, f in cases
        ]

    found = jax.jit(values, compiler_options=FAST_COMPILE)(inputs)
    assert {name for name, _ in cases} == set(STANDARDISED)
    for (name, fields), got in zip(cases, found, strict=True):
        want = logit_losses.formula(name, inputs, defaults(name) | fields)[0]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-3, err_msg=name)


def test_standardize_leaves_the_labels_part_of_three_term_alone():
    zs, zt = random_logits(60), random_logits(61)
    labelled, without = (
        evaluate('three_term', {'standardize': True}, zs, zt, [label] * B)[0] for label in (2, -1)
    )
    own = values_of(zs, zt, labels=np.full(B, 2))['cross_entropy']
    np.testing.assert_allclose(labelled - without, own, rtol=1e-5, atol=1e-5)


# Several losses in one program


def together(cases, inputs):
    """Of each case (values [B], gradient for the student's logits); of those that standardise
    no gradient.
    """

    def one(loss, inputs):
        if getattr(loss, 'standardize', False):
            return loss.apply({}, inputs.student, inputs.teacher, inputs.batch), None

        def total(zs):
            student = inputs.student.replace(logits=zs)
            values = loss.apply({}, student, inputs.teacher, inputs.batch)
            return values.sum(), values

        (_, values), gradient = jax.value_and_grad(total, has_aux=True)(inputs.student.logits)
        return values, gradient

    losses = [OBJECTIVES[name](**fields) for name, fields in cases]
    return jax.device_get(jax.jit(lambda inputs: [one(loss, inputs) for loss in losses])(inputs))


MIXED = [
    ('cross_entropy', {'label_smoothing': 0.1}),
    ('three_term', {}),
    ('dkd', {}),
    ('nkd', {}),
    ('nkd', {'standardize': True, 'tau': 2.0}),
    ('dkd', {'standardize': True}),
    ('virtual_teacher', {}),
]


def test_under_mixup_both_labels_count():
    """Those with one of two labels missing as if both were; three_term's teacher is not mixed."""
    zs, zt = random_logits(66, shape=(6, K)), random_logits(67, shape=(6, K))
    own, other = np.array([0, 4, -1, -1, 2, 1]), np.array([1, 1, -1, -1, 2, 3])
    more = {'mixed_label': np.int32([1, 1, 0, -1, 2, 3]), 'mix': np.float32(0.7)}
    inputs = given(zs, zt, [0, 4, -1, 2, 2, 1], **more)
    found = together(MIXED, inputs)
    for (name, fields), (values, gradient) in zip(MIXED, found, strict=True):
        f = defaults(name) | fields
        a, b = (FORMULAS[name](np.float64(zs), np.float64(zt), x, f) for x in (own, other))
        np.testing.assert_allclose(values, 0.7 * a[0] + 0.3 * b[0], rtol=2e-5, atol=1e-5)
        if gradient is not None:
            np.testing.assert_allclose(gradient, 0.7 * a[1] + 0.3 * b[1], rtol=2e-5, atol=5e-6)
        if name == 'cross_entropy':
            assert values[2] == 0 and values[3] == 0
    valid = OBJECTIVES['cross_entropy']().valid(inputs.batch)
    np.testing.assert_array_equal(valid, [1, 1, 0, 0, 1, 1])


def test_what_is_left_of_two_classes_can_be_learned():
    cases = [
        ('dkd', {'beta': 0.0}),
        ('nkd', {'gamma': 0.0}),
        ('dist', {'beta': 0.0}),
        ('virtual_teacher', {}),
    ]
    zs, zt = random_logits(77, shape=(6, 2)), random_logits(78, shape=(6, 2))
    labels = np.array([0, 1, 0, 1, 1, -1])
    for (name, fields), (values, gradient) in zip(
        cases, together(cases, given(zs, zt, labels)), strict=True
    ):
        want = FORMULAS[name](np.float64(zs), np.float64(zt), labels, defaults(name) | fields)
        np.testing.assert_allclose(values, want[0], rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(gradient, want[1], rtol=2e-5, atol=5e-6)
        assert np.abs(gradient).max() > 0.01
