"""Deflated power iteration after the released code of Bartoldson et al. (2020), written again.

It is here so that their numbers can be compared; `lanczos.eigenpairs` finds more accurate pairs
with fewer products. Twenty products a pair leave some pairs unconverged.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.curvature import base, vectors
from prunejax.curvature.callables import on_host
from prunejax.curvature.lanczos import Eigenpairs, measured
from prunejax.curvature.operators import Operator
from prunejax.curvature.products import as_operator

Tree = Any


@jax.jit
def _deflate(product: Tree, vector: Tree, stack: Tree, values: jax.Array) -> Tree:
    """A x - Σ_i λ_i (v_i'x) v_i; rows that are not filled yet are 0."""
    parts = values * vectors.stack_dot(stack, vector)
    return jax.tree.map(jnp.subtract, product, vectors.combine(parts, stack))


@jax.jit
def _advance(product: Tree, vector: Tree) -> tuple[Tree, jax.Array]:
    """The next unit vector, and the estimate x'(Ax)."""
    length = vectors.norm(product)
    inverse = jnp.where(length > 0, 1 / length, 0.0)  # 0 where A x = 0
    return base.scale(inverse, product), base.dot(vector, product)


_store = jax.jit(
    lambda stack, i, v: jax.tree.map(lambda rows, x: rows.at[i].set(x), stack, v),
    donate_argnums=0,
)


@on_host()
def power_iteration(
    operator: Operator,
    k: int,
    *,
    key: jax.Array,
    steps: int = 20,
    tolerance: float = 1e-4,
) -> Eigenpairs:
    """The k eigenpairs of largest magnitude by power iteration on the deflated operator.

    A pair takes at most `steps` products and ends when the estimate λ = x'Ax changes by less than
    `tolerance` relative to itself. The first start is uniform on [0, 1) and not normalized, each
    later one the eigenvector before. No momentum. Deflation subtracts λ v v'. The result is sorted
    by signed value, descending.

    Returns:
      `Eigenpairs` with `which="power"`; `converged` says whether the stopping rule was met within
      `steps` (the released code does not say), `residuals` are measured afterwards (`checks`).
    """
    dim = operator.nonempty_dim()
    if not 1 <= k <= dim:
        raise ValueError(f"k must be 1..{dim}, the number of live coordinates; got {k}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    operator.check_symmetric()
    vector = operator.draw(vectors.named_key(key, "power"), 0, "uniform")
    stack = jax.tree.map(lambda x: jnp.zeros((k, *x.shape), x.dtype), vector)
    values, converged, products = np.zeros(k), np.zeros(k, bool), 0  # 0: deflates nothing yet
    for i in range(k):
        vector, values[i], spent, converged[i] = _pair(
            operator, vector, stack, jnp.asarray(values, operator.dtype), steps, tolerance
        )
        stack = _store(stack, i, vector)
        products += spent
    # by signed value, as released: the "first ten" are the ten most positive
    order = np.argsort(values)[::-1]
    stack = jax.tree.map(lambda x: x[order], stack)
    return Eigenpairs(
        values=values[order],
        vectors=stack,
        residuals=_residuals(operator, stack, values[order]),
        converged=converged[order],
        norm=float(np.max(np.abs(values))),
        tolerance=tolerance,
        which="power",
        products=products,
        checks=k,
        restarts=0,
        examples=operator.examples,
        live_dim=dim,
    )


def _pair(
    operator: Operator, vector: Tree, stack: Tree, values: jax.Array, steps: int, tolerance: float
) -> tuple[Tree, float, int, bool]:
    """One pair: vector, the estimate (of the vector before it), products, whether it stopped."""
    before = 0.0  # the first estimate then never ends it: its relative change is 1
    for spent in range(1, steps + 1):
        product = _deflate(operator.matvec(vector), vector, stack, values)
        vector, found = _advance(product, vector)
        # of the very first x, which has no unit length, no Rayleigh quotient
        estimate = float(found)
        if estimate != 0.0 and abs((estimate - before) / estimate) < tolerance:
            return vector, estimate, spent, True
        before = estimate
    return vector, estimate, steps, False


def _residuals(operator: Operator, stack: Tree, values: np.ndarray) -> np.ndarray:
    """Measured |A v - value v| for the values as they are."""
    rayleigh, left = measured(operator, stack)
    # |Av - μv|² = |Av - θv|² + (θ - μ)² for a unit vector v with Rayleigh quotient θ.
    return np.hypot(left, rayleigh - values)


@on_host(power_iteration)
def deflated_power_iteration(
    loss: Any,
    params: Tree = None,
    k: int = 1,
    batches: base.Batches = None,
    *,
    key: jax.Array,
    masks: base.Masks = None,
    weights: Any = None,
    **options: Any,
) -> Eigenpairs:
    """The eigenpairs of P H P as the released code finds them; arguments as in `top_eigenpairs`.

    The options (steps, tolerance) are those of `power_iteration`.
    """
    operator = as_operator(loss, params, batches, masks, weights)
    return power_iteration(operator, k, key=key, **options)
