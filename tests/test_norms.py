"""Norms against matrices and hand-made networks; what folding and rescaling must leave alone."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import models, rng, trees
from prunejax.measures import folding, norms, rivals
from prunejax.measures.pac_bayes import pac_bayes_flatness
from prunejax.models.mlp import MLP
from prunejax.models.vgg import VGG


def matrix_of(kernel, map_size, strides):
    """The circular convolution as a matrix, tap by tap."""
    (h, w), (a, b) = map_size, strides
    kh, kw, ins, outs = kernel.shape
    found = np.zeros((h // a, w // b, outs, h, w, ins))
    for i, j, u, v in itertools.product(range(h // a), range(w // b), range(kh), range(kw)):
        row, column = (i * a + u) % h, (j * b + v) % w
        found[i, j, :, row, column, :] += kernel[u, v].T
    return found.reshape(h * w * outs // (a * b), h * w * ins)


@pytest.mark.parametrize(
    ("size", "map_size", "strides"),
    [
        ((3, 3, 2, 3), (5, 4), (1, 1)),
        ((3, 3, 3, 2), (2, 2), (1, 1)),  # the kernel is larger than the map
        ((3, 3, 2, 5), (4, 6), (2, 2)),
        ((1, 1, 4, 2), (4, 4), (2, 2)),
        ((5, 3, 2, 2), (3, 8), (1, 2)),
    ],
)
def test_singular_values_of_the_convolution_as_a_matrix(size, map_size, strides):
    kernel = np.random.default_rng(0).normal(size=size)
    expected = np.linalg.svd(matrix_of(kernel, map_size, strides), compute_uv=False)
    found = norms.singular_values(kernel, map_size, strides)
    np.testing.assert_allclose(found, expected[: found.size], rtol=1e-9)
    np.testing.assert_allclose(expected[found.size :], 0, atol=1e-9)
    assert norms.spectral_norm(kernel, map_size, strides) == pytest.approx(expected[0], rel=1e-9)


def test_dense_layers_and_bad_maps():
    kernel = np.random.default_rng(1).normal(size=(4, 3))
    np.testing.assert_allclose(norms.spectral_norm(kernel), np.linalg.norm(kernel, 2))
    with pytest.raises(ValueError, match="5 x 4 is no multiple of the strides 2 x 2"):
        norms.spectral_norm(np.ones((3, 3, 1, 1)), (5, 4), (2, 2))
    with pytest.raises(ValueError, match="dense kernels are"):
        norms.spectral_norm(np.ones((3, 3, 1, 1)))


@functools.cache
def compiled(module):
    return jax.jit(module.apply)


def randomized(module, shape, seed=0):
    """Variables with statistics, gains and biases as after training, and some images."""
    variables = models.init(module, rng.stream(seed, "init"), shape)
    r = np.random.default_rng(seed)

    def draw(path, x):
        last = path.rpartition("/")[2]
        if last in ("kernel", "bias", "mean"):
            return x + 0.3 * jnp.asarray(r.normal(size=x.shape), x.dtype)
        return jnp.asarray(r.uniform(0.5, 2, size=x.shape), x.dtype)  # scale, var

    return trees.map_with_path(draw, variables), jnp.asarray(
        r.normal(size=(5, *shape)), jnp.float32
    )


@pytest.fixture(scope="module")
def vgg():
    module = VGG(num_classes=3, features=(4, "M", 6, 5))
    variables, x = randomized(module, (8, 8, 2))
    return module, variables, x, folding.layers(module, variables, (8, 8, 2))


def test_layers_know_their_maps_and_norms(vgg):
    layers = vgg[3]
    assert [(x.name, x.map, x.norm) for x in layers] == [
        *(("conv1", (8, 8), "bn1"), ("conv2", (4, 4), "bn2"), ("conv3", (4, 4), "bn3")),
        ("classifier", None, ""),
    ]
    module = models.create("resnet20", num_classes=10, width=0.25)
    shapes = jax.eval_shape(
        lambda key: module.init(key, jnp.zeros((1, 32, 32, 3))), jax.random.key(0)
    )
    found = folding.layers(module, shapes, (32, 32, 3))
    assert len(found) == 20
    assert all(x.norm == x.name.replace("conv", "bn") for x in found[:-1])
    assert {x.strides for x in found} == {(1, 1), (2, 2)}
    assert [x.map for x in found[:-1]][-1] == (8, 8)


def test_folding_keeps_the_function(vgg):
    module, variables, x, layers = vgg
    folded = folding.fold(variables, layers)
    np.testing.assert_allclose(
        compiled(module)(folded, x), compiled(module)(variables, x), rtol=2e-4, atol=1e-5
    )
    assert jax.tree.structure(folded) == jax.tree.structure(dict(variables))
    again = folding.fold(folded, layers)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(folded), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    live = folding.weights(folded["params"], layers)
    dead = [p for p, m in trees.leaves_with_paths(live) if not m]
    assert dead == ["bn1/scale", "bn2/scale", "bn3/scale", "conv1/bias", "conv2/bias", "conv3/bias"]
    # By hand: layer 1 at one pixel of one image.
    p, s = variables["params"], variables["batch_stats"]["bn1"]
    gain = p["bn1"]["scale"] / np.sqrt(s["var"] + 1e-5)
    np.testing.assert_allclose(
        folded["params"]["bn1"]["bias"],
        p["bn1"]["bias"] + gain * (p["conv1"]["bias"] - s["mean"]),
        rtol=1e-5,
    )


def rescaled(variables, gain):
    """The same function: what BatchNorm reads is `gain` times as large."""
    p, s = variables["params"], variables["batch_stats"]
    params, stats = dict(p), dict(s)
    params["conv2"] = jax.tree.map(lambda w: gain * w, p["conv2"])
    eps = 1e-5
    stats["bn2"] = {"mean": gain * s["bn2"]["mean"], "var": gain**2 * (s["bn2"]["var"] + eps) - eps}
    return {"params": params, "batch_stats": stats}


def all_norms(module, variables, layers):
    params = folding.fold(variables, layers)["params"]
    live = folding.weights(params, layers)
    stats = folding.fold(variables, layers).get("batch_stats", {})
    apply = lambda p, x: compiled(module)({"params": p, "batch_stats": stats}, x)  # noqa: E731
    return np.array(
        [
            norms.l2_norm(params, masks=live),
            norms.log_spectral_product(params, layers),
            norms.frobenius_over_spectral(params, layers),
            norms.path_norm(apply, params, (8, 8, 2)),
        ]
    )


def test_norms_do_not_see_the_scale_before_a_batchnorm(vgg):
    module, variables, x, layers = vgg
    other = rescaled(variables, 3.0)
    np.testing.assert_allclose(
        compiled(module)(other, x), compiled(module)(variables, x), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(
        all_norms(module, other, layers), all_norms(module, variables, layers), rtol=1e-4
    )


def test_the_slip_of_one_map_for_all_layers_is_not_ours(vgg):
    _, variables, _, layers = vgg
    params = folding.fold(variables, layers)["params"]
    own = norms.log_spectral_product(params, layers)
    by_matrix = 0.0
    for layer in layers:
        kernel = np.asarray(trees.get(params, layer.kernel), np.float64)
        matrix = kernel if layer.map is None else matrix_of(kernel, layer.map, (1, 1))
        by_matrix += np.log(np.linalg.norm(matrix, 2))
    assert own == pytest.approx(by_matrix, rel=1e-9)
    slip = [norms.spectral_norm(trees.get(params, x.kernel), x.map and (8, 8)) for x in layers]
    assert np.log(slip).sum() > own + 1e-3  # more frequencies: never less, here more


def mlp(seed=3):
    module = MLP(num_classes=2, hidden=(4, 3), batch_norm=False)
    variables, _ = randomized(module, (5,), seed)
    return module, variables["params"], folding.layers(module, variables, (5,))


def test_a_network_by_hand():
    module, params, layers = mlp()
    w = {k: {n: np.asarray(x, np.float64) for n, x in v.items()} for k, v in params.items()}
    order = ["dense1", "dense2", "classifier"]
    assert [x.name for x in layers] == order
    total = np.ones(5)
    for name in order:
        total = total @ w[name]["kernel"] ** 2 + w[name]["bias"] ** 2
    apply = lambda p, x: compiled(module)({"params": p}, x)  # noqa: E731
    assert norms.path_norm(apply, params, (5,)) == pytest.approx(np.sqrt(total.sum()), rel=1e-5)
    tops = [np.linalg.norm(w[n]["kernel"], 2) for n in order]
    assert norms.log_spectral_product(params, layers) == pytest.approx(np.log(tops).sum())
    ratios = [np.sum(w[n]["kernel"] ** 2) / t**2 for n, t in zip(order, tops, strict=True)]
    assert norms.frobenius_over_spectral(params, layers) == pytest.approx(sum(ratios))
    flat = np.concatenate([x.ravel() for x in jax.tree.leaves(w)])
    assert norms.l2_norm(params) == pytest.approx(np.linalg.norm(flat))
    zeros = jax.tree.map(jnp.zeros_like, params)
    assert norms.distance(params, zeros) == pytest.approx(np.linalg.norm(flat))
    assert norms.distance(params, params) == 0
    assert norms.log_spectral_product(zeros, layers) == -np.inf
    assert norms.frobenius_over_spectral(zeros, layers) == 0


class Biasless(nn.Module):
    """A BatchNorm without a bias: what it adds is nowhere in the parameters."""

    own: bool  # whether the layer before it has a bias

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, use_bias=self.own, name="first")(x)
        x = nn.BatchNorm(use_running_average=True, use_bias=False, name="norm")(x)
        return nn.Dense(2, name="last")(nn.relu(x))


@pytest.mark.parametrize("own", [False, True])
def test_paths_from_a_shift_of_a_batchnorm_without_a_bias(own):
    """Against the sum over paths, one by one, with the shift as the bias that it is."""
    module = Biasless(own)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 2))))
    r = np.random.default_rng(1)
    variables = jax.tree.map(lambda s: jnp.asarray(r.uniform(0.5, 2, s.shape), s.dtype), variables)
    p, stats = jax.tree.map(np.float64, (variables["params"], variables["batch_stats"]["norm"]))
    gain = p["norm"]["scale"] / np.sqrt(stats["var"] + 1e-5)
    shift = gain * (p["first"].get("bias", 0) - stats["mean"])
    assert np.abs(shift).min() > 0.05
    total = np.sum(p["last"]["bias"] ** 2)
    for unit, output in itertools.product(range(3), range(2)):
        into = [gain[unit] * p["first"]["kernel"][i, unit] for i in range(2)]
        for start in (*into, shift[unit]):
            total += (start * p["last"]["kernel"][unit, output]) ** 2
    folded = folding.fold(variables, folding.layers(module, variables, (2,)))
    found = norms.path_norm(module.apply, folded, (2,))
    assert found == pytest.approx(np.sqrt(total), rel=1e-5)
    x = jnp.asarray(r.normal(size=(5, 2)), jnp.float32)
    images = [(x, jnp.zeros(5, int))]
    columns = rivals.of_linen(module, variables, variables, images, key=rng.at(0, "probe"), steps=1)
    assert columns["path_norm"] == pytest.approx(np.sqrt(total), rel=1e-5)


def test_layers_rescaled_against_each_other():
    """ReLU networks: products do not change, sums of squares do."""
    module, params, layers = mlp()
    other = dict(params)
    other["dense1"] = jax.tree.map(lambda w: 4 * w, params["dense1"])
    other["dense2"] = params["dense2"] | {"kernel": params["dense2"]["kernel"] / 4}
    apply = lambda p, x: compiled(module)({"params": p}, x)  # noqa: E731
    for fn in (norms.log_spectral_product, norms.frobenius_over_spectral):
        assert fn(other, layers) == pytest.approx(fn(params, layers), rel=1e-6)
    same = [norms.path_norm(apply, p, (5,)) for p in (params, other)]
    assert same[0] == pytest.approx(same[1], rel=1e-5)
    assert norms.l2_norm(other) > 1.5 * norms.l2_norm(params)


def test_counts_and_masks():
    _, params, _ = mlp()
    assert norms.parameter_count(params) == 5 * 4 + 4 + 4 * 3 + 3 + 3 * 2 + 2
    masks = jax.tree.map(lambda w: jnp.arange(w.size).reshape(w.shape) % 2 == 0, params)
    assert norms.parameter_count(params, masks=masks) == 10 + 2 + 6 + 2 + 3 + 1
    live = jax.tree.map(lambda m, w: jnp.where(m, w, 0), masks, params)
    assert norms.l2_norm(params, masks=masks) == norms.l2_norm(live)


def test_margins_by_hand():
    logits = np.array([[3.0, 1, 2], [0, 5, 1], [1, 2, 0]])
    np.testing.assert_array_equal(norms.margins(logits, [0, 1, 0]), [1, 4, -1])
    many = np.linspace(0.5, 10.5, 101)  # margins: their 10th percentile is 1.5
    pairs = np.stack([many, np.zeros(101)], 1)
    assert norms.inverse_margin(pairs, np.zeros(101, int)) == pytest.approx(1 / 1.5**2)
    assert norms.inverse_margin(-pairs, np.zeros(101, int)) == np.inf
    with pytest.raises(ValueError, match="3 labels"):
        norms.margins(logits[:2], [0, 1, 0])


def falls(params, _):
    """Accuracy falls by one for every unit of length that the weight moves."""
    return {"accuracy": 1 - jnp.abs(params["w"] - 2.0).mean()}


def noise(draws, key):
    """The draws that the search sees."""
    from prunejax.curvature import vectors

    own = vectors.named_key(key, "pac_bayes")
    like = {"w": jnp.full((4,), 2.0)}
    return np.stack(
        [
            np.asarray(vectors.sample(own, i, like, "gaussian", jnp.float32)["w"])
            for i in range(draws)
        ]
    )


def test_sigma_is_a_standard_deviation():
    params, key, batch = {"w": jnp.full((4,), 2.0)}, jax.random.key(1), jnp.zeros((3, 1))
    found = pac_bayes_flatness(falls, params, batch, key=key)
    exact = 0.1 / np.abs(noise(10, key)).mean()  # drop = sigma * mean |u|
    assert found.sigma == pytest.approx(exact, abs=2 / 2**15)
    assert found.value == pytest.approx(1 / found.sigma**2)
    assert found.drop <= 0.1
    slip = 1 / exact  # sigma^2 passed as the standard deviation: 1/sigma^2 comes out as 1/exact
    assert abs(found.value - slip) > 0.5 * found.value
    aware = pac_bayes_flatness(falls, params, batch, key=key, magnitude_epsilon=1e-3)
    inside = np.sqrt((exact**2 - 1e-6) / 4)  # sqrt(4 sigma^2 + epsilon^2) = exact
    assert aware.sigma == pytest.approx(inside, abs=2 / 2**15)
    assert (found.accuracy, found.examples, found.live_dim) == (1, 3, 4)


def test_noise_stays_on_live_weights_and_ends_are_told():
    params, key, batch = {"w": jnp.full((4,), 2.0)}, jax.random.key(1), jnp.zeros((3, 1))
    live = {"w": jnp.array([True, False, False, False])}
    one = pac_bayes_flatness(falls, params, batch, key=key, masks=live)
    assert one.sigma == pytest.approx(0.4 / np.abs(noise(10, key)[:, 0]).mean(), abs=2 / 2**15)
    all_borne = pac_bayes_flatness(
        lambda p, _: {"accuracy": 1 + 0 * p["w"].sum()}, params, batch, key=key
    )
    assert all_borne.saturated
    assert all_borne.sigma == 2
    with pytest.raises(ValueError, match="'accuracy'"):
        pac_bayes_flatness(lambda p, _: p["w"].sum(), params, batch, key=key)
