"""Exact selection of the `k` largest of many numbers that are spread over the leaves of a tree.

Sorting 25 million numbers takes XLA seconds on a CPU. Arrays that are at hand on a CPU are left to
NumPy (`eager`). In programs and on other devices the k-th largest is found by counting (`radix`):
nothing large is sorted, gathered from a sharded leaf, or sent to the host. In programs for one CPU
device leaves are laid end to end, so that one loop counts them all (`segments`); leaves that may
be sharded, and those on accelerators, are counted where they lie, one by one. Of numbers equal to
the k-th the earlier leaf comes first (JAX leaf order), then the smaller flat (row-major) index.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from prunejax import registry
from prunejax.ops import axes, eager, radix, segments
from prunejax.ops import counts as counts_lib

Array = jax.Array
Tree = Any

_FEW = 4096  # up to this many numbers a sort compiles and runs faster than counting


def top(
    scores: Tree, k: int | Array, *, eligible: Tree | None = None, method: str | None = None
) -> Tree:
    """Marks the `k` largest scores of the whole tree.

    Larger first; among equals the earlier leaf, then the smaller flat index. `-0.0` equals `0.0`.
    NaN ranks below everything, `-inf` included. Leaves may differ in dtype (all floating, or all
    integer or boolean): they are compared in the common dtype.

    Args:
      scores: tree of arrays of any shapes, sharded or not.
      k: how many, one integer, traced or not; clamped to 0 .. number of eligible entries.
      eligible: tree of boolean arrays of the same shapes: the entries that may be chosen.
        None: all.
      method: how to count, one of `radix.METHODS`; None takes what suits the size of the tree and
        the default backend.

    Returns: A tree of boolean arrays, exactly `min(k, eligible entries)` of them True.

    Raises ValueError: `k` is no integer scalar, dtypes do not compare, shapes differ, or there are
    2^31 entries or more while 64-bit types are off.
    """
    leaves, structure = jax.tree.flatten(scores)
    arrays, allowed = _scores(leaves), _eligible(leaves, eligible)
    return jax.tree.unflatten(structure, _top(arrays, _count(k), allowed, method))


def each(
    scores: Sequence[Array],
    ks: Sequence[Any],
    eligible: Sequence[Array | None],
    method: str | None = None,
) -> list[Array]:
    """`top` of each array by itself; arguments as there, lists of one entry an array."""
    arrays = [_scores([x])[0] for x in scores]
    counts = [_count(k) for k in ks]
    if method is None and eager.usable(*arrays, *counts, *eligible):
        return eager.each(arrays, [int(k) for k in counts], eligible)
    chosen: list[Array | None] = [None] * len(arrays)
    kinds = sorted({x.dtype for x in arrays}, key=str)
    for kind in kinds if _method(method, arrays) == "scatter" else ():
        # One of its kind is as well off alone, with a sort if it is small.
        places = [i for i, x in enumerate(arrays) if x.dtype == kind and x.size]
        sizes = [arrays[i].size for i in places]
        if len(places) < 2 or not _end_to_end([arrays[i] for i in places]):
            continue
        given = [counts[i] for i in places]
        if all(isinstance(k, int) for k in given):
            rows = [min(max(k, 0), n) for k, n in zip(given, sizes, strict=True)]
            wanted = jnp.asarray(np.array(rows), counts_lib.kind(sum(sizes)))
        else:
            wide = [min(max(k, 0), 2**31 - 1) if isinstance(k, int) else k for k in given]
            stacked = jnp.stack([jnp.asarray(k) for k in wide])
            wanted = jnp.clip(stacked, 0, jnp.asarray(sizes)).astype(counts_lib.kind(sum(sizes)))
        some = [eligible[i] for i in places]
        found = segments.top([arrays[i] for i in places], wanted, some, together=False)
        for i, mask in zip(places, found, strict=True):
            chosen[i] = mask
    left = zip(chosen, arrays, counts, eligible, strict=True)
    return [_top([x], k, [a], method)[0] if m is None else m for m, x, k, a in left]


def _end_to_end(scores: Sequence[Array]) -> bool:
    """Whether arrays may be laid end to end: nothing is sharded, and positions can be counted."""
    wide = jax.dtypes.canonicalize_dtype(jnp.int64) == jnp.int64
    fit = wide or sum(x.size for x in scores) + radix.SLICE < 2**31
    return fit and all(radix.on_one_device(x) for x in scores)


def _top(
    scores: list[Array], k: Array | int, eligible: list[Array | None], method: str | None
) -> list[Array]:
    if method is None and eager.usable(*scores, k, *eligible):
        return eager.top(scores, int(k), eligible)
    counting = _method(method, scores)
    full = [i for i, x in enumerate(scores) if x.size]
    total = sum(x.size for x in scores)
    integers = counts_lib.kind(total)
    if not isinstance(k, jax.Array):
        k = min(max(k, 0), total)  # a Python integer may not fit the dtype of counts
    k = jnp.clip(k, 0, total).astype(integers)
    # A sort would gather shards: of vectors (scores of filters) that is no matter.
    small = all(max(x.shape, default=1) == x.size or radix.on_one_device(x) for x in scores)
    chosen = [jnp.zeros(x.shape, bool) for x in scores]
    if full:
        some = [scores[i] for i in full]
        select: Callable[..., list[Array]] = functools.partial(_counted, method=counting)
        if method is None and total <= _FEW and small:
            select = _sorted
        elif counting == "scatter" and _end_to_end(some):
            select = functools.partial(segments.top, together=True)
        # On a mesh with explicit axes masks lie as scores do.
        found = axes.automatic(select, some)(some, k, [eligible[i] for i in full])
        for i, mask in zip(full, found, strict=True):
            chosen[i] = mask
    return chosen


@jax.jit
def _sorted(scores: list[Array], k: Array, eligible: list[Array | None]) -> list[Array]:
    """The choice of `_top` by one sort."""
    flat = jnp.concatenate([jnp.ravel(x) for x in scores])  # in the common dtype
    allowed = [
        jnp.ones(x.size, bool) if a is None else jnp.ravel(a)
        for x, a in zip(scores, eligible, strict=True)
    ]
    # Ascending: what is eligible first, larger scores first, then by place.
    keys = (~jnp.concatenate(allowed), ~radix.sortable(flat), jnp.arange(flat.size))
    # The last one chosen; everything that stands before it is chosen too.
    last = [lax.dynamic_index_in_dim(x, k - 1, keepdims=False) for x in lax.sort(keys, num_keys=3)]
    equal, before = jnp.ones(flat.shape, bool), jnp.zeros(flat.shape, bool)
    for key, bound in zip(keys, last, strict=True):
        equal, before = equal & (key == bound), before | (equal & (key < bound))
    chosen = (before | equal) & ~keys[0] & (k > 0)  # for k = 0 there is no last one
    ends = [sum(x.size for x in scores[: i + 1]) for i in range(len(scores) - 1)]
    parts = jnp.split(chosen, ends)
    return [part.reshape(x.shape) for part, x in zip(parts, scores, strict=True)]


@functools.partial(jax.jit, static_argnames="method")
def _counted(
    scores: list[Array], k: Array, eligible: list[Array | None], *, method: str
) -> list[Array]:
    """The choice of `_top` by counting."""
    kind = jnp.result_type(*scores)
    width = radix.digit_width(method, sum(x.size for x in scores))
    tally = functools.partial(radix.tally, width=width, count=k.dtype, method=method)
    keys = [radix.sortable(x.astype(kind)) for x in scores]
    cut, left, equal = radix.kth(
        lambda shift, cut: [tally(x, a, shift, cut) for x, a in zip(keys, eligible, strict=True)],
        k,
        bits=kind.itemsize * 8,
        width=width,
    )

    # Of the entries that equal the cut `left` are chosen: all of the first leaves, then the
    # first `rest` of the leaf `partial`, where a search among their positions finds the last.
    through = jnp.cumsum(equal)
    partial = jnp.sum(through <= left, dtype=jnp.int32)
    rest = left - jnp.where(partial > 0, through[partial - 1], 0)
    farthest = max(x.size for x in keys) - 1

    def positions(shift: Any, far: Array | None) -> list[Array]:
        def count(leaf: int) -> Array:
            ties, allowed = keys[leaf] == cut, eligible[leaf]
            backwards = farthest - _flat_index(ties.shape)  # the earliest is the largest
            return tally(backwards, ties if allowed is None else ties & allowed, shift, far)

        branches = [functools.partial(count, leaf) for leaf in range(len(keys))]
        return [lax.switch(jnp.minimum(partial, len(keys) - 1), branches)]

    far, _, _ = radix.kth(positions, rest, bits=max(farthest.bit_length(), 1), width=width)
    end = jnp.where(rest > 0, farthest + 1 - far.astype(k.dtype), 0)
    chosen = []
    for leaf, (x, allowed) in enumerate(zip(keys, eligible, strict=True)):
        until = jnp.where(leaf < partial, x.size, jnp.where(leaf == partial, end, 0))
        mask = (x > cut) | ((x == cut) & (_flat_index(x.shape) < until.astype(jnp.uint32)))
        chosen.append(mask if allowed is None else mask & allowed)
    return chosen


def _flat_index(shape: tuple[int, ...]) -> Array:
    """Row-major position of every entry (uint32), built from one iota per axis."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis, length in enumerate(shape):
        index = index * length + lax.broadcasted_iota(jnp.uint32, shape, axis)
    return index


