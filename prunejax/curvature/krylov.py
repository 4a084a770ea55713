"""Growing Krylov spaces on parameter trees: an orthonormal basis kept as one stack.

The basis V is orthonormal to working precision (full reorthogonalization), so V'AV is taken from
the Gram-Schmidt coefficients themselves and needs no three-term recurrence.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.curvature import vectors
from prunejax.curvature.callables import one_thread
from prunejax.curvature.operators import Operator

Tree = Any
Begun = tuple[jax.Array, jax.Array, jax.Array]  # on the device, perhaps not computed yet


def row_bytes(operator: Operator) -> int:
    """What a vector of a basis takes."""
    return sum(x.size for x in jax.tree.leaves(operator.like)) * operator.dtype.itemsize


@partial(jax.jit, static_argnames=("rows", "dtype", "placed"))
def _zeros(like: Tree, rows: int, dtype: Any, placed: Any) -> Tree:
    stack = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), dtype), like)
    return vectors.place(stack, placed, stacked=True)


@jax.jit
def orthogonalize(stack: Tree, w: Tree) -> tuple[Tree, jax.Array, jax.Array, jax.Array]:
    """Classical Gram-Schmidt twice: w minus its part in the span, coefficients [m], two norms.

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
    outside, h, before, left = orthogonalize(stack, w)
    capacity = jax.tree.leaves(stack)[0].shape[0]
    # A product that lies in the span leaves rounding error: normalized it would be noise.
    added = (left > tiny * jnp.maximum(scale, before)) & (size < capacity)

    def write(rows: jax.Array, x: jax.Array) -> jax.Array:
        # a full basis drops the row
        new = jnp.where(added, x / left, 0).astype(rows.dtype)  # a norm may be float64 beside x
        return rows.at[size].set(new, mode="drop")

    stack = vectors.place(jax.tree.map(write, stack, outside), placed, stacked=True)
    column = jnp.sqrt(jnp.sum(jnp.square(h)) + jnp.where(added, jnp.square(left), 0))
    return stack, size + added, jnp.maximum(scale, column), (h, left, added)


@partial(jax.jit, donate_argnums=(0,), static_argnames=("pick", "product", "placed"))
def _extend_by_product(
    stack: Tree, of: Any, arguments: Any, size: jax.Array, scale: jax.Array, tiny: float,
    pick: Callable[[Tree, Any], Tree], product: Callable[[Any, Tree], Tree], placed: Any,
) -> tuple[Tree, jax.Array, jax.Array, Begun]:  # fmt: skip
    """`_extend` by the product with `pick(stack, of)`, in one program."""
    return _extend(stack, product(arguments, pick(stack, of)), size, scale, tiny, placed)


def _itself(_: Tree, v: Tree) -> Tree:
    return v


@jax.jit
def _of_zero(v: Tree, w: Tree) -> Tree:
    """`w` = A v, but 0 where v is 0: a caller's function may have divided by the length of v."""
    some = vectors.norm(v) != 0
    return jax.tree.map(lambda x: jnp.where(some, x, 0), w)


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
        return vectors.take(self.stack, i)

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
            return self.begin(_of_zero(v, self._operator.matvec(v)))
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

    def append_random(self, key: jax.Array, i: int, law: str = "gaussian") -> bool:
        """Adds a random direction outside the span; False where there is none left."""
        if self.size >= min(self.capacity, self._operator.live_dim):
            return False
        return self.end(self.begin(self._operator.draw(key, i, law), drawn=True))[1] > 0

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
        self._begun: list[Begun] = []  # products that the host does not know of yet

    def fresh(self) -> bool:
        """Adds a random direction; False where there is no room."""
        self.settle()
        self._drawn += 1
        return self.basis.append_random(self._key, self._drawn)

    def step(self, ahead: bool = False) -> None:
        """One product: A applied to the next vector, the basis extended by what it adds.

        Args: ahead: where there is room the device begins with the one after it, too, before the
          host knows of this one.
        """
        if self.done == self.basis.size and not self.fresh():
            raise AssertionError("no vector is left to multiply")
        many = 2 if ahead else 1
        while len(self._begun) < many:
            if self._begun and self.basis.size + len(self._begun) >= self.basis.capacity:
                break  # what they add would have no row
            self._begun.append(self.basis.begin_row(self.done + len(self._begun)))
        self._end(self._begun.pop(0))
        if self.done == self.basis.size:  # of the product with the row of zeros that follows
            while self._begun:  # nothing comes
                self.basis.end(self._begun.pop())

    def steps(self, count: int) -> None:
        """`count` products from a basis of one vector; fewer where the space is invariant."""
        for left in range(count, 0, -1):
            self.step(ahead=left > 1)
            if self.done == self.basis.size:
                return

    def settle(self) -> None:
        """The host learns of all products that were begun."""
        while self._begun:
            self.step()

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
        self.settle()
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
