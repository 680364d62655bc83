"""kd_jax.metrics against scikit-learn, float64 numpy and values computed by hand."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import metrics

SUMS = jax.jit(metrics.sums)
COUNTS = ('count', 'top1', 'top5', 'bin_count', 'bin_right', 'true_positive', 'predicted', 'actual')


def measure(logits, label, mask=None, teacher=None):
    """The totals of one batch."""
    label = np.asarray(label, np.int32)
    mask = np.ones(len(label)) if mask is None else mask
    batch = {'label': jnp.asarray(label), 'mask': jnp.asarray(mask, jnp.float32)}
    teacher = None if teacher is None else jnp.asarray(teacher, jnp.float32)
    return metrics.add(None, SUMS(jnp.asarray(logits, jnp.float32), batch, teacher))


def examples(count, classes, seed, scale=2.0):
    """Logits that are right more often than by chance, and labels of which some are -1."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, count)
    logits = scale * rng.normal(size=(count, classes)) + 2 * np.eye(classes)[label]
    label[rng.random(count) < 0.1] = -1
    return logits.astype(np.float32), label.astype(np.int32)


def softmax(logits):
    z = np.asarray(logits, np.float64)
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


def ece_by_loop(p, label, bins=15):
    """Expected calibration error as the paper writes it, example by example."""
    groups = [[] for _ in range(bins)]
    for row, y in zip(p, label, strict=True):
        confidence = row.max()
        place = next(m for m in range(bins) if confidence <= (m + 1) / bins or m == bins - 1)
        groups[place].append((row.argmax() == y, confidence))
    return sum(
        len(g) / len(p) * abs(np.mean([r for r, _ in g]) - np.mean([c for _, c in g]))
        for g in groups
        if g
    )


@pytest.mark.parametrize('classes', [2, 3, 10, 100])
def test_results_equal_scikit_learn_and_numpy_on_the_examples_that_count(classes):
    from sklearn.metrics import accuracy_score, f1_score, log_loss, top_k_accuracy_score

    logits, label = examples(301, classes, seed=classes)
    mask = (np.random.default_rng(1).random(301) < 0.8).astype(np.float32)
    result = metrics.finalize(measure(logits, label, mask))
    kept = (mask > 0) & (label >= 0)
    z, y, p = logits[kept], label[kept], softmax(logits[kept])
    assert 0 < kept.sum() < 301
    assert result['count'] == kept.sum() and isinstance(result['count'], int)
    assert result['top1'] == pytest.approx(accuracy_score(y, z.argmax(1)), abs=1e-12)
    top5 = top_k_accuracy_score(y, z, k=5, labels=range(classes)) if classes > 5 else 1.0
    assert result['top5'] == pytest.approx(top5, abs=1e-12)
    assert result['f1_macro'] == pytest.approx(f1_score(y, z.argmax(1), average='macro'), abs=1e-12)
    assert result['nll'] == pytest.approx(log_loss(y, p, labels=range(classes)), rel=1e-5)
    assert result['ece'] == pytest.approx(ece_by_loop(p, y), abs=1e-6)
    assert all(type(result[name]) is float for name in ('top1', 'top5', 'f1_macro', 'nll', 'ece'))


def test_agreement_and_kl_equal_numpy_and_need_no_labels():
    logits, label = examples(200, 10, seed=0)
    teacher, _ = examples(200, 10, seed=1)
    mask = (np.arange(200) % 3 > 0).astype(np.float32)
    result = metrics.finalize_teacher(measure(logits, label, mask, teacher))
    p, t = softmax(logits)[mask > 0], softmax(teacher)[mask > 0]
    assert result['agreement'] == pytest.approx((p.argmax(1) == t.argmax(1)).mean(), abs=1e-12)
    assert result['kl'] == pytest.approx((t * (np.log(t) - np.log(p))).sum(1).mean(), rel=1e-5)
    unlabelled = metrics.finalize_teacher(measure(logits, np.full(200, -1), mask, teacher))
    assert unlabelled == result
    assert metrics.finalize_teacher(measure(logits, label, mask)) is None


def test_kl_is_teacher_to_student_by_hand():
    # p_t = (3/4, 1/4), p_s = (1/2, 1/2): KL(t || s) = 3/4 log(3/2) + 1/4
    # log(1/2) = 0.130812; KL(s || t) = 0.143841
    result = metrics.finalize_teacher(measure([[0.0, 0.0]], [0], teacher=[[math.log(3), 0.0]]))
    assert result['kl'] == pytest.approx(0.130812, abs=1e-6)
    itself = metrics.finalize_teacher(measure([[1.0, -2.0, 0.5]], [0], teacher=[[1.0, -2.0, 0.5]]))
    assert itself == {'agreement': 1.0, 'kl': 0.0}


