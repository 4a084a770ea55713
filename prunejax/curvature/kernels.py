"""The compiled kernels behind `operators`: one batch, one curvature matrix, P A P.

Of each matrix there are two parts, both without masks, weights and casts:
`product(functions, params, v, batch)` gives A v, and `forms(functions, params, batch, count)` gives
a function v -> v'Av that will be called for `count` vectors, so it may prepare what they share.
The kernels add the rest; they are compiled once per functions and shapes.

Each runs in the cheapest mode of differentiation that the function has. H v is forward over reverse
and v'Hv nested forward mode. Both need forward mode, which functions with a `jax.custom_vjp` lack
in part: there the form goes through the product, the product is reverse over reverse where even the
rule itself has no forward mode, and first derivatives along a vector are the transpose of reverse
mode.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from prunejax.curvature import adjoint, vectors
from prunejax.curvature.callables import call, equations, has_custom_vjp, primitives

Tree = Any
Scalar = Callable[[Tree], jax.Array]
Function = Callable[[Tree], Any]


def second_product(f: Scalar, params: Tree, v: Tree) -> Tree:
    """∇²f v."""

    def forward_over_reverse(p: Tree, u: Tree) -> Tree:
        return jax.jvp(jax.grad(f), (p,), (u,))[1]

    # What is left of a custom_vjp after forward mode is an equation that can not be compiled.
    if has_custom_vjp(f, params) and "custom_lin" in primitives(forward_over_reverse, params, v):
        return jax.vjp(jax.grad(f), params)[1](v)[0]
    return forward_over_reverse(params, v)


def pushforward(f: Function, params: Tree, v: Tree) -> tuple[Any, Any]:
    """`(f(params), f'[v])`: forward mode, or the transpose of reverse mode where there is none."""
    if not has_custom_vjp(f, params):
        return jax.jvp(f, (params,), (v,))
    out, change = linearized(f, params)
    return out, change(v)


def linearized(f: Function, params: Tree) -> tuple[Any, Function]:
    """`(f(params), v -> f'[v])`, for several v."""
    if not has_custom_vjp(f, params):
        return jax.linearize(f, params)
    out, pull = jax.vjp(f, params)
    transposed = jax.vjp(lambda t: pull(t)[0], jax.tree.map(jnp.zeros_like, out))[1]
    return out, lambda v: transposed(v)[0]


def second_form(f: Scalar, params: Tree, v: Tree) -> jax.Array:
    """The scalar v' ∇²f v."""
    if has_custom_vjp(f, params):
        return vectors.dot(v, second_product(f, params, v))
    return jax.jvp(lambda p: jax.jvp(f, (p,), (v,))[1], (params,), (v,))[1]


Product = Callable[[tuple[Any, ...], Tree, Tree, Tree], Tree]
Forms = Callable[[tuple[Any, ...], Tree, Tree, int], Callable[[Tree], jax.Array]]

# `adjoint` takes one gradient for all vectors and 3 passes for each, a jvp of a jvp 5 for each.
_ADJOINT_FROM = 4


def scalar(loss: Callable[..., Any], batch: Tree) -> Callable[[Tree], jax.Array]:
    """The loss as a function of params alone; ValueError unless it is one real scalar."""

    def value(params: Tree) -> jax.Array:
        out = call(loss, params, batch)
        if isinstance(out, tuple | list | dict | None) or jnp.shape(out) != ():
            raise ValueError(
                "the loss must return one scalar, the mean over the batch; got shapes "
                f"{jax.tree.map(jnp.shape, out)}. Drop auxiliary outputs, take the mean"
            )
        if not jnp.issubdtype(jnp.result_type(out), jnp.floating):
            raise ValueError(
                "the loss must return one scalar that is a real number; got "
                f"{jnp.result_type(out)}, of which no curvature is taken"
            )
        return out

    return value


def hessian_product(fns: tuple[Any, ...], params: Tree, v: Tree, batch: Tree) -> Tree:
    """H v, forward over reverse."""
    return second_product(scalar(fns[0], batch), params, v)