def _method(method: str | None, scores: Sequence[Array]) -> str:
    if method is None:
        # Shards that are to be scattered are gathered first; comparisons are summed where they are.
        cpu = jax.default_backend() == "cpu" and not any(map(radix.surely_spread, scores))
        return "scatter" if cpu else "compare"
    return registry.lookup(dict.fromkeys(radix.METHODS, method), method, "counting method")


def _scores(leaves: Sequence[Any]) -> list[Array]:
    arrays = [jnp.asarray(x) for x in leaves]
    floating = [jnp.issubdtype(x.dtype, jnp.floating) for x in arrays]
    whole = [x.dtype == jnp.bool_ or jnp.issubdtype(x.dtype, jnp.integer) for x in arrays]
    if not (all(floating) or all(whole)):
        raise ValueError(
            f"scores of dtypes {sorted({str(x.dtype) for x in arrays})} do not compare exactly; "
            "use floating dtypes only, or integers and booleans only"
        )
    arrays = [radix.widened(x) for x in arrays]
    with jax.numpy_dtype_promotion("standard"):  # callers may ask for strict promotion
        kind = jnp.result_type(*arrays) if arrays else None
    return [x.astype(kind) for x in arrays]  # widening keeps order and ties


def _count(k: Any) -> Array | int:
    if isinstance(k, int) and not isinstance(k, bool):
        return k
    array = jnp.asarray(k)
    if array.shape or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"k must be one integer, a count, and is {array.dtype} of shape {array.shape}; "
            "turn a fraction into a count first"
        )
    return array


