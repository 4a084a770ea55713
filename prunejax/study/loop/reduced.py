"""Runs that have lost units, measured on networks without them.

Where masks hold, a network without its dead units is the same function up to rounding: what reads a
unit that is 0 reads nothing. Parameters, random vectors and eigenvectors stay those of the whole
network; the smaller one picks its own of them (`smaller.chosen`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prunejax import models, trees
from prunejax.groups import Group
from prunejax.study.planning.plan import Batch
from prunejax.train import smaller
from prunejax.train.smaller import Smaller

Tree = Any
SHARES = (4, 2)  # a layer keeps a quarter, half or all of its units: arms share compiled measures
# Examples x weights saved x runs from which on measures of a size are worth their compilation: some
# 130 products with the Hessian a run, at 12 operations for each example and weight, against 8 s.
WORTH = 2**28


def networks(batch: Batch, examples: int, tell: Callable[[str], None]) -> list[Smaller]:
    """The smaller networks that a study's measures may take, the smallest first.

    A matter of the plan alone, so that shards and later commands measure the same way.

    Args: examples: that a run is measured on. tell: is told of a model that fails to be smaller.
    """
    groups, found = batch.program.groups, dict[tuple[int, ...], int]()
    for left, runs in batch.ends.items():
        sizes = tuple(_shared(g.units, n) for g, n in zip(groups, left, strict=True))
        found[sizes] = found.get(sizes, 0) + runs
    whole, made = _weights(batch.program.module, batch), list[tuple[int, Smaller]]()
    for sizes, runs in found.items():
        if examples * whole * runs < WORTH:  # however much it saved
            continue
        try:
            cut = smaller.of(batch.program, sizes)
        except ValueError:  # a model that has no smaller form
            continue
        except TypeError as error:
            tell(f"runs are measured on the whole network: {error}")
            return []
        weights = _weights(cut.program.module, batch)
        if examples * (whole - weights) * runs >= WORTH:
            made.append((weights, cut))
    return [cut for _, cut in sorted(made, key=lambda pair: pair[0])]


def _shared(units: int, left: int) -> int:
    return next((units // n for n in SHARES if left <= units // n), units)


def _weights(module: Any, batch: Batch) -> int:
    shapes = models.shapes(module, batch.program.image_shape)["params"]
    return sum(leaf.size for _, leaf in trees.leaves_with_paths(shapes))


def fitting(
    networks: Sequence[Smaller], groups: Sequence[Group], masks: Tree, gates: Mapping[str, Any]
) -> tuple[Smaller, dict[str, np.ndarray]] | None:
    """The first network that has room for all live units, and which it has of each layer [kept].

    Args: masks, gates: of the run; what they leave open counts as live.
    """
    known = dict(trees.leaves_with_paths(masks))
    live = {}
    for g in groups if networks else ():
        parts = [_open(known[path], g.units) for path in (g.kernel, *g.affine)]
        if g.gate is not None:
            parts.append(_open(gates[g.gate], g.units))
        live[g.name] = np.any(parts, axis=0)
    for cut in networks:
        if all(live[name].sum() <= kept for name, (_, kept) in cut.units.items()):
            # Live units in their order, then dead ones.
            return cut, {
                name: np.argsort(~live[name], kind="stable")[:kept]
                for name, (_, kept) in cut.units.items()
            }
    return None


def _open(mask: Any, units: int) -> np.ndarray:
    """Of which units a mask, that broadcasts to its leaf, leaves anything: bool [units]."""
    mask = np.asarray(mask)
    return np.broadcast_to(mask.any(axis=tuple(range(mask.ndim - 1))), (units,))
