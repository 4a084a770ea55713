"""What masks amount to: exact counts, sparsities and a report by leaf (on the host)."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import trees
from prunejax.ops import counts

Tree = Any


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf: `live` of `total` entries are not masked."""

    path: str
    live: int
    total: int
    prunable: bool

    @property
    def sparsity(self) -> float:
        """Fraction removed."""
        return 1 - self.live / self.total if self.total else 0.0


@dataclasses.dataclass(frozen=True)
class Report:
    """Counts by leaf and the two sparsities (fractions removed).

    What stays and only dead units feed or read is counted by `wiring.live`, from a network's links.

    Attributes:
      leaves: one row per leaf, in leaf order.
      prunable: of the entries of prunable leaves.
      overall: of all entries.
      collapsed: paths of prunable leaves with nothing live: no signal passes there.
    """

    leaves: tuple[Leaf, ...]
    prunable: float
    overall: float
    collapsed: tuple[str, ...]

    def __str__(self) -> str:
        width = max((len(leaf.path) for leaf in self.leaves), default=4)
        lines = [f"{'leaf':{width}}  {'live':>12}  {'total':>12}  sparsity"]
        lines += [
            f"{x.path:{width}}  {x.live:12,}  {x.total:12,}  "
            + (f"{x.sparsity:8.4f}" if x.prunable else "   never")
            for x in self.leaves
        ]
        lines.append(f"sparsity of prunable weights {self.prunable:.6f}, of all {self.overall:.6f}")
        if self.collapsed:
            lines.append(f"COLLAPSED (nothing live): {', '.join(self.collapsed)}")
        return "\n".join(lines)


def count(masks: Tree, params: Tree) -> dict[str, tuple[int, int]]:
    """Path -> (live, total) entries, exact Python integers at any size."""
    result = {}
    for (path, leaf), mask in zip(
        trees.arrays(params), trees.aligned(params, masks, "the masks"), strict=True
    ):
        trees.fits(path, mask, np.shape(leaf), "its leaf")
        total, size = math.prod(np.shape(leaf)), math.prod(np.shape(mask))
        # an entry of a broadcast mask stands for so many
        result[path] = (counts.live(mask) * (total // size) if size else 0, total)
    return result


def report(masks: Tree, params: Tree, *, prunable: str | Iterable[str] | None = None) -> Report:
    """Counts and sparsities of masks.

    Args:
      masks: masks of `params`.
      params: the parameters (only shapes are read).
      prunable: path rules (see `trees.match`) of the leaves that count as prunable; None: those
        whose mask is not a scalar.
    """
    found = count(masks, params)
    flat = dict(zip(found, map(np.asarray, trees.aligned(params, masks, "")), strict=True))
    chosen = (
        set(trees.match(params, prunable))
        if prunable is not None
        else {path for path, mask in flat.items() if mask.ndim}
    )
    leaves = tuple(Leaf(p, live, total, p in chosen) for p, (live, total) in found.items())
    picked = [x for x in leaves if x.prunable]
    return Report(
        leaves,
        _fraction(picked),
        _fraction(leaves),
        tuple(x.path for x in picked if x.total and not x.live),
    )


def _fraction(leaves: Sequence[Leaf]) -> float:
    total = sum(x.total for x in leaves)
    return 1 - sum(x.live for x in leaves) / total if total else 0.0


def overlap(a: Tree, b: Tree, params: Tree) -> float:
    """Jaccard index of two masks: live in both / live in either (1 if nothing is live)."""
    both = either = 0
    for (path, leaf), x, y in zip(
        trees.arrays(params),
        trees.aligned(params, a, "the first masks"),
        trees.aligned(params, b, "the second masks"),
        strict=True,
    ):
        for mask in (x, y):
            trees.fits(path, mask, np.shape(leaf), "its leaf")
        x, y = (np.broadcast_to(np.asarray(m, bool), np.shape(leaf)) for m in (x, y))
        both += int(np.count_nonzero(x & y))
        either += int(np.count_nonzero(x | y))
    return both / either if either else 1.0


def bcoo(params: Tree, masks: Tree) -> Tree:
    """Parameters with each masked matrix as a `jax.experimental.sparse.BCOO` of its live weights.

    `x @ bcoo(params, masks)["dense1"]["kernel"]` is the masked product. When that pays in time is
    measured in docs/shrink.md.

    Args:
      params: arrays; a leaf of two axes or more whose mask has its shape becomes sparse, a
        convolution kernel [height, width, in, out] as the matrix [height * width * in, out] of its
        products with patches. All other leaves are masked and stay dense, as NumPy arrays.
      masks: of the parameters.

    Raises:
      ValueError: masks that do not fit.
    """
    from jax.experimental import sparse  # late: with scipy.sparse half a second

    def make(path: str, matrix: np.ndarray) -> Any:
        places = np.argwhere(matrix).astype(np.int32)  # not by SciPy, which has no 16-bit floats
        return sparse.BCOO(
            (jnp.asarray(matrix[tuple(places.T)]), jnp.asarray(places)), shape=matrix.shape
        )

    return _sparse(params, masks, make)


def csr(params: Tree, masks: Tree) -> Tree:
    """As `bcoo`, with `scipy.sparse.csr_array` (on the host), which has no 16-bit floats.

    Raises:
      ValueError: masks that do not fit, or a leaf of a dtype that SciPy has not.
    """
    from scipy.sparse import csr_array

    def make(path: str, matrix: np.ndarray) -> Any:
        try:
            return csr_array(matrix)
        except ValueError:
            raise ValueError(
                f"leaf {path!r} is {matrix.dtype}, of which SciPy makes no sparse matrix; give "
                "float32, or take sparsity.bcoo"
            ) from None

    return _sparse(params, masks, make)


def _sparse(params: Tree, masks: Tree, make: Callable[[str, np.ndarray], Any]) -> Tree:
    found, structure = trees.arrays(params), jax.tree.structure(params)
    result = []
    for (path, leaf), mask in zip(found, trees.aligned(params, masks, "the masks"), strict=True):
        trees.fits(path, mask, np.shape(leaf), "its leaf")
        weights = np.asarray(leaf)
        live = np.where(np.asarray(mask, bool), weights, np.zeros((), weights.dtype))
        whole = live.ndim >= 2 and np.shape(mask) == live.shape
        result.append(make(path, live.reshape(-1, live.shape[-1])) if whole else live)
    return jax.tree.unflatten(structure, result)
