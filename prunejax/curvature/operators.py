"""Curvature matrices of any loss: the Hessian, the generalized Gauss-Newton, the Fisher matrix.

An `Operator` is a symmetric linear map on the live subspace of the parameters, averaged over one
batch or a list of batches (weighted by their sizes):

    Hessian        H = ∇² L                      forward-over-reverse (Pearlmutter 1994)
    GaussNewton    G = E[J' ∇²_z ℓ J]            jvp, output Hessian, vjp (Schraudolph 2002)
    Fisher         exact: G of a log-likelihood; empirical: E[∇ℓ_i ∇ℓ_i']

and its quadratic form v'Av runs forward only (for H: a jvp of a jvp), about half the floating-point
operations of the product A v. With masks an operator is P A P. `from_matvec` makes an operator of
any symmetric function. The estimators of this package (trace, spectrum) take operators.

Losses are traced once per function and shapes, like under `jax.jit`. BatchNorm is the caller's
policy: a loss that closes over frozen statistics has eval-mode curvature. Give statistics that
change as `jax.tree_util.Partial(loss, statistics)`, whose arrays are data of the compiled kernel.
"""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp

from prunejax.curvature import kernels, splits, vectors
from prunejax.curvature.callables import as_argument, lenient
from prunejax.curvature.splits import Batches
from prunejax.registry import lookup

Tree = Any
Loss = Callable[..., Any]
KEPT = 2**26  # bytes of a linearized gradient, about, that estimators keep unasked

_dot = jax.jit(vectors.dot)


class Operator:
    """A symmetric linear map A on the live subspace of a parameter tree (P A P).

    Attributes:
      like: the parameters; vectors have their structure and shapes.
      masks: boolean tree, or None where every coordinate is live.
    """

    @lenient
    def __init__(self, like: Tree, masks: Tree = None) -> None:
        self.like, self.masks = vectors.checked(like, masks)
        self.placed = vectors.shardings(self.like)

    @cached_property  # searches ask in every step, and masks are counted on the host
    def live_dim(self) -> int:
        """The number of live coordinates: the dimension of the space A acts on."""
        return vectors.live_dimension(self.masks, self.like)

    def nonempty_dim(self, pairs: int = 1) -> int:
        """`live_dim`; ValueError where it is 0, or has no room for so many eigenpairs."""
        dim = self.live_dim
        if not dim:
            raise ValueError("the masks leave no live coordinate: the matrix is empty")
        if not 1 <= pairs <= dim:
            raise ValueError(f"k must be 1..{dim}, the number of live coordinates; got {pairs}")
        return dim

    @property
    @lenient
    def dtype(self) -> Any:
        """The dtype sums run in: float32, or float64 if a parameter has it."""
        return vectors.sum_dtype(self.like)

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
            return kernels.products(found[1], stack, product=found[0])
        count = jax.tree.leaves(stack)[0].shape[0]
        each = [self.matvec(vectors.take(stack, i)) for i in range(count)]
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
        count = jax.tree.leaves(stack)[0].shape[0]
        return jnp.stack([self._one_form(vectors.index(stack, i)) for i in range(count)])

    def sampled_forms(
        self, key: Any, indices: jax.Array, distribution: str, *, vectorize: bool | None = None
    ) -> jax.Array:
        """[m]: v_i' A v_i for the random vectors `indices` [rows, m / rows] of `vectors.sample`."""
        return jnp.stack([self._one_form(self.draw(key, i, distribution)) for i in indices.ravel()])

    def form_bytes(
        self, chunk: int, distribution: str = "rademacher", *, vectorize: bool | None = None
    ) -> int | None:
        """Temporary memory of a chunk of quadratic forms in bytes; None where it is unknown."""
        return None

    @lenient
    def draw(self, key: jax.Array, i: Any, distribution: str) -> Tree:
        """Random vector i of the stream `key` in the live subspace."""
        return kernels.draw(key, i, self.like, self.masks, distribution, self.dtype, self.placed)

    def _one_form(self, v: Tree) -> jax.Array:
        return _dot(vectors.project(self.masks, v), self.matvec(v))

    def quadratic_form(self, v: Tree) -> jax.Array:
        """The scalar v' A v."""
        return self.quadratic_forms(jax.tree.map(lambda x: jnp.asarray(x)[None], v))[0]


