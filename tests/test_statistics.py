import json

import numpy as np
import pytest
from scipy import stats

from prunejax.measures import statistics as s
from prunejax.measures import summary

X = np.array([0.99, 0.97, 0.93, 0.95, 0.90, 0.97, 0.88, 0.91, 0.99, 0.94])
Y = np.array([0.80, 0.83, 0.86, 0.82, 0.88, 0.81, 0.87, 0.86, 0.79, 0.84])


def test_mean_interval_is_scipys():
    found = s.mean(X)
    low, high = stats.t.interval(0.95, len(X) - 1, X.mean(), stats.sem(X))
    assert (found.n, found.mean, found.std) == (10, X.mean(), X.std(ddof=1))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    # Closed form: two values, t(1) quantile = tan(pi * 0.475).
    two = s.mean([1.0, 3.0])
    assert two.high - 2.0 == pytest.approx(np.tan(np.pi * 0.475), rel=1e-9)


def test_pearson_is_scipys_with_its_interval():
    found, expected = s.pearson(X, Y), stats.pearsonr(X, Y)
    interval = expected.confidence_interval(0.95)
    assert (found.value, found.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_kendall_is_tau_b_by_counting_pairs():
    found = s.kendall(X, Y)
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
    half = 1.959963984540054 * np.sqrt(0.437 / 6)
    assert found.low == pytest.approx(np.tanh(np.arctanh(tau) - half), rel=1e-9)


def test_spearman_is_pearson_of_ranks():
    ranks = s.pearson(stats.rankdata(X), stats.rankdata(Y))
    found = s.spearman(X, Y)
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
    for function in (s.pearson, s.kendall, s.spearman):
        for x, y in (([1, 2], [1, 2]), (np.ones(9), np.arange(9)), ([], [])):
            assert np.isnan(function(x, y).value)
        assert np.isnan(function([1, 2, 3], [1, 2, 4]).low)
    # 0.1 summed differs from 0.3 in the last bit only: rounding is no variation.
    assert np.isnan(s.pearson([0.3, 0.1 + 0.2, 0.3, 0.3], [1, 2, 3, 4]).value)
    assert s.pearson([1, 2, 3, 4], [2, 4, 6, 8]).low == pytest.approx(1, abs=1e-9)
    assert np.isnan(s.paired([1.0], [2.0]).p)
    assert s.paired([1.0], [2.0]).difference == -1
    assert np.isnan(s.welch([1.0], [2.0, 3.0]).p)
    same, shifted = s.paired([1, 2, 3], [1, 2, 3]), s.paired([2, 3, 4], [1, 2, 3])
    assert (same.p, same.low, same.high, shifted.p) == (1, 0, 0, 0)
    assert s.welch([1, 1], [1, 1]).p == 1
    assert np.isnan(s.fit_line([1, 1, 1], [1, 2, 3])[0])


def test_missing_values_leave_out_their_pair():
    x, y = [1.0, np.nan, 3, 4, 7], [2.0, 5, np.inf, 1, 9]
    assert s.pearson(x, y).value == pytest.approx(s.pearson([1, 4, 7], [2, 1, 9]).value)
    with pytest.raises(ValueError, match="one length"):
        s.pearson([1, 2, 3], [1, 2])


def test_line_is_polyfits():
    assert s.fit_line(X, Y) == pytest.approx(tuple(np.polyfit(X, Y, 1)), rel=1e-9)


def test_bands():
    center, low, high = s.bands([[1.0, 2.0, 5.0], [3.0, np.nan, 7.0]])
    assert list(center) == [2, 2, 6]
    assert np.isnan(low[1])
    assert high[0] == s.mean([1.0, 3.0]).high


@pytest.mark.parametrize(("n", "rho"), [(10, 0.0), (25, -0.5), (50, 0.8)])
def test_intervals_cover_the_truth_as_often_as_they_say(n, rho):
    rng, repeats = np.random.default_rng(n), 400
    truth = {"pearson": rho, "kendall": 2 / np.pi * np.arcsin(rho)}
    truth["spearman"] = 6 / np.pi * np.arcsin(rho / 2)
    hits = dict.fromkeys([*truth, "mean", "paired"], 0)
    for _ in range(repeats):
        x = rng.standard_normal(n)
        y = rho * x + np.sqrt(1 - rho**2) * rng.standard_normal(n)
        for name, expected in truth.items():
            found = getattr(s, name)(x, y)
            hits[name] += found.low <= expected <= found.high
        found = s.mean(x)
        hits["mean"] += found.low <= 0 <= found.high
        found = s.paired(x, y)
        hits["paired"] += found.low <= 0 <= found.high
    # Binomial standard deviation 1 % at 95 %; Kendall and Spearman intervals are approximate.
    assert all(0.92 <= count / repeats <= 0.98 for count in hits.values()), hits


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
    a = [summary.value(r, "mean_stability") for r in rows()[4:]]
    b = [summary.value(r, "best_test_accuracy") for r in rows()[4:]]
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
    assert b["L"][column]["low"] == pytest.approx(0.1, abs=1e-9)


def test_summaries_of_very_little():
    json.dumps(summary.summarize([]), allow_nan=False)
    one = summary.summarize(rows()[:1])
    assert one["variants"]["none"]["columns"]["final_test_accuracy"]["std"] is None
    assert summary.summarize(rows()[4:])["paired"]["variants"] == {}  # no baseline arm
