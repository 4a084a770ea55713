"""Finds, in the traced gradient of one example, the matrix products that gradients come from.

The gradient of one example with respect to a weight matrix or kernel ends in one product X'D of
layer inputs X [q, a] and cotangents D [q, b] (q: positions the weight is applied at), possibly
transposed or reshaped afterwards. Where a parameter's gradient comes out of a `dot_general` or a
convolution, `find_product` says so, and `factors` makes X and D of the operands.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from prunejax.ops.conv_cpu import patches

_CALLS = ("jit", "pjit")
_MAX_TAPS = 128  # kernel positions that are sliced out one by one


class Product(NamedTuple):
    """A gradient as `shape(X'D)`: the equation that makes it and the shape changes after it."""

    equation: Any
    moves: tuple[tuple[str, tuple[int, ...]], ...]  # ("transpose", axes) or ("reshape", sizes)

    def shape(self, matrix: Any) -> Any:
        """[a, b] in the layout of the parameter; NumPy or JAX arrays."""
        out = matrix
        for kind, numbers in self.moves:
            out = out.transpose(numbers) if kind == "transpose" else out.reshape(numbers)
        return out


def _unfold(closed: ClosedJaxpr, *arguments: Any) -> list[Any]:
    """Evaluates a program with its nested jits in line, so that tracing it again shows them."""
    known = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    known.update(zip(closed.jaxpr.invars, arguments, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else known[variable]

    for equation in closed.jaxpr.eqns:
        if equation.primitive.name in _CALLS:
            inner, inputs = equation.params["jaxpr"], list(equation.invars)
            out = _unfold(inner, *[read(v) for v in inputs])
        else:
            inputs = list({v: None for v in equation.invars if not isinstance(v, Literal)})
            single = closed.jaxpr.replace(
                constvars=(), invars=inputs, outvars=equation.outvars, eqns=[equation]
            )
            out = jaxpr_as_fun(ClosedJaxpr(single, ()))(*[read(v) for v in inputs])
        known.update(zip(equation.outvars, out, strict=True))
    return [read(v) for v in closed.jaxpr.outvars]


def find_product(variable: Any, producers: dict[Any, Any]) -> Product | None:
    """The product a gradient comes from, or None where it is something else."""
    moves: list[tuple[str, tuple[int, ...]]] = []
    while not isinstance(variable, Literal) and variable in producers:
        equation = producers[variable]
        name = equation.primitive.name
        shape = equation.outvars[0].aval.shape
        if name == "transpose":
            moves.insert(0, ("transpose", tuple(equation.params["permutation"])))
        elif name in ("reshape", "squeeze", "expand_dims", "copy"):
            moves.insert(0, ("reshape", shape))
        else:
            layout = _layout(equation)
            return None if layout is None else Product(equation, (*layout, *moves))
        variable = equation.invars[0]
    return None


def _layout(equation: Any) -> tuple[tuple[str, tuple[int, ...]], ...] | None:
    """The shape changes from the matrix X'D to the equation's output; None: not such a product."""
    shape, params = tuple(equation.outvars[0].aval.shape), equation.params
    if equation.primitive.name == "dot_general":
        # Batch axes: many products, not one.
        return None if params["dimension_numbers"][1][0] else (("reshape", shape),)
    if equation.primitive.name == "prunejax_conv":
        return (("reshape", shape),) if params["kind"] == "kernel" else None
    if equation.primitive.name == "conv_general_dilated":
        if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
            return None
        spec = params["dimension_numbers"].out_spec  # axes of (batch, channels, *space)
        space = [shape[i] for i in spec[2:]]
        if np.prod(space) > _MAX_TAPS:
            return None
        # The matrix is [(batch, *space), channels].
        order = (spec[0], *spec[2:], spec[1])
        sizes = tuple(shape[i] for i in order)
        return (("reshape", sizes), ("transpose", tuple(np.argsort(order).tolist())))
    return None


def factors(equation: Any, left: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """X [q, a] and D [q, b] of one example, of its factors `left` and `right` of any shape."""
    params = equation.params
    if equation.primitive.name == "prunejax_conv":
        columns = patches(left, params["geometry"])
        return columns.reshape(-1, columns.shape[-1]), right.reshape(-1, right.shape[-1])
    if equation.primitive.name == "dot_general":
        (axes, others), _ = params["dimension_numbers"]
        return _contracted_first(left, axes), _contracted_first(right, others)
    numbers = params["dimension_numbers"]
    left, right = left.transpose(numbers.lhs_spec), right.transpose(numbers.rhs_spec)
    windows = _windows(left, right.shape[2:], equation.outvars[0].aval.shape, params)
    return windows, right.reshape(right.shape[0], -1).T


def _contracted_first(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    free = [i for i in range(x.ndim) if i not in axes]
    size = int(np.prod([x.shape[i] for i in axes]))
    return x.transpose(*axes, *free).reshape(size, -1)


def _windows(
    x: jax.Array, window: tuple[int, ...], out_shape: tuple[int, ...], params: Any
) -> jax.Array:
    """[(channels, window positions), (batch, output positions)] of x [batch, channels, *space]."""
    padding = zip(params["padding"], params["lhs_dilation"], strict=True)
    edges = [(low, high, dilation - 1) for (low, high), dilation in padding]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *edges])
    steps = params["rhs_dilation"]
    taps = []
    for position in np.ndindex(*[out_shape[i] for i in params["dimension_numbers"].out_spec[2:]]):
        start = [p * s for p, s in zip(position, params["window_strides"], strict=True)]
        stop = [s + (n - 1) * d + 1 for s, n, d in zip(start, window, steps, strict=True)]
        tap = lax.slice(x, (0, 0, *start), (*x.shape[:2], *stop), (1, 1, *steps))
        taps.append(tap.reshape(x.shape[0], -1))
    stacked = jnp.stack(taps, 1)  # batch, output positions, (channels, window positions)
    return stacked.reshape(-1, stacked.shape[-1]).T


def separate(
    product: Product, mask: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array | None, jax.Array | None] | None:
    """A mask as one factor for the rows or for the columns of X'D; None where it is neither.

    `mask` broadcasts against the weight's `shape`; (rows [a], None), or (None, columns [b]).
    """
    a, b = (int(np.prod(s)) for s in _matrix_shape(product, shape))
    if mask.size == 1:
        return None, jnp.broadcast_to(mask.reshape(()), (b,))
    if mask.size > max(a, b):
        return None
    entries = product.shape(np.arange(a * b).reshape(a, b)).ravel()
    which = np.empty(a * b, np.int64)
    labels = np.arange(mask.size).reshape(mask.shape)
    which[entries] = np.broadcast_to(labels, shape).ravel()
    table = which.reshape(a, b)
    if (table == table[:1]).all():
        return None, mask.ravel()[table[0]]
    if (table == table[:, :1]).all():
        return mask.ravel()[table[:, 0]], None
    return None


def _matrix_shape(
    product: Product, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes whose products are the rows and the columns of X'D."""
    equation = product.equation
    if equation.primitive.name == "dot_general":
        (axes, _), _ = equation.params["dimension_numbers"]
        rows = equation.invars[0].aval.ndim - len(axes)
        out = equation.outvars[0].aval.shape
        return out[:rows], out[rows:]
    sizes = product.moves[0][1]
    return sizes[:-1], sizes[-1:]


def traced(fn: Callable[..., Any], *arguments: Any) -> ClosedJaxpr:
    """The traced program of `fn`, nested jits in line."""
    closed, flat = jax.make_jaxpr(fn)(*arguments), jax.tree.leaves(arguments)
    if all(equation.primitive.name not in _CALLS for equation in closed.jaxpr.eqns):
        return closed
    return jax.make_jaxpr(lambda *values: _unfold(closed, *values))(*flat)
