"""Run by `test_curvature_gradients`: curvature of parameters spread over four CPU devices.

Every number must be that of parameters on one device, for the measures of batches of JAX arrays.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from prunejax import curvature
from prunejax.curvature import splits
from tests import curvature_cases as cases

SPECS = {"w": P(None, "x"), "b": P("x"), "c": P()}
MASKS = {"w": np.arange(8)[None] % 2 == 0, "b": True, "c": np.arange(8) > 2}


def energy(params: Any, x: jax.Array) -> jax.Array:
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    return jnp.mean(jnp.sum(hidden**2 * params["c"], axis=-1) ** 2)


def check_products() -> None:
    """Columns of the matrix and one vector along the mesh axis; one vector whole."""
    rng = np.random.default_rng(0)
    key = jax.random.key(0)
    whole = {"w": rng.normal(size=(3, 8)), "b": rng.normal(size=8), "c": rng.normal(size=8)}
    batches = splits.batch_list(jnp.asarray(rng.normal(size=(n, 3))) for n in (3, 3))
    masks = jax.tree.map(jnp.asarray, MASKS)
    single = curvature.Hessian(energy, whole, batches, masks=masks)
    v = cases.random_like(single.like)
    product_alone = cases.flat(single.matvec(v))
    trace_alone = curvature.estimate_trace(single, key=key, probes=6)
    pairs_alone = curvature.eigenpairs(single, 2, key=key, tolerance=1e-9)
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("x",), axis_types=(axis_type,))
        params = {k: jax.device_put(whole[k], NamedSharding(mesh, SPECS[k])) for k in whole}
        with jax.set_mesh(mesh):
            operator = curvature.Hessian(energy, params, batches, masks=masks)
            product = operator.matvec(v)
            for name in whole:
                wanted = params[name].sharding
                assert product[name].sharding.is_equivalent_to(wanted, whole[name].ndim), name
            trace = curvature.estimate_trace(operator, key=key, probes=6)
            pairs = curvature.eigenpairs(operator, 2, key=key, tolerance=1e-9)
            assert pairs.vectors["w"].sharding.shard_shape((2, 3, 8)) == (2, 3, 2)
        np.testing.assert_allclose(cases.flat(product), product_alone, atol=1e-11)
        np.testing.assert_allclose(trace.samples, trace_alone.samples, rtol=1e-10)
        np.testing.assert_allclose(pairs.values, pairs_alone.values, rtol=1e-9)


def losses(params: Any, x: Any) -> jax.Array:
    """[examples]: convex far out, curved in every parameter."""
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    return jnp.sum(hidden**2 * params["c"], axis=-1) ** 2 + jnp.sum(hidden, axis=-1)


def mean(params: Any, x: Any) -> jax.Array:
    return losses(params, x).mean()


def numbers(params: Any, batches: list[Any], vectors: Any) -> dict[str, Any]:
    """Gradient moments, the TIC proxy, perturbation, slices, sharpness, a forecast."""
    key = jax.random.key(0)
    few: dict[str, Any] = {"key": jax.random.key(1), "masks": MASKS}
    moment = curvature.gradient_second_moment(losses, params, batches, centered=True, masks=MASKS)
    scale = curvature.gradient_noise_scale(losses, params, batches, unbiased=True, masks=MASKS)
    proxy = curvature.tic(losses, params, batches, key=key, probes=4, masks=MASKS)
    leading = curvature.tic(losses, params, batches, eigenpairs=vectors, moment=moment, masks=MASKS)
    grid = (-0.3, 0.1, 0.2)
    along = curvature.eigenvector_perturbation(
        mean, params, vectors.vectors, batches, grid=grid, masks=MASKS
    )
    drawn = curvature.random_directions(params, 2, normalization="filter", **few)
    plane = curvature.slice_2d(mean, params, drawn, (0.0, 0.5), (0.2,), batches)
    worst = curvature.sharpness(mean, params, batches, radius=0.1, steps=3, restarts=2, **few)
    keskar = curvature.keskar_sharpness(mean, params, batches, steps=2, restarts=1, **few)
    average = curvature.average_sharpness(mean, params, batches, sigma=0.1, samples=3, **few)
    removed = curvature.removal(params, MASKS)
    event = curvature.forecast(mean, params, removed, batches)
    return {
        "norms": moment.squared_norms,
        "moment": [moment.value, moment.stderr, scale.value, scale.stderr],
        "tic": [proxy.value, proxy.stderr, *proxy.interval],
        "leading": [leading.value, leading.stderr],
        "line": along.values["loss"],
        "flatness": curvature.epsilon_flatness(along, threshold=1e-3).interpolated,
        "plane": plane.values["loss"],
        "sharpness": [worst.value, keskar.value, average.value, average.stderr],
        "perturbation": cases.flat(worst.perturbation),
        "forecast": [event.first_order, event.second_order, event.measured],
    }


def check_measures() -> None:
    rng = np.random.default_rng(0)
    whole = {"w": rng.normal(size=(3, 8)), "b": rng.normal(size=8), "c": rng.normal(size=8)}
    arrays = splits.batch_list(rng.normal(size=(n, 3)) for n in (3, 3))
    on_device = splits.batch_list(jnp.asarray(x) for x in arrays)
    pairs = curvature.top_eigenpairs(mean, whole, 2, on_device, key=jax.random.key(2), masks=MASKS)
    alone = numbers(whole, on_device, pairs)
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("x",), axis_types=(axis_type,))
        with jax.set_mesh(mesh):
            params = {k: jax.device_put(whole[k], NamedSharding(mesh, SPECS[k])) for k in whole}
            spread = numbers(params, arrays, pairs)
        for name, expected in alone.items():
            message = f"{name}, {axis_type}"
            np.testing.assert_allclose(
                spread[name], expected, rtol=1e-9, atol=1e-12, err_msg=message
            )


def check_devices() -> None:
    """Tr(C) of chunks that devices take in turn is that of one device."""
    params = {"w": jnp.ones((3, 8)), "b": jnp.arange(8.0) / 8, "c": jnp.ones(8)}
    x = np.random.default_rng(1).normal(size=(11, 3))
    for batches in (x, jnp.asarray(x), iter([x[:5], x[5:]])):
        found = [
            curvature.gradient_second_moment(
                losses, params, x if one else batches, centered=True, chunk=2, devices=devices
            )
            for one, devices in ((True, None), (False, jax.devices()))
        ]
        for name in ("squared_norms", "alignments", "value", "stderr"):
            alone, spread = (getattr(moment, name) for moment in found)
            np.testing.assert_allclose(spread, alone, rtol=1e-11, atol=1e-12, err_msg=name)
    pieces = [(p, np.ones(2), n) for p, n in splits.chunks(x, 2, 8, 4)]
    assert [len(p) for p, *_ in pieces] == [4, 4, 4], "two chunks of 11 examples for each of three"
    seen = []

    def run(turn: int, piece: Any, weight: Any) -> Any:
        seen.append((turn, piece.devices(), weight.devices()))
        return piece[:, 0]

    values = splits.side_by_side(run, pieces, jax.devices()[:2])
    np.testing.assert_array_equal(values, x[:, 0])
    assert seen == [(i, {jax.devices()[i]}, {jax.devices()[i]}) for i in (0, 1, 0)]


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_enable_x64", True)
    check_products()
    check_measures()
    check_devices()
    print("done")
