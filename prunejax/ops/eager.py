"""The choice of `prunejax.ops.ranking` by NumPy, for arrays that are at hand on a CPU.

Outside of `jit` nothing has to be compiled for the shapes of a tree, and NumPy selects faster than
any loop that XLA makes for a CPU. A sample brackets the k-th largest number; what lies in the
bracket, some hundredths of all, is found by one pass on every core and partitioned exactly. Where
the sample misled, and where all fits into a cache, everything is partitioned: the result is exact
in any case.
"""

import functools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array

SAMPLE = 1 << 14  # numbers that bracket the k-th one: a bracket holds about a 32nd of all
_CHUNK = 1 << 18  # numbers that a thread looks at in one go: they stay in its cache
_WHOLE = 1 << 22  # up to so many numbers a partition of all is faster: they fit into a cache


class _Leaf(NamedTuple):
    """Numbers in a row, and which of them may be chosen (None: all)."""

    numbers: np.ndarray
    allowed: np.ndarray | None

    def chunks(self) -> Iterable["_Leaf"]:
        for start in range(0, len(self.numbers), _CHUNK):
            part = slice(start, start + _CHUNK)
            yield _Leaf(self.numbers[part], None if self.allowed is None else self.allowed[part])

    def within(self) -> np.ndarray:
        return self.numbers if self.allowed is None else self.numbers[self.allowed]


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
    leaves = [_leaf(x, a) for x, a in zip(scores, eligible, strict=True)]
    marks = _select(leaves, k, _mapping(scores))
    return [jax.device_put(m.reshape(x.shape)) for m, x in zip(marks, scores, strict=True)]


def each(
    scores: Sequence[Array], ks: Sequence[int], eligible: Sequence[Array | None]
) -> list[Array]:
    """`ranking.each` of `usable` arrays; a leaf is the work of one thread."""
    leaves = [_leaf(x, a) for x, a in zip(scores, eligible, strict=True)]
    marks = _mapping(scores)(lambda leaf, k: _select([leaf], k, map)[0], leaves, ks)
    return [jax.device_put(m.reshape(x.shape)) for m, x in zip(marks, scores, strict=True)]


def _mapping(scores: Sequence[Array]) -> Callable[..., Any]:
    """`map` over all cores, and Python's own where threads would cost more than they save."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if sum(x.size for x in scores) <= _CHUNK or cores == 1:
        return map
    return _pool(os.getpid(), cores or 1).map


@functools.cache
def _pool(process: int, cores: int) -> ThreadPoolExecutor:
    """Threads that stay, as their memory does; a process that forked has none of its parent's."""
    return ThreadPoolExecutor(cores, "prunejax-masks")


def _leaf(x: Array, allowed: Array | None) -> _Leaf:
    numbers = np.asarray(x)
    if numbers.dtype.itemsize == 2 and numbers.dtype.kind not in "iu":
        numbers = numbers.astype(np.float32)  # NumPy has no fast partition of half precision
    if numbers.dtype == bool:
        numbers = numbers.view(np.uint8)
    return _Leaf(numbers.ravel(), None if allowed is None else np.asarray(allowed).ravel())


def _select(leaves: list[_Leaf], k: int, over: Callable[..., Any]) -> list[np.ndarray]:
    """Marks of the `k` largest; `over` is `map`, or that of a pool."""
    marks = [np.zeros(len(leaf.numbers), bool) for leaf in leaves]
    # NaN is among them: it may be chosen, last
    there = sum(len(x.numbers) if x.allowed is None else _true(x.allowed) for x in leaves)
    k = min(max(k, 0), there)
    if not k:
        return marks
    chunks = [chunk for leaf in leaves for chunk in leaf.chunks()]
    outs = [m[i : i + _CHUNK] for m in marks for i in range(0, len(m), _CHUNK)]
    bracket = _bracket(chunks, k)
    if bracket:
        above, found = _within(bracket, chunks, outs, over)
        if above < k <= above + sum(len(x) for _, x in found):
            cut, left = _cut(np.concatenate([x for _, x in found]), k - above)
            for out, (places, numbers) in zip(outs, found, strict=True):
                out[places[numbers > cut]] = True
                equal = places[numbers == cut][:left]
                out[equal] = True
                left -= len(equal)
            return marks
    _all(chunks, outs, k)
    return marks


