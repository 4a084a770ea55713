"""Sharpness: how much the loss rises around the parameters, at worst and on average.

A perturbation is δ = s ∘ u with a scale s per coordinate, see `scaled`, and

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

from prunejax.curvature import base, kernels, vectors
from prunejax.curvature.callables import on_host
from prunejax.curvature.scaled import check_positive, moved, scaled_loss
from prunejax.registry import lookup

Tree = Any
NORMS = ("l2", "linf")


@dataclass(frozen=True)
class Sharpness:
    """A worst case found by projected gradient ascent.

    Attributes:
      value: the increase of the loss (nats), or Keskar's percentage where that was asked for.
      increase: largest loss found minus the loss at the parameters, at least 0.
      loss: at the parameters.
      restarts: [restarts] largest increase of each.
      radius: bound on the norm of u.
      norm: "l2" or "linf".
      scaling: one of `scaled.SCALINGS`.
      steps: gradient steps of a restart.
      examples: the loss is a mean over, 0 without batches.
      live_dim: coordinates that are live.
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
def _into_ball(u: Tree, radius: Any, norm: str) -> Tree:
    if norm == "linf":
        return jax.tree.map(lambda x: jnp.clip(x, -radius, radius), u)
    length = jnp.sqrt(base.squared_norm(u))
    return base.scale(jnp.minimum(1.0, radius / jnp.where(length > 0, length, 1)), u)


@partial(jax.jit, static_argnames="norm")
def _ascend(u: Tree, slope: Tree, step: Any, radius: Any, norm: str) -> Tree:
    """One step of steepest ascent in the norm, then back into the ball."""
    if norm == "linf":
        direction = jax.tree.map(jnp.sign, slope)
    else:
        length = jnp.sqrt(base.squared_norm(slope))
        direction = base.scale(1 / jnp.where(length > 0, length, 1), slope)
    return _into_ball(base.add(u, direction, step), radius, norm)


def _start(key: jax.Array, i: int, scales: Tree, radius: float, norm: str) -> Tree:
    """A random point on the boundary of a ball, on the coordinates that can move."""
    dtype = jnp.result_type(*jax.tree.leaves(scales))
    # a corner of the box, or uniform on the sphere
    kind = "rademacher" if norm == "linf" else "gaussian"
    u = vectors.sample(vectors.named_key(key, "sharpness"), i, scales, kind, dtype)
    # A weight of 0 has no room under "magnitude", nor has a dead one.
    u = base.project(jax.tree.map(lambda s: s > 0, scales), u)
    length = 1.0 if norm == "linf" else jnp.sqrt(base.squared_norm(u))
    return base.scale(radius / jnp.where(length > 0, length, 1), u)


@on_host()
def sharpness(
    loss: Callable[..., Any],
    params: Tree,
    batches: base.Batches = None,
    *,
    radius: float,
    key: jax.Array,
    norm: str = "l2",
    scaling: str = "absolute",
    steps: int = 20,
    restarts: int = 3,
    masks: base.Masks = None,
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
      scaling: one of `scaled.SCALINGS`.
      steps: gradient steps of each restart.
      restarts: random starting points, the first next to the parameters, the others on the
        boundary.
      masks: True = live; dead coordinates do not move.

    Raises:
      ValueError: radius, steps or restarts not positive; unknown norm or scaling.
    """
    check_positive(radius=radius, steps=steps, restarts=restarts)
    lookup(dict.fromkeys(NORMS), norm, "norm")
    problem = scaled_loss(loss, params, batches, scaling, masks)
    zero = problem.zero()
    here = problem.value(zero)
    best, best_u, found = -np.inf, zero, []
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
    perturbation = jax.tree.map(jnp.multiply, problem.scales, best_u if increase > 0 else zero)
    return Sharpness(
        value=increase, increase=increase, loss=here, restarts=np.array(found), radius=radius,
        norm=norm, scaling=scaling, steps=steps, examples=problem.examples,
        live_dim=problem.live_dim, perturbation=perturbation,
    )  # fmt: skip


@on_host()
def keskar_sharpness(
    loss: Callable[..., Any],
    params: Tree,
    batches: base.Batches = None,
    *,
    key: jax.Array,
    epsilon: float = 1e-3,
    steps: int = 20,
    restarts: int = 3,
    masks: base.Masks = None,
) -> Sharpness:
    """Keskar et al.'s sharpness in percent, over the full space (their A is the identity).

    Args:
      loss: as in `sharpness`.
      params: as in `sharpness`.
      batches: as in `sharpness`.
      key: as in `sharpness`.
      epsilon: half-width of the box in units of |w_i| + 1; the authors use 1e-3 and 5e-4.
      steps: as in `sharpness`.
      restarts: as in `sharpness`.
      masks: as in `sharpness`.
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
      scaling: one of `scaled.SCALINGS`.
      antithetic: whether the linear term was cancelled.
      examples: the loss is a mean over, 0 without batches.
      live_dim: coordinates that are live.
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
    dtype = jnp.result_type(*jax.tree.leaves(scales))

    def at(i: jax.Array) -> jax.Array:
        u = base.scale(sigma, vectors.sample(key, i, scales, "gaussian", dtype))
        points = [moved(params, scales, v) for v in (u, base.scale(-1.0, u))]
        return base.upcast(jnp.stack([kernels.scalar(loss, batch)(p) for p in points]))

    return jax.lax.map(at, index)


@on_host()
def average_sharpness(
    loss: Callable[..., Any],
    params: Tree,
    batches: base.Batches = None,
    *,
    sigma: float,
    key: jax.Array,
    scaling: str = "absolute",
    samples: int = 32,
    antithetic: bool = True,
    masks: base.Masks = None,
) -> AverageSharpness:
    """The mean increase of the loss under Gaussian noise, with its standard error.

    Args:
      loss: as in `sharpness`.
      params: as in `sharpness`.
      batches: as in `sharpness`.
      sigma: standard deviation of u; for "absolute" in units of the weights.
      key: JAX PRNG key; sample i depends on (key, i) alone.
      scaling: one of `scaled.SCALINGS`.
      samples: independent draws.
      antithetic: evaluate u and -u and take the mean: two evaluations a sample, no linear term.
      masks: as in `sharpness`.

    Raises:
      ValueError: sigma or samples not positive; unknown scaling.
    """
    check_positive(sigma=sigma, samples=samples)
    problem = scaled_loss(loss, params, batches, scaling, masks)
    here = problem.value(problem.zero())
    key, index = vectors.named_key(key, "average_sharpness"), jnp.arange(samples)
    losses = np.zeros((samples, 2))
    for batch, weight in problem.weighted:
        values = _sampled(problem.loss, problem.params, problem.scales, key, index, sigma, batch)
        losses += weight * np.asarray(values, np.float64)
    # u and -u are one sample: their rises are not independent.
    rises = (losses.mean(1) if antithetic else losses[:, 0]) - here
    return AverageSharpness(
        value=float(rises.mean()),
        stderr=float(np.std(rises, ddof=1) / np.sqrt(samples)) if samples > 1 else float("nan"),
        loss=here, samples=samples, sigma=sigma, scaling=scaling, antithetic=antithetic,
        examples=problem.examples, live_dim=problem.live_dim,
    )  # fmt: skip