@pytest.mark.parametrize('size', [1, 7, 64, 250])
def test_the_batch_size_changes_nothing(size):
    logits, label = examples(250, 10, seed=3)
    teacher, _ = examples(250, 10, seed=4)
    whole, total = measure(logits, label, teacher=teacher), None
    for start in range(0, 250, size):
        rows = slice(start, start + size)
        pad = size - len(label[rows])  # the last batch is filled up with wrong, masked rows
        padded = [
            np.concatenate([x[rows], np.full((pad, *x.shape[1:]), 7, x.dtype)])
            for x in (logits, label, teacher)
        ]
        batch = {'label': padded[1], 'mask': np.float32(np.arange(size) < size - pad)}
        total = metrics.add(total, SUMS(padded[0], batch, padded[2]))
    for name in (*COUNTS, 'teacher_count', 'teacher_agree'):
        np.testing.assert_array_equal(total[name], whole[name], err_msg=name)
    for name in ('nll', 'bin_confidence', 'teacher_kl'):
        np.testing.assert_allclose(total[name], whole[name], rtol=1e-6, err_msg=name)
    assert total.keys() == whole.keys()
    once, parts = metrics.finalize(whole), metrics.finalize(total)
    assert all(once[name] == parts[name] for name in ('count', 'top1', 'top5', 'f1_macro'))


def test_the_number_of_devices_changes_nothing():
    logits, label = examples(64, 10, seed=5)
    teacher, _ = examples(64, 10, seed=6)
    mask = np.float32(np.arange(64) < 61)
    whole = measure(logits, label, mask, teacher)

    @partial(jax.pmap, axis_name='batch')
    def sharded(logits, label, mask, teacher):
        return jax.lax.psum(metrics.sums(logits, {'label': label, 'mask': mask}, teacher), 'batch')

    sums = sharded(*(x.reshape(4, 16, *x.shape[1:]) for x in (logits, label, mask, teacher)))
    sums = jax.tree.map(lambda x: x[0], jax.device_get(sums))
    assert sums.keys() == whole.keys()
    for name in whole:
        np.testing.assert_allclose(
            sums[name], whole[name], rtol=0 if name in COUNTS else 1e-6, err_msg=name
        )


def test_totals_are_float64_and_do_not_saturate():
    one = measure([[1.0, 0.0]], [0])
    assert all(value.dtype == np.float64 for value in one.values())
    assert all(value.dtype == np.float64 for value in metrics.add(one, SUMS(*one_batch())).values())
    total = dict(one, count=np.float64(2**24))  # where float32 stops counting
    assert metrics.add(total, SUMS(*one_batch()))['count'] == 2**24 + 1


def one_batch():
    return jnp.zeros((1, 2)), {'label': jnp.zeros(1, jnp.int32), 'mask': jnp.ones(1)}


def test_adding_batches_with_and_without_a_teacher_is_refused():
    with pytest.raises(ValueError, match='teacher'):
        metrics.add(measure([[1.0, 0.0]], [0], teacher=[[1.0, 0.0]]), SUMS(*one_batch()))


def test_a_perfect_predictor_by_hand():
    result = metrics.finalize(measure(200.0 * np.eye(4), [0, 1, 2, 3]))
    perfect = {'top1': 1.0, 'top5': 1.0, 'f1_macro': 1.0, 'nll': 0.0, 'ece': 0.0, 'count': 4}
    assert result | perfect == result


def test_a_uniform_predictor_by_hand():
    # Ties go to class 0: right for 1 of 10, precision 1/10 and recall 1 there;
    # F1 = 2/11 for one class of ten.
    result = metrics.finalize(measure(np.zeros((10, 10)), range(10)))
    assert result['top1'] == pytest.approx(0.1, abs=1e-12) and result['top5'] == pytest.approx(
        0.5, abs=1e-12
    )
    assert result['f1_macro'] == pytest.approx(2 / 11 / 10, abs=1e-12)
    assert result['nll'] == pytest.approx(math.log(10), rel=1e-6)
    assert result['ece'] == pytest.approx(0.0, abs=1e-6)  # confidence 0.1, right 0.1
    always_nine = metrics.finalize(measure(np.zeros((10, 10)), [9] * 10))
    assert always_nine['top1'] == always_nine['top5'] == 0.0
    assert always_nine['ece'] == pytest.approx(0.1, abs=1e-6)


def test_calibration_error_by_hand():
    # Two rows of confidence 0.9 (one right) and two of 0.7 (both right): (2
    # |.5 - .9| + 2 |1 - .7|) / 4 = 0.35.
    logits = [[math.log(9), 0.0]] * 2 + [[math.log(7 / 3), 0.0]] * 2
    total = measure(logits, [0, 1, 0, 0])
    assert metrics.finalize(total)['ece'] == pytest.approx(0.35, abs=1e-6)
    # 0.7 = 10.5/15 belongs to (10/15, 11/15], 0.9 = 13.5/15 to (13/15, 14/15].
    np.testing.assert_array_equal(np.flatnonzero(total['bin_count']), [10, 13])
    np.testing.assert_array_equal(total['bin_right'][[10, 13]], [2, 1])
    np.testing.assert_allclose(total['bin_confidence'][[10, 13]], [1.4, 1.8], rtol=1e-6)


