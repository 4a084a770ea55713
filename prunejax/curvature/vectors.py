"""Vectors that are pytrees: the live subspace, algebra, stacks, layout, random probes.

Sums run in float32, or in float64 where the parameters are float64. Nothing here ravels or
concatenates a tree, so leaves keep their shape and sharding; contractions run at the highest matmul
precision on vectors that are in their accumulation dtype.

`masks` is None, one bool, or a tree of bools like the parameters whose leaves broadcast against
them (True = live). Estimators then see the live subspace only (P g, P H P).

A *stack* is a tree whose leaves carry one more axis in front: `[m, ...]` holds m vectors.
"""

import zlib
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from prunejax import trees
from prunejax.registry import lookup

Tree = Any
Masks = Any  # None, a bool, or a tree of bools
_DRAW: dict[str, Any] = {
    "rademacher": jax.random.rademacher,
    "gaussian": jax.random.normal,
    "uniform": jax.random.uniform,
}
HIGHEST = lax.Precision.HIGHEST  # accelerators would round float32 operands


def check_params(params: Tree) -> Tree:
    """`params` as JAX arrays; ValueError unless every leaf is a real floating-point array."""
    found = trees.arrays(params)
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
    if ours != jax.tree.structure(params):
        raise ValueError(
            f"{name} has structure {short(tree)}, params has {short(params)}; they must "
            "agree (vectors and directions come before the batches)"
        )
    for (path, x), p in zip(trees.leaves_with_paths(tree), jax.tree.leaves(params), strict=True):
        if jnp.shape(x) != jnp.shape(p):
            raise ValueError(
                f"{name} at {path!r} has shape {jnp.shape(x)}, the parameter has {jnp.shape(p)} "
                "(vectors and directions come before the batches)"
            )


def short(tree: Tree) -> str:
    """A tree's structure, cut where it is long."""
    text = str(jax.tree.structure(tree))
    return text if len(text) <= 200 else f"{text[:200]}..."


def expand_masks(masks: Masks, params: Tree) -> Tree | None:
    """Masks as a tree like `params`, or None where everything is live.

    Raises:
      ValueError: the tree does not fit, a mask is not bool, or does not broadcast; names the leaf.
    """
    if masks is None or masks is True:
        return None
    if jax.tree_util.all_leaves([masks]):
        masks = jax.tree.map(lambda _: masks, params)
    ours: Any = jax.tree.structure(masks)
    if ours != jax.tree.structure(params):
        raise ValueError(
            "masks must be one bool or have the structure of the parameters, got "
            f"{short(masks)} for {short(params)}"
        )

    def check(path: str, leaf: Any, mask: Any) -> jax.Array:
        mask = jnp.asarray(mask)
        if mask.dtype != jnp.bool_:
            raise ValueError(f"mask {path!r} has dtype {mask.dtype}; masks are bool, True = live")
        trees.fits(path, mask, np.shape(leaf), "a parameter")
        return mask

    return trees.map_with_path(check, params, masks)


def checked(params: Tree, masks: Masks) -> tuple[Tree, Tree | None]:
    """What `check_params` and `expand_masks` make of parameters and masks."""
    params = check_params(params)
    return params, expand_masks(masks, params)


def project(masks: Tree | None, tree: Tree) -> Tree:
    """P x: zero (even where x is NaN) on dead coordinates; `masks` as from `expand_masks`."""
    if masks is None:
        return tree
    return jax.tree.map(lambda mask, x: jnp.where(mask, x, jnp.zeros((), x.dtype)), masks, tree)


def live_dimension(masks: Tree | None, params: Tree) -> int:
    """The number of live coordinates, exact."""
    leaves = jax.tree.leaves(params)
    found = [True] * len(leaves) if masks is None else jax.tree.leaves(masks)
    return sum(  # an entry of a broadcast mask stands for so many coordinates
        np.size(leaf) // max(np.size(mask), 1) * int(np.count_nonzero(np.asarray(mask)))
        for leaf, mask in zip(leaves, found, strict=True)
    )