class _Matvec(Operator):
    def __init__(self, matvec: Callable[[Tree], Tree], like: Tree, masks: Tree = None) -> None:
        super().__init__(like, masks)
        self._matvec = matvec

    def matvec(self, v: Tree) -> Tree:
        out = self._matvec(vectors.cast_like(vectors.project(self.masks, v), self.like))
        vectors.check_like(out, self.like, "what matvec returns")
        return vectors.project(self.masks, vectors.upcast(out))


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
        self, functions: tuple[Loss, ...], cores: tuple[kernels.Product, kernels.Forms],
        params: Tree, batches: Batches, masks: vectors.Masks = None, weights: Any = None,
    ) -> None:  # fmt: skip
        if cores is kernels.EMPIRICAL and batches is None:
            raise ValueError("the empirical Fisher matrix needs examples: give batches=")
        super().__init__(params, masks)
        self._functions, (self._product, self._forms) = tuple(map(as_argument, functions)), cores
        self._stream = splits.Stream(batches, weights)

    @property
    def examples(self) -> int | None:
        """Examples the average runs over (known after the first pass of a batch factory)."""
        return self._stream.examples

    def _at(self, batch: Tree) -> kernels.Arguments:
        return self._functions, self.like, self.masks, batch

    @lenient
    def matvec(self, v: Tree) -> Tree:
        """A v, in the accumulation dtype."""
        vectors.check_like(v, self.like, "the vector")
        one = partial(kernels.product, core=self._product, placed=self.placed)
        return self._stream.mean(lambda batch, weight: one(self._at(batch), v, weight))

    def inside(self) -> tuple[Callable[[Any, Tree], Tree], Any] | None:
        """As of every operator: of the one batch that there is, if it has no weight."""
        if self._stream.single is None or self._stream.weighted:
            return None
        return kernels.OneBatch(self._product, self.placed), self._at(self._stream.single[0])

    def check_symmetric(self) -> None:
        """ValueError where a `jax.custom_vjp` rule makes the matrix asymmetric.

        What such a rule gives (gradient reversal, straight-through) need not be the gradient of
        anything. Eigenpairs and densities rest on symmetry; traces and forms do not. Two products
        with random vectors tell, and are made only where the loss has such a rule.
        """
        if not kernels.has_rule(self._functions, self.like, self._stream.first()):
            return
        # a check: no result depends on it
        u, v = (self.draw(jax.random.key(0), i, "gaussian") for i in (0, 1))
        right, left = self.matvec(v), self.matvec(u)
        one, other = float(vectors.dot(u, right)), float(vectors.dot(v, left))
        # symmetric up to rounding, on the scale of the product
        if abs(one - other) > 0.01 * float(vectors.norm(right)):
            raise ValueError(
                "a jax.custom_vjp rule of the loss makes its Hessian asymmetric (u'Hv = "
                f"{one:.6g}, v'Hu = {other:.6g}): it has no orthogonal eigenpairs; hessian_trace "
                "and quadratic_form take it, or GaussNewton of the model"
            )

    @lenient
    def quadratic_forms(self, stack: Tree, *, vectorize: bool | None = None) -> jax.Array:
        """[m]: v_i' A v_i for a stack of m vectors, forward only."""
        vectors.check_like(jax.eval_shape(vectors.first, stack), self.like, "a vector of the stack")
        one = partial(kernels.forms, core=self._forms, together=kernels.together(vectorize))
        return self._stream.mean(lambda batch, weight: one(self._at(batch), stack, weight))

    def _sampled(self, law: str, vectorize: bool | None) -> dict[str, Any]:
        at_once = kernels.together(vectorize)
        return dict(core=self._forms, together=at_once, distribution=law, placed=self.placed)

    @lenient
    def sampled_forms(
        self, key: Any, indices: jax.Array, distribution: str, *, vectorize: bool | None = None
    ) -> jax.Array:
        """v_i' A v_i [m], random vectors `indices` [rows, m / rows]; a call per batch and row."""
        one = partial(kernels.sampled_forms, **self._sampled(distribution, vectorize))
        return self._stream.mean(
            lambda batch, weight: jnp.concatenate(
                [one(self._at(batch), key, row, weight) for row in indices]
            )
        )

    @lenient
    def form_bytes(
        self, chunk: int, distribution: str = "rademacher", *, vectorize: bool | None = None
    ) -> int:
        """Temporary memory in bytes of `sampled_forms` for rows of `chunk` vectors, first batch."""
        lowered = kernels.sampled_forms.lower(
            self._at(self._stream.first()), jax.random.key(0), jnp.arange(chunk), 1.0,
            **self._sampled(distribution, vectorize),
        )  # fmt: skip
        analysis: Any = lowered.compile().memory_analysis()
        return int(analysis.temp_size_in_bytes)


