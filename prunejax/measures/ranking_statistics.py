"""Which measure ranks models as their generalization does? Rank statistics over a grid of models.

NumPy and SciPy only. `kendall` (tau-a, tau-b), `partial_kendall` and `r_squared` have bootstrap
intervals over models, whole configurations at a time where several seeds share one; `granulated`
asks along each axis of the grid alone; `pair_information` has K and the information between
measures; `fit_filter` leaves out models that do not fit the training set; `ranking_table` has it
all in rows.

Intervals are percentiles of resampled models. A model drawn twice is no pair with itself, so that
copies do not pull tau towards 0. Where all resamplings agree (a complete order has tau 1 whatever
is drawn) there is no interval: they say nothing of how other models would differ.

Jiang et al., ICLR 2020; Kendall, Biometrika 1938 (tau-a), 1945 (tau-b), 1942 (partial).
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import ArrayLike

from prunejax import registry
from prunejax.measures import pair_information, statistics
from prunejax.measures.correlation import signs
from prunejax.measures.pair_information import Axes

KINDS = ("a", "b")
DRAWS = 1000
LEAST_CLUSTERS = 8  # below, percentiles of resampled models are no interval


@dataclass(frozen=True)
class Rank:
    """A statistic of `n` models with the percentile interval of `draws` resamplings.

    `left_out` models had a value that is not finite. The interval is NaN below 8 clusters, and
    where all resamplings agree.
    """

    name: str
    n: int
    left_out: int
    clusters: int
    value: float
    low: float
    high: float
    draws: int


def _finite(*columns: ArrayLike) -> tuple[list[np.ndarray], np.ndarray]:
    """The columns of the models in which all are finite, and which those are."""
    found = [np.asarray(c, np.float64).reshape(-1) for c in columns]
    if len({c.size for c in found}) != 1:
        raise ValueError(f"columns must have one value a model, got {[c.size for c in found]}")
    keep = np.all([np.isfinite(c) for c in found], axis=0)
    return [c[keep] for c in found], keep


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"Kendall's tau {kind!r} is not one of: {', '.join(KINDS)}")


def _paired(weights: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """[draws]: the sum over pairs of w_i w_j matrix_ij."""
    return ((weights @ matrix) * weights).sum(1)  # the sign of a pair with itself is 0


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(b > 0, a / np.where(b > 0, b, 1), nan)


def _tau(kind: str, sx: np.ndarray, sy: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[draws]: tau of models that count `weights` [draws, models] times."""
    concordance = _paired(weights, sx * sy)
    if kind == "a":
        return _divide(concordance, weights.sum(1) ** 2 - (weights**2).sum(1))
    return _divide(concordance, np.sqrt(_paired(weights, sx * sx) * _paired(weights, sy * sy)))


