"""Does stability go with accuracy? Over runs, between arms, within arms, and for arms in general.

The runs of a study are arms x seeds: runs of one seed share initialization, order of examples and
random draws, and runs of one arm share how they were pruned. Pooling them as independent runs
makes intervals lie. So r and tau over runs stand as numbers (the paper gives them), and two
questions get an interval each:

* *these arms*: would other seeds give this r? Seeds are the blocks (`correlation.clustered`).
* *arms in general*: would other arms? Arms are the unit. An arm's stability is averaged over one
  half of the seeds and its outcome over the other half, so that what the two share because they
  were measured on the same run does not count; Fisher's z of their correlation over the n arms is
  averaged over splits of the seeds, and has the standard error 1/sqrt(n - 3) of a single split
  (the average varies less, so the interval is wide rather than narrow; the noise of the means
  pulls it towards 0). More seeds cannot make up for few arms.

Only the second can carry a sentence on the relation.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import comb, isfinite, nan, sqrt, tanh
from typing import Any

import numpy as np

from prunejax.measures import correlation, statistics

LEAST_ARMS = 8  # below, the arms are too few to tell
LEAST_SEEDS = 4
_SPLITS = 70  # of the seeds into halves: all of 8 seeds
_PERMUTATIONS = 5000

Values = Mapping[str, Mapping[str, tuple[float, float]]]  # arm -> seed -> (x, y)


def _grid(values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Both columns as [arms, seeds], of the seeds that all arms have."""
    arms = [values[arm] for arm in values]
    seeds = [s for s in (arms[0] if arms else ()) if all(s in arm for arm in arms)]
    both = np.array([[arm[s] for s in seeds] for arm in arms], float)
    both = both.reshape(len(arms), len(seeds), 2)
    return both[..., 0], both[..., 1]


@functools.cache
def _splits(seeds: int) -> np.ndarray:
    """The first half of the seeds as 0 or 1 [seeds, splits]: every split, or 70 at a fixed seed."""
    half = seeds // 2
    if comb(seeds, half) <= _SPLITS:
        chosen = [list(c) for c in itertools.combinations(range(seeds), half)]
    else:
        rng = np.random.default_rng(0)  # one draw of splits for every study
        chosen = [list(rng.permutation(seeds)[:half]) for _ in range(_SPLITS)]
    return np.stack([np.isin(np.arange(seeds), c) for c in chosen], axis=1).astype(float)


def _centered(means: np.ndarray) -> np.ndarray:
    return means - means.mean(0)


def arms_in_general(x: np.ndarray, y: np.ndarray, level: float = 0.95) -> correlation.Correlation:
    """Correlation of two quantities over arms, for arms in general; see the module.

    Args: x, y: [arms, seeds]. level: of the interval.

    Returns:
      `n` is the number of arms. Without interval for fewer than 8 arms or 4 seeds, or where a
      column of means is constant.
    """
    arms, seeds = x.shape
    undefined = correlation.Correlation(arms, nan, nan, nan, nan)
    if arms < LEAST_ARMS or seeds < LEAST_SEEDS:
        return undefined
    first = _splits(seeds)
    a = _centered(x @ (first / first.sum(0)))  # [arms, splits]
    b = _centered(y @ ((1 - first) / (1 - first).sum(0)))
    if any(statistics.is_rounding(m, size=float(np.abs(v).max())) for v, m in ((x, a), (y, b))):
        return undefined
    r = (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))
    if not np.isfinite(r).all():
        return undefined
    from scipy import special  # late, as in `statistics.t_factor`

    z = float(np.mean(np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))))
    error = 1 / sqrt(arms - 3)  # of one split of the seeds: see the module
    half = float(special.ndtri((1 + level) / 2)) * error
    p = 2 * float(special.ndtr(-abs(z) / error))
    return correlation.Correlation(arms, tanh(z), tanh(z - half), tanh(z + half), p)


