"""Linear mode connectivity: error and loss along the line between two networks.

    line = path(evaluate, a, b, test)                       # 21 points of (1 - t) a + t b
    line.barrier("error")                                   # max - mean of the two ends
    barrier_matrix(evaluate, [a, b, c], test).matrix

    evaluate = lambda params, stats, batch: ...             # with BatchNorm: networks are States
    path(evaluate, State(p, s), State(q, t), test, statistics=linen_statistics(module),
         statistics_batches=train)

Statistics of BatchNorm do not interpolate as weights do, and the choice moves barriers by tens of
points: "recompute" takes them anew at every point from training examples, "interpolate" mixes those
of the ends, "first" keeps those of the first network.

Frankle et al., ICML 2020 (instability of a state: train copies that differ in their data order, and
take the barrier between them). For a barrier between diverged copies the error at the ends tells:
look at both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import nan
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import trees
from prunejax.curvature import means, splits, vectors
from prunejax.curvature.callables import as_argument, call, on_host
from prunejax.measures import statistics
from prunejax.measures.differences import cosine as cosine
from prunejax.measures.differences import disagreement as disagreement
from prunejax.measures.differences import distance as distance

Tree = Any
POLICIES = ("recompute", "interpolate", "first")
POINTS = 21


class State(NamedTuple):
    """A network with BatchNorm: its parameters and its running statistics."""

    params: Tree
    stats: Tree


@dataclass(frozen=True)
class Path:
    """Means over a set along the line between two networks.

    Attributes:
      grid: [P] values of t in [0, 1].
      values: name -> [P]; "error" is 1 - "accuracy" where that is given.
      policy: of BatchNorm's statistics; "" for none.
      examples: of the set; `statistics_examples` those of recomputed statistics.
    """

    grid: np.ndarray
    values: dict[str, np.ndarray]
    policy: str
    examples: int
    statistics_examples: int

    def barrier(self, name: str = "error") -> float:
        """Max over t minus the mean of the two ends; half their difference if none is higher.

        NaN where the quantity is NaN at a point of the line.
        """
        if name not in self.values:
            raise ValueError(f"no {name!r} along the path; there are: {', '.join(self.values)}")
        found = self.values[name]
        return float(found.max() - (found[0] + found[-1]) / 2)

    def peak(self, name: str = "error") -> float:
        """The t at which it is largest (the first of equal ones); NaN as the barrier."""
        values = self.values[name]
        return nan if np.isnan(values).any() else float(self.grid[np.argmax(values)])


@dataclass(frozen=True)
class Barriers:
    """Barriers of each two of several networks.

    Attributes:
      matrix: [n, n], symmetric, 0 on the diagonal.
      ends: [n], the quantity at the networks themselves.
      mean: over pairs. Pairs that share a network are not independent: intervals go over parents.
      name: the quantity; `policy` of BatchNorm's statistics.
    """

    matrix: np.ndarray
    ends: np.ndarray
    mean: float
    name: str
    policy: str


def _between(a: Tree, b: Tree, t: jax.Array) -> Tree:
    """(1 - t) a + t b, exactly a and b at the ends."""
    mixed = vectors.add(vectors.scale(1 - t, a), b, t)
    return vectors.cast_like(mixed, a)  # cast back once, at the end


def _pooled(of_batch: Callable[[Tree], Tree], groups: list[Tree], like: Tree) -> Tree:
    """Statistics over all batches: leaves "mean" are averaged, "var" with the spread of means."""

    def moments(batch: Tree) -> dict[str, jax.Array]:
        found = dict(trees.leaves_with_paths(of_batch(batch)))
        for path, x in list(found.items()):
            mean = found.get(f"{path[:-3]}mean") if path.endswith("/var") else None
            # second moments add up over batches, variances do not
            found[path] = x if mean is None else x + jnp.square(mean)
        return found

    totals: Any = None
    count = 0
    for group in groups:
        length, size = jax.tree.leaves(group)[0].shape[:2]
        parts = jax.lax.map(moments, group)
        # a batch counts by its examples
        total = jax.tree.map(lambda x, size=size: size * x.sum(0), vectors.upcast(parts))
        totals = total if totals is None else vectors.add(totals, total)
        count += length * size
    means = {path: x / count for path, x in totals.items()}
    for path in means:
        if path.endswith("/var") and f"{path[:-3]}mean" in means:
            # Below 0 by rounding alone.
            means[path] = jnp.maximum(means[path] - jnp.square(means[f"{path[:-3]}mean"]), 0)
    return vectors.cast_like(trees.replace(like, means), like)


@partial(jax.jit, static_argnames="policy")
def _along(
    evaluate: Any, statistics: Any, ends: Any, grid: jax.Array, groups: Any, pool: Any, policy: str
) -> dict[str, jax.Array]:
    a, b = ends

    def at(t: jax.Array) -> dict[str, jax.Array]:
        if not policy:
            params = _between(a, b, t)
            return means.over_split(lambda batch: call(evaluate, params, batch), groups)
        params, stats = _between(a.params, b.params, t), a.stats
        if policy != "first":
            stats = _between(a.stats, b.stats, t)
        if policy == "recompute":
            mixed = stats
            stats = _pooled(lambda batch: statistics(params, mixed, batch), pool, mixed)
        return means.over_split(lambda batch: evaluate(params, stats, batch), groups)

    return jax.lax.map(at, grid)


def _checked(a: Any, b: Any) -> tuple[Any, Any]:
    """Both networks as arrays; ValueError unless they are alike."""
    if isinstance(a, State) != isinstance(b, State):
        raise ValueError("one network has statistics (State) and the other has none")
    pairs = [(a.params, b.params), (a.stats, b.stats)] if isinstance(a, State) else [(a, b)]
    for x, y in pairs:
        vectors.check_like(y, x, "the second network")
    return vectors.check_params(a), vectors.check_params(b)


@on_host()
def path(
    evaluate: Callable[..., Any],
    a: Tree | State,
    b: Tree | State,
    batches: splits.Batches = None,
    *,
    points: int = POINTS,
    policy: str = "recompute",
    statistics: Callable[[Tree, Tree, Tree], Tree] | None = None,
    statistics_batches: splits.Batches = None,
    batch_size: int | None = None,
) -> Path:
    """Loss, accuracy, ... at equally spaced points between two networks, ends included.

    Args:
      evaluate: `(params, batch) -> scalar or dict of scalars`, means over the batch; with States
        `(params, stats, batch)`, BatchNorm in evaluation mode.
      a, b: two networks: parameter trees, or States.
      batches: the set: one batch, a list, or a function (see `curvature.splits`).
      points: at least 2; 3 is the midpoint variant.
      policy: of BatchNorm's statistics, one of `POLICIES`; without a State there are none.
      statistics: for "recompute": `(params, stats, batch)` -> the statistics of this batch alone,
        a tree like stats; `linen_statistics` makes it.
      statistics_batches: training examples they are taken from, 2,000 or more where there are.
      batch_size: cuts one batch into several.

    Raises:
      ValueError: networks that are not alike, unknown policy, nothing to recompute from.
    """
    if points < 2:
        raise ValueError(f"points is {points!r}; a line has at least 2")
    a, b = _checked(a, b)
    used, of_batch, pool = "", None, None
    if isinstance(a, State):
        if policy not in POLICIES:
            raise ValueError(f"policy {policy!r} is not one of: {', '.join(POLICIES)}")
        used = policy
    if used == "recompute":
        if statistics is None or statistics_batches is None:
            raise ValueError(
                "policy 'recompute' needs statistics and statistics_batches (training examples); "
                "or name policy='interpolate' or 'first'"
            )
        of_batch = as_argument(statistics)
        pool = means.stacked_groups(statistics_batches, None)
    groups = means.stacked_groups(batches, batch_size)
    grid = np.linspace(0, 1, points)
    dtype = jnp.result_type(*jax.tree.leaves(vectors.upcast(a)))
    out = _along(
        as_argument(evaluate), of_batch, (a, b), jnp.asarray(grid, dtype), groups, pool, used
    )
    values = {name: np.asarray(value, np.float64) for name, value in out.items()}
    if "accuracy" in values and "error" not in values:
        values["error"] = 1 - values["accuracy"]
    seen = means.examples(pool) if pool else 0
    return Path(grid, values, used, means.examples(groups), seen)


@on_host(path)
def barrier_matrix(
    evaluate: Callable[..., Any],
    networks: Sequence[Tree | State],
    batches: splits.Batches = None,
    *,
    name: str = "error",
    **options: Any,
) -> Barriers:
    """Barriers between each two networks (seeds, levels of pruning, copies), one program for all.

    Args:
      evaluate, batches, options: as in `path`.
      networks: two or more, all alike.
      name: which quantity.
    """
    n = len(networks)
    if n < 2:
        raise ValueError(f"{n} network; a barrier is between two")
    matrix, ends, policy = np.zeros((n, n)), np.zeros(n), ""
    for i in range(n):
        for j in range(i + 1, n):
            line = path(evaluate, networks[i], networks[j], batches, **options)
            matrix[i, j] = matrix[j, i] = line.barrier(name)
            ends[i], ends[j], policy = line.values[name][0], line.values[name][-1], line.policy
    mean = statistics.center(matrix[np.triu_indices(n, 1)])  # of the lines that have a number
    return Barriers(matrix, ends, mean, name, policy)


def instability(parents: Sequence[Barriers]) -> statistics.Mean:
    """Mean barrier of copies of one state, with the interval over parents (independent runs).

    Args:
      parents: of each parent the barriers between its copies: their mean is one value.
    """
    if len({(found.name, found.policy) for found in parents}) > 1:
        raise ValueError("the parents' barriers are of different quantities or BatchNorm policies")
    return statistics.mean([found.mean for found in parents])


def linen_statistics(
    module: Any,
    inputs: Callable[[Tree], jax.Array] = lambda batch: batch[0],
    collections: Callable[[Tree], dict[str, Tree]] = lambda params: {"params": params},
) -> Callable[[Tree, Tree, Tree], Tree]:
    """`statistics` of a Linen module whose call takes `train`: BatchNorm's of one batch.

    A running statistic is linear in what it was before, so that two updates from known values give
    the batch's own whatever the momentum. A field `dropout` is set to 0.

    Args:
      module: a Linen module with collection "batch_stats".
      inputs: what of a batch the module reads, [n, ...].
      collections: of what a line is drawn between, the module's variables beside the statistics.
    """
    plain = module.clone(dropout=0.0) if getattr(module, "dropout", 0.0) else module
    high = 1e8  # far above any statistic, so that momentum is exact to rounding

    def of_batch(params: Tree, stats: Tree, batch: Tree) -> Tree:
        def updated(value: float) -> Tree:
            old = jax.tree.map(lambda x: jnp.full_like(x, value), stats)
            variables = collections(params) | {"batch_stats": old}
            _, new = plain.apply(variables, inputs(batch), train=True, mutable=["batch_stats"])
            return new["batch_stats"]

        low, far = updated(0.0), updated(high)
        # (far - low) / high is the momentum m, low is 1 - m times the batch's own.
        return jax.tree.map(lambda x, y: x / (1 - (y - x) / high), low, far)

    return of_batch
