"""How far two networks are from each other: predictions, distance, angle."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from prunejax import trees
from prunejax.measures.norms import distance as distance

Tree = Any


def disagreement(predictions: ArrayLike, others: ArrayLike) -> float:
    """Share of examples whose classes differ between `predictions` and `others` [examples]."""
    a, b = np.asarray(predictions).reshape(-1), np.asarray(others).reshape(-1)
    if a.size != b.size or not a.size:
        raise ValueError(f"{a.size} and {b.size} predictions; both are of the same examples")
    return float(np.mean(a != b))


def cosine(a: Tree, b: Tree, *, origin: Tree | None = None) -> float:
    """Cosine of the angle between two trees, seen from `origin` (their start, say); None: 0.

    NaN where one of them is at the origin.
    """
    columns = [
        np.concatenate([np.asarray(x, np.float64).ravel() for x in trees.aligned(a, tree, "trees")])
        for tree in (a, b, *(() if origin is None else (origin,)))
    ]
    x, y = (c - columns[2] if origin is not None else c for c in columns[:2])
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size else float("nan")