def accumulator(dtype: Any) -> Any:
    """The dtype sums run in: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def sum_dtype(tree: Tree) -> Any:
    """The one dtype that sums over all leaves of a tree run in."""
    return accumulator(jnp.result_type(*jax.tree.leaves(tree)))


def upcast(tree: Tree) -> Tree:
    """Leaves in their accumulation dtype."""
    return jax.tree.map(lambda x: jnp.asarray(x).astype(accumulator(jnp.result_type(x))), tree)


def cast_like(tree: Tree, like: Tree) -> Tree:
    """Leaves in the dtypes of `like`."""
    return jax.tree.map(lambda x, y: jnp.asarray(x).astype(jnp.result_type(y)), tree, like)


def add(a: Tree, b: Tree, scale: Any = 1.0) -> Tree:
    """The sum a + scale * b in the accumulation dtype of `a`."""

    def one(x: Any, y: Any) -> jax.Array:
        dtype = accumulator(jnp.result_type(x))  # the scale as well: in 16 bits it would be rounded
        return jnp.asarray(x, dtype) + jnp.asarray(scale, dtype) * jnp.asarray(y, dtype)

    return jax.tree.map(one, a, b)


def scale(factor: Any, tree: Tree) -> Tree:
    """The product factor * tree in the accumulation dtype."""
    return jax.tree.map(lambda x: jnp.asarray(factor, x.dtype) * x, upcast(tree))


def dot(a: Tree, b: Tree) -> jax.Array:
    """The scalar <a, b> over all leaves, accumulated in at least float32."""

    def one(x: Any, y: Any) -> jax.Array:
        dtype = accumulator(jnp.result_type(x))
        return jnp.sum(jnp.asarray(x).astype(dtype) * jnp.asarray(y).astype(dtype))

    return sum(jax.tree.leaves(jax.tree.map(one, a, b)), start=jnp.zeros(()))  # in leaf order


def squared_norm(tree: Tree) -> jax.Array:
    """The scalar ||tree||^2 over all leaves."""
    return dot(tree, tree)


def root(square: jax.Array, of: Callable[[], Tree]) -> jax.Array:
    """The norm (scalar) of `of()` from `square` (scalar), or anew where squares leave the range."""
    kinds = [jnp.finfo(accumulator(x.dtype)) for x in jax.tree.leaves(jax.eval_shape(of))]
    narrow = max(kinds, key=lambda kind: kind.eps)

    def rescaled() -> jax.Array:
        leaves = jax.tree.leaves(upcast(of()))
        top = reduce(jnp.maximum, (jnp.max(jnp.abs(x), initial=0) for x in leaves))
        divisor = jnp.where((top > 0) & (top < jnp.inf), top, 1)
        return divisor * jnp.sqrt(squared_norm([x / divisor for x in leaves]))

    # from here on what squares lose to 0 is no more than rounding
    ordinary = (square >= narrow.tiny / narrow.eps**2) & (square < jnp.inf)
    return lax.cond(ordinary, lambda: jnp.sqrt(square), rescaled)


@jax.jit
def norm(a: Tree) -> jax.Array:
    """The Euclidean norm over all leaves, a scalar, of any magnitude."""
    return root(squared_norm(a), lambda: a)


def unless_zero(number: Any) -> jax.Array:
    """A divisor [...]: `number` [...] where it is positive, else 1."""
    return jnp.where(number > 0, number, 1)


def index(stack: Tree, i: Any) -> Tree:
    """Vector i of a stack; for a slice or an array of places the stack of those vectors."""
    return jax.tree.map(lambda x: x[i], stack)


take = jax.jit(index)
first = partial(index, i=0)  # its shapes, by `jax.eval_shape`, compile nothing


@jax.jit
def stacked(found: list[Tree]) -> Tree:
    """The stack of a list of vectors, at least one."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def _products(a: Tree, b: Tree, rows: int) -> jax.Array:
    """Inner products of a stack's vectors with those of b, whose first `rows` axes count them."""

    def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
        mesh = jax.typeof(x).sharding.mesh
        out = NamedSharding(mesh, PartitionSpec()) if AxisType.Explicit in mesh.axis_types else None
        dims = (tuple(range(1, x.ndim)), tuple(range(rows, y.ndim))), ((), ())
        # Whole on each device, and float32 in full: the orthogonality of a basis rests on it.
        return lax.dot_general(x, y, dims, precision=HIGHEST, out_sharding=out)

    return sum(jax.tree.leaves(jax.tree.map(leaf, a, b)), start=jnp.zeros(()))


