"""The largest of each segment of a flat array: programs whose size does not grow with the leaves.

A tree of 300 leaves, counted leaf by leaf, is 300 times the loops of one leaf, and XLA compiles
each of them. On one device leaves can be laid end to end instead, a copy at the speed of memory:
one loop then counts them all, whether they are ranked together (one segment) or each by itself (a
segment a leaf; those of about one size share a loop). `prunejax.ops.ranking` is the interface.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from prunejax.ops import radix

Array = jax.Array


class Kind(NamedTuple):
    """How segments up to a size are counted: `slice` entries at a time, digits of `width` bits."""

    upto: float
    slice: int
    width: int


# Longer slices amortize the turn of a loop and must stay in the cache; a histogram of wide digits
# costs as much as some ten thousand entries.
KINDS: tuple[Kind, ...] = (Kind(1 << 16, 1 << 12, 11), Kind(math.inf, radix.SLICE, 16))


def top(
    scores: Sequence[Array], ks: Array, allowed: Sequence[Array | None], *, together: bool
) -> list[Array]:
    """Marks the largest scores of all leaves together, or of each leaf by itself.

    Under `vmap` members are worked through one after the other: a histogram of several members at
    once misses the cache.

    Args:
      scores: arrays of one dtype (`radix.widened`), none empty, each on one device.
      ks: how many: one integer if `together`, else one a leaf; at least 0, and clamped from above.
      allowed: booleans of the scores' shapes, what may be chosen; None: all of a leaf.
      together: one ranking over all leaves.

    Returns: Boolean arrays of the scores' shapes.
    """
    scores = [lax.stop_gradient(x) for x in scores]  # a mark has no derivative
    if all(a is None for a in allowed):
        return _mapped(together)(scores, ks, None)
    shapes = [x.shape for x in scores]
    flags = [jnp.ones(s, bool) if a is None else a for s, a in zip(shapes, allowed, strict=True)]
    return _mapped(together)(scores, ks, flags)


@functools.cache
def _mapped(together: bool) -> Any:
    @jax.custom_batching.custom_vmap
    def select(scores: list[Array], ks: Array, allowed: list[Array] | None) -> list[Array]:
        return _top(scores, ks, allowed, together)

    @select.def_vmap
    def one_by_one(axis_size: int, batched: Any, *arguments: Any) -> tuple[Any, Any]:
        leaves, structure = jax.tree.flatten(arguments)
        flags = jax.tree.leaves(batched)
        moving = [x for x, flag in zip(leaves, flags, strict=True) if flag]

        def member(moving: list[Array]) -> list[Array]:
            rest = iter(moving)
            whole = [next(rest) if flag else x for x, flag in zip(leaves, flags, strict=True)]
            return select(*jax.tree.unflatten(structure, whole))

        found = lax.map(member, moving)
        return found, [True] * len(found)

    return jax.jit(select)


def _top(
    scores: list[Array], ks: Array, allowed: list[Array] | None, together: bool
) -> list[Array]:
    sizes = [x.size for x in scores]
    each = [sum(sizes)] * len(sizes) if together else sizes
    kinds = [next(kind for kind in KINDS if size <= kind.upto) for size in each]
    chosen = list(scores)
    for kind in sorted(set(kinds)):
        places = [i for i, k in enumerate(kinds) if k == kind]
        some = [scores[i] for i in places]
        flat = _laid_out(some, kind.slice)
        flags = None if allowed is None else _laid_out([allowed[i] for i in places], kind.slice)
        lengths = np.array([x.size for x in some])
        if together:
            segments, counts = np.array([lengths.sum()]), ks[None]
        else:
            segments, counts = lengths, ks if len(places) == len(kinds) else ks[np.array(places)]
        marks, left = _largest(flat, flags, segments, counts, kind)
        for i, mask in zip(places, _parted(marks, [x.shape for x in some], left), strict=True):
            chosen[i] = mask
    return chosen


def _laid_out(leaves: list[Array], spare: int) -> Array:
    """The leaves end to end, then a slice's length of zeros: the last slice is a whole one, too."""
    # What makes the leaves is not fused into this copy, nor the copy into what reads it.
    parts = lax.optimization_barrier([jnp.ravel(x) for x in leaves])
    flat = jnp.concatenate([*parts, jnp.zeros_like(parts[0], shape=(spare,))])
    return lax.optimization_barrier(flat)


