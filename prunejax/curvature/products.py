"""Products with the Hessian, the generalized Gauss-Newton and the Fisher matrix of any loss.

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
from typing import Any

import jax

from prunejax.curvature import base, kernels, splits, vectors
from prunejax.curvature.callables import lenient
from prunejax.curvature.operators import Averaged, Operator
from prunejax.registry import lookup

Tree = Any
KEPT = 2**26  # bytes of a linearized gradient, about, that estimators keep unasked


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
        loss: Callable[..., Any],
        params: Tree,
        batches: base.Batches = None,
        *,
        masks: base.Masks = None,
        weights: Any = None,
        linearize: bool | None = None,
    ) -> None:
        cores = (kernels.hessian_product, kernels.hessian_forms)
        super().__init__((loss,), cores, params, batches, masks, weights)
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
            self._linear = kernels.linearized_gradient(
                self._functions, self.like, self._stream.first()
            )
        return kernels.Linear(self.placed), (self._linear, self.like, self.masks)

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
        self,
        model: Callable[..., Any],
        output_loss: Callable[..., Any],
        params: Tree,
        batches: base.Batches = None,
        *,
        masks: base.Masks = None,
        weights: Any = None,
    ) -> None:
        cores = (kernels.ggn_product, kernels.ggn_forms)
        super().__init__((model, output_loss), cores, params, batches, masks, weights)


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
        model: Callable[..., Any],
        output_loss: Callable[..., Any],
        params: Tree,
        batches: base.Batches = None,
        *,
        kind: str = "exact",
        masks: base.Masks = None,
        weights: Any = None,
    ) -> None:
        cores = lookup(
            {
                "exact": (kernels.ggn_product, kernels.ggn_forms),
                "empirical": (kernels.empirical_product, kernels.empirical_forms),
            },
            kind,
            "kind of Fisher matrix",
        )
        _needs_batches(kind, batches)
        super().__init__((model, output_loss), cores, params, batches, masks, weights)


class EmpiricalFisher(Averaged):
    """P E[∇ℓ_i ∇ℓ_i'] P of any `loss(params, batch)`; its trace is the paper's Tr(C).

    Args: as in `Hessian`.
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        params: Tree,
        batches: base.Batches,
        *,
        masks: base.Masks = None,
        weights: Any = None,
    ) -> None:
        _needs_batches("empirical", batches)
        cores = (kernels.empirical_product, kernels.empirical_forms)
        super().__init__((loss,), cores, params, batches, masks, weights)


def _needs_batches(kind: str, batches: base.Batches) -> None:
    if kind == "empirical" and batches is None:
        raise ValueError("the empirical Fisher matrix needs examples: give batches=")


def as_operator(
    loss: Any, params: Tree, batches: base.Batches, masks: base.Masks, weights: Any
) -> Operator:
    """The Hessian of a loss, or the operator that was given in its place."""
    if not isinstance(loss, Operator):
        return Hessian(loss, params, batches, masks=masks, weights=weights)
    if any(x is not None for x in (params, batches, masks, weights)):
        raise ValueError(
            "an operator has its parameters, batches, masks and weights already; give it alone"
        )
    return loss


def hvp(
    loss: Callable[..., Any],
    params: Tree,
    v: Tree,
    batches: base.Batches = None,
    *,
    masks: base.Masks = None,
    weights: Any = None,
) -> Tree:
    """H v (P H P v with masks), averaged over all examples; arguments as in `Hessian`."""
    return Hessian(loss, params, batches, masks=masks, weights=weights).matvec(v)


def quadratic_form(
    loss: Callable[..., Any],
    params: Tree,
    v: Tree,
    batches: base.Batches = None,
    *,
    masks: base.Masks = None,
    weights: Any = None,
) -> jax.Array:
    """The scalar v' H v by nested forward mode; arguments as in `Hessian`."""
    return Hessian(loss, params, batches, masks=masks, weights=weights).quadratic_form(v)


def ggn_product(
    model: Callable[..., Any],
    output_loss: Callable[..., Any],
    params: Tree,
    v: Tree,
    batches: base.Batches = None,
    *,
    masks: base.Masks = None,
    weights: Any = None,
) -> Tree:
    """G v; arguments as in `GaussNewton`."""
    return GaussNewton(model, output_loss, params, batches, masks=masks, weights=weights).matvec(v)


def fisher_product(
    model: Callable[..., Any],
    output_loss: Callable[..., Any],
    params: Tree,
    v: Tree,
    batches: base.Batches = None,
    *,
    kind: str = "exact",
    masks: base.Masks = None,
    weights: Any = None,
) -> Tree:
    """F v; arguments as in `Fisher`."""
    return Fisher(
        model, output_loss, params, batches, kind=kind, masks=masks, weights=weights
    ).matvec(v)
