"""Vectors that are pytrees: stacks of them, algebra, layout, random probes, directions.

Nothing here ravels or concatenates a tree, so leaves keep their sharding; contractions run at the
highest matmul precision on vectors that are in their accumulation dtype (see `base`).

A *stack* is a tree whose leaves carry one more axis in front: `[m, ...]` holds m vectors. The
directions of `perturb` are such a stack: random, of unit length, or filter-normalized.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from prunejax import trees
from prunejax.curvature import base
from prunejax.curvature.callables import lenient
from prunejax.registry import lookup
from prunejax.trees import leaves_with_paths

Tree = Any
DISTRIBUTIONS = ("rademacher", "gaussian", "uniform")
HIGHEST = lax.Precision.HIGHEST


def check_params(params: Tree) -> Tree:
    """`params` as JAX arrays; ValueError unless every leaf is a real floating-point array."""
    found = trees.leaves_with_paths(params)
    if not found:
        raise ValueError("params has no leaves; give a pytree with at least one array")
    for path, leaf in found:
        dtype = getattr(leaf, "dtype", None) or np.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"parameter {path!r} has dtype {dtype}; curvature needs real floating-point "
                "leaves. Close the loss over the other leaves and pass only the trainable ones"
            )
    return jax.tree.map(jnp.asarray, params)


def check_like(tree: Tree, params: Tree, name: str) -> None:
    """ValueError unless `tree` has the structure and the leaf shapes of `params`."""
    ours: Any = jax.tree.structure(tree)
    theirs: Any = jax.tree.structure(params)
    if ours != theirs:
        raise ValueError(
            f"{name} has structure {base.short(tree)}, params has {base.short(params)}; they must "
            "agree (vectors and directions come before the batches)"
        )
    for (path, x), p in zip(trees.leaves_with_paths(tree), jax.tree.leaves(params), strict=True):
        if jnp.shape(x) != jnp.shape(p):
            raise ValueError(
                f"{name} at {path!r} has shape {jnp.shape(x)}, the parameter has {jnp.shape(p)} "
                "(vectors and directions come before the batches)"
            )


def norm(a: Tree) -> jax.Array:
    """The Euclidean norm over all leaves, a scalar."""
    return jnp.sqrt(base.squared_norm(a))


def index(stack: Tree, i: Any) -> Tree:
    """Vector i of a stack."""
    return jax.tree.map(lambda x: x[i], stack)


def stacked(found: list[Tree]) -> Tree:
    """The stack of a list of vectors, at least one."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


@jax.jit
def take(stack: Tree, order: Any) -> Tree:
    """The stack of the vectors at the positions `order`."""
    return jax.tree.map(lambda x: x[order], stack)


def _contract(x: jax.Array, y: jax.Array, dims: Any) -> jax.Array:
    """A contraction over every axis that may be sharded; its result is whole on each device."""
    sharding = jax.typeof(x).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    out = NamedSharding(sharding.mesh, PartitionSpec()) if explicit else None
    # Float32 in full: the orthogonality of a basis rests on it.
    return lax.dot_general(x, y, dims, precision=HIGHEST, out_sharding=out)


def gram(a: Tree, b: Tree) -> jax.Array:
    """The matrix A'B [m, n] of all inner products of two stacks."""

    def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
        axes = tuple(range(1, x.ndim))
        return _contract(x, y, ((axes, axes), ((), ())))

    return sum(jax.tree.leaves(jax.tree.map(leaf, a, b)), start=jnp.zeros(()))


def stack_dot(stack: Tree, v: Tree) -> jax.Array:
    """V'v [m]: the inner products of a stack's vectors with v."""

    def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
        return _contract(x, y, ((tuple(range(1, x.ndim)), tuple(range(y.ndim))), ((), ())))

    return sum(jax.tree.leaves(jax.tree.map(leaf, stack, v)), start=jnp.zeros(()))


