"""Lottery tickets: what masks have in common, how far training goes, whether a ticket matches.

    jaccard(mask, other)                  # live in both / live in either
    chance_jaccard(counts, sizes)         # what random masks of these layer counts would have
    early_stop(validation_losses)         # the epoch of the lowest one
    matching(ticket, dense, margin=0.01)  # non-inferiority, and within one deviation of dense

NumPy only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan, sqrt

import numpy as np
from numpy.typing import ArrayLike

from prunejax.measures import statistics

Layers = Mapping[str, np.ndarray]


def jaccard(a: Layers, b: Layers) -> float:
    """Live in both over live in either, over all layers; 1 where nothing is live.
    Raises ValueError: the layers, or their shapes, are not the same.
    """
    if a.keys() != b.keys() or any(np.shape(a[k]) != np.shape(b[k]) for k in a):
        raise ValueError(f"masks of {', '.join(a)} and of {', '.join(b)} do not fit each other")
    both = sum(int(np.count_nonzero(np.asarray(a[k]) & np.asarray(b[k]))) for k in a)
    either = sum(int(np.count_nonzero(np.asarray(a[k]) | np.asarray(b[k]))) for k in a)
    return both / either if either else 1.0


def chance_jaccard(
    counts: Mapping[str, int], others: Mapping[str, int], sizes: Mapping[str, int]
) -> float:
    """Jaccard index of two independent random masks with these live counts by layer.

    The expected number of common weights, sum_l a_l b_l / n_l, over what is left of
    sum_l (a_l + b_l): the ratio of expectations, which the index tends to in large layers.
    """
    both = sum(counts[k] * others[k] / sizes[k] for k in sizes if sizes[k])
    either = sum(counts[k] + others[k] for k in sizes) - both
    return both / either if either else 1.0


def early_stop(losses: ArrayLike) -> int:
    """Index of the lowest of `losses` [n], of equal ones the first; never one that is not finite.
    Raises ValueError: none is finite.
    """
    found = np.asarray(losses, float)
    if not np.isfinite(found).any():
        raise ValueError("no finite loss to stop by")
    return int(np.nanargmin(np.where(np.isfinite(found), found, np.inf)))


@dataclass(frozen=True)
class Matching:
    """Whether a subnetwork is as good as the dense one.

    Attributes:
      difference: mean of subnetwork minus dense, paired by seed.
      n: pairs of finite values; of none the difference is NaN.
      within_std: the subnetwork's mean is not below the dense mean by more than one standard
        deviation of the dense seeds (Frankle et al. 2020).
      margin: what counts as no loss.
      p: one-sided, of difference <= -margin; small: not inferior.
      low: lower end of the one-sided 95 % interval of the difference.
    """

    difference: float
    n: int
    within_std: bool
    margin: float
    p: float
    low: float

    @property
    def not_inferior(self) -> bool:
        """Whether inferiority by the margin is refused at 5 %."""
        return isfinite(self.p) and self.p < 0.05


def matching(values: Sequence[float], dense: Sequence[float], margin: float) -> Matching:
    """Non-inferiority of a subnetwork, by a one-sided paired t test.

    Pairs with a value that is not finite are left out, and there is no p below three pairs or
    where differences differ by rounding only, as in `statistics`.

    Args:
      values: accuracies of the subnetwork by seed.
      dense: those of the dense network, the same seeds in the same order.
      margin: > 0, in the units of the values.

    Raises ValueError: no pairs, or margin not above 0.
    """
    first, second = np.asarray(values, float), np.asarray(dense, float)
    if first.shape != second.shape or not first.size:
        raise ValueError(f"{first.size} and {second.size} values; give both for the same seeds")
    if not margin > 0:
        raise ValueError(f"margin {margin!r} must be above 0")
    x, y = statistics.finite(first, second)
    d, n = x - y, x.size
    if not n:
        return Matching(nan, 0, False, margin, nan, nan)
    center, p, low = float(d.mean()), nan, nan
    size = max(float(np.max(np.abs(x))), float(np.max(np.abs(y))))
    if n >= statistics.LEAST and not statistics.is_rounding(d, size=size):
        from scipy import special  # late, as in `statistics.t_factor`

        error = float(d.std(ddof=1)) / sqrt(n)
        p = float(special.stdtr(n - 1, -(center + margin) / error))
        low = center - float(special.stdtrit(n - 1, 0.95)) * error
    deviation = float(y.std(ddof=1)) if n > 1 else nan
    return Matching(center, n, bool(center >= -deviation), margin, p, low)
