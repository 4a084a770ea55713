"""What masks make of gradients and of an optimizer's updates."""

from typing import Any

import jax
import jax.numpy as jnp

from prunejax import masks as masks_lib
from prunejax.methods.table import Method
from prunejax.ops.counts import among as among
from prunejax.ops.counts import live as live

Array = jax.Array
Tree = Any
LEAST_KEPT = (1, 200)  # by a threshold: the share of a layer that always stays


def above(scores: Array, threshold: Array | float) -> Array:
    """Where sigmoid(scores) exceeds a threshold, and the best 0.5 % of them whatever they are.

    Args:
      scores: of one layer, float [...] of the kernel's shape.
      threshold: in [0, 1], a scalar [].

    Returns:
      bool [...].
    """
    part, of = LEAST_KEPT
    # Rounded up: one stays of the smallest layer.
    least = masks_lib.prune(scores, -(-scores.size * part // of))
    return least | (jax.nn.sigmoid(scores) > threshold)


def where(masks: Tree, tree: Tree, other: Tree | None = None) -> Tree:
    """`tree` where masks are live, else `other` (0); None, the gradient of no number, stays."""

    def choose(mask: Array, x: Any, y: Any = None) -> Any:
        if x is None:
            return None
        if mask.ndim not in (0, jnp.ndim(x)):
            mask = jnp.broadcast_to(mask, jnp.shape(x))
        # Of the update's own type: nothing is promoted.
        y = jnp.zeros((), jnp.result_type(x)) if y is None else y.astype(jnp.result_type(x))
        return jnp.where(mask, x, y)

    return jax.tree.map(choose, masks, tree, *(() if other is None else (other,)))


def begun(grown: Tree, updates: Tree, back: Tree) -> Tree:
    """Updates that first take what has grown to 0, from wherever it was dropped."""

    def shifted(flags: Array, u: Any, b: Array) -> Any:
        return u if u is None or not flags.ndim else jnp.where(flags, u + b.astype(u.dtype), u)

    return jax.tree.map(shifted, grown, updates, back)


def steered(m: Method, gradients: Tree, masks: Tree, params: Tree) -> Tree:
    """Straight-through gradients with SR-STE's pull of dead weights towards 0."""
    if not m.dead_decay:
        return gradients

    def pull(mask: Array, g: Any, w: Array) -> Any:
        if g is None or not mask.ndim:
            return g
        # Before the optimizer: its momentum sees the pull.
        decayed = (m.dead_decay * w).astype(g.dtype)
        return jnp.where(mask, g, g + decayed)

    return jax.tree.map(pull, masks, gradients, params)
