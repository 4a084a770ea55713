"""Means of what an evaluation gives over all examples of a split, batches of one size in a scan;
chunks of a batch in one program.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from prunejax.curvature import vectors
from prunejax.curvature.splits import Batches, batch_list, batch_size

Tree = Any


def named(values: Any) -> dict[str, jax.Array]:
    """What an evaluation returns as a dict of scalars; a single scalar is called "loss"."""
    found = values if isinstance(values, dict) else {"loss": values}
    for name, value in found.items():
        if isinstance(value, tuple) or jnp.shape(value) != ():
            raise ValueError(
                "evaluate must return scalars (means over the batch), one or a dict of them; "
                f"{name!r} has shape {jax.tree.map(jnp.shape, value)}"
            )
    return found


def stacked_groups(batches: Batches, cut: int | None) -> list[Tree]:
    """Batches of equal size stacked along a new leading axis, for a scan; at least one group.

    Raises:
      ValueError: `cut`, the examples of a piece, is not positive, or given with a list of batches.
    """
    found = batch_list(batches)
    if found[0] is None:
        return [None]
    if cut is not None:
        if found[0] is not batches:
            raise ValueError("batch_size cuts one batch; a list of batches is cut already")
        if cut < 1:
            raise ValueError(f"batch_size must be at least 1, got {cut}")
        n = batch_size(batches)
        found = [vectors.index(batches, slice(i, i + cut)) for i in range(0, n, cut)]
    sizes = [batch_size(batch) for batch in found]
    return [
        vectors.stacked([batch for batch, n in zip(found, sizes, strict=True) if n == size])
        for size in dict.fromkeys(sizes)  # in order of appearance: the order of the sums
    ]


def over_split(evaluate: Callable[[Tree], Any], groups: list[Tree]) -> dict[str, jax.Array]:
    """Name -> mean over all examples of `evaluate(batch)`, means over batches weighted by size.

    Args:
      evaluate: the means, scalars, over one batch (or, for the group None, over all there is).
      groups: from `stacked_groups`.
    """
    totals: Any = None
    count = 0
    for group in groups:
        if group is None:
            return vectors.upcast(named(evaluate(None)))
        length, size = jax.tree.leaves(group)[0].shape[:2]

        def add(total: Any, batch: Tree) -> tuple[Any, None]:
            return vectors.add(total, named(evaluate(batch))), None

        first = vectors.index(group, 0)
        shapes = jax.eval_shape(lambda batch: vectors.upcast(named(evaluate(batch))), first)
        # At least float32, whatever `evaluate` returns.
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        # a batch's mean counts by its examples
        total = vectors.scale(size, jax.lax.scan(add, zeros, group)[0])
        totals = total if totals is None else vectors.add(totals, total)
        count += length * size
    return vectors.scale(1.0 / count, totals)


def examples(groups: list[Tree]) -> int:
    """Examples of a split, 0 where there is no data."""
    sizes = [jax.tree.leaves(group)[0].shape[:2] for group in groups if group is not None]
    return sum(count * size for count, size in sizes)


def in_turn(
    one: Callable[[Tree, Tree, jax.Array], tuple[Tree, jax.Array]],
    carry: Tree,
    batch: Tree,
    weight: jax.Array,
    chunk: int,
) -> tuple[Tree, jax.Array]:
    """`one(carry, chunk of the batch, its weights)` for each chunk that has an example of weight.

    In one program: on a CPU the memory that a call works in is taken from the system anew, page by
    page, which for convolutions took a quarter of the time of a call for each chunk.

    Args:
      one: gives what is carried on, and values [chunk].
      carry: what it begins with.
      batch: a pytree with n examples along the leading axes.
      weight: [n], 0 behind the examples that count.
      chunk: examples at once; n is a multiple of it.

    Returns: What was carried last, and the values [n], 0 of chunks without weight.
    """
    n = len(weight)
    if n == chunk:
        return one(carry, batch, weight)

    def step(i: jax.Array, held: tuple[Tree, jax.Array]) -> tuple[Tree, jax.Array]:
        part, own = jax.tree.map(
            lambda x: lax.dynamic_slice_in_dim(x, i * chunk, chunk), (batch, weight)
        )
        carry, values = one(held[0], part, own)
        return carry, lax.dynamic_update_slice_in_dim(held[1], values, i * chunk, 0)

    count = (jnp.sum(weight != 0) + chunk - 1) // chunk  # chunks of copies alone are left out
    return lax.fori_loop(0, count, step, (carry, jnp.zeros_like(weight)))
