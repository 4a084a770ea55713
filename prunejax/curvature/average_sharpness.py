"""Average-case sharpness: E L(w + s ∘ u) - L(w) under Gaussian noise u, with its standard error.

To second order it is sigma^2/2 times the trace of the Hessian (in the scaled coordinates).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.curvature import base, kernels, vectors
from prunejax.curvature.host import on_host
from prunejax.curvature.scaled import check_positive, moved, scaled_loss

Tree = Any


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
    rises = (losses.mean(1) if antithetic else losses[:, 0]) - here
    return AverageSharpness(
        value=float(rises.mean()),
        stderr=float(np.std(rises, ddof=1) / np.sqrt(samples)) if samples > 1 else float("nan"),
        loss=here, samples=samples, sigma=sigma, scaling=scaling, antithetic=antithetic,
        examples=problem.examples, live_dim=problem.live_dim,
    )  # fmt: skip
