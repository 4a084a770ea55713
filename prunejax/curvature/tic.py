"""The TIC proxy Tr(C)/Tr(H) with an interval that knows about probes and examples.

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
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from prunejax.curvature import base, kernels, vectors
from prunejax.curvature.callables import on_host
from prunejax.curvature.gradients import (
    GradientMoment,
    PerExampleLoss,
    fieller,
    gradient_second_moment,
)
from prunejax.curvature.lanczos import Eigenpairs
from prunejax.curvature.splits import chunks
from prunejax.registry import lookup

Tree = Any
FORMS_CHUNK = 128  # examples at once; probes are drawn again for each chunk
# Of small networks more: what a call costs besides, and the draws, are paid less often.
FORMS_MOST = 512
FORMS_BYTES = 2**25  # that the loss may compute on the way for them


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


@partial(jax.jit, static_argnames="distribution")
def _forms_by_example(
    loss: Any, params: Tree, masks: Any, source: Any, batch: Tree, distribution: str | None
) -> jax.Array:
    """[n, m]: v_k' H_i v_k; `source` is (key, indices) of random vectors, or a stack of vectors."""
    count = (jax.tree.leaves(source)[0] if distribution is None else source[1]).shape[0]

    def vector(item: Any) -> Tree:
        if distribution is not None:
            dtype = base.accumulator(jnp.result_type(*jax.tree.leaves(params)))
            item = vectors.sample(source[0], item, params, distribution, dtype)
        return base.cast_like(base.project(masks, item), params)

    def single(params: Tree, example: Tree) -> jax.Array:
        return loss(params, jax.tree.map(lambda x: x[None], example))[0]

    def of_example(example: Tree) -> jax.Array:
        form = kernels.hessian_forms((single,), params, example, count)
        items = source if distribution is None else source[1]
        return jax.lax.map(lambda item: base.upcast(form(vector(item))), items)

    return jax.vmap(of_example)(jax.tree.map(jnp.asarray, batch))


def forms_by_example(
    per_example_loss: PerExampleLoss,
    params: Tree,
    batches: base.Batches,
    source: Any,
    *,
    distribution: str | None,
    chunk: int | None = None,
    masks: base.Masks = None,
) -> np.ndarray:
    """[N, m] quadratic forms v_k' H_i v_k of every example's own Hessian, in float64.

    Args:
      per_example_loss: `(params, batch) -> [examples]`.
      params: pytree of floating-point arrays.
      batches: one batch or a list of batches.
      source: a stack of m vectors with distribution=None; else (key, indices [m]) of the random
        vectors that `trace` draws.
      distribution: "rademacher", "gaussian", or None.
      chunk: examples at once, default 128, up to 512 of a small network.
      masks: True = live.
    """
    params = vectors.check_params(params)
    live, loss = base.expand_masks(masks, params), base.as_argument(per_example_loss)
    if chunk is None:
        first = base.batch_list(batches)[0]
        each = kernels.intermediate_bytes((loss,), params, first) // base.batch_size(first)
        chunk = int(np.clip(FORMS_BYTES // max(each, 1), FORMS_CHUNK, FORMS_MOST))
    pieces = chunks(batches, chunk)
    values = [
        np.asarray(_forms_by_example(loss, params, live, source, piece, distribution))[:real]
        for piece, real in pieces
    ]
    return np.concatenate(values).astype(np.float64)  # sums over examples and probes follow


@on_host()
def tic(
    per_example_loss: PerExampleLoss,
    params: Tree,
    batches: base.Batches,
    *,
    key: jax.Array | None = None,
    probes: int = 64,
    distribution: str = "rademacher",
    eigenpairs: Eigenpairs | Any = None,
    centered: bool = False,
    ddof: int = 0,
    chunk: int | None = None,
    confidence: float = 0.95,
    masks: base.Masks = None,
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
      chunk: examples at once; default 32 for gradients, 128 to 512 for quadratic
        forms.
      confidence: of the interval.
      masks: True = live.
      moment: Tr(C) of the same examples and masks, where it is there already.

    Raises:
      ValueError: no key and no eigenpairs, fewer than 2 probes, a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    batches = base.batch_list(batches)  # passed over twice
    if moment is None:
        moment = gradient_second_moment(
            per_example_loss, params, batches, centered=centered, ddof=ddof, chunk=chunk,
            masks=masks,
        )  # fmt: skip
    options = {"chunk": chunk, "masks": masks}
    if eigenpairs is None:
        if key is None or probes < 2:
            raise ValueError(
                f"Tr(H) needs key= and at least 2 probes (got {probes}), or eigenpairs="
            )
        lookup(dict.fromkeys(("rademacher", "gaussian")), distribution, "distribution of probes")
        source = (vectors.named_key(key, "probe"), jnp.arange(probes))
        forms = forms_by_example(
            per_example_loss, params, batches, source, distribution=distribution, **options
        )
        return from_forms(moment, forms, confidence)
    values = np.asarray(getattr(eigenpairs, "values", eigenpairs), np.float64).ravel()
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
    moment: GradientMoment,
    total: float,
    method: str,
    probe_values: np.ndarray,
    by_example: np.ndarray | None,
    left: np.ndarray | None,
    confidence: float,
) -> Tic:
    """The ratio and its uncertainty; `left` is the interaction of examples and probes [N, K]."""
    n, k = moment.examples, len(probe_values)
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
    with np.errstate(invalid="ignore"):  # an infinite ratio has no error
        examples = cov[0, 0] - 2 * value * cov[0, 1] + value**2 * cov[1, 1]
        parts = np.maximum([examples, value**2 * probes], 0.0)
    freedom = np.array([n - 1, k - 1])  # examples, probes
    used = parts > 0
    dof = parts.sum() ** 2 / (parts[used] ** 2 / freedom[used]).sum() if used.any() else np.inf
    quantile = float(special.stdtrit(dof, 0.5 + confidence / 2))  # two-sided
    cov = cov + np.diag([0.0, probes])  # probes move Tr(H) alone
    scale = abs(total) if total else np.nan
    return Tic(
        value=value,
        stderr=float(np.sqrt(parts.sum()) / scale),
        interval=fieller(moment.value, total, cov, quantile),
        confidence=confidence,
        stderr_probes=float(np.sqrt(parts[1]) / scale),
        stderr_examples=float(np.sqrt(parts[0]) / scale),
        moment=moment,
        trace=total,
        trace_stderr=float(np.sqrt(cov[1, 1])),
        method=method,
        probes=k,
        probe_values=probe_values,
        trace_by_example=by_example,
        examples=n,
        live_dim=moment.live_dim,
    )
