"""Squared norms and the sum of per-example gradients, without storing per-example gradients.

The gradient of one example with respect to a weight matrix or kernel ends in one product X'D of
layer inputs X [q, a] and cotangents D [q, b] (q: positions the weight is applied at), possibly
transposed or reshaped afterwards. Where the traced gradient says so (`find_product`), the factors
of all examples of a chunk are taken instead of the products:

- ||X'D||^2 = sum((XX') * (DD')) where that takes fewer operations (few positions), so that X'D is
  never formed; Goodfellow 2015, arXiv 1510.01799; "ghost norms", Li et al. 2022, arXiv 2110.05679.
- otherwise X'D as a matrix product, one example after another on CPU (it stays in the cache),
  all at once elsewhere. Vmapped convolution gradients would be slow grouped convolutions.
- the sum over examples is one matrix product over the positions of all examples.

Every other gradient (biases, normalization, shared weights, embeddings, loops) is computed by
`vmap(grad)` as it stands. All of this is exact, it is the same sum in another order.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from prunejax.curvature import adjoint, vectors
from prunejax.ops import axes
from prunejax.ops.conv_cpu import patches

Tree = Any
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


def find_product(variable: Any, producers: dict[Any, Any]) -> Product | None:
    """The product a gradient comes from, or None where it is something else."""
    moves: list[tuple[str, tuple[int, ...]]] = []
    while not isinstance(variable, Literal) and variable in producers:
        equation = producers[variable]
        name, shape = equation.primitive.name, variable.aval.shape
        place = equation.outvars.index(variable)  # of several: each is that of the same place
        if name == "transpose":
            moves.insert(0, ("transpose", tuple(equation.params["permutation"])))
        elif name in ("reshape", "squeeze", "expand_dims", "copy", "optimization_barrier"):
            moves.insert(0, ("reshape", shape))
        else:
            layout = _layout(equation)
            return None if layout is None else Product(equation, (*layout, *moves))
        variable = equation.invars[place]
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


def _dense(grads: jax.Array, mask: Any, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Squared norms [n] and weighted sum of per-example gradients [n, ...]."""
    grads = grads.astype(vectors.accumulator(grads.dtype))
    if mask is not None:
        grads = jnp.where(mask, grads, 0)  # not a product: NaN of a dead weight stays out
    squared = jnp.sum(grads * grads, axis=tuple(range(1, grads.ndim)))
    return squared, jnp.tensordot(weight, grads, 1, precision=vectors.HIGHEST)


