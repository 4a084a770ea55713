"""Recall distortion by hand, on made predictions with a known slope, and under the null."""

import numpy as np
import pytest
from scipy import stats

from prunejax.measures import recall


def test_balances_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 3, 3])  # class 2 has no test examples
    predicted = np.array([0, 0, 0, 1, 1, 0, 3, 3])
    correct, total = recall.counts(predicted, labels, 4)
    assert (correct.tolist(), total.tolist()) == ([3, 1, 0, 2], [4, 2, 0, 2])
    np.testing.assert_array_equal(recall.recalls(correct, total), [0.75, 0.5, np.nan, 1])
    assert recall.accuracy(correct, total) == 6 / 8
    assert recall.accuracy(correct, total, "balanced") == pytest.approx(2.25 / 3)
    np.testing.assert_allclose(recall.balance(correct, total), [0, -0.25, np.nan, 0.25])
    nb = recall.normalized_balance(correct, total)
    np.testing.assert_allclose(nb, [0, -1 / 3, np.nan, 1 / 3])
    assert np.isnan(recall.normalized_balance([0, 0], [5, 5])).all()
    with pytest.raises(ValueError, match="weighting 'size'"):
        recall.accuracy(correct, total, "size")
    with pytest.raises(ValueError, match="labels from 0 to 3; there are 3 classes"):
        recall.counts(predicted, labels, 3)
    with pytest.raises(ValueError, match="2 predictions for 8 labels"):
        recall.counts(predicted[:2], labels, 4)


@pytest.mark.parametrize("weighting", ["frequency", "balanced"])
def test_the_standard_error_is_that_of_drawn_test_sets(weighting):
    rng = np.random.default_rng(0)
    p, total = np.array([0.9, 0.6, 0.75]), np.array([200, 300, 100])
    drawn = rng.binomial(total, p, size=(4000, 3))
    nb = np.array([recall.normalized_balance(c, total, weighting) for c in drawn])
    found = recall.balance_stderr(total * p, total, weighting)
    np.testing.assert_allclose(found, nb.std(0), rtol=0.06)


def test_ratios_only_where_the_dense_balance_is_known():
    found = recall.class_ratios([0.2, 0.05, -0.1], [0.3, 0.5, -0.05], [0.02, 0.03, 0.01])
    np.testing.assert_allclose(found, [1.5, np.nan, 0.5])


def made(classes=10, each=100, slope=1.3, seed=0, shared=0.5):
    """Right or wrong of two networks whose NB have this slope; accuracies 0.8 and 0.7."""
    rng = np.random.default_rng(seed)
    nb = np.linspace(-0.18, 0.18, classes)
    labels = np.repeat(np.arange(classes), each)
    p0, p1 = 0.8 * (1 + nb), 0.7 * (1 + slope * nb)
    u, v = rng.random((2, labels.size))
    v = np.where(rng.random(labels.size) < shared, u, v)  # the same hard examples
    return u < p0[labels], v < p1[labels], labels


def test_split_halves_have_no_bias_where_the_plain_slope_has():
    plain, halves = [], []
    for seed in range(400):
        right0, right, labels = made(seed=seed)
        halves.append(recall.split_half(right0, right, labels, 10, seed=seed)[0])
        nb = [
            recall.normalized_balance(np.bincount(labels[r], minlength=10), np.full(10, 100))
            for r in (right0, right)
        ]
        plain.append(recall.slopes(*nb)[0])
    assert abs(np.nanmedian(halves) - 1.3) < 0.05
    assert np.median(plain) < 1.3 - 0.05


def test_split_halves_say_why_there_is_none():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(4), 10)
    same = rng.random((2, 40)) < 0.5  # no class is ahead
    value, reason = recall.split_half(*same, labels, 4)
    assert np.isnan(value)
    assert "halves disagree in" in reason
    value, reason = recall.split_half([True, False, True], [True] * 3, [0, 1, 2], 3)
    assert (np.isnan(value), "two test examples" in reason) == (True, True)


def predictions(right, labels, classes=10):
    return np.where(right, labels, (labels + 1) % classes)


