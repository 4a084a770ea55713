"""The eigenpair part of `curvature.py`: Lanczos against the release's power iteration (ours)."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from prunejax import curvature, losses, models, rng


def trained_network(steps: int = 300) -> tuple[Any, Any, Any]:
    """A 64-32-10 network on 512 scikit-learn digits, trained for a while; loss, params, batch."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    batch = (
        jnp.asarray(digits.data[:512] / 16.0, jnp.float32),
        jnp.asarray(digits.target[:512]),
    )
    module = models.create("mlp", num_classes=10, hidden=(32,), batch_norm=False)
    params = models.init(module, rng.at(0, "init"), (64,))["params"]

    def loss(params: Any, batch: Any) -> jax.Array:
        return losses.cross_entropy(module.apply({"params": params}, batch[0]), batch[1]).mean()

    @jax.jit
    def train(params: Any) -> Any:
        gradient = jax.grad(loss)(params, batch)
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient)

    for _ in range(steps):
        params = train(params)
    return loss, params, batch


def reference(loss: Any, params: Any, batch: Any) -> np.ndarray:
    """All eigenvalues of the dense Hessian in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        exact = (jnp.asarray(batch[0], jnp.float64), batch[1])
        vector, unravel = ravel_pytree(wide)
        dense = jax.jit(jax.hessian(lambda q: loss(unravel(q), exact)))(vector)
        return np.linalg.eigvalsh(np.asarray(dense))


def eigen(pairs: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row per method, and what they were run on with every pair's residual."""
    loss, params, batch = trained_network()
    values = reference(loss, params, batch)
    wanted = np.sort(values[np.argsort(-np.abs(values))][:pairs])[::-1]
    key = jax.random.key(0)
    methods = {
        "lanczos": lambda: curvature.top_eigenpairs(
            loss, params, pairs, batch, key=key, which="magnitude"
        ),
        "released power iteration": lambda: curvature.deflated_power_iteration(
            loss, params, pairs, batch, key=key
        ),
    }
    rows, residuals = [], {}
    for method, find in methods.items():
        find()  # compiles
        wall, cpu = time.perf_counter(), time.process_time()
        found = find()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        errors = np.abs(np.sort(found.values)[::-1] - wanted)
        rows.append(
            {
                "part": "eigen",
                "method": method,
                "products": found.products,
                "checks": found.checks,
                "largest error": float(errors.max()),
                "mean error": float(errors.mean()),
                "error of sum": float(abs(found.values.sum() - wanted.sum())),
                "largest residual": float(found.residuals.max()),
                "stopped by rule": int(found.converged.sum()),
                "wall s": wall,
                "cpu s": cpu,
            }
        )
        residuals[method] = [float(r) for r in found.residuals]
    about = {
        "parameters": sum(p.size for p in jax.tree.leaves(params)),
        "examples": len(batch[1]),
        "pairs": pairs,
        "largest eigenvalue": float(wanted[0]),
        "sum of pairs": float(wanted.sum()),
        "trace": float(values.sum()),
        "residuals": residuals,
    }
    return rows, about
