"""Epsilon-flatness: how far along given lines before the loss has risen by a threshold.

Bartoldson et al., NeurIPS 2020: ten leading eigenvectors, ε from -0.40 to 0.40 in steps of 0.01,
loss of the full test set, threshold 0.1.
"""

from dataclasses import dataclass

import numpy as np

from prunejax.curvature.perturb import Line


@dataclass(frozen=True)
class EpsilonFlatness:
    """How far one can go before the loss rises by `threshold`; larger is flatter.

    Attributes:
      value: smallest |ε| of the grid at which the increase, maximal over directions and signs,
        is at least the threshold (the paper's number); inf where it is not reached.
      interpolated: where the increase crosses the threshold first, linear between grid points
        (a non-finite loss counts from its grid point on); inf where it is not reached.
      reached: whether the threshold is reached on the grid at all.
      direction: index of the direction that reaches `interpolated`, -1 for none.
      sign: 1 or -1, the side it is reached on, 0 for none.
      threshold: increase of the loss, nats.
      largest: largest |ε| looked at.
    """

    value: float
    interpolated: float
    reached: bool
    direction: int
    sign: int
    threshold: float
    largest: float


def epsilon_flatness(
    along: Line, *, threshold: float = 0.1, quantity: str = "loss"
) -> EpsilonFlatness:
    """The smallest |ε| at which the loss has risen by `threshold` along any direction.

    Args:
      along: from `line` or `eigenvector_perturbation`, over both signs of ε.
      threshold: increase of the quantity that counts; the paper's is 0.1 nats of test loss.
      quantity: which of the line's values.

    Raises:
      ValueError: the threshold is not positive, or there is no such quantity.
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be positive, got {threshold}")
    if quantity not in along.values:
        raise ValueError(f"no quantity {quantity!r}; the line has: {', '.join(along.values)}")
    increase = along.increase(quantity)
    increase = np.where(np.isnan(increase), np.inf, increase)
    best, crossing = (np.inf, -1, 0), np.inf
    for sign in (1, -1):
        side = along.grid * sign > 0
        order = np.argsort(np.abs(along.grid[side]))
        distance = np.concatenate([[0.0], np.abs(along.grid[side])[order]])
        for i, row in enumerate(increase[:, side][:, order]):
            rise = np.concatenate([[0.0], row])
            over = np.flatnonzero(rise >= threshold)
            if not over.size:
                continue
            j = over[0]
            crossing = min(crossing, distance[j])
            part = (threshold - rise[j - 1]) / (rise[j] - rise[j - 1])
            step = distance[j] - distance[j - 1]
            exact = distance[j - 1] + step * (part if np.isfinite(rise[j]) else 1.0)
            if exact < best[0]:
                best = (float(exact), i, sign)
    return EpsilonFlatness(
        value=float(crossing),
        interpolated=best[0],
        reached=bool(np.isfinite(crossing)),
        direction=best[1],
        sign=best[2],
        threshold=threshold,
        largest=float(np.abs(along.grid).max()),
    )
