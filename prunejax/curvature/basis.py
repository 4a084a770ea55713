"""An orthonormal basis on parameter trees, kept as one stack, that products extend.

Gram-Schmidt's coefficients are the parts of each product along the vectors, to working precision.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.curvature import vectors
from prunejax.curvature.operators import Operator

Tree = Any
T = TypeVar("T")
# [capacity + 2], perhaps not computed yet: coefficients, the norm of what is left, 1 if that
# was added
Begun = jax.Array
BLOCK = 16  # products of one program, at most


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
def orthogonalize(stack: Tree, w: Tree, taken: Any = 0.0) -> tuple[Tree, jax.Array, jax.Array]:
    """Classical Gram-Schmidt: w minus its part in the span, coefficients [m], the norm left.

    Unused rows are 0 and change nothing. A pass that takes most of |w|² is followed by a second
    one (Daniel et al. 1976), and two are enough for orthogonality to working precision unless w
    lies in the span to working precision (Giraud et al. 2005).

    Args:
      taken: coefficients [m], or 0, of parts that w is without already; they are counted.
    """

    def once(w: Tree) -> tuple[Tree, jax.Array, jax.Array]:
        h = vectors.stack_dot(stack, w)  # all rows at once: classical, not modified, Gram-Schmidt
        w = jax.tree.map(jnp.subtract, w, vectors.combine(h, stack))
        return w, h, vectors.norm(w)

    def again(found: Any) -> Any:
        w, more, left = once(found[0])
        return w, found[1] + more, left

    first = w, h, left = once(w)
    w, total, left = jax.lax.cond(vectors.norm(h) > left / 2, again, lambda found: found, first)
    return w, total + taken, left


@partial(jax.jit, donate_argnums=(0,), static_argnames=("placed",))
def _extend(
    stack: Tree, w: Tree, size: jax.Array, scale: jax.Array, tiny: float, placed: Any,
    taken: Any = 0.0,
) -> tuple[Tree, jax.Array, jax.Array, Begun]:  # fmt: skip
    """The part of w outside the span as row `size`, unless that is rounding error.

    Returns:
      The stack, its size, the scale that counts this w, too; and what the host is told.
    """
    outside, h, left = orthogonalize(stack, w, taken)
    capacity = jax.tree.leaves(stack)[0].shape[0]
    # A product that lies in the span leaves rounding error: normalized it would be noise.
    whole = jnp.hypot(vectors.norm(h), left)
    added = (left > tiny * jnp.maximum(scale, whole)) & (size < capacity)
    # A number for all elements, not one that is computed again for each.
    divisor = jax.lax.optimization_barrier(jnp.where(added, left, jnp.inf))

    def write(rows: jax.Array, x: jax.Array) -> jax.Array:
        # a full basis drops the row; a norm may be float64 beside x
        return rows.at[size].set((x / divisor).astype(rows.dtype), mode="drop")

    stack = vectors.place(jax.tree.map(write, stack, outside), placed, stacked=True)
    column = jnp.where(added, whole, vectors.norm(h)).astype(scale.dtype)
    told = jnp.concatenate([h, jnp.stack([left, added.astype(left.dtype)])])
    return stack, size + added, jnp.maximum(scale, column), told


@partial(jax.jit, donate_argnums=(0,), static_argnames=("product", "placed"))
def _extend_by_product(
    stack: Tree, v: Tree, arguments: Any, size: jax.Array, scale: jax.Array, tiny: float,
    product: Callable[[Any, Tree], Tree], placed: Any,
) -> tuple[Tree, jax.Array, jax.Array, Begun]:  # fmt: skip
    """`_extend` by the product with v, in one program."""
    return _extend(stack, product(arguments, v), size, scale, tiny, placed)


@partial(jax.jit, donate_argnums=(0,), static_argnames=("product", "placed"))
def _extend_by_rows(
    stack: Tree, j: Any, count: Any, arguments: Any, size: jax.Array, scale: jax.Array,
    tiny: float, product: Callable[[Any, Tree], Tree], placed: Any,
) -> tuple[Tree, jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """`_extend` by the products with rows j, j + 1, ..., `count` of them, while there are such.

    A v has parts along the last rows (three-term recurrence, one row more after a fresh direction)
    and, after a restart, some others; without the former, one pass over all rows is enough mostly.
    """
    capacity = jax.tree.leaves(stack)[0].shape[0]
    near = min(3, capacity)

    def more(state: Any) -> jax.Array:
        i, _, size, *_ = state
        return (i < count) & (j + i < size)

    def one(state: Any) -> Any:
        i, stack, size, scale, told = state
        w = product(arguments, vectors.index(stack, j + i))
        first = jnp.clip(j + i + 1 - near, 0, capacity - near)
        last = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, near), stack)
        h = vectors.stack_dot(last, w)
        w = jax.tree.map(jnp.subtract, w, vectors.combine(h, last))
        taken = jax.lax.dynamic_update_slice(jnp.zeros(capacity, h.dtype), h, (first,))
        stack, size, scale, row = _extend(stack, w, size, scale, tiny, placed, taken)
        return i + 1, stack, size, scale, told.at[i].set(row)

    told = jnp.zeros((BLOCK, capacity + 2))
    return jax.lax.while_loop(more, one, (np.int32(0), stack, size, scale, told))[1:]


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
        found = self._operator.inside()
        if found is None:
            return self.begin(_of_zero(v, self._operator.matvec(v)))
        product, arguments = found
        self.stack, self._rows, self._scale, begun = _extend_by_product(
            self.stack, v, arguments, self._rows, self._scale, self._tiny,
            product=product, placed=self._operator.placed,
        )  # fmt: skip
        return begun

    def products(self, j: int, count: int) -> Iterator[tuple[np.ndarray, float]]:
        """Of A times rows j, j + 1, ..., `count` at most: coefficients [size] and norm, as `end`.

        It ends where no such row comes. Where a product can be a part of a compiled program, one
        program makes several.
        """
        stop, found = min(j + count, self.capacity), self._operator.inside()
        if found is None:
            for begun in ahead(self.begin_product(self[i]) for i in range(j, stop)):
                yield self.end(begun)
                if (j := j + 1) == self.size:  # the product with the row of zeros adds nothing
                    return
        while found is not None and j < stop:
            product, arguments = found
            # Of one type, whatever whole numbers the caller counts in: each would be compiled anew.
            which = np.int32(j), np.int32(min(stop - j, BLOCK))
            self.stack, self._rows, self._scale, told = _extend_by_rows(
                self.stack, *which, arguments, self._rows, self._scale, self._tiny,
                product=product, placed=self._operator.placed,
            )  # fmt: skip
            for row in np.asarray(told)[: stop - j]:
                yield self.end(row)
                if (j := j + 1) == self.size:
                    return

    def end(self, begun: Begun | np.ndarray) -> tuple[np.ndarray, float]:
        """The coefficients of w in the basis before [size], and the norm of what was added or 0.

        `begun` [capacity + 2] are told in the order in which they were begun.
        """
        # the small matrices are worked on in it
        *_, left, added = told = np.asarray(begun, np.float64)
        if not np.isfinite(left):
            raise ValueError(
                "a product with the curvature matrix is not finite; check the loss and its "
                "derivatives at these parameters (NaN or infinite activations, sqrt or log at 0)"
            )
        self.size, before = self.size + bool(added), self.size
        return told[:before], float(left) if added else 0.0

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