class Hessian(Averaged):
    """P ∇²L P of the mean loss.

    Args:
      loss: `loss(params)`, or `loss(params, batch)`: the mean over the batch's examples.
      params: any pytree of floating-point arrays.
      batches: None, one batch (a pytree, examples along the leading axis; a tuple is one batch),
        a list of batches, an iterator of batches (kept as a list), or a function that returns a
        fresh iterable of batches at each pass over the data.
      masks: boolean tree like params, True = live; or None.
      weights: one number per batch, default its number of examples.
      linearize: keep the linearized gradient of the one batch for all products: saves up to a
        quarter of each on CPU, costs about twice the memory. None: estimators do, where it is
        small (`KEPT`) and lies on one device. The products are the same.
    """

    def __init__(
        self,
        loss: Loss,
        params: Tree,
        batches: Batches = None,
        *,
        masks: vectors.Masks = None,
        weights: Any = None,
        linearize: bool | None = None,
    ) -> None:
        super().__init__((loss,), kernels.HESSIAN, params, batches, masks, weights)
        if linearize and not self._stream.single:
            raise ValueError("linearize=True keeps the residuals of one batch; give one batch")
        self._linearize = linearize
        self._linear: Any = None

    def matvec(self, v: Tree) -> Tree:
        """H v, in the accumulation dtype."""
        if not self._linearize:  # None: for a single product it would be compiled in vain
            return super().matvec(v)
        vectors.check_like(v, self.like, "the vector")
        product, arguments = self.inside()
        return product(arguments, v)

    @lenient
    def inside(self) -> Any:
        """As of every operator; the linear map is made once."""
        found = super().inside()
        if self._linearize is None:
            self._linearize = found is not None and self._is_small()
        if not self._linearize:
            return found
        if self._linear is None:
            of = self._functions, self.like, self._stream.first()
            self._linear = kernels.linearized_gradient(*of)
        arguments = (self._linear,), self.like, self.masks, None
        return kernels.OneBatch(kernels.linear_product, self.placed), arguments

    def _is_small(self) -> bool:
        of = self._functions, self.like, self._stream.first()
        spread = splits.spread(of) or any(self.placed)
        return not (spread or kernels.has_rule(*of)) and kernels.intermediate_bytes(*of) <= KEPT


class GaussNewton(Averaged):
    """The generalized Gauss-Newton matrix P E[J' (∇²_z ℓ) J] P, z = model(params, batch).

    Args:
      model: `model(params, batch) -> outputs` (`model(params)` without batches).
      output_loss: `output_loss(outputs, batch) -> scalar`, the mean loss, convex in the outputs.
      params, batches, masks, weights: as in `Hessian`.
    """

    def __init__(
        self, model: Loss, output_loss: Loss, params: Tree, batches: Batches = None, **options: Any
    ) -> None:
        super().__init__((model, output_loss), kernels.GAUSS_NEWTON, params, batches, **options)


class Fisher(Averaged):
    """The Fisher matrix of a model whose output loss is a negative log-likelihood.

    kind="exact" takes the expectation over the model's own predictions. It equals the generalized
    Gauss-Newton matrix where the outputs are natural parameters of an exponential family: softmax
    and sigmoid cross-entropy on logits, squared error, Poisson with log rates (Martens 2020,
    section 9.2); other losses have no "exact" kind here. kind="empirical" is the uncentered second
    moment of the gradients at the labels given, E[∇ℓ_i ∇ℓ_i'].

    Args:
      model, output_loss, params, batches, masks, weights: as in `GaussNewton`.
      kind: "exact" or "empirical".
    """

    def __init__(
        self,
        model: Loss,
        output_loss: Loss,
        params: Tree,
        batches: Batches = None,
        *,
        kind: str = "exact",
        **options: Any,
    ) -> None:
        table = {"exact": kernels.GAUSS_NEWTON, "empirical": kernels.EMPIRICAL}
        cores = lookup(table, kind, "kind of Fisher matrix")
        super().__init__((model, output_loss), cores, params, batches, **options)


class EmpiricalFisher(Averaged):
    """P E[∇ℓ_i ∇ℓ_i'] P of any `loss(params, batch)`; its trace is the paper's Tr(C).

    Args: as in `Hessian`.
    """

    def __init__(self, loss: Loss, params: Tree, batches: Batches, **options: Any) -> None:
        super().__init__((loss,), kernels.EMPIRICAL, params, batches, **options)


def as_operator(
    loss: Any, params: Tree, batches: Batches, masks: vectors.Masks, weights: Any
) -> Operator:
    """The Hessian of a loss, or the operator that was given in its place."""
    if not isinstance(loss, Operator):
        return Hessian(loss, params, batches, masks=masks, weights=weights)
    if any(x is not None for x in (params, batches, masks, weights)):
        raise ValueError(
            "an operator has its parameters, batches, masks and weights already; give it alone"
        )
    return loss


def hvp(loss: Loss, params: Tree, v: Tree, batches: Batches = None, **options: Any) -> Tree:
    """H v (P H P v with masks), averaged over all examples; arguments as in `Hessian`."""
    return Hessian(loss, params, batches, **options).matvec(v)


def quadratic_form(
    loss: Loss, params: Tree, v: Tree, batches: Batches = None, **options: Any
) -> jax.Array:
    """The scalar v' H v by nested forward mode; arguments as in `Hessian`."""
    return Hessian(loss, params, batches, **options).quadratic_form(v)


def ggn_product(
    model: Loss, output_loss: Loss, params: Tree, v: Tree, batches: Batches = None, **options: Any
) -> Tree:
    """G v; arguments as in `GaussNewton`."""
    return GaussNewton(model, output_loss, params, batches, **options).matvec(v)


def fisher_product(
    model: Loss, output_loss: Loss, params: Tree, v: Tree, batches: Batches = None, **options: Any
) -> Tree:
    """F v; arguments as in `Fisher`."""
    return Fisher(model, output_loss, params, batches, **options).matvec(v)
