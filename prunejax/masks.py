"""The mask algebra: pure functions on any pytree of parameters.

A masks tree has the structure of the parameters. Each leaf is a boolean array that broadcasts
against its parameter, True = live; a leaf that is never pruned is the scalar True. The
granularity of pruning is the shape of the score and nothing else: scores of a weight's shape prune
single weights, scores of shape (1, 1, 1, out) prune filters.

    scores = jax.tree.map(jnp.abs, params)
    m = masks.prune(scores, keep=10_000)          # exactly 10,000 live weights
    params = masks.apply(m, params)
"""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prunejax import ranking, schedules, trees
from prunejax.models.groups import Group

Array = jax.Array
Tree = Any
SCOPES = ("global", "layer")


def ones(tree: Tree) -> Tree:
    """Masks that prune nothing: the scalar True at every leaf."""
    return jax.tree.map(lambda _: jnp.array(True), tree)


def apply(masks: Tree, tree: Tree) -> Tree:
    """`where(mask, x, 0)` leaf by leaf: NaN or infinity in a dead entry cannot leak."""
    return jax.tree.map(lambda m, x: jnp.where(m, x, jnp.zeros((), x.dtype)), masks, tree)


def of(params: Tree) -> Tree:
    """The masks that saved, already masked parameters imply: live where they are not 0."""
    return jax.tree.map(lambda p: p != 0, params)


def intersect(a: Tree, b: Tree) -> Tree:
    """Live where both are."""
    return jax.tree.map(jnp.logical_and, a, b)


def is_subset(a: Tree, b: Tree) -> Array:
    """Whether everything that is live in `a` is live in `b` (a boolean scalar)."""
    inside = jax.tree.leaves(jax.tree.map(lambda x, y: jnp.all(~x | y), a, b))
    return jnp.all(jnp.stack(inside)) if inside else jnp.array(True)


def keep_count(scores: Tree, sparsity: float) -> int:
    """How many units to keep for a sparsity (fraction removed): `ceil((1 - sparsity) * units)`.

    Units are the entries of all leaves that are not scalars. Exact: 0.9 means 9/10.
    """
    return schedules.kept(sum(x.size for x in jax.tree.leaves(scores) if jnp.ndim(x)), sparsity)


def prune(
    scores: Tree,
    keep: Any,
    *,
    masks: Tree | None = None,
    scope: str = "global",
) -> Tree:
    """Masks that keep the `keep` units with the largest scores, exactly that many.

    Pruned units stay pruned. Among equal scores the earlier leaf (JAX leaf order) and then the
    smaller flat index is kept; NaN scores go first. Works under jit and vmap, with traced counts,
    on sharded leaves, above 2^24 units, without a sort of the tree and without host transfers.

    Args:
      scores: the parameters' structure; a leaf's shape broadcasts against its parameter and says
        what a unit is. A scalar leaf is never pruned.
      keep: units to keep, integers (traced or not). Global scope: one for the whole tree. Layer
        scope: one for every leaf, a tree of them, or a dict from leaf path to count (leaves that
        it does not name keep their masks).
      masks: the masks so far; None: everything is live.
      scope: "global" (one ranking over all leaves) or "layer" (each leaf by itself).

    Returns:
      Masks; leaves have the scores' shapes, the scalar True where scores are scalars.

    Raises:
      ValueError: unknown scope or path, masks that do not fit, a count that is no integer, is
        negative, or exceeds the live units (a traced count is clamped instead).
    """
    if scope not in SCOPES:
        raise ValueError(f"scope {scope!r} is not one of: {', '.join(SCOPES)}")
    leaves: list[Array]
    structure: Any
    leaves, structure = jax.tree.flatten(scores)
    before = [jnp.array(True)] * len(leaves)
    if masks is not None:
        before = structure.flatten_up_to(masks)
    names = trees.paths(scores)
    units = [i for i, leaf in enumerate(leaves) if jnp.ndim(leaf)]
    live = {i: _eligible(before[i], leaves[i], names[i]) for i in units}
    result = [jnp.array(True) if i not in live else live[i] for i in range(len(leaves))]
    if scope == "global":
        _check_count(keep, [live[i] for i in units], "the tree")
        chosen = ranking.top([leaves[i] for i in units], keep, eligible=[live[i] for i in units])
        for i, mask in zip(units, chosen, strict=True):
            result[i] = mask
        return structure.unflatten(result)
    for i, count in _layer_counts(keep, names, units, structure).items():
        _check_count(count, [live[i]], f"leaf {names[i]!r}")
        result[i] = ranking.top(leaves[i], count, eligible=live[i])
    return structure.unflatten(result)


