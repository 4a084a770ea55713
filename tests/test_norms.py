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
from prunejax.models.vit import ViT
from prunejax.models.wide_resnet import WideResNet
from prunejax.ops.layers import BatchNorm


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
    r = np.random.default_rng(seed)

    def draw(path, x):
        last = path.rpartition("/")[2]
        if last == "kernel":
            return jax.device_put(
                np.asarray((0.3 + x.shape[-2] ** -0.5) * r.normal(size=x.shape), x.dtype)
            )
        if last in ("bias", "mean"):
            return jax.device_put(np.asarray(0.3 * r.normal(size=x.shape), x.dtype))
        return jax.device_put(np.asarray(r.uniform(0.5, 2, size=x.shape), x.dtype))  # scale, var

    variables = trees.map_with_path(draw, models.shapes(module, shape))
    return variables, jax.device_put(np.float32(r.normal(size=(5, *shape))))


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


def wide(stem=4, seed=0, dtype=jnp.float32):
    """A wide ResNet in which a shortcut reads the stem as it is, or (stem 3) no shortcut does."""
    module = WideResNet(num_classes=3, stages=(4, 6), blocks=(2, 1), stem=stem, dtype=dtype)
    variables, x = randomized(module, (8, 8, 2), seed)
    opened = {k: jax.tree.map(lambda v: jax.device_put(np.ones_like(v)), v)
              for k, v in variables.items()}  # fmt: skip
    variables = opened | {k: dict(variables[k]) for k in ("params", "batch_stats")}
    scale = np.asarray(variables["params"]["last_bn"]["scale"])
    negative = np.resize(np.float32([-1, 1]), scale.size)
    variables["params"]["last_bn"]["scale"] = jnp.asarray(scale * negative)
    return module, variables, x, folding.layers(module, variables, (8, 8, 2))


def test_a_batchnorm_that_reads_more_than_one_layer_is_a_layer_itself():
    names = ["stage1_block1_bn1", "stage1_block2_bn1", "stage2_block1_bn1", "last_bn"]
    for stem in (4, 3):
        module, variables, x, layers = wide(stem)
        alone = [layer.name for layer in layers if layer.diagonal]
        assert alone == names[stem == 3 :]
        assert len(layers) - len(alone) == 1 + 2 * 3 + 1 + (1 if stem == 4 else 2)
        folded = folding.fold(variables, layers)
        np.testing.assert_allclose(
            compiled(module)(folded, x), compiled(module)(variables, x), rtol=1e-3, atol=1e-4
        )
        for layer in layers:
            if layer.norm:
                stats = folded["batch_stats"][layer.norm]
                assert not np.any(stats["mean"])
                np.testing.assert_allclose(stats["var"], 1 - 1e-5)
        live = folding.weights(folded["params"], layers)
        assert bool(live["last_bn"]["scale"])
        assert not bool(live["stage1_block1_bn2"]["scale"])


def paths_of_wide(variables, shape):
    """Sum over paths of the product of squares, in NumPy, from what was trained."""
    p, s = (jax.tree.map(np.float64, dict(variables[k])) for k in ("params", "batch_stats"))

    def conv(x, name, stride=1):
        kernel = p[name]["kernel"] ** 2
        pad = kernel.shape[0] // 2
        x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (0, 1))
        return np.einsum("hwcij,ijco->hwo", windows[::stride, ::stride], kernel)

    def norm(x, name):
        gain = p[name]["scale"] / np.sqrt(s[name]["var"] + 1e-5)
        return gain**2 * x + (p[name]["bias"] - gain * s[name]["mean"]) ** 2

    x = conv(np.ones(shape), "stem_conv")
    for block in ("stage1_block1", "stage1_block2", "stage2_block1"):
        stride = 2 if block.startswith("stage2") else 1
        y = norm(x, f"{block}_bn1")
        short = f"{block}_shortcut_conv"
        beside = conv(y, short, stride) if short in p else x
        y = norm(conv(y, f"{block}_conv1", stride), f"{block}_bn2")
        x = conv(y, f"{block}_conv2") + beside
    x = norm(x, "last_bn").mean((0, 1))
    return x @ p["classifier"]["kernel"] ** 2 + p["classifier"]["bias"] ** 2


