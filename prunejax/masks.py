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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prunejax import schedules, trees
from prunejax.groups import Group
from prunejax.ops import counts as counting
from prunejax.ops import ranking
from prunejax.sparsity import count as count  # the report belongs to the algebra
from prunejax.sparsity import overlap as overlap
from prunejax.sparsity import report as report
from prunejax.trees import fits as _fits

Array = jax.Array
Tree = Any
SCOPES = ("global", "layer")


def ones(tree: Tree) -> Tree:
    """Masks that prune nothing: the scalar True at every leaf."""
    return jax.tree.map(lambda _: jnp.array(True), tree)


def apply(masks: Tree, tree: Tree) -> Tree:
    """`where(mask, x, 0)` leaf by leaf: NaN or infinity in a dead entry cannot leak.

    Random keys (in the state of NNX modules) pass as they are.

    Raises:
      ValueError: a leaf is no array, or a mask does not broadcast against its leaf.
    """

    def where(path: str, x: Any, mask: Any) -> Any:
        kind = jnp.result_type(x)
        if jnp.issubdtype(kind, jax.dtypes.extended):
            return x
        _fits(path, mask, jnp.shape(x), "its leaf")
        if jnp.ndim(mask) not in (0, jnp.ndim(x)):  # callers may forbid silent rank promotion
            mask = jnp.broadcast_to(mask, jnp.shape(x))
        return jnp.where(mask, x, jnp.zeros((), kind))  # a literal 0 would make a bool leaf integer

    found = zip(trees.arrays(tree), trees.aligned(tree, masks, "the masks"), strict=True)
    return jax.tree.unflatten(jax.tree.structure(tree), [where(p, x, m) for (p, x), m in found])


def of(params: Tree, rules: str | Iterable[str] | None = None) -> Tree:
    """The masks that saved, already masked parameters imply: live where they are not 0.

    Args:
      params: parameters whose zeros are their mask.
      rules: path rules (`trees.match`) of the leaves to look at; None: all. Name the prunable
        ones where other leaves may be 0 without being pruned, like fresh biases.
    """
    trees.arrays(params)
    chosen = jax.tree.map(lambda _: True, params) if rules is None else trees.select(params, rules)

    def live(chosen: bool, p: Any) -> Array:
        number = not jnp.issubdtype(jnp.result_type(p), jax.dtypes.extended)  # no random key
        return p != 0 if chosen and number else jnp.array(True)  # NaN counts as live: it is no zero

    return jax.tree.map(live, chosen, params)


def keep_count(scores: Tree, sparsity: float) -> int:
    """How many units to keep for a sparsity (fraction removed): `ceil((1 - sparsity) * units)`.

    Units are the entries of all leaves that are not scalars. Exact: 0.9 means 9/10.
    """
    return schedules.kept(sum(x.size for x in jax.tree.leaves(scores) if jnp.ndim(x)), sparsity)


def prune(scores: Tree, keep: Any, *, masks: Tree | None = None, scope: str = "global") -> Tree:
    """Masks that keep the `keep` units with the largest scores, exactly that many.

    Pruned units stay pruned. Among equal scores the earlier leaf (JAX leaf order) and then the
    smaller flat index is kept; NaN scores go first. Works under jit and vmap, with traced counts,
    on sharded leaves, above 2^24 units, without a sort of the tree; no accelerator's numbers go to
    the host. Outside of jit on a CPU the choice compiles nothing, and all cores work on it.

    Args:
      scores: the parameters' structure; a leaf's shape broadcasts against its parameter and says
        what a unit is. A scalar leaf is never pruned.
      keep: units to keep, integers (traced or not). Global scope: one for the whole tree. Layer
        scope: one for every leaf, a tree of them, or a dict from leaf path to count (leaves that
        it does not name keep their masks).
      masks: the masks so far; None: everything is live.
      scope: "global" (one ranking over all leaves) or "layer" (each leaf by itself).

    Returns:
      Masks; leaves have the scores' shapes, as given (the scalar True) where scores are scalars.

    Raises:
      ValueError: unknown scope or path, masks that do not fit, a count that is no integer, is
        negative, or exceeds the live units (a traced count is clamped instead).
    """
    of = _Ranked.of(scores, scope)
    given = [True] * len(of.leaves) if masks is None else trees.aligned(scores, masks, "masks")
    before: list[Array] = [jnp.asarray(m) for m in given]
    live: dict[int, Array | None] = dict.fromkeys(of.units)
    if masks is not None:
        live = {i: _eligible(before[i], of.leaves[i], of.names[i]) for i in of.units}
    chosen = of.choose(keep, live, "keep", "live")
    for i in of.units:
        mask = chosen.get(i)
        before[i] = jnp.broadcast_to(before[i], of.leaves[i].shape) if mask is None else mask
    return of.structure.unflatten(before)