def _parted(flat: Array, shapes: list[tuple[int, ...]], left: Array) -> list[Array]:
    """The parts of `flat` in their shapes.

    Where a part begins is a value and no constant of its routine: parts of one size then share one
    routine, which is compiled once and not once a leaf. The compiler folds constants through
    additions, barriers and calls; what a branch gives it cannot know, as long as the condition is
    what came out of a loop: `left`, which is never negative.
    """
    sizes = [math.prod(shape) for shape in shapes]
    starts = [int(start) for start in np.cumsum(sizes) - sizes]
    known = lax.cond(
        left >= 0,
        lambda: [jnp.full_like(left, start) for start in starts],
        lambda: [jnp.full_like(left, 0) for _ in starts],
    )
    return [
        lax.dynamic_slice(flat, (start,), (size,)).reshape(shape)
        for start, size, shape in zip(known, sizes, shapes, strict=True)
    ]


def _largest(
    flat: Array, allowed: Array | None, sizes: np.ndarray, ks: Array, kind: Kind
) -> tuple[Array, Array]:
    """Marks in the flat array the `ks[i]` largest of segment i; and what is left to mark: 0."""
    count = ks.dtype
    for x in (flat, allowed):  # inside `shard_map` all that loops carry has one type
        ks = ks if x is None else ks + jnp.zeros_like(x, count, shape=())
    marks = jnp.zeros_like(ks, bool, shape=flat.shape)
    starts = np.cumsum(sizes) - sizes
    if len(sizes) == 1:
        return _one(flat, allowed, 0, int(sizes[0]), ks[0], marks, kind)
    table = jnp.asarray(np.stack([starts, sizes]), count)

    def segment(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        # In order: what a last slice marks beyond its segment is overwritten by the next one.
        return _one(flat, allowed, table[0, i], table[1, i], ks[i], state[0], kind)

    return lax.fori_loop(0, len(sizes), segment, (marks, jnp.zeros_like(ks[0])))


def _one(
    flat: Array, allowed: Array | None, start: Any, size: Any, k: Array, marks: Array, kind: Kind
) -> tuple[Array, Array]:
    slices = (size + kind.slice - 1) // kind.slice
    bits = flat.dtype.itemsize * 8

    def part(j: Any) -> tuple[Array, Array]:
        """Keys of a slice, and which of them belong to the segment and may be chosen."""
        take = functools.partial(lax.dynamic_slice_in_dim, axis=0, slice_size=kind.slice)
        begin = start + j * kind.slice
        # the last slice reaches into the next segment
        inside = jnp.arange(kind.slice, dtype=k.dtype) < size - j * kind.slice
        keys = radix.sortable(take(flat, begin))
        return keys, inside if allowed is None else inside & take(allowed, begin)

    def histogram(shift: Any, cut: Array | None) -> list[Array]:
        def digits(j: Any) -> Array:
            keys, active = part(j)
            return radix.digits(keys, active, shift, cut, width=kind.width)

        return [radix.accumulate(digits, slices, like=k, width=kind.width)]

    cut, left, _ = radix.kth(histogram, k, bits=bits, width=min(kind.width, bits), rolled=True)

    def mark(j: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        marks, left = state
        keys, active = part(j)
        ties = active & (keys == cut)
        equal = jnp.sum(ties, dtype=k.dtype)
        some = jnp.clip(left, 0, equal)
        # Rarely, and in one slice only, some of the equal ones are chosen and others not.
        chosen = lax.cond(
            (some > 0) & (some < equal),
            lambda: ties & (jnp.arange(kind.slice) <= _place(ties, some)),
            lambda: ties & (some > 0),
        )
        new = chosen | (active & (keys > cut))
        begin = jnp.asarray(start + j * kind.slice, k.dtype)
        return lax.dynamic_update_slice(marks, new, (begin,)), left - some

    return lax.fori_loop(0, slices, mark, (marks, left))


def _place(flags: Array, n: Array) -> Array:
    """Position of the n-th True (n is 1 or more, and there are as many).

    By rows, then within the row: a cumulative sum takes longer to compile than all else here.
    """
    side = 1 << (flags.size.bit_length() // 2)
    rows = flags.reshape(-1, side)
    row, before = _reached(jnp.sum(rows, axis=1, dtype=n.dtype), n)
    column, _ = _reached(rows[row].astype(n.dtype), n - before)
    return row * side + column


def _reached(counts: Array, n: Array) -> tuple[Array, Array]:
    """The first place up to which the counts sum to n or more, and their sum before it."""
    index = jnp.arange(counts.size)
    before = jnp.sum(jnp.where(index[None] < index[:, None], counts[None], 0), axis=1)
    place = jnp.sum(before + counts < n)
    return place, before[place]
