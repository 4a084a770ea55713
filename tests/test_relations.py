"""Claims and relations: by hand, and in simulations whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from prunejax.measures import claims, correlation, relations, summary
from prunejax.measures import statistics as s


def study(rng, arms, seeds, ratio, shared=0.0):
    """x and y [arms, seeds]: unrelated effects of arms (sd `ratio`), seeds' and runs' noise (1).

    `shared`: correlation of the noise of x and y within a run.
    """
    effects = ratio * rng.standard_normal((2, arms, 1))
    noise = rng.standard_normal((2, arms, seeds))
    noise[1] = shared * noise[0] + np.sqrt(1 - shared**2) * noise[1]
    return effects + rng.standard_normal((2, 1, seeds)) + noise


def page(x, y):
    """The relations of a page with two outcomes that hardly differ, as final and best accuracy."""
    found = []
    for name, column in (("final", y), ("best", y + 0.1 * np.roll(y, 1))):
        values = {
            str(a): {str(i): (x[a, i], column[a, i]) for i in range(x.shape[1])}
            for a in range(len(x))
        }
        found.append(relations.relate(values, "mean_stability", name, "all"))
    relations.sentences(found)
    return found


@pytest.mark.parametrize("arms", [4, 8, 16])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0, 3.3])
def test_unrelated_arms_are_rarely_claimed_to_be_related(arms, ratio):
    """Arm effects drawn afresh for every study; also where the noise of a run is shared."""
    rng, repeats, claimed, shared = np.random.default_rng(arms), 600, 0, 0
    for i in range(repeats):
        for rho in (0.0, 0.7):
            x, y = study(rng, arms, 8, ratio, rho)
            general = relations.arms_in_general(x, y)
            hit = general.p < 0.05
            assert hit == (general.low > 0 or general.high < 0)
            claimed, shared = claimed + hit * (rho == 0), shared + hit * (rho > 0)
        if i < 5:  # the page follows: it claims nothing that the interval does not
            for relation in page(x, y):
                assert relation["verdict"] in ("undecided", "too few to tell") or hit
    # Binomial standard deviation 0.9 %: 5 % come out above 7 % once in 80 cases.
    assert claimed <= 0.07 * repeats
    assert shared <= 0.07 * repeats
    if arms == 4:
        assert claimed == shared == 0


def test_a_relation_of_arms_is_found():
    rng = np.random.default_rng(0)
    x, y = study(rng, 12, 8, 1.0)
    found = page(x, y - 2 * x.mean(1, keepdims=True))
    assert [r["verdict"] for r in found] == ["negative", "negative"]
    assert "in opposite directions" in found[0]["sentence"]
    assert found[0]["arms_in_general"]["n"] == 12
    assert found[0]["p_holm"] < 0.05


def test_one_outlying_arm_makes_no_sentence():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((2, 12, 1)) + 0.05 * rng.standard_normal((2, 12, 8))
    x[0], y[0] = 30, 30
    order = np.argsort(x[1:, 0])
    y[1:] = y[1:][np.argsort(-np.argsort(order))]  # the other eleven run against it
    y[1:] = np.sort(y[1:], axis=0)[::-1][np.argsort(order)]
    (relation, _) = page(x, y)
    assert relation["pearson"] > 0.9
    assert relation["between"]["kendall"] < 0
    assert relation["verdict"] == "undecided"


@pytest.mark.parametrize(("seeds", "ratio"), [(4, 1.0), (8, 3.3)])
def test_the_interval_for_these_arms_covers_what_many_seeds_give(seeds, ratio):
    rng, repeats, arms, hits = np.random.default_rng(seeds), 250, 5, 0
    effects = ratio * rng.standard_normal((2, arms, 1))
    blocks = list(range(seeds)) * arms
    spread = [np.var(e) + 2 for e in effects]
    truth = np.mean((effects[0] - effects[0].mean()) * (effects[1] - effects[1].mean()))
    truth /= np.sqrt(spread[0] * spread[1])
    for _ in range(repeats):
        x, y = effects + rng.standard_normal((2, 1, seeds)) + rng.standard_normal((2, arms, seeds))
        found = correlation.clustered(x.ravel(), y.ravel(), blocks)
        hits += found.low <= truth <= found.high
    assert 0.91 <= hits / repeats <= 0.99


def test_arms_in_general_by_hand():
    x, y = study(np.random.default_rng(1), 9, 4, 1.0)
    found = relations.arms_in_general(x, y)
    zs = []
    for i in range(4):
        for j in range(i):
            other = [k for k in range(4) if k not in (i, j)]
            for a, b in (([i, j], other), (other, [i, j])):
                zs.append(np.arctanh(stats.pearsonr(x[:, a].mean(1), y[:, b].mean(1)).statistic))
    z = np.mean(zs)  # each split twice
    assert found.value == pytest.approx(np.tanh(z), rel=1e-9)
    assert found.high == pytest.approx(np.tanh(z + 1.959963984540054 / np.sqrt(6)), rel=1e-9)
    assert np.isnan(relations.arms_in_general(x[:7], y[:7]).low)  # too few arms
    assert np.isnan(relations.arms_in_general(x[:, :3], y[:, :3]).low)  # too few seeds
    assert np.isnan(relations.arms_in_general(0 * x + 0.3, y).low)  # constant


def test_within_arms_permutes_whole_seeds():
    x, y = study(np.random.default_rng(2), 4, 4, 3.0, 0.9)
    r, p = relations.within(x, y)
    a, b = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    assert r == pytest.approx(stats.pearsonr(a.ravel(), b.ravel()).statistic)
    assert round(p * 24) == pytest.approx(p * 24)  # exact: one of 4! orders
    rng = np.random.default_rng(7)
    ps = [relations.within(*study(rng, 4, 8, 1.0))[1] for _ in range(200)]
    assert np.mean(np.array(ps) < 0.05) <= 0.09
    assert np.isnan(relations.within(x[:, :3], y[:, :3])[1])


def test_claims_are_read():
    assert claims.parse("L-1 > S+2 in best_test_accuracy") == claims.Claim(
        "L-1 > S+2 in best_test_accuracy", "L-1", ">", "S+2", "best_test_accuracy"
    )
    assert claims.parse("a < b").column == "final_test_accuracy"
    for wrong in ("", "a", "a>b", "a = b", "a > b c", "a > b in", "a > b in x y"):
        with pytest.raises(ValueError, match="is no claim like"):
            claims.parse(wrong)


def runs(arms, seeds=6, column="final_test_accuracy"):
    """Arms given by their accuracies' mean: the same noise of a seed in each, and a bit of own."""
    rng = np.random.default_rng(4)
    noise = 0.01 * rng.standard_normal(seeds)
    return [
        {"run": f"{arm}-{i}", "variant": arm, "seed": str(i), "status": "done", "events": 1,
         column: mean + noise[i] + 0.001 * rng.standard_normal()}
        for arm, mean in arms.items()
        for i in range(seeds)
    ]  # fmt: skip


