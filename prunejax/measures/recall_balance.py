"""Recalls of classes against accuracy, with their standard error; NumPy only. See `recall`."""

from math import nan

import numpy as np
from numpy.typing import ArrayLike

from prunejax import registry

WEIGHTINGS = ("frequency", "balanced")


def counts(
    predictions: ArrayLike, labels: ArrayLike, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """(right predictions [classes], test examples [classes]), exact integers.

    `predictions` and `labels` are [examples].

    Raises:
      ValueError: they are not as many, labels are none of the classes, or these no count.
    """
    registry.whole(1, classes=classes)
    p, y = np.asarray(predictions).reshape(-1), np.asarray(labels).reshape(-1)
    if p.size != y.size:
        raise ValueError(f"{p.size} predictions for {y.size} labels")
    if y.dtype.kind not in "iub":
        if y.size:
            raise ValueError(f"labels are {y.dtype}; classes are integers from 0")
        y = y.astype(int)
    if y.size and not (y.min() >= 0 and y.max() < classes):
        raise ValueError(f"labels from {y.min()} to {y.max()}; there are {classes} classes from 0")
    total = np.bincount(y, minlength=classes)
    return np.bincount(y[p == y], minlength=classes), total


def recalls(correct: ArrayLike, total: ArrayLike) -> np.ndarray:
    """Recalls [classes] of `correct` and `total` [classes]; NaN for a class without examples."""
    right, n = np.asarray(correct, float), np.asarray(total, float)
    return np.where(n > 0, right / np.where(n > 0, n, 1), nan)


def class_weights(total: np.ndarray, weighting: str) -> np.ndarray:
    """Weights [classes] in accuracy, sum 1; 0 for classes without examples in `total` [classes]."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting {weighting!r} is not one of: {', '.join(WEIGHTINGS)}")
    there = total > 0
    weights = np.where(there, total, 0) if weighting == "frequency" else there.astype(float)
    return weights / max(weights.sum(), 1)


def accuracy(correct: ArrayLike, total: ArrayLike, weighting: str = "frequency") -> float:
    """Mean recall, weighted by test examples ("frequency": plain accuracy) or not ("balanced").

    `correct` and `total` are [classes].
    """
    weights = class_weights(np.asarray(total), weighting)
    recall = recalls(correct, total)
    return float(np.sum(np.where(weights > 0, weights * np.nan_to_num(recall), 0)))


def balance(correct: ArrayLike, total: ArrayLike, weighting: str = "frequency") -> np.ndarray:
    """B = recall - accuracy [classes]; arguments as in `accuracy`."""
    return recalls(correct, total) - accuracy(correct, total, weighting)


def normalized_balance(
    correct: ArrayLike, total: ArrayLike, weighting: str = "frequency"
) -> np.ndarray:
    """NB = (recall - accuracy) / accuracy [classes], NaN at 0; arguments as in `accuracy`."""
    mean = accuracy(correct, total, weighting)
    return balance(correct, total, weighting) / (mean if mean > 0 else nan)


def balance_stderr(
    correct: ArrayLike, total: ArrayLike, weighting: str = "frequency"
) -> np.ndarray:
    """Standard error of NB [classes] by the delta method, recalls binomial and independent.

    With a = sum_k w_k r_k: dNB_c/dr_k = [k = c]/a - r_c w_k / a^2. Arguments as in `accuracy`.
    """
    recall, n = np.nan_to_num(recalls(correct, total)), np.asarray(total, float)
    mean, weights = accuracy(correct, total, weighting), class_weights(np.asarray(total), weighting)
    if mean <= 0:
        return np.full(n.size, nan)
    # A recall of 0 or 1 counts as certain: there the error is too small.
    variance = np.where(n > 0, recall * (1 - recall) / np.where(n > 0, n, 1), 0)
    slopes = np.eye(n.size) / mean - np.outer(recall, weights) / mean**2
    return np.where(n > 0, np.sqrt(slopes**2 @ variance), nan)


def class_ratios(nb_dense: ArrayLike, nb_pruned: ArrayLike, stderr: ArrayLike) -> np.ndarray:
    """NB_t / NB_0 [classes]; NaN unless |NB_0| exceeds twice its standard error.

    `nb_dense`, `nb_pruned` and `stderr` are [classes].
    """
    x, y, error = (np.asarray(v, float) for v in (nb_dense, nb_pruned, stderr))
    known = np.abs(x) > 2 * error  # a quotient by what may be 0 says nothing
    return np.where(known, y / np.where(known, x, 1), nan)
