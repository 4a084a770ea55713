"""Directions to move the parameters along, and what slope and curvature say of one move.

Directions are a stack of vectors: random, of unit length, or filter-normalized. For a displacement
d (for pruning: d = -w on the targeted coordinates, else 0) a forecast of the loss is

    first order     g'd
    second order    g'd + d'Hd / 2
    measured        L(w + d) - L(w)

g'd and d'Hd come from one pass of nested forward mode; no gradient is formed. LeCun et al. 1990
(optimal brain damage) and Hassibi & Stork 1993 rank weights by this expansion; here the whole
event's displacement goes in at once, so interactions between targeted weights count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from prunejax.curvature import kernels, splits, vectors
from prunejax.curvature.callables import as_argument, call, lenient, on_host
from prunejax.registry import lookup
from prunejax.trees import leaves_with_paths

Tree = Any
NORMALIZATIONS = ("unit", "filter", "none")


@dataclass(frozen=True)
class Directions:
    """Directions and how they were made.

    Attributes:
      vectors: tree like the parameters with a leading axis of directions.
      normalization: "unit" (length 1 over all live coordinates), "filter", or "none".
      excluded: paths of the leaves that do not move: those with fewer than two axes (biases,
        normalization scales) under filter normalization, none otherwise.
    """

    vectors: Tree
    normalization: str
    excluded: tuple[str, ...] = ()


def stack_of(directions: "Directions | Tree", params: Tree, live: Tree | None) -> tuple[Tree, int]:
    """The directions as a stack on the live subspace, in accumulation dtype, and their number.

    Raises:
      ValueError: not a tree like params with one leading axis more, of the same length everywhere.
    """
    stack = directions.vectors if isinstance(directions, Directions) else directions
    counts = {jnp.shape(x)[:1] for x in jax.tree.leaves(stack)}
    if len(counts) != 1 or counts & {(), (0,)}:
        raise ValueError(
            "directions need a leading axis of the same length at every leaf, got leading axes "
            f"{sorted(counts)}; a single direction is given as x[None]"
        )
    vectors.check_like(jax.eval_shape(vectors.first, stack), params, "a direction")
    wide = vectors.upcast(stack)
    # dead coordinates of a direction do not move
    return jax.vmap(lambda v: vectors.project(live, v))(wide), counts.pop()[0]


@jax.jit
def unit(stack: Tree) -> Tree:
    """Each vector of a stack at length 1; zero vectors stay zero."""

    def one(v: Tree) -> Tree:
        norm = vectors.norm(v)
        return vectors.scale(jnp.where(norm > 0, 1 / vectors.unless_zero(norm), 0), v)

    return jax.vmap(one)(stack)


@lenient
def filter_normalize(direction: Tree, params: Tree, masks: vectors.Masks = None) -> Tree:
    """Every filter of the direction at the length of the same filter of the parameters.

    A filter is a slice along the last axis (HWIO kernels, [in, out] matrices); lengths are taken
    over live coordinates. Leaves with fewer than two axes get a zero direction, as in the
    authors' experiments, and so do filters that are zero.

    Li et al., NeurIPS 2018, arXiv 1712.09913, section 4.
    """
    live = vectors.expand_masks(masks, params)
    vectors.check_like(direction, params, "the direction")

    def one(d: jax.Array, w: jax.Array) -> jax.Array:
        if d.ndim < 2:
            return jnp.zeros_like(d)
        axes = tuple(range(d.ndim - 1))
        length, wanted = (jnp.sqrt(jnp.sum(x * x, axes, keepdims=True)) for x in (d, w))
        return d * jnp.where(length > 0, wanted / vectors.unless_zero(length), 0)

    wide = (vectors.project(live, vectors.upcast(tree)) for tree in (direction, params))
    return jax.tree.map(one, *wide)


@lenient
def random_directions(
    params: Tree,
    count: int,
    *,
    key: jax.Array,
    normalization: str = "unit",
    masks: vectors.Masks = None,
) -> Directions:
    """Gaussian directions on the live subspace.

    Args:
      params: pytree of floating-point arrays.
      count: how many, at least 1.
      key: JAX PRNG key; direction i depends on (key, i) alone.
      normalization: one of `NORMALIZATIONS`.
      masks: True = live.

    Raises:
      ValueError: count below 1, or an unknown normalization.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    lookup(dict.fromkeys(NORMALIZATIONS), normalization, "normalization")
    params, live = vectors.checked(params, masks)
    key, dtype = vectors.named_key(key, "direction"), vectors.sum_dtype(params)
    drawn = [
        vectors.project(live, vectors.sample(key, i, params, "gaussian", dtype))
        for i in range(count)
    ]
    excluded: tuple[str, ...] = ()
    if normalization == "filter":
        drawn = [filter_normalize(v, params, live) for v in drawn]
        excluded = tuple(path for path, leaf in leaves_with_paths(params) if jnp.ndim(leaf) < 2)
    stack = vectors.stacked(drawn)
    return Directions(unit(stack) if normalization == "unit" else stack, normalization, excluded)


