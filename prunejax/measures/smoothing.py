"""Randomized smoothing: what a network's class under Gaussian noise is sure to be.

Cohen, Rosenfeld & Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019:
the class most frequent under N(x, sigma^2 I) is constant within an L2 ball of radius
sigma Phi^-1(p), where p is a lower bound of its probability.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import losses, registry
from prunejax.curvature.callables import as_argument

Array = jax.Array


@dataclass(frozen=True)
class Smoothed:
    """The smoothed classifier on some inputs.

    Attributes:
      classes: int [n], the class; -1 where it abstains.
      radii: float [n], of the L2 ball in which the class is constant; 0 where it abstains.
      probabilities: float [n], the lower bound of the class's probability.
      confidence: of each statement.
    """

    classes: np.ndarray
    radii: np.ndarray
    probabilities: np.ndarray
    confidence: float

    @property
    def abstentions(self) -> float:
        """Share of inputs without a class."""
        return float(np.mean(self.classes < 0))

    def certified(self, labels: np.ndarray, radius: float = 0.0) -> float:
        """Share of inputs right by `labels` [n] throughout a ball; abstentions are wrong.

        Raises:
          ValueError: not one integer for each input, or one below 0.
        """
        y = np.asarray(labels).reshape(-1)
        # -1 stands for an abstention
        if y.size != self.classes.size or not losses.is_classes(y) or np.any(y < 0):
            there = f"{y.size} labels of {self.classes.size} inputs"
            raise ValueError(f"{there}; one each, from 0 (they are {y.dtype})")
        right = (self.classes == y) & (self.radii >= radius)
        return float(np.mean(right))


def clopper_pearson(successes: Any, trials: int, alpha: float) -> np.ndarray:
    """Exact one-sided lower bounds of binomial probabilities, each missed with at most `alpha`.

    Of the shape of `successes`.
    """
    from scipy import special  # late, as in `statistics.t_factor`

    k = np.asarray(successes)
    # Without a success the quantile is not defined, and nothing is bounded.
    return np.where(k > 0, special.betaincinv(k, trials - k + 1, alpha), 0.0)


@partial(jax.jit, static_argnames=("draws", "classes"))
def _counts(outputs: Any, x: Array, sigma: Array, key: Array, draws: int, classes: int) -> Array:
    """int32 [n, classes]: how often each class is given under noise; a NaN output gives none."""

    def draw(total: Array, number: Array) -> tuple[Array, None]:
        noise = jax.random.normal(jax.random.fold_in(key, number), x.shape)
        # Not cut to the range of pixels: the certificate is about plain normal noise.
        given = losses.predicted(outputs(x + sigma * noise))
        return total + jax.nn.one_hot(given, classes, dtype=jnp.int32), None

    start = jnp.zeros((x.shape[0], classes), jnp.int32)
    return jax.lax.scan(draw, start, jnp.arange(draws))[0]


def smooth(
    outputs: Callable[[Array], Array],
    x: Array,
    classes: int,
    sigma: float,
    *,
    key: Array,
    select: int = 64,
    draws: int = 1000,
    alpha: float = 0.001,
) -> Smoothed:
    """Certifies inputs: a first sample chooses the class, another one bounds its probability.

    Args:
      outputs: x -> logits [n, classes].
      x: [n, ...].
      classes: number of classes.
      sigma: standard deviation of the noise, in units of x.
      key: of the noise; both samples are streams of their own.
      select, draws: sizes of the two samples.
      alpha: each statement is wrong with at most this probability.

    Raises ValueError: sigma or alpha out of range, counts that are no whole numbers from 1.
    """
    registry.whole(1, classes=classes, select=select, draws=draws)
    if not sigma > 0 or not 0 < alpha < 1:
        raise ValueError(f"sigma={sigma}, alpha={alpha}: a positive sigma, and alpha in (0, 1)")
    size, fn = jnp.float32(sigma), as_argument(outputs)
    first = _counts(fn, x, size, jax.random.fold_in(key, 0), select, classes)
    chosen = np.asarray(first).argmax(1)
    second = np.asarray(_counts(fn, x, size, jax.random.fold_in(key, 1), draws, classes))
    low = clopper_pearson(second[np.arange(len(chosen)), chosen], draws, alpha)
    from scipy import special  # late, as above

    sure = low > 0.5  # the runner-up may have all that is left
    radii = np.where(sure, sigma * special.ndtri(np.where(sure, low, 0.5)), 0.0)
    return Smoothed(np.where(sure, chosen, -1), radii, low, 1 - alpha)
