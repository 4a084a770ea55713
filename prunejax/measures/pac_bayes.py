"""PAC-Bayes flatness: how much Gaussian noise the weights bear before accuracy falls.

1/sigma^2 for the largest standard deviation sigma whose mean drop of training accuracy is at most
0.1 (Neyshabur et al. 2017, Jiang et al. 2020). The magnitude-aware form scales the noise of each
weight with it: standard deviation sqrt(sigma^2 w^2 + epsilon^2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, nan
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.curvature import means, splits, vectors
from prunejax.curvature.callables import as_argument, call, check_positive, on_host
from prunejax.curvature.trace import mean_and_stderr

Tree = Any
DROP, UPPER, STEPS = 0.1, 2.0, 15
_ROUNDING = 1e-6  # of accuracies, means in single precision


@dataclass(frozen=True)
class Flatness:
    """The largest noise that a network bears.

    Attributes:
      value: 1 / sigma^2; inf where even the smallest noise tried is too much.
      sigma: standard deviation of the noise (magnitude-aware: in units of the weight).
      drop: mean drop of accuracy there, with `stderr` over the draws.
      accuracy: without noise.
      saturated: the upper end of the search was borne: sigma is at least that.
      draws, examples, live_dim: what it was computed on.
    """

    value: float
    sigma: float
    drop: float
    stderr: float
    accuracy: float
    saturated: bool
    draws: int
    examples: int
    live_dim: int


@jax.jit
def _accuracies(
    evaluate: Any, params: Tree, live: Tree, key: jax.Array, index: jax.Array, sigma: jax.Array,
    floor: jax.Array, aware: jax.Array, groups: Any,
) -> jax.Array:  # fmt: skip
    """[draws] accuracies at w + deviation * u_i; the same u_i for every sigma."""
    wide = vectors.upcast(params)

    def deviation(w: jax.Array) -> jax.Array:
        return jnp.where(aware, jnp.sqrt((sigma * w) ** 2 + floor**2), sigma)

    def at(i: jax.Array) -> jax.Array:
        dtype = jnp.result_type(*jax.tree.leaves(wide))
        noise = vectors.project(live, vectors.sample(key, i, wide, "gaussian", dtype))
        moved = jax.tree.map(lambda w, u: w + (deviation(w) * u).astype(w.dtype), wide, noise)
        point = vectors.cast_like(moved, params)
        found = means.over_split(lambda batch: call(evaluate, point, batch), groups)
        if "accuracy" not in found:
            raise ValueError(f"evaluate must return an 'accuracy', not only {', '.join(found)}")
        return found["accuracy"]

    return jax.lax.map(at, index)


@on_host()
def pac_bayes_flatness(
    evaluate: Callable[..., Any],
    params: Tree,
    batches: splits.Batches = None,
    *,
    key: jax.Array,
    magnitude_epsilon: float | None = None,
    drop: float = DROP,
    draws: int = 10,
    upper: float = UPPER,
    steps: int = STEPS,
    masks: vectors.Masks = None,
    batch_size: int | None = None,
) -> Flatness:
    """1/sigma^2 of the largest sigma in [0, `upper`] whose mean drop of accuracy is <= `drop`.

    Bisection with the same draws at every sigma; the split is evaluated at most
    `draws (steps + 2)` times.

    Args:
      evaluate: `(params, batch) -> {"accuracy": fraction, ...}`, means over the batch.
      params: BatchNorm folded (`folding.fold`).
      batches: the training set; see `curvature.splits`.
      key: draw i depends on (key, i) alone.
      magnitude_epsilon: None for noise of one size; else epsilon of the magnitude-aware form
        (1e-3 in the literature).
      drop: of accuracy, a fraction.
      draws: of the noise.
      upper: end of the search.
      steps: halvings.
      masks: what gets noise, e.g. the network's masks and `folding.weights`.
      batch_size: cuts one batch into several.

    Raises ValueError: draws, upper, steps or drop that are not positive; no accuracy.
    """
    check_positive(drop=drop, draws=draws, upper=upper, steps=steps)
    params = vectors.check_params(params)
    live = vectors.expand_masks(masks, params)
    groups = means.stacked_groups(batches, batch_size)
    own, index = vectors.named_key(key, "pac_bayes"), jnp.arange(draws)
    aware, floor = jnp.array(magnitude_epsilon is not None), float(magnitude_epsilon or 0.0)
    loss = as_argument(evaluate)

    def accuracies(sigma: float, floor: float) -> np.ndarray:
        size = (jnp.asarray(sigma, jnp.float32), jnp.asarray(floor, jnp.float32), aware)
        found = _accuracies(loss, params, live, own, index, *size, groups)
        return np.asarray(found, np.float64)

    accuracy = float(accuracies(0.0, 0.0)[0])  # without the floor, too: no noise at all

    def drops(sigma: float) -> np.ndarray:
        return accuracy - accuracies(sigma, floor)

    low, high, borne = 0.0, upper, drops(upper)
    most = drop + _ROUNDING
    saturated = bool(borne.mean() <= most)
    if saturated:
        low = upper
    else:
        borne = np.full(draws, nan)  # known once some noise is borne
        for _ in range(steps):
            middle = (low + high) / 2
            found = drops(middle)
            if found.mean() <= most:  # the mean over draws, not each of them
                low, borne = middle, found
            else:
                high = middle
    # a draw of the noise is the replication, the network is given
    mean, stderr = mean_and_stderr(borne)
    return Flatness(
        value=1 / low**2 if low else inf, sigma=low, drop=mean, stderr=stderr,
        accuracy=accuracy, saturated=saturated, draws=draws,
        examples=means.examples(groups), live_dim=vectors.live_dimension(live, params),
    )  # fmt: skip
