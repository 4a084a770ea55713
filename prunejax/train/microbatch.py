"""A batch's gradient as the mean over equal parts of it, one part at a time: less memory at once.

What is computed for a part stays small: on accelerators larger batches fit, on a CPU the arrays
stay in the cache. The result differs from that of the whole batch by rounding only, as long as
examples do not see each other (no BatchNorm).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def parts(batch: int, size: int) -> int:
    """The number of parts: 1 where `size` is 0, not below `batch`, or does not divide it.

    Args: batch: examples. size: of a part, in examples; 0: no parts.
    """
    return batch // size if size and batch % size == 0 else 1


def mean_over_parts(fn: Callable[[Tree, jax.Array], Tree], batch: Tree, count: int) -> Tree:
    """The mean of `fn(part, number)` over `count` parts of a batch (integers: the sum).

    A part has every `count`-th example, so that a batch that is sharded over devices stays where
    it is and each of them has its share of every part.

    Args:
      fn: a pure function of a part and its number, of results that have the same shapes.
      batch: tree of arrays whose leading axis are the examples, a multiple of `count`.
      count: parts.
    """

    def part(number: jax.Array) -> Tree:
        def pick(x: jax.Array) -> jax.Array:
            split = x.reshape(-1, count, *x.shape[1:])  # part i: examples i, i + count, ...
            return jax.lax.dynamic_index_in_dim(split, number, axis=1, keepdims=False)

        return fn(jax.tree.map(pick, batch), number)

    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(part, jnp.int32(0))
    )
    total = jax.lax.fori_loop(0, count, lambda i, sums: jax.tree.map(jnp.add, sums, part(i)), zeros)
    # Parts are equal, so that the mean of their means is that of the examples.
    return jax.tree.map(lambda s: s / count if jnp.issubdtype(s.dtype, jnp.inexact) else s, total)
