"""Trace and diagonal of a curvature matrix from random probes, with standard errors.

    hutchinson   mean of v'Av over random signs or normals       (Hutchinson 1990)
    hutch++      exact on a sketched subspace + the residual     (Meyer et al. 2021)
    xtrace       every probe used for both, leave-one-out        (Epperly, Tropp, Webber 2024)

Probe i is a pure function of (key, i): neither chunks nor the number of probes change its value.
Either a fixed number of probes, or rounds that double it until the *standard error* is below a
bound; a running mean that happens to stand still never ends the sampling.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.curvature import sketch, splits, vectors
from prunejax.curvature.callables import on_host
from prunejax.curvature.kernels import together
from prunejax.curvature.operators import Operator, as_operator
from prunejax.registry import lookup

Tree = Any
MIN_PROBES = 16  # fewer samples give no standard error to stop on


@dataclasses.dataclass(frozen=True)
class Trace:
    """An estimate of a trace.

    Attributes:
      value: the estimate.
      stderr: its standard error over the probes (the data are fixed); NaN for a single probe. A
        95 % interval takes Student's quantile of n - 1 degrees.
      samples: [n] what was averaged, in float64: v'Av (hutchinson), residual samples (hutch++),
        leave-one-out estimates (xtrace).
      exact_part: trace on the sketched subspace, part of `value` (hutch++), else 0.
      method, distribution: how.
      probes: random vectors used.
      products, forms: matrix-vector products and quadratic forms evaluated.
      examples: examples the loss was averaged over; None where there are none.
      live_dim: dimension of the (live) space; `value / live_dim` is the mean eigenvalue.
      converged: whether `stderr <= stderr_below`; None for a fixed number of probes.
      chunk: probes per compiled call.
    """

    value: float
    stderr: float
    samples: np.ndarray
    exact_part: float
    method: str
    distribution: str
    probes: int
    products: int
    forms: int
    examples: int | None
    live_dim: int
    converged: bool | None
    chunk: int


@dataclasses.dataclass(frozen=True)
class Diagonal:
    """An estimate of a diagonal: trees like the parameters, 0 at dead coordinates.

    `stderr` is the standard error of every entry; `probes`, `examples`, `live_dim` as in `Trace`.
    """

    value: Tree
    stderr: Tree
    probes: int
    examples: int | None
    live_dim: int


def mean_and_stderr(samples: np.ndarray) -> tuple[float, float]:
    """Mean and std(ddof=1) / sqrt(n) of `samples` [n] in float64; the latter NaN for one sample."""
    n, mean = len(samples), float(np.mean(samples))
    return mean, float(np.std(samples, ddof=1) / math.sqrt(n)) if n > 1 else math.nan


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


@on_host()
def estimate_trace(
    operator: Operator,
    *,
    key: jax.Array,
    probes: int = 64,
    method: str = "hutchinson",
    distribution: str | None = None,
    stderr_below: float | None = None,
    max_probes: int | None = None,
    chunk: int | None = None,
    memory_bytes: int | None = None,
    vectorize: bool | None = None,
) -> Trace:
    """Estimates the trace of an operator.

    Args:
      operator: `Hessian(...)`, `GaussNewton(...)`, `Fisher(...)` or `from_matvec(...)`.
      key: PRNG key of the probes.
      probes: budget. Quadratic forms for "hutchinson"; for "hutch++" a third each of products,
        forms on the sketch, forms on the residual; for "xtrace" products, two per random vector.
        With `stderr_below` the size of the first round.
      method: "hutchinson", "hutch++" or "xtrace".
      distribution: "rademacher" or "gaussian"; default signs, normals for "xtrace" (its rescaling
        of the probes needs a rotation-invariant law).
      stderr_below: draw rounds, doubling the number of probes each time, until the standard error
        is at most this or `max_probes` are used. "hutchinson" only; at least 16 probes.
      max_probes: the end of the doubling, default 64 times `probes`.
      chunk: probes per compiled call; default 64 one after another, 8 where vectorized.
      memory_bytes: bound on a call's temporary memory; the chunk is made as large as fits. The
        vectors of a sketch ("hutch++" a third, "xtrace" all of `probes`) come on top.
      vectorize: evaluate a chunk's probes at once (vmap) or one after another; default by backend
        (one after another on CPU, where memory then does not depend on the chunk).

    Raises:
      ValueError: unknown names, a budget too small for the method, no live coordinate, or a single
        probe that does not fit `memory_bytes`.
    """
    lookup(dict.fromkeys(("hutchinson", *sketch.METHODS)), method, "trace method")
    law = vectors.check_law(distribution or ("gaussian" if method == "xtrace" else "rademacher"))
    dim = operator.nonempty_dim()
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    if method != "hutchinson" and stderr_below is not None:
        raise ValueError(f"stderr_below= needs method='hutchinson', got {method!r}")
    first = probes if stderr_below is None else max(probes, MIN_PROBES)
    size = _chunk(operator, law, first, chunk, memory_bytes, vectorize)
    if method == "hutchinson":
        own = vectors.named_key(key, "probe")  # the stream of `tic`, too: the same vectors

        def draw(start: int, stop: int) -> np.ndarray:
            rows = -(-(stop - start) // size)
            indices: Any = np.minimum(start + np.arange(rows * size), stop - 1).reshape(rows, size)
            values = operator.sampled_forms(own, indices, law, vectorize=vectorize)
            return np.asarray(values, np.float64)[: stop - start]  # less the copies of the last

        samples, converged = _rounds(draw, first, stderr_below, max_probes)
        found = sketch.Sketched(samples, 0.0, len(samples), 0, len(samples))
    else:
        converged = None
        found = sketch.METHODS[method](operator, key, probes, law, size, vectorize)
    mean, stderr = mean_and_stderr(found.samples)
    return Trace(
        value=found.exact_part + mean,
        # Of a mean of exchangeable samples: s²/n + their covariance.
        stderr=math.sqrt(stderr**2 + max(found.covariance, 0.0)),
        samples=found.samples, exact_part=found.exact_part, method=method, distribution=law,
        probes=found.probes, products=found.products, forms=found.forms,
        examples=operator.examples, live_dim=dim, converged=converged, chunk=size,
    )  # fmt: skip


def _chunk(
    operator: Operator, law: str, probes: int, chunk: int | None, memory_bytes: int | None,
    vectorize: bool | None,
) -> int:  # fmt: skip
    """Probes per compiled call: as given, or halved from the default until the call fits."""
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    size = chunk or (8 if together(vectorize) else 64)
    size = -(-probes // -(-probes // size))  # equal chunks: 70 probes go as 35 + 35
    while memory_bytes is not None:
        needed = operator.form_bytes(size, law, vectorize=vectorize)
        if needed is None or needed <= memory_bytes:
            break
        if size == 1:
            raise ValueError(
                f"one quadratic form needs {needed} bytes, memory_bytes is {memory_bytes}; "
                "give smaller batches"
            )
        size = -(-size // 2)
    return size


def _rounds(
    draw: Callable[[int, int], np.ndarray], first: int, stderr_below: float | None,
    max_probes: int | None,
) -> tuple[np.ndarray, bool | None]:  # fmt: skip
    """One round of `first` probes, or rounds that double them until the error is small enough."""
    if stderr_below is None:
        return draw(0, first), None
    if not stderr_below > 0:
        raise ValueError(f"stderr_below must be positive, got {stderr_below}")
    last = 64 * first if max_probes is None else max_probes
    if last < first:
        raise ValueError(f"max_probes is {last}; the first round alone has {first} probes")
    samples = draw(0, first)
    while mean_and_stderr(samples)[1] > stderr_below and len(samples) < last:
        total = min(2 * len(samples), last)
        samples = np.concatenate([samples, draw(len(samples), total)])
    return samples, mean_and_stderr(samples)[1] <= stderr_below


@jax.jit
def _update(state: tuple[Tree, Tree], count: Any, v: Tree, product: Tree) -> tuple[Tree, Tree]:
    """Welford's running mean and sum of squared deviations of v * Av, entry by entry."""

    def leaf(mean: jax.Array, spread: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        change = x * y - mean
        new = mean + change / count
        return new, spread + change * (x * y - new)  # sums of squares would cancel

    pairs = jax.tree.map(leaf, *state, v, product)
    return jax.tree.transpose(jax.tree.structure(v), jax.tree.structure((0, 0)), pairs)


@on_host()
def estimate_diagonal(
    operator: Operator, *, key: jax.Array, probes: int = 64, distribution: str = "rademacher"
) -> Diagonal:
    """The diagonal as the mean of v * Av over random probes (Bekas, Kokiopoulou, Saad 2007).

    Args:
      operator: the matrix.
      key: PRNG key of the probes.
      probes: matrix-vector products, at least 2.
      distribution: "rademacher" (no error from the diagonal itself) or "gaussian".
    """
    vectors.check_law(distribution)
    if probes < 2:
        raise ValueError(f"a standard error needs at least 2 probes, got {probes}")
    own = vectors.named_key(key, "probe")
    state = (vectors.scale(0.0, operator.draw(own, 0, distribution)),) * 2
    for i in range(probes):
        v = operator.draw(own, i, distribution)
        state = _update(state, float(i + 1), v, operator.matvec(v))
    spread = jax.tree.map(lambda x: jnp.sqrt(x / (probes * (probes - 1))), state[1])
    return Diagonal(state[0], spread, probes, operator.examples, operator.live_dim)


@on_host(estimate_trace)
def hessian_trace(
    loss: Any,
    params: Tree = None,
    batches: splits.Batches = None,
    *,
    key: jax.Array,
    masks: vectors.Masks = None,
    weights: Any = None,
    **options: Any,
) -> Trace:
    """Tr(P H P) of a mean loss: `estimate_trace(Hessian(loss, params, ...), key=key, **options)`.

    `loss`, `params`, `batches`, `masks`, `weights` are those of `Hessian`, or `loss` is an
    `Operator` and stands alone; `key` and the options (probes, ...) are those of `estimate_trace`.
    """
    return estimate_trace(as_operator(loss, params, batches, masks, weights), key=key, **options)


@on_host(estimate_diagonal)
def hessian_diagonal(
    loss: Any,
    params: Tree = None,
    batches: splits.Batches = None,
    *,
    key: jax.Array,
    masks: vectors.Masks = None,
    weights: Any = None,
    **options: Any,
) -> Diagonal:
    """The diagonal of P H P; arguments as in `hessian_trace`, options as in `estimate_diagonal`."""
    return estimate_diagonal(as_operator(loss, params, batches, masks, weights), key=key, **options)
