"""The choice of `prunejax.ops.ranking` by NumPy, for arrays that are at hand on a CPU.

Outside of `jit` nothing has to be compiled for the shapes of a tree, and `numpy.partition` selects
faster than any loop that XLA makes for a CPU.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

Array = jax.Array


def usable(*arrays: Any) -> bool:
    """Whether all are numbers that lie on the CPU where new arrays would lie as well."""
    held = [x for x in arrays if isinstance(x, jax.Array)]
    if any(isinstance(x, jax.core.Tracer) for x in held):
        return False
    home = jax.device_put(np.float32(0)).devices()
    return all(device.platform == "cpu" for device in home) and all(
        isinstance(x.sharding, jax.sharding.SingleDeviceSharding) and x.devices() == home
        for x in held
    )


def top(scores: Sequence[Array], k: int, eligible: Sequence[Array | None]) -> list[Array]:
    """`ranking.top` of arrays of one dtype, `usable` ones."""
    if not scores:
        return []
    flat = [_flat(x) for x in scores]
    allowed = [None if a is None else np.asarray(a).ravel() for a in eligible]
    # NaN is among them: it may be chosen, last.
    numbers = np.concatenate([x if a is None else x[a] for x, a in zip(flat, allowed, strict=True)])
    k = min(max(k, 0), numbers.size)
    cut: Any = math.inf
    left = 0  # of those equal to the cut, the earliest
    if k:
        if numbers.dtype.kind == "f" and np.isnan(np.min(numbers)):
            numbers = numbers[numbers == numbers]
        cut, left = math.nan, k - numbers.size  # all numbers, and some NaN
        if left <= 0:
            place = numbers.size - k
            numbers.partition(place)
            cut = numbers[place]
            left = k - np.count_nonzero(numbers[place:] > cut)
    marks = []
    for score, x, a in zip(scores, flat, allowed, strict=True):
        mark, equal = (x > cut, x == cut) if cut == cut else (x == x, x != x)
        if a is not None:
            mark &= a
            equal &= a
        places = np.flatnonzero(equal)[:left]
        mark[places] = True
        left -= len(places)
        marks.append(jax.device_put(mark.reshape(score.shape)))
    return marks


def each(
    scores: Sequence[Array], ks: Sequence[int], eligible: Sequence[Array | None]
) -> list[Array]:
    """`ranking.each` of `usable` arrays; a leaf is the work of one thread."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda x, k, a: top([x], k, [a])[0], scores, ks, eligible))


def _flat(x: Array) -> np.ndarray:
    numbers = np.asarray(x).ravel()
    if numbers.dtype.itemsize == 2 and numbers.dtype.kind not in "iu":
        return numbers.astype(np.float32)  # NumPy has no fast partition of half precision
    return numbers.view(np.uint8) if numbers.dtype == bool else numbers