def test_nothing_pruned_is_slope_one_and_labels_are_only_names():
    right0, right, labels = made()
    dense, pruned = predictions(right0, labels), predictions(right, labels)
    same = recall.distortion(dense, dense, labels, 10)
    assert same.alpha == same.alpha_intercept == same.split_half == 1
    assert same.r_squared == pytest.approx(1)
    found = recall.distortion(dense, pruned, labels, 10)
    # A balanced test set: the mean of NB is 0 and both slopes are one.
    assert abs(found.nb_dense.mean()) < 1e-12
    assert found.alpha == pytest.approx(found.alpha_intercept, rel=1e-9)
    line = stats.linregress(found.nb_dense, found.nb_pruned)
    assert found.alpha_intercept == pytest.approx(line.slope, rel=1e-9)
    assert found.r_squared == pytest.approx(line.rvalue**2, rel=1e-9)
    names = np.random.default_rng(2).permutation(10)
    other = recall.distortion(names[dense], names[pruned], names[labels], 10)
    assert other.alpha == pytest.approx(found.alpha, rel=1e-12)
    assert not found.degenerate
    assert found.accuracy_dense == pytest.approx(np.mean(right0))


def test_absent_classes_two_classes_and_networks_at_chance():
    labels = np.array([0] * 20 + [2] * 20)
    dense = np.r_[np.zeros(18), np.ones(2), np.full(14, 2), np.ones(6)].astype(int)
    pruned = np.r_[np.zeros(17), np.ones(3), np.full(10, 2), np.ones(10)].astype(int)
    found = recall.distortion(dense, pruned, labels, 3, splits=0)
    assert (found.classes, found.absent, found.reason) == ((0, 2), (1,), "not asked for")
    assert np.isfinite(found.alpha)
    assert np.isnan(found.r_squared)
    dead = recall.distortion(dense, np.ones(40, int), labels, 3)
    assert dead.degenerate
    known = recall.alphas([found, dead, found])
    assert np.isnan(known[1])
    assert recall.neutral([*known, 1.5, 1.6, 1.7]).n == 5
    assert np.isnan(recall.alphas([found], "split_half")[0])
    with pytest.raises(ValueError, match="kind 'slope' is not one of"):
        recall.alphas([found], "slope")
    assert np.isnan(dead.alpha)


def test_permutation_by_enumeration():
    """Swaps of three examples that only one network has right, all eight counted."""
    labels = np.array([0] * 6 + [1] * 6)
    right0 = np.array([1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0], bool)
    right = np.array([1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 0], bool)
    nb = lambda r: recall.normalized_balance(np.bincount(labels[r], minlength=2), [6, 6])  # noqa: E731
    draws = []
    for code in range(8):
        swap = np.zeros(12, bool)
        swap[[3, 4, 10]] = [code & 1, code & 2, code & 4]
        draws.append(nb(np.where(swap, right, right0)) - nb(np.where(swap, right0, right)))
    observed = nb(right0) - nb(right)
    tails = [(np.array(draws) * s >= observed * s - 1e-12).mean(0) for s in (1, -1)]
    expected = np.minimum(1, 2 * np.minimum(*tails))
    a, b = predictions(right0, labels, 2), predictions(right, labels, 2)
    statistic, p = recall.permutation_test(a, b, labels, 2, permutations=20000)
    np.testing.assert_allclose(statistic, observed)
    np.testing.assert_allclose(p, expected, atol=0.015)
    assert np.isnan(recall.permutation_test(a, b, labels, 3)[1][2])


@pytest.mark.parametrize("fn", [recall.permutation_test, recall.split_half, recall.distortion])
def test_what_does_not_belong_together_is_told(fn):
    labels = np.array([0, 1, 0, 1])
    for pruned, given, message in (
        (labels[:1], labels, "1 predictions for 4 labels"),  # one for all examples
        (labels, labels + 1, "labels from 1 to 2; there are 2 classes"),
        (labels, labels - 1, "labels from -1 to 0"),
        (labels, labels / 1, "labels are float64"),
    ):
        with pytest.raises(ValueError, match=message):
            fn(labels, pruned, given, 2)


def test_p_values_are_uniform_where_pruning_does_nothing():
    found = []
    for seed in range(200):
        right0, right, labels = made(classes=4, each=500, slope=1.0, seed=seed, shared=0.0)
        u = np.random.default_rng(seed + 1000).random(labels.size)
        right = u < 0.8 * (1 + np.linspace(-0.18, 0.18, 4)[labels])  # the dense network again
        a, b = predictions(right0, labels, 4), predictions(right, labels, 4)
        found.append(recall.permutation_test(a, b, labels, 4, permutations=400, seed=seed)[1][1])
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_tests_over_models():
    alphas, others = [1.2, 1.1, 1.3, 1.25], [1.0, 1.05, 1.2, 1.1]
    found, expected = recall.neutral(alphas), stats.ttest_1samp(alphas, 1)
    assert (found.t, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    interval = expected.confidence_interval()
    assert (1 + found.low, 1 + found.high) == pytest.approx((interval.low, interval.high))
    assert recall.compare(alphas, others).p == pytest.approx(stats.ttest_rel(alphas, others).pvalue)
