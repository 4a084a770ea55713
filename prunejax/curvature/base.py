"""What every estimator of `prunejax.curvature` shares: losses, batches, masks, tree algebra.

Conventions
- A loss is `loss(params)` or `loss(params, batch)` and returns the mean over the batch.
- `batches` is one batch (array, tuple, dict or any other pytree, examples along the leading axis
  of every leaf) or a *list* of batches, which may differ in size and in nothing else: means are
  weighted by size. A list of bare arrays is refused, `[X, Y]` of a data loader is one batch and not
  two. An iterator of batches, or a function that returns an iterable of them, stands for its list.
- `masks` is None, one bool, or a tree of bools like the parameters whose leaves broadcast against
  them (True = live). Estimators then see the live subspace only (P g, P H P).
- Sums run in float32, or in float64 where the parameters are float64; leaves keep their shape and
  sharding, nothing is flattened into one vector.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from prunejax.curvature.callables import Captured
from prunejax.trees import leaves_with_paths, map_with_path

Tree = Any
Batches = Any  # None, one batch, a list, an iterator, or a function that returns an iterable
Masks = Any  # None, a bool, or a tree of bools


def as_argument(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` as a pytree, so that one compiled kernel can take it as an argument.

    Kernels are compiled once per function, what it refers to, and shapes; not once per call. A
    `jax.tree_util.Partial(fn, statistics)` carries its arrays as *data*: a loss that closes over
    new BatchNorm statistics at every call should be given so, it is then compiled once.
    """
    data = jax.Array | np.ndarray | np.generic | int | float | complex
    if all(isinstance(leaf, data) for leaf in jax.tree.leaves(fn)):
        return fn  # a Partial or another registered callable whose leaves are data
    return Partial(Captured(fn))


def call(loss: Callable[..., Any], params: Tree, batch: Tree) -> jax.Array:
    """The scalar `loss(params, batch)`, or `loss(params)` where there is no batch."""
    return loss(params) if batch is None else loss(params, batch)


class _Listed(list):
    """Batches that have been looked at."""


def batch_list(batches: Batches) -> list[Tree]:
    """The batches as a list; `[None]` for a loss without data.

    Raises:
      ValueError: an empty list, a list of bare arrays, batches that are not alike.
    """
    if isinstance(batches, _Listed):
        return batches
    if is_factory(batches):
        batches = iter(batches())
    if not isinstance(batches, list | Iterator):
        return _Listed([batches])
    found = _Listed(batches)
    if not found:
        raise ValueError("batches is an empty list; give at least one batch")
    bare = [batch for batch in found if batch is not None and _is_leaf(batch)]
    if bare and isinstance(batches, list):
        raise ValueError(
            f"batches is a list of {len(found)} with a bare array of shape {np.shape(bare[0])} in "
            "it; one batch is a tuple (X, Y), a list holds such tuples; several batches that are "
            "arrays themselves are given as iter([...])"
        )
    for number, batch in enumerate(found):
        check_alike(batch, found[0], number)
    return found


def _is_leaf(tree: Tree) -> bool:
    return jax.tree_util.all_leaves([tree])


def check_alike(batch: Tree, first: Tree, number: int) -> None:
    """ValueError unless a batch differs from the first one in nothing but its size."""
    ours_is: Any = jax.tree.structure(batch)
    if ours_is != jax.tree.structure(first):
        raise ValueError(
            f"batch {number} has structure {short(batch)}, batch 0 {short(first)}; all batches "
            "must have one structure; [X, Y] is given as the tuple (X, Y)"
        )
    pairs = zip(leaves_with_paths(batch), jax.tree.leaves(first), strict=True)
    for (path, ours), theirs in pairs:
        kinds = [(jnp.result_type(x), np.shape(x)[1:]) for x in (ours, theirs)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"batch {number} at {path!r} has {kinds[0][0]} entries of shape {kinds[0][1]}, "
                f"batch 0 {kinds[1][0]} of {kinds[1][1]}; batches may differ in size only; [X, Y] "
                "is given as the tuple (X, Y)"
            )


def short(tree: Tree) -> str:
    """A tree's structure, cut where it is long."""
    text = str(jax.tree.structure(tree))
    return text if len(text) <= 200 else f"{text[:200]}..."


def is_factory(batches: Batches) -> bool:
    """Whether `batches` is a function that returns batches (and not a pytree that is callable)."""
    return callable(batches) and _is_leaf(batches)


def batch_size(batch: Tree) -> int:
    """Examples in a batch: the length of the leading axis; 1 where there is no batch.

    Raises:
      ValueError: no leaves, a scalar leaf, leaves that disagree, or no examples.
    """
    if batch is None:
        return 1
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or () in sizes:
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
        raise ValueError(
            f"the leaves of a batch must share a leading example axis, got shapes {shapes}; "
            "several batches are given as a list, vectors and directions before the batches"
        )
    size = int(sizes.pop()[0])
    if not size:
        raise ValueError("a batch has no examples; leave it out")
    return size


def rows(batch: Tree, start: int, stop: int) -> Tree:
    """Examples `start` up to `stop` of a batch."""
    return jax.tree.map(lambda leaf: leaf[start:stop], batch)


def expand_masks(masks: Masks, params: Tree) -> Tree | None:
    """Masks as a tree like `params`, or None where everything is live.

    Raises:
      ValueError: the tree does not fit, a mask is not bool, or does not broadcast; names the leaf.
    """
    if masks is None or masks is True:
        return None
    if _is_leaf(masks):
        masks = jax.tree.map(lambda _: masks, params)
    ours: Any = jax.tree.structure(masks)
    theirs: Any = jax.tree.structure(params)
    if ours != theirs:
        raise ValueError(
            "masks must be one bool or have the structure of the parameters, got "
            f"{short(masks)} for {short(params)}"
        )

    def check(path: str, leaf: Any, mask: Any) -> jax.Array:
        mask, shape = jnp.asarray(mask), np.shape(leaf)
        if mask.dtype != jnp.bool_:
            raise ValueError(f"mask {path!r} has dtype {mask.dtype}; masks are bool, True = live")
        pairs = zip(mask.shape[::-1], shape[::-1], strict=False)
        if mask.ndim > len(shape) or any(a not in (1, b) for a, b in pairs):
            raise ValueError(f"mask {path!r} of shape {mask.shape} does not broadcast to {shape}")
        return mask

    return map_with_path(check, params, masks)


def project(masks: Tree | None, tree: Tree) -> Tree:
    """P x: zero (even where x is NaN) on dead coordinates; `masks` as from `expand_masks`."""
    if masks is None:
        return tree
    return jax.tree.map(lambda mask, x: jnp.where(mask, x, jnp.zeros((), x.dtype)), masks, tree)


def live_dimension(masks: Tree | None, params: Tree) -> int:
    """The number of live coordinates, exact."""
    sizes = [int(np.size(leaf)) for leaf in jax.tree.leaves(params)]
    if masks is None:
        return sum(sizes)
    counts = [
        (int(np.count_nonzero(np.asarray(mask))), int(np.size(mask)))
        for mask in jax.tree.leaves(masks)
    ]
    # An entry of a broadcast mask stands for so many coordinates.
    return sum(size // max(of, 1) * live for size, (live, of) in zip(sizes, counts, strict=True))


def accumulator(dtype: Any) -> Any:
    """The dtype sums run in: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


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