def _resampled(groups: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """[draws, models]: how often each model is drawn, clusters with replacement."""
    count = int(groups.max()) + 1
    rng = statistics.random(seed, "bootstrap over models")
    return rng.multinomial(count, np.full(count, 1 / count), size=draws)[:, groups].astype(float)


def _bootstrap(
    name: str, statistic: Callable[[np.ndarray], np.ndarray], keep: np.ndarray,
    clusters: Sequence[Hashable] | None, draws: int, level: float, seed: int,
) -> Rank:  # fmt: skip
    registry.whole(0, draws=draws)
    n = int(keep.sum())
    if clusters is not None and len(clusters) != keep.size:
        raise ValueError(f"{len(clusters)} clusters for {keep.size} models; give one for each")
    groups = np.arange(n)
    if clusters is not None:
        groups = pair_information.codes([c for c, k in zip(clusters, keep, strict=True) if k])
    count, low, high = len(set(groups.tolist())), nan, nan
    value = float(statistic(np.ones((1, n)))[0]) if n else nan
    if count >= LEAST_CLUSTERS and draws and np.isfinite(value):
        found = statistic(_resampled(groups, draws, seed))
        found = found[np.isfinite(found)]  # a draw of one configuration only has no order
        if found.size >= 0.9 * draws and not statistics.is_rounding(found):
            low, high = map(float, np.quantile(found, [(1 - level) / 2, (1 + level) / 2]))
    return Rank(name, n, int(keep.size - n), count, value, low, high, draws)


def kendall(
    measure: ArrayLike,
    target: ArrayLike,
    *,
    kind: str = "a",
    clusters: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
    level: float = 0.95,
    seed: int = 0,
) -> Rank:
    """Kendall's tau of a measure and a target over models.

    "a": the mean over ordered pairs of different models of sign(mu - mu') sign(g - g'), ties count
    0 (Jiang et al. 2020). "b": that sum over sqrt(pairs untied in mu * pairs untied in g); NaN
    where one is constant.

    Args:
      measure: [models].
      target: [models].
      kind: "a" or "b".
      clusters: the configuration of each model, where several seeds share one; None: every model
        by itself.
      draws: resamplings of clusters; 0 for no interval.
      level: of the interval.
      seed: of the stream "bootstrap over models".
    """
    _check_kind(kind)
    (x, y), keep = _finite(measure, target)
    sx, sy = signs(x), signs(y)
    return _bootstrap(
        f"tau_{kind}", lambda w: _tau(kind, sx, sy, w), keep, clusters, draws, level, seed
    )


def partial_kendall(
    measure: ArrayLike,
    target: ArrayLike,
    given: ArrayLike,
    *,
    clusters: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
    level: float = 0.95,
    seed: int = 0,
) -> Rank:
    """Kendall's partial tau: (t_xy - t_xz t_yz) / sqrt((1 - t_xz^2)(1 - t_yz^2)) of tau-b.

    Given the train loss, say: does the measure rank models beyond what their train loss does? NaN
    where `given` [models] orders one of the two completely. Other arguments as in `kendall`.
    """
    (x, y, z), keep = _finite(measure, target, given)
    sx, sy, sz = signs(x), signs(y), signs(z)

    def statistic(w: np.ndarray) -> np.ndarray:
        xy, xz, yz = (_tau("b", *pair, w) for pair in ((sx, sy), (sx, sz), (sy, sz)))
        rest = (1 - xz**2) * (1 - yz**2)
        return _divide(xy - xz * yz, np.sqrt(np.where(rest > 1e-12, rest, 0)))

    return _bootstrap("partial_tau_b", statistic, keep, clusters, draws, level, seed)


def r_squared(
    measure: ArrayLike,
    target: ArrayLike,
    *,
    clusters: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
    level: float = 0.95,
    seed: int = 0,
) -> Rank:
    """R^2 of the least-squares line of the target on the measure; arguments as in `kendall`."""
    (x, y), keep = _finite(measure, target)
    x, y = (v / statistics.unit(v) for v in (x, y))  # no square may overflow
    x, y = (v - v.mean() if v.size else v for v in (x, y))  # centered, so that little cancels below

    def statistic(w: np.ndarray) -> np.ndarray:
        p = w / w.sum(1, keepdims=True)
        covariance = p @ (x * y) - (p @ x) * (p @ y)
        spread = [p @ (v * v) - (p @ v) ** 2 for v in (x, y)]
        noise = [1e-14 * (v * v).mean() for v in (x, y)]  # a spread below is rounding
        known = [np.where(s > e, s, 0) for s, e in zip(spread, noise, strict=True)]
        return _divide(covariance**2, known[0] * known[1])

    return _bootstrap("r_squared", statistic, keep, clusters, draws, level, seed)


@dataclass(frozen=True)
class Granulated:
    """Kendall's tau along each axis alone.

    Attributes:
      value: Psi, the mean of the axes' psi; NaN if no axis has one.
      psi: axis -> mean of tau over its cells, with the t interval over cells.
      left_out: axis -> cells in which no two models differ on the axis, or the measure is constant
        (with tau-b: or the target is).
    """

    value: float
    psi: dict[str, statistics.Mean]
    left_out: dict[str, int]


def _cell_tau(kind: str, x: np.ndarray, y: np.ndarray, level: np.ndarray) -> float:
    """Tau over the pairs that differ on the axis; NaN where the cell is to be left out."""
    differ = level[:, None] != level[None, :]
    a, b = signs(x)[differ], signs(y)[differ]
    if not a.any():
        return nan
    # tau-a counts tied pairs, too
    untied = a.size if kind == "a" else np.sqrt(np.sum(a * a) * np.sum(b * b))
    return float(np.sum(a * b) / untied) if untied else nan


def granulated(measure: ArrayLike, target: ArrayLike, axes: Axes, *, kind: str = "a") -> Granulated:
    """psi_i: the mean over cells (all other axes fixed) of tau along axis i; Psi: their mean.

    Pairs that do not differ on the axis (seeds of one configuration) say nothing of it and do not
    count. Models with a value that is not finite are left out.

    Args:
      measure, target: [models].
      axes: hyperparameter -> the value of each model.
      kind: "a" or "b", see `kendall`.

    Raises:
      ValueError: unknown kind, an axis of another length.
    """
    _check_kind(kind)
    (x, y), keep = _finite(measure, target)
    columns = {k: v[keep] for k, v in pair_information.check_axes(axes, keep.size).items()}
    psi, left_out = {}, {}
    for name, level in columns.items():
        others = [column for other, column in columns.items() if other != name]
        cells = pair_information.codes(list(zip(*others, strict=True)) or [()] * x.size)
        found = [
            _cell_tau(kind, x[cells == c], y[cells == c], level[cells == c])
            for c in range(int(cells.max()) + 1 if cells.size else 0)
        ]
        psi[name] = statistics.mean(found)
        left_out[name] = int(np.isnan(found).sum())
    known = [m.mean for m in psi.values() if m.n]
    return Granulated(float(np.mean(known)) if known else nan, psi, left_out)


@dataclass(frozen=True)
class Fit:
    """Which models fit the training set: `keep` [models], and a sentence for the headline."""

    keep: np.ndarray
    removed: int
    sentence: str


def fit_filter(
    train_accuracy: ArrayLike, train_loss: ArrayLike, *, accuracy: float = 0.99, loss: float = 0.01
) -> Fit:
    """Models with train accuracy of at least `accuracy`, or train loss of at most `loss` nats.

    `train_accuracy` and `train_loss` are [models]. A regression has no accuracy, NaN.
    """
    a, b = (np.asarray(v, np.float64).reshape(-1) for v in (train_accuracy, train_loss))
    if a.size != b.size:
        raise ValueError(f"{a.size} train accuracies and {b.size} train losses")
    keep = (a >= accuracy) | (b <= loss)  # NaN is neither
    removed = int(a.size - keep.sum())
    known = f"train accuracy below {accuracy:g} and " if np.isfinite(a).any() else ""
    sentence = f"{removed} of {a.size} models left out: {known}train loss above {loss:g}"
    return Fit(keep, removed, sentence)
