"""Fieller's confidence interval of a ratio of two estimates (Fieller 1954).

It covers as it says where numerator and denominator are jointly normal. Means of per-example
gradient norms are that only in the limit: where their law has heavy tails (a few examples carry
most of the sum, as late in training), mean and covariance of a finite sample are both too small in
most draws, and the truth lies above the interval more often than it says: with log-normal norms of
log sd 1 and 2 a 95 % interval covers 93 and 71 % at 64 examples, 94 and 82 % at 382. More examples
cure it slowly; the largest share of one example in the sum tells how far off one is.
"""

import numpy as np


def fieller(a: float, b: float, cov: np.ndarray, quantile: float) -> tuple[float, float]:
    """Fieller's interval of a/b: all R with (a - R b)² <= quantile² Var(a - R b).

    Args:
      a: estimate of the numerator.
      b: estimate of the denominator.
      cov: covariance of (a, b), of shape [2, 2].
      quantile: of Student's t or the normal law.

    Returns:
      (low, high); (-inf, inf) where b is within `quantile` standard errors of zero, (nan, nan)
      where the covariance is not known.
    """
    square = quantile**2
    lead = b * b - square * cov[1, 1]
    if np.isnan(cov).any():
        return float("nan"), float("nan")
    if lead <= 0:
        return -float("inf"), float("inf")
    middle = a * b - square * cov[0, 1]
    root = np.sqrt(max(middle**2 - lead * (a * a - square * cov[0, 0]), 0.0))
    return float((middle - root) / lead), float((middle + root) / lead)


def reciprocal(interval: tuple[float, float]) -> tuple[float, float]:
    """The interval of 1/x >= 0 from that of x; parts at or below zero stand for infinity."""
    if np.isnan(interval).any():
        return interval
    low, high = (1 / x if x > 0 else float("inf") for x in interval[::-1])
    return low, high