def hessian_forms(
    fns: tuple[Any, ...], params: Tree, batch: Tree, count: int
) -> Callable[[Tree], jax.Array]:
    """The function v -> v' H v, a scalar, forward only; many vectors share the adjoints."""
    f = scalar(fns[0], batch)
    if count >= _ADJOINT_FROM and not has_custom_vjp(f, params):
        try:
            return adjoint.quadratic_forms(f, params)
        except (TypeError, NotImplementedError, ValueError):
            pass  # a part without reverse or forward mode: `second_form` finds a way, or the error
    return partial(second_form, f, params)


def ggn_product(fns: tuple[Any, ...], params: Tree, v: Tree, batch: Tree) -> Tree:
    """G v; `fns` are the model and the loss of its outputs."""
    model = partial(_of_params, fns[0], batch)
    outputs, change = pushforward(model, params, v)
    # the curvature of the output loss alone: the model's own is left out
    bent = second_product(scalar(fns[1], batch), outputs, change)
    return jax.vjp(model, params)[1](bent)[0]


def ggn_forms(
    fns: tuple[Any, ...], params: Tree, batch: Tree, count: int
) -> Callable[[Tree], jax.Array]:
    """The function v -> v' G v, a scalar: the output Hessian along the change of the outputs."""
    outputs, change = linearized(partial(_of_params, fns[0], batch), params)
    return lambda v: second_form(scalar(fns[1], batch), outputs, change(v))


def _of_params(fn: Callable[..., Any], batch: Tree, params: Tree) -> Any:
    return call(fn, params, batch)


def empirical_product(fns: tuple[Any, ...], params: Tree, v: Tree, batch: Tree) -> Tree:
    """E[∇ℓ_i ∇ℓ_i'] v; `fns` are a loss, or a model and the loss of its outputs."""
    losses = example_losses(_composed(fns), batch)
    slopes = pushforward(losses, params, v)[1]
    return jax.vjp(losses, params)[1](slopes / slopes.size)[0]  # mean of examples, J'(J v) / n


def empirical_forms(
    fns: tuple[Any, ...], params: Tree, batch: Tree, count: int
) -> Callable[[Tree], jax.Array]:
    """The function v -> E[(∇ℓ_i' v)²], a scalar."""
    slopes = linearized(example_losses(_composed(fns), batch), params)[1]
    # squared and averaged in the accumulation dtype
    return lambda v: jnp.mean(jnp.square(vectors.upcast(slopes(v))))


def example_losses(loss: Callable[..., Any], batch: Tree) -> Callable[[Tree], jax.Array]:
    """`params -> [n]`: the loss of every example of the batch, each as a batch of one."""

    def losses(params: Tree) -> jax.Array:
        return jax.vmap(
            lambda example: scalar(loss, jax.tree.map(lambda x: x[None], example))(params)
        )(jax.tree.map(jnp.asarray, batch))

    return losses


def _composed(fns: tuple[Any, ...]) -> Callable[..., Any]:
    """The loss itself, or the loss of the model's outputs."""
    if len(fns) == 1:
        return fns[0]
    return lambda params, batch=None: call(fns[1], call(fns[0], params, batch), batch)


def _tangent(v: Tree, params: Tree, masks: Tree) -> Tree:
    """P v in the dtypes of the parameters."""
    return vectors.cast_like(vectors.project(masks, v), params)


HESSIAN = hessian_product, hessian_forms
GAUSS_NEWTON = ggn_product, ggn_forms
EMPIRICAL = empirical_product, empirical_forms

# Of the kernels below: functions, parameters, masks, batch.
Arguments = tuple[tuple[Any, ...], Tree, Tree, Tree]


@partial(jax.jit, static_argnames=("core", "placed"))
def product(arguments: Arguments, v: Tree, weight: Any, core: Product, placed: Any) -> Tree:
    """One batch's term: weight · P A P v, in the accumulation dtype."""
    fns, params, masks, batch = arguments
    tangent = vectors.place(_tangent(v, params, masks), placed)
    out = vectors.upcast(core(fns, params, tangent, batch))
    # The weight last: a product's rounding does not depend on it.
    return vectors.place(vectors.scale(weight, vectors.project(masks, out)), placed)


@dataclass(frozen=True)
class OneBatch:
    """A product in the midst of a compiled program: `OneBatch(core, placed)(arguments, v)` is A v.

    Equal for all operators of a kind, so that such programs are compiled once for them.
    """

    core: Product
    placed: Any

    def __call__(self, arguments: Arguments, v: Tree) -> Tree:
        """A v; `arguments` as `product` takes them."""
        return product(arguments, v, 1.0, core=self.core, placed=self.placed)