def _all(chunks: list[_Leaf], outs: list[np.ndarray], k: int) -> None:
    """Marks the `k` largest with all numbers partitioned."""
    numbers = np.concatenate([chunk.within() for chunk in chunks])
    place = len(numbers) - k
    numbers.partition(place)
    if _reach(chunks, outs, numbers[place]) == k:
        return
    # Ties, or NaN, which NumPy ranks first.
    cut, left = _cut(numbers[numbers == numbers], k)  # NaN would shift the places of all
    for chunk, out in zip(chunks, outs, strict=True):
        x = chunk.numbers
        if cut != cut:
            equal = np.logical_not(np.equal(x, x, out=out))
        else:
            np.greater(x, cut, out=out)
            equal = x == cut
        if chunk.allowed is not None:
            np.logical_and(out, chunk.allowed, out=out)
            equal &= chunk.allowed
        places = np.flatnonzero(equal)[:left]  # the earliest of the equal ones
        out[places] = True
        left -= len(places)


def _reach(chunks: list[_Leaf], outs: list[np.ndarray], cut: Any) -> int:
    """Marks what reaches the cut, and counts it."""
    for chunk, out in zip(chunks, outs, strict=True):
        np.greater_equal(chunk.numbers, cut, out=out)
        if chunk.allowed is not None:
            np.logical_and(out, chunk.allowed, out=out)
    return sum(_true(out) for out in outs)


def _within(
    bracket: tuple[Any, Any], chunks: list[_Leaf], outs: list[np.ndarray], over: Callable[..., Any]
) -> tuple[int, list[tuple[np.ndarray, np.ndarray]]]:
    """Marks what is above the bracket: how many they are, and places and values of those in it."""

    def look(chunk: _Leaf, out: np.ndarray) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
        x = chunk.numbers
        np.greater(x, bracket[1], out=out)
        inside = x >= bracket[0]
        np.not_equal(inside, out, out=inside)
        if chunk.allowed is not None:
            np.logical_and(out, chunk.allowed, out=out)
            np.logical_and(inside, chunk.allowed, out=inside)
        places = np.flatnonzero(inside)
        return _true(out), (places, x[places])

    found = list(over(look, chunks, outs))
    return sum(n for n, _ in found), [pair for _, pair in found]


def _cut(numbers: np.ndarray, k: int) -> tuple[Any, int]:
    """The k-th largest number and how many equal to it are wanted; NaN where there are fewer."""
    if k > len(numbers):
        return math.nan, k - len(numbers)
    place = len(numbers) - k
    parted = np.partition(numbers, place)
    return parted[place], k - _true(parted[place:] > parted[place])


def _true(flags: np.ndarray) -> int:
    return int(np.count_nonzero(flags))


def _bracket(chunks: list[_Leaf], k: int) -> tuple[Any, Any] | None:
    """Numbers between which the k-th largest almost surely is; None: too few to sample."""
    total = sum(len(chunk.numbers) for chunk in chunks)
    if total <= _WHOLE:
        return None
    size = min(SAMPLE, total // 64)
    # Drawn, not strided: the rows of a kernel have a period.
    draw = np.random.default_rng(0)  # decides how long it takes, never what is chosen
    parts, taken = [], 0
    for x, allowed in chunks:
        places = draw.integers(0, len(x), math.ceil(size * len(x) / total))
        taken += len(places)
        parts.append(_Leaf(x[places], None if allowed is None else allowed[places]).within())
    sample = np.concatenate(parts)
    sample = np.sort(sample[sample == sample])[::-1]  # NaN ranks below all, but counts in `taken`
    middle, spread = k / total * taken, 2 * math.sqrt(taken)  # four standard deviations
    first, last = math.floor(middle - spread), math.ceil(middle + spread)
    if first >= len(sample):  # it may be among the NaN
        return None
    low = sample[last] if last < len(sample) else None
    high = sample[first] if first >= 0 else None
    return _ends(low, high, sample.dtype)


def _ends(low: Any, high: Any, kind: np.dtype) -> tuple[Any, Any]:
    """The bracket with the smallest and the largest number of the dtype where it has no end."""
    if kind.kind == "f":
        least, most = kind.type(-np.inf), kind.type(np.inf)
    else:
        least, most = kind.type(np.iinfo(kind).min), kind.type(np.iinfo(kind).max)
    return least if low is None else low, most if high is None else high
