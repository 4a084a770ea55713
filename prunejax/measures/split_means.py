"""The mean of `evaluate(state, batch)` over a split, inside a compiled program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prunejax.curvature import base

Tree = Any


def named(values: Any) -> dict[str, jax.Array]:
    """What an evaluation returns as a dict of scalars; a single scalar is called "loss"."""
    found = values if isinstance(values, dict) else {"loss": values}
    for name, value in found.items():
        if isinstance(value, tuple) or jnp.shape(value) != ():
            raise ValueError(
                "evaluate must return a scalar, or a dict of them (means over the batch); "
                f"{name!r} has shape {jax.tree.map(jnp.shape, value)}"
            )
    return found


def over_split(evaluate: Callable[[Tree], Any], groups: list[Tree]) -> dict[str, jax.Array]:
    """Name -> mean over all examples of `evaluate(batch)`, means over batches weighted by size.

    Args:
      evaluate: the means over one batch (or, for the group None, over all there is).
      groups: from `curvature.perturb.stacked_groups`: batches of one size, stacked.
    """
    totals: Any = None
    count = 0
    for group in groups:
        if group is None:
            return base.upcast(named(evaluate(None)))
        length, size = jax.tree.leaves(group)[0].shape[:2]

        def add(total: Any, batch: Tree) -> tuple[Any, None]:
            return base.add(total, named(evaluate(batch))), None

        first = jax.tree.map(lambda x: x[0], group)
        shapes = jax.eval_shape(lambda batch: base.upcast(named(evaluate(batch))), first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total = base.scale(size, jax.lax.scan(add, zeros, group)[0])
        totals = total if totals is None else base.add(totals, total)
        count += length * size
    return base.scale(1.0 / count, totals)


def examples(groups: list[Tree]) -> int:
    """Examples of a split, 0 where there is no data."""
    sizes = [jax.tree.leaves(group)[0].shape[:2] for group in groups if group is not None]
    return sum(count * size for count, size in sizes)
