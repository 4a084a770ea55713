"""Symmetric linear maps on parameter trees."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from prunejax.curvature import base, vectors
from prunejax.curvature.host import lenient

Tree = Any

_dot = jax.jit(base.dot)


@partial(jax.jit, static_argnames=("distribution", "dtype", "placed"))
def _draw(
    key: jax.Array, i: Any, like: Tree, masks: Tree, distribution: str, dtype: Any, placed: Any
) -> Tree:
    v = vectors.sample(key, i, like, distribution, dtype)
    return vectors.place(base.project(masks, v), placed)


class Operator:
    """A symmetric linear map A on the live subspace of a parameter tree (P A P).

    Attributes:
      like: the parameters; vectors have their structure and shapes.
      masks: boolean tree, or None where every coordinate is live.
    """

    like: Tree
    masks: Tree

    @lenient
    def __init__(self, like: Tree, masks: Tree = None) -> None:
        self.like = vectors.check_params(like)
        self.masks = base.expand_masks(masks, self.like)
        self.placed = vectors.shardings(self.like)

    @property
    def live_dim(self) -> int:
        """The number of live coordinates: the dimension of the space A acts on."""
        return base.live_dimension(self.masks, self.like)

    def nonempty_dim(self) -> int:
        """`live_dim`; ValueError where no coordinate is live."""
        if not self.live_dim:
            raise ValueError("the masks leave no live coordinate: the matrix is empty")
        return self.live_dim

    @property
    @lenient
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

    def check_symmetric(self) -> None:
        """ValueError where a rule of the caller may make A asymmetric and does."""

    def quadratic_forms(self, stack: Tree, *, vectorize: bool | None = None) -> jax.Array:
        """[m]: v_i' A v_i for a stack of m vectors.

        Args:
          stack: vectors along the leading axis of every leaf.
          vectorize: evaluate them at once (vmap) or one after another; None: by backend. An
            operator of a given `matvec` always goes one by one.
        """
        del vectorize
        count = jax.tree.leaves(stack)[0].shape[0]
        return jnp.stack([self._one_form(vectors.index(stack, i)) for i in range(count)])

    def sampled_forms(
        self,
        key: jax.Array,
        indices: jax.Array,
        distribution: str,
        *,
        vectorize: bool | None = None,
    ) -> jax.Array:
        """[m]: v_i' A v_i for the random vectors `indices` [rows, m / rows] of `vectors.sample`."""
        del vectorize
        return jnp.stack([self._one_form(self.draw(key, i, distribution)) for i in indices.ravel()])

    def form_bytes(
        self, chunk: int, distribution: str = "rademacher", *, vectorize: bool | None = None
    ) -> int | None:
        """Temporary memory of a chunk of quadratic forms in bytes; None where it is unknown."""
        del chunk, distribution, vectorize
        return None

    @lenient
    def draw(self, key: jax.Array, i: Any, distribution: str) -> Tree:
        """Random vector i of the stream `key` in the live subspace."""
        return _draw(key, i, self.like, self.masks, distribution, self.dtype, self.placed)

    def _one_form(self, v: Tree) -> jax.Array:
        return _dot(base.project(self.masks, v), self.matvec(v))

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
