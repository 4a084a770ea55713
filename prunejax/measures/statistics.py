"""Means and comparisons of runs, each with its confidence interval; pairs: `correlation`.

NumPy and SciPy only. A quantity that too few or constant values leave undefined is NaN: nothing
has an interval or a p below n = 3, nor where the spread of the values is rounding
(`is_rounding`). Methods (`METHODS` has them in words for the summary):

* mean: Student t interval. std has n - 1 in the denominator. It takes values for normal ones: of 3
  to 20 log-normal ones (sigma 1) intervals of 95 % hold the mean in 82 to 88 % of samples.
* paired difference: t interval of the differences; Cohen's d = mean / std of the differences.
* Welch's t-test for unpaired samples; d with the root of the mean of the two variances.
* several p values: Holm's step-down correction (Holm 1979).
"""

import functools
import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import frexp, isfinite, isnan, ldexp, nan, sqrt
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

Key = TypeVar("Key", bound=Hashable)

METHODS = {
    "mean": "Student t interval; std with n - 1",
    "pearson": "Fisher z interval, standard error 1/sqrt(n - 3)",
    "spearman": "Fisher z, variance (1 + rho^2/2)/(n - 3) (Bonett, Wright 2000), t quantile",
    "kendall": "tau-b; Fisher z, variance 0.437/(n - 4) (Fieller et al. 1957), t quantile",
    "clustered": "each seed left out in turn (jackknife over blocks), t interval on Fisher's z",
    "paired": "differences between runs of the same seed, paired t; d = mean / std of differences",
    "welch": "Welch t-test; d with the root of the mean of the two variances",
    "holm": "Holm's step-down correction of the p values of one family",
}
LEAST = 3  # values below which nothing has an interval or a p


@dataclass(frozen=True)
class Mean:
    """Mean of `n` values with confidence interval `[low, high]`; `std` has n - 1."""

    n: int
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A difference of means with confidence interval, two-sided p and Cohen's d.

    `n` counts the pairs, or the smaller of two unpaired samples.
    """

    n: int
    difference: float
    low: float
    high: float
    p: float
    t: float
    degrees: float
    d: float


def random(seed: int, name: str) -> np.random.Generator:
    """A NumPy generator of the stream `name`."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def finite(*columns: ArrayLike) -> list[np.ndarray]:
    """The `columns` [n] as float64 [finite], without rows in which any of them is not finite."""
    arrays = [np.asarray(column, np.float64).reshape(-1) for column in columns]
    if len({array.size for array in arrays}) != 1:
        sizes = [array.size for array in arrays]
        raise ValueError(f"columns that belong together must have one length, not {sizes}")
    keep = np.all([np.isfinite(array) for array in arrays], axis=0)
    return [array[keep] for array in arrays]


def unit(*columns: ArrayLike) -> float:
    """The power of two at the largest magnitude of the `columns` [n]; 1 where all are 0.

    Over it no square leaves the range of floats, and no digit changes.
    """
    largest = max(float(np.max(np.abs(column), initial=0.0)) for column in columns)
    return ldexp(1.0, frexp(largest)[1] - 1) if largest else 1.0


def is_rounding(x: np.ndarray, resolution: float = 0.0, size: float = 0.0) -> bool:
    """True if values differ by no more than rounding, so that a spread of them says nothing.

    Args:
      x: the values [...].
      resolution: the smallest difference that two unequal values can have, e.g. one test example
        for an accuracy (1 / examples); a spread of less than half of it is rounding.
      size: magnitude of the numbers that `x` are differences of, if larger than that of `x`.
    """
    if not x.size:
        return True
    spread, largest = float(np.ptp(x)), max(float(np.max(np.abs(x))), size)
    return spread <= 1e-12 * largest or spread < resolution / 2


@functools.cache
def t_factor(degrees: float, level: float) -> float:
    """Half of a t interval, in standard errors; NaN without degrees of freedom."""
    from scipy import special  # late: it takes long to import

    return float(special.stdtrit(degrees, (1 + level) / 2)) if degrees > 0 else nan


def t_tails(degrees: float, t: float) -> float:
    """Two-sided p of a value of Student's t."""
    from scipy import special  # late, as in `t_factor`

    return 2 * float(special.stdtr(degrees, -abs(t)))


def mean(values: ArrayLike, level: float = 0.95, resolution: float = 0.0) -> Mean:
    """Mean, standard deviation and t confidence interval; non-finite values are left out.

    `values` are [n]; `resolution`: see `is_rounding`.
    """
    (x,) = finite(values)
    n = x.size
    if n == 0:
        return Mean(0, nan, nan, nan, nan)
    one = unit(x)
    center = one * float((x / one).mean())
    if n == 1:
        return Mean(1, center, nan, nan, nan)
    std = one * float((x / one).std(ddof=1))
    if n < LEAST or is_rounding(x, resolution):
        return Mean(n, center, std, nan, nan)
    half = t_factor(n - 1, level) * std / sqrt(n)
    return Mean(n, center, std, center - half, center + half)


