"""What masks make of gradients and of an optimizer's updates."""

import reprlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from prunejax import masks as masks_lib
from prunejax import registry, scores
from prunejax.methods.table import Method
from prunejax.ops import counts as counting

Array = jax.Array
Tree = Any
LEAST_KEPT = (1, 200)  # by a threshold: the share of a layer that always stays


def above(s: Array, threshold: Array | float) -> Array:
    """Where sigmoid(s) exceeds a threshold, and the best 0.5 % of them whatever they are.

    Args:
      s: scores of one layer, float [...] of the kernel's shape.
      threshold: in [0, 1], a scalar [].

    Returns: bool [...].
    """
    part, of = LEAST_KEPT
    # Rounded up: one stays of the smallest layer.
    least = masks_lib.prune(s, -(-s.size * part // of))
    return least | (jax.nn.sigmoid(s) > threshold)


def pairs(
    events: Any, *, zeros: bool = False, needed: bool = True, instead: str = ""
) -> list[tuple[int, int]]:
    """Events as (step, count) pairs, sorted; those of count 0 only if `zeros`.

    Raises ValueError: they are no such pairs, or there is none where one is `needed`; `instead`
    tells what could be given.
    """
    try:
        found = sorted((step, count) for step, count in events if count or zeros)
    except (TypeError, ValueError):
        found = [(-1, -1)]  # as wrong as what is no pair
    whole = all(registry.is_whole(x) and 0 <= int(x) < 2**31 for p in found for x in p)
    nothing = needed and not found
    if nothing or not whole:
        raise ValueError(
            f"events {reprlib.repr(events)}: (step >= 0, count > 0) pairs of integers below 2^31, "
            f"at least one{instead if nothing else ''}"
        )
    return [(int(step), int(count)) for step, count in found]


def enough(what: str, asked: int, masks: Mapping[str, Array], scope: str) -> None:
    """Refuses events that ask for more units than there are.

    Args: what: events do to units. masks: bool [...] by leaf path; traced, they count as whole.

    Raises ValueError: names the leaf that has too few, with the scope "layer".
    """
    there = {
        path: m.size if isinstance(m, jax.core.Tracer) else counting.live(m)
        for path, m in masks.items()
    }
    most, where, each = sum(there.values()), "there are", ""
    if scope == "layer" and there:
        least = min(there, key=lambda path: there[path])
        most, where, each = there[least], f"leaf {least!r}, the smallest, has", " from each leaf"
    if asked > most:
        raise ValueError(
            f"events {what} {asked} units in all{each}, but {where} {most}; ask for fewer, or name "
            "other leaves with rules="
        )


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


def learnt(s: Array, w: Array, gradient: Array, rate: Any, pull: Any = None) -> Array:
    """Score parameters after a step: `S - rate (w dL/d(w m) + pull d sigmoid(S)/dS)`.

    Args: s: [...]. w: [...]. gradient: [...]. rate: a number. pull: one, or None.
    """
    # By the weight at its value, also where it is dead: such scores may rise.
    slope = scores.product(w, gradient)
    if pull is not None:
        # The derivative of the sigmoid, without 1 - sigmoid(s), which cancels where s is large.
        slope += pull * jax.nn.sigmoid(s) * jax.nn.sigmoid(-s)
    return s - rate * slope  # plain descent, whatever trains the weights


def pulled(mask: Array, gradient: Array, w: Array, decay: Any) -> Array:
    """`gradient` [...] and `decay` * `w` [...] where `mask` [...] is dead: momentum sees SR-STE."""
    return jnp.where(mask, gradient, gradient + (decay * w).astype(gradient.dtype))


def steered(m: Method, gradients: Tree, masks: Tree, params: Tree) -> Tree:
    """Straight-through gradients with SR-STE's pull of dead weights towards 0."""
    if not m.dead_decay:
        return gradients

    def pull(mask: Array, g: Any, w: Array) -> Any:
        return g if g is None or not mask.ndim else pulled(mask, g, w, m.dead_decay)

    return jax.tree.map(pull, masks, gradients, params)
