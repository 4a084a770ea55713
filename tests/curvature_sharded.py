"""Run by `test_curvature_products`: curvature of parameters spread over four CPU devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from prunejax import curvature
from tests import curvature_cases as cases


def energy(params: Any, x: jax.Array) -> jax.Array:
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    return jnp.mean(jnp.sum(hidden**2 * params["c"], axis=-1) ** 2)


def check(axis_type: AxisType) -> None:
    """Columns of the matrix and one vector along the mesh axis; one vector whole."""
    rng = np.random.default_rng(0)
    key = jax.random.key(0)
    mesh = jax.make_mesh((4,), ("x",), axis_types=(axis_type,))
    specs = {"w": P(None, "x"), "b": P("x"), "c": P()}
    whole = {"w": rng.normal(size=(3, 8)), "b": rng.normal(size=8), "c": rng.normal(size=8)}
    params = {k: jax.device_put(whole[k], NamedSharding(mesh, specs[k])) for k in whole}
    batches = [jnp.asarray(rng.normal(size=(n, 3))) for n in (3, 3)]
    masks = {"w": jnp.arange(8)[None] % 2 == 0, "b": jnp.asarray(True), "c": jnp.arange(8) > 2}
    single = curvature.Hessian(energy, whole, batches, masks=masks)
    v = cases.random_like(single.like)
    with jax.set_mesh(mesh):
        operator = curvature.Hessian(energy, params, batches, masks=masks)
        product = operator.matvec(v)
        for name in whole:
            wanted = params[name].sharding
            assert product[name].sharding.is_equivalent_to(wanted, whole[name].ndim), name
        trace = curvature.estimate_trace(operator, key=key, probes=6)
        pairs = curvature.eigenpairs(operator, 2, key=key, tolerance=1e-9)
        assert pairs.vectors["w"].sharding.shard_shape((2, 3, 8)) == (2, 3, 2)
    np.testing.assert_allclose(cases.flat(product), cases.flat(single.matvec(v)), atol=1e-11)
    alone = curvature.estimate_trace(single, key=key, probes=6)
    np.testing.assert_allclose(trace.samples, alone.samples, rtol=1e-10)
    alone = curvature.eigenpairs(single, 2, key=key, tolerance=1e-9)
    np.testing.assert_allclose(pairs.values, alone.values, rtol=1e-9)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_enable_x64", True)
    check(AxisType.Auto)
    check(AxisType.Explicit)
    print("done")
