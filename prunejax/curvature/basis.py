"""A growing orthonormal basis of parameter trees, kept as one stack (full reorthogonalization)."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.curvature import base, vectors
from prunejax.curvature.operators import Operator, read

Tree = Any
Begun = tuple[jax.Array, jax.Array, jax.Array]  # on the device, perhaps not computed yet
T = TypeVar("T")


def ahead(begun: Iterable[T]) -> Iterator[T]:
    """The items of `begun`, each after the next one has been begun: the device need not wait."""
    items = iter(begun)
    for last in items:
        for following in items:
            yield last
            last = following
        yield last


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
        h = vectors.stack_dot(stack, w)  # all rows at once: classical, not modified, Gram-Schmidt
        w = jax.tree.map(jnp.subtract, w, vectors.combine(h, stack))
        total = total + h
    return w, total, before, vectors.norm(w)


@partial(jax.jit, donate_argnums=(0,), static_argnames=("placed",))
def _extend(
    stack: Tree, w: Tree, size: jax.Array, scale: jax.Array, tiny: float, placed: Any
) -> tuple[Tree, jax.Array, jax.Array, Begun]:
    """The part of w outside the span as row `size`, unless that is rounding error.

    Returns:
      The stack, its size, the scale that counts this w, too; and what the host is told: the
      coefficients, the norm of what is left, whether it was added.
    """
    outside, h, before, left = _orthogonalize(stack, w)
    capacity = jax.tree.leaves(stack)[0].shape[0]
    # A product that lies in the span leaves rounding error: normalized it would be noise.
    added = (left > tiny * jnp.maximum(scale, before)) & (size < capacity)

    def write(rows: jax.Array, x: jax.Array) -> jax.Array:
        # a full basis drops the row
        return rows.at[size].set(jnp.where(added, x / left, 0), mode="drop")

    stack = vectors.place(jax.tree.map(write, stack, outside), placed, stacked=True)
    column = jnp.sqrt(jnp.sum(jnp.square(h)) + jnp.where(added, jnp.square(left), 0))
    return stack, size + added, jnp.maximum(scale, column), (h, left, added)


@partial(jax.jit, donate_argnums=(0,), static_argnames=("pick", "product", "placed"))
def _extend_by_product(
    stack: Tree,
    of: Any,
    arguments: Any,
    size: jax.Array,
    scale: jax.Array,
    tiny: float,
    pick: Callable[[Tree, Any], Tree],
    product: Callable[[Any, Tree], Tree],
    placed: Any,
) -> tuple[Tree, jax.Array, jax.Array, Begun]:
    """`_extend` by the product with `pick(stack, of)`, in one program."""
    return _extend(stack, product(arguments, pick(stack, of)), size, scale, tiny, placed)


def _itself(_: Tree, v: Tree) -> Tree:
    return v


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
        self._tiny = 32 * float(jnp.finfo(operator.dtype).eps)
        # On the device: how many there are, and the size of the numbers that they come from.
        self._rows, self._scale = jnp.int32(0), jnp.zeros((), operator.dtype)

    def __getitem__(self, i: int) -> Tree:
        return read(self.stack, i)

    def begin(self, w: Tree, drawn: bool = False) -> Begun:
        """Adds the part of w outside the span, unless that is rounding error: see `end`.

        What is left of w counts as rounding error below `32 eps max(|w|, scale)`, where `scale` is
        the largest |V'w| so far. The host does not wait: it may begin with the next one.

        Args:
          w: a vector of the live space, a product with the matrix, or (`drawn`) a random one,
            which no product's rounding error is in.
        """
        # No product's error is in it, so its own length alone says what is rounding.
        scale = jnp.zeros_like(self._scale) if drawn else self._scale
        self.stack, self._rows, scale, begun = _extend(
            self.stack, w, self._rows, scale, self._tiny, self._operator.placed
        )
        self._scale = self._scale if drawn else scale
        return begun

    def begin_product(self, v: Tree) -> Begun:
        """`begin` with A v."""
        return self._begin_product(_itself, v)

    def begin_row(self, j: int) -> Begun:
        """`begin` with A times vector j of the basis."""
        return self._begin_product(vectors.index, j)

    def _begin_product(self, pick: Callable[[Tree, Any], Tree], of: Any) -> Begun:
        found = self._operator.inside()
        if found is None:
            v = self[of] if pick is vectors.index else of
            return self.begin(self._operator.matvec(v))
        product, arguments = found
        self.stack, self._rows, self._scale, begun = _extend_by_product(
            self.stack, of, arguments, self._rows, self._scale, self._tiny,
            pick=pick, product=product, placed=self._operator.placed,
        )  # fmt: skip
        return begun

    def end(self, begun: Begun) -> tuple[np.ndarray, float]:
        """The coefficients of w in the basis before [size], and the norm of what was added or 0.

        In the order in which they were begun.
        """
        h, left, added = jax.device_get(begun)
        # the small matrices are worked on in it
        coefficients, length = np.asarray(h, np.float64)[: self.size], float(left)
        if not np.isfinite(length):
            raise ValueError(
                "a product with the curvature matrix is not finite; check the loss and its "
                "derivatives at these parameters (NaN or infinite activations, sqrt or log at 0)"
            )
        if not added:
            return coefficients, 0.0
        self.size += 1
        return coefficients, length

    def append_random(self, key: jax.Array, i: int) -> bool:
        """Adds a random direction outside the span; False where there is none left."""
        if self.size >= min(self.capacity, self._operator.live_dim):
            return False
        return self.end(self.begin(self._operator.draw(key, i, "gaussian"), drawn=True))[1] > 0

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
        self._rows = jnp.int32(self.size)

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
