"""Eigenpairs by Lanczos with full reorthogonalization, on parameter trees.

The basis V is orthonormal to working precision, so V'AV is taken from the Gram-Schmidt
coefficients themselves and needs no three-term recurrence. This makes two things simple:

- *Thick restart* (Wu and Simon 2000): a full basis is rotated to its leading Ritz vectors and
  grown again, so memory is bounded.
- *Fresh directions*: one start vector can not see the second copy of a multiple eigenvalue. When
  all wanted pairs have converged, a random direction is added and the search goes on for some
  steps; also where the space reached so far is invariant (breakdown).
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from prunejax.curvature import base, vectors
from prunejax.curvature.basis import Basis, Begun, ahead, residual
from prunejax.curvature.callables import on_host
from prunejax.curvature.dense import one_thread
from prunejax.curvature.operators import Operator
from prunejax.curvature.products import as_operator
from prunejax.registry import lookup

Tree = Any


@dataclasses.dataclass(frozen=True)
class Eigenpairs:
    """Eigenpairs of a symmetric operator on its live space.

    Attributes:
      values: [k] eigenvalues in float64, in the order of `which`.
      vectors: stack of k orthonormal eigenvectors (trees like the parameters, 0 where dead).
      residuals: [k] measured |A v - value v|; every eigenvalue of A is this close to a true one.
      converged: [k] whether the residual is at most `tolerance * norm`.
      norm: the largest absolute Ritz value met, an estimate of |A| from below.
      tolerance, which: what was asked for.
      products: matrix-vector products spent to find the pairs.
      checks: further products, one per pair, spent to measure the residuals.
      restarts: how often the basis was rotated and grown again.
      examples, live_dim: as in `Trace`.
    """

    values: np.ndarray
    vectors: Tree
    residuals: np.ndarray
    converged: np.ndarray
    norm: float
    tolerance: float
    which: str
    products: int
    checks: int
    restarts: int
    examples: int | None
    live_dim: int


# Which Ritz values are wanted: a key by which the first k in ascending order are taken.
ORDERS = {
    "top": lambda values: -values,
    "bottom": lambda values: values,
    "magnitude": lambda values: -np.abs(values),
}


class Krylov:
    """A Krylov space of an operator that can grow, be extended at random, and restart.

    Attributes:
      basis: the orthonormal vectors; the first `done` of them have been multiplied by A.
      matrix: [capacity, capacity] with column j = V'A v_j for j < done.
      products: how many products with A were made.
      norm: the largest absolute Ritz value so far.
    """

    def __init__(self, operator: Operator, capacity: int, key: jax.Array) -> None:
        self.operator = operator
        self.basis = Basis(operator, capacity)
        self.matrix = np.zeros((capacity, capacity))
        self.done = self.products = self._drawn = 0
        self.norm = 0.0
        self._key = key

    @property
    def exhausted(self) -> bool:
        """Whether the basis spans the whole live space and A is known on all of it."""
        return self.done >= self.operator.live_dim

    def fresh(self) -> bool:
        """Adds a random direction; False where there is no room."""
        self._drawn += 1
        return self.basis.append_random(self._key, self._drawn)

    def step(self) -> None:
        """One product: A applied to the next vector, the basis extended by what it adds."""
        if self.done == self.basis.size and not self.fresh():
            raise AssertionError("no vector is left to multiply")
        self._end(self.basis.begin_row(self.done))

    def steps(self, count: int) -> None:
        """`count` products from a basis of one vector; fewer where the space is invariant.

        The device begins with each before the host knows of the one before.
        """
        for begun in ahead(self.basis.begin_row(j) for j in range(count)):
            self._end(begun)
            if self.done == self.basis.size:
                return  # of a product with the row of zeros that follows nothing comes

    def _end(self, begun: Begun) -> None:
        h, left = self.basis.end(begun)
        j = self.done
        self.matrix[: len(h), j] = h
        if left > 0:
            self.matrix[len(h), j] = left  # along the vector that it has added
        self.done, self.products = j + 1, self.products + 1

    @one_thread
    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ritz values [m], coefficient rows [m, m] and estimated residuals [m], m = done."""
        m = self.done
        square = self.matrix[:m, :m]
        values, columns = np.linalg.eigh((square + square.T) / 2)  # equal but for rounding
        # A V_m = V_m T + (rows of V beyond m) B: what is left over is B times the coefficients.
        beyond = self.matrix[m : self.basis.size, :m] @ columns
        self.norm = max(self.norm, float(np.max(np.abs(values))))
        return values, columns.T, np.linalg.norm(beyond, axis=0)

    def restart(self, keep: np.ndarray) -> None:
        """Keeps the Ritz vectors `keep` [n] (places in `ritz`) and the vectors not multiplied."""
        values, rows, _ = self.ritz()
        m, size, count = self.done, self.basis.size, len(keep)
        turn = np.zeros((count + size - m, size))
        turn[:count, :m] = rows[keep]
        turn[count:, m:] = np.eye(size - m)  # those not multiplied yet stay as they are
        beyond = self.matrix[m:size, :m] @ rows[keep].T
        self.matrix[:] = 0.0
        # A is diagonal on Ritz vectors
        self.matrix[np.arange(count), np.arange(count)] = values[keep]
        self.matrix[count : count + size - m, :count] = beyond
        self.basis.replace(turn)
        self.done = count


