"""Traces from a sketched subspace: Hutch++ and XTrace on parameter trees.

Both find an orthonormal basis Q of the range of A Ω for k random vectors Ω. Only k x k matrices
leave the device; they are worked on in float64.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.curvature import vectors
from prunejax.curvature.basis import Basis, ahead, orthogonalize
from prunejax.curvature.callables import one_thread
from prunejax.curvature.kernels import draw
from prunejax.curvature.operators import Operator

Tree = Any


@dataclasses.dataclass(frozen=True)
class Sketched:
    """What a sketching method found: the estimate is `exact_part + mean(samples)`.

    `covariance` is an estimate of that of two samples; 0 where they are independent.
    """

    samples: np.ndarray
    exact_part: float
    probes: int
    products: int
    forms: int
    covariance: float = 0.0


_gram = jax.jit(vectors.gram)


@partial(jax.jit, static_argnames=("count", "law", "dtype", "placed"))
def _against(
    q: Tree, z: Tree, key: jax.Array, like: Tree, masks: Tree,
    count: int, law: str, dtype: Any, placed: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Q'ω_i and Z'ω_i [count, m], |ω_i|² [count] for the vectors of the sketch, drawn again."""

    def one(i: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        omega = draw(key, i, like, masks, law, dtype, placed)
        return vectors.stack_dot(q, omega), vectors.stack_dot(z, omega), vectors.dot(omega, omega)

    return jax.lax.map(one, jnp.arange(count))


def _range(operator: Operator, key: jax.Array, count: int, law: str) -> tuple[Basis, np.ndarray]:
    """Q and R of A Ω = Q R for `count` random vectors; vectors that add nothing are left out."""
    q = Basis(operator, count)
    r = np.zeros((count, count))
    drawn = (operator.draw(key, i, law) for i in range(count))
    for i, begun in enumerate(ahead(map(q.begin_product, drawn))):
        h, left = q.end(begun)
        if left > 0:
            r[: len(h), i] = h
            r[q.size - 1, i] = left
    return q, r


def hutch_plus_plus(
    operator: Operator, key: jax.Array, probes: int, law: str, chunk: int, vectorize: bool | None
) -> Sketched:
    """Tr(Q'AQ) + mean of g'(I - QQ')A(I - QQ')g (Meyer, Musco, Musco, Woodruff 2021).

    A third of `probes` products for the sketch, a third forms for the first term, a third forms
    for the second. Given the sketch, the first term is exact and the second an average of
    independent unbiased samples: their standard error is that of the whole estimate.
    """
    if probes < 6:
        raise ValueError(
            f"hutch++ needs at least 6 probes, two for each of its parts; got {probes}"
        )
    k = min(probes // 3, operator.live_dim)
    q, _ = _range(operator, vectors.named_key(key, "sketch"), k, law)

    def forms(stack: Tree) -> np.ndarray:
        return np.asarray(operator.quadratic_forms(stack, vectorize=vectorize), np.float64)

    pieces = [vectors.index(q.stack, slice(i, i + chunk)) for i in range(0, k, chunk)]
    inside = np.concatenate([forms(piece) for piece in pieces])[: q.size].sum()
    count = probes // 3
    if q.size == operator.live_dim:  # nothing is outside
        return Sketched(np.zeros(count), float(inside), k, k, q.size)
    # vectors that the sketch has not seen: without bias given Q
    own = vectors.named_key(key, "residual")
    samples: list[np.ndarray] = []
    for start in range(0, count, chunk):
        draws = [
            orthogonalize(q.stack, operator.draw(own, i, law))[0]
            for i in range(start, min(start + chunk, count))
        ]
        samples.append(forms(vectors.stacked(draws)))
    return Sketched(np.concatenate(samples), float(inside), k + count, k, k + count)


def xtrace(
    operator: Operator, key: jax.Array, probes: int, law: str, chunk: int, vectorize: bool | None
) -> Sketched:
    """The exchangeable leave-one-out estimator (Epperly, Tropp, Webber 2024, section 2.1).

    `probes` products: half on k random vectors, half on Q. Sample i is Tr(Q_i'AQ_i) plus one
    residual sample of vector i, where Q_i leaves vector i out of the sketch and the vector's part
    outside Q_i is rescaled to its expected length (their section 2.3; normals only).
    Samples are exchangeable, not independent: see `covariance`.
    """
    k = min(probes // 2, operator.live_dim)
    if k < 2:
        raise ValueError(f"xtrace needs at least 4 probes and 2 live coordinates, got {probes}")
    own = vectors.named_key(key, "sketch")
    q, r = _range(operator, own, k, law)
    rank = q.size
    used = q.stack if rank == k else vectors.index(q.stack, slice(rank))
    z_stack = operator.products(used)
    h = np.asarray(_gram(used, z_stack), np.float64)
    if rank < k or k == operator.live_dim:  # Q is the whole range: Tr A = Tr Q'AQ
        return Sketched(np.zeros(k), float(np.trace(h)), k, k + rank, 0)
    w, t, lengths = _against(
        used, z_stack, own, operator.like, operator.masks,
        count=k, law=law, dtype=operator.dtype, placed=operator.placed,
    )  # fmt: skip
    w, t, lengths = (np.asarray(x, np.float64).T for x in (w, t, lengths))
    rest = operator.live_dim - k + 1 if law == "gaussian" else None  # Q_i has k - 1 columns
    samples, fewer = _leave_out(r, h, w, t, lengths, rest)
    return Sketched(samples, 0.0, k, 2 * k, 0, covariance(samples, fewer))


@one_thread
def _leave_out(
    r: np.ndarray, h: np.ndarray, w: np.ndarray, t: np.ndarray, lengths: np.ndarray,
    rest: int | None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Estimates from R, H = Q'AQ, W = Q'Ω, T = (AQ)'Ω, |ω_i|² and the dimension outside Q_i.

    Column s_i of the normalized inverse of R' is the direction that Q loses without vector i:
    Q_i Q_i' = Q (I - s_i s_i') Q'. Without vector j too it loses u_j, s_j made orthogonal to s_i.

    Returns:
      [k] sample i from Q_i; [k, k] sample i from the sketch without i and j, on the diagonal that
      without i alone.
    """
    k = len(r)
    s = np.linalg.inv(r).T  # rank is k here, so R has an inverse
    s /= np.linalg.norm(s, axis=0)
    samples, fewer = np.zeros(k), np.zeros((k, k))
    for i in range(k):
        own = s[:, i]
        u = s - np.outer(own, own @ s)
        u[:, i] = 0
        u /= np.maximum(np.linalg.norm(u, axis=0), np.finfo(float).tiny)
        lost = own[:, None] * (own @ w[:, i]) + u * (u.T @ w[:, i])
        x = w[:, i, None] - lost  # column j: Q'ω_i within the span of the sketch
        without = np.trace(h) - own @ h @ own - np.sum(u * (h @ u), axis=0)
        outside = r[:, i] @ lost - t[:, i] @ x + np.sum(x * (h @ x), axis=0)
        if rest is not None:
            dimension = rest + (np.arange(k) != i)  # one more where vector j is left out, too
            # The vector's part outside at its expected squared length.
            outside = outside * dimension / (lengths[i] - np.sum(x * x, axis=0))
        fewer[i] = without + outside
        samples[i] = fewer[i, i]
    return samples, fewer


def covariance(samples: np.ndarray, fewer: np.ndarray) -> float:
    """Covariance of two samples of XTrace: `samples` [k] and `fewer` [k, k] from `_leave_out`.

    Samples share all vectors but one; their spread alone, the paper's error estimate, is 5 to 40 %
    below the error of their mean. Let t_i' be sample i with vector j left out of its sketch too.
    The mean of t_i over vector i is the trace whatever the others are, hence t_i' is uncorrelated
    with t_j and t_j', and Cov(t_i, t_j) = E[(t_i - t_i')(t_j - t_j')]. The mean over the pairs is
    unbiased, and may be negative.
    """
    change = samples[:, None] - fewer
    return float(np.sum(change * change.T) / (len(samples) * (len(samples) - 1)))


METHODS = {"hutch++": hutch_plus_plus, "xtrace": xtrace}
