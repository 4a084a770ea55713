"""How many units every layer keeps: explicit, uniform, Erdos-Renyi-Kernel. Exact integers.

`ALLOCATIONS[name](shapes, keep) -> {path: count}`; the counts add up to `keep` exactly and go
into `masks.prune(scores, counts, scope="layer")`. A global ranking needs no allocation:
`masks.prune(scores, keep)`. `counts(shapes, sparsity, allocation)` is all of it by name.
"""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from prunejax import schedules, trees

Shapes = Mapping[str, Sequence[int]]


def shapes_of(scores: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of the leaves that are not scalars."""
    return {path: np.shape(x) for path, x in trees.leaves_with_paths(scores) if np.shape(x)}


def explicit(shapes: Shapes, sparsities: Mapping[str, float]) -> dict[str, int]:
    """Counts from one sparsity (fraction removed) per path rule; leaves no rule names stay whole.

    Raises:
      ValueError: a rule matches nothing (the message lists the leaves), or two rules disagree.
    """
    counts = {path: math.prod(shape) for path, shape in shapes.items()}
    ruled: dict[str, str] = {}
    for rule, sparsity in sparsities.items():
        for path in trees.match(dict.fromkeys(shapes, 0), rule):
            if path in ruled and sparsities[ruled[path]] != sparsity:
                raise ValueError(f"rules {ruled[path]!r} and {rule!r} disagree on leaf {path!r}")
            ruled[path] = rule
            counts[path] = schedules.kept(math.prod(shapes[path]), sparsity)
    return counts


def _round(exact: Mapping[str, Fraction], keep: int, limits: Mapping[str, int]) -> dict[str, int]:
    """Integers that add up to `keep`: rounded down, the largest remainders (first ones) up."""
    # fractions, so exact
    counts = {path: min(math.floor(x), limits[path]) for path, x in exact.items()}
    missing = keep - sum(counts.values())
    order = sorted(exact, key=lambda path: counts[path] - exact[path])  # stable: leaf order
    while missing > 0:
        for path in order:
            if missing and counts[path] < limits[path]:
                counts[path] += 1
                missing -= 1
    return counts


def _sizes(shapes: Shapes, keep: int) -> dict[str, int]:
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    if not isinstance(keep, numbers.Integral) or isinstance(keep, bool):
        raise ValueError(f"keep = {keep!r} is no integer: it is a count of units")
    if not 0 <= keep <= sum(sizes.values()):
        raise ValueError(f"keep = {keep}: there are {sum(sizes.values())} units")
    return sizes


def uniform(shapes: Shapes, keep: int) -> dict[str, int]:
    """The same density in every layer."""
    sizes = _sizes(shapes, keep)
    density = Fraction(keep, max(1, sum(sizes.values())))
    return _round({path: size * density for path, size in sizes.items()}, keep, sizes)


def erk(shapes: Shapes, keep: int) -> dict[str, int]:
    """Erdos-Renyi-Kernel: density proportional to `sum(shape) / prod(shape)`, at most 1.

    Layers that would exceed density 1 stay dense and the others share what is left
    (Evci et al. 2020, equation 2 and following).
    """
    sizes = _sizes(shapes, keep)
    dense: set[str] = set()
    while True:
        free = [path for path in shapes if path not in dense]
        left = keep - sum(sizes[path] for path in dense)
        weight = sum(sum(shapes[path]) for path in free)
        if not free or not weight:
            break
        factor = Fraction(left, weight)
        # exact: no layer is dense by rounding
        over = {path for path in free if factor * sum(shapes[path]) > sizes[path]}
        if not over:
            exact = {path: factor * sum(shapes[path]) for path in free}
            exact |= {path: Fraction(sizes[path]) for path in dense}
            return _round({path: exact[path] for path in shapes}, keep, sizes)
        dense |= over
    return {path: sizes[path] for path in shapes}


ALLOCATIONS: dict[str, Callable[[Shapes, int], dict[str, int]]] = {"uniform": uniform, "erk": erk}
SHIPPED = dict(ALLOCATIONS)


def allocated(name: str, shapes: Shapes, keep: int) -> dict[str, int]:
    """What `ALLOCATIONS[name]`, which need not be of this module, gives; arguments as there.

    Raises:
      ValueError: no count for each leaf, no whole numbers from 0 to its units, or another sum.
    """
    found, sizes = ALLOCATIONS[name](shapes, keep), _sizes(shapes, keep)
    whole = isinstance(found, Mapping) and all(
        isinstance(n, numbers.Integral) and 0 <= n <= sizes.get(path, -1)
        for path, n in found.items()
    )
    if not whole or len(found) < len(sizes) or sum(found.values()) != keep:
        raise ValueError(
            f"allocation {name!r} gives {found!r} where {keep} units stay; a whole number for each "
            f"leaf, of at most its units, is needed, {keep} in all: {sizes}"
        )
    return {path: int(found[path]) for path in shapes}


def counts(
    shapes: Shapes, sparsity: float | None, allocation: str | Mapping[str, float]
) -> int | dict[str, int]:
    """What is kept of a sparsity (fraction removed): one integer if "global", else one a leaf.

    Args:
      shapes: leaf path -> shape of its units.
      sparsity: fraction removed of all units, None where `allocation` says it leaf by leaf.
      allocation: "global", a name in ALLOCATIONS, or path rule -> sparsity (`explicit`).

    Raises:
      ValueError: an unknown allocation, no sparsity, or two of them.
    """
    if isinstance(allocation, Mapping):
        if sparsity is not None:
            raise ValueError(
                f"sparsity {sparsity!r} beside sparsities by leaf {dict(allocation)!r}: give one "
                "of them"
            )
        return explicit(shapes, allocation)
    if allocation not in ("global", *ALLOCATIONS):
        raise ValueError(
            f"allocation {allocation!r} is not one of: global, {', '.join(ALLOCATIONS)}, or a dict "
            "from path rule to sparsity"
        )
    if sparsity is None:
        raise ValueError(f"allocation {allocation!r} needs sparsity=, the fraction removed (0..1)")
    keep = schedules.kept(sum(math.prod(shape) for shape in shapes.values()), sparsity)
    return keep if allocation == "global" else allocated(allocation, shapes, keep)