@dataclass(frozen=True)
class Forecast:
    """Predicted and measured change of the mean loss under a displacement d.

    Attributes:
      first_order: g'd, nats.
      second_order: g'd + d'Hd / 2, nats.
      curvature: d'Hd, nats.
      measured: L(w + d) - L(w), or None where it was not asked for.
      loss: L(w).
      squared_norm: ||d||^2 on the live subspace.
      examples: the loss is a mean over, 0 without batches.
      live_dim: coordinates that are live.
    """

    first_order: float
    second_order: float
    curvature: float
    measured: float | None
    loss: float
    squared_norm: float
    examples: int
    live_dim: int


@lenient
def removal(params: Tree, targeted: vectors.Masks) -> Tree:
    """The displacement that zeroes the targeted coordinates: -w there, 0 elsewhere.

    Args:
      params: pytree of floating-point arrays.
      targeted: bools like a mask tree (broadcasting to the parameters), True = to be removed.

    Returns:
      A tree like params in its accumulation dtype.
    """
    live = vectors.expand_masks(targeted, params)  # True marks what goes: P w is what is taken away
    return vectors.scale(-1.0, vectors.project(live, params))


@jax.jit
def _expand(loss: Any, params: Tree, d: Tree, batch: Tree, weight: Any) -> jax.Array:
    """[3]: weight times (L, g'd, d'Hd)."""
    tangent = vectors.cast_like(d, params)
    value, slope = kernels.pushforward(kernels.scalar(loss, batch), params, tangent)
    bend = kernels.hessian_forms((loss,), params, batch, 1)(tangent)
    return weight * vectors.upcast(jnp.stack([value, slope, bend.astype(value.dtype)]))


@jax.jit
def _displaced(loss: Any, params: Tree, d: Tree, batch: Tree, weight: Any) -> jax.Array:
    moved = vectors.cast_like(vectors.add(params, d), params)  # w - w is 0, as after the event
    return weight * vectors.upcast(call(loss, moved, batch))


@on_host()
def forecast(
    loss: Callable[..., Any],
    params: Tree,
    displacement: Tree,
    batches: splits.Batches = None,
    *,
    masks: vectors.Masks = None,
    measure: bool = True,
) -> Forecast:
    """Predicts the change of the loss from w to w + d to first and second order.

    Args:
      loss: `loss(params)` or `loss(params, batch)`, the mean over the batch. With BatchNorm the
        loss should close over the statistics that the event leaves in place.
      params: pytree of floating-point arrays, before the event.
      displacement: tree like params; `removal(params, targeted)` for pruning.
      batches: None, one batch, or a list of batches, weighted by size.
      masks: True = live; the displacement of dead coordinates does not count.
      measure: also evaluate L(w + d).

    Raises:
      ValueError: the displacement does not fit the parameters.
    """
    params, live = vectors.checked(params, masks)
    vectors.check_like(displacement, params, "the displacement")
    d = vectors.project(live, vectors.upcast(displacement))
    fn = as_argument(loss)
    weighted, examples = splits.weighted(batches)
    terms, moved = [0.0, 0.0, 0.0], 0.0
    for batch, weight in weighted:
        part = _expand(fn, params, d, batch, weight)
        terms = [a + float(b) for a, b in zip(terms, part, strict=True)]  # in float64 on the host
        moved += float(_displaced(fn, params, d, batch, weight)) if measure else 0.0
    value, slope, curvature = terms
    return Forecast(
        first_order=slope, second_order=slope + curvature / 2, curvature=curvature,
        measured=moved - value if measure else None, loss=value,
        squared_norm=float(vectors.squared_norm(d)), examples=examples,
        live_dim=vectors.live_dimension(live, params),
    )  # fmt: skip
