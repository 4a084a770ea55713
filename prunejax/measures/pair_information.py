"""What one quantity says of another over ordered pairs of models, in nats; NumPy only.

A pair (i, j) of models has the signs V_x = sign(x_i - x_j) of each quantity (0 is a tie) and, for
a set S of axes of the grid, U_S: the values of both models on those axes, in order. All ordered
pairs of two different models count alike and entropies are those of the counts (plug-in), which
are too large where pairs are few: `null` says what a shuffled measure gives.

Jiang et al., "Fantastic generalization measures and where to find them", ICLR 2020, section 4.
"""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import ArrayLike

from prunejax import registry
from prunejax.measures import statistics

Axes = Mapping[str, Sequence[Hashable]]
_NOTHING = 1e-12  # nats: an entropy of rounding


@dataclass(frozen=True)
class Information:
    """How much of the order of a target a measure tells, given hyperparameters.

    Attributes:
      value: K, the smallest ratio over the sets of axes: 0 = nothing, 1 = all; NaN if there is
        none.
      given: the axes of that set.
      ratios: set of axes -> I(V_mu; V_g | U_S) / H(V_g | U_S).
      skipped: sets given which nothing of the target's order is left to tell.
      n: models.
    """

    value: float
    given: tuple[str, ...]
    ratios: dict[tuple[str, ...], float]
    skipped: tuple[tuple[str, ...], ...]
    n: int


def codes(values: Sequence[Hashable]) -> np.ndarray:
    """Values as integers [n] by first appearance; equal values (1 and 1.0) have one integer."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(v, len(known)) for v in values], np.int64)


def check_axes(axes: Axes, n: int) -> dict[str, np.ndarray]:
    """The axes as integers [models]; ValueError where one has another length."""
    found = {name: codes(values) for name, values in axes.items()}
    for name, column in found.items():
        if column.size != n:
            raise ValueError(f"axis {name!r} has {column.size} values for {n} models")
    return found


def _column(values: ArrayLike, what: str) -> np.ndarray:
    found = np.asarray(values, np.float64).reshape(-1)
    if not np.isfinite(found).all():
        raise ValueError(f"{what} has values that are not finite; leave those models out first")
    return found


def _signs(values: np.ndarray) -> np.ndarray:
    """0, 1, 2 for less, equal, more [n (n - 1)] over ordered pairs of different models."""
    signs = np.sign(values[:, None] - values[None, :]).astype(np.int64) + 1
    return signs[~np.eye(values.size, dtype=bool)]


def _entropy(counts: np.ndarray) -> float:
    """Entropy of counts in nats."""
    total = counts.sum()
    found = counts[counts > 0] / total if total else np.ones(1)
    return float(-(found * np.log(found)).sum())


def _ratio(measure: np.ndarray, target: np.ndarray, given: np.ndarray) -> tuple[float, float]:
    """(I(measure; target | given), H(target | given)) of coded pairs, in nats."""
    groups = int(given.max()) + 1 if given.size else 1
    joint = np.bincount((given * 3 + measure) * 3 + target, minlength=groups * 9)
    joint = joint.reshape(groups, 3, 3)
    rest = _entropy(joint.sum(1)) - _entropy(joint.sum((1, 2)))
    information = (
        _entropy(joint.sum(2))
        + _entropy(joint.sum(1))
        - _entropy(joint)
        - _entropy(joint.sum((1, 2)))
    )
    return max(information, 0.0), max(rest, 0.0)  # below 0 by rounding alone


def _pair_codes(axes: dict[str, np.ndarray], n: int) -> dict[str, tuple[np.ndarray, int]]:
    """Axis -> (code of both models' values over ordered pairs, how many codes)."""
    different = ~np.eye(n, dtype=bool)
    found = {}
    for name, column in axes.items():
        levels = int(column.max()) + 1 if n else 1
        found[name] = ((column[:, None] * levels + column[None, :])[different], levels**2)
    return found


def conditional(measure: ArrayLike, target: ArrayLike, axes: Axes, *, most: int = 2) -> Information:
    """Normalized conditional mutual information K = min over |S| <= `most` of I / H.

    Args:
      measure: [models], finite.
      target: [models], finite: test loss, gap, ...
      axes: hyperparameter -> the value of each model. Seeds are no axis.
      most: size of the largest set of axes; the empty set counts too.

    Raises ValueError: lengths differ, values that are not finite.
    """
    x, y = _column(measure, "the measure"), _column(target, "the target")
    if x.size != y.size:
        raise ValueError(f"{x.size} values of the measure and {y.size} of the target")
    registry.whole(0, most=most)
    pairs = _pair_codes(check_axes(axes, x.size), x.size)
    a, b = _signs(x), _signs(y)
    ratios: dict[tuple[str, ...], float] = {}
    skipped = []
    for size in range(min(most, len(pairs)) + 1):
        for chosen in itertools.combinations(pairs, size):
            given = np.zeros(a.size, np.int64)
            for name in chosen:
                code, levels = pairs[name]
                given = given * levels + code
            information, rest = _ratio(a, b, np.unique(given, return_inverse=True)[1])
            if rest <= _NOTHING:
                skipped.append(chosen)
            else:
                ratios[chosen] = min(1.0, information / rest)
    best = min(ratios, key=lambda s: ratios[s]) if ratios else ()  # of equal ones the smaller set
    return Information(ratios[best] if ratios else nan, best, ratios, tuple(skipped), x.size)


def null(
    measure: ArrayLike,
    target: ArrayLike,
    axes: Axes,
    *,
    most: int = 2,
    permutations: int = 100,
    seed: int = 0,
) -> tuple[float, float]:
    """(mean, standard deviation) of K of the measure shuffled over the models.

    Args: as in `conditional`; `permutations` shuffles of the stream "shuffled measure".
    """
    registry.whole(2, permutations=permutations)
    rng, x = statistics.random(seed, "shuffled measure"), _column(measure, "the measure")
    found = [
        conditional(rng.permutation(x), target, axes, most=most).value for _ in range(permutations)
    ]
    return float(np.mean(found)), float(np.std(found, ddof=1))


def mutual(a: ArrayLike, b: ArrayLike, *, normalized: bool = False) -> float:
    """Mutual information of the orders that two measures give, I(V_a; V_b) in nats.

    Args:
      a, b: [models], finite.
      normalized: divide by sqrt(H(V_a) H(V_b)): 1 where each order gives the other; NaN where a
        measure is constant.
    """
    x, y = _column(a, "the first measure"), _column(b, "the second measure")
    if x.size != y.size:
        raise ValueError(f"{x.size} values of one measure and {y.size} of the other")
    u, v = _signs(x), _signs(y)
    information, rest = _ratio(u, v, np.zeros(u.size, np.int64))
    if not normalized:
        return information
    own = _entropy(np.bincount(u, minlength=3))
    return information / (own * rest) ** 0.5 if min(own, rest) > _NOTHING else nan


def mutual_matrix(
    measures: Mapping[str, ArrayLike], *, normalized: bool = True
) -> tuple[list[str], np.ndarray]:
    """Names and the matrix [names, names] of `mutual` of each two `measures`, [models] each."""
    names = list(measures)
    found = np.full((len(names), len(names)), nan)
    for i, j in itertools.combinations_with_replacement(range(len(names)), 2):
        value = mutual(measures[names[i]], measures[names[j]], normalized=normalized)
        found[i, j] = found[j, i] = value
    return names, found
