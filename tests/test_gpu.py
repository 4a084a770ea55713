"""What a GPU computes, against the CPU: `pytest -m gpu tests/test_gpu.py` on a machine with one.

Float32 products on a GPU use TF32 unless the highest precision is asked for. Both are tested:
"highest" has to agree as single precision does, "default" as ten bits of mantissa allow.

`PRUNEJAX_GPU_TESTS=cpu pytest -m gpu` runs them in small on the CPU: a test of the tests.
"""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from prunejax import curvature, masks
from prunejax.configs import default
from prunejax.ops.conv import conv
from prunejax.record.environment import environment
from prunejax.study.devices import layout, memory
from tests import layouts
from tests.test_conv import CASES, arrays, pair

PRECISIONS = {"highest": 2e-5, "default": 5e-3}  # largest error over the largest entry

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def small():
    """False on a GPU; True where the CPU stands in for one."""
    if jax.default_backend() == "gpu":
        return False
    if os.environ.get("PRUNEJAX_GPU_TESTS") != "cpu":
        pytest.skip("no GPU in use: `pytest -m gpu tests/test_gpu.py` on a machine with one")
    return True


@pytest.fixture(scope="module", autouse=True)
def _only_with_a_gpu(small):
    """Skips the module."""


def on_cpu(fn, *args):
    """`fn` in float64 on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        args = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), args)
        return jax.tree.map(np.asarray, jax.jit(fn)(*args))


def near(found, wanted, tolerance):
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        error = np.max(np.abs(np.asarray(one, np.float64) - two))
        assert error <= tolerance * (np.max(np.abs(two)) + 1e-30), error


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("members", [0, 3])
def test_convolutions_and_their_gradients(precision, members, small):
    """Alone and vectorized (a grouped convolution), in all shapes of `tests/test_conv.py`."""

    def both(f, x, w):
        y, pullback = jax.vjp(f, x, w)
        return y, pullback(jnp.cos(y))

    for case in ["same", "uneven padding, stride 2", "map 2x2"] if small else CASES:
        x, w, options = arrays(case)
        ours, plain = (partial(both, f) for f in pair(options))
        if members:
            ours, plain = jax.vmap(ours), jax.vmap(plain)
            x, w = (jnp.stack([(1 + i) * a for i in range(members)]) for a in (x, w))
        with jax.default_matmul_precision(precision):
            found = jax.jit(ours)(x, w)
        near(found, on_cpu(plain, x, w), PRECISIONS[precision])


def test_convolutions_in_bfloat16(small):
    x, w, options = arrays("same", channels=(8, 16))
    found = jax.jit(partial(conv, **options))(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    wanted = on_cpu(partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"),
                            **options), x, w)  # fmt: skip
    near(found.astype(jnp.float32), wanted, 3e-2)


@pytest.mark.parametrize("ties", [False, True])
def test_masks_of_25_million_weights_are_exact(ties, small):
    """Counts above 2**24, where float32 counters stop, and ties by position."""
    r = np.random.default_rng(0)
    sizes = (2048, 64, 3), (700, 1000) if small else (12_000, 2_000), (1111,)
    leaves = [np.abs(r.standard_normal(s, np.float32)) for s in sizes]
    if ties:
        leaves = [np.round(x * 4) / 4 for x in leaves]
    total = sum(x.size for x in leaves)
    assert small or total > 2**24
    flat = np.concatenate([x.ravel() for x in leaves])
    for keep in (total // 10, total - 5):
        found = jax.jit(masks.prune)([jnp.asarray(x) for x in leaves], jnp.int32(keep))
        live = np.concatenate([np.asarray(m).ravel() for m in found])
        cut = np.partition(flat, total - keep)[total - keep]
        wanted = flat > cut
        wanted[np.flatnonzero(flat == cut)[: keep - np.count_nonzero(wanted)]] = True
        np.testing.assert_array_equal(live, wanted)


@pytest.fixture(scope="module")
def alone():
    with jax.default_matmul_precision("highest"):
        return layouts.trace(*layouts.make("sequential", jax.devices()[:1]))


@pytest.mark.parametrize("name", ["vectorized", "sharded"])
def test_events_are_the_same_in_each_layout(name, alone, small):
    """Targets, live units and masks exactly; losses nearly, since sums have another order."""
    if small and name == "sharded":
        pytest.skip("in small: one device, tested elsewhere")
    with jax.default_matmul_precision("highest"):
        found = layouts.trace(*layouts.make(name, jax.devices()[:1]))
    for (exact, losses), (exactly, near_) in zip(found, alone, strict=True):
        jax.tree.map(np.testing.assert_array_equal, exact, exactly)
        np.testing.assert_allclose(losses, near_, rtol=10 * layouts.TOLERANCE)


def network(f, params, batch):
    """Mean cross-entropy of a convolution, tanh, a mean over places and a dense layer."""
    x, y = batch
    hidden = jnp.tanh(f(x, params["conv"], padding="SAME", window_strides=(1, 1)))
    logits = hidden.mean((1, 2)) @ params["dense"]
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * y, axis=-1))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_curvature_agrees_with_float64_on_the_cpu(precision, small):
    del small
    r = np.random.default_rng(0)
    params = {"conv": r.normal(size=(3, 3, 2, 4)) / 3, "dense": r.normal(size=(4, 5))}
    v = {k: r.normal(size=p.shape) for k, p in params.items()}
    batch = r.normal(size=(64, 8, 8, 2)), np.eye(5)[r.integers(0, 5, 64)]
    plain = partial(network, partial(lax.conv_general_dilated,
                                     dimension_numbers=("NHWC", "HWIO", "NHWC")))  # fmt: skip

    def exact(params, v, batch):
        gradient = jax.grad(plain)
        product = jax.jvp(lambda p: gradient(p, batch), (params,), (v,))[1]
        form = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (product, v)), strict=True))
        flat, back = jax.flatten_util.ravel_pytree(params)
        return product, form, jnp.trace(jax.hessian(lambda p: plain(back(p), batch))(flat))

    product, form, trace = on_cpu(exact, params, v, batch)
    params, v, batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, v, batch))
    loss = partial(network, conv)
    tolerance = 10 * PRECISIONS[precision]
    with jax.default_matmul_precision(precision):
        near(curvature.hvp(loss, params, v, batch), product, tolerance)
        near(curvature.quadratic_form(loss, params, v, batch), form, tolerance)
        estimate = curvature.hessian_trace(loss, params, batch, key=jax.random.key(0), probes=256)
    assert abs(estimate.value - trace) < 4 * estimate.stderr + tolerance * abs(trace)


def test_auto_measures_the_layouts_and_chooses_one(small):
    program, data, members = layouts.batch()
    settings = default.get_config()
    decision, people = layout.decide(program, data, members, settings)
    assert decision.platform == jax.devices()[0].platform
    assert people.layout == decision.layout
    if not small:
        assert "measured per run and step: " in decision.why
        assert decision.fits >= len(members)
        assert np.isfinite(memory.bound(settings, jax.devices()[0]))


def test_the_environment_states_the_precision_of_products():
    assert environment()["matmul_precision"] == "default"
    with jax.default_matmul_precision("highest"):
        assert environment()["matmul_precision"] == "highest"
