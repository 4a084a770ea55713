"""Spectral density by stochastic Lanczos quadrature.

For a random start vector v the m-step Lanczos matrix has eigenvalues θ_j and weights τ_j (squared
first components of its eigenvectors) with Σ_j τ_j f(θ_j) ≈ v'f(A)v / v'v, exact for polynomials up
to degree 2m - 1. The mean over start vectors estimates Tr f(A) / dim; f a normal density at t gives
the smoothed spectrum (Ubaru, Chen, Saad 2017; Ghorbani, Krishnan, Xiao 2019).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from prunejax import registry
from prunejax.curvature import splits, vectors
from prunejax.curvature.callables import check_positive, on_host
from prunejax.curvature.krylov import Krylov
from prunejax.curvature.operators import Operator, as_operator
from prunejax.curvature.trace import mean_and_stderr

Tree = Any


@dataclasses.dataclass(frozen=True)
class Density:
    """A spectral density: fraction of eigenvalues per unit, integrates to 1.

    Attributes:
      grid: [g] eigenvalues.
      density: [g] mean over start vectors.
      stderr: [g] its standard error over start vectors; NaN for a single one. It says how much
        start vectors differ, no more: density ± a multiple of it has no stated coverage. With few
        starts (4 by default) the error itself is uncertain, away from the bulk the values of one
        grid point are far from normal (a peak is there or not), and the bias from too few steps
        and from the kernel is not in it.
      sigma: standard deviation of the normal kernel that smooths it.
      nodes, weights: [starts, steps] raw quadrature; unused entries have weight 0.
      trace, trace_stderr: live_dim times the mean of Σ τ θ.
      steps: Lanczos steps per start vector.
      starts: how many start vectors.
      products, examples, live_dim: as in `Trace`.
    """

    grid: np.ndarray
    density: np.ndarray
    stderr: np.ndarray
    sigma: float
    nodes: np.ndarray
    weights: np.ndarray
    trace: float
    trace_stderr: float
    steps: int
    starts: int
    products: int
    examples: int | None
    live_dim: int

    def expectation(self, f: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
        """Mean of `f`, [...] -> [...], over eigenvalues (Tr f(A) / live_dim) and standard error."""
        return mean_and_stderr(np.sum(self.weights * f(self.nodes), axis=1))


def smoothed(
    nodes: np.ndarray, weights: np.ndarray, grid: np.ndarray, sigma: float
) -> tuple[np.ndarray, np.ndarray]:
    """Density and standard error [g] of raw quadratures under a normal kernel of width sigma.

    `nodes` and `weights` are [starts, steps], `grid` [g].
    """
    each = np.zeros((len(nodes), len(grid)))
    for row, node, weight in zip(each, nodes, weights, strict=True):
        for theta, tau in zip(node[weight > 0], weight[weight > 0], strict=True):
            row += tau * np.exp(-0.5 * ((grid - theta) / sigma) ** 2)
    each /= sigma * math.sqrt(2 * math.pi)
    if len(each) == 1:
        return each[0], np.full(len(grid), np.nan)
    # a start vector is the replication
    return each.mean(axis=0), each.std(axis=0, ddof=1) / math.sqrt(len(each))


@on_host()
def estimate_density(
    operator: Operator,
    *,
    key: jax.Array,
    steps: int = 64,
    starts: int = 4,
    distribution: str = "rademacher",
    sigma: float | None = None,
    grid: np.ndarray | int = 1024,
) -> Density:
    """Estimates the spectral density of an operator on its live space.

    Args:
      operator: the matrix.
      key: PRNG key of the start vectors.
      steps: Lanczos steps (products) per start vector; at most the live dimension are made, then
        the quadrature is exact for that vector. Memory: `steps` vectors.
      starts: start vectors; the error band needs at least 2.
      distribution: "rademacher" or "gaussian" start vectors.
      sigma: width of the smoothing in units of eigenvalues; default 1% of the range of the nodes.
      grid: where to evaluate: values [g], or how many between the extreme nodes, 5 sigma wider.

    Raises:
      ValueError: steps, starts, sigma or a grid that cannot be; no live coordinate.
    """
    vectors.check_law(distribution)
    if steps < 1 or starts < 1:
        raise ValueError(f"steps and starts must be at least 1, got {steps} and {starts}")
    if sigma is not None:
        check_positive(sigma=sigma)
    size = grid if registry.is_whole(grid) else np.size(grid)
    points = np.zeros(1) if registry.is_whole(grid) else np.asarray(grid, np.float64)
    if size < 1 or points.ndim != 1 or not np.isfinite(points).all():
        text = " ".join(repr(grid).split())[:80]
        raise ValueError(f"grid must be finite numbers [g], or how many, at least 1; got {text}")
    dim = operator.nonempty_dim()
    operator.check_symmetric()
    m = min(steps, dim)  # a Krylov space has no more vectors
    nodes, weights, products = np.zeros((starts, m)), np.zeros((starts, m)), 0
    own = vectors.named_key(key, "probe")
    for i in range(starts):
        space = Krylov(operator, m, own)
        space.basis.append_random(own, i, distribution)
        space.steps(m)
        values, rows, _ = space.ritz()
        nodes[i, : len(values)] = values
        nodes[i, len(values) :] = values[-1]  # of weight 0, and within the range of the nodes
        weights[i, : len(values)] = rows[:, 0] ** 2  # the start vector is the first of the basis
        products += space.products
    low, high = float(nodes.min()), float(nodes.max())
    if sigma is None:
        # where all nodes are one number: 1 % of that
        sigma = 0.01 * (high - low) or 0.01 * max(abs(high), 1.0)
    if registry.is_whole(grid):
        points = np.linspace(low - 5 * sigma, high + 5 * sigma, int(grid))
    value, stderr = smoothed(nodes, weights, points, sigma)
    mean, mean_stderr = mean_and_stderr(np.sum(weights * nodes, axis=1))
    return Density(
        grid=points, density=value, stderr=stderr, sigma=sigma, nodes=nodes,
        weights=weights, trace=dim * mean, trace_stderr=dim * mean_stderr, steps=m, starts=starts,
        products=products, examples=operator.examples, live_dim=dim,
    )  # fmt: skip


@on_host(estimate_density)
def spectral_density(
    loss: Any,
    params: Tree = None,
    batches: splits.Batches = None,
    *,
    key: jax.Array,
    masks: vectors.Masks = None,
    weights: Any = None,
    **options: Any,
) -> Density:
    """The spectral density of P H P.

    `loss`, `params`, `batches`, `masks`, `weights` are those of `Hessian`, or `loss` is an
    `Operator` and stands alone; `key` and the options (steps, starts, sigma, grid, ...) are those
    of `estimate_density`.
    """
    return estimate_density(as_operator(loss, params, batches, masks, weights), key=key, **options)