@on_host()
def eigenpairs(
    operator: Operator,
    k: int,
    *,
    key: jax.Array,
    which: str = "top",
    tolerance: float = 1e-4,
    max_products: int | None = None,
    basis_size: int | None = None,
    memory_bytes: int = 2**33,
) -> Eigenpairs:
    """The k extreme eigenpairs of an operator.

    Args:
      operator: `Hessian(...)`, `GaussNewton(...)`, `Fisher(...)` or `from_matvec(...)`.
      k: how many pairs.
      key: PRNG key of the start vector and of fresh directions.
      which: "top" (largest, descending), "bottom" (smallest, ascending) or "magnitude" (largest
        absolute value, descending).
      tolerance: a pair has converged when |A v - value v| <= tolerance * |A|, with |A| estimated
        by the largest absolute Ritz value. float32 products carry an error of about 1e-6 |A|.
      max_products: products after which the search ends, converged or not; default 20 k + 200.
      basis_size: vectors kept at once, at least k + 6; default 3 k + 40, or what `memory_bytes`
        allows. A full basis is restarted.
      memory_bytes: bound on the memory of the basis, default 8 GiB.

    Raises:
      ValueError: k, basis_size or memory_bytes are impossible; the message says what is possible.
    """
    order = lookup(ORDERS, which, "part of the spectrum")
    dim = operator.nonempty_dim()
    if not 1 <= k <= dim:
        raise ValueError(f"k must be 1..{dim}, the number of live coordinates; got {k}")
    capacity = _capacity(operator, k, basis_size, memory_bytes)
    operator.check_symmetric()
    limit = 20 * k + 200 if max_products is None else max_products
    if limit < k:
        raise ValueError(f"max_products is {limit}; {k} pairs need at least {k}")
    space = Krylov(operator, capacity, vectors.named_key(key, "lanczos"))
    restarts = _search(space, k, order, tolerance, limit)
    values, rows, _ = space.ritz()
    wanted = np.argsort(order(values), kind="stable")[:k]  # stable: of equal ones the earlier
    stack = space.basis.rotated(rows[wanted])
    values, residuals = measured(operator, stack)
    again = np.argsort(order(values), kind="stable")  # measured values may have changed places
    return Eigenpairs(
        values=values[again],
        vectors=vectors.take(stack, again),
        residuals=residuals[again],
        converged=residuals[again] <= tolerance * space.norm,
        norm=space.norm,
        tolerance=tolerance,
        which=which,
        products=space.products,
        checks=k,
        restarts=restarts,
        examples=operator.examples,
        live_dim=dim,
    )


def _capacity(operator: Operator, k: int, basis_size: int | None, memory_bytes: int) -> int:
    """Rows of the basis."""
    dim, room = operator.live_dim, k + 6
    row = sum(x.size for x in jax.tree.leaves(operator.like)) * operator.dtype.itemsize
    wanted = 3 * k + 40 if basis_size is None else basis_size
    if wanted < min(room, dim):
        raise ValueError(f"basis_size is {wanted}; {k} pairs need at least {min(room, dim)}")
    if basis_size is None:
        wanted = min(wanted, memory_bytes // row)
        if wanted < min(room, dim):
            raise ValueError(
                f"a basis for {k} pairs takes {min(room, dim) * row} bytes or more, memory_bytes "
                f"is {memory_bytes}; ask for fewer pairs or give more memory"
            )
    return min(wanted, dim)


def _search(space: Krylov, k: int, order: Any, tolerance: float, limit: int) -> int:
    """Grows and restarts the space until k pairs have converged and stayed; counts restarts."""
    restarts, confirm_until = 0, None
    every = max(1, k // 10)
    while space.products < limit and not space.exhausted:
        restarts += _make_room(space, k, order)
        space.step()
        if space.done < k or space.products % every:
            continue
        values, _, left = space.ritz()
        wanted = np.argsort(order(values), kind="stable")[:k]
        if np.any(left[wanted] > tolerance * space.norm):
            continue
        if confirm_until is None:
            # Time for a second copy of an eigenvalue to grow out of the fresh direction.
            confirm_until = space.products + max(10, space.products // 5)
            restarts += _make_room(space, k, order)
            space.fresh()
        elif space.products >= confirm_until:
            break
    return restarts


def _make_room(space: Krylov, k: int, order: Any) -> int:
    """Restarts a full basis that does not span everything; 1 if it did."""
    capacity = space.basis.capacity
    if space.basis.size < capacity or capacity == space.operator.live_dim:
        return 0
    pending = space.basis.size - space.done
    # More than k: what converges next is kept as well.
    count = min(k + (capacity - k) // 3, space.done, capacity - pending - 2)
    space.restart(np.argsort(order(space.ritz()[0]), kind="stable")[:count])
    return 1


@jax.jit
def _residuals(products: Tree, stack: Tree) -> tuple[jax.Array, jax.Array]:
    return jax.lax.map(lambda pair: residual(*pair), (products, stack))


def measured(operator: Operator, stack: Tree) -> tuple[np.ndarray, np.ndarray]:
    """Rayleigh quotients and residuals |A v - value v|, float64 [m], of m stacked unit vectors."""
    values, residuals = jax.device_get(_residuals(operator.products(stack), stack))
    return np.asarray(values, np.float64), np.asarray(residuals, np.float64)


@on_host(eigenpairs)
def top_eigenpairs(
    loss: Any,
    params: Tree = None,
    k: int = 1,
    batches: base.Batches = None,
    *,
    key: jax.Array,
    masks: base.Masks = None,
    weights: Any = None,
    **options: Any,
) -> Eigenpairs:
    """Extreme eigenpairs of P H P; `which="bottom"` or "magnitude" for the other ends.

    `loss`, `params`, `batches`, `masks`, `weights` are those of `Hessian`, or `loss` is an
    `Operator` and stands alone; `k`, `key` and the options (which, tolerance, max_products,
    basis_size, memory_bytes) are those of `eigenpairs`.
    """
    operator = as_operator(loss, params, batches, masks, weights)
    return eigenpairs(operator, k, key=key, **options)
