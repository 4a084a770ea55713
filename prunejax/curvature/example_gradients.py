"""Squared norms and the sum of per-example gradients, without storing per-example gradients.

Where the gradient of a parameter is a product X'D of layer inputs X [q, a] and cotangents D [q, b]
(see `factoring`), the factors of all examples of a chunk are taken instead of the products:

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
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from prunejax.curvature import base, factoring, kernels
from prunejax.ops import axes

Tree = Any
_HIGH = lax.Precision.HIGHEST  # accelerators would round float32 operands


def _dense(grads: jax.Array, mask: Any, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Squared norms [n] and weighted sum of per-example gradients [n, ...]."""
    grads = grads.astype(base.accumulator(grads.dtype))
    if mask is not None:
        grads = jnp.where(mask, grads, 0)  # not a product: NaN of a dead weight stays out
    squared = jnp.sum(grads * grads, axis=tuple(range(1, grads.ndim)))
    return squared, jnp.tensordot(weight, grads, 1, precision=_HIGH)


def _from_operands(
    left: jax.Array,
    right: jax.Array,
    product: factoring.Product,
    mask: Any,
    weight: jax.Array,
    leaf: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The same from the operands [n, ...] of the product that makes the gradients."""
    dtype = base.accumulator(leaf.dtype)
    parts = (None, None) if mask is None else factoring.separate(product, mask, leaf.shape)
    rows, columns = parts or (None, None)

    def factors(left: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, d = factoring.factors(product.equation, left, right)
        x = x if rows is None else jnp.where(rows, x, 0)
        d = d if columns is None else jnp.where(columns, d, 0)
        return x.astype(dtype), d.astype(dtype)

    def gradient(left: jax.Array, right: jax.Array) -> jax.Array:
        x, d = factors(left, right)
        matrix = jnp.matmul(d.T, x, precision=_HIGH)  # this order is the faster one on CPU
        return matrix if parts is not None else jnp.where(mask, product.shape(matrix.T), 0)

    (q, a), (_, b) = (f.shape for f in jax.eval_shape(factors, left[0], right[0]))
    if parts is not None and q * (a + b) <= a * b:  # multiplications of both ways
        x, d = jax.vmap(factors)(left, right)
        inputs = jnp.einsum("nqa,npa->nqp", x, x, precision=_HIGH)
        cotangents = jnp.einsum("nqb,npb->nqp", d, d, precision=_HIGH)
        squared = jnp.sum(inputs * cotangents, axis=(1, 2))
        d = d * weight[:, None, None]  # after the norms, which carry no weight
        total = jnp.matmul(x.reshape(-1, a).T, d.reshape(-1, b), precision=_HIGH)
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
      masks: tree as from `base.expand_masks`, or None.

    Returns:
      [n] and a tree like params, both in the accumulation dtype.
    """
    run = partial(_norms_and_sum, per_example_loss)
    on_any_mesh = axes.automatic(run, params, lambda shardings, whole: (whole, shardings))
    return on_any_mesh(params, batch, weight, masks)


def _norms_and_sum(
    per_example_loss: Callable[[Tree, Tree], jax.Array],
    params: Tree,
    batch: Tree,
    weight: jax.Array,
    masks: Tree | None,
) -> tuple[jax.Array, Tree]:
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

    program = factoring.traced(gradient, leaves, [x[0] for x in examples])
    producers = {v: e for e in program.jaxpr.eqns for v in e.outvars}
    products = [factoring.find_product(v, producers) for v in program.jaxpr.outvars]
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


@partial(jax.jit, static_argnames="chunk")
def norms_and_total(
    loss: Any, params: Tree, batch: Tree, weight: jax.Array, masks: Any, total: Tree, chunk: int
) -> tuple[jax.Array, Tree]:
    """`norms_and_sum` of a batch, chunk by chunk: [n], and the sum added to `total`.

    Args:
      loss, params, batch, masks: as there.
      weight: [n], 0 behind the examples that count.
      total: a tree like params.
      chunk: examples at once; n is a multiple of it.
    """

    def one(total: Tree, batch: Tree, weight: jax.Array) -> tuple[Tree, jax.Array]:
        squared, part = norms_and_sum(loss, params, batch, weight, masks)
        return base.add(total, part), squared

    total, squared = _in_turn(one, total, batch, weight, chunk)
    return squared, total


@partial(jax.jit, static_argnames="chunk")
def norms(
    loss: Any, params: Tree, batch: Tree, weight: jax.Array, masks: Any, chunk: int
) -> jax.Array:
    """The norms alone [n], chunk by chunk; arguments as in `norms_and_total`, `weight` [n].

    The compiler drops what only the sum needs, about a third for a VGG.
    """

    def one(nothing: Tree, batch: Tree, weight: jax.Array) -> tuple[Tree, jax.Array]:
        return nothing, norms_and_sum(loss, params, batch, weight, masks)[0]

    return _in_turn(one, None, batch, weight, chunk)[1]


@partial(jax.jit, static_argnames="chunk")
def slopes(
    loss: Any, params: Tree, batch: Tree, weight: jax.Array, direction: Tree, chunk: int
) -> jax.Array:
    """The derivative [n] of each example's loss along a direction, chunk by chunk.

    Args:
      loss: `(params, batch) -> [examples]`.
      params, batch, chunk: as in `norms_and_total`.
      weight: [n], 0 behind the examples that count.
      direction: a tree like params.
    """
    tangent = base.cast_like(direction, params)

    def one(nothing: Tree, batch: Tree, weight: jax.Array) -> tuple[Tree, jax.Array]:
        slope = kernels.pushforward(lambda p: loss(p, batch), params, tangent)[1]
        return nothing, slope.astype(weight.dtype)

    return _in_turn(one, None, batch, weight, chunk)[1]


def _in_turn(
    one: Callable[[Tree, Tree, jax.Array], tuple[Tree, jax.Array]],
    carry: Tree,
    batch: Tree,
    weight: jax.Array,
    chunk: int,
) -> tuple[Tree, jax.Array]:
    """`one(carry, chunk of the batch, its weights)` for each chunk that has an example of weight.

    In one program: on a CPU the memory that a call works in is taken from the system anew, page by
    page, which for convolutions took a quarter of the time of a call for each chunk.
    """
    n = len(weight)
    if n == chunk:
        return one(carry, batch, weight)

    def step(i: jax.Array, held: tuple[Tree, jax.Array]) -> tuple[Tree, jax.Array]:
        part, own = jax.tree.map(
            lambda x: lax.dynamic_slice_in_dim(x, i * chunk, chunk), (batch, weight)
        )
        carry, values = one(held[0], part, own)
        return carry, lax.dynamic_update_slice_in_dim(held[1], values, i * chunk, 0)

    count = (jnp.sum(weight != 0) + chunk - 1) // chunk  # chunks of copies alone are left out
    return lax.fori_loop(0, count, step, (carry, jnp.zeros_like(weight)))
