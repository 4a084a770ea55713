"""The compiled kernels behind `products`: one batch, one curvature matrix, P A P.

A *core* is `core(functions, params, v, batch)` and gives A v, or v'Av, without masks and casts.
The kernels add those; they are compiled once per functions, core and shapes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from prunejax.curvature import base, vectors

Tree = Any
Core = Callable[..., Any]  # core(functions, params, v, batch): the curvature times v, or v'Av


def _scalar(loss: Callable[..., Any], batch: Tree) -> Callable[[Tree], jax.Array]:
    """The loss as a function of params alone; ValueError unless it is a scalar."""

    def value(params: Tree) -> jax.Array:
        out = base.call(loss, params, batch)
        if isinstance(out, tuple) or jnp.shape(out) != ():
            raise ValueError(
                "the loss must return one scalar, the mean over the batch; got "
                f"{jax.tree.map(jnp.shape, out)}. Drop auxiliary outputs, take the mean"
            )
        return out

    return value


def _forward_form(f: Callable[[Tree], jax.Array], params: Tree, v: Tree) -> jax.Array:
    """The number v' ∇²f v as a jvp of a jvp; through a gradient where `f` holds a custom_vjp."""

    def slope(p: Tree) -> jax.Array:
        return jax.jvp(f, (p,), (v,))[1]

    try:
        return jax.jvp(slope, (params,), (v,))[1]
    except (TypeError, NotImplementedError) as error:
        if "custom_vjp" not in str(error) and "orward" not in str(error):
            raise
        return base.dot(v, jax.jvp(jax.grad(f), (params,), (v,))[1])


def hessian_product(fns: tuple[Any, ...], params: Tree, v: Tree, batch: Tree) -> Tree:
    """H v, forward over reverse."""
    return jax.jvp(jax.grad(_scalar(fns[0], batch)), (params,), (v,))[1]


def hessian_form(fns: tuple[Any, ...], params: Tree, v: Tree, batch: Tree) -> jax.Array:
    """The number v' H v."""
    return _forward_form(_scalar(fns[0], batch), params, v)


def ggn_product(fns: tuple[Any, ...], params: Tree, v: Tree, batch: Tree) -> Tree:
    """G v; `fns` are the model and the loss of its outputs."""
    model = partial(_swapped, fns[0], batch)
    outputs, change = jax.jvp(model, (params,), (v,))
    bent = jax.jvp(jax.grad(_scalar(fns[1], batch)), (outputs,), (change,))[1]
    return jax.vjp(model, params)[1](bent)[0]


def ggn_form(fns: tuple[Any, ...], params: Tree, v: Tree, batch: Tree) -> jax.Array:
    """The number v' G v: the output Hessian along the change of the outputs."""
    outputs, change = jax.jvp(partial(_swapped, fns[0], batch), (params,), (v,))
    return _forward_form(_scalar(fns[1], batch), outputs, change)


def _swapped(fn: Callable[..., Any], batch: Tree, params: Tree) -> Any:
    return base.call(fn, params, batch)


def example_losses(loss: Callable[..., Any], batch: Tree) -> Callable[[Tree], jax.Array]:
    """`params -> [n]`: the loss of every example of the batch, each as a batch of one."""

    def losses(params: Tree) -> jax.Array:
        return jax.vmap(
            lambda example: _scalar(loss, jax.tree.map(lambda x: x[None], example))(params)
        )(batch)

    return losses


def _composed(fns: tuple[Any, ...]) -> Callable[..., Any]:
    """The loss itself, or the loss of the model's outputs."""
    if len(fns) == 1:
        return fns[0]
    return lambda params, batch: fns[1](fns[0](params, batch), batch)


def empirical_product(fns: tuple[Any, ...], params: Tree, v: Tree, batch: Tree) -> Tree:
    """E[∇ℓ_i ∇ℓ_i'] v; `fns` are a loss, or a model and the loss of its outputs."""
    losses = example_losses(_composed(fns), batch)
    slopes = jax.jvp(losses, (params,), (v,))[1]
    return jax.vjp(losses, params)[1](slopes / slopes.size)[0]


def empirical_form(fns: tuple[Any, ...], params: Tree, v: Tree, batch: Tree) -> jax.Array:
    """The number E[(∇ℓ_i' v)²]."""
    slopes = jax.jvp(example_losses(_composed(fns), batch), (params,), (v,))[1]
    return jnp.mean(jnp.square(slopes.astype(base.accumulator(slopes.dtype))))


def _tangent(v: Tree, params: Tree, masks: Tree) -> Tree:
    """P v in the dtypes of the parameters."""
    return base.cast_like(base.project(masks, v), params)


@partial(jax.jit, static_argnames=("core", "placed"))
def product(
    fns: Any, params: Tree, masks: Tree, v: Tree, batch: Tree, weight: Any, core: Core, placed: Any
) -> Tree:
    """One batch's term: weight · P A P v, in the accumulation dtype."""
    tangent = vectors.place(_tangent(v, params, masks), placed)
    out = base.upcast(core(fns, params, tangent, batch))
    return vectors.place(base.scale(weight, base.project(masks, out)), placed)


@partial(jax.jit, static_argnames=("core", "together"))
def forms(
    fns: Any,
    params: Tree,
    masks: Tree,
    stack: Tree,
    batch: Tree,
    weight: Any,
    core: Core,
    together: bool,
) -> jax.Array:
    """One batch's term for a stack of vectors: weight · v_i' P A P v_i [m]."""

    def one(v: Tree) -> jax.Array:
        value = core(fns, params, _tangent(v, params, masks), batch)
        return weight * value.astype(base.accumulator(value.dtype))

    return jax.vmap(one)(stack) if together else jax.lax.map(one, stack)


@jax.jit
def linearized_gradient(fns: Any, params: Tree, batch: Tree) -> Any:
    """The linear map v -> ∇²L v with its residuals, as a pytree."""
    return jax.linearize(jax.grad(_scalar(fns[0], batch)), params)[1]


@partial(jax.jit, static_argnames=("placed",))
def apply(linear: Any, params: Tree, masks: Tree, v: Tree, placed: Any) -> Tree:
    """P A P v for a linear map A from `linearized_gradient`."""
    tangent = vectors.place(_tangent(v, params, masks), placed)
    return vectors.place(base.project(masks, base.upcast(linear(tangent))), placed)
