"""Growing Krylov spaces on parameter trees, and what is measured of their vectors.

The basis V is orthonormal to working precision (full reorthogonalization), so V'AV is taken from
the Gram-Schmidt coefficients themselves.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.curvature import vectors
from prunejax.curvature.basis import Basis
from prunejax.curvature.callables import one_thread
from prunejax.curvature.operators import Operator

Tree = Any
Ritz = tuple[np.ndarray, np.ndarray, np.ndarray]


def row_bytes(operator: Operator) -> int:
    """What a vector of a basis takes."""
    return sum(x.size for x in jax.tree.leaves(operator.like)) * operator.dtype.itemsize


@one_thread
def _ritz(matrix: np.ndarray, m: int, size: int) -> Ritz:
    """As `Krylov.ritz`, of the first m columns of V'AV, V of `size` vectors."""
    square = matrix[:m, :m]
    values, columns = np.linalg.eigh((square + square.T) / 2)  # equal but for rounding
    # A V_m = V_m T + (rows of V beyond m) B: what is left over is B times the coefficients.
    return values, columns.T, np.linalg.norm(matrix[m:size, :m] @ columns, axis=0)


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
        self._ritz: Ritz | None = None  # of the matrix as it is

    @property
    def room(self) -> int:
        """For how many products there is room: each may add a vector, if there is one left."""
        capacity, dim = self.basis.capacity, self.operator.live_dim
        return dim if capacity == dim else capacity - self.basis.size

    def fresh(self) -> bool:
        """Adds a random direction; False where there is no room."""
        self._drawn += 1
        return self.basis.append_random(self._key, self._drawn)

    def steps(self, count: int) -> None:
        """`count` products with the next vectors; fewer where the space is invariant after one."""
        if self.done == self.basis.size and not self.fresh():
            raise AssertionError("no vector is left to multiply")
        for h, left in self.basis.products(self.done, count):
            j = self.done
            self.matrix[: len(h), j] = h
            if left > 0:
                self.matrix[len(h), j] = left  # along the vector that it has added
            self.done, self.products, self._ritz = j + 1, self.products + 1, None

    def ritz(self) -> Ritz:
        """Ritz values [m], coefficient rows [m, m] and estimated residuals [m], m = done."""
        if self._ritz is None:
            self._ritz = _ritz(self.matrix, self.done, self.basis.size)
            self.norm = max(self.norm, float(np.max(np.abs(self._ritz[0]))))
        return self._ritz

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
        self.done, self._ritz = count, None


@partial(jax.jit, static_argnames=("product",))
def _measured(pairs: tuple[Tree, Tree], arguments: Any, product: Any) -> Any:
    """θ = x'Ax / x'x and |Ax - θx| / |x| [m] of stacks x and Ax, or of x and a `product`."""

    def one(pair: tuple[Tree, Tree]) -> tuple[jax.Array, jax.Array]:
        vector, found = pair[0], product(arguments, pair[0]) if product else pair[1]
        square = vectors.squared_norm(vector)
        value = vectors.dot(vector, found) / square

        def rest() -> Tree:
            return jax.tree.map(lambda a, x: a - value * x, found, vector)

        # Not its `norm`: a tree that is kept is not fused, and has other last digits.
        return value, vectors.root(vectors.squared_norm(rest()), rest) / jnp.sqrt(square)

    return jax.lax.map(one, pairs)


def measured(operator: Operator, stack: Tree) -> tuple[np.ndarray, np.ndarray]:
    """Rayleigh quotients and residuals |A v - value v|, float64 [m], of m stacked unit vectors."""
    product, arguments = operator.inside() or (None, None)
    pairs = stack, None if product else operator.products(stack)
    values, residuals = jax.device_get(_measured(pairs, arguments, product=product))
    return np.asarray(values, np.float64), np.asarray(residuals, np.float64)