def combine(coefficients: jax.Array, stack: Tree) -> Tree:
    """Σ_i c_i V_i for `coefficients` c [m], or one vector per row for c [n, m] (again a stack)."""

    def leaf(x: jax.Array) -> jax.Array:
        dims = (((coefficients.ndim - 1,), (0,)), ((), ()))
        return lax.dot_general(coefficients.astype(x.dtype), x, dims, precision=HIGHEST)

    return jax.tree.map(leaf, stack)


def shardings(params: Tree) -> tuple[Any, ...]:
    """Per leaf the sharding of a parameter spread over several devices, else None (hashable)."""

    def of(leaf: Any) -> Any:
        if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
            return None
        return leaf.sharding if len(leaf.sharding.device_set) > 1 else None

    return tuple(of(leaf) for leaf in jax.tree.leaves(params))


def place(tree: Tree, placed: tuple[Any, ...], stacked: bool = False) -> Tree:
    """`tree` laid out as `shardings` says (inside jit, whichever type the mesh's axes have).

    The leading axis of a stack stays whole.
    """

    def one(x: jax.Array, s: Any) -> jax.Array:
        if s is None or (stacked and not isinstance(s, NamedSharding)):
            return x
        if not isinstance(s, NamedSharding):
            return lax.with_sharding_constraint(x, s)
        wanted = NamedSharding(s.mesh, PartitionSpec(None, *s.spec)) if stacked else s
        if AxisType.Explicit in s.mesh.axis_types:
            return jax.sharding.reshard(x, wanted)
        return lax.with_sharding_constraint(x, wanted)

    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [one(x, s) for x, s in zip(leaves, placed, strict=True)])


def named_key(key: jax.Array, name: str) -> jax.Array:
    """A key (scalar) for one purpose: `key` folded with the CRC-32 of the purpose's name."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def sample(key: jax.Array, i: Any, like: Tree, distribution: str, dtype: Any) -> Tree:
    """Random vector i of the stream `key`: a pure function of (key, i), of `like`'s shapes.

    Args:
      key: typed or raw PRNG key.
      i: index of the vector, may be traced.
      like: tree whose structure and shapes the vector has.
      distribution: one of `DISTRIBUTIONS`: signs, standard normal, uniform on [0, 1).
      dtype: of the result.
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"unknown distribution {distribution!r}; there are: {', '.join(DISTRIBUTIONS)}"
        )
    draw = {
        "rademacher": jax.random.rademacher,
        "gaussian": jax.random.normal,
        "uniform": jax.random.uniform,
    }[distribution]
    own = jax.random.fold_in(key, i)  # probe i is the same in any chunk
    leaves, structure = jax.tree.flatten(like)
    drawn = [
        # by the leaf's place in leaf order
        draw(jax.random.fold_in(own, j), jnp.shape(leaf), dtype=dtype)
        for j, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, drawn)


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
    check_like(jax.tree.map(lambda x: x[0], stack), params, "a direction")
    wide = base.upcast(stack)
    # dead coordinates of a direction do not move
    return jax.vmap(lambda v: base.project(live, v))(wide), counts.pop()[0]


@jax.jit
def unit(stack: Tree) -> Tree:
    """Each vector of a stack at length 1; zero vectors stay zero."""

    def one(v: Tree) -> Tree:
        norm = jnp.sqrt(base.squared_norm(v))
        # the inner one: no 1 / 0
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
    check_like(direction, params, "the direction")

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
    params = check_params(params)
    live = base.expand_masks(masks, params)
    dtype = base.accumulator(jnp.result_type(*jax.tree.leaves(params)))
    key = named_key(key, "direction")
    drawn = [base.project(live, sample(key, i, params, "gaussian", dtype)) for i in range(count)]
    excluded: tuple[str, ...] = ()
    if normalization == "filter":
        drawn = [filter_normalize(v, params, live) for v in drawn]
        excluded = tuple(path for path, leaf in leaves_with_paths(params) if jnp.ndim(leaf) < 2)
    stack = stacked(drawn)
    return Directions(unit(stack) if normalization == "unit" else stack, normalization, excluded)