@pytest.mark.parametrize(("stem", "dtype"), [(4, jnp.float32), (3, jnp.float32), (4, jnp.bfloat16)])
def test_paths_of_a_wide_resnet(stem, dtype):
    """Exact in float64 but for the sum itself, whatever type the network computes in."""
    module, variables, x, _ = wide(stem, dtype=dtype)
    # Accuracies under noise, of classes alone, take four fifths of the time and are not asked for.
    images = [(x, np.arange(5) % 3 if dtype == jnp.bfloat16 else np.zeros((5, 3), np.float32))]
    options = {"key": rng.at(0, "probe"), "draws": 2, "steps": 1}
    found = rivals.of_linen(module, variables, variables, images, **options)
    expected = np.sqrt(paths_of_wide(variables, (8, 8, 2)).sum())
    assert found["path_norm"] == pytest.approx(expected, rel=1e-4)
    assert found["kernel_distance_to_init"] == found["spectral_distance"] == 0


def test_the_gains_of_a_batchnorm_by_itself_are_a_kernel():
    _, variables, _, layers = wide()
    # a stream that is 3 times as large, which the BatchNorms that read it make up for
    other = jax.tree.map(lambda a: a, dict(variables))
    for layer in layers:
        if layer.name in ("stem_conv", "stage1_block1_conv2", "stage1_block2_conv2"):
            other["params"][layer.name] = {"kernel": 3 * variables["params"][layer.name]["kernel"]}
        if layer.diagonal and layer.name != "last_bn":
            was = variables["batch_stats"][layer.name]
            other["batch_stats"][layer.name] = {
                "mean": 3 * was["mean"], "var": 9 * (was["var"] + 1e-5) - 1e-5
            }  # fmt: skip
    folded = [folding.fold(v, layers)["params"] for v in (variables, other)]
    logs = [norms.log_spectral_product(f, layers) for f in folded]
    assert logs[0] == pytest.approx(logs[1], abs=1e-3)  # as often up as down
    gains = {x.name: np.asarray(trees.get(folded[0], x.kernel)) for x in layers if x.diagonal}
    s = variables["batch_stats"]["last_bn"]
    expected = variables["params"]["last_bn"]["scale"] / np.sqrt(s["var"] + 1e-5)
    np.testing.assert_allclose(gains["last_bn"], expected, rtol=1e-5)
    assert norms.spectral_norm(gains["last_bn"]) == np.linalg.norm(np.diag(gains["last_bn"]), 2)
    kernels = [np.asarray(trees.get(folded[0], x.kernel), np.float64) for x in layers]
    l2 = rivals.of_weights(folded[0], layers)["l2_norm"]
    assert l2 == pytest.approx(np.sqrt(sum((k**2).sum() for k in kernels)))
    tops = [norms.spectral_norm(k, x.map, x.strides) for k, x in zip(kernels, layers, strict=True)]
    assert logs[0] == pytest.approx(np.log(tops).sum())


class Twice(nn.Module):
    """Two BatchNorms of one output, one without a scale."""

    scale: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, name="first")(x)
        a = nn.BatchNorm(use_running_average=True, name="a")(x)
        b = nn.BatchNorm(use_running_average=True, use_scale=self.scale, name="b")(x)
        return nn.Dense(2, name="last")(nn.relu(a) + nn.relu(b))


def test_an_output_that_two_read_is_folded_into_none():
    module = Twice(True)
    variables, x = randomized_of(module, (4,))
    layers = folding.layers(module, variables, (4,))
    assert [(x.name, x.norm) for x in layers] == [
        *(("first", ""), ("a", "a"), ("b", "b"), ("last", "")),
    ]
    folded = folding.fold(variables, layers)
    np.testing.assert_allclose(module.apply(folded, x), module.apply(variables, x), rtol=1e-4)
    bare = Twice(False)
    with pytest.raises(ValueError, match="'b' reads no output of one layer alone and has no scale"):
        folding.layers(bare, randomized_of(bare, (4,))[0], (4,))


