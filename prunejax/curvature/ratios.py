"""Ratios of traces with their errors: the gradient noise scale, and the TIC proxy Tr(C)/Tr(H).

Takeuchi's criterion estimates the generalization gap by Tr(H^-1 C)/N; Thomas et al. (AISTATS 2020,
arXiv 1906.07774) use Tr(C)/Tr(H) as a stand-in, and so do Bartoldson et al. (NeurIPS 2020), with C
the uncentered second moment of per-example gradients, no 1/N, and Tr(H) the sum of the 100 leading
eigenvalues. Here Tr(H) is Hutchinson's estimate or such a sum.

Uncertainty. Both traces are means over the same examples: Tr(C) of ||g_i||^2, Tr(H) of Tr(H_i).
Quadratic forms are therefore evaluated example by example, q_ik = v_k' H_i v_k, at the cost of the
mean alone. With a = Tr(C), b = Tr(H) and R = a/b,

    Var(b) = s²(mean over k of q)/N + s²(mean over i of q)/K - s²(interaction)/(NK)

(two-way random effects), Var(a) and Cov(a, b) come from the examples. `stderr` is the delta method
for R; `interval` is Fieller's, {R : (a - R b)² <= t² Var(a - R b)}, which stays honest where Tr(H)
is not far from zero: it is then unbounded. t is Student's quantile with Satterthwaite's degrees of
freedom. Eigenvalues have no probes; with their eigenvectors the examples count through v'H_i v
(first-order change of an eigenvalue with the weight of an example).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.curvature import vectors
from prunejax.curvature.callables import on_host
from prunejax.curvature.eigenpairs import Eigenpairs
from prunejax.curvature.gradients import (
    GradientMoment,
    PerExampleLoss,
    forms_by_example,
    gradient_second_moment,
)
from prunejax.curvature.splits import Batches, batch_list
from prunejax.curvature.trace import fieller, mean_and_stderr

Tree = Any


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


def reciprocal(interval: tuple[float, float]) -> tuple[float, float]:
    """The interval of 1/x >= 0 from that of x; parts at or below zero stand for infinity."""
    if np.isnan(interval).any():
        return interval
    low, high = (1 / x if x > 0 else float("inf") for x in interval[::-1])
    return low, high


@on_host()
def gradient_noise_scale(
    per_example_loss: PerExampleLoss,
    params: Tree,
    batches: Batches,
    *,
    centered: bool = True,
    unbiased: bool = True,
    chunk: int | None = None,
    masks: vectors.Masks = None,
) -> NoiseScale:
    """Tr(C) / ||g||^2: the batch size at which noise and mean of the gradient are equal.

    The "simple" noise scale of McCandlish et al. 2018, arXiv 1812.06162, for the centered C. With
    the uncentered C the ratio is larger by exactly 1. ||ḡ||^2 of N examples is on average Tr(C)/N
    larger than the squared norm of the population's gradient, so that the plain ratio of the two
    stays below N however noisy the gradient is; unbiased=True takes that part off.

    Args:
      per_example_loss, params, batches, chunk, masks: as in `gradient_second_moment`.
      centered: which C; see above.
      unbiased: the centered C over N - 1, and ||ḡ||^2 less its expected noise Tr(C)/N. False: the
        ratio of the given examples' own moments.

    Raises:
      ValueError: as in `gradient_second_moment`, or unbiased from a single example.
    """
    ddof = int(unbiased and centered)
    moment = gradient_second_moment(
        per_example_loss, params, batches, centered=True, chunk=chunk, masks=masks
    )
    n, alignments, square = moment.examples, moment.alignments, moment.mean_gradient_squared_norm
    assert alignments is not None
    assert square is not None
    if unbiased and n < 2:
        raise ValueError(f"unbiased=True needs at least 2 examples, got {n}; give unbiased=False")
    moment = moment.of(centered, ddof)
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
        from scipy import special  # late: it takes long to import

        cov = np.cov(slope, numerator) / n
        quantile = float(special.stdtrit(n - 1, 0.975))  # two-sided 95 %
        # Of the inverse: its denominator Tr(C) is the one that is far from 0.
        interval = reciprocal(fieller(denominator, moment.value, cov, quantile))
    if not denominator > 0:
        value = float("nan") if np.isnan(denominator) else float("inf")
        return NoiseScale(value, float("nan"), interval, moment, float(denominator), unbiased)
    ratio = moment.value / denominator
    stderr = mean_and_stderr((numerator - ratio * slope) / denominator)[1]
    return NoiseScale(float(ratio), stderr, interval, moment, float(denominator), unbiased)


@dataclass(frozen=True)
class Tic:
    """The proxy and its parts.

    Attributes:
      value: Tr(C)/Tr(H).
      stderr: delta method, probes and examples together.
      interval: Fieller's confidence interval; (-inf, inf) where Tr(H) is not significantly
        different from zero.
      confidence: of the interval, a fraction.
      stderr_probes: the part from the probes alone, the examples taken as given; 0 for
        eigenvalues.
      stderr_examples: the part from the examples; of Tr(C) alone where `trace_by_example` is None.
      moment: Tr(C), which variant, and its standard error.
      trace: Tr(H).
      trace_stderr: of Tr(H), probes and examples together.
      method: "hutchinson" or "eigenvalues".
      probes: random vectors, or eigenvalues summed.
      probe_values: [probes] v'Hv, or the eigenvalues.
      trace_by_example: [N] Tr(H_i), estimated, or None where only eigenvalues were given.
      examples: N.
      live_dim: coordinates that are live.
    """

    value: float
    stderr: float
    interval: tuple[float, float]
    confidence: float
    stderr_probes: float
    stderr_examples: float
    moment: GradientMoment
    trace: float
    trace_stderr: float
    method: str
    probes: int
    probe_values: np.ndarray
    trace_by_example: np.ndarray | None
    examples: int
    live_dim: int


@on_host()
def tic(
    per_example_loss: PerExampleLoss,
    params: Tree,
    batches: Batches,
    *,
    key: jax.Array | None = None,
    probes: int = 64,
    distribution: str = "rademacher",
    eigenpairs: Eigenpairs | Any = None,
    centered: bool = False,
    ddof: int = 0,
    chunk: int | None = None,
    confidence: float = 0.95,
    masks: vectors.Masks = None,
    moment: GradientMoment | None = None,
) -> Tic:
    """Tr(C)/Tr(H) on the live subspace of a mask, or on all parameters.

    Args:
      per_example_loss: `(params, batch) -> [examples]`, as in `gradient_second_moment`.
      params: pytree of floating-point arrays.
      batches: one batch or a list of batches.
      key: JAX PRNG key of the probes; the same probes as `hessian_trace` with this key. Needed
        unless `eigenpairs` are given.
      probes: random vectors, at least 2.
      distribution: "rademacher" or "gaussian".
      eigenpairs: from `top_eigenpairs` (the paper: 100 of largest magnitude) on the same data and
        masks, or an array of eigenvalues: their sum takes the place of Tr(H).
      centered: which C.
      ddof: of the centered C.
      chunk: examples at once; default 32 for gradients, 128 to 512 for quadratic forms.
      confidence: of the interval.
      masks: True = live.
      moment: Tr(C) of the same examples and masks, where it is there already.

    Raises:
      ValueError: no key and no eigenpairs, fewer than 2 probes, a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    batches = batch_list(batches)  # passed over twice
    options: dict[str, Any] = {"chunk": chunk, "masks": masks}
    if moment is None:
        moment = gradient_second_moment(
            per_example_loss, params, batches, centered=centered, ddof=ddof, **options
        )
    if eigenpairs is None:
        if key is None or probes < 2:
            raise ValueError(
                f"Tr(H) needs key= and at least 2 probes (got {probes}), or eigenpairs="
            )
        vectors.check_law(distribution)
        source = (vectors.named_key(key, "probe"), jnp.arange(probes))
        forms = forms_by_example(
            per_example_loss, params, batches, source, distribution=distribution, **options
        )
        return from_forms(moment, forms, confidence)
    values = np.asarray(getattr(eigenpairs, "values", eigenpairs), np.float64).ravel()
    if not values.size:
        raise ValueError("eigenpairs= has no eigenvalue: their sum is Tr(H)")
    by_example: np.ndarray | None = None
    stack = getattr(eigenpairs, "vectors", None)
    if stack is not None:
        by_example = forms_by_example(
            per_example_loss, params, batches, stack, distribution=None, **options
        ).sum(1)
    total = float(values.sum())  # signed, as the paper sums its 100
    return _ratio(moment, total, "eigenvalues", values, by_example, None, confidence)


