"""Per-example gradient moments against explicit float64 per-example gradients."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.tree_util import Partial

from prunejax.curvature import callables, gradients, vectors
from prunejax.curvature.gradients import gradient_second_moment, norms_and_total
from prunejax.curvature.ratios import gradient_noise_scale
from prunejax.ops import layers
from prunejax.ops.conv import conv
from tests import curvature_cases as cases

N = 11


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def dense(per_example_loss, params, batch):
    """[N, P] per-example gradients, one example after another."""

    def one(example):
        grad = jax.grad(lambda p: per_example_loss(p, jax.tree.map(lambda x: x[None], example))[0])
        return jnp.concatenate([jnp.ravel(g) for g in jax.tree.leaves(grad(params))])

    return np.asarray(jax.jit(lambda examples: lax.map(one, examples))(batch))


def ravel_mask(masks, params):
    """[P] of bools."""
    full = jax.tree.map(lambda m, p: np.broadcast_to(m, p.shape).ravel(), masks, params)
    return np.concatenate(jax.tree.leaves(full))


def normal(name, *shape):
    return cases.normal(3, name, *shape)


def cross_entropy(logits, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]


def labels():
    return jnp.arange(N) % 3


def _convolutional(convolution):
    """Two convolutions (many and few positions), BatchNorm statistics frozen, two dense layers."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = {"conv_general_dilated": convolution, "param_dtype": jnp.float64}
            x = nn.relu(nn.Conv(4, (3, 3), **layer)(x))
            x = nn.BatchNorm(use_running_average=True, param_dtype=jnp.float64)(x)
            x = nn.relu(nn.Conv(20, (3, 2), strides=2, padding=((0, 1), (2, 0)), **layer)(x))
            x = nn.tanh(nn.Conv(9, (2, 2), kernel_dilation=2, padding="VALID", **layer)(x))
            x = x.reshape(x.shape[0], -1)
            return nn.Dense(3, param_dtype=jnp.float64)(x)

    x = normal("x", N, 7, 6, 2)
    shapes = jax.eval_shape(Net().init, jax.random.key(0), x)
    draw = np.random.default_rng(0).normal  # variances are positive
    variables = jax.tree.map(lambda s: cases.put(np.abs(draw(size=s.shape)) / 3), shapes)
    kernels = jax.tree.map(lambda s: cases.put(draw(size=s.shape) / 3, s.dtype), shapes["params"])
    variables = {**variables, "params": kernels}

    def loss(params, batch):
        logits = Net().apply({**variables, "params": params}, batch[0])
        return cross_entropy(logits, batch[1])

    return loss, variables["params"], (x, labels())


def lax_convolution():
    return _convolutional(lax.conv_general_dilated)


def own_convolution():
    return _convolutional(conv)


def regression_of_tuples():
    """Nested tuples, einsum over positions, a bias, a scalar, and weight decay in the loss."""
    params = ((normal("a", 4, 5), normal("b", 5)), {"w": normal("w", 5, 2)}, jnp.float64(0.7))

    def loss(params, batch):
        (a, b), rest, gain = params
        hidden = jnp.tanh(jnp.einsum("npi,io->npo", batch["x"], a) + b[None, None])
        out = gain * hidden.mean(1) @ rest["w"]
        return jnp.sum((out - batch["y"]) ** 2, 1) + 0.1 * jnp.sum(rest["w"] ** 2)

    return loss, params, {"x": normal("x", N, 3, 4), "y": normal("y", N, 2)}


def shared_weights_in_jit():
    """One matrix used twice, a transposed use, and a jit inside the loss."""
    params = {"w": normal("w", 4, 4), "v": normal("v", 3, 4)}

    @jax.jit
    def loss(params, batch):
        hidden = jnp.tanh(jnp.tanh(batch @ params["w"]) @ params["w"])
        return jnp.sum(jnp.cos(jax.jit(lambda h: h @ params["v"].T)(hidden)), 1)

    return loss, params, normal("x", N, 4)


