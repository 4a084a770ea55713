"""The mask algebra."""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def ones(tree: Tree) -> Tree:
    """Masks that prune nothing: the scalar True at every leaf."""
    return jax.tree.map(lambda _: jnp.array(True), tree)


def apply(masks: Tree, tree: Tree) -> Tree:
    """`where(mask, x, 0)` leaf by leaf: NaN or infinity in a dead entry cannot leak."""
    return jax.tree.map(lambda m, x: jnp.where(m, x, jnp.zeros((), x.dtype)), masks, tree)