def test_verdicts():
    rows = runs({"none": 0.5, "a": 0.6, "b": 0.6, "c": 0.55})
    lines = ["a > none", "a < none", "a > b", "a > absent", "c > none in best_test_accuracy"]
    found = summary.summarize(rows, claims=lines)["claims"]
    assert [f["verdict"] for f in found] == [
        *("confirmed", "contradicted", "undecided", "too few seeds", "too few seeds"),
    ]
    expected = stats.ttest_rel(
        [r["final_test_accuracy"] for r in rows if r["variant"] == "a"],
        [r["final_test_accuracy"] for r in rows if r["variant"] == "none"],
    )
    assert found[0]["p"] == pytest.approx(expected.pvalue)
    assert found[0]["p_holm"] == pytest.approx(3 * expected.pvalue)
    few = summary.summarize(runs({"none": 0.5, "a": 0.6}, seeds=3), claims=["a > none"])["claims"]
    assert few[0]["verdict"] == "too few seeds"
    assert few[0]["p_holm"] is None
    small = summary.summarize(rows, claims=lines, withheld="mechanics only")
    assert {f["verdict"] for f in small["claims"]} == {"mechanics only"}
    assert {f["verdict"] for f in small["relations"]} <= {"mechanics only"}


def test_a_difference_below_one_test_example_decides_nothing():
    rows = runs({"none": 0.5, "a": 0.6})
    for row in rows:
        row["final_test_accuracy"] = {"none": 0.5, "a": 0.6}[row["variant"]] + 4e-8 * int(
            row["seed"]
        ) * (row["variant"] == "a")
    for examples in (1797, 0):
        (claim,) = summary.summarize(rows, claims=["a > none"], test_examples=examples)["claims"]
        assert claim["verdict"] == "undecided"
        assert claim["p"] is None
        assert "beyond rounding" in claim["reason"]


def test_holm_over_the_arms_of_a_column():
    found = summary.summarize(runs({"none": 0.5, "a": 0.502, "b": 0.6, "c": 0.5}))
    ps = {name: arm["final_test_accuracy"] for name, arm in found["paired"]["variants"].items()}
    corrected = s.holm([ps[name]["p"] for name in ps])
    assert [ps[name]["p_holm"] for name in ps] == pytest.approx(corrected)


def test_intervals_past_one_are_explained():
    rows = runs({"none": 0.998, "a": 0.5}, seeds=3)
    (note,) = summary.summarize(rows)["notes"]
    assert "none (final test accuracy)" in note
    assert summary.summarize(runs({"none": 0.5}))["notes"] == []


def test_infinite_numbers_are_told_and_counted():
    rows = runs({"none": 0.9, "a": 0.5}, seeds=5)
    for row in rows:
        infinite = row["variant"] == "a" and row["seed"] in ("0", "1", 0, 1)
        row["gradient_noise_scale"] = "inf" if infinite else "30.5"
        row["tic"] = "inf"
    found = summary.summarize(rows)
    assert found["variants"]["a"]["columns"]["gradient_noise_scale"]["n"] == 3
    (note,) = found["notes"]
    assert "gradient noise scale of a (2 of 5 runs)" in note
    assert "tic of none (5 of 5 runs)" in note
    assert "gradient noise scale of none" not in note
