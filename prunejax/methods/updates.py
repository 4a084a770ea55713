"""What masks make of gradients and of an optimizer's updates."""

import numbers
import reprlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

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


def pairs(
    events: Any, *, zeros: bool = False, needed: bool = True, instead: str = ""
) -> list[tuple[int, int]]:
    """Events as (step, count) pairs, sorted; those of count 0 only if `zeros`.

    Raises:
      ValueError: they are no such pairs, or there is none where one is `needed`; `instead` tells
        what could be given.
    """
    try:
        found = sorted((step, count) for step, count in events if count or zeros)
    except (TypeError, ValueError):
        found = [(-1, -1)]  # as wrong as what is no pair
    whole = all(isinstance(x, numbers.Integral) and 0 <= int(x) < 2**31 for p in found for x in p)
    nothing = needed and not found
    if nothing or not whole:
        raise ValueError(
            f"events {reprlib.repr(events)}: (step >= 0, count > 0) pairs of integers below 2^31, "
            f"at least one{instead if nothing else ''}"
        )
    return [(int(step), int(count)) for step, count in found]


def listed(rules: Any) -> Any:
    """Path rules to be read again and again: an iterator would be empty the second time."""
    return rules if rules is None or isinstance(rules, str) else list(rules)


def where(masks: Tree, tree: Tree) -> Tree:
    """`tree` where masks are live, else 0; None, the gradient of no number, stays."""

    def choose(mask: Array, x: Any) -> Any:
        return None if x is None else _chosen(mask, x, jnp.zeros((), jnp.result_type(x)))

    return jax.tree.map(choose, masks, tree)


def masked_out(masks: Tree, updates: Tree, params: Tree) -> Tree:
    """Updates that take what is dead to 0: w + -w is exactly 0. None stays."""

    def choose(mask: Array, u: Any, w: Any) -> Any:
        return None if u is None else _chosen(mask, u, _back(u, w))

    return jax.tree.map(choose, masks, updates, params)


def applied(params: Tree, updates: Tree) -> Tree:
    """Parameters after their updates; what has none (None) stays as it is."""

    def one(w: Any, u: Any) -> Any:
        return w if u is None else optax.apply_updates(w, u)

    return jax.tree.map(one, params, updates)


def begun(grown: Tree, updates: Tree, params: Tree) -> Tree:
    """Updates that first take what has grown to 0, from wherever it was dropped."""

    def shifted(flags: Array, u: Any, w: Any) -> Any:
        return u if u is None or not flags.ndim else jnp.where(flags, u + _back(u, w), u)

    return jax.tree.map(shifted, grown, updates, params)


def _back(u: Any, w: Any) -> Array:
    """-w in the type of its update, so that nothing is promoted; only what is trained has one."""
    return jnp.negative(w).astype(jnp.result_type(u))


def _chosen(mask: Array, x: Any, y: Array) -> Array:
    if mask.ndim not in (0, jnp.ndim(x)):
        mask = jnp.broadcast_to(mask, jnp.shape(x))
    return jnp.where(mask, x, y)


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