def _eligible(leaves: Sequence[Any], eligible: Tree | None) -> list[Array | None]:
    if eligible is None:
        return [None] * len(leaves)
    flags = [jnp.asarray(a) for a in jax.tree.leaves(eligible)]
    if [jnp.shape(x) for x in leaves] != [a.shape for a in flags]:
        raise ValueError(
            f"eligible has leaves of shapes {[a.shape for a in flags]}, the scores "
            f"{[jnp.shape(x) for x in leaves]}; give one boolean array per score array"
        )
    return [a.astype(bool) for a in flags]


@functools.partial(jax.jit, static_argnames=("m", "axis"))
def of_blocks(score: Array, live: Array, n: int | Array, m: int, axis: int) -> Array:
    """The `n` largest live entries of every `m` consecutive ones along `axis`.

    Of equal entries the earlier is taken.

    Args:
      score: any shape whose `axis` is divisible by `m`.
      live: bool of that shape.
      n: an integer that may be traced.
    """
    keys = jnp.moveaxis(radix.sortable(_scores([score])[0]), axis, -1)
    size = keys.shape[-1]
    keys = keys.reshape(*keys.shape[:-1], size // m, m)
    live = jnp.moveaxis(live, axis, -1).reshape(keys.shape)
    rank = jnp.zeros(keys.shape, jnp.int32)  # how many of the block come before the entry
    place = jnp.arange(m).reshape((1,) * (keys.ndim - 1) + (m,))
    for j in range(m):
        other = keys[..., j : j + 1]
        first = (other > keys) | ((other == keys) & (j < place))  # of equal ones the earlier
        rank += (first & live[..., j : j + 1]).astype(jnp.int32)
    chosen = live & (rank < n)
    return jnp.moveaxis(chosen.reshape(*keys.shape[:-2], size), -1, axis)