def center(values: ArrayLike) -> float:
    """The mean of what is finite of `values` [n]; NaN of nothing."""
    (x,) = finite(values)
    return float(x.mean()) if x.size else nan


def means(values: ArrayLike) -> np.ndarray:
    """[...]: means over the first axis of `values` [n, ...], of what is finite; NaN of nothing.

    So that one run that went wrong does not decide for all of them.
    """
    x = np.asarray(values, np.float64)
    known = np.isfinite(x)
    n = known.sum(0)
    return np.where(n > 0, np.where(known, x, 0).sum(0) / np.maximum(n, 1), nan)


def largest(found: Mapping[Key, float]) -> Key | None:
    """The key of the largest value, the first of equal ones; None where none is finite."""
    known = {key: value for key, value in found.items() if isfinite(value)}
    return max(known, key=lambda key: known[key]) if known else None


def _compare(
    n: int, difference: float, error: float, degrees: float, d: float, level: float
) -> Comparison:
    """The t interval and p of a difference with this standard error."""
    if isnan(error):
        return Comparison(n, difference, nan, nan, nan, nan, nan, nan)
    t = difference / error
    half = t_factor(degrees, level) * error
    p = t_tails(degrees, t)
    return Comparison(n, difference, difference - half, difference + half, p, t, degrees, d)


def paired(a: ArrayLike, b: ArrayLike, level: float = 0.95, resolution: float = 0.0) -> Comparison:
    """Mean of `a - b`, [n] each, over pairs (runs of a seed): paired t interval, p and d.

    No interval, p or d below 3 pairs, or where the differences differ by rounding only
    (`resolution`: see `is_rounding`): then nothing is known of how other seeds would differ.
    """
    x, y = finite(a, b)
    difference = x - y
    if difference.size == 0:
        return Comparison(0, nan, nan, nan, nan, nan, nan, nan)
    found = mean(difference)
    n, center, std = found.n, found.mean, found.std
    # rounding goes by these, not by x - y
    size = max(float(np.max(np.abs(x))), float(np.max(np.abs(y))))
    if n < LEAST or is_rounding(difference, resolution, size):
        return _compare(n, center, nan, nan, nan, level)
    return _compare(n, center, std / sqrt(n), n - 1, center / std, level)


def welch(a: ArrayLike, b: ArrayLike, level: float = 0.95, resolution: float = 0.0) -> Comparison:
    """Mean of `a` minus mean of `b`, unpaired samples of unequal variance (Welch 1947).

    `a` is [n], `b` [m]. No interval, p or d where a sample has fewer than 3 values or both are
    constant but for rounding (`resolution`: see `is_rounding`).
    """
    (first,), (second,) = finite(a), finite(b)
    n = min(first.size, second.size)
    if n == 0:
        return Comparison(0, nan, nan, nan, nan, nan, nan, nan)
    x, y = mean(first, level), mean(second, level)
    size = max(abs(x.mean), abs(y.mean))
    flat = [is_rounding(sample, resolution, size) for sample in (first, second)]
    if n < LEAST or all(flat):
        return _compare(n, x.mean - y.mean, nan, nan, nan, level)
    one = unit([x.std, y.std])  # the squares are squared below
    a2, b2 = (x.std / one) ** 2, (y.std / one) ** 2
    u, v = a2 / x.n, b2 / y.n
    degrees = (u + v) ** 2 / (u**2 / (x.n - 1) + v**2 / (y.n - 1))  # Welch-Satterthwaite
    d = (x.mean - y.mean) / (one * sqrt((a2 + b2) / 2))
    return _compare(n, x.mean - y.mean, one * sqrt(u + v), degrees, d, level)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's corrected p values in the order given; NaN stays NaN and counts for nothing.

    Sorted p_1 <= ... <= p_m: the k-th is `max over j <= k of min(1, (m - j + 1) p_j)` (Holm 1979).
    """
    corrected, so_far = [nan] * len(ps), 0.0
    order = sorted((i for i, p in enumerate(ps) if not isnan(p)), key=lambda i: ps[i])
    for rank, i in enumerate(order):
        so_far = max(so_far, min(1.0, (len(order) - rank) * ps[i]))
        corrected[i] = so_far
    return corrected


def fit_line(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """(slope, intercept) of least squares of `x` and `y` [n]; NaN where `pearson` is."""
    a, b = finite(x, y)
    if a.size < 3 or is_rounding(a):
        return nan, nan
    one, other = unit(a), unit(b)
    c = a / one
    slope = float(np.cov(c, b / other)[0, 1] / c.var(ddof=1)) * other / one  # n - 1 in both
    return slope, float(b.mean() - slope * a.mean())


def bands(curves: Sequence[ArrayLike] | np.ndarray, level: float = 0.95) -> tuple[np.ndarray, ...]:
    """(mean, low, high), [points] each, of `curves` [runs, points]; NaN is left out.

    The band is the t interval; with one run it is NaN.
    """
    found = [mean(column, level) for column in np.asarray(curves, np.float64).T]
    return tuple(np.array([getattr(f, name) for f in found]) for name in ("mean", "low", "high"))
