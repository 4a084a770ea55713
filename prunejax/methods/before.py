"""Pruning before training: by a network's scores in rounds, and the controls that belong to it.

    live = before.prune(params, "snip", sparsity=0.95, loss=loss)
    live = before.prune(params, "synflow", sparsity=0.95, output=output)   # 100 rounds
    params = masks.apply(live, before.sparse_fan_in(params, live))

Controls (Frankle et al. 2021): `shuffled(live, seed=...)`, `prune(..., invert=True)`, and the same
mask on freshly drawn weights, which the caller draws.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.lib.array_utils import normalize_axis_tuple

from prunejax import allocate, registry, rng, schedules, trees
from prunejax import masks as masks_lib
from prunejax.methods.evidence import Evidence, demand
from prunejax.methods.table import pair
from prunejax.methods.updates import listed
from prunejax.ops import counts as counting
from prunejax.ops import radix, ranking

Array = jax.Array
Tree = Any


def prune(
    params: Tree,
    score: str | Callable[[Evidence], Tree],
    *,
    sparsity: float | None = None,
    allocation: str | Mapping[str, float] = "global",
    rounds: int | None = None,
    nm: tuple[int, int] | None = None,
    axis: int = -2,
    min_per_layer: int = 0,
    invert: bool = False,
    rules: str | Iterable[str] | None = None,
    masks: Tree | None = None,
    loss: Callable[[Tree], Array] | None = None,
    output: Callable[[Tree], Array] | None = None,
    seed: int | Array | None = None,
) -> Tree:
    """Masks of a sparsity by a score of the untrained (or any) network.

    In round i of T, of N units and K in the end, `N (K/N)^(i/T)` stay, rounded up; scores are
    computed anew at the weights that are left. With `nm`, N = m and K = n in every block; rounds
    in which no block loses a weight change nothing. Works under jit and vmap.

    Args:
      params: any pytree of parameters.
      score: a name in `evidence.EVIDENCE` or a function of `Evidence`.
      sparsity: fraction removed of the prunable weights.
      allocation: "global" (one ranking), "uniform", "erk", or path rule -> sparsity.
      rounds: T. None: 100 for SynFlow, 1 for the others; SNIP in rounds is iterative SNIP.
      nm: (n, m): n of every m consecutive weights along `axis` stay, instead of a sparsity.
      axis: the axis of `nm`.
      min_per_layer: weights that a global ranking leaves every leaf at least, so that none is
        emptied; `masks.report` names the leaves that are.
      invert: keep the smallest scores, a control.
      rules: path rules of the leaves that are pruned. None: `trees.kernels`.
      masks: where pruning starts; dead weights stay dead. A sparsity is still of all weights.
      loss: the scalar that SNIP and GraSP differentiate; see `Evidence`.
      output: what SynFlow differentiates, [...].
      seed: of random scores, a scalar.

    Returns:
      Masks: of the weights' shape at prunable leaves, the scalar True elsewhere.

    Raises:
      ValueError: unknown names; an ingredient, or the sparsity, is missing; too few rounds; a
        score of another structure; parts that do not go together.
    """
    given = {"loss": loss, "output": output, "seed": seed}
    entry = demand(score, given) if isinstance(score, str) else None
    fn: Callable[[Evidence], Tree] = entry.fn if entry else score  # type: ignore[assignment]
    rounds = (entry.rounds if entry else 1) if rounds is None else rounds
    for name, number, least in (("rounds", rounds, 1), ("min_per_layer", min_per_layer, 0)):
        if not registry.is_whole(number) or number < least:
            raise ValueError(f"{name} = {number!r} must be at least {least}, an integer")
    if min_per_layer and (nm is not None or allocation != "global"):
        raise ValueError(
            f"min_per_layer = {min_per_layer} is of a global ranking; nm = {nm} and allocation "
            f"{allocation!r} say themselves what a leaf keeps"
        )
    rules = listed(rules)
    chosen = trees.prunable(params, rules)
    structure: Any = jax.tree.structure(chosen)
    shapes = shapes_of(params, chosen)
    start = full(params, shapes, masks)

    def scored(live: Tree) -> Tree:
        e = Evidence(params, rules=rules, masks=live, loss=loss, output=output, seed=seed)
        found = structure.unflatten(trees.aligned(chosen, fn(e), "scores"))
        return jax.tree.map(radix.opposite, found) if invert else found

    if nm is not None:
        if sparsity is not None:
            raise ValueError(f"nm = {nm} and sparsity = {sparsity}: n of every m is a sparsity")
        n, m = pair(nm)
        steps = [k for k in dict.fromkeys(schedules.by_rate(m, n, rounds)) if n < k < m]

        def blocks(live: Tree, kept: Any) -> Tree:
            return masks_lib.nm(scored(live), kept, m, axis=axis, masks=live)

        def through(live: Tree) -> Tree:
            if steps:
                row = jnp.asarray(steps)
                live = lax.fori_loop(0, len(steps), lambda i, left: blocks(left, row[i]), live)
            return blocks(live, n)

        return jax.jit(through)(start)
    keep = allocate.counts(shapes, sparsity, allocation)
    if isinstance(keep, int):
        floor = min_per_layer * len(shapes)
        if keep < floor:
            raise ValueError(
                f"min_per_layer = {min_per_layer}: {len(shapes)} leaves of that many are more "
                f"than the {keep} weights that stay"
            )
        units = sum(int(np.prod(shape)) for shape in shapes.values())
        table = np.array(schedules.by_rate(units, keep, rounds))
    else:
        each = [schedules.by_rate(int(np.prod(shapes[p])), n, rounds) for p, n in keep.items()]
        table = np.array(each).T

    def once(i: Any, live: Tree) -> Tree:
        found = scored(live)
        row = jnp.asarray(table)[i]  # counts by round are data: one body for all
        if isinstance(keep, int):
            return _ranked(found, live, row, min_per_layer)
        counts = {path: row[j] for j, path in enumerate(keep)}
        return masks_lib.prune(found, counts, masks=live, scope="layer")

    if rounds == 1:
        return jax.jit(lambda live: once(0, live))(start)
    return jax.jit(lambda live: lax.fori_loop(0, rounds, once, live))(start)


def _ranked(scores: Tree, live: Tree, keep: Any, least: int) -> Tree:
    """The `keep` best of all that is live, the `least` best of every leaf among them."""
    if not least:
        return masks_lib.prune(scores, keep, masks=live)
    # Set aside, not lifted above the others: that would change numbers, and what ties.
    best = jax.tree.map(
        lambda s, m: ranking.top(s, least, eligible=m) if jnp.ndim(s) else m, scores, live
    )
    units = [b for s, b in zip(*map(jax.tree.leaves, (scores, best)), strict=True) if jnp.ndim(s)]
    left = keep - counting.among(units, together=True)[0].astype(keep.dtype)
    rest = jax.tree.map(lambda s, m, b: m & ~b if jnp.ndim(s) else m, scores, live, best)
    more = masks_lib.prune(scores, left, masks=rest)
    return jax.tree.map(jnp.logical_or, best, more)


def full(params: Tree, shapes: allocate.Shapes, masks: Tree | None = None) -> Tree:
    """Masks in their final shapes: those of `shapes`, by path; of other leaves as given."""
    given = [True] * len(jax.tree.leaves(params))
    if masks is not None:
        given = trees.aligned(params, masks, "masks")
    found = []
    for (path, p), m in zip(trees.arrays(params), given, strict=True):
        trees.fits(path, m, jnp.shape(p), "its leaf")
        live = jnp.array(m, bool)  # a copy: a loop that donates its state ends what is in it
        if path in shapes:
            units = tuple(shapes[path])
            trees.fits(path, live, units, "its scores (masks and scores need the same granularity)")
            live = jnp.broadcast_to(live, units)
        found.append(live)
    return jax.tree.unflatten(jax.tree.structure(params), found)


def shapes_of(params: Tree, chosen: Tree, needed: bool = True) -> dict[str, tuple[int, ...]]:
    """Path -> shape of the leaves that are pruned.

    Raises:
      ValueError: there is none, but one is `needed`.
    """
    pairs = zip(trees.leaves_with_paths(params), jax.tree.leaves(chosen), strict=True)
    shapes = {path: tuple(jnp.shape(p)) for (path, p), c in pairs if c}
    if needed and not shapes:
        raise trees.none_pruned(params)
    return shapes


def shuffled(masks: Tree, *, seed: int | Array) -> Tree:
    """Every mask permuted within its leaf: the layers' densities without the choice of weights.

    A masks leaf of a leaf that is not pruned is a scalar and stays. Stream "shuffle" of `seed`, an
    integer scalar, by path.
    """

    def permuted(path: str, mask: Array) -> Array:
        mask = jnp.asarray(mask, bool)
        if not mask.ndim:
            return mask
        key = rng.at(seed, "shuffle", path)
        return jax.random.permutation(key, mask.ravel()).reshape(mask.shape)

    return trees.map_with_path(permuted, masks)


def sparse_fan_in(params: Tree, masks: Tree, *, axis: int | tuple[int, ...] = -1) -> Tree:
    """Weights scaled by `sqrt(fan_in / live fan_in)` of their unit: signals keep their size.

    A dense initialization starves sparse units (Evci et al. 2022 draw anew by the live fan-in; a
    scaled draw has the same variance). Units without a live weight, and leaves with
    a scalar mask, stay as they are; dead weights are not masked here.

    Args:
      params: freshly initialized parameters.
      masks: their masks.
      axis: the axis, or axes, that run over the units of a kernel; see `scores.filter_l1`.

    Raises:
      AxisError: a kernel has no such axis.
    """

    def scaled(p: Array, m: Any) -> Array:
        m, p = jnp.asarray(m, bool), jnp.asarray(p)
        if not m.ndim or p.ndim < 2:
            return p
        units = normalize_axis_tuple(axis, p.ndim, "axis")
        inputs = tuple(a for a in range(p.ndim) if a not in units)
        kind = jnp.float64 if p.dtype in (jnp.float64, jnp.complex128) else jnp.float32
        live = jnp.sum(jnp.broadcast_to(m, p.shape), inputs, keepdims=True, dtype=kind)
        size = jnp.asarray(np.prod([p.shape[a] for a in inputs]), kind)
        factor = jnp.sqrt(size / jnp.where(live == 0, size, live))
        return (p * factor.astype(p.dtype)).astype(p.dtype)

    given = trees.aligned(params, masks, "masks")
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, [scaled(p, m) for p, m in zip(leaves, given, strict=True)])


def balanced_batch(labels: Sequence[int] | np.ndarray, *, per_class: int, seed: int) -> np.ndarray:
    """Indices [classes * per_class] by `labels` [n]: examples drawn without repetition, by class.

    Raises:
      ValueError: a class has fewer examples, or there are no labels.
    """
    labels = np.asarray(labels)
    whole = registry.is_whole(per_class) and per_class > 0
    if not whole or labels.ndim != 1 or not labels.size:
        raise ValueError(
            f"per_class = {per_class!r} of labels of shape {labels.shape}: an integer of at least "
            "1, of one label per example"
        )
    found = []
    for c in np.unique(labels):
        where = np.flatnonzero(labels == c)
        if len(where) < per_class:
            raise ValueError(f"class {c} has {len(where)} examples, {per_class} are wanted of each")
        # By class: what one of them gives does not depend on the others.
        key = rng.at(seed, "score batch", int(c))
        found.append(where[rng.permutation(key, len(where))[:per_class]])
    return np.concatenate(found)