def _eligible(mask: Array, score: Array, name: str) -> Array:
    try:
        return jnp.broadcast_to(mask, jnp.shape(score))
    except ValueError:
        raise ValueError(
            f"leaf {name!r}: a mask of shape {jnp.shape(mask)} does not fit scores of shape "
            f"{jnp.shape(score)}; masks and scores need the same granularity"
        ) from None


def _layer_counts(keep: Any, names: list[str], units: list[int], structure: Any) -> dict[int, Any]:
    if isinstance(keep, numbers.Integral) or (hasattr(keep, "shape") and not keep.shape):
        return dict.fromkeys(units, keep)
    if isinstance(keep, Mapping) and all(key in names for key in keep):
        return {i: keep[names[i]] for i in units if names[i] in keep}
    try:
        counts = structure.flatten_up_to(keep)
    except ValueError:
        wrong = [key for key in keep if key not in names] if isinstance(keep, Mapping) else []
        raise ValueError(
            "keep must be an integer, a tree of integers with the scores' structure, or a dict "
            f"from leaf path to integer; {f'no leaf {wrong[0]!r}, ' if wrong else ''}the leaves "
            f"are: {', '.join(names)}"
        ) from None
    return {i: counts[i] for i in units}


def _check_count(keep: Any, live: Sequence[Array], where: str) -> None:
    """Refuses counts that are no counts; what is traced cannot be looked at and is clamped."""
    dtype = getattr(keep, "dtype", None)
    if not (isinstance(keep, numbers.Integral) or (dtype is not None and dtype.kind in "iu")):
        raise ValueError(
            f"keep = {keep!r} for {where} is no integer: it is a count of units; for a fraction "
            "use masks.keep_count(scores, sparsity)"
        )
    if isinstance(keep, jax.core.Tracer) or any(isinstance(m, jax.core.Tracer) for m in live):
        return
    total = sum(int(jnp.sum(m)) for m in live)
    if not 0 <= int(keep) <= total:
        raise ValueError(f"keep = {int(keep)} for {where}: there are {total} live units")


def nm(scores: Array, n: int, m: int, *, axis: int = -2) -> Array:
    """N:M sparsity: of every `m` consecutive entries along `axis` the `n` largest are live.

    Args:
      scores: of the weight's shape. Ties: the earlier entry is kept.
      n: kept of every m; 0 <= n <= m.
      m: size of a block; must divide the axis.
      axis: the input axis of Dense (in, out) and convolution (h, w, in, out) kernels by default.

    Raises:
      ValueError: the axis is not divisible by m, or n is not in 0..m.
    """
    size = scores.shape[axis]
    if m < 1 or size % m:
        raise ValueError(
            f"N:M sparsity {n}:{m}: the axis of {size} entries is not divisible by {m}"
        )
    if not 0 <= n <= m:
        raise ValueError(f"N:M sparsity {n}:{m}: n must be in 0..{m}")
    moved = jnp.moveaxis(scores, axis, -1)
    blocks = moved.reshape(*moved.shape[:-1], size // m, m)
    order = jnp.argsort(-blocks, axis=-1, stable=True)
    live = jnp.argsort(order, axis=-1) < n
    return jnp.moveaxis(live.reshape(moved.shape), -1, axis)


def from_units(
    units: Mapping[str, Array], groups: Sequence[Group], params: Tree, *, norm: bool = True
) -> Tree:
    """Masks of whole units: a filter with the BatchNorm scale and bias (or own bias) it feeds.

    Args:
      units: layer name -> bool [units], True = live; layers it does not name stay whole.
      groups: the model's layers (`prunejax.models.groups`).
      params: for the structure and the kernels' ranks.
      norm: whether scale and bias are masked as well (False: a dead filter still emits them).
    """
    values: dict[str, Array] = {}
    unknown = set(units) - {g.name for g in groups}
    if unknown:
        raise ValueError(
            f"no layer {sorted(unknown)[0]!r}; there are: {', '.join(g.name for g in groups)}"
        )
    for g in groups:
        if g.name not in units:
            continue
        live = jnp.asarray(units[g.name], bool)
        if live.shape != (g.units,):
            raise ValueError(f"layer {g.name!r} has {g.units} units, its mask {live.shape}")
        rank = trees.get(params, g.kernel).ndim
        values[g.kernel] = live.reshape((1,) * (rank - 1) + live.shape)
        if norm:
            values |= dict.fromkeys(g.norm or g.bias, live)
    return trees.map_with_path(lambda path, _: values.get(path, jnp.array(True)), params)
