"""Scores of single weights from the modes of the exact Hessian; small networks only.

    masks.prune(mode_leverage(evidence), keep=...)

Used by the reconstruction of inertial-manifold pruning (`configs/manifold.py`). The Hessian is that
of the evidence's loss among the weights that may be pruned (`rules`; in a study the arm's own
`prune.layers`), dead ones too, dense, so that `LIMIT` bounds its side. All others are constants:
the diagonal does not know of them, the modes are those of this block.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

Array = jax.Array
Tree = Any
Evidence = Any  # `prunejax.methods.evidence.Evidence`, which imports this module
SCORES = ("curvature", "curvature_saliency", "mode_leverage")  # those that need it
LIMIT = 5000  # weights: the Hessian has the square of it
FAST = 20  # modes that `mode_leverage` looks at


def hessian(e: Evidence) -> Array:
    """[n, n] second derivatives of the loss by the prunable weights, leaf by leaf, flat.
    Raises ValueError: more than `LIMIT` weights.
    """
    part, whole = e.parts(e.weights)
    size = sum(x.size for x in part)
    if size > LIMIT:
        raise ValueError(
            f"{size} prunable weights: the exact Hessian is for {LIMIT} at most; prune fewer "
            "layers, or use a smaller network"
        )

    if any(map(jnp.iscomplexobj, part)):
        raise ValueError("complex weights have no Hessian here; give their parts as two arrays")

    start, apart = _flat(part)

    def loss(flat: Array) -> Array:
        shaped = zip(apart(flat), part, strict=True)
        return e.loss(whole([x.astype(w.dtype) for x, w in shaped]))

    return jax.hessian(loss)(start)


def _flat(part: list[Array]) -> tuple[Array, Callable[[Array], list[Array]]]:
    """[n] in single precision at least (of 16 bits there are no eigenvalues, and scores tie), and
    what takes such numbers apart again.
    """
    with jax.numpy_dtype_promotion("standard"):  # callers may ask for strict promotion
        kind = jnp.result_type(jnp.float32, *part)
    return ravel_pytree([x.astype(kind) for x in part])


def _scored(e: Evidence, flat: Array) -> Tree:
    part, _ = e.parts(e.weights)
    return e.tree(_flat(part)[1](flat))


def curvature(e: Evidence) -> Tree:
    """H_jj: the curvature along each weight."""
    return _scored(e, jnp.diagonal(e.hessian))


def curvature_saliency(e: Evidence) -> Tree:
    """H_jj w_j^2: twice what the loss gains, to second order at a minimum, when a weight goes.

    LeCun, Denker and Solla 1990 (optimal brain damage). Away from a minimum the gradient's part
    is missing.
    """
    part, _ = e.parts(e.weights)
    return _scored(e, jnp.diagonal(e.hessian) * jnp.square(_flat(part)[0]))


def mode_leverage(e: Evidence) -> Tree:
    """sum_j V_ij^2 over the `FAST` modes of largest eigenvalue: how much of weight i is in them.

    The smallest of it are the weights of the slow modes.
    """
    _, vectors = jnp.linalg.eigh(e.hessian)  # ascending: the last ones are the largest
    return _scored(e, jnp.square(vectors[:, -FAST:]).sum(axis=1))
