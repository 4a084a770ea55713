"""The second moment of per-example gradients, Tr(C), and the gradient noise scale.

With g_i the gradient of example i's loss on the live subspace and ḡ their mean:

    uncentered    Tr(C) = (1/N) Σ ||g_i||^2                      (the paper's)
    centered      Tr(C) = (1/N) Σ ||g_i - ḡ||^2 = uncentered - ||ḡ||^2

exact for the examples given, for any number of them and any chunk. Standard errors regard the
examples as a sample: they are those of the sample mean of ||g_i||^2, or of ||g_i - ḡ||^2.

Bartoldson et al., NeurIPS 2020 (flatness); Thomas et al., AISTATS 2020, arXiv 1906.07774.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from prunejax.curvature import base, vectors
from prunejax.curvature.callables import on_host
from prunejax.curvature.example_gradients import norms, norms_and_total, slopes
from prunejax.curvature.splits import chunk_size, chunks, spread

Tree = Any
TOGETHER = 8  # chunks that one call of a compiled kernel goes through, one after another
PerExampleLoss = Callable[[Tree, Tree], jax.Array]


@dataclass(frozen=True)
class GradientMoment:
    """Tr(C) on a set of examples.

    Attributes:
      value: the variant asked for; squared nats where the loss is in nats.
      stderr: of value, over examples; NaN for one example.
      centered: True if value is about the mean gradient.
      ddof: value is a sum over N - ddof (0 or 1).
      uncentered: (1/N) Σ ||g_i||^2.
      mean_gradient_squared_norm: ||ḡ||^2, or None where it was not asked for.
      examples: N.
      live_dim: coordinates that are live.
      squared_norms: [N] of ||g_i||^2, in the order of the examples.
      alignments: [N] of g_i·ḡ, or None where they were not needed.
    """

    value: float
    stderr: float
    centered: bool
    ddof: int
    uncentered: float
    mean_gradient_squared_norm: float | None
    examples: int
    live_dim: int
    squared_norms: np.ndarray
    alignments: np.ndarray | None

    @property
    def contributions(self) -> np.ndarray:
        """[N] whose mean is the moment with ddof=0: ||g_i||^2 or ||g_i - ḡ||^2."""
        if not self.centered:
            return self.squared_norms
        assert self.alignments is not None
        assert self.mean_gradient_squared_norm is not None
        return self.squared_norms - 2 * self.alignments + self.mean_gradient_squared_norm


@dataclass(frozen=True)
class NoiseScale:
    """The gradient noise scale Tr(C) / ||ḡ||^2, in examples.

    Attributes:
      value: the ratio; inf where the (bias-corrected) squared gradient is not positive.
      stderr: delta method over examples, numerator and denominator together; too small for an
        interval unless N is well above the value.
      interval: Fieller's 95 % interval over examples, its upper end inf where the mean gradient is
        not significantly different from zero; NaN for the biased ratio.
      moment: the numerator, and which C it is of.
      gradient_squared_norm: the denominator used.
      unbiased: True if the denominator is ||ḡ||^2 - Tr(C)/N, see `gradient_noise_scale`.
    """

    value: float
    stderr: float
    interval: tuple[float, float]
    moment: GradientMoment
    gradient_squared_norm: float
    unbiased: bool


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of `values` [n]; NaN for fewer than two."""
    n = len(values)
    # an example is the replication
    return float(np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")


def fieller(a: float, b: float, cov: np.ndarray, quantile: float) -> tuple[float, float]:
    """Fieller's interval of a/b: all R with (a - R b)² <= quantile² Var(a - R b) (Fieller 1954).

    It covers as it says where numerator and denominator are jointly normal. Means of per-example
    gradient norms are that only in the limit: where their law has heavy tails (a few examples carry
    most of the sum, as late in training), mean and covariance of a finite sample are both too small
    in most draws, and the truth lies above the interval more often than it says: with log-normal
    norms of log sd 1 and 2 a 95 % interval covers 93 and 71 % at 64 examples, 94 and 82 % at 382.
    More examples cure it slowly; the largest share of one example in the sum tells how far off one
    is.

    Args:
      a: estimate of the numerator.
      b: estimate of the denominator.
      cov: covariance of (a, b), of shape [2, 2].
      quantile: of Student's t or the normal law.

    Returns:
      (low, high); (-inf, inf) where b is within `quantile` standard errors of zero, (nan, nan)
      where the covariance is not known.
    """
    square = quantile**2
    lead = b * b - square * cov[1, 1]
    if np.isnan(cov).any():
        return float("nan"), float("nan")
    if lead <= 0:
        return -float("inf"), float("inf")
    middle = a * b - square * cov[0, 1]
    # Below 0 by rounding alone: b is significant here.
    root = np.sqrt(max(middle**2 - lead * (a * a - square * cov[0, 0]), 0.0))
    return float((middle - root) / lead), float((middle + root) / lead)


def reciprocal(interval: tuple[float, float]) -> tuple[float, float]:
    """The interval of 1/x >= 0 from that of x; parts at or below zero stand for infinity."""
    if np.isnan(interval).any():
        return interval
    low, high = (1 / x if x > 0 else float("inf") for x in interval[::-1])
    return low, high


def _moment(
    per_example_loss: PerExampleLoss,
    params: Tree,
    batches: base.Batches,
    centered: bool,
    ddof: int,
    chunk: int | None,
    masks: base.Masks,
    mean: bool,
    align: bool,
) -> GradientMoment:
    if ddof not in (0, 1) or (ddof and not centered):
        raise ValueError(f"ddof is 0, or 1 with centered=True; got {ddof}, centered={centered}")
    loss, params = base.as_argument(per_example_loss), vectors.check_params(params)
    batches = base.batch_list(batches)
    pieces = chunks(batches, chunk, 1 if spread((params, list(batches))) else TOGETHER)
    chunk = chunk_size(chunk, [base.batch_size(batch) for batch in batches])
    live = base.expand_masks(masks, params)
    total = jax.tree.map(jnp.zeros_like, base.upcast(params)) if mean else None
    dtype = base.accumulator(jnp.result_type(*jax.tree.leaves(params)))
    parts = []
    counted = [
        (p, (np.arange(base.batch_size(p)) < real).astype(dtype), real) for p, real in pieces
    ]
    for piece, weight, real in counted:
        if mean:
            squared, total = norms_and_total(loss, params, piece, weight, live, total, chunk=chunk)
        else:
            squared = norms(loss, params, piece, weight, live, chunk=chunk)
        # copies that filled the piece up are left out
        parts.append(np.asarray(squared, np.float64)[:real])
    squared_norms = np.concatenate(parts)
    n = len(squared_norms)
    if n <= ddof:
        raise ValueError(f"ddof={ddof} needs more than {ddof} examples, got {n}")
    mean_squared = alignments = None
    if mean:
        average = base.scale(1.0 / n, total)
        mean_squared = float(base.squared_norm(average))
    if align:
        along = [slopes(loss, params, p, w, average, chunk=chunk)[:r] for p, w, r in counted]
        alignments = np.concatenate([np.asarray(x, np.float64) for x in along])
    uncentered = float(squared_norms.mean())
    moment = GradientMoment(
        value=(uncentered - (mean_squared or 0.0)) * n / (n - ddof) if centered else uncentered,
        stderr=float("nan"),
        centered=centered,
        ddof=ddof,
        uncentered=uncentered,
        mean_gradient_squared_norm=mean_squared,
        examples=n,
        live_dim=base.live_dimension(live, params),
        squared_norms=squared_norms,
        alignments=alignments,
    )
    stderr = standard_error(moment.contributions) * n / (n - ddof)
    return GradientMoment(**{**vars(moment), "stderr": stderr})


@on_host()
def gradient_second_moment(
    per_example_loss: PerExampleLoss,
    params: Tree,
    batches: base.Batches,
    *,
    centered: bool = False,
    ddof: int = 0,
    mean: bool = False,
    chunk: int | None = None,
    masks: base.Masks = None,
) -> GradientMoment:
    """Tr(C) of the per-example gradients; see the module for the two variants.

    Per-example gradients are not stored: on CPU one exists at a time, and of dense layers and of
    convolutions with few positions none at all (see `example_gradients`).

    Args:
      per_example_loss: `(params, batch) -> [examples]`, each entry a function of its example
        alone. Closing over frozen BatchNorm statistics makes it eval-mode; batch statistics would
        be those of single examples.
      params: pytree of floating-point arrays.
      batches: one batch (pytree, examples along the leading axes) or a list of batches.
      centered: about the mean gradient; costs one more pass of forward mode, for its stderr.
      ddof: 1 divides the centered sum by N - 1 (unbiased), 0 by N.
      mean: also ||ḡ||^2, without the rest of the centered variant. It needs the sum of the
        gradients, which the uncentered moment alone does without.
      chunk: examples at once, default 32. Bounds the memory of activations; exact for any value.
      masks: True = live; gradients of dead coordinates do not count.

    Returns:
      `GradientMoment`.

    Raises:
      ValueError: no examples, a chunk below 1, or a ddof that does not apply.
    """
    both = mean or centered
    return _moment(per_example_loss, params, batches, centered, ddof, chunk, masks, both, centered)


@on_host()
def gradient_noise_scale(
    per_example_loss: PerExampleLoss,
    params: Tree,
    batches: base.Batches,
    *,
    centered: bool = True,
    unbiased: bool = True,
    chunk: int | None = None,
    masks: base.Masks = None,
) -> NoiseScale:
    """Tr(C) / ||g||^2: the batch size at which noise and mean of the gradient are equal.

    The "simple" noise scale of McCandlish et al. 2018, arXiv 1812.06162, for the centered C. With
    the uncentered C the ratio is larger by exactly 1. ||ḡ||^2 of N examples is on average Tr(C)/N
    larger than the squared norm of the population's gradient, so that the plain ratio of the two
    stays below N however noisy the gradient is; unbiased=True takes that part off.

    Args:
      per_example_loss: as in `gradient_second_moment`.
      params: as in `gradient_second_moment`.
      batches: as in `gradient_second_moment`.
      centered: which C; see above.
      unbiased: the centered C over N - 1, and ||ḡ||^2 less its expected noise Tr(C)/N. False: the
        ratio of the given examples' own moments.
      chunk: as in `gradient_second_moment`.
      masks: as in `gradient_second_moment`.

    Raises:
      ValueError: as in `gradient_second_moment`, or unbiased from a single example.
    """
    ddof = int(unbiased and centered)
    moment = _moment(per_example_loss, params, batches, centered, ddof, chunk, masks, True, True)
    n, alignments, square = moment.examples, moment.alignments, moment.mean_gradient_squared_norm
    assert alignments is not None
    assert square is not None
    if unbiased and n < 2:
        raise ValueError(f"unbiased=True needs at least 2 examples, got {n}; give unbiased=False")
    # First-order change of numerator and denominator with the weight of each example.
    numerator = moment.contributions * n / (n - ddof) - moment.value
    slope = 2 * (alignments - square)
    denominator = square
    if unbiased:
        deviations = moment.squared_norms - 2 * alignments + square
        # Less Tr(C)/N with the unbiased C, whichever C is asked for.
        denominator = square - deviations.sum() / (n * (n - 1))
        slope = slope - (deviations - deviations.mean()) / (n - 1)
    interval = (float("nan"), float("nan"))
    if unbiased and n > 2:
        cov = np.cov(slope, numerator) / n
        quantile = float(special.stdtrit(n - 1, 0.975))  # two-sided 95 %
        # Of the inverse: its denominator Tr(C) is the one that is far from 0.
        interval = reciprocal(fieller(denominator, moment.value, cov, quantile))
    if not denominator > 0:
        value = float("nan") if np.isnan(denominator) else float("inf")
        return NoiseScale(value, float("nan"), interval, moment, float(denominator), unbiased)
    ratio = moment.value / denominator
    stderr = standard_error((numerator - ratio * slope) / denominator)
    return NoiseScale(float(ratio), stderr, interval, moment, float(denominator), unbiased)
