"""Recall distortion: does pruning make classes that are behind fall further behind?

    found = distortion(dense_predictions, pruned_predictions, labels, classes)
    found.alpha, found.split_half, found.nb_dense, found.nb_pruned
    permutation_test(...)                               # per class
    neutral(alphas(models)); compare(alphas(models), alphas(of_another_method))

B_t^c = recall_t^c - accuracy_t and NB_t^c = B_t^c / accuracy_t of class c in the network at pruning
ratio t (0 is the dense one). alpha_t is the slope of NB_t on NB_0 over the classes of one model:
above 1 differences between classes grow (intensification), below 1 they shrink. What is inferred
is the mean of alpha_t over models. Good et al., NeurIPS 2022, have NB and the term; that their
alpha is this slope is a reading of ours.

NumPy and SciPy only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import ArrayLike

from prunejax import registry
from prunejax.measures import statistics
from prunejax.measures.recall_balance import accuracy as accuracy
from prunejax.measures.recall_balance import balance as balance
from prunejax.measures.recall_balance import balance_stderr as balance_stderr
from prunejax.measures.recall_balance import class_ratios as class_ratios
from prunejax.measures.recall_balance import class_weights
from prunejax.measures.recall_balance import counts as counts
from prunejax.measures.recall_balance import normalized_balance as normalized_balance
from prunejax.measures.recall_balance import recalls as recalls

SPLITS = 20
CHANCE = 1.5  # times 1/C: accuracy below is degenerate


@dataclass(frozen=True)
class Distortion:
    """One model, dense against pruned.

    Attributes:
      classes: those with test examples; `absent` are left out of everything.
      examples: [classes] test examples.
      recall_dense, recall_pruned: [classes].
      accuracy_dense, accuracy_pruned: mean recall, weighted as asked for.
      nb_dense, nb_pruned: [classes] normalized balance; `nb_stderr` of the dense one.
      ratios: NB_t / NB_0, NaN where |NB_0| is within two standard errors of 0.
      alpha: slope through the origin; `alpha_intercept` with an intercept, `r_squared` of the
        latter line (NaN for two classes).
      split_half: alpha without the pull of measurement noise; NaN with the `reason`.
      degenerate: a network at chance (accuracy below 1.5 / C): NB says nothing, leave the row out
        of means of alpha.
    """

    classes: tuple[int, ...]
    absent: tuple[int, ...]
    examples: np.ndarray
    recall_dense: np.ndarray
    recall_pruned: np.ndarray
    accuracy_dense: float
    accuracy_pruned: float
    nb_dense: np.ndarray
    nb_pruned: np.ndarray
    nb_stderr: np.ndarray
    ratios: np.ndarray
    alpha: float
    alpha_intercept: float
    r_squared: float
    split_half: float
    reason: str
    degenerate: bool


def slopes(nb_dense: ArrayLike, nb_pruned: ArrayLike) -> tuple[float, float, float]:
    """(alpha through the origin, alpha with an intercept, R^2 of the latter line) over classes.

    `nb_dense` and `nb_pruned` are [classes].
    Classes with a value that is not finite do not count. NaN where NB_0 is constant (R^2: for
    fewer than three classes too). Equal slopes where the mean of NB_0 is 0: balanced test sets.
    """
    x, y = statistics.finite(nb_dense, nb_pruned)
    if not np.any(np.abs(x) > 1e-12):
        return nan, nan, nan
    origin = float(x @ y) / float(x @ x)
    if statistics.is_rounding(x):
        return origin, nan, nan
    u, v = x - x.mean(), y - y.mean()
    line, spread = float(u @ v) / float(u @ u), float(v @ v)
    fit = float(u @ v) ** 2 / (float(u @ u) * spread) if x.size > 2 and spread > 0 else nan
    return origin, line, fit


def split_half(
    right_dense: ArrayLike,
    right_pruned: ArrayLike,
    labels: ArrayLike,
    classes: int,
    *,
    splits: int = SPLITS,
    seed: int = 0,
    weighting: str = "frequency",
) -> tuple[float, str]:
    """(alpha without the noise of finite test sets, reason where it is NaN).

    The plain slope is pulled towards 0 by the noise in NB_0. Here the examples of each class are
    split into halves A and B at random, and (x_A y_B + x_B y_A) / (2 x_A x_B) with x = NB_0,
    y = NB_t and sums over classes has independent noise in its factors; the median over splits.

    Args:
      right_dense, right_pruned: [examples] bool, whether the prediction is right.
      labels: [examples].
      classes: how many there are.
      splits: random ones, of the stream "split".
      seed: of that stream.
      weighting: of accuracy, see `accuracy`.

    Returns:
      NaN where x_A x_B is not positive in more than a tenth of the splits, or fewer than two
      classes have two examples; a class with a single one does not count.
    """
    registry.whole(1, splits=splits)
    y = np.asarray(labels).reshape(-1)
    (_, examples), _ = (counts(v, y, classes) for v in (right_dense, right_pruned))  # refuses
    both = np.stack([np.asarray(v, bool).reshape(-1) for v in (right_dense, right_pruned)])
    class_weights(examples, weighting)  # refuses unknown ones
    enough = np.flatnonzero(examples >= 2)
    if enough.size < 2:
        return nan, "fewer than two classes have two test examples"
    order = np.argsort(y, kind="stable")
    order = order[np.isin(y[order], enough)]
    # examples class by class: sums per class are slices
    kind, both = np.searchsorted(enough, y[order]), both[:, order].astype(int)
    total = np.bincount(kind)
    starts = np.cumsum(total) - total
    place = np.arange(kind.size) - np.repeat(starts, total)  # within the class
    rng = statistics.random(seed, "split")
    found, bad = [], 0
    for _ in range(splits):
        shuffled = np.argsort(kind + rng.random(kind.size))  # by class, and at random within it
        size = (total + rng.integers(0, 2, total.size)) // 2  # an odd one goes to either half
        first = np.zeros(kind.size, int)
        first[shuffled[place < np.repeat(size, total)]] = 1
        sizes = np.stack([size, total - size])  # [halves, classes]
        mine = np.add.reduceat(both * first, starts, axis=1)
        hits = np.stack([mine, np.add.reduceat(both, starts, axis=1) - mine], 1)
        weights = sizes / sizes.sum(1, keepdims=True)  # each half by its own counts
        if weighting == "balanced":
            weights = np.full(sizes.shape, 1 / enough.size)
        recall = hits / sizes  # [networks, halves, classes]
        mean = (weights * recall).sum(-1, keepdims=True)
        (xa, xb), (ya, yb) = recall / np.where(mean > 0, mean, nan) - 1
        product = float(xa @ xb)
        bad += not product > 0  # NaN too: nothing right
        if product > 0:
            found.append(float(xa @ yb + xb @ ya) / (2 * product))
    if bad > splits / 10:
        return nan, f"the dense halves disagree in {bad} of {splits} splits: too few test examples"
    return float(np.median(found)), ""


def distortion(
    dense: ArrayLike,
    pruned: ArrayLike,
    labels: ArrayLike,
    classes: int,
    *,
    weighting: str = "frequency",
    splits: int = SPLITS,
    seed: int = 0,
) -> Distortion:
    """How pruning moved the recalls of one model, from both networks' predictions on a test set.

    Args:
      dense, pruned: [examples] predicted classes, the same examples in the same order.
      labels: [examples].
      classes: how many there are; those without test examples are left out and named.
      weighting: of accuracy: "frequency" or "balanced".
      splits: of `split_half`, 0 to leave it out.
      seed: of its stream.
    """
    y = np.asarray(labels).reshape(-1)
    correct0, total = counts(dense, y, classes)
    correct, _ = counts(pruned, y, classes)
    there = total > 0
    x, z = (normalized_balance(c, total, weighting)[there] for c in (correct0, correct))
    error = balance_stderr(correct0, total, weighting)[there]
    origin, line, fit = slopes(x, z)
    half, reason = nan, "not asked for"
    if splits:
        right, other = (np.asarray(p).reshape(-1) == y for p in (dense, pruned))
        half, reason = split_half(
            right, other, y, classes, splits=splits, seed=seed, weighting=weighting
        )
    means = [accuracy(c, total, weighting) for c in (correct0, correct)]
    return Distortion(
        classes=tuple(np.flatnonzero(there).tolist()),
        absent=tuple(np.flatnonzero(~there).tolist()),
        examples=total[there], recall_dense=recalls(correct0, total)[there],
        recall_pruned=recalls(correct, total)[there], accuracy_dense=means[0],
        accuracy_pruned=means[1], nb_dense=x, nb_pruned=z, nb_stderr=error,
        ratios=class_ratios(x, z, error), alpha=origin, alpha_intercept=line, r_squared=fit,
        split_half=half, reason=reason, degenerate=bool(min(means) < CHANCE / classes),
    )  # fmt: skip


def permutation_test(
    dense: ArrayLike,
    pruned: ArrayLike,
    labels: ArrayLike,
    classes: int,
    *,
    permutations: int = 2000,
    seed: int = 0,
    weighting: str = "frequency",
) -> tuple[np.ndarray, np.ndarray]:
    """(NB_0^c - NB_t^c [classes], two-sided p [classes]) under swaps of the two predictions.

    Each test example's predictions of the dense and the pruned network change places with
    probability 1/2. Only examples that exactly one of the two has right matter, so that a swap of
    all is one binomial draw a class. p is twice the smaller tail, at most 1; what was observed is
    one of the draws. NaN for classes without examples. `dense` and `pruned` (predictions) and
    `labels` are [examples].
    """
    registry.whole(1, permutations=permutations)
    y = np.asarray(labels).reshape(-1)
    (_, total), _ = (counts(p, y, classes) for p in (dense, pruned))  # refuses what does not fit
    right0, right = (np.asarray(p).reshape(-1) == y for p in (dense, pruned))
    count = lambda chosen: np.bincount(y[chosen], minlength=classes)  # noqa: E731
    both, either = count(right0 & right), count(right0 ^ right)
    weights = class_weights(total, weighting)
    recall = lambda c: c / np.where(total > 0, total, 1)  # noqa: E731

    def difference(first: np.ndarray) -> np.ndarray:
        """[draws, classes] for right answers `first` among those that one network has right."""
        parts = [recall(both + first), recall(both + either - first)]
        # nothing right: the numerator is 0, too
        means = [np.maximum(p @ weights, 1e-300) for p in parts]
        return parts[0] / means[0][:, None] - parts[1] / means[1][:, None]

    rng = statistics.random(seed, "permutation")
    observed = difference(count(right0 & ~right)[None])[0]
    drawn = difference(rng.binomial(either, 0.5, size=(permutations, classes)))
    slack = 1e-12  # ties by rounding count as reached
    tails = [
        (1 + (side * drawn >= side * observed - slack).sum(0)) / (permutations + 1)
        for side in (1, -1)
    ]
    p = np.minimum(1, 2 * np.minimum(*tails))
    return np.where(total > 0, observed, nan), np.where(total > 0, p, nan)


def alphas(models: Sequence[Distortion], kind: str = "alpha") -> list[float]:
    """Alpha of each model; NaN, which the tests leave out, where a network is at chance.

    Args:
      models: one method at one ratio.
      kind: "alpha", "alpha_intercept" or "split_half".
    """
    kinds = ("alpha", "alpha_intercept", "split_half")
    if kind not in kinds:
        raise ValueError(f"kind {kind!r} is not one of: {', '.join(kinds)}")
    return [nan if m.degenerate else float(getattr(m, kind)) for m in models]


def neutral(values: Sequence[float]) -> statistics.Comparison:
    """t-test of mean alpha = 1 over models: `difference` is mean alpha - 1, with its interval.

    Alphas that are NaN do not count: `n` says how many do.
    """
    return statistics.paired(values, np.ones(len(values)))


def compare(values: Sequence[float], others: Sequence[float]) -> statistics.Comparison:
    """Paired t-test of two methods' alphas over the same models, in the same order."""
    return statistics.paired(values, others)
