"""Sharpness: how much the loss rises around the parameters, at worst and on average.

A perturbation is δ = s ∘ u with a scale s per coordinate: 1 ("absolute"), |w| ("magnitude": what
follows does not change when single weights are rescaled, as in Kwon et al. 2021, arXiv 2102.11600),
or |w| + 1 ("magnitude_plus_one"); it is 0 on dead coordinates. Then

    sharpness          max L(w + δ) - L(w)   over ||u||_2 <= radius or ||u||_inf <= radius
    keskar_sharpness   100 (max L(w + δ) - L(w)) / (1 + L(w)) over the box |δ_i| <= ε (|w_i| + 1)
    average_sharpness  E L(w + δ) - L(w) under Gaussian noise u, with its standard error

A maximum found by ascent is a lower bound; the value of each restart is kept to judge it by. To
second order the mean is sigma²/2 times the trace of the Hessian (in the scaled coordinates).
Keskar et al. 2017, arXiv 1609.04836; Foret et al. 2021, arXiv 2010.01412.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.curvature import kernels, splits, vectors
from prunejax.curvature.callables import as_argument, check_positive, on_host
from prunejax.curvature.splits import Batches
from prunejax.curvature.trace import mean_and_stderr
from prunejax.registry import lookup

Tree = Any
Loss = Callable[..., Any]
SCALINGS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "absolute": jnp.ones_like,
    "magnitude": jnp.abs,
    "magnitude_plus_one": lambda w: jnp.abs(w) + 1,
}


def moved(params: Tree, scales: Tree, u: Tree) -> Tree:
    """W + s ∘ u in the dtypes of the parameters."""
    moved = jax.tree.map(lambda w, s, x: w + s * x, vectors.upcast(params), scales, u)
    return vectors.cast_like(moved, params)  # cast back once, at the end


@jax.jit
def _value_and_slope(
    loss: Any, params: Tree, scales: Tree, u: Tree, batch: Tree, weight: Any
) -> tuple[jax.Array, Tree]:
    """Weighted loss at w + s ∘ u and its gradient with respect to u."""
    value, grad = jax.value_and_grad(kernels.scalar(loss, batch))(moved(params, scales, u))
    slope = jax.tree.map(jnp.multiply, scales, vectors.upcast(grad))
    return weight * vectors.upcast(value), vectors.scale(weight, slope)


@jax.jit
def _value(loss: Any, params: Tree, scales: Tree, u: Tree, batch: Tree, weight: Any) -> jax.Array:
    return weight * vectors.upcast(kernels.scalar(loss, batch)(moved(params, scales, u)))


class ScaledLoss:
    """The loss over all batches as a function of u; ValueError for an unknown scaling."""

    def __init__(
        self, loss: Any, params: Tree, batches: Batches, scaling: str, masks: vectors.Masks
    ) -> None:
        params, live = vectors.checked(params, masks)
        scale_of = lookup(SCALINGS, scaling, "scaling")
        self.weighted, self.examples = splits.weighted(batches)
        scales = vectors.project(live, jax.tree.map(scale_of, vectors.upcast(params)))
        self.at = as_argument(loss), params, scales
        self.scales, self.live_dim = scales, vectors.live_dimension(live, params)
        self.zero = jax.tree.map(jnp.zeros_like, scales)  # u of the parameters themselves

    def value(self, u: Tree) -> float:
        """L(w + s ∘ u)."""
        # in float64 on the host
        return sum(float(_value(*self.at, u, batch, weight)) for batch, weight in self.weighted)

    def value_and_slope(self, u: Tree) -> tuple[float, Tree]:
        """L(w + s ∘ u) and its gradient with respect to u."""
        total, slopes = 0.0, None
        for batch, weight in self.weighted:
            value, slope = _value_and_slope(*self.at, u, batch, weight)
            total += float(value)
            slopes = slope if slopes is None else vectors.add(slopes, slope)
        return total, slopes


@dataclass(frozen=True)
class Sharpness:
    """A worst case found by projected gradient ascent.

    Attributes:
      value: the increase of the loss (nats), or Keskar's percentage where that was asked for.
      increase: largest loss found minus the loss at the parameters, at least 0.
      loss: at the parameters.
      restarts: [restarts] largest increase of each.
      radius, norm, scaling, steps: what was asked for.
      examples, live_dim: as in `Forecast`.
      perturbation: the δ of the largest loss, a tree like the parameters.
    """

    value: float
    increase: float
    loss: float
    restarts: np.ndarray
    radius: float
    norm: str
    scaling: str
    steps: int
    examples: int
    live_dim: int
    perturbation: Tree


@partial(jax.jit, static_argnames="norm")
def _ascend(u: Tree, slope: Tree, step: Any, radius: Any, norm: str) -> Tree:
    """One step of steepest ascent in the norm, then back into the ball."""
    if norm == "linf":
        u = vectors.add(u, jax.tree.map(jnp.sign, slope), step)
        return jax.tree.map(lambda x: jnp.clip(x, -radius, radius), u)
    direction = vectors.scale(1 / vectors.unless_zero(vectors.norm(slope)), slope)
    u = vectors.add(u, direction, step)
    return vectors.scale(jnp.minimum(1.0, radius / vectors.unless_zero(vectors.norm(u))), u)


def _start(key: jax.Array, i: int, scales: Tree, radius: float, norm: str) -> Tree:
    """A random point on the boundary of a ball, on the coordinates that can move."""
    dtype = vectors.sum_dtype(scales)
    # a corner of the box, or uniform on the sphere
    kind = "rademacher" if norm == "linf" else "gaussian"
    u = vectors.sample(vectors.named_key(key, "sharpness"), i, scales, kind, dtype)
    # A weight of 0 has no room under "magnitude", nor has a dead one.
    u = vectors.project(jax.tree.map(lambda s: s > 0, scales), u)
    length = 1.0 if norm == "linf" else vectors.norm(u)
    return vectors.scale(radius / vectors.unless_zero(length), u)


@on_host()
def sharpness(
    loss: Loss,
    params: Tree,
    batches: Batches = None,
    *,
    radius: float,
    key: jax.Array,
    norm: str = "l2",
    scaling: str = "absolute",
    steps: int = 20,
    restarts: int = 3,
    masks: vectors.Masks = None,
) -> Sharpness:
    """The largest increase of the loss in a ball, by projected gradient ascent with restarts.

    Steps fall linearly from twice the radius to zero: the first ones are power iterations from
    boundary to boundary, the last ones settle. Every point visited counts.

    Args:
      loss: `loss(params)` or `loss(params, batch)`, the mean over the batch.
      params: pytree of floating-point arrays.
      batches: None, one batch, or a list of batches, weighted by size.
      radius: of the ball in u, see the module; for "absolute" in units of the weights.
      key: JAX PRNG key of the starting points.
      norm: "l2" or "linf".
      scaling: one of `SCALINGS`.
      steps: gradient steps of each restart.
      restarts: random starting points, the first next to the parameters, the others on the
        boundary.
      masks: True = live; dead coordinates do not move.

    Raises:
      ValueError: radius, steps or restarts not positive; unknown norm or scaling.
    """
    check_positive(radius=radius, steps=steps, restarts=restarts)
    lookup(dict.fromkeys(("l2", "linf")), norm, "norm")
    problem = ScaledLoss(loss, params, batches, scaling, masks)
    here = problem.value(problem.zero)
    best, best_u, found = -np.inf, problem.zero, []
    for i in range(restarts):
        # The first restart starts next to the parameters: it follows the gradient there.
        distance = radius if i else 1e-3 * radius
        u, top = _start(key, i, problem.scales, distance, norm), -np.inf
        for t in range(steps + 1):  # the start and the point behind the last step count, too
            if t < steps:
                value, slope = problem.value_and_slope(u)
            else:
                value = problem.value(u)
            value = value if not np.isnan(value) else np.inf  # a loss that left its domain
            top = max(top, value)
            if value > best:
                best, best_u = value, u
            if t < steps:
                u = _ascend(u, slope, 2 * radius * (1 - t / steps), radius, norm)
        found.append(top - here)
    increase = max(best - here, 0.0)  # in this order NaN stays NaN
    perturbation = jax.tree.map(
        jnp.multiply, problem.scales, best_u if increase > 0 else problem.zero
    )
    return Sharpness(
        value=increase, increase=increase, loss=here, restarts=np.array(found), radius=radius,
        norm=norm, scaling=scaling, steps=steps, examples=problem.examples,
        live_dim=problem.live_dim, perturbation=perturbation,
    )  # fmt: skip


@on_host()
def keskar_sharpness(
    loss: Loss, params: Tree, batches: Batches = None, *, key: jax.Array, epsilon: float = 1e-3,
    steps: int = 20, restarts: int = 3, masks: vectors.Masks = None,
) -> Sharpness:  # fmt: skip
    """Keskar et al.'s sharpness in percent, over the full space (their A is the identity).

    Args:
      loss, params, batches, key, steps, restarts, masks: as in `sharpness`.
      epsilon: half-width of the box in units of |w_i| + 1; the authors use 1e-3 and 5e-4.
    """
    found = sharpness(
        loss, params, batches, radius=epsilon, key=key, norm="linf",
        scaling="magnitude_plus_one", steps=steps, restarts=restarts, masks=masks,
    )  # fmt: skip
    # the loss at the parameters, as the authors divide
    return replace(found, value=100 * found.increase / (1 + found.loss))


@dataclass(frozen=True)
class AverageSharpness:
    """A Monte Carlo estimate of the mean increase.

    Attributes:
      value: mean increase of the loss, nats.
      stderr: of value, over the samples; NaN for one sample.
      loss: at the parameters.
      samples: independent draws; each is the mean of u and -u where antithetic.
      sigma: standard deviation of u.
      scaling: one of `SCALINGS`.
      antithetic: whether the linear term was cancelled.
      examples, live_dim: as in `Forecast`.
    """

    value: float
    stderr: float
    loss: float
    samples: int
    sigma: float
    scaling: str
    antithetic: bool
    examples: int
    live_dim: int


@jax.jit
def _sampled(
    loss: Any, params: Tree, scales: Tree, key: jax.Array, index: jax.Array, sigma: Any, batch: Tree
) -> jax.Array:
    """[samples, 2]: the loss at w + δ and at w - δ."""
    dtype = vectors.sum_dtype(scales)

    def at(i: jax.Array) -> jax.Array:
        u = vectors.scale(sigma, vectors.sample(key, i, scales, "gaussian", dtype))
        points = [moved(params, scales, v) for v in (u, vectors.scale(-1.0, u))]
        return vectors.upcast(jnp.stack([kernels.scalar(loss, batch)(p) for p in points]))

    return jax.lax.map(at, index)


@on_host()
def average_sharpness(
    loss: Loss, params: Tree, batches: Batches = None, *, sigma: float, key: jax.Array,
    scaling: str = "absolute", samples: int = 32, antithetic: bool = True,
    masks: vectors.Masks = None,
) -> AverageSharpness:  # fmt: skip
    """The mean increase of the loss under Gaussian noise, with its standard error.

    Args:
      loss, params, batches, masks: as in `sharpness`.
      sigma: standard deviation of u; for "absolute" in units of the weights.
      key: JAX PRNG key; sample i depends on (key, i) alone.
      scaling: one of `SCALINGS`.
      samples: independent draws.
      antithetic: evaluate u and -u and take the mean: two evaluations a sample, no linear term.

    Raises:
      ValueError: sigma or samples not positive; unknown scaling.
    """
    check_positive(sigma=sigma, samples=samples)
    problem = ScaledLoss(loss, params, batches, scaling, masks)
    here = problem.value(problem.zero)
    key, index = vectors.named_key(key, "average_sharpness"), jnp.arange(samples)
    losses = np.zeros((samples, 2))
    for batch, weight in problem.weighted:
        values = _sampled(*problem.at, key, index, sigma, batch)
        losses += weight * np.asarray(values, np.float64)
    # u and -u are one sample: their rises are not independent.
    rises = (losses.mean(1) if antithetic else losses[:, 0]) - here
    value, stderr = mean_and_stderr(rises)
    return AverageSharpness(
        value, stderr, loss=here, samples=samples, sigma=sigma, scaling=scaling,
        antithetic=antithetic, examples=problem.examples, live_dim=problem.live_dim,
    )  # fmt: skip
