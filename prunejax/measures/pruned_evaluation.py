"""Evaluates a network under the masks that keep given fractions of it, all in one program."""

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from math import ceil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import masks as mask_algebra
from prunejax import scores as score_functions
from prunejax import trees
from prunejax.curvature import means, vectors
from prunejax.curvature.callables import as_argument, call
from prunejax.ops import counts as counting

Tree = Any
METHODS = ("magnitude", "random")


@partial(jax.jit, static_argnames="scope")
def evaluated(
    evaluate: Any, params: Tree, scores: Tree, live: Tree, keeps: Any, groups: Any, scope: str
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Name -> [P] at each mask, and [P, prunable leaves] units kept; `keeps` are data."""
    kind = counting.kind(max(s.size for s in jax.tree.leaves(scores)))

    def at(keep: Any) -> tuple[dict[str, jax.Array], jax.Array]:
        # A count above the live units is clamped: what is dead stays dead.
        chosen = mask_algebra.prune(scores, keep, masks=live, scope=scope)
        kept = mask_algebra.apply(chosen, params)
        found = means.over_split(lambda batch: call(evaluate, kept, batch), groups)
        pairs = zip(jax.tree.leaves(scores), jax.tree.leaves(chosen), strict=True)
        return found, jnp.stack([jnp.sum(m, dtype=kind) for s, m in pairs if jnp.ndim(s)])

    return jax.lax.map(at, keeps)


class Pruner:
    """A network with its scores; evaluates masks that keep exact fractions."""

    def __init__(
        self, evaluate: Any, params: Tree, batches: Any, method: Any, scope: str, draws: int,
        key: Any, prunable: Any, masks: Tree, batch_size: int | None,
    ) -> None:  # fmt: skip
        self.params, self.scope, self.live = jax.tree.map(jnp.asarray, params), scope, masks
        self.evaluate, self.groups = (
            as_argument(evaluate),
            means.stacked_groups(batches, batch_size),
        )
        self.method = method if isinstance(method, str) else "scores"
        self.scores = _scores(method, self.params, prunable, draws, key)
        scored = zip(trees.paths(self.params), jax.tree.leaves(self.scores[0]), strict=True)
        self.sizes = {path: int(s.size) for path, s in scored if jnp.ndim(s)}
        self.units = sum(self.sizes.values())
        if not self.units:
            names = trees.shown(trees.paths(self.params))
            raise ValueError(f"no leaf is prunable; give rules that match some of: {names}")

    def counts(self, fraction: Fraction) -> tuple[int, ...]:
        """Units kept, `ceil(a units)`: of the tree, or of every prunable leaf."""
        sizes = [self.units] if self.scope == "global" else self.sizes.values()
        return tuple(ceil(fraction * size) for size in sizes)

    def _keeps(self, fractions: Sequence[Fraction]) -> Any:
        """Counts as data: [P], or a tree of them with the scores' structure."""
        kind = counting.kind(self.units if self.scope == "global" else max(self.sizes.values()))
        counts = [
            jnp.array(column, kind) for column in zip(*map(self.counts, fractions), strict=True)
        ]
        if self.scope == "global":
            return counts[0]
        rest = iter(counts)
        none = jnp.zeros(len(fractions), jnp.int32)  # scalars are not pruned
        return jax.tree.map(lambda s: next(rest) if jnp.ndim(s) else none, self.scores[0])

    def __call__(self, fractions: Sequence[Fraction]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Name -> [draws, P], and [prunable leaves, P] units kept in the first draw."""
        keeps = self._keeps(fractions)
        found = [
            evaluated(self.evaluate, self.params, s, self.live, keeps, self.groups, self.scope)
            for s in self.scores
        ]
        values = {
            n: np.stack([np.asarray(v[n], np.float64) for v, _ in found]) for n in found[0][0]
        }
        return values, np.asarray(found[0][1]).T


def _scores(method: Any, params: Tree, prunable: Any, draws: int, key: Any) -> list[Tree]:
    """One tree of scores a draw; scalars where nothing is pruned."""
    if not isinstance(method, str):
        trees.aligned(params, method, "the scores")
        if prunable is not None:
            raise ValueError("a tree of scores says what is prunable itself: no leaf of shape ()")
        return [jax.tree.map(jnp.asarray, method)]
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not one of: {', '.join(METHODS)}, or a score tree")
    if prunable is None:
        chosen = trees.kernels(params)
    else:
        words = isinstance(prunable, list | tuple) and all(isinstance(x, str) for x in prunable)
        named = words or isinstance(prunable, str)  # the tree of a list of parameters is a list
        chosen = trees.select(params, prunable) if named else prunable
        trees.aligned(params, chosen, "prunable")
    if method == "magnitude":
        made = [jax.tree.map(score_functions.magnitude, params)]
    else:
        if key is None or draws < 1:
            raise ValueError(f"method 'random' needs a key and at least 1 draw, not {draws!r}")
        own = vectors.named_key(key, "prunability")
        made = [vectors.sample(own, i, params, "uniform", jnp.float32) for i in range(draws)]
    only = lambda use, score: score if use else jnp.zeros(())  # noqa: E731
    return [jax.tree.map(only, chosen, tree) for tree in made]