def grow(scores: Tree, masks: Tree, counts: Any, *, scope: str = "global") -> Tree:
    """Masks with the `counts` dead units of the largest scores live again, exactly that many.

    Live units stay live. Ties as in `prune`: the earlier leaf, then the smaller flat index. NaN is
    grown last, only where no other dead unit is left: counts stay exact in a diverged run as well.

    Args:
      scores: as in `prune`, e.g. the magnitude of the dense gradient (RigL) or random numbers
        (SET); leaves that are scalars stay as they are.
      masks: the masks after the drop: every dead unit is a candidate, a dropped one too.
      counts: units to grow, integers (traced or not), as `keep` of `prune`.
      scope: "global" or "layer".

    Raises:
      ValueError: as in `prune`; a count exceeds the dead units (a traced one is clamped).
    """
    of = _Ranked.of(scores, scope)
    before = [jnp.asarray(m, bool) for m in trees.aligned(scores, masks, "masks")]
    dead: dict[int, Array | None] = {}
    for i in of.units:
        before[i] = _eligible(before[i], of.leaves[i], of.names[i])
        dead[i] = ~before[i]
    for i, mask in of.choose(counts, dead, "counts", "dead").items():
        before[i] = before[i] | mask
    return of.structure.unflatten(before)


class _Ranked(NamedTuple):
    """A tree of scores, and which of its leaves have units."""

    leaves: list[Array]
    structure: Any
    names: list[str]  # of the leaves
    units: list[int]  # places of the leaves that are not scalars
    scope: str

    @classmethod
    def of(cls, scores: Tree, scope: str) -> "_Ranked":
        if scope not in SCOPES:
            raise ValueError(f"scope {scope!r} is not one of: {', '.join(SCOPES)}")
        leaves, structure = jax.tree.flatten(scores)
        units = [i for i, leaf in enumerate(leaves) if jnp.ndim(leaf)]
        return cls(leaves, structure, trees.paths(scores), units, scope)

    def choose(
        self, count: Any, among: Mapping[int, Array | None], what: str, state: str
    ) -> dict[int, Array]:
        """By place, the `count` largest of what is `among`; without leaves that no count names."""
        leaves = [self.leaves[i] for i in self.units]
        if self.scope == "global":
            eligible = [among[i] for i in self.units]
            counting.check(count, leaves, eligible, "the tree", what, state)
            free = all(a is None for a in eligible)  # then no flags are read
            found = ranking.top(leaves, count, eligible=None if free else eligible)
            return dict(zip(self.units, found, strict=True))
        counts = counting.per_layer(count, self.names, self.units, self.structure, what)
        for i, n in counts.items():
            place = f"leaf {self.names[i]!r}"
            counting.check(n, [self.leaves[i]], [among[i]], place, what, state)
        ranked = [i for i in self.units if i in counts]
        given = ([of[i] for i in ranked] for of in (self.leaves, counts, among))
        found = ranking.each(*given)  # type: ignore[arg-type]
        return dict(zip(ranked, found, strict=True))


def _eligible(mask: Array, score: Array, name: str) -> Array:
    _fits(name, mask, jnp.shape(score), "scores (masks and scores need the same granularity)")
    return jnp.broadcast_to(mask, jnp.shape(score))


