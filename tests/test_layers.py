"""Pooling, gates, recorded activations and initializers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax.ops import layers


def image(shape, seed=0, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def with_gradient(pool, x):
    """The pooled map and the gradient of a random cotangent, compiled at once."""

    @jax.jit
    def both(x):
        y, pull = jax.vjp(pool, x)
        return y, pull(image(y.shape, 1))[0]

    return both(x)


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (2, 3), (9, 8)])
@pytest.mark.parametrize(
    ("window", "strides"), [((2, 2), None), ((3, 3), (2, 2)), ((2, 3), (1, 2)), ((2, 2), (3, 3))]
)
def test_pooling_equals_flax(size, window, strides):
    if window[0] > size[0] or window[1] > size[1]:
        pytest.skip("the window does not fit")
    x = image((2, *size, 3))

    def plain(x):
        return nn.max_pool(x, window, strides or window)

    def pool(x):
        return layers.max_pool(x, window, strides)

    (y, got), (expected, want) = with_gradient(pool, x), with_gradient(plain, x)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    # no ties among random numbers: the gradients agree too
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7)])
def test_padded_overlapping_pooling_equals_flax(size):
    x = image((2, *size, 3)) - 5  # below zero: padding with zeros would be seen

    def plain(x):
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    def pool(x):
        return layers.max_pool(x, (3, 3), (2, 2), padding=1)

    (y, got), (expected, want) = with_gradient(pool, x), with_gradient(plain, x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="padding 3 must be less than the window"):
        layers.max_pool(x, (3, 3), padding=3)


@pytest.mark.parametrize("window", [(2, 2), (3, 3), (2, 3)])
def test_the_first_of_equal_maxima_gets_the_gradient(window):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (4, 6, 6, 2)), "float32")
    for images in (x, jnp.ones_like(x)):
        ours, theirs = (
            jax.jit(jax.grad(lambda x, pool=pool: (pool(x, window, window) ** 2).sum()))(images)
            for pool in (layers.max_pool, nn.max_pool)
        )
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("place", range(4))
def test_not_a_number_goes_through_the_maximum(place):
    x = jnp.arange(4.0).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
    assert np.isnan(layers.max_pool(x)).all()


def test_pooling_rejects_a_window_that_does_not_fit():
    with pytest.raises(ValueError, match=r"window \(2, 2\) is larger than the map \(1, 5\)"):
        layers.max_pool(jnp.ones((1, 1, 5, 2)))
    with pytest.raises(ValueError, match="must be 1 or more"):
        layers.max_pool(jnp.ones((1, 4, 4, 2)), strides=(0, 1))


def test_half_precision_means_are_summed_in_float32():
    x = jnp.full((1, 16, 64, 1), 1.01, jnp.bfloat16)  # a bfloat16 sum would stop growing at 512
    mean = layers.global_avg_pool(x)
    assert mean.dtype == jnp.bfloat16
    assert float(mean.ravel()[0]) == float(x[0, 0, 0, 0])


def test_kaiming_and_torch_default_scales():
    """Variances 2 / fan and 1 / (3 fan_in), for HWIO kernels, from 18432 draws."""
    shape = (3, 3, 32, 64)
    key = jax.random.key(0)
    tolerance = 4 * np.sqrt(2 / np.prod(shape))  # 4 standard errors of a normal's variance
    normal_out = layers.kaiming_normal_out(key, shape)
    np.testing.assert_allclose(normal_out.var() * 9 * 64 / 2, 1, atol=tolerance)
    normal_in = layers.kaiming_normal_in(key, shape)
    np.testing.assert_allclose(normal_in.var() * 9 * 32 / 2, 1, atol=tolerance)
    # four standard deviations occur in a normal of this size, and in no truncated one
    assert float(jnp.abs(normal_out).max() / normal_out.std()) > 3
    uniform = layers.torch_default(key, shape)
    np.testing.assert_allclose(uniform.var() * 3 * 9 * 32, 1, atol=tolerance)
    bound = (9 * 32) ** -0.5
    assert 0.99 * bound < float(jnp.abs(uniform).max()) <= bound
    bias = layers.torch_default_bias(16)(key, (4000,))
    assert 0.99 / 4 < float(jnp.abs(bias).max()) <= 1 / 4
    np.testing.assert_allclose(bias.mean(), 0, atol=4 * bias.std() / np.sqrt(4000))


class Gated(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = layers.gate(self, "out", x)
        layers.record_activation(self, "out", x)
        return x


def test_gate_and_recorded_activation():
    x = image((5, 2, 2, 3)).at[0, 0, 0, 1].set(jnp.inf)
    module = Gated()
    variables = module.init(jax.random.key(0), x)
    assert set(variables) == {"gates"}  # activations are recorded on request only
    assert variables["gates"]["out"].dtype == bool
    np.testing.assert_array_equal(module.apply(variables, x), x)
    np.testing.assert_array_equal(module.apply({}, x), x)
    shut = {"gates": {"out": jnp.asarray([True, False, True])}}
    y, updates = module.apply(shut, x, mutable=["activations"])
    np.testing.assert_array_equal(y, x.at[..., 1].set(0))  # inf does not leak through
    got = updates["activations"]["out"]
    assert got.shape == (3,)
    np.testing.assert_allclose(got, np.abs(np.asarray(y)).sum((0, 1, 2)), rtol=1e-6)
    as_float = {"gates": {"out": jnp.asarray([1.0, 0.0, 1.0])}}
    np.testing.assert_array_equal(module.apply(as_float, x), y)


@pytest.mark.parametrize("shape", [(5, 3, 3, 4), (6, 4), (1, 4)])
def test_unbiased_running_variance_is_that_of_torch(shape):
    x = image(shape, 3)
    norm = layers.batch_norm(True, jnp.float32, "bn", unbiased=True)
    plain = layers.batch_norm(True, jnp.float32, "bn")
    variables = layers.batch_norm(False, jnp.float32, "bn").init(jax.random.key(0), x)
    variables["batch_stats"]["var"] = jnp.asarray([0.5, 1.0, 2.0, 3.0])
    ours, kept = norm.apply(variables, x, mutable=["batch_stats"])
    theirs, biased = plain.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_array_equal(ours, theirs)
    n = x.size // 4
    batch = np.var(np.asarray(x, np.float64).reshape(n, 4), axis=0, ddof=min(1, n - 1))
    expected = 0.9 * np.asarray(variables["batch_stats"]["var"]) + 0.1 * batch
    np.testing.assert_allclose(kept["batch_stats"]["var"], expected, rtol=1e-6)
    np.testing.assert_array_equal(kept["batch_stats"]["mean"], biased["batch_stats"]["mean"])
    still = layers.batch_norm(False, jnp.float32, "bn", unbiased=True)
    _, same = still.apply(kept | {"params": variables["params"]}, x, mutable=["batch_stats"])
    np.testing.assert_array_equal(same["batch_stats"]["var"], kept["batch_stats"]["var"])


@pytest.mark.parametrize("outputs", [1, 3, layers.FEW, layers.FEW + 1])
def test_a_classifier_is_a_dense_layer_whose_few_outputs_come_first_in_the_gradient(outputs):
    options = {"features": outputs, "name": "classifier", "dtype": jnp.float32}
    ours, plain = layers.classifier(fan_in=5, **options), nn.Dense(**options)
    x = image((7, 5))
    weights = ours.init(jax.random.key(0), x)
    along = jax.tree.map(lambda w: image(w.shape, 2), weights)

    def numbers(layer, compiled=False):
        def loss(given):
            return jnp.sum(jnp.square(layer.apply(*given)))

        slope = jax.jit(jax.grad(loss))
        if compiled:
            return slope.lower((weights, x)).compile().as_text()
        product = jax.jvp(slope, [(weights, x)], [(along, x)])[1]
        members = jax.vmap(layer.apply, (None, 0))(weights, jnp.stack([x, 2 * x]))
        return layer.apply(weights, x), slope((weights, x)), product, members

    for mine, other in zip(*map(jax.tree.leaves, map(numbers, (ours, plain))), strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-5, atol=1e-5)
    if jax.default_backend() == "cpu":
        first = f"f32[{outputs},5]" in numbers(ours, compiled=True)
        assert first == (outputs <= layers.FEW)


@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 2, 5)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_batch_norm_is_that_of_flax_with_its_derivatives(shape, dtype):
    x = image(shape, dtype=dtype).at[..., 1].set(0)  # a channel without a spread, as of a dead unit
    weigh = image(shape, 1)
    options = {"use_running_average": False, "momentum": 0.9, "epsilon": 1e-5, "dtype": dtype}
    variables = nn.BatchNorm(**options).init(jax.random.key(0), x)
    stats = jax.tree.map(lambda w: w + 0.1, variables["batch_stats"])
    params = {name: image((5,), i) for i, name in enumerate(("scale", "bias"))}
    ahead = {name: image((5,), i + 7) for i, name in enumerate(("scale", "bias"))}

    def numbers(layer):
        def loss(params, x):
            given = {"params": params, "batch_stats": stats}
            y, new = layer.apply(given, x, mutable=["batch_stats"])
            seen = new["batch_stats"]  # its derivatives, too: a loss may have it
            return jnp.sum(weigh * jnp.tanh(y)) + seen["mean"].sum() + seen["var"].sum(), (y, seen)

        slope = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
        return jax.jvp(
            lambda *given: slope(*given)[0], (params, x), (ahead, image(shape, 3, dtype))
        ), (slope(params, x)[1])

    ours, flax = numbers(layers.BatchNorm(**options)), numbers(nn.BatchNorm(**options))
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(flax), strict=True):
        assert mine.dtype == theirs.dtype
        a, b = (np.asarray(found, np.float64) for found in (mine, theirs))
        loose = 2e-2 if mine.dtype == jnp.bfloat16 else 2e-4
        np.testing.assert_allclose(a, b, rtol=loose, atol=loose * np.abs(b).max())


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("unbiased", [False, True])
def test_batch_norm_is_one_call_of_what_it_can(train, unbiased):
    layer, x = layers.batch_norm(train, jnp.float32, "norm", unbiased), image((6, 5))
    variables = nn.BatchNorm(True).init(jax.random.key(0), x)
    mutable = ["batch_stats"] if train else False
    seen = []

    def look(call, args, kwargs, context):
        seen.append(context.method_name)
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        layer.apply(variables, x, mutable=mutable)
    assert seen == ["__call__"]
    for option in {"mask": jnp.ones((6, 5), bool)}, {"use_running_average": not train}:
        with pytest.raises(TypeError, match=next(iter(option))):  # ignored, it would be wrong
            layer.apply(variables, x, mutable=mutable, **option)
    bare = {"params": variables["params"]}
    fresh = [layer.apply(given, x, mutable=["batch_stats"]) for given in (bare, variables)]
    jax.tree.map(np.testing.assert_array_equal, *fresh)
    with pytest.raises(ValueError, match="use_running_average"):
        layer.clone(use_running_average=None).apply(variables, x)


def test_the_gradient_of_batch_norm_has_two_sums_over_examples():
    layer = layers.batch_norm(True, jnp.float32, "norm")
    x = image((64, 5))
    variables = layer.init(jax.random.key(0), x)

    def loss(params, x):
        y = layer.apply(variables | {"params": params}, x, mutable=["batch_stats"])[0]
        return jnp.sum(jnp.sin(y))

    def sums(fn):
        text = jax.jit(fn).lower(variables["params"], x).as_text()
        return text.count("across dimensions = [0] : (tensor<64x5xf32>")

    forward = sums(lambda *given: loss(*given))
    assert forward == 2
    assert sums(jax.grad(loss, (0, 1))) == forward + 2