def within(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(r, p) of what is left after the arms' means: do runs of one arm differ together?

    `x` and `y` are [arms, seeds]. p permutes the seeds of y against those of x, whole seeds at a
    time: exactly for up to 7 seeds, else by 5,000 permutations at a fixed seed. NaN below 4 seeds.
    """
    a, b = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    r = correlation.coefficient(a.ravel(), b.ravel())
    seeds = x.shape[1]
    if not isfinite(r) or seeds < LEAST_SEEDS:
        return r, nan
    products = a.T @ b  # [seed of x, seed of y], summed over arms
    if seeds <= 7:
        orders = np.array(list(itertools.permutations(range(seeds))))
    else:
        rng = np.random.default_rng(0)
        orders = rng.permuted(np.tile(np.arange(seeds), (_PERMUTATIONS, 1)), axis=1)
        orders[0] = np.arange(seeds)  # what was observed is one of the draws
    sums = np.abs(products[np.arange(seeds), orders].sum(1))  # two-sided
    # ties by rounding count as reached
    return r, float(np.mean(sums >= abs(np.trace(products)) * (1 - 1e-12)))


def relate(values: Values, x: str, y: str, scope: str) -> dict[str, Any]:
    """The relation of two columns over the runs of a study.

    Args:
      values: arm -> seed -> (x, y), finite.
      x, y: names of the columns.
      scope: which runs these are.

    Returns:
      A dict: `n_runs`, `n_arms`, `n_seeds` (that all arms have), `pearson` and `kendall` over runs
      (numbers as the paper has them), `between` (of the arms' means) and `within` arms, the two
      intervals `these_arms` and `arms_in_general` (None with the `reason`), and `p`, the p of the
      latter, for `sentences`.
    """
    runs = [(seed, *pair) for arm in values.values() for seed, pair in arm.items()]
    seeds, a, b = ([run[i] for run in runs] for i in range(3))
    blocked = correlation.clustered(a, b, seeds)
    # Over all seeds of an arm, those too that other arms lack.
    means = np.array([np.mean(list(arm.values()), axis=0) for arm in values.values() if arm])
    means = means.reshape(-1, 2)
    own, p_within = within(*_grid(values))
    general = arms_in_general(*_grid(values))
    n_seeds = _grid(values)[0].shape[1]
    between = {
        "pearson": correlation.coefficient(means[:, 0], means[:, 1]),
        "kendall": correlation.coefficient(means[:, 0], means[:, 1], "kendall"),
        "n": len(means),
    }
    reason = ""
    if len(values) < LEAST_ARMS:
        reason = f"{len(values)} arms are too few to tell ({LEAST_ARMS} at least)"
    elif n_seeds < LEAST_SEEDS:
        seeds_are = f"seed{' is' if n_seeds == 1 else 's are'}"
        reason = f"{n_seeds} {seeds_are} too few to tell ({LEAST_SEEDS} at least)"
    elif not isfinite(general.low):
        reason = "the arms' means are constant"
    return {
        "x": x,
        "y": y,
        "scope": scope,
        "n_runs": len(runs),
        "n_arms": len(values),
        "n_seeds": n_seeds,
        "pearson": blocked.value,
        "kendall": correlation.coefficient(a, b, "kendall"),
        "between": between,
        "within": {"pearson": own, "p": p_within},
        "these_arms": {
            "low": blocked.low,
            "high": blocked.high,
            "method": statistics.METHODS["clustered"],
        },
        "arms_in_general": None
        if reason
        else {**asdict(general), "method": "arms are the unit; halves of the seeds; Fisher's z"},
        "reason": reason,
        "p": general.p,
    }


def sentences(found: Sequence[dict[str, Any]], withheld: str = "") -> None:
    """Adds `p_holm`, `verdict` and `sentence` to the relations of a page.

    A page has several relations: Holm's correction goes over those with an interval for arms in
    general. One is claimed where its corrected p is below 0.05 and Kendall's tau of the arms'
    means has the same sign (no single arm makes it). `withheld`: the verdict that all get instead
    (`claims.WITHHELD`).
    """
    for relation, p in zip(found, statistics.holm([r["p"] for r in found]), strict=True):
        general = relation["arms_in_general"]
        relation["p_holm"] = p
        verdict = "undecided"
        if withheld:
            verdict, sentence = withheld, f"{withheld}: no verdict on the relation"
        elif general is None:
            verdict = "too few to tell"
            sentence = "nothing beyond the comparisons of arms"
        elif p < 0.05 and general["value"] * relation["between"]["kendall"] > 0:
            verdict = "negative" if general["value"] < 0 else "positive"
            sentence = f"over arms in general, {{x}} and {{y}} go {_WAYS[verdict]}"
        else:
            sentence = "over arms in general, no sign can be claimed"
        relation |= {"verdict": verdict, "sentence": sentence}


_WAYS = {"negative": "in opposite directions", "positive": "together"}