def turned_kernels():
    """Products that wait for a kernel: of one alone, as in a classifier, and of two at once."""
    params = {"u": normal("u", 18, 5), "v": normal("v", 5, 4), "w": normal("w", 4, 3)}

    def loss(params, batch):
        u, v = lax.optimization_barrier((params["u"], params["v"].T))
        hidden = jnp.tanh(jnp.tanh(batch @ u) @ v.T)
        return jnp.sum(jnp.cos(layers.turned(hidden, params["w"])), 1)

    return loss, params, normal("x", N, 18)


def embedding_and_scan():
    params = [normal("table", 6, 4), normal("w", 4, 4)]

    def loss(params, batch):
        start = params[0][batch].mean(1)
        end, _ = lax.scan(lambda h, _: (jnp.tanh(h @ params[1]), None), start, length=3)
        return jnp.sum(end**3, 1)

    return loss, params, jnp.arange(N * 2).reshape(N, 2) % 6


def grouped_convolution():
    params = {"k": normal("k", 3, 3, 1, 4)}

    def loss(params, batch):
        out = lax.conv_general_dilated(
            batch, params["k"], (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4,
        )  # fmt: skip
        return jnp.sum(jnp.sin(out), (1, 2, 3))

    return loss, params, normal("x", N, 5, 4, 4)


def nnx_state():
    model = _NnxNet(nnx.Rngs(0))
    graph, state = nnx.split(model, nnx.Param)

    def loss(state, batch):
        return cross_entropy(nnx.merge(graph, state)(batch[0]), batch[1])

    return loss, state, (normal("x", N, 4), labels())


class _NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 6, param_dtype=jnp.float64, rngs=rngs)
        self.out = nnx.Linear(6, 3, param_dtype=jnp.float64, rngs=rngs)

    def __call__(self, x):
        return self.out(jnp.tanh(self.hidden(x)))


def equinox_module():
    model = eqx.nn.MLP(4, 3, 5, 1, dtype=jnp.float64, key=jax.random.key(1))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, batch):
        return cross_entropy(jax.vmap(eqx.combine(params, static))(batch[0]), batch[1])

    return loss, params, (normal("x", N, 4), labels())


PROBLEMS = [
    lax_convolution,
    own_convolution,
    regression_of_tuples,
    shared_weights_in_jit,
    turned_kernels,
    embedding_and_scan,
    grouped_convolution,
    nnx_state,
    equinox_module,
]


THOROUGH = {
    own_convolution: ("unit", "weight"),
    regression_of_tuples: ("none", "unit", "weight", "scalar", "input"),
}