def nm(scores: Tree, n: int | Array, m: int, *, axis: int = -2, masks: Tree | None = None) -> Tree:
    """N:M sparsity: of every `m` consecutive units along `axis` the `n` largest are live.

    Args:
      scores: as in `prune`, an array or a tree of them; scalar leaves are never pruned. Ties: the
        earlier entry is kept; NaN goes first.
      n: kept of every m, a scalar; 0 <= n <= m (a traced n is clamped by its blocks).
      m: size of a block; must divide the axis.
      axis: the input axis of Dense (in, out) and convolution (h, w, in, out) kernels by default.
      masks: the masks so far; pruned units stay pruned, so blocks may keep fewer than n.

    Raises:
      ValueError: an axis is not divisible by m, n is not in 0..m, or scores do not compare.
    """
    whole = all(isinstance(x, numbers.Integral) and counting.is_count(x) for x in (m, axis))
    whole = whole and counting.is_count(n)
    if not whole or m < 1 or not (isinstance(n, jax.core.Tracer) or 0 <= n <= m):
        raise ValueError(
            f"N:M sparsity {n}:{m}: m is an integer of at least 1, n one in 0..m; axis {axis!r} one"
        )

    def blocks(path: str, score: Array, mask: Array) -> Array:
        if not jnp.ndim(score):
            return jnp.asarray(mask)
        size = score.shape[axis] if -score.ndim <= axis < score.ndim else 0
        if not size or size % m:
            raise ValueError(
                f"N:M sparsity {n}:{m}: leaf {path!r} of shape {score.shape} has no axis {axis} "
                f"whose size is divisible by {m}; name another axis, or give a scalar as the score "
                "of a leaf that is not to be pruned"
            )
        return ranking.of_blocks(score, _eligible(mask, score, path), n, m, axis)

    return trees.map_with_path(blocks, scores, ones(scores) if masks is None else masks)


def from_units(
    units: Mapping[str, Array], groups: Sequence[Group], params: Tree, *, norm: bool = True
) -> Tree:
    """Masks of whole units: a filter with the BatchNorm scale and bias (or own bias) it feeds.

    Args:
      units: layer name -> bool [units], True = live; layers it does not name stay whole. A mask of
        the kernel's shape prunes single weights; norm and bias then stay.
      groups: the model's layers (`prunejax.groups`).
      params: for the structure and the kernels' ranks.
      norm: whether BatchNorm's scale and bias are masked, too (else a dead filter emits its bias).
    """
    if unknown := set(units) - {g.name for g in groups}:
        raise ValueError(
            f"no layer {sorted(unknown)[0]!r}; there are: {', '.join(g.name for g in groups)}"
        )
    found = {name: jnp.asarray(live, bool) for name, live in units.items()}
    for g in (g for g in groups if g.name in found):
        trees.demand(params, (g.kernel, *g.affine), f"group {g.name!r}")
        live, shape = found[g.name].shape, trees.get(params, g.kernel).shape
        if live not in (shape, (g.units,)):
            raise ValueError(
                f"layer {g.name!r}: a mask of shape {live}; it has {g.units} units and a kernel of "
                f"shape {shape}"
            )
    # An own bias always goes: it would be emitted.
    bare = [g if norm or not g.norm else g._replace(norm=(), bias=()) for g in groups]
    return spread(found, bare, params, rest=True)


def spread(
    units: Mapping[str, Array],
    groups: Sequence[Group],
    params: Tree,
    *,
    rest: bool,
    affine: Callable[[Array], Array] = lambda flags: flags,
) -> Tree:
    """Flags of units as a tree that broadcasts against the parameters; the scalar `rest` elsewhere.

    Args:
      units: layer name -> bool [units], or of the kernel's shape: then norm and bias are `rest`.
      groups, params: as in `from_units`.
      rest: of leaves that belong to none of these units.
      affine: the flags of a layer (bool [units]) -> those of its norm or own bias.
    """
    values: dict[str, Array] = {}
    for g in (g for g in groups if g.name in units):
        flags, rank = units[g.name], trees.get(params, g.kernel).ndim
        if flags.ndim < rank:
            values |= dict.fromkeys(g.affine, affine(flags))
            flags = flags.reshape((1,) * (rank - 1) + flags.shape)
        values[g.kernel] = flags
    return trees.map_with_path(lambda path, _: values.get(path, jnp.array(rest)), params)
