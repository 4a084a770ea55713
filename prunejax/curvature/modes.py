"""H v and v'Hv of a scalar function by the cheapest mode of differentiation that it has.

H v is forward over reverse and v'Hv nested forward mode. Both need forward mode, which functions
with a `jax.custom_vjp` lack in part: there the form goes through the product, the product is
reverse over reverse where even the rule itself has no forward mode, and first derivatives along a
vector are the transpose of reverse mode.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from prunejax.curvature import base

Tree = Any
Scalar = Callable[[Tree], jax.Array]
Function = Callable[[Tree], Any]


def product(f: Scalar, params: Tree, v: Tree) -> Tree:
    """∇²f v."""

    def forward_over_reverse(p: Tree, u: Tree) -> Tree:
        return jax.jvp(jax.grad(f), (p,), (u,))[1]

    # What is left of a custom_vjp after forward mode is an equation that can not be compiled.
    if has_custom_vjp(f, params) and "custom_lin" in _names(forward_over_reverse, params, v):
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


def form(f: Scalar, params: Tree, v: Tree) -> jax.Array:
    """The number v' ∇²f v."""
    if has_custom_vjp(f, params):
        return base.dot(v, product(f, params, v))
    return jax.jvp(lambda p: jax.jvp(f, (p,), (v,))[1], (params,), (v,))[1]


def has_custom_vjp(f: Function, params: Tree) -> bool:
    """Whether a part of f has a `jax.custom_vjp` rule, at any depth."""
    return any(name.startswith("custom_vjp") for name in _names(f, params))


def _names(f: Callable[..., Any], *arguments: Any) -> set[str]:
    """The primitives a function uses, at any depth."""
    return set(_primitives(jax.make_jaxpr(f)(*arguments).jaxpr))


def _primitives(jaxpr: Jaxpr) -> Iterator[str]:
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, ClosedJaxpr):
                    inner = inner.jaxpr
                if isinstance(inner, Jaxpr):
                    yield from _primitives(inner)