def mask_tree(params, kind):
    """Per unit (last axis), per weight, one bool per leaf, or per input (first axis)."""
    if kind == "none":
        return None

    def one(i, p):
        shape = {
            "scalar": (),
            "unit": (1,) * (p.ndim - 1) + p.shape[-1:],
            "input": p.shape[:1] + (1,) * (p.ndim - 1),
            "weight": p.shape,
        }[kind]
        drawn = cases.normal(5, (kind, i), *(shape if p.ndim else ()))
        return cases.put(np.asarray(drawn) < 0.25)

    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, [one(i, p) for i, p in enumerate(leaves)])


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.__name__)
def test_moments_equal_explicit_per_example_gradients(problem):
    loss, params, batch = problem()
    explicit = dense(loss, params, batch)
    for kind in THOROUGH.get(problem, ("unit",)):
        masks = mask_tree(params, kind)
        live = np.ones(explicit.shape[1], bool) if masks is None else ravel_mask(masks, params)
        grads = np.where(live, explicit, 0)
        squares, mean = (grads**2).sum(1), grads.mean(0)
        raw = gradient_second_moment(loss, params, batch, chunk=4, masks=masks, mean=True)
        np.testing.assert_allclose(raw.squared_norms, squares, rtol=1e-11, err_msg=kind)
        np.testing.assert_allclose(raw.value, squares.mean(), rtol=1e-12)
        np.testing.assert_allclose(raw.stderr, squares.std(ddof=1) / np.sqrt(N), rtol=1e-10)
        np.testing.assert_allclose(raw.mean_gradient_squared_norm, (mean**2).sum(), rtol=1e-11)
        assert raw.live_dim == live.sum()
        if kind != "unit":
            continue
        alone = gradient_second_moment(loss, params, batch, chunk=4, masks=masks)
        np.testing.assert_allclose(alone.squared_norms, raw.squared_norms, rtol=1e-12)
        assert alone.mean_gradient_squared_norm is None
        spread = ((grads - mean) ** 2).sum(1)
        centered = gradient_second_moment(loss, params, batch, centered=True, chunk=4, masks=masks)
        np.testing.assert_allclose(centered.value, spread.mean(), rtol=1e-11)
        np.testing.assert_allclose(centered.contributions, spread, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(centered.stderr, spread.std(ddof=1) / np.sqrt(N), rtol=1e-9)


def test_unbiased_variant_divides_by_n_minus_one():
    loss, params, batch = regression_of_tuples()
    reference = dense(loss, params, batch)
    moment = gradient_second_moment(loss, params, batch, centered=True, ddof=1)
    np.testing.assert_allclose(moment.value, np.trace(np.cov(reference.T)), rtol=1e-11)


@pytest.mark.parametrize("chunk", [1, 5, 11, None])
def test_the_split_into_batches_and_chunks_changes_nothing(chunk):
    loss, params, batch = regression_of_tuples()
    whole = gradient_second_moment(loss, params, batch, centered=True)
    cut = [vectors.index(batch, slice(a, b)) for a, b in ((0, 2), (2, 9), (9, 11))]
    parts = gradient_second_moment(loss, params, cut, centered=True, chunk=chunk)
    np.testing.assert_allclose(parts.squared_norms, whole.squared_norms, rtol=1e-11)
    np.testing.assert_allclose([parts.value, parts.stderr], [whole.value, whole.stderr], rtol=1e-10)
    assert parts.examples == N


def test_chunks_of_one_call_share_its_memory_and_those_without_examples_are_not_run():
    loss, params, batch = own_convolution()
    loss = callables.as_argument(loss)
    batch = jax.tree.map(lambda x: jnp.concatenate([x] * 8)[:64], batch)
    live = np.array([1.0] * 17 + [0.0] * 47)
    whole, _ = norms_and_total(loss, params, batch, live, None, None, chunk=64)
    found, _ = norms_and_total(loss, params, batch, live, None, None, chunk=8)
    np.testing.assert_allclose(found[:17], whole[:17], rtol=1e-11)
    assert not found[24:].any()  # of eight chunks three were run
    assert whole[24:].all()

    def working(chunk):
        lowered = norms_and_total.lower(loss, params, batch, live, None, None, chunk=chunk)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert working(8) < 0.4 * working(64)


@pytest.mark.parametrize(
    ("width", "parameters", "backend", "chunk"),
    [
        (2**17, 2**17, "cpu", 16),  # 1 MiB of products an example, as many parameters
        (2**16, 2**16, "cpu", 32),  # small activations
        (2**17, 2**20, "cpu", 32),  # each chunk goes through eight times as many parameters
        (2**17, 2**17, "gpu", 32),
    ],
)
def test_the_chunk_of_devices_side_by_side_fits_the_network(
    monkeypatch, width, parameters, backend, chunk
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    batch = np.broadcast_to(np.float64(1), (40, width))  # no memory is behind it
    params = {"w": np.broadcast_to(np.float64(1), parameters)}
    loss = callables.as_argument(lambda p, x: jnp.exp(x) @ p["w"][:width])
    assert gradients._side_by_side(loss, params, batch) == chunk


def test_the_factored_path_is_taken_where_it_should_be(monkeypatch):
    """Dense and convolution kernels come as factors; a depthwise kernel and a table do not."""
    from prunejax.curvature import example_gradients as module

    taken = []
    original = module._from_operands

    def spy(left, right, product, mask, weight, leaf):
        taken.append(leaf.shape)
        return original(left, right, product, mask, weight, leaf)

    monkeypatch.setattr(module, "_from_operands", spy)
    for problem, shapes in {
        lax_convolution: {(3, 3, 2, 4), (3, 2, 4, 20), (2, 2, 20, 9), (18, 3)},
        own_convolution: {(3, 3, 2, 4), (3, 2, 4, 20), (2, 2, 20, 9), (18, 3)},
        shared_weights_in_jit: {(3, 4)},
        grouped_convolution: set(),
        turned_kernels: {(18, 5), (5, 4), (4, 3)},
    }.items():
        taken.clear()
        loss, params, batch = problem()
        jax.eval_shape(partial(module.norms_and_sum, loss), params, batch, jnp.ones(N), None)
        assert set(taken) == shapes, problem.__name__


def test_dead_coordinates_may_hold_nan():
    params = {"w": jnp.array([[1.0, jnp.nan], [0.5, jnp.nan]])}
    masks = {"w": jnp.array([[True, False]])}

    def loss(params, batch):
        return jnp.sum((batch @ params["w"]) ** 2, 1)

    batch = normal("x", N, 2)
    clean = {"w": params["w"][:, :1]}
    expected = gradient_second_moment(loss, clean, batch).value
    assert np.isfinite(expected)
    np.testing.assert_allclose(
        gradient_second_moment(loss, params, batch, masks=masks).value, expected, rtol=1e-12
    )


def test_bfloat16_parameters_are_summed_in_float32():
    """512 examples whose squared norms would stall a bfloat16 sum (256 + 1 = 256)."""
    params = {"w": jnp.ones((4, 3), jnp.bfloat16), "b": jnp.ones(3, jnp.bfloat16)}

    def loss(params, batch):
        return jnp.sum(batch @ params["w"] + params["b"], 1)

    batch = jnp.ones((512, 4), jnp.bfloat16)
    moment = gradient_second_moment(loss, params, batch, chunk=100, mean=True)
    assert moment.value == pytest.approx(15.0, rel=1e-6)
    assert moment.mean_gradient_squared_norm == pytest.approx(15.0, rel=1e-6)


def test_statistics_given_as_partial_do_not_recompile():
    calls = []

    def loss(scale, params, batch):
        calls.append(1)
        return scale * jnp.sum((batch @ params) ** 2, 1)

    params, batch = normal("p", 3, 2), normal("x", N, 3)
    first = gradient_second_moment(Partial(loss, jnp.float64(1.0)), params, batch)
    traced = len(calls)
    second = gradient_second_moment(Partial(loss, jnp.float64(2.0)), params, batch)
    assert len(calls) == traced
    assert second.value == pytest.approx(4 * first.value, rel=1e-12)


def test_noise_scale_and_its_two_conventions():
    loss, params, batch = regression_of_tuples()
    reference = dense(loss, params, batch)
    mean = (reference.mean(0) ** 2).sum()
    centered = gradient_noise_scale(loss, params, batch, unbiased=False)
    raw = gradient_noise_scale(loss, params, batch, unbiased=False, centered=False)
    spread = ((reference - reference.mean(0)) ** 2).sum(1).mean()
    np.testing.assert_allclose(centered.value, spread / mean, rtol=1e-11)
    np.testing.assert_allclose(raw.value, centered.value + 1, rtol=1e-11)
    np.testing.assert_allclose(raw.stderr, centered.stderr, rtol=1e-9)
    assert np.isnan(centered.interval).all()
    fair = gradient_noise_scale(loss, params, batch)
    total = np.trace(np.cov(reference.T))
    np.testing.assert_allclose(fair.value, total / (mean - total / N), rtol=1e-11)
    fair_raw = gradient_noise_scale(loss, params, batch, centered=False)
    np.testing.assert_allclose(fair_raw.value, fair.value + 1, rtol=1e-11)
    np.testing.assert_allclose(fair_raw.stderr, fair.stderr, rtol=1e-9)
    np.testing.assert_allclose(fair_raw.interval[0], fair.interval[0] + 1, rtol=1e-9)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("centered", [True, False])
def test_noise_scale_error_is_the_jackknife_of_the_examples(centered, unbiased):
    """Leave-one-out over many examples, an independent first-order estimate of the same error."""
    n = 400
    params = jnp.array([1.0, -0.5, 0.3])

    def loss(params, batch):
        return (batch[0] @ params - batch[1]) ** 2

    batch = (normal("x", n, 3), 1 + normal("y", n))
    result = gradient_noise_scale(loss, params, batch, centered=centered, unbiased=unbiased)
    grads = dense(loss, params, batch)

    def ratio(g):
        mean, k = (g.mean(0) ** 2).sum(), len(g)
        if not unbiased:
            return ((g - g.mean(0) * centered) ** 2).sum(1).mean() / mean
        total = np.trace(np.cov(g.T))
        return total / (mean - total / k) + (not centered)

    left_out = np.array([ratio(np.delete(grads, i, 0)) for i in range(n)])
    jackknife = np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    assert result.value == pytest.approx(ratio(grads), rel=1e-10)
    assert result.stderr == pytest.approx(jackknife, rel=0.03)


def test_stated_standard_error_covers_the_truth():
    """The gradient of one example is its x: E||x||^2 = 3, and the 95% intervals cover that."""
    hits, trials, n = 0, 300, 60
    for trial in range(trials):
        x = cases.normal(trial, "coverage", n, 3)
        moment = gradient_second_moment(_linear, jnp.zeros(3), x, chunk=n)
        hits += abs(moment.value - 3.0) < 1.96 * moment.stderr
    assert 0.90 <= hits / trials <= 0.98


@pytest.mark.parametrize(("dim", "truth", "n"), [(100, 89.6, 64), (100, 3.0, 64), (5, 20.0, 64)])
def test_the_noise_scale_of_a_sample_is_that_of_the_population(dim, truth, n):
    """Gradients N(m, I / dim) with |m|^2 = 1 / truth: the median of the estimates, the interval."""
    values, biased, hits, trials = [], [], 0, 150
    draws = np.asarray(cases.normal(0, "noise scale", trials, n, dim))
    for x in (draws + truth**-0.5) / dim**0.5:
        found = gradient_noise_scale(_linear, jnp.zeros(dim), x, chunk=n)
        values.append(found.value)
        moment = found.moment
        biased.append(moment.value * (n - 1) / n / moment.mean_gradient_squared_norm)
        hits += found.interval[0] < truth < found.interval[1]
    assert np.median(values) == pytest.approx(truth, rel=0.2)
    assert np.median(biased) < 0.95 * truth
    assert 0.90 <= hits / trials < 1


def test_the_interval_of_the_noise_scale_is_open_where_the_gradient_may_be_zero():
    x = normal("none", 40, 3)
    found = gradient_noise_scale(_linear, jnp.zeros(3), x)
    assert 0 < found.interval[0] < found.interval[1] == float("inf")
    few = gradient_noise_scale(_linear, jnp.zeros(3), x[:2])
    assert np.isnan(few.interval).all()
    with pytest.raises(ValueError, match="needs at least 2 examples, got 1; give unbiased=False"):
        gradient_noise_scale(_linear, jnp.zeros(3), x[:1], centered=False)
    with pytest.raises(ValueError, match="needs at least 2 examples, got 1"):
        gradient_noise_scale(_linear, jnp.zeros(3), x[:1])


def _linear(params, batch):
    return batch @ params


def test_an_example_without_others_has_no_error_bar():
    moment = gradient_second_moment(_linear, jnp.ones(3), jnp.ones((1, 3)))
    assert moment.value == 3.0
    assert np.isnan(moment.stderr)


def test_a_vanishing_mean_gradient_gives_an_infinite_noise_scale():
    x = jnp.array([[1.0], [-1.0]])
    for unbiased in (True, False):
        result = gradient_noise_scale(_linear, jnp.zeros(1), x, unbiased=unbiased)
        assert result.value == float("inf")


def test_wrong_inputs_say_what_is_allowed():
    loss, params, x = _linear, jnp.zeros(3), jnp.ones((4, 3))
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        gradient_second_moment(loss, params, x, chunk=0)
    with pytest.raises(ValueError, match="need examples"):
        gradient_second_moment(loss, params, None)
    with pytest.raises(ValueError, match="empty list"):
        gradient_second_moment(loss, params, [])
    with pytest.raises(ValueError, match=r"one number per example.*\(\)"):
        gradient_second_moment(lambda p, b: jnp.mean(b @ p), params, x)
    with pytest.raises(ValueError, match="ddof"):
        gradient_second_moment(loss, params, x, ddof=1)
    with pytest.raises(ValueError, match="leading example axis"):
        gradient_second_moment(loss, params, (x, jnp.ones(3)))
    with pytest.raises(ValueError, match="no examples"):
        gradient_second_moment(loss, params, x[:0])
    with pytest.raises(ValueError, match="'n' has dtype int"):
        gradient_second_moment(lambda p, b: b @ p["w"], {"w": params, "n": jnp.ones((), int)}, x)


def test_short_pieces_are_filled_up_to_one_shape():
    pieces = gradients.chunks(iter([jnp.arange(5), jnp.arange(3)]), 4)
    assert [real for _, real in pieces] == [4, 1, 3]
    assert {piece.shape for piece, _ in pieces} == {(4,)}


def test_plain_numpy_batches_and_streams_of_batches():
    params, x = jnp.arange(3.0), np.arange(12.0).reshape(4, 3)
    whole = gradient_second_moment(_linear, params, x, chunk=2)
    assert whole.value == pytest.approx((x**2).sum(1).mean())
    for stream in (iter([x[:2], x[2:]]), lambda: (x[i : i + 2] for i in (0, 2))):
        assert gradient_second_moment(_linear, params, stream, chunk=2).value == whole.value


def test_a_loss_with_reverse_mode_alone_has_centered_moments():
    @jax.custom_vjp
    def square(z):
        return z**2

    square.defvjp(lambda z: (z**2, z), lambda z, t: (2 * z * t,))
    params, x = normal("p", 3), normal("x", 5, 3)
    plain = gradient_second_moment(lambda p, b: (b @ p) ** 2, params, x, centered=True)
    own = gradient_second_moment(lambda p, b: square(b @ p), params, x, centered=True)
    assert (own.value, own.stderr) == pytest.approx((plain.value, plain.stderr), rel=1e-12)


def test_a_device_that_takes_all_chunks_gives_the_same_bits():
    params, x = normal("p", 3), normal("x", 5, 3)
    loss = lambda p, b: (b @ p) ** 2  # noqa: E731
    options = {"centered": True, "chunk": 2}
    here = gradient_second_moment(loss, params, x, **options)
    there = gradient_second_moment(loss, params, x, **options, devices=jax.devices()[:1])
    np.testing.assert_array_equal(there.squared_norms, here.squared_norms)
    np.testing.assert_array_equal(there.alignments, here.alignments)
    with pytest.raises(ValueError, match="devices is empty"):
        gradient_second_moment(loss, params, x, devices=[])


@pytest.mark.slow
def test_numpy_batches_and_sharded_parameters_give_the_same_numbers():
    """Products, forms and all measures on four devices, automatic and explicit mesh axes."""
    warnings = ["-W", "error", "-W", "ignore:Error reading persistent compilation cache entry"]
    command = [sys.executable, *warnings, "-m", "tests.curvature_sharded"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("done\n"), done.stderr


@pytest.mark.parametrize("centered", [True, False])
def test_the_noise_scale_of_one_example_says_what_it_needs(centered):
    loss, params, batch = regression_of_tuples()
    one = vectors.index(batch, slice(0, 1))
    with pytest.raises(ValueError, match="unbiased=True needs at least 2 examples, got 1"):
        gradient_noise_scale(loss, params, one, centered=centered)
    gradient = dense(loss, params, one)[0]
    found = gradient_noise_scale(loss, params, one, centered=centered, unbiased=False)
    np.testing.assert_allclose(found.gradient_squared_norm, gradient @ gradient, rtol=1e-9)
    assert found.value == pytest.approx(0.0 if centered else 1.0, abs=1e-9)
