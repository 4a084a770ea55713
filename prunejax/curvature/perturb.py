"""Loss and accuracy along directions, on a full split in one program, and epsilon-flatness.

    line                       w + ε v for each direction v and each ε of a grid
    eigenvector_perturbation   the same along unit eigenvectors on the paper's grid
    slice_1d, slice_2d         loss surfaces as arrays
    epsilon_flatness           how far along lines before the loss has risen by a threshold

`evaluate(params, batch)` returns the mean over the batch of one quantity, or a dict of several
(such as {"loss": ..., "accuracy": ...}); batches of different size are weighted by it. Nothing is
differentiated. Directions are restricted to the live subspace by `masks`.

Bartoldson et al., NeurIPS 2020 (ten leading eigenvectors, ε from -0.40 to 0.40 in steps of 0.01,
loss of the full test set, threshold 0.1); Li et al., NeurIPS 2018, arXiv 1712.09913 (filter
normalization).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.curvature import means, vectors
from prunejax.curvature.callables import as_argument, call, on_host
from prunejax.curvature.directions import Directions, stack_of, unit
from prunejax.curvature.splits import Batches

Tree = Any
Evaluate = Callable[[Tree, Tree], Any]
PAPER_GRID = np.arange(-40, 41) / 100  # ε of the paper: -0.40 to 0.40 in steps of 0.01


@dataclass(frozen=True)
class Line:
    """Quantities along lines through the parameters.

    Attributes:
      grid: [E], the values of ε, sorted.
      values: name -> [directions, E] means over the split.
      base: name -> value at ε = 0.
      examples: in the split.
      live_dim: coordinates that are live.
    """

    grid: np.ndarray
    values: dict[str, np.ndarray]
    base: dict[str, float]
    examples: int
    live_dim: int

    def increase(self, name: str = "loss") -> np.ndarray:
        """[directions, E]: value minus the value at ε = 0."""
        return self.values[name] - self.base[name]


@dataclass(frozen=True)
class Surface:
    """Quantities on a plane through the parameters, `values[name][i, j]` at w + x_i u + y_j v."""

    x: np.ndarray
    y: np.ndarray
    values: dict[str, np.ndarray]
    base: dict[str, float]
    examples: int
    live_dim: int


@jax.jit
def _evaluate_points(
    evaluate: Any, params: Tree, directions: Tree, index: jax.Array, steps: jax.Array, groups: Any
) -> dict[str, jax.Array]:
    """Name -> [points] of the means at w + Σ_m steps[p, m] directions[index[p, m]]."""

    def at(item: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        which, step = item
        moved = vectors.upcast(params)
        for m in range(index.shape[1]):
            one = jax.tree.map(lambda x, m=m: x[which[m]], directions)
            moved = vectors.add(moved, one, step[m])
        point = vectors.cast_like(moved, params)  # cast back once, at the end
        return means.over_split(lambda batch: call(evaluate, point, batch), groups)

    return jax.lax.map(at, (index, steps))


def _measure(
    evaluate: Evaluate, params: Tree, stack: Tree, index: np.ndarray, steps: np.ndarray,
    batches: Batches, batch_size: int | None,
) -> tuple[dict[str, np.ndarray], dict[str, float], int]:  # fmt: skip
    """Values at the points, values at the parameters themselves, and the examples used."""
    groups = means.stacked_groups(batches, batch_size)
    index = np.concatenate([np.zeros((1, index.shape[1]), index.dtype), index])
    steps = np.concatenate([np.zeros((1, steps.shape[1])), steps])  # step 0 is the first point
    out = _evaluate_points(
        as_argument(evaluate), params, stack, jnp.asarray(index),
        jnp.asarray(steps, vectors.sum_dtype(params)), groups,
    )  # fmt: skip
    values = {name: np.asarray(value, np.float64) for name, value in out.items()}
    here = {name: float(value[0]) for name, value in values.items()}
    return {name: value[1:] for name, value in values.items()}, here, means.examples(groups)


def _as_grid(grid: Any, name: str) -> np.ndarray:
    values = np.sort(np.asarray(grid, np.float64).ravel())
    if not values.size or not np.isfinite(values).all():
        raise ValueError(f"{name} must hold at least one finite number, got {grid!r}")
    return values


@on_host()
def line(
    evaluate: Evaluate,
    params: Tree,
    directions: Directions | Tree,
    grid: Any,
    batches: Batches = None,
    *,
    batch_size: int | None = None,
    masks: vectors.Masks = None,
) -> Line:
    """Evaluates w + ε v for every direction v and every ε of the grid, in one compiled program.

    Args:
      evaluate: `(params, batch) -> scalar or dict of scalars`, means over the batch
        (`evaluate(params)` without batches). A single scalar is called "loss".
      params: pytree of floating-point arrays; moved in float32 or wider, then cast back.
      directions: `Directions`, or a tree like params with a leading axis of directions. Used at
        the length they have.
      grid: values of ε.
      batches: the split: one batch, or a list of batches.
      batch_size: cuts one batch into pieces of this size, the last may be smaller.
      masks: True = live; dead coordinates do not move.

    Raises:
      ValueError: an empty or non-finite grid, directions that do not fit, values that are not
        scalars.
    """
    epsilon = _as_grid(grid, "grid")
    params, live = vectors.checked(params, masks)
    stack, count = stack_of(directions, params, live)
    index = np.repeat(np.arange(count), len(epsilon))[:, None]
    steps = np.tile(epsilon, count)[:, None]
    values, here, examples = _measure(evaluate, params, stack, index, steps, batches, batch_size)
    values = {name: value.reshape(count, -1) for name, value in values.items()}
    return Line(epsilon, values, here, examples, vectors.live_dimension(live, params))


@on_host()
def eigenvector_perturbation(
    evaluate: Evaluate,
    params: Tree,
    eigenvectors: Tree,
    batches: Batches = None,
    *,
    grid: Any = PAPER_GRID,
    batch_size: int | None = None,
    masks: vectors.Masks = None,
) -> Line:
    """`line` along eigenvectors scaled to length 1 over the whole (live) parameter vector.

    The paper takes the ten with the largest eigenvalues, the full test set, and `PAPER_GRID`.

    Args:
      evaluate, params, batches, batch_size, masks: as in `line`.
      eigenvectors: tree like params with a leading axis of vectors.
      grid: values of ε.
    """
    params, live = vectors.checked(params, masks)
    stack, _ = stack_of(eigenvectors, params, live)
    return line(evaluate, params, unit(stack), grid, batches, batch_size=batch_size, masks=masks)


@on_host()
def slice_1d(
    evaluate: Evaluate,
    params: Tree,
    direction: Tree,
    grid: Any,
    batches: Batches = None,
    *,
    batch_size: int | None = None,
    masks: vectors.Masks = None,
) -> Line:
    """`line` along one direction (a tree like params)."""
    stack = jax.tree.map(lambda x: jnp.asarray(x)[None], direction)
    return line(evaluate, params, stack, grid, batches, batch_size=batch_size, masks=masks)


@on_host()
def slice_2d(
    evaluate: Evaluate,
    params: Tree,
    directions: Directions | Tree,
    x: Any,
    y: Any,
    batches: Batches = None,
    *,
    batch_size: int | None = None,
    masks: vectors.Masks = None,
) -> Surface:
    """Evaluates w + x u + y v on the grid x times y, for a stack of the two directions u and v.

    Args: as in `line`; x and y are the two grids.
    """
    first, second = _as_grid(x, "x"), _as_grid(y, "y")
    params, live = vectors.checked(params, masks)
    stack, count = stack_of(directions, params, live)
    if count != 2:
        raise ValueError(f"a plane needs two directions, got {count}")
    steps = np.stack([v.ravel() for v in np.meshgrid(first, second, indexing="ij")], 1)
    index = np.tile(np.arange(2), (len(steps), 1))
    values, here, examples = _measure(evaluate, params, stack, index, steps, batches, batch_size)
    values = {name: value.reshape(len(first), -1) for name, value in values.items()}
    return Surface(first, second, values, here, examples, vectors.live_dimension(live, params))


@dataclass(frozen=True)
class EpsilonFlatness:
    """How far one can go before the loss rises by `threshold`; larger is flatter.

    Attributes:
      value: smallest |ε| of the grid at which the increase, maximal over directions and signs,
        is at least the threshold (the paper's number); inf where it is not reached.
      interpolated: where the increase crosses the threshold first, linear between grid points
        (a non-finite loss counts from its grid point on); inf where it is not reached.
      reached: whether the threshold is reached on the grid at all.
      direction: index of the direction that reaches `interpolated`, -1 for none.
      sign: 1 or -1, the side it is reached on, 0 for none.
      threshold: increase of the loss, nats.
      largest: largest |ε| looked at.
    """

    value: float
    interpolated: float
    reached: bool
    direction: int
    sign: int
    threshold: float
    largest: float


def epsilon_flatness(
    along: Line, *, threshold: float = 0.1, quantity: str = "loss"
) -> EpsilonFlatness:
    """The smallest |ε| at which the loss has risen by `threshold` along any direction.

    Args:
      along: from `line` or `eigenvector_perturbation`, over both signs of ε.
      threshold: increase of the quantity that counts; the paper's is 0.1 nats of test loss.
      quantity: which of the line's values.

    Raises:
      ValueError: the threshold is not positive, there is no such quantity, or it is not finite
        at ε = 0, where nothing rises from.
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be positive, got {threshold}")
    if quantity not in along.values:
        raise ValueError(f"no quantity {quantity!r}; the line has: {', '.join(along.values)}")
    if not np.isfinite(along.base[quantity]):
        raise ValueError(
            f"the {quantity} is {along.base[quantity]} at ε = 0; nothing rises from it"
        )
    increase = along.increase(quantity)
    increase = np.where(np.isnan(increase), np.inf, increase)  # NaN has risen, however far
    best, crossing = (np.inf, -1, 0), np.inf
    for sign in (1, -1):
        side = along.grid * sign > 0
        order = np.argsort(np.abs(along.grid[side]))
        distance = np.concatenate([[0.0], np.abs(along.grid[side])[order]])
        for i, row in enumerate(increase[:, side][:, order]):
            rise = np.concatenate([[0.0], row])
            over = np.flatnonzero(rise >= threshold)
            if not over.size:
                continue
            j = over[0]  # at least 1: the rise at 0 is 0, below the threshold
            crossing = min(crossing, distance[j])
            part = (threshold - rise[j - 1]) / (rise[j] - rise[j - 1])
            step = distance[j] - distance[j - 1]
            exact = distance[j - 1] + step * (part if np.isfinite(rise[j]) else 1.0)
            if exact < best[0]:  # of equal ones the first direction, the positive side first
                best = (float(exact), i, sign)
    return EpsilonFlatness(
        value=float(crossing), interpolated=best[0], reached=bool(np.isfinite(crossing)),
        direction=best[1], sign=best[2], threshold=threshold,
        largest=float(np.abs(along.grid).max()),
    )  # fmt: skip
