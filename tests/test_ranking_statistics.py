"""Rank statistics against sums over pairs, SciPy and made grids."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from prunejax.measures import pair_information as info
from prunejax.measures import ranking_statistics as ranks
from prunejax.measures import statistics
from prunejax.measures.ranking_table import rows


def made(n=30, seed=0):
    """Two related columns with ties in both."""
    r = np.random.default_rng(seed)
    x = np.round(r.normal(size=n), 1)
    return x, np.round(0.6 * x + r.normal(size=n), 1)


def grid(seed=0):
    """A 3 x 3 x 2 grid: axes, a measure that follows two of them, a target."""
    r = np.random.default_rng(seed)
    cells = list(itertools.product([32, 64, 128], [0.01, 0.03, 0.1], ["sgd", "adam"]))
    axes = {name: [c[i] for c in cells] for i, name in enumerate(("width", "rate", "optimizer"))}
    x = np.array([np.log(w) + 10 * rate for w, rate, _ in cells]) + 0.3 * r.normal(size=len(cells))
    return axes, x, 0.7 * x + r.normal(size=len(cells))


def test_tau_against_pairs_and_scipy():
    x, y = made()
    total, untied_x, untied_y = 0.0, 0, 0
    for i, j in itertools.permutations(range(len(x)), 2):
        a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
        total, untied_x, untied_y = total + a * b, untied_x + (a != 0), untied_y + (b != 0)
    n = len(x)
    assert untied_x < n * (n - 1)
    assert ranks.kendall(x, y).value == pytest.approx(total / (n * (n - 1)), rel=1e-12)
    b = ranks.kendall(x, y, kind="b").value
    assert b == pytest.approx(total / np.sqrt(untied_x * untied_y), rel=1e-12)
    assert b == pytest.approx(stats.kendalltau(x, y).statistic, rel=1e-12)
    assert ranks.kendall(x, x, kind="b").value == 1
    assert ranks.kendall(x, -x).value < 0


def test_the_bootstrap_is_one_over_models_without_pairs_of_copies():
    x, y = made(12)
    found = ranks.kendall(x, y, draws=50, seed=3)
    rng = statistics.random(3, "bootstrap over models")
    counts = rng.multinomial(12, np.full(12, 1 / 12), size=50)
    taus = []
    for c in counts:
        chosen = np.repeat(np.arange(12), c)
        pairs = [(i, j) for i, j in itertools.permutations(chosen, 2) if i != j]
        taus.append(np.mean([np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in pairs]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(taus, [0.025, 0.975])))
    assert found.n == found.clusters == 12


def test_clusters_are_drawn_whole():
    x, y = made(40)
    clusters = [f"c{i // 4}" for i in range(40)]
    found = ranks.kendall(x, y, clusters=clusters, draws=200)
    assert found.clusters == 10
    # Four copies of every model say no more than the ten models do.
    a, b = made(10, seed=4)
    once = ranks.kendall(a, b, draws=400)
    four = ranks.kendall(np.repeat(a, 4), np.repeat(b, 4), clusters=np.repeat(range(10), 4))
    alone = ranks.kendall(np.repeat(a, 4), np.repeat(b, 4))
    assert alone.high - alone.low < 0.7 * (four.high - four.low)
    assert four.high - four.low == pytest.approx(once.high - once.low, rel=0.25)
    assert np.isnan(ranks.kendall(x, y, clusters=[i % 7 for i in range(40)]).low)
    with pytest.raises(ValueError, match="3 clusters for 40 models"):
        ranks.kendall(x, y, clusters=["a", "b", "c"])


def test_intervals_cover():
    rng, rho, n = np.random.default_rng(5), 0.5, 40
    truth, hits = 2 / np.pi * np.arcsin(rho), 0
    for _ in range(200):
        x = rng.normal(size=n)
        found = ranks.kendall(x, rho * x + np.sqrt(1 - rho**2) * rng.normal(size=n), draws=200)
        hits += found.low <= truth <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def test_a_complete_order_has_no_interval():
    """All that is drawn of it is ordered, too; [1, 1] is no interval of a tau of 0.97."""
    x = np.arange(12.0)
    for kind in ranks.KINDS:
        for y in (x**2, -x):
            found = ranks.kendall(x, y, kind=kind, draws=100)
            assert abs(found.value) == 1
            assert np.isnan([found.low, found.high]).all()
    swapped = ranks.kendall(x, [1, 0, *range(2, 12)], draws=100)
    assert swapped.low < swapped.value < swapped.high <= 1


def test_partial_tau_is_kendalls_formula():
    x, y = made(25)
    z = x + np.random.default_rng(1).normal(size=25)
    xy, xz, yz = (stats.kendalltau(*p).statistic for p in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert ranks.partial_kendall(x, y, z).value == pytest.approx(expected, rel=1e-12)
    assert np.isnan(ranks.partial_kendall(x, y, x).value)  # nothing is left of x given x


def test_r_squared_is_scipys():
    x, y = made(25)
    found = ranks.r_squared(x, y)
    assert found.value == pytest.approx(stats.linregress(x, y).rvalue ** 2, rel=1e-10)
    assert found.low < found.value < found.high
    assert np.isnan(ranks.r_squared(np.full(9, 0.1), np.arange(9)).value)


@pytest.mark.parametrize("kind", ["a", "b"])
def test_psi_by_hand(kind):
    axes, x, y = grid()
    found = ranks.granulated(x, y, axes, kind=kind)
    names = list(axes)
    for axis in names:
        cells = {}
        for i in range(len(x)):
            cells.setdefault(tuple(axes[o][i] for o in names if o != axis), []).append(i)
        taus = [stats.kendalltau(x[c], y[c]).statistic for c in map(np.array, cells.values())]
        assert found.psi[axis].n == len(cells)
        assert found.psi[axis].mean == pytest.approx(np.mean(taus), rel=1e-12)
    assert found.value == pytest.approx(np.mean([m.mean for m in found.psi.values()]))
    assert set(found.left_out.values()) == {0}


def test_psi_leaves_out_cells_that_say_nothing():
    axes, x, y = grid()
    flat = np.array(x)
    flat[np.array(axes["width"]) == 32] = 1.0  # the measure is constant there
    found = ranks.granulated(flat, y, axes)
    assert found.left_out == {"width": 0, "rate": 2, "optimizer": 3}
    alone = ranks.granulated(x[:1], y[:1], {k: v[:1] for k, v in axes.items()})
    assert alone.left_out == {"width": 1, "rate": 1, "optimizer": 1}
    assert np.isnan(alone.value)
    # A second seed of each configuration: pairs of seeds say nothing of an axis.
    twice = {k: [*v, *v] for k, v in axes.items()}
    x2, y2 = np.concatenate([x, x + 1e-3]), np.concatenate([y, y - 1e-3])
    found, once = ranks.granulated(x2, y2, twice), ranks.granulated(x, y, axes)
    assert found.value == pytest.approx(once.value, rel=1e-12)
    with pytest.raises(ValueError, match="axis 'width' has 2 values for 18 models"):
        ranks.granulated(x, y, {"width": [1, 2]})


def brute_force(x, y, axes, chosen):
    """I(V_x; V_y | U) / H(V_y | U) by counting dictionaries."""
    triples = Counter()
    for i, j in itertools.permutations(range(len(x)), 2):
        u = tuple((axes[a][i], axes[a][j]) for a in chosen)
        triples[u, np.sign(x[i] - x[j]), np.sign(y[i] - y[j])] += 1
    total = sum(triples.values())

    def marginal(*places):
        found = Counter()
        for key, count in triples.items():
            found[tuple(key[p] for p in places)] += count
        return found

    u, ux, uy = marginal(0), marginal(0, 1), marginal(0, 2)
    information = sum(
        c / total * np.log(c * u[(k[0],)] / (ux[k[0], k[1]] * uy[k[0], k[2]]))
        for k, c in triples.items()
    )
    entropy = -sum(c / total * np.log(c / u[(k[0],)]) for k, c in uy.items())
    return information, entropy


def test_conditional_information_by_counting():
    axes, x, y = grid()
    found = info.conditional(np.round(x, 1), y, axes)
    assert len(found.ratios) + len(found.skipped) == 7
    for chosen, ratio in found.ratios.items():
        information, entropy = brute_force(np.round(x, 1), y, axes, chosen)
        assert ratio == pytest.approx(information / entropy, rel=1e-9, abs=1e-12)
    assert found.value == min(found.ratios.values()) == found.ratios[found.given]
    assert brute_force(x, y, axes, ())[0] == pytest.approx(info.mutual(x, y), rel=1e-9)


def test_k_of_the_target_itself_and_of_a_shuffled_measure():
    axes, x, y = grid()
    assert info.conditional(y, y, axes).value == pytest.approx(1, abs=1e-12)
    shuffled = np.random.default_rng(2).permutation(x)
    mean, std = info.null(x, y, axes, permutations=30)
    assert abs(info.conditional(shuffled, y, axes).value - mean) < 3 * std
    assert mean < 0.1
    # Where two axes give the target completely, nothing is left to tell given them.
    given = info.conditional(x, np.array(axes["rate"]), axes)
    assert ("rate",) in given.skipped
    assert ("width", "rate") in given.skipped
    assert np.isnan(info.conditional(x, np.ones(len(x)), axes).value)


def test_information_between_measures():
    _, x, y = grid()
    names, matrix = info.mutual_matrix({"x": x, "y": y, "-x": -x, "flat": np.ones(len(x))})
    assert names == ["x", "y", "-x", "flat"]
    assert matrix[0, 0] == matrix[0, 2] == pytest.approx(1)
    assert matrix[0, 1] == matrix[1, 0] == pytest.approx(info.mutual(x, y, normalized=True))
    assert 0 < matrix[0, 1] < 1
    assert np.isnan(matrix[3]).all()
    assert info.mutual(x, -x) == pytest.approx(np.log(2))


def test_models_that_do_not_fit():
    found = ranks.fit_filter([0.995, 0.9, 0.9, np.nan], [0.5, 0.005, 0.2, np.nan])
    assert found.keep.tolist() == [True, True, False, False]
    assert found.sentence.startswith("2 of 4 models left out: train accuracy below 0.99")
    found = ranks.fit_filter([np.nan] * 3, [0.5, 0.005, 0.2], loss=0.2)  # of regressions
    assert found.keep.tolist() == [False, True, True]
    assert found.sentence == "1 of 3 models left out: train loss above 0.2"


def test_the_table_has_all_models_and_those_that_fit():
    axes, x, y = grid()
    y[0] = np.nan
    fit = ranks.fit_filter(np.r_[np.zeros(6), np.ones(12)], np.ones(18))
    table = rows(
        {"x": x, "noise": x[::-1]}, {"test_loss": y}, axes, train_loss=x + y, fit=fit, draws=50
    )
    assert [(r["measure"], r["models"]) for r in table] == [
        *(("x", "fit"), ("noise", "fit"), ("x", "all"), ("noise", "all"))
    ]
    assert [r["n"] for r in table] == [12, 12, 17, 17]
    assert table[2]["left_out"] == 1
    assert table[0]["tau_a"] == ranks.kendall(x[6:], y[6:]).value
    assert (
        table[0]["K"] == info.conditional(x[6:], y[6:], {k: v[6:] for k, v in axes.items()}).value
    )
    # 2 widths, 3 rates, 2 optimizers: 6 + 4 + 6 cells; of all 21 one has only one model left.
    assert [(r["cells"], r["cells_left_out"]) for r in table[::2]] == [(16, 0), (20, 1)]
    assert {"tau_b_low", "partial_tau_b", "r_squared_high", "Psi", "psi_width"} <= set(table[0])
    with pytest.raises(ValueError, match="Kendall's tau 'c'"):
        ranks.kendall(x, y, kind="c")


def test_nothing_of_nothing():
    assert np.isnan(ranks.kendall([], []).value)
    assert np.isnan(ranks.kendall([1.0], [2.0]).value)
    assert np.isnan(ranks.kendall(np.ones(9), np.arange(9), kind="b").value)
    assert ranks.kendall(np.ones(9), np.arange(9)).value == 0  # ties count 0
    with pytest.raises(ValueError, match="one value a model"):
        ranks.kendall([1.0, 2.0], [1.0])
