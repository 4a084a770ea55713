"""A growing orthonormal basis of parameter trees, kept as one stack (full reorthogonalization)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.curvature import base, vectors
from prunejax.curvature.operators import Operator

Tree = Any


@partial(jax.jit, static_argnames=("rows", "dtype", "placed"))
def _zeros(like: Tree, rows: int, dtype: Any, placed: Any) -> Tree:
    stack = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), dtype), like)
    return vectors.place(stack, placed, stacked=True)


@jax.jit
def _orthogonalize(stack: Tree, w: Tree) -> tuple[Tree, jax.Array, jax.Array, jax.Array]:
    """Classical Gram-Schmidt twice: w minus its part in the span, coefficients, norms.

    Unused rows are 0 and change nothing. Two passes are enough for orthogonality to working
    precision unless w lies in the span to working precision (Giraud et al. 2005).
    """
    before = vectors.norm(w)
    total: Any = 0.0
    for _ in range(2):
        h = vectors.stack_dot(stack, w)
        w = jax.tree.map(jnp.subtract, w, vectors.combine(h, stack))
        total = total + h
    return w, total, before, vectors.norm(w)


@partial(jax.jit, donate_argnums=(0,), static_argnames=("placed",))
def _write(stack: Tree, i: Any, w: Tree, length: Any, placed: Any) -> Tree:
    stack = jax.tree.map(lambda rows, x: rows.at[i].set(x / length), stack, w)
    return vectors.place(stack, placed, stacked=True)


read = jax.jit(vectors.index)


@partial(jax.jit, static_argnames=("placed",))
def _combined(coefficients: jax.Array, stack: Tree, placed: Any) -> Tree:
    return vectors.place(vectors.combine(coefficients, stack), placed, stacked=True)


class Basis:
    """Up to `capacity` orthonormal vectors of an operator's live space.

    Attributes:
      stack: the vectors along the leading axis of every leaf; rows from `size` on are 0.
      size: how many there are.
    """

    def __init__(self, operator: Operator, capacity: int) -> None:
        self._operator = operator
        self.capacity = capacity
        self.size = 0
        self.stack = _zeros(operator.like, capacity, operator.dtype, operator.placed)
        self.tiny = 32 * float(jnp.finfo(operator.dtype).eps)

    def __getitem__(self, i: int) -> Tree:
        return read(self.stack, i)

    def coefficients(self, w: Tree) -> np.ndarray:
        """V'w [size], for a vector that is not added."""
        return np.asarray(_orthogonalize(self.stack, w)[1], np.float64)[: self.size]

    def append(self, w: Tree, scale: float = 0.0) -> tuple[np.ndarray, float]:
        """Adds the part of w outside the span, unless that is rounding error.

        Args:
          w: a vector of the live space.
          scale: size of the numbers that w was computed from; what is left of w counts as
            rounding error below `32 eps max(scale, |w|)`.

        Returns:
          The coefficients of w in the basis before [size], and the norm of what was added: 0 if
          nothing was.
        """
        outside, h, before, length = _orthogonalize(self.stack, w)
        coefficients = np.asarray(h, np.float64)[: self.size]
        left = float(length)
        if not np.isfinite(left):
            raise ValueError(
                "a product with the curvature matrix is not finite; check the loss and its "
                "derivatives at these parameters (NaN or infinite activations, sqrt or log at 0)"
            )
        if self.size == self.capacity or left <= self.tiny * max(scale, float(before)):
            return coefficients, 0.0
        self.stack = _write(self.stack, self.size, outside, length, self._operator.placed)
        self.size += 1
        return coefficients, left

    def append_random(self, key: jax.Array, i: int) -> bool:
        """Adds a random direction outside the span; False where there is none left."""
        if self.size >= min(self.capacity, self._operator.live_dim):
            return False
        return self.append(self._operator.draw(key, i, "gaussian"))[1] > 0

    def rotated(self, coefficients: np.ndarray) -> Tree:
        """The stack of Σ_j c_ij v_j over the first m vectors, `coefficients` [n, m]."""
        return self._rotated(self.stack, coefficients, self._operator.placed)

    def replace(self, coefficients: np.ndarray) -> None:
        """Replaces the vectors by n combinations, `coefficients` [n, size], one leaf at a time."""
        leaves, structure = jax.tree.flatten(self.stack)
        full = np.zeros((self.capacity, self.size))
        full[: len(coefficients)] = coefficients
        self.stack = None
        for i, placed in enumerate(self._operator.placed):
            leaves[i] = self._rotated(leaves[i], full, (placed,))
        self.stack = jax.tree.unflatten(structure, leaves)
        self.size = len(coefficients)

    def _rotated(self, stack: Tree, coefficients: np.ndarray, placed: Any) -> Tree:
        full = np.zeros((len(coefficients), self.capacity))
        full[:, : coefficients.shape[1]] = coefficients
        return _combined(full.astype(self._operator.dtype), stack, placed)


@jax.jit
def residual(product: Tree, vector: Tree) -> tuple[jax.Array, jax.Array]:
    """Scalars from Ax and x: Rayleigh quotient θ = x'Ax / x'x and |Ax - θx| / |x|."""
    square = base.squared_norm(vector)
    value = base.dot(vector, product) / square
    rest = jax.tree.map(lambda a, x: a - value * x, product, vector)
    return value, vectors.norm(rest) / jnp.sqrt(square)