def test_f1_averages_the_classes_that_occur():
    from sklearn.metrics import f1_score

    # Labels 0, 0, 1 predicted 0, 1, 3: F1 = 2/3, 0, -, 0 -> mean over the three classes that occur.
    logits = np.eye(5)[[0, 1, 3]]
    assert metrics.finalize(measure(logits, [0, 0, 1]))['f1_macro'] == pytest.approx(
        2 / 9, abs=1e-12
    )
    assert f1_score([0, 0, 1], [0, 1, 3], average='macro') == pytest.approx(2 / 9)


def test_with_few_classes_the_top_five_are_all_of_them():
    for classes in (2, 3, 5):
        logits, label = examples(50, classes, seed=classes)
        assert metrics.finalize(measure(logits, label))['top5'] == 1.0
    sixth = np.arange(6.0)[::-1][None]
    assert metrics.finalize(measure(sixth, [5]))['top5'] == 0.0
    assert metrics.finalize(measure(sixth, [4]))['top5'] == 1.0


def test_extreme_logits_stay_finite():
    logits = np.array([[120.0, -120.0, 0.0], [-120.0, 120.0, 0.0]])
    total = measure(logits, [1, 1], teacher=-logits)
    assert all(np.isfinite(value).all() for value in total.values())
    assert metrics.finalize(total)['nll'] == pytest.approx(120.0)  # (240 + 0) / 2
    assert metrics.finalize_teacher(total) == {'agreement': 0.0, 'kl': pytest.approx(240.0)}


def test_an_impossible_class_of_the_teacher_adds_nothing_to_kl():
    # p_t = (1/2, 1/2, 0) by a logit of -inf, p_s = 1/3 each: log(3/2)
    total = measure([[0.0, 0.0, 0.0]], [0], teacher=[[0.0, 0.0, -np.inf]])
    assert metrics.finalize_teacher(total)['kl'] == pytest.approx(math.log(1.5), rel=1e-6)


@pytest.mark.parametrize('column', [0, 1, 2])
def test_nan_logits_are_never_right_and_show(column):
    logits = np.array([[3.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    logits[0, column] = np.nan
    total = measure(logits, [0, 0], teacher=logits)
    result = metrics.finalize(total)
    assert result['top1'] == result['top5'] == 0.5 and result['count'] == 2
    assert math.isnan(result['nll']) and math.isnan(result['ece'])
    assert total['predicted'].sum() == total['bin_count'].sum() == 1
    assert metrics.finalize_teacher(total)['agreement'] == 0.5 and math.isnan(
        metrics.finalize_teacher(total)['kl']
    )


def test_a_label_that_is_no_class_is_never_right_and_shows():
    result = metrics.finalize(measure([[3.0, 0.0], [3.0, 0.0]], [0, 2]))
    assert result['top1'] == result['top5'] == 0.5 and math.isnan(result['nll'])


def test_what_padding_holds_changes_nothing():
    logits, label = examples(8, 4, seed=0)
    teacher, _ = examples(8, 4, seed=1)
    mask = np.float32([1, 1, 0, 1, 0, 1, 1, 0])
    clean = measure(logits, label, mask, teacher)
    for junk in (np.nan, np.inf, -np.inf, 1e30):
        dirty_logits, dirty_teacher = logits.copy(), teacher.copy()
        dirty_logits[mask == 0] = dirty_teacher[mask == 0] = junk
        dirty = measure(dirty_logits, np.where(mask > 0, label, 99), mask, dirty_teacher)
        for name in clean:
            np.testing.assert_array_equal(dirty[name], clean[name], err_msg=f'{name} with {junk}')


def test_no_labelled_example_gives_nan_and_count_zero():
    result = metrics.finalize(measure(np.zeros((3, 4)), [-1, -1, 2], mask=[1, 1, 0]))
    assert result.pop('count') == 0
    assert all(math.isnan(value) for value in result.values())


def test_half_precision_logits_are_summed_in_float32():
    logits, label = examples(64, 10, seed=7)
    logits = jnp.asarray(logits, jnp.bfloat16)
    sums = SUMS(logits, {'label': label, 'mask': np.ones(64, np.float32)}, logits)
    assert all(value.dtype == jnp.float32 for value in sums.values())
    kept = label >= 0
    nll = -np.log(softmax(np.asarray(logits, np.float64))[kept, label[kept]]).sum()
    assert float(sums['nll']) == pytest.approx(nll, rel=1e-5)
