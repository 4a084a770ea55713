"""Directions in parameter space: random ones, unit length, filter-normalized."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from prunejax.curvature import base, vectors
from prunejax.curvature.host import lenient
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
    vectors.check_like(jax.tree.map(lambda x: x[0], stack), params, "a direction")
    wide = base.upcast(stack)
    return jax.vmap(lambda v: base.project(live, v))(wide), counts.pop()[0]


@jax.jit
def unit(stack: Tree) -> Tree:
    """Each vector of a stack at length 1; zero vectors stay zero."""

    def one(v: Tree) -> Tree:
        norm = jnp.sqrt(base.squared_norm(v))
        return base.scale(jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0), v)

    return jax.vmap(one)(stack)


@lenient
def filter_normalize(direction: Tree, params: Tree, masks: base.Masks = None) -> Tree:
    """Every filter of the direction at the length of the same filter of the parameters.

    A filter is a slice along the last axis (HWIO kernels, [in, out] matrices); lengths are taken
    over live coordinates. Leaves with fewer than two axes get a zero direction, as in the
    authors' experiments, and so do filters that are zero.

    Li et al., NeurIPS 2018, arXiv 1712.09913, section 4.
    """
    live = base.expand_masks(masks, params)
    vectors.check_like(direction, params, "the direction")

    def one(d: jax.Array, w: jax.Array) -> jax.Array:
        if d.ndim < 2:
            return jnp.zeros_like(d)
        axes = tuple(range(d.ndim - 1))
        length, wanted = (jnp.sqrt(jnp.sum(x * x, axes, keepdims=True)) for x in (d, w))
        return d * jnp.where(length > 0, wanted / jnp.where(length > 0, length, 1), 0)

    return jax.tree.map(
        one, base.project(live, base.upcast(direction)), base.project(live, base.upcast(params))
    )


@lenient
def random_directions(
    params: Tree,
    count: int,
    *,
    key: jax.Array,
    normalization: str = "unit",
    masks: base.Masks = None,
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
    lookup({name: name for name in NORMALIZATIONS}, normalization, "normalization")
    params = vectors.check_params(params)
    live = base.expand_masks(masks, params)
    dtype = base.accumulator(jnp.result_type(*jax.tree.leaves(params)))
    key = vectors.named_key(key, "direction")
    drawn = [
        base.project(live, vectors.sample(key, i, params, "gaussian", dtype)) for i in range(count)
    ]
    excluded: tuple[str, ...] = ()
    if normalization == "filter":
        drawn = [filter_normalize(v, params, live) for v in drawn]
        excluded = tuple(path for path, leaf in leaves_with_paths(params) if jnp.ndim(leaf) < 2)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)
    return Directions(unit(stack) if normalization == "unit" else stack, normalization, excluded)