def randomized_of(module, shape):
    """As `randomized`, of a module that is not of the package."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *shape))))
    r = np.random.default_rng(2)
    draw = lambda s: jax.device_put(np.asarray(r.uniform(0.5, 2, s.shape), s.dtype))  # noqa: E731
    return jax.tree.map(draw, shapes), draw(jax.ShapeDtypeStruct((5, *shape), jnp.float32))


class Extended(nn.BatchNorm):
    """Calls the class that it extends, which Flax tells as a call of its own."""

    def __call__(self, x):
        return super().__call__(x)


class Normed(nn.Module):
    kind: type

    @nn.compact
    def __call__(self, x):
        return self.kind(use_running_average=True, name="norm")(nn.Dense(3, name="first")(x))


@pytest.mark.parametrize("kind", [nn.BatchNorm, BatchNorm, Extended])
def test_a_batchnorm_of_any_class_is_folded(kind):
    module = Normed(kind)
    variables, x = randomized_of(module, (4,))
    layers = folding.layers(module, variables, (4,))
    assert [(x.name, x.norm) for x in layers] == [("first", "norm")]
    folded = folding.fold(variables, layers)
    np.testing.assert_allclose(module.apply(folded, x), module.apply(variables, x), rtol=1e-4)


class Shared(nn.Module):
    """One BatchNorm behind two layers, which it is folded into neither of."""

    @nn.compact
    def __call__(self, x):
        norm = nn.BatchNorm(use_running_average=True, name="norm")
        a, b = (nn.relu(norm(nn.Dense(3, name=name)(x))) for name in ("first", "second"))
        return nn.Dense(2, name="last")(a + b)


def test_a_shared_batchnorm_is_folded_into_none():
    module = Shared()
    variables, x = randomized_of(module, (4,))
    layers = folding.layers(module, variables, (4,))
    assert {x.name: x.norm for x in layers} == {
        "first": "", "norm": "norm", "second": "", "last": ""
    }  # fmt: skip
    folded = folding.fold(variables, layers)
    np.testing.assert_allclose(module.apply(folded, x), module.apply(variables, x), rtol=1e-4)


def test_a_transformer_has_no_paths():
    module = ViT(num_classes=3, patch=4, depth=1, heads=2, head_units=4, mlp_units=8)
    variables, x = randomized(module, (8, 8, 2))
    assert not folding.has_paths(module, variables, (8, 8, 2))
    options = {"key": rng.at(0, "probe"), "draws": 2, "steps": 1}
    images = [(x, jnp.arange(5) % 3)]
    found = rivals.of_linen(module, variables, variables, images, **options)
    assert np.isnan(found["path_norm"])
    assert np.isnan(found["path_norm_over_margin"])
    assert np.isfinite(found["l2_norm"])


class Gated(nn.Module):
    """Paths through weights and a loop, unless something of the input is multiplied by another."""

    kind: str

    @nn.compact
    def __call__(self, x):
        y = nn.remat(nn.Dense)(4, name="a")(x) * self.param("gain", nn.initializers.ones, (1, 4))
        if self.kind == "gate":
            y = y * nn.relu(nn.Dense(4, name="b")(x))
        if self.kind == "attention":
            y = nn.relu(y @ y.T) @ y
        if self.kind == "mean":
            y = y / x.sum(-1, keepdims=True)
        twice = self.kind == "loop"
        step = lambda layer, y, _: (nn.relu(layer(y)) * (y if twice else 1.0), None)  # noqa: E731
        dense = nn.Dense(4, name="c")
        over = {"variable_broadcast": "params", "split_rngs": {"params": False}, "length": 2}
        return nn.scan(step, **over)(dense, y, None)[0]


@pytest.mark.parametrize("kind", ["", "gate", "attention", "mean", "loop"])
def test_products_of_what_depends_on_the_input_are_no_paths(kind):
    """A gate's path norm was a number. Along paths outputs are linear between kinks: f'' is 0."""
    module, x = Gated(kind), jnp.ones((1, 3))
    variables = module.init(jax.random.key(0), x)
    assert folding.has_paths(module, variables, (3,)) == (not kind)
    along = lambda t: module.apply(variables, x + t * jnp.arange(1.0, 4.0)[None]).sum()  # noqa: E731
    assert (jax.jit(jax.grad(jax.grad(along)))(0.1) == 0) == (not kind)


def test_of_an_example_with_a_nan_logit_the_margin_is_below_all_others():
    logits = np.array([[2.0, 0.5, 1.0], [np.nan, 3.0, 0.0], [0.0, np.inf, 1.0], [1.0, np.nan, 0.0]])
    found = norms.margins(logits, np.array([0, 1, 1, 2]))
    np.testing.assert_array_equal(found, [1.0, -np.inf, np.inf, -np.inf])
    many = np.tile([[2.0, 0.5, 1.0]], (100, 1))
    labels = np.zeros(100, int)
    many[7, 2] = np.nan
    assert norms.inverse_margin(many, labels) == 1.0  # one of 100 is not the tenth percent
    many[:11, 2] = np.nan
    assert norms.inverse_margin(many, labels) == np.inf
    for label in (-1, 3):  # -1 was the last class
        with pytest.raises(ValueError, match="classes are 0 to 2"):
            norms.margins(logits, np.array([0, label, 1, 2]))


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
    variables = jax.tree.map(
        lambda s: jax.device_put(np.asarray(r.uniform(0.5, 2, s.shape), s.dtype)), variables
    )
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
    # One of ten examples lost is a drop of 0.1, which is borne, and of 1 - float32(0.9) > 0.1.
    tenth = pac_bayes_flatness(
        lambda p, _: {"accuracy": jnp.where((p["w"] == 2).all(), 1.0, 0.9)}, params, batch, key=key
    )
    assert tenth.saturated