def gram(a: Tree, b: Tree) -> jax.Array:
    """The matrix A'B [m, n] of all inner products of two stacks."""
    return _products(a, b, 1)


def stack_dot(stack: Tree, v: Tree) -> jax.Array:
    """V'v [m]: the inner products of a stack's vectors with v."""
    return _products(stack, v, 0)


def combine(coefficients: jax.Array, stack: Tree) -> Tree:
    """Σ_i c_i V_i for `coefficients` c [m], or one vector per row for c [n, m] (again a stack)."""

    def leaf(x: jax.Array) -> jax.Array:
        dims = (((coefficients.ndim - 1,), (0,)), ((), ()))
        return lax.dot_general(coefficients.astype(x.dtype), x, dims, precision=HIGHEST)

    return jax.tree.map(leaf, stack)


def shardings(params: Tree) -> tuple[Any, ...]:
    """Per leaf the sharding of a parameter spread over several devices, else None (hashable)."""

    def of(leaf: Any) -> Any:
        known = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
        return leaf.sharding if known and len(leaf.sharding.device_set) > 1 else None

    return tuple(of(leaf) for leaf in jax.tree.leaves(params))


def place(tree: Tree, placed: tuple[Any, ...], stacked: bool = False) -> Tree:
    """`tree` laid out as `shardings` says (in jit, any axis type); a stack's first axis whole."""

    def one(x: jax.Array, s: Any) -> jax.Array:
        named = isinstance(s, NamedSharding)
        if s is None or (stacked and not named):
            return x
        wanted = NamedSharding(s.mesh, PartitionSpec(None, *s.spec)) if stacked else s
        explicit = named and AxisType.Explicit in s.mesh.axis_types
        return (jax.sharding.reshard if explicit else lax.with_sharding_constraint)(x, wanted)

    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [one(x, s) for x, s in zip(leaves, placed, strict=True)])


def named_key(key: jax.Array, name: str) -> jax.Array:
    """A key (scalar) for one purpose: `key` folded with the CRC-32 of the purpose's name."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def check_law(distribution: str) -> str:
    """A distribution of random probes; ValueError unless its entries are of mean 0, variance 1."""
    laws = {x: x for x in ("rademacher", "gaussian")}
    return lookup(laws, distribution, "distribution of probes")


def sample(key: jax.Array, i: Any, like: Tree, distribution: str, dtype: Any) -> Tree:
    """Random vector i of the stream `key`: a pure function of (key, i), of `like`'s shapes.

    Args:
      key: typed or raw PRNG key.
      i: index of the vector, may be traced.
      like: tree whose structure and shapes the vector has.
      distribution: "rademacher" (signs), "gaussian" (standard normal), "uniform" (on [0, 1)).
      dtype: of the result.
    """
    draw = lookup(_DRAW, distribution, "distribution")
    own = jax.random.fold_in(key, i)  # probe i is the same in any chunk
    leaves, structure = jax.tree.flatten(like)
    keys = (jax.random.fold_in(own, j) for j in range(len(leaves)))  # by places in leaf order
    drawn = [draw(k, jnp.shape(x), dtype=dtype) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)
