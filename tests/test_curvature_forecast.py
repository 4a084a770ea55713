"""Forecasts of the loss change against dense derivatives and measured changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from prunejax.curvature.directions import forecast, removal
from tests import curvature_cases as cases


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def normal(name, *shape):
    return cases.normal(13, name, *shape)


def regression():
    params = ({"w": normal("w", 4, 3)}, (normal("b", 1, 3), normal("v", 3)))
    batch = {"x": normal("x", 9, 4), "y": normal("y", 9)}

    def loss(params, batch):
        first, (b, v) = params
        return jnp.mean((jnp.tanh(batch["x"] @ first["w"] + b) @ v - batch["y"]) ** 2)

    return loss, params, batch


def test_orders_equal_dense_derivatives_and_the_measured_change():
    loss, params, batch = regression()
    targeted = jax.tree.map(lambda p: normal(f"t{p.shape}", *p.shape) > 0, params)
    d = removal(params, targeted)
    found = forecast(loss, params, d, batch)
    flat, unravel = ravel_pytree(params)
    flat_d = ravel_pytree(d)[0]
    np.testing.assert_array_equal(flat_d, jnp.where(ravel_pytree(targeted)[0], -flat, 0))

    def dense(x):
        return loss(unravel(x), batch)

    g, h = jax.jit(jax.grad(dense))(flat), jax.jit(jax.hessian(dense))(flat)
    np.testing.assert_allclose(found.loss, dense(flat), rtol=1e-12)
    np.testing.assert_allclose(found.first_order, g @ flat_d, rtol=1e-11)
    np.testing.assert_allclose(found.curvature, flat_d @ h @ flat_d, rtol=1e-11)
    np.testing.assert_allclose(
        found.second_order, g @ flat_d + 0.5 * flat_d @ h @ flat_d, rtol=1e-11
    )
    np.testing.assert_allclose(found.measured, dense(flat + flat_d) - dense(flat), rtol=1e-10)
    np.testing.assert_allclose(found.squared_norm, flat_d @ flat_d, rtol=1e-12)
    assert (found.examples, found.live_dim) == (9, 18)


def test_errors_shrink_with_the_square_and_the_cube_of_the_displacement():
    loss, params, batch = regression()
    whole = removal(params, True)
    errors = []
    for size in (1e-2, 1e-3):
        f = forecast(loss, params, jax.tree.map(lambda x, s=size: s * x, whole), batch)
        errors.append((abs(f.measured - f.first_order), abs(f.measured - f.second_order)))
    assert errors[0][0] / errors[1][0] == pytest.approx(100, rel=0.2)
    assert errors[0][1] / errors[1][1] == pytest.approx(1000, rel=0.2)


def test_a_quadratic_is_forecast_exactly():
    h = jnp.array([[2.0, 0.5], [0.5, 1.0]])

    def loss(p):
        return 0.5 * p @ h @ p + jnp.array([1.0, -2.0]) @ p

    found = forecast(loss, jnp.array([3.0, -1.0]), jnp.array([-3.0, 0.0]))
    assert found.second_order == pytest.approx(found.measured, rel=1e-12)
    assert found.examples == 0


def test_splits_are_weighted_and_masks_hold_the_dead():
    loss, params, batch = regression()
    masks = jax.tree.map(lambda p: normal(f"m{p.shape}", *p.shape) > -0.3, params)
    d = removal(params, True)
    whole = forecast(loss, params, d, batch, masks=masks)
    cut = [jax.tree.map(lambda x, s=s: x[s], batch) for s in (slice(0, 2), slice(2, 9))]
    parts = forecast(loss, params, d, cut, masks=masks)
    for name in ("first_order", "second_order", "measured", "loss"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-10)
    only_live = jax.tree.map(lambda m, x: jnp.where(m, x, 0), masks, d)
    assert forecast(loss, params, only_live, batch).measured == pytest.approx(whole.measured)
    assert whole.live_dim == sum(int(m.sum()) for m in jax.tree.leaves(masks))


def test_unit_masks_nnx_state_and_no_measurement():
    model = nnx.Linear(4, 3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model, nnx.Param)

    def loss(state, batch):
        return jnp.mean(nnx.merge(graph, state)(batch) ** 2)

    targeted = jax.tree.map(lambda p: jnp.arange(p.shape[-1]) == 1, state)
    d = removal(state, targeted)
    found = forecast(loss, state, d, normal("x", 6, 4), measure=False)
    assert found.measured is None
    full = forecast(loss, state, d, normal("x", 6, 4))
    assert found.second_order == full.second_order == pytest.approx(full.measured, rel=1e-10)


def test_a_displacement_that_does_not_fit_is_refused():
    loss, params, batch = regression()
    with pytest.raises(ValueError, match="the displacement has structure"):
        forecast(loss, params, jnp.ones(3), batch)
