"""Weight matching: permute the units of one network so that its weights are nearest another's.

    chain = permutations(models.groups(module, variables), params)     # MLP, VGG, plain conv nets
    found = weight_matching(a, b, chain)
    found.params                                            # b, the same function, units reordered

Layer by layer the order that maximizes <a, permuted b> is found with all other orders fixed (a
linear assignment), until no layer gains: Ainsworth, Hayase and Srinivasa, ICLR 2023, with layers
visited in forward order. On the host, in double precision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from prunejax import registry, trees
from prunejax.groups import Group

Tree = Any


class Permutation(NamedTuple):
    """Where the units of one layer appear.

    An axis of k * units entries holds k blocks of units, as after flattening a map whose channels
    come last.
    """

    name: str
    units: int
    params: tuple[tuple[str, int], ...]  # (path, axis)
    stats: tuple[tuple[str, int], ...] = ()  # of BatchNorm


@dataclass(frozen=True)
class Matching:
    """The second network with its units in the order of the first's.

    Attributes:
      params: of the second network, permuted; `stats` too, where they were given.
      order: layer -> [units]: unit i is unit order[i] of the network that was given.
      similarity: <a, b> over all weights, before and after each sweep.
      converged: no layer gained in the last sweep.
    """

    params: Tree
    stats: Tree | None
    order: dict[str, np.ndarray]
    similarity: tuple[float, ...]
    converged: bool


def permutations(groups: Sequence[Group], params: Tree) -> tuple[Permutation, ...]:
    """The permutations of a chain of layers, from its groups in forward order.

    Raises:
      ValueError: no chain: residual connections, kernels that belong to no group but the
        classifier, or widths that do not follow each other.
    """
    if not groups:
        raise ValueError("no groups: there is nothing to permute")
    gates = [g.name for g in groups if g.gate]
    if gates:
        raise ValueError(
            f"layer {gates[0]!r} feeds a residual sum, whose units are shared by several layers; "
            "weight matching is for chains (MLP, VGG, plain convolutional networks)"
        )
    leaves = dict(trees.leaves_with_paths(params))
    kernels = [p for p, use in trees.leaves_with_paths(trees.kernels(params)) if use]
    rest = [p for p in kernels if p not in {g.kernel for g in groups}]
    if len(rest) != 1:
        raise ValueError(
            f"{len(rest)} kernels are in no group ({trees.shown(rest) or 'none'}); a chain has "
            "one, the classifier's"
        )
    readers = [*(g.kernel for g in groups[1:]), rest[0]]
    found = []
    for g, reader in zip(groups, readers, strict=True):
        axis = leaves[reader].ndim - 2
        inputs = leaves[reader].shape[axis]
        if inputs % g.units:
            raise ValueError(
                f"{reader!r} reads {inputs} inputs, no multiple of the {g.units} units of "
                f"{g.name!r}: they do not follow each other"
            )
        vectors = [(p, 0) for p in (*g.norm, *g.bias) if p in leaves]
        places = [(g.kernel, leaves[g.kernel].ndim - 1), *vectors, (reader, axis)]
        found.append(Permutation(g.name, g.units, tuple(places), tuple((p, 0) for p in g.stats)))
    return tuple(found)


def _reordered(x: np.ndarray, axis: int, order: np.ndarray) -> np.ndarray:
    """Units of one axis (in blocks, if it is longer) in another order.

    A mask that is one for all units, a scalar or of length 1 there, stays.
    """
    if not x.ndim or x.shape[axis] == 1:
        return x
    blocks = x.shape[axis] // order.size
    index = (np.arange(blocks)[:, None] * order.size + order[None, :]).ravel()
    return np.take(x, index, axis=axis)


def _rows(x: np.ndarray, axis: int, units: int) -> np.ndarray:
    """[units, everything else]."""
    split = x.reshape(*x.shape[:axis], -1, units, *x.shape[axis + 1 :])
    return np.moveaxis(split, axis + 1, 0).reshape(units, -1)


def permute(
    tree: Tree,
    chain: Sequence[Permutation],
    order: Mapping[str, np.ndarray],
    *,
    stats: bool = False,
) -> Tree:
    """A tree of parameters (or of statistics) with the units of its layers in the given orders.

    Args:
      tree: params, or batch_stats with `stats=True`; masks too.
      chain: from `permutations`.
      order: layer -> [units]; layers it does not name stay.

    Raises:
      ValueError: an order that is no permutation of the layer's units.
    """
    values = {p: np.asarray(x) for p, x in trees.leaves_with_paths(tree)}
    touched = {}
    for layer in chain:
        if layer.name not in order:
            continue
        new = np.asarray(order[layer.name])
        if not np.array_equal(np.sort(new), np.arange(layer.units)):
            raise ValueError(
                f"the order of {layer.name!r} is no permutation of 0..{layer.units - 1}"
            )
        for path, axis in layer.stats if stats else layer.params:
            values[path] = _reordered(values[path], axis, new)
            touched[path] = values[path]
    return trees.replace(tree, {path: jnp.asarray(x) for path, x in touched.items()})


def weight_matching(
    a: Tree, b: Tree, chain: Sequence[Permutation], *, stats: Tree | None = None, sweeps: int = 100
) -> Matching:
    """Orders of the units of `b` that bring its weights next to those of `a`.

    Args:
      a, b: parameter trees of one structure.
      chain: from `permutations`.
      stats: BatchNorm statistics of `b`, to be permuted with it.
      sweeps: over the layers, at most.

    Raises:
      ValueError: trees that are not alike, or weights that are not finite.
    """
    from scipy.optimize import linear_sum_assignment  # late: every study would load all of it

    registry.whole(0, sweeps=sweeps)
    paths = trees.paths(a)
    target = {p: np.asarray(x, np.float64) for p, x in trees.leaves_with_paths(a)}
    aligned = trees.aligned(a, b, "the second network")
    now = {p: np.asarray(x, np.float64) for p, x in zip(paths, aligned, strict=True)}
    for path in paths:
        if target[path].shape != now[path].shape:
            shapes = f"{target[path].shape} and {now[path].shape}"
            raise ValueError(f"leaf {path!r} has shapes {shapes} in the two networks")
        if not (np.isfinite(target[path]).all() and np.isfinite(now[path]).all()):
            raise ValueError(f"leaf {path!r} is not finite: no order of its units is the nearest")
    order = {layer.name: np.arange(layer.units) for layer in chain}
    similarity = [sum(float(np.vdot(target[p], now[p])) for p in paths)]
    converged = False
    while not converged and len(similarity) <= sweeps:
        converged = True
        for layer in chain:
            gain = np.zeros((layer.units, layer.units))
            for path, axis in layer.params:
                gain += (
                    _rows(target[path], axis, layer.units) @ _rows(now[path], axis, layer.units).T
                )
            _, new = linear_sum_assignment(gain, maximize=True)
            # Over leaving the order as it is.
            better = gain[np.arange(layer.units), new].sum() - np.trace(gain)
            # Rounding is no gain: else sweeps between equal orders would not end.
            if better <= 1e-12 * np.abs(gain).max() * layer.units:
                continue
            converged = False
            order[layer.name] = order[layer.name][new]
            for path, axis in layer.params:
                now[path] = _reordered(now[path], axis, new)
        similarity.append(sum(float(np.vdot(target[p], now[p])) for p in paths))
    return Matching(
        params=permute(b, chain, order),
        stats=None if stats is None else permute(stats, chain, order, stats=True),
        order=order, similarity=tuple(similarity), converged=converged,
    )  # fmt: skip
