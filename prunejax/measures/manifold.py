"""Inertial manifolds, a reconstruction: spectrum, gaps, cuts, training inside a subspace.

Gradient flow near a reference point W* is du/dt = -A u + R(u), u = W - W*, A the Hessian there. A
large eigenvalue is a fast, strongly contracted mode; an inertial manifold is a graph of the fast
modes over the slow ones, and needs a gap lambda_{n+1} - lambda_n > c Lip(R) in ascending order.

    found = spectrum(loss, params)              # exact, small networks
    found.largest_gaps(5); cut(found.values, lipschitz, c=(1, 2, 4))
    remainder_lipschitz(loss, params, radius=..., key=key)
    train(loss, origin, basis, batches, rate=0.1)   # c in W = W0 + V c

That Zhang et al. (NeurIPS 2021) cut this operator's spectrum is a guess of ours: see
`configs/manifold.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import ArrayLike

from prunejax import registry
from prunejax.curvature import vectors as vectors_lib
from prunejax.measures import statistics

Array = jax.Array
Tree = Any
LIMIT = 5000
KINDS = ("fast", "slow", "random")


@dataclass(frozen=True)
class Spectrum:
    """Eigenpairs of the Hessian.

    Attributes:
      values: [d], descending.
      vectors: [d, d], column i belongs to value i.
      gradient_norm: of the loss there; 0 only at a stationary point.
    """

    values: np.ndarray
    vectors: np.ndarray
    gradient_norm: float

    @property
    def gaps(self) -> np.ndarray:
        """[d - 1]: value i minus value i + 1; rank i + 1 is the cut after the i-th."""
        return -np.diff(self.values)

    def largest_gaps(self, count: int = 5) -> list[int]:
        """Ranks (from 1) of the largest gaps, the largest first."""
        registry.whole(0, count=count)
        return [int(i) + 1 for i in np.argsort(-self.gaps, kind="stable")[:count]]

    def basis(self, kind: str, dimensions: int, seed: int = 0) -> np.ndarray:
        """[d, dimensions] orthonormal columns: the fast or slow modes, or random directions.

        Fast are the largest signed eigenvalues, slow the smallest: negative ones come first.

        Raises ValueError: unknown kind, or not 1 to d dimensions.
        """
        d = len(self.values)
        if kind not in KINDS or not 1 <= dimensions <= d:
            raise ValueError(
                f"basis({kind!r}, {dimensions}): kinds are {', '.join(KINDS)}; 1 to {d} dimensions"
            )
        if kind == "random":
            key = vectors_lib.named_key(jax.random.key(seed), "subspace")
            drawn = np.asarray(jax.random.normal(key, (d, dimensions)), np.float64)
            return np.linalg.qr(drawn)[0]  # of normals: a uniformly random subspace
        return self.vectors[:, :dimensions] if kind == "fast" else self.vectors[:, -dimensions:]


def _flat(loss: Callable[[Tree], Array], params: Tree) -> tuple[Array, Callable[[Array], Array]]:
    start, whole = ravel_pytree(params)
    if start.size > LIMIT:
        raise ValueError(f"{start.size} parameters: the exact Hessian is for {LIMIT} at most")
    return start, lambda v: loss(whole(v))


def spectrum(loss: Callable[[Tree], Array], params: Tree) -> Spectrum:
    """All eigenpairs of the Hessian of `loss` at `params`; up to `LIMIT` parameters.

    Args:
      loss: parameters -> scalar, the data inside.
      params: any pytree; coordinates are in the order of its leaves.
    """
    start, of = _flat(loss, params)
    matrix = np.asarray(jax.jit(jax.hessian(of))(start), np.float64)
    values, found = np.linalg.eigh((matrix + matrix.T) / 2)  # equal but for rounding
    slope = np.asarray(jax.grad(of)(start), np.float64)
    return Spectrum(values[::-1], found[:, ::-1], float(np.linalg.norm(slope)))


def remainder_lipschitz(
    loss: Callable[[Tree], Array], params: Tree, *, radius: float, key: Array, probes: int = 8
) -> statistics.Mean:
    """Local Lipschitz constant of R: |H(W* + r d) - H(W*)|_2 along random unit directions d.

    R(u) = A u - (grad L(W* + u) - grad L(W*)), so that its Jacobian is that difference. A mean
    over directions with its interval; a constant over the whole ball would be larger.

    Args:
      loss, params: as in `spectrum`.
      radius: r, in units of the weights.
      key: of the directions.
      probes: how many.
    """
    registry.whole(1, probes=probes)
    start, of = _flat(loss, params)
    second = jax.jit(jax.hessian(of))
    here = np.asarray(second(start), np.float64)
    found = []
    for i in range(probes):
        d = jax.random.normal(jax.random.fold_in(key, i), start.shape)
        there = np.asarray(second(start + radius * d / jnp.linalg.norm(d)), np.float64)
        found.append(float(np.abs(np.linalg.eigvalsh((there + there.T - here - here.T) / 2)).max()))
    return statistics.mean(found)


def cut(values: ArrayLike, lipschitz: float, c: Sequence[float] = (1,)) -> dict[float, int | None]:
    """Fewest slow modes n with lambda_{n+1} - lambda_n > c Lip(R), ascending; None: there is none.

    Args: values: eigenvalues [n] in any order. lipschitz: Lip(R). c: constants to try.
    """
    ascending = np.sort(np.asarray(values, float))
    found: dict[float, int | None] = {}
    for constant in c:
        wide = np.flatnonzero(np.diff(ascending) > constant * lipschitz)
        found[constant] = int(wide[0]) + 1 if wide.size else None
    return found


def slaved(
    loss: Callable[[Tree], Array], params: Tree, found: Spectrum, fast: int
) -> Callable[[ArrayLike], np.ndarray]:
    """The first-order graph of the fast modes over the slow ones.

    c_fast(c_slow) = -lambda^{-1} g_fast, g the gradient at W* + V_slow c_slow along the fast
    modes: one Newton step in them. Exact where the loss is quadratic.

    Args:
      loss, params, found: as in `spectrum`, and what it gave.
      fast: modes that follow, of the largest eigenvalues, all above 0.

    Returns: A function from c_slow [d - fast] to c_fast [fast].
    """
    if not (0 < fast < len(found.values) and found.values[fast - 1] > 0):
        raise ValueError(f"{fast} fast modes: they must be some, not all, with eigenvalues above 0")
    start, of = _flat(loss, params)
    gradient = jax.jit(jax.grad(of))
    v, w = found.vectors[:, :fast], found.vectors[:, fast:]

    def follow(slow: ArrayLike) -> np.ndarray:
        at = start + jnp.asarray(w @ np.asarray(slow, float), start.dtype)
        return -(v.T @ np.asarray(gradient(at), np.float64)) / found.values[:fast]

    return follow


def train(
    loss: Callable[[Tree, Tree], Array],
    origin: Tree,
    basis: ArrayLike,
    batches: Tree,
    *,
    rates: ArrayLike,
    momentum: float = 0.9,
) -> Tree:
    """SGD with momentum on c in W = origin + V c; returns the parameters at the end.

    Args:
      loss: `(params, batch) -> scalar`.
      origin: W0.
      basis: V, [d, k] orthonormal columns, in the order of `ravel_pytree(origin)`.
      batches: one batch a step, stacked along the first axis.
      rates: [steps] learning rates.
      momentum: of the velocity, v = momentum v + g.
    """
    start, whole = ravel_pytree(origin)
    v = jnp.asarray(basis, start.dtype)
    if v.ndim != 2 or v.shape[0] != start.size:
        raise ValueError(f"the basis is {v.shape}; it needs {start.size} rows, one a parameter")

    @jax.jit
    def run(batches: Tree, rates: Array) -> Array:
        def step(carry: tuple[Array, Array], x: tuple[Tree, Array]) -> tuple[Any, None]:
            c, velocity = carry
            batch, rate = x
            g = jax.grad(lambda c: loss(whole(start + v @ c), batch))(c)
            velocity = momentum * velocity + g
            return (c - rate * velocity, velocity), None

        zero = jnp.zeros(v.shape[1], start.dtype)
        return jax.lax.scan(step, (zero, zero), (batches, rates))[0][0]

    return whole(start + v @ run(batches, jnp.asarray(rates, start.dtype)))