def from_forms(moment: GradientMoment, forms: np.ndarray, confidence: float = 0.95) -> Tic:
    """The proxy from parts that are there already.

    Args:
      moment: from `gradient_second_moment`.
      forms: [N, probes] of the same examples, from `forms_by_example` with random vectors.
      confidence: of the interval.
    """
    by_example, probe_values, total = forms.mean(1), forms.mean(0), float(forms.mean())
    left = forms - by_example[:, None] - probe_values + total
    return _ratio(moment, total, "hutchinson", probe_values, by_example, left, confidence)


def _ratio(
    moment: GradientMoment, total: float, method: str, probe_values: np.ndarray,
    by_example: np.ndarray | None, left: np.ndarray | None, confidence: float,
) -> Tic:  # fmt: skip
    """The ratio and its uncertainty; `left` is the interaction of examples and probes [N, K]."""
    n, k = moment.examples, len(probe_values)
    if by_example is not None and len(by_example) != n:
        raise ValueError(f"moment= is of {n} examples, the batches have {len(by_example)}")
    # no curvature: infinite, or nothing over nothing
    value = moment.value / total if total else float("inf" if moment.value else "nan")
    top = moment.contributions * n / (n - moment.ddof)
    # what examples do to Tr(H) is then not known
    bottom = np.zeros(n) if by_example is None else by_example
    cov = np.cov(top, bottom) / n if n > 1 else np.full((2, 2), np.nan)  # of means of n
    probes = 0.0
    if left is not None:
        probes = float(np.var(probe_values, ddof=1) / k)
        # Both terms hold the interaction; it counts once.
        shared = float((left**2).sum() / ((n - 1) * (k - 1)) / (n * k)) if n > 1 else 0.0
        # A variance component estimated by a difference may come out below 0.
        probes = max(probes - shared, 0.0)
    from scipy import special  # late, as above

    with np.errstate(invalid="ignore"):  # an infinite ratio has no error
        examples = cov[0, 0] - 2 * value * cov[0, 1] + value**2 * cov[1, 1]
        parts = np.maximum([examples, value**2 * probes], 0.0)
    freedom, used = np.array([n - 1, k - 1]), parts > 0  # examples, probes
    dof = parts.sum() ** 2 / (parts[used] ** 2 / freedom[used]).sum() if used.any() else np.inf
    quantile = float(special.stdtrit(dof, 0.5 + confidence / 2))  # two-sided
    cov = cov + np.diag([0.0, probes])  # probes move Tr(H) alone
    scale = abs(total) if total else np.nan
    return Tic(
        value=value, stderr=float(np.sqrt(parts.sum()) / scale),
        interval=fieller(moment.value, total, cov, quantile), confidence=confidence,
        stderr_probes=float(np.sqrt(parts[1]) / scale),
        stderr_examples=float(np.sqrt(parts[0]) / scale),
        moment=moment, trace=total, trace_stderr=float(np.sqrt(cov[1, 1])), method=method,
        probes=k, probe_values=probe_values, trace_by_example=by_example, examples=n,
        live_dim=moment.live_dim,
    )  # fmt: skip
