"""Symmetric linear maps on parameter trees, and means over streams of batches."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from prunejax.curvature import base, vectors

Tree = Any

_add = jax.jit(base.add)
_scale = jax.jit(base.scale)
_dot = jax.jit(base.dot)


class Operator:
    """A symmetric linear map A on the live subspace of a parameter tree (P A P).

    Attributes:
      like: the parameters; vectors have their structure and shapes.
      masks: boolean tree, or None where every coordinate is live.
    """

    like: Tree
    masks: Tree

    def __init__(self, like: Tree, masks: Tree = None) -> None:
        self.like = vectors.check_params(like)
        self.masks = base.expand_masks(masks, self.like)
        self.placed = vectors.shardings(self.like)

    @property
    def live_dim(self) -> int:
        """The number of live coordinates: the dimension of the space A acts on."""
        return base.live_dimension(self.masks, self.like)

    @property
    def dtype(self) -> Any:
        """The dtype sums run in: float32, or float64 if a parameter has it."""
        return base.accumulator(jnp.result_type(*jax.tree.leaves(self.like)))

    @property
    def examples(self) -> int | None:
        """The examples A is a mean over, None where there are none."""
        return None

    def matvec(self, v: Tree) -> Tree:
        """A v, in the accumulation dtype."""
        raise NotImplementedError

    def quadratic_forms(self, stack: Tree) -> jax.Array:
        """[m]: v_i' A v_i for a stack of m vectors."""
        count = jax.tree.leaves(stack)[0].shape[0]
        one = (vectors.index(stack, i) for i in range(count))
        return jnp.stack([_dot(v, self.matvec(v)) for v in one])

    def quadratic_form(self, v: Tree) -> jax.Array:
        """The number v' A v."""
        return self.quadratic_forms(jax.tree.map(lambda x: jnp.asarray(x)[None], v))[0]


class _Matvec(Operator):
    def __init__(self, matvec: Callable[[Tree], Tree], like: Tree, masks: Tree = None) -> None:
        super().__init__(like, masks)
        self._matvec = matvec

    def matvec(self, v: Tree) -> Tree:
        out = self._matvec(base.cast_like(base.project(self.masks, v), self.like))
        return base.project(self.masks, base.upcast(out))


def from_matvec(matvec: Callable[[Tree], Tree], like: Tree, masks: Tree = None) -> Operator:
    """An operator of any symmetric function `matvec(tree) -> tree`.

    Args:
      matvec: called as it is (jit it yourself where it can be).
      like: a tree with the structure, shapes and dtypes of its argument.
      masks: restricts the operator to P A P.
    """
    return _Matvec(matvec, like, masks)


class Stream:
    """Batches that can be passed over again and again, each with its weight.

    Args:
      batches: None (a loss without data), one batch, a list of batches, an iterator (kept as a
        list), or a function that returns a fresh iterable of batches.
      weights: one number >= 0 per batch, default its number of examples.
    """

    def __init__(self, batches: Any, weights: Any = None) -> None:
        self._source: Callable[[], Iterable[Tree]]
        self.examples: int | None = None
        self.single: tuple[Tree] | None = None  # the one batch there is
        if isinstance(batches, Iterator):
            batches = list(batches)
        if callable(batches) and jax.tree_util.all_leaves([batches]):
            self._source = batches
        else:
            found = base.batch_list(batches)
            self._source = lambda: found
            sizes = [base.batch_size(batch) for batch in found]
            self.examples = None if batches is None else sum(sizes)
            self.single = (found[0],) if len(found) == 1 else None
        self._weights = None if weights is None else [float(w) for w in weights]
        if self._weights is not None and (min(self._weights) < 0 or sum(self._weights) <= 0):
            raise ValueError(f"weights must be >= 0 with a positive sum, got {self._weights}")

    def mean(self, part: Callable[[Tree, float], Tree]) -> Tree:
        """The weighted mean of `part(batch, weight)`, which multiplies by its weight itself."""
        if self.single and self._weights is None:
            return part(self.single[0], 1.0)
        total, sizes = None, []
        for i, batch in enumerate(self._source()):
            sizes.append(base.batch_size(batch))
            term = part(batch, self._weight(i, sizes[-1]))
            total = term if total is None else _add(total, term)
        if not sizes:
            raise ValueError("the stream of batches is empty; give at least one batch")
        if self._weights is not None and len(self._weights) != len(sizes):
            raise ValueError(f"{len(self._weights)} weights for {len(sizes)} batches; one for each")
        self.examples = sum(sizes)
        return _scale(1.0 / sum(sizes if self._weights is None else self._weights), total)

    def _weight(self, i: int, size: int) -> float:
        if self._weights is None:
            return float(size)
        return self._weights[i] if i < len(self._weights) else 0.0
