"""Symmetric linear maps on parameter trees, and those that are means over a stream of batches."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from prunejax.curvature import base, kernels, vectors
from prunejax.curvature.callables import lenient
from prunejax.curvature.splits import Stream

Tree = Any

_dot = jax.jit(base.dot)


@partial(jax.jit, static_argnames=("distribution", "dtype", "placed"))
def draw(
    key: jax.Array, i: Any, like: Tree, masks: Tree, distribution: str, dtype: Any, placed: Any
) -> Tree:
    """Random vector i of the stream `key` in the live subspace: see `vectors.sample`."""
    v = vectors.sample(key, i, like, distribution, dtype)
    return vectors.place(base.project(masks, v), placed)


read = jax.jit(vectors.index)


@partial(jax.jit, static_argnames=("product",))
def _products(arguments: Any, stack: Tree, product: Callable[[Any, Tree], Tree]) -> Tree:
    return jax.lax.map(partial(product, arguments), stack)


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

    def inside(self) -> tuple[Callable[[Any, Tree], Tree], Any] | None:
        """`(product, arguments)` for the midst of a compiled program: A v = product(arguments, v).

        `product` is hashable and the same for all operators of a kind. None where a product is more
        than one call (several batches) or one of a caller's function that may not be traced.
        """
        return None

    def products(self, stack: Tree) -> Tree:
        """A v_i [m, ...] for a stack of m vectors, one after another."""
        found = self.inside()
        if found is not None:
            return _products(found[1], stack, product=found[0])
        count = jax.tree.leaves(stack)[0].shape[0]
        each = [self.matvec(read(stack, i)) for i in range(count)]
        return vectors.stacked(each) if each else stack

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
        return draw(key, i, self.like, self.masks, distribution, self.dtype, self.placed)

    def _one_form(self, v: Tree) -> jax.Array:
        return _dot(base.project(self.masks, v), self.matvec(v))

    def quadratic_form(self, v: Tree) -> jax.Array:
        """The scalar v' A v."""
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


class Averaged(Operator):
    """A curvature matrix averaged over batches: kernels are shared by all of one kind."""

    @lenient
    def __init__(
        self,
        functions: tuple[Callable[..., Any], ...],
        cores: tuple[kernels.Product, kernels.Forms],
        params: Tree,
        batches: base.Batches,
        masks: base.Masks,
        weights: Any,
    ) -> None:
        super().__init__(params, masks)
        self._functions = tuple(base.as_argument(fn) for fn in functions)
        self._product, self._forms = cores
        self._stream = Stream(batches, weights)

    @property
    def examples(self) -> int | None:
        """Examples the average runs over (known after the first pass of a batch factory)."""
        return self._stream.examples

    @lenient
    def matvec(self, v: Tree) -> Tree:
        """A v, in the accumulation dtype."""
        vectors.check_like(v, self.like, "the vector")

        def part(batch: Tree, weight: float) -> Tree:
            return kernels.product(
                self._functions, self.like, self.masks, v, batch, weight,
                core=self._product, placed=self.placed,
            )  # fmt: skip

        return self._stream.mean(part)

    def inside(self) -> tuple[Callable[[Any, Tree], Tree], Any] | None:
        """As of every operator: of the one batch that there is, if it has no weight."""
        if self._stream.single is None or self._stream.weighted:
            return None
        arguments = self._functions, self.like, self.masks, self._stream.single[0]
        return kernels.OneBatch(self._product, self.placed), arguments

    def check_symmetric(self) -> None:
        """ValueError where a `jax.custom_vjp` rule makes the matrix asymmetric.

        What such a rule gives (gradient reversal, straight-through) need not be the gradient of
        anything. Eigenpairs and densities rest on symmetry; traces and forms do not. Two products
        with random vectors tell, and are made only where the loss has such a rule.
        """
        batch = self._stream.first()

        if not kernels.has_rule(self._functions, self.like, batch):
            return
        # a check: no result depends on it
        u, v = (self.draw(jax.random.key(0), i, "gaussian") for i in (0, 1))
        right, left = self.matvec(v), self.matvec(u)
        one, other = float(base.dot(u, right)), float(base.dot(v, left))
        # symmetric up to rounding, on the scale of the product
        if abs(one - other) > 0.01 * float(jnp.sqrt(base.squared_norm(right))):
            raise ValueError(
                "a jax.custom_vjp rule of the loss makes its Hessian asymmetric (u'Hv = "
                f"{one:.6g}, v'Hu = {other:.6g}): it has no orthogonal eigenpairs; hessian_trace "
                "and quadratic_form take it, or GaussNewton of the model"
            )

    @lenient
    def quadratic_forms(self, stack: Tree, *, vectorize: bool | None = None) -> jax.Array:
        """[m]: v_i' A v_i for a stack of m vectors, forward only."""
        vectors.check_like(vectors.index(stack, 0), self.like, "a vector of the stack")

        def part(batch: Tree, weight: float) -> jax.Array:
            return kernels.forms(
                self._functions, self.like, self.masks, stack, batch, weight,
                core=self._forms, together=together(vectorize),
            )  # fmt: skip

        return self._stream.mean(part)

    @lenient
    def sampled_forms(
        self,
        key: jax.Array,
        indices: jax.Array,
        distribution: str,
        *,
        vectorize: bool | None = None,
    ) -> jax.Array:
        """v_i' A v_i [m], random vectors `indices` [rows, m / rows]; a call per batch and row."""

        def part(batch: Tree, weight: float) -> jax.Array:
            calls = [self._sampled(key, r, distribution, vectorize, batch, weight) for r in indices]
            return jnp.concatenate([kernels.sampled_forms(**call) for call in calls])

        return self._stream.mean(part)

    @lenient
    def form_bytes(
        self, chunk: int, distribution: str = "rademacher", *, vectorize: bool | None = None
    ) -> int:
        """Temporary memory in bytes of `sampled_forms` for rows of `chunk` vectors, first batch."""
        key, indices = jax.random.key(0), jnp.arange(chunk)
        call = self._sampled(key, indices, distribution, vectorize, self._stream.first(), 1.0)
        analysis: Any = kernels.sampled_forms.lower(**call).compile().memory_analysis()
        return int(analysis.temp_size_in_bytes)

    def _sampled(
        self,
        key: jax.Array,
        indices: jax.Array,
        distribution: str,
        vectorize: bool | None,
        batch: Tree,
        weight: float,
    ) -> dict[str, Any]:
        return {
            "fns": self._functions,
            "params": self.like,
            "masks": self.masks,
            "key": key,
            "indices": indices,
            "batch": batch,
            "weight": weight,
            "core": self._forms,
            "together": together(vectorize),
            "distribution": distribution,
            "placed": self.placed,
        }


def together(vectorize: bool | None) -> bool:
    """Whether the vectors of a chunk are evaluated at once (vmap); by backend where None.

    XLA's CPU backend turns convolutions with batched kernels into slow grouped ones, and
    forward-only loops are fast there: one vector after another. Elsewhere all at once.
    """
    return jax.default_backend() != "cpu" if vectorize is None else vectorize