@partial(jax.jit, static_argnames=("core", "together"))
def forms(arguments: Arguments, stack: Tree, weight: Any, core: Forms, together: bool) -> jax.Array:
    """One batch's term for a stack of vectors: weight · v_i' P A P v_i [m]."""
    fns, params, masks, batch = arguments
    count = jax.tree.leaves(stack)[0].shape[0]
    value = core(fns, params, batch, count)

    def one(v: Tree) -> jax.Array:
        return weight * vectors.upcast(value(_tangent(v, params, masks)))

    if count == 1:
        return one(vectors.index(stack, 0))[None]
    return jax.vmap(one)(stack) if together else jax.lax.map(one, stack)


@partial(jax.jit, static_argnames=("core", "together", "distribution", "placed"))
def sampled_forms(
    arguments: Arguments, key: jax.Array, indices: jax.Array, weight: Any,
    core: Forms, together: bool, distribution: str, placed: Any,
) -> jax.Array:  # fmt: skip
    """`forms` [m] for the random vectors `indices` [m] of the stream `key`, drawn when used."""
    fns, params, masks, batch = arguments
    value = core(fns, params, batch, indices.shape[0])
    dtype = vectors.sum_dtype(params)

    def draw(i: jax.Array) -> Tree:
        v = vectors.sample(key, i, params, distribution, dtype)
        return vectors.place(_tangent(v, params, masks), placed)

    def one(v: Tree) -> jax.Array:
        return weight * vectors.upcast(value(v))

    if together:
        return jax.vmap(one)(jax.lax.map(draw, indices))
    return jax.lax.map(lambda i: one(draw(i)), indices)


@partial(jax.jit, static_argnames=("distribution", "dtype", "placed"))
def draw(
    key: jax.Array, i: Any, like: Tree, masks: Tree, distribution: str, dtype: Any, placed: Any
) -> Tree:
    """Random vector i of the stream `key` in the live subspace: see `vectors.sample`."""
    v = vectors.sample(key, i, like, distribution, dtype)
    return vectors.place(vectors.project(masks, v), placed)


@partial(jax.jit, static_argnames=("product",))
def products(arguments: Any, stack: Tree, product: Callable[[Any, Tree], Tree]) -> Tree:
    """A v_i [m, ...] for a stack of m vectors; `product` as from `Operator.inside`."""
    return jax.lax.map(partial(product, arguments), stack)


def together(vectorize: bool | None) -> bool:
    """Whether the vectors of a chunk are evaluated at once (vmap); by backend where None.

    XLA's CPU backend turns convolutions with batched kernels into slow grouped ones, and
    forward-only loops are fast there: one vector after another. Elsewhere all at once.
    """
    return jax.default_backend() != "cpu" if vectorize is None else vectorize


@jax.jit
def _first_value(fns: Any, params: Tree, batch: Tree) -> jax.Array:
    return call(_composed(fns), params, batch)


def has_rule(fns: tuple[Any, ...], params: Tree, batch: Tree) -> bool:
    """Whether a part of the loss, `fns[0]` or `fns[1]` of the model `fns[0]`, has a custom_vjp."""
    return has_custom_vjp(_first_value, fns, params, batch)


def intermediate_bytes(fns: tuple[Any, ...], params: Tree, batch: Tree) -> int:
    """Bytes of what the loss computes on the way, about: activations and what is near them."""
    found = equations(_first_value, fns, params, batch)
    sizes: list[Any] = [v.aval for equation in found for v in equation.outvars]
    return sum(x.size * x.dtype.itemsize for x in sizes if hasattr(x, "dtype"))


@jax.jit
def linearized_gradient(fns: Any, params: Tree, batch: Tree) -> Any:
    """The linear map v -> ∇²L v with its residuals, as a pytree."""
    return jax.linearize(jax.grad(scalar(fns[0], batch)), params)[1]


def linear_product(fns: tuple[Any, ...], params: Tree, v: Tree, batch: Tree) -> Tree:
    """A v; `fns` are the linear map from `linearized_gradient`."""
    return fns[0](v)