def _from_operands(
    left: jax.Array, right: jax.Array, product: Product, mask: Any, weight: jax.Array, leaf: Any
) -> tuple[jax.Array, jax.Array]:
    """The same from the operands [n, ...] of the product that makes the gradients."""
    dtype = vectors.accumulator(leaf.dtype)
    parts = (None, None) if mask is None else separate(product, mask, leaf.shape)
    rows, columns = parts or (None, None)

    def masked(left: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, d = factors(product.equation, left, right)
        x = x if rows is None else jnp.where(rows, x, 0)
        d = d if columns is None else jnp.where(columns, d, 0)
        return x.astype(dtype), d.astype(dtype)

    def gradient(left: jax.Array, right: jax.Array) -> jax.Array:
        x, d = masked(left, right)
        matrix = jnp.matmul(
            d.T, x, precision=vectors.HIGHEST
        )  # this order is the faster one on CPU
        return matrix if parts is not None else jnp.where(mask, product.shape(matrix.T), 0)

    (q, a), (_, b) = (f.shape for f in jax.eval_shape(masked, left[0], right[0]))
    if parts is not None and q * (a + b) <= a * b:  # multiplications of both ways
        x, d = jax.vmap(masked)(left, right)
        inputs = jnp.einsum("nqa,npa->nqp", x, x, precision=vectors.HIGHEST)
        cotangents = jnp.einsum("nqb,npb->nqp", d, d, precision=vectors.HIGHEST)
        squared = jnp.sum(inputs * cotangents, axis=(1, 2))
        d = d * weight[:, None, None]  # after the norms, which carry no weight
        total = jnp.matmul(x.reshape(-1, a).T, d.reshape(-1, b), precision=vectors.HIGHEST)
        return squared, product.shape(total)
    if jax.default_backend() == "cpu":
        # One after another: an example's patches and gradient stay in the cache.
        def add(total: jax.Array, item: Any) -> tuple[jax.Array, jax.Array]:
            grad = gradient(*item[:2])
            return total + item[2] * grad, jnp.sum(grad * grad)  # the sum alone is weighted

        shape = jax.eval_shape(gradient, left[0], right[0])
        total, squared = lax.scan(add, jnp.zeros(shape.shape, dtype), (left, right, weight))
    else:
        squared, total = _dense(jax.vmap(gradient)(left, right), None, weight)
    return squared, total if parts is None else product.shape(total.T)


def norms_and_sum(
    per_example_loss: Callable[[Tree, Tree], jax.Array],
    params: Tree,
    batch: Tree,
    weight: jax.Array,
    masks: Tree | None,
) -> tuple[jax.Array, Tree]:
    """Squared norms [n] of P g_i and the sum of weight_i P g_i, for one chunk; to be jitted.

    Args:
      per_example_loss: `(params, batch) -> [examples]`; evaluated on one example at a time
        (vmapped), so no example can see another.
      params: pytree of floating-point arrays.
      batch: pytree, n examples along the leading axes.
      weight: [n] in the accumulation dtype.
      masks: tree as from `vectors.expand_masks`, or None.

    Returns: [n] and a tree like params, both in the accumulation dtype.
    """
    run = partial(_norms_and_sum, per_example_loss)
    on_any_mesh = axes.automatic(run, params, lambda shardings, whole: (whole, shardings))
    return on_any_mesh(params, batch, weight, masks)


def _norms_and_sum(
    per_example_loss: Callable[[Tree, Tree], jax.Array], params: Tree, batch: Tree,
    weight: jax.Array, masks: Tree | None,
) -> tuple[jax.Array, Tree]:  # fmt: skip
    leaves, structure = jax.tree.flatten(params)

    def one(leaves: list[jax.Array], example: Tree) -> jax.Array:
        lifted = jax.tree.map(lambda x: x[None], example)
        losses = per_example_loss(jax.tree.unflatten(structure, leaves), lifted)
        if jnp.shape(losses) != (1,):
            raise ValueError(
                "per_example_loss must return one number per example, [examples]; for a batch of "
                f"one it returned shape {jnp.shape(losses)}"
            )
        return losses[0]

    examples, example_structure = jax.tree.flatten(batch)

    def gradient(leaves: list[jax.Array], example: list[jax.Array]) -> list[jax.Array]:
        return jax.grad(one)(leaves, jax.tree.unflatten(example_structure, example))

    program = adjoint.inlined(gradient, leaves, [x[0] for x in examples])
    producers = {v: e for e in program.jaxpr.eqns for v in e.outvars}
    products = [find_product(v, producers) for v in program.jaxpr.outvars]
    wanted: list[Any] = []
    for variable, product in zip(program.jaxpr.outvars, products, strict=True):
        wanted += [variable] if product is None else product.equation.invars
    run = jaxpr_as_fun(ClosedJaxpr(program.jaxpr.replace(outvars=wanted), program.consts))

    def parts(example: list[jax.Array]) -> list[Any]:
        """Of one example: per parameter its gradient, or the operands of its product."""
        values = iter(run(*leaves, *example))
        return [next(values) if p is None else (next(values), next(values)) for p in products]

    squared: Any = 0.0
    totals = []
    mask_leaves = [None] * len(leaves) if masks is None else jax.tree.leaves(masks)
    for leaf, mask, product, part in zip(
        leaves, mask_leaves, products, jax.vmap(parts)(examples), strict=True
    ):
        if product is None:
            norms, total = _dense(part, mask, weight)
        else:
            left, right = part
            norms, total = _from_operands(left, right, product, mask, weight, leaf)
        squared = squared + norms
        totals.append(total.reshape(leaf.shape))
    return squared, jax.tree.unflatten(structure, totals)
