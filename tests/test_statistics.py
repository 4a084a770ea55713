import json

import numpy as np
import pytest
from scipy import stats

from prunejax.measures import columns, correlation, summary
from prunejax.measures import statistics as s
from prunejax.measures.ranking_statistics import r_squared

X = np.array([0.99, 0.97, 0.93, 0.95, 0.90, 0.97, 0.88, 0.91, 0.99, 0.94])
Y = np.array([0.80, 0.83, 0.86, 0.82, 0.88, 0.81, 0.87, 0.86, 0.79, 0.84])


def test_mean_interval_is_scipys():
    found = s.mean(X)
    low, high = stats.t.interval(0.95, len(X) - 1, X.mean(), stats.sem(X))
    assert (found.n, found.mean, found.std) == (10, X.mean(), X.std(ddof=1))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    # Closed form of the t(2) quantile: 2 q / sqrt(2 (1 - q^2)) with q = 0.95.
    three = s.mean([1.0, 2.0, 3.0])
    assert three.high - 2.0 == pytest.approx(1.9 / np.sqrt(0.195) / np.sqrt(3), rel=1e-9)


def test_pearson_is_scipys_with_its_interval():
    found, expected = correlation.pearson(X, Y), stats.pearsonr(X, Y)
    interval = expected.confidence_interval(0.95)
    assert (found.value, found.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_kendall_is_tau_b_by_counting_pairs():
    found = correlation.kendall(X, Y)
    concordant = discordant = ties_x = ties_y = 0
    for i in range(len(X)):
        for j in range(i):
            a, b = np.sign(X[i] - X[j]), np.sign(Y[i] - Y[j])
            concordant += a * b > 0
            discordant += a * b < 0
            ties_x += a == 0
            ties_y += b == 0
    total = len(X) * (len(X) - 1) / 2
    tau = (concordant - discordant) / np.sqrt((total - ties_x) * (total - ties_y))
    assert ties_x > 0
    assert found.value == pytest.approx(tau, rel=1e-12)
    half = stats.t.ppf(0.975, 8) * np.sqrt(0.437 / 6)
    assert found.low == pytest.approx(np.tanh(np.arctanh(tau) - half), rel=1e-9)


def test_spearman_is_pearson_of_ranks():
    ranks = correlation.pearson(stats.rankdata(X), stats.rankdata(Y))
    found = correlation.spearman(X, Y)
    assert found.value == pytest.approx(ranks.value, rel=1e-12)
    assert found.low < ranks.low
    assert found.high > ranks.high


def test_comparisons_are_scipys():
    found, expected = s.paired(X, Y), stats.ttest_rel(X, Y)
    interval = expected.confidence_interval(0.95)
    assert (found.t, found.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.d == pytest.approx(found.t / np.sqrt(10), rel=1e-12)
    found, expected = s.welch(X[:6], Y), stats.ttest_ind(X[:6], Y, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert (found.t, found.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert (found.degrees, found.n) == (pytest.approx(expected.df, rel=1e-9), 6)


def test_undefined_is_nan_without_warnings():
    assert s.mean([]).n == 0
    assert np.isnan(s.mean([1.0]).std)
    for function in (correlation.pearson, correlation.kendall, correlation.spearman):
        for x, y in (([1, 2], [1, 2]), (np.ones(9), np.arange(9)), ([], [])):
            assert np.isnan(function(x, y).value)
        assert np.isnan(function([1, 2, 3], [1, 2, 4]).low)
    # 0.1 summed differs from 0.3 in the last bit only: rounding is no variation.
    assert np.isnan(correlation.pearson([0.3, 0.1 + 0.2, 0.3, 0.3], [1, 2, 3, 4]).value)
    assert correlation.pearson([1, 2, 3, 4], [2, 4, 6, 8]).low == pytest.approx(1, abs=1e-9)
    assert np.isnan(s.paired([1.0], [2.0]).p)
    assert s.paired([1.0], [2.0]).difference == -1
    assert np.isnan(s.welch([1.0], [2.0, 3.0]).p)
    assert np.isnan(s.fit_line([1, 1, 1], [1, 2, 3])[0])


def test_a_spread_of_rounding_has_no_interval_and_no_p():
    cases = [
        s.paired([0.9, 0.8, 0.7], [0.8, 0.7, 0.6]),  # 0.1 but for the last bit
        s.paired([1, 2, 3], [1, 2, 3]),
        s.paired([2, 3, 4], [1, 2, 3]),
        s.paired([0.5, 0.5 + 4e-8, 0.5], [0.4, 0.4, 0.4 + 3e-8], resolution=1 / 1797),
        s.welch([0.1 + 0.2] * 3, [0.3] * 3),
        s.welch([1, 1, 1], [2, 2, 2]),
        s.welch([0.5, 0.5 + 4e-8, 0.5], [0.4] * 3, resolution=1e-3),
    ]
    for found in cases:
        assert np.isnan([found.low, found.high, found.p, found.t, found.d]).all(), found
        assert np.isfinite(found.difference)
    assert np.isnan(s.mean([0.3, 0.1 + 0.2, 0.3]).low)
    assert np.isnan(s.mean([0.5, 0.5 + 1e-6, 0.5], resolution=1e-3).low)
    # One test example apart is a difference; constant in one sample only is one too.
    step = 1 / 1797
    assert s.mean([0.5, 0.5 + step, 0.5], resolution=step).low < 0.5
    assert s.welch([1, 1, 1], [2, 2, 3]).p < 0.2


@pytest.mark.parametrize("power", [300, -300, 1010, -1000])
def test_magnitudes_change_no_digit(power):
    """Squares of 1e160 (of 1e80, in Welch's degrees) ended in an OverflowError, or in inf."""
    k, rng = 2.0**power, np.random.default_rng(0)
    x, y = rng.standard_normal((2, 12))
    small, large = s.mean(x), s.mean(k * x)
    assert (large.mean / k, large.std / k, large.low / k) == (small.mean, small.std, small.low)
    for of in (s.paired, s.welch):
        a, b = of(x, y), of(k * x, k * y)
        assert (b.difference / k, b.low / k, b.p, b.d, b.degrees) == (
            a.difference, a.low, a.p, a.d, a.degrees
        )  # fmt: skip
    assert s.fit_line(k * x, k * y)[0] == s.fit_line(x, y)[0] == s.fit_line(k * x, y)[0] * k
    for of in (correlation.pearson, correlation.spearman, correlation.kendall):
        assert of(k * x, k * y) == of(x, y)
    blocks = [str(i % 4) for i in range(12)]
    assert correlation.clustered(k * x, y, blocks) == correlation.clustered(x, y, blocks)
    assert r_squared(k * x, y, draws=20) == r_squared(x, y, draws=20)


def test_nothing_below_three_has_an_interval_or_a_p():
    for found in (s.paired([1, 2], [3, 5]), s.welch([1, 2], [3, 5, 9])):
        assert np.isnan([found.low, found.p]).all()
    assert np.isnan(s.mean([1.0, 2.0]).low)
    for function in (correlation.spearman, correlation.kendall):
        assert np.isnan(function(range(7), [1, 0, 2, 3, 5, 4, 6]).low)
        assert np.isfinite(function(range(8), [1, 0, 2, 3, 5, 4, 6, 7]).low)


def test_holm_by_hand():
    assert s.holm([0.01, 0.04, np.nan, 0.03])[:2] == pytest.approx([0.03, 0.06])
    assert np.isnan(s.holm([0.01, 0.04, np.nan, 0.03])[2])
    assert s.holm([0.01, 0.04, np.nan, 0.03])[3] == pytest.approx(0.06)
    assert s.holm([0.5, 0.9]) == [1.0, 1.0]


def test_clustered_is_the_jackknife_over_blocks():
    blocks = [str(i % 5) for i in range(10)]
    found = correlation.clustered(X, Y, blocks)
    assert found.value == pytest.approx(correlation.pearson(X, Y).value)
    keep = [np.array([b != left for b in blocks]) for left in "01234"]
    z = np.arctanh([stats.pearsonr(X[k], Y[k]).statistic for k in keep])
    error = np.sqrt(4 / 5 * ((z - z.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, 4) * error
    assert np.arctanh(found.high) == pytest.approx(np.arctanh(found.value) + half, rel=1e-9)
    assert np.isnan(correlation.clustered(X, Y, [0] * 5 + [1] * 5).low)  # two blocks
    assert np.isnan(correlation.clustered(X, 2 * X, blocks).p)  # one line: no spread


def test_missing_values_leave_out_their_pair():
    x, y = [1.0, np.nan, 3, 4, 7], [2.0, 5, np.inf, 1, 9]
    expected = correlation.pearson([1, 4, 7], [2, 1, 9]).value
    assert correlation.pearson(x, y).value == pytest.approx(expected)
    with pytest.raises(ValueError, match="one length"):
        correlation.pearson([1, 2, 3], [1, 2])


def test_line_is_polyfits():
    assert s.fit_line(X, Y) == pytest.approx(tuple(np.polyfit(X, Y, 1)), rel=1e-9)


def test_one_value_that_is_no_number_does_not_decide_for_all():
    values = [[1.0, np.nan, np.inf], [3.0, 2.0, np.nan], [np.nan, 4.0, -np.inf]]
    np.testing.assert_array_equal(s.means(values), [2.0, 3.0, np.nan])
    assert s.means([1.0, np.nan, 4.0]) == 2.5
    assert s.largest({"a": np.nan, "b": 1.0, "c": np.inf, "d": 3.0, "e": 3.0}) == "d"
    assert s.largest({"a": np.nan}) is None


def test_bands():
    center, low, high = s.bands([[1.0, 2.0, 5.0], [3.0, np.nan, 7.0], [4.0, 2.5, 6.0]])
    assert list(center) == [pytest.approx(8 / 3), 2.25, 6]
    assert np.isnan(low[1])
    assert high[0] == s.mean([1.0, 3.0, 4.0]).high


@pytest.mark.parametrize(("n", "rho"), [(8, 0.9), (10, 0.0), (25, -0.5), (50, 0.8)])
def test_intervals_cover_the_truth_as_often_as_they_say(n, rho):
    rng, repeats = np.random.default_rng(n), 400
    truth = {"pearson": rho, "kendall": 2 / np.pi * np.arcsin(rho)}
    truth["spearman"] = 6 / np.pi * np.arcsin(rho / 2)
    hits = dict.fromkeys([*truth, "mean", "paired", "welch"], 0)
    for _ in range(repeats):
        x = rng.standard_normal(n)
        y = rho * x + np.sqrt(1 - rho**2) * rng.standard_normal(n)
        for name, expected in truth.items():
            found = getattr(correlation, name)(x, y)
            hits[name] += found.low <= expected <= found.high
        found = s.mean(x)
        hits["mean"] += found.low <= 0 <= found.high
        found = s.paired(x, y)
        hits["paired"] += found.low <= 0 <= found.high
        found = s.welch(x, 3 * rng.standard_normal(n + 3))
        hits["welch"] += found.low <= 0 <= found.high
    # Binomial standard deviation 1 % at 95 %; rank intervals are wide rather than narrow.
    assert all(0.92 <= count / repeats <= 0.995 for count in hits.values()), hits


def test_spearmans_interval_covers_strong_correlations():
    """With variance 1.06/(n - 3), which knows no rho, it was 89 % at r = 0.97 and 78 % at 0.99."""
    rng, n, repeats = np.random.default_rng(3), 24, 300
    for rho, least in ((0.97, 0.92), (0.99, 0.82)):
        hits, truth = 0, 6 / np.pi * np.arcsin(rho / 2)
        for _ in range(repeats):
            x = rng.standard_normal(n)
            found = correlation.spearman(x, rho * x + np.sqrt(1 - rho**2) * rng.standard_normal(n))
            hits += found.low <= truth <= found.high
        assert hits / repeats >= least, rho
    rho, half = found.value, stats.t.ppf(0.975, n - 2) * np.sqrt((1 + found.value**2 / 2) / (n - 3))
    assert found.low == pytest.approx(np.tanh(np.arctanh(rho) - half), rel=1e-9)


@pytest.mark.parametrize("kind", ["spearman", "kendall"])
def test_ranks_that_agree_completely_have_no_interval(kind):
    """Of 8 pairs with r = 0.99 a third has tau 1: [1, 1] would hold the truth in none of them."""
    rng, rho, hits, known = np.random.default_rng(0), 0.99, 0, 0
    truth = {"kendall": 2 / np.pi * np.arcsin(rho), "spearman": 6 / np.pi * np.arcsin(rho / 2)}
    for _ in range(100):
        x = rng.standard_normal(8)
        y = rho * x + np.sqrt(1 - rho**2) * rng.standard_normal(8)
        found = getattr(correlation, kind)(x, y)
        assert np.isnan(found.low) == np.isnan(found.high) == (found.value == 1)
        if not np.isnan(found.low):
            known += 1
            hits += found.low <= truth[kind] <= found.high
    assert known < 85
    assert hits / known >= 0.85
    assert getattr(correlation, kind)(np.arange(9), -np.arange(9)).p < 1e-4  # the p is exact
    assert correlation.pearson(np.arange(9), np.arange(9)).low == 1  # normal pairs: certain


def rows(**changes):
    """Three arms of four seeds; less stable arms are more accurate."""
    rng = np.random.default_rng(1)
    found = []
    for arm, (stability, events) in {"none": ("", 0), "S": (0.99, 3), "L": (0.9, 3)}.items():
        for seed in range(4):
            drop = 0 if stability == "" else rng.normal(0, 0.005)
            accuracy = 0.8 + (0 if stability == "" else 1 - stability) + 0.01 * seed
            found.append(
                {
                    "run": f"{arm}-{seed}",
                    "variant": arm,
                    "seed": str(seed),
                    "status": "completed",
                    "final_test_accuracy": str(accuracy + drop),
                    "best_test_accuracy": str(accuracy + 0.01),
                    "best_epoch": "5",
                    "mean_stability": "" if stability == "" else str(stability - drop),
                    "events": str(events),
                    "generalization_gap": "0.1",
                    "sparsity": "0.5",
                    "hessian_trace": str(100 * accuracy),
                    "hessian_trace_stderr": "1.0",
                }
            )
    for row in found:
        row.update(changes.get(row["run"].replace("-", "_"), {}))
    return found


def test_summary_per_arm_correlations_and_paired_differences():
    found = summary.summarize(rows(), selected=["S", "L"], comparisons=[("L", "S"), ("L", "x")])
    assert found["variants"]["none"]["columns"]["mean_stability"]["mean"] == 1
    assert found["variants"]["L"]["columns"]["final_test_accuracy"]["n"] == 4
    scopes = found["correlations"]
    assert scopes["all_runs"]["mean_stability"]["final_test_accuracy"]["pearson"]["n"] == 12
    with_events = scopes["runs_with_events"]
    assert with_events == scopes["selected"]
    pair = with_events["mean_stability"]["best_test_accuracy"]
    a = [columns.value(r, "mean_stability") for r in rows()[4:]]
    b = [columns.value(r, "best_test_accuracy") for r in rows()[4:]]
    assert pair["pearson"]["value"] == pytest.approx(stats.pearsonr(a, b).statistic)
    assert pair["kendall"]["value"] == pytest.approx(stats.kendalltau(a, b).statistic)
    assert with_events["hessian_trace"]["best_test_accuracy"]["pearson"]["value"] > 0.99
    assert "hessian_trace_stderr" not in with_events
    assert with_events["mean_stability"]["generalization_gap"]["pearson"]["value"] is None
    paired = found["paired"]["variants"]
    assert set(paired) == {"S", "L"}
    assert paired["L"]["best_test_accuracy"]["difference"] == pytest.approx(0.1)
    assert paired["L"]["best_test_accuracy"]["n"] == 4
    assert [(t["a"], t["b"]) for t in found["welch"]] == [("L", "S")]
    json.dumps(found, allow_nan=False)


def test_runs_that_stopped_are_listed_and_left_out():
    broken = {"status": "non-finite", "final_test_accuracy": "", "best_test_accuracy": "0.1"}
    found = summary.summarize(rows(L_2=broken))
    assert found["stopped"] == [{"run": "L-2", "status": "non-finite"}]
    arm = found["variants"]["L"]
    assert (arm["runs"], arm["completed"]) == (4, 3)
    assert arm["columns"]["best_test_accuracy"]["n"] == 3
    assert found["paired"]["variants"]["L"]["best_test_accuracy"]["n"] == 3


def test_pairs_are_matched_by_seed_not_by_position():
    shuffled = rows()
    shuffled[8:] = shuffled[8:][::-1]
    a, b = (summary.summarize(r)["paired"]["variants"] for r in (rows(), shuffled))
    column = "best_test_accuracy"
    assert a["L"][column]["difference"] == pytest.approx(b["L"][column]["difference"], abs=1e-15)
    assert b["L"][column]["low"] is None  # the same difference for every seed


def test_summaries_of_very_little():
    json.dumps(summary.summarize([]), allow_nan=False)
    one = summary.summarize(rows()[:1])
    assert one["variants"]["none"]["columns"]["final_test_accuracy"]["std"] is None
    assert summary.summarize(rows()[4:])["paired"]["variants"] == {}  # no baseline arm


@pytest.mark.parametrize("ties", [False, True])
def test_coefficients_without_a_p_are_those_of_scipy(ties, monkeypatch):
    r = np.random.default_rng(3)
    x = r.integers(0, 5, 60).astype(float) if ties else r.normal(size=60)
    y = x + r.integers(-2, 3, 60)
    theirs = {
        "pearson": stats.pearsonr,
        "spearman": stats.spearmanr,
        "kendall": stats.kendalltau,
    }
    for kind, function in theirs.items():
        expected = function(x, y).statistic
        assert correlation.coefficient(x, y, kind) == pytest.approx(expected, abs=1e-14)
    many = correlation.coefficient(x, y, "kendall")
    monkeypatch.setattr(correlation, "PAIRWISE", 10)
    assert correlation.coefficient(x, y, "kendall") == many


@pytest.mark.parametrize("pairwise", [0, 10, 1000])
def test_a_jackknife_of_tau_is_the_one_without_each_block(pairwise, monkeypatch):
    """To the last bit, with ties, blocks of many sizes, and rests that are constant."""
    monkeypatch.setattr(correlation, "PAIRWISE", pairwise)
    r = np.random.default_rng(0)
    for trial in range(60):
        n = int(r.integers(3, 70))
        x = r.integers(0, r.integers(2, 9), n) / 7 if trial % 2 else r.normal(size=n)
        y = r.integers(0, 3, n) + x * r.normal()
        if trial % 3 == 0:
            y[1:] = y[0]  # constant without the block of the first
        index = np.unique(r.integers(0, r.integers(1, n), n), return_inverse=True)[1]
        found = correlation._without("kendall", x, y, index)
        for block, value in enumerate(found):
            a, b = x[index != block], y[index != block]
            expected = np.nan
            if a.size >= 3 and np.ptp(a) and np.ptp(b):
                u, v = (np.sign(z[:, None] - z) for z in (a, b))
                expected = np.sum(u * v) / np.sqrt(np.sum(u * u) * np.sum(v * v))
            np.testing.assert_array_equal(value, expected)


def test_no_coefficient_is_beyond_one():
    r = np.random.default_rng(0)
    for _ in range(50):
        x = r.normal(size=11)
        for kind in ("pearson", "spearman", "kendall"):
            found = correlation.coefficient(x, -3 * x + 0.1, kind)
            assert -1 <= found < -1 + 1e-12


def test_the_center_is_the_mean_of_what_is_finite():
    drawn = np.random.default_rng(0).normal(size=9)
    for values in ([], [np.nan], [1.5], [1.0, np.inf, 4.0], drawn):
        np.testing.assert_array_equal(s.center(values), s.mean(values).mean)
    assert np.isnan(s.center([np.nan]))
    assert s.center([1.0, np.inf, 4.0]) == 2.5
