"""The choice of `prunejax.ops.ranking` by NumPy, for arrays that are at hand on a CPU.

Outside of `jit` nothing has to be compiled for the shapes of a tree, and NumPy selects faster than
any loop that XLA makes for a CPU. A sample brackets the k-th largest number; what lies in the
bracket, some hundredths of all, is found by one pass on every core and partitioned exactly. Where
the sample misled, everything is partitioned: the result is exact in any case.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array

SAMPLE = 1 << 14  # numbers that bracket the k-th one: a bracket holds about a 32nd of all
_CHUNK = 1 << 18  # numbers that a thread looks at in one go: they stay in its cache
_LEAST = 1 << 12  # a smaller sample costs more than it saves


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
    with _mapping(scores) as over:
        marks = _select(leaves, k, over)
    return [jax.device_put(m.reshape(x.shape)) for m, x in zip(marks, scores, strict=True)]


def each(
    scores: Sequence[Array], ks: Sequence[int], eligible: Sequence[Array | None]
) -> list[Array]:
    """`ranking.each` of `usable` arrays; a leaf is the work of one thread."""
    leaves = [_leaf(x, a) for x, a in zip(scores, eligible, strict=True)]
    with _mapping(scores) as over:
        marks = over(lambda leaf, k: _select([leaf], k, map)[0], leaves, ks)
        return [jax.device_put(m.reshape(x.shape)) for m, x in zip(marks, scores, strict=True)]


@contextlib.contextmanager
def _mapping(scores: Sequence[Array]) -> Iterator[Callable[..., Any]]:
    """`map` over all cores, and Python's own where threads would cost more than they save."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if sum(x.size for x in scores) <= _CHUNK or cores == 1:
        yield map
        return
    with ThreadPoolExecutor(cores) as pool:
        yield pool.map


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
    there = sum(len(x.numbers) if x.allowed is None else _true(x.allowed) for x in leaves)
    k = min(max(k, 0), there)
    if not k:
        return marks
    chunks = [chunk for leaf in leaves for chunk in leaf.chunks()]
    cut, left, ties = _cut(chunks, k, over)
    outs = [m[i : i + _CHUNK] for m in marks for i in range(0, len(m), _CHUNK)]

    def mark(chunk: _Leaf, out: np.ndarray) -> None:
        # What equals the cut comes in with the rest where all of it is wanted.
        if cut != cut:
            np.equal(chunk.numbers, chunk.numbers, out=out)
        else:
            (np.greater_equal if left == ties else np.greater)(chunk.numbers, cut, out=out)
        if chunk.allowed is not None:
            np.logical_and(out, chunk.allowed, out=out)

    list(over(mark, chunks, outs))
    if left < ties or cut != cut:
        for leaf, out in zip(leaves, marks, strict=True):
            x = leaf.numbers
            equal = x != x if cut != cut else x == cut
            places = np.flatnonzero(equal if leaf.allowed is None else equal & leaf.allowed)[:left]
            out[places] = True
            left -= len(places)
    return marks


def _cut(chunks: list[_Leaf], k: int, over: Callable[..., Any]) -> tuple[Any, int, int]:
    """The k-th largest number (NaN ranks last), how many equal to it are wanted, how many are."""
    bracket = _bracket(chunks, k)
    above, middle = _within(bracket, chunks, over)
    if bracket and not above < k <= above + len(middle):
        above, middle = _within(None, chunks, over)
    if k > above + len(middle):
        return math.nan, k - len(middle), -1
    place = len(middle) - (k - above)
    middle.partition(place)
    cut = middle[place]
    larger = above + _true(middle[place:] > cut)
    return cut, k - larger, _true(middle == cut)


def _within(
    bracket: tuple[Any, Any] | None, chunks: list[_Leaf], over: Callable[..., Any]
) -> tuple[int, np.ndarray]:
    """How many numbers are above the bracket, and those in it; None: all but NaN."""

    def look(chunk: _Leaf) -> tuple[int, np.ndarray]:
        x = chunk.within()
        if bracket is None:
            return 0, x[x == x] if x.size and np.max(x) != np.max(x) else x
        inside, above = x >= bracket[0], x > bracket[1]
        return _true(above), x[np.not_equal(inside, above, out=inside)]

    found = list(over(look, chunks))
    return sum(n for n, _ in found), np.concatenate([x for _, x in found])


def _true(flags: np.ndarray) -> int:
    return int(np.count_nonzero(flags))


def _bracket(chunks: list[_Leaf], k: int) -> tuple[Any, Any] | None:
    """Numbers between which the k-th largest almost surely is; None: too few to sample."""
    total = sum(len(chunk.numbers) for chunk in chunks)
    size = min(SAMPLE, total // 64)
    if size < _LEAST:
        return None
    # Drawn, not strided: the rows of a kernel have a period.
    draw = np.random.default_rng(0)
    parts, taken = [], 0
    for x, allowed in chunks:
        places = draw.integers(0, len(x), math.ceil(size * len(x) / total))
        taken += len(places)
        parts.append(_Leaf(x[places], None if allowed is None else allowed[places]).within())
    sample = np.concatenate(parts)
    sample = np.sort(sample[sample == sample])[::-1]
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
