"""Models: sizes, groups, exact zeros of pruned units, and independent forward computations."""

from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from prunejax import models, rng, trees
from prunejax.models.convnets import ConvNet
from prunejax.models.mlp import MLP
from prunejax.models.nin import NiN
from prunejax.models.resnet import Bottleneck, ResNet
from prunejax.models.vgg import VGG
from prunejax.models.vit import ViT, attended
from prunejax.models.wide_resnet import WideResNet

INPUTS = {
    "mlp": (8, 8, 1),
    "mlp64_64": (14, 14, 1),
    "mlp128_64": (8, 8, 1),
    "two_patch": (8, 8, 1),
    "lenet300": (28, 28, 1),
    "lenet5": (28, 28, 1),
    "conv4": (32, 32, 3),
    "nin": (32, 32, 3),
    "vgg4_bn": (28, 28, 1),
    "vgg11_bn": (32, 32, 3),
    "vgg16_bn": (32, 32, 3),
    "resnet18": (32, 32, 3),
    "resnet20": (32, 32, 3),
    "resnet56": (32, 32, 3),
    "wrn22_2": (32, 32, 3),
    "resnet50": (224, 224, 3),
    "vit_s16": (224, 224, 3),
}


def bottleneck_parameters(classes):
    """ResNet-50, summed block by block: a convolution has k k in out, BatchNorm twice its units."""
    total, width = 7 * 7 * 3 * 64 + 2 * 64, 64
    for channels, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        wide = 4 * channels
        for block in range(blocks):
            total += width * channels + 9 * channels**2 + channels * wide
            total += 2 * (channels + channels + wide)
            total += (width * wide + 2 * wide) * (block == 0)
            width = wide
    return total + width * classes + classes


def wide_parameters(classes):
    """WRN-22-2: a BatchNorm before every convolution but the stem's, 1x1 where a stage begins."""
    total, width = 9 * 3 * 16, 16
    for channels in (32, 64, 128):
        total += width * channels
        for _ in range(3):
            total += 2 * width + 9 * width * channels + 2 * channels + 9 * channels**2
            width = channels
    return total + 2 * width + width * classes + classes


def vit_parameters(classes, side=224, units=384, hidden=1536, depth=12, patch=16):
    tokens = 1 + (side // patch) ** 2
    block = 2 * 2 * units + units * 3 * units + 3 * units + units**2 + units
    block += units * hidden + hidden + hidden * units + units
    embedding = patch**2 * 3 * units + units + units + tokens * units
    return embedding + depth * block + 2 * units + units * classes + classes


# name -> parameters with 10 and with 100 classes. ResNets and VGG: the paper's; others by hand:
# mlp 64*128 + 2*128*128 + 3*2*128 + 128*10 + 10, lenet300 784*300 + 300 + 300*100 + 100 + 1010, ...
PARAMETERS = {
    "mlp": (43_018, 43_018 + 90 * 129),
    "mlp64_64": (17_418, 17_418 + 90 * 65),
    "mlp128_64": (17_226, 17_226 + 90 * 65),
    "two_patch": (64 * 10 * 10, 64 * 10 * 100),
    "lenet300": (266_610, 266_610 + 90 * 101),
    "lenet5": (61_706, 61_706 + 90 * 85),
    "conv4": (2_425_930, 2_425_930 + 90 * 257),
    # two blocks of 200 channels: 27, 200, 200, 1800, 200, 200 inputs, a bias, BatchNorm's two
    "nin": (200 * (2627 + 6 * 3) + 2010, 200 * (2627 + 6 * 3) + 20_100),
    "vgg4_bn": (169_242, 169_242 + 90 * 129),
    "vgg11_bn": (9_231_114, 9_231_114 + 90 * 513),
    "vgg16_bn": (14_728_266, 14_728_266 + 90 * 513),
    "resnet18": (11_173_962, 11_173_962 + 90 * 513),
    "resnet20": (269_722, 269_722 + 90 * 65),
    "resnet56": (853_018, 853_018 + 90 * 65),
    "wrn22_2": (wide_parameters(10), wide_parameters(100)),
    "resnet50": (bottleneck_parameters(10), bottleneck_parameters(100)),
    "vit_s16": (vit_parameters(10), vit_parameters(100)),
}
GROUPS = {
    "mlp": 3,
    "mlp64_64": 2,
    "mlp128_64": 2,
    "two_patch": 1,
    "lenet300": 2,
    "lenet5": 4,
    "conv4": 6,
    "nin": 6,
    "vgg4_bn": 4,
    "vgg11_bn": 8,
    "vgg16_bn": 13,
    "resnet18": 16,
    "resnet20": 18,
    "resnet56": 54,
    "wrn22_2": 18,
    "resnet50": 48,
    "vit_s16": 12,
}
NARROW = {"vgg11_bn": 1 / 16, "vgg16_bn": 1 / 16, "resnet18": 1 / 16, "conv4": 1 / 8}


@cache
def shapes(module, input_shape):
    return models.shapes(module, input_shape)


# The same classes with fewer layers: what they do is the same, and they compile quickly.
SMALL = {
    "mlp": MLP(hidden=(8, 6)),
    "convnet": ConvNet(features=(4, "M", 6), hidden=(8,)),
    "vgg": VGG(features=(4, "M", 6, "M", 8)),
    "nin": NiN(features=(4, 5, 6, 5, 4, 6)),
    "resnet option A": ResNet(stages=(4, 6, 9), blocks=(2, 1, 1), projection=False, kaiming=True),
    "resnet option B": ResNet(stages=(4, 6), blocks=(1, 2)),
    "bottleneck": Bottleneck(stages=(3, 4), blocks=(1, 2)),
    "vit": ViT(depth=2, heads=2, head_units=3, mlp_units=8, patch=4),
    "wide": WideResNet(stages=(4, 6), blocks=(2, 1), stem=3),
}


@cache
def applied(module):
    """Compiled once for equal modules and shapes."""
    return jax.jit(module.apply)


@cache
def narrow(name, size=None):
    """A thin variant with random BatchNorm parameters and statistics, and a batch for it."""
    module = SMALL.get(name) or models.create(name, width=NARROW.get(name, 0.5))
    shape = (size, size, 3) if size else INPUTS.get(name, (8, 8, 3))
    generator = np.random.default_rng(0)

    def fill(path, leaf):
        if leaf.dtype == bool:
            return jax.device_put(np.ones(leaf.shape, bool))
        values = generator.normal(size=leaf.shape)
        if path.endswith("kernel"):
            values *= np.sqrt(2 / max(1, np.prod(leaf.shape[:-1])))
        if path.endswith("var"):
            values = 0.5 + np.abs(values)
        return jax.device_put(np.asarray(values, leaf.dtype))

    variables = trees.map_with_path(fill, shapes(module, shape))
    return module, variables, jnp.asarray(generator.normal(size=(4, *shape)), "float32")


@pytest.mark.parametrize("name", models.MODELS)
def test_parameter_counts(name):
    for classes, count in zip((10, 100), PARAMETERS[name], strict=True):
        tree = shapes(models.create(name, num_classes=classes), INPUTS[name])
        assert sum(leaf.size for leaf in jax.tree.leaves(tree["params"])) == count
        assert set(tree) <= {"params", "batch_stats", "gates"}


@pytest.mark.parametrize(
    ("name", "count", "by_hand"),
    [
        ("resnet50", 25_557_032, bottleneck_parameters),  # torchvision's number
        ("vit_s16", 22_050_664, vit_parameters),  # timm's
    ],
)
def test_parameter_counts_on_imagenet(name, count, by_hand):
    tree = shapes(models.create(name, num_classes=1000), (224, 224, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(tree["params"])) == count == by_hand(1000)


@pytest.mark.parametrize("name", models.MODELS)
def test_groups_cover_what_is_prunable_and_resolve(name):
    module = models.create(name)
    tree = shapes(module, INPUTS[name])
    groups = models.groups(module, tree)
    assert len(groups) == GROUPS[name]
    assert len({group.name for group in groups}) == len(groups)
    params, stats = tree["params"], tree.get("batch_stats", {})
    for group in groups:
        assert trees.get(params, group.kernel).shape[-1] == group.units
        for path in (*group.norm, *group.bias):
            assert trees.get(params, path).shape == (group.units,)
        for path in group.stats:
            assert trees.get(stats, path).shape == (group.units,)
        # Else the unit could not be made exactly zero; a neuron without a bias is, by ReLU(0) = 0.
        assert group.norm or group.bias or name == "two_patch"
        last = "_conv3" if name == "resnet50" else "_conv2"  # of a block
        assert (group.gate is not None) == group.name.endswith(last)
        if group.gate:
            assert tree["gates"][group.gate].shape == (group.units,)
            assert tree["gates"][group.gate].dtype == bool
    kernels = {path for path in trees.paths(params) if path.endswith("kernel")}
    left = kernels - {group.kernel for group in groups}
    others = ("stem", "shortcut", "classifier/", "patches/", "_attention_", "_dense2")
    assert all(any(part in path for part in others) for path in left), left
    assert set(tree.get("gates", {})) == {group.gate for group in groups if group.gate}


def test_group_order_is_that_of_the_forward_pass():
    module, variables, _ = narrow("resnet18")
    names = [group.name for group in models.groups(module, variables)]
    assert names[:4] == [f"stage1_block{b}_conv{c}" for b in (1, 2) for c in (1, 2)]
    assert names[-4:] == [f"stage4_block{b}_conv{c}" for b in (1, 2) for c in (1, 2)]
    module, variables, _ = narrow("vgg11_bn")
    # 512 / 16 filters
    assert models.groups(module, variables)[4] == models.Group(
        "conv5",
        "conv5/kernel",
        ("bn5/scale", "bn5/bias"),
        ("bn5/mean", "bn5/var"),
        None,
        32,
        ("conv5/bias",),
        (("conv6/kernel", -2),),
    )


# (ResNet-56 is ResNet-20 with more of the same blocks.)
@pytest.mark.parametrize("name", sorted(set(models.MODELS) - {"resnet56"}))
@pytest.mark.parametrize(("size", "channels"), [(8, 3), (28, 1)])  # neither knows of the other
def test_other_image_sizes(name, size, channels):
    if name == "vit_s16":
        with pytest.raises(ValueError, match=rf"images of {size}x{size} pixels .* multiple of 16"):
            shapes(models.create(name), (size, size, 3))
        size *= 4
    module = models.create(name, num_classes=7, width=0.25)
    tree = shapes(module, (size, size, channels))
    x = jax.ShapeDtypeStruct((5, size, size, channels), "float32")
    out = jax.eval_shape(module.apply, tree, x)
    assert out.shape == (5, 7)
    assert out.dtype == jnp.float32


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_computes_close_to_float32_with_float32_variables(name):
    module, variables, x = narrow(name)
    half = module.clone(dtype=jnp.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes(half, x.shape[1:]))} <= {
        "float32",
        "bool",
    }
    want = np.asarray(applied(module)(variables, x))
    got = jax.jit(half.apply)(variables, x)
    assert got.dtype == jnp.float32
    assert np.abs(got - want).max() / np.abs(want).max() < 0.1
    assert np.any(got != want)


@pytest.mark.parametrize("name", ["resnet option A", "vgg"])
def test_plain_lax_convolutions_give_the_same_outputs(name):
    module, variables, x = narrow(name)
    plain = module.clone(conv_method="lax")
    want = np.asarray(jax.jit(plain.apply)(variables, x))
    scale = np.abs(want).max()
    np.testing.assert_allclose(applied(module)(variables, x) / scale, want / scale, atol=1e-5)


def without(values, units):
    """A copy whose last axis is 0 at the units."""
    found = np.array(values)
    found[..., units] = 0
    return jax.device_put(found)


def prune(variables, groups, units):
    """Masks the given units of each group by hand: kernel, BatchNorm or bias, gate."""
    params, gates = variables["params"], dict(variables.get("gates", {}))
    values = {}
    for group in groups:
        for path in (group.kernel, *(group.norm or group.bias)):
            values[path] = without(trees.get(params, path), units)
        if group.gate:
            gates[group.gate] = without(gates[group.gate], units)
    return {**variables, "params": trees.replace(params, values), "gates": gates}


@pytest.mark.parametrize("name", [*SMALL, "lenet5"])
@pytest.mark.parametrize("train", [False, True])
def test_pruned_units_are_exactly_zero_and_only_those(name, train):
    module, variables, x = narrow(name, 8)
    groups = models.groups(module, variables)
    pruned = prune(variables, groups[1::2], [0, 1])
    updates = jax.jit(
        lambda v, x: module.apply(v, x, train, mutable=["activations", "batch_stats"])[1]
    )
    dense, thin = updates(variables, x)["activations"], updates(pruned, x)["activations"]
    assert set(dense) == set(thin) == {group.name for group in groups}
    for i, group in enumerate(groups):
        assert dense[group.name].shape == (group.units,)
        assert dense[group.name].dtype == jnp.float32
        assert np.all(np.asarray(dense[group.name]) > 0)
        dead = [0, 1] if i % 2 else []
        np.testing.assert_array_equal(np.flatnonzero(np.asarray(thin[group.name]) == 0), dead)


def test_without_the_gate_the_shortcut_survives():
    """What the gate is for: masking the parameters alone leaves the residual stream."""
    module, variables, x = narrow("resnet option A")
    group = models.groups(module, variables)[1]
    pruned = prune(variables, [group], [0])
    ungated = {**pruned, "gates": variables["gates"]}

    @jax.jit
    def activation(v):
        return module.apply(v, x, mutable=["activations"])[1]["activations"][group.name][0]

    assert float(activation(pruned)) == 0
    assert float(activation(ungated)) > 0


def test_gradients_of_pruned_units_are_zero():
    module, variables, x = narrow("resnet option A")
    groups = models.groups(module, variables)
    pruned = prune(variables, groups[:2], [1])

    def loss(params):
        return jnp.sum(module.apply({**pruned, "params": params}, x) ** 2)

    gradient = jax.jit(jax.grad(loss))(pruned["params"])
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))
    conv2 = trees.get(gradient, groups[1].kernel)
    assert not np.any(np.asarray(conv2[..., 1]))
    assert np.any(np.asarray(conv2[..., 0]))


def test_activations_are_recorded_only_on_request_and_overwritten():
    module, variables, x = narrow("mlp", 8)
    assert isinstance(module.apply(variables, x), jax.Array)
    _, first = module.apply(variables, x, mutable=["activations"])
    _, again = module.apply({**variables, **first}, 2 * x, mutable=["activations"])
    for values in again["activations"].values():
        assert values.ndim == 1
    assert "activations" not in shapes(module, (8, 8, 3))


# --- independent computations in numpy ---------------------------------------------------------


def conv_loops(x, w, stride=1):
    """3x3 (1x1) convolution with one (no) zero around, tap by tap; PyTorch's output size."""
    pad = w.shape[0] // 2
    out = (x.shape[1] + 2 * pad - w.shape[0]) // stride + 1
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    y = np.zeros((x.shape[0], out, out, w.shape[3]))
    for r in range(out):
        for c in range(out):
            window = x[:, r * stride :, c * stride :][:, : w.shape[0], : w.shape[1]]
            y[:, r, c] = np.tensordot(window, w, ((1, 2, 3), (0, 1, 2)))
    return y


def norm_eval(x, params, stats):
    z = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    return z * params["scale"] + params["bias"]


def norm_train(x, params, stats):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]


def resnet_by_hand(variables, x, blocks, projection, norm, bottleneck):
    p = jax.tree.map(lambda a: np.asarray(a, "float64"), variables["params"])
    s = jax.tree.map(lambda a: np.asarray(a, "float64"), variables["batch_stats"])

    def conv_norm(x, name, stride=1):
        y = conv_loops(x, p[name.format("conv")]["kernel"], stride)
        return norm(y, p[name.format("bn")], s[name.format("bn")])

    x = np.asarray(x, "float64")
    x = np.maximum(conv_norm(x, "stem_{}", 2 if bottleneck else 1), 0)
    if bottleneck:
        rows = range(0, x.shape[1], 2)
        z = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = np.stack(
            [np.stack([z[:, r : r + 3, c : c + 3].max((1, 2)) for c in rows], 1) for r in rows], 1
        )
    for stage, count in enumerate(blocks, 1):
        for block in range(1, count + 1):
            name = f"stage{stage}_block{block}"
            stride = 2 if stage > 1 and block == 1 else 1
            if bottleneck:
                y = np.maximum(conv_norm(x, name + "_{}1"), 0)
                y = np.maximum(conv_norm(y, name + "_{}2", stride), 0)
                y = conv_norm(y, name + "_{}3")
            else:
                y = np.maximum(conv_norm(x, name + "_{}1", stride), 0)
                y = conv_norm(y, name + "_{}2")
            if projection and x.shape != y.shape:
                x = conv_norm(x, name + "_shortcut_{}", stride)
            elif stride == 2:
                extra = y.shape[-1] - x.shape[-1]
                x = x[:, ::2, ::2]
                x = np.pad(x, ((0, 0),) * 3 + ((extra // 2, extra - extra // 2),))
            x = np.maximum(x + y, 0)
    features = x.mean((1, 2))
    return features @ p["classifier"]["kernel"] + p["classifier"]["bias"]


@pytest.mark.parametrize("name", ["resnet option A", "resnet option B", "bottleneck"])
@pytest.mark.parametrize("train", [False, True])
def test_resnet_equals_a_numpy_computation(name, train):
    module, variables, x = narrow(name, 16 if name == "bottleneck" else 8)
    norm = norm_train if train else norm_eval
    kind = isinstance(module, Bottleneck)
    want = resnet_by_hand(variables, x, module.blocks, module.projection, norm, kind)
    got = jax.jit(lambda v, x: module.apply(v, x, train, mutable=["batch_stats"])[0])(variables, x)
    scale = np.abs(want).max()
    np.testing.assert_allclose(np.asarray(got) / scale, want / scale, atol=2e-4)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_nin_equals_a_numpy_computation(batch_norm, train):
    module, variables, x = narrow("nin", 8)
    module = module.clone(batch_norm=batch_norm)
    p, s = (
        jax.tree.map(lambda a: np.asarray(a, "float64"), variables[k])
        for k in ("params", "batch_stats")
    )
    kind = norm_train if train else norm_eval
    want = np.asarray(x, "float64")
    for i, stride in enumerate((2, 1, 1, 2, 1, 1), 1):
        assert p[f"conv{i}"]["kernel"].shape[0] == (3 if stride == 2 else 1)
        want = conv_loops(want, p[f"conv{i}"]["kernel"], stride) + p[f"conv{i}"]["bias"]
        if batch_norm:
            want = kind(want, p[f"bn{i}"], s[f"bn{i}"])
        want = np.maximum(want, 0)
    assert want.shape == (4, 2, 2, 6)
    want = want.mean((1, 2)) @ p["classifier"]["kernel"] + p["classifier"]["bias"]
    got = jax.jit(lambda v, x: module.apply(v, x, train, mutable=["batch_stats"])[0])(variables, x)
    scale = np.abs(want).max()
    np.testing.assert_allclose(np.asarray(got) / scale, want / scale, atol=2e-4)


@pytest.mark.parametrize("train", [False, True])
def test_wide_resnet_equals_a_numpy_computation(train):
    module, variables, x = narrow("wide", 8)
    p, s = (
        jax.tree.map(lambda a: np.asarray(a, "float64"), variables[k])
        for k in ("params", "batch_stats")
    )
    kind = norm_train if train else norm_eval

    def read(x, name):
        return np.maximum(kind(x, p[name], s[name]), 0)

    want = conv_loops(np.asarray(x, "float64"), p["stem_conv"]["kernel"])
    for name, stride in (("stage1_block1", 1), ("stage1_block2", 1), ("stage2_block1", 2)):
        y = read(want, f"{name}_bn1")
        if f"{name}_shortcut_conv" in p:
            want = conv_loops(y, p[f"{name}_shortcut_conv"]["kernel"], stride)
        y = read(conv_loops(y, p[f"{name}_conv1"]["kernel"], stride), f"{name}_bn2")
        want = want + conv_loops(y, p[f"{name}_conv2"]["kernel"])
    want = read(want, "last_bn").mean((1, 2)) @ p["classifier"]["kernel"] + p["classifier"]["bias"]
    got = jax.jit(lambda v, x: module.apply(v, x, train, mutable=["batch_stats"])[0])(variables, x)
    scale = np.abs(want).max()
    np.testing.assert_allclose(np.asarray(got) / scale, want / scale, atol=2e-4)


def test_vit_equals_a_numpy_computation():
    module, variables, x = narrow("vit")
    p = jax.tree.map(lambda a: np.asarray(a, "float64"), variables["params"])

    def dense(x, name):
        return x @ p[name]["kernel"] + p[name]["bias"]

    def norm(x, name):
        z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return z * p[name]["scale"] + p[name]["bias"]

    kernel, n = p["patches"]["kernel"].reshape(-1, 6), len(x)
    patches = np.asarray(x, "float64").reshape(n, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5)
    y = patches.reshape(n, 4, -1) @ kernel + p["patches"]["bias"]
    y = np.concatenate([np.tile(p["tokens"]["class"], (n, 1, 1)), y], 1) + p["tokens"]["positions"]
    for block in ("block1", "block2"):
        q, k, v = np.split(dense(norm(y, f"{block}_norm1"), f"{block}_attention_in"), 3, axis=-1)
        heads = []
        for head in (slice(0, 3), slice(3, 6)):
            weights = np.exp(q[..., head] @ k[..., head].swapaxes(1, 2) / np.sqrt(3))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[..., head])
        y = y + dense(np.concatenate(heads, -1), f"{block}_attention_out")
        z = dense(norm(y, f"{block}_norm2"), f"{block}_dense1")
        y = y + dense(z * stats.norm.cdf(z), f"{block}_dense2")
    want = dense(norm(y, "norm")[:, 0], "classifier")
    got = jax.jit(module.apply)(variables, x)
    np.testing.assert_allclose(np.asarray(got), want, atol=2e-4 * np.abs(want).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 5e-2)])
def test_attention_is_that_of_jax_with_two_derivatives(dtype, tolerance):
    q, k, v, w = (
        jnp.asarray(x, dtype) for x in np.random.default_rng(3).normal(size=(4, 2, 5, 3, 8))
    )

    def slopes(attention, *inputs):
        def loss(inputs):
            return jnp.sum(attention(*inputs).astype("float32") * w.astype("float32"))

        q, k, v = inputs
        return attention(*inputs), *jax.jvp(jax.grad(loss), (inputs,), ((k, v, q),))

    slopes = jax.jit(slopes, static_argnums=0)
    got, want = (slopes(f, q, k, v) for f in (attended, jax.nn.dot_product_attention))
    assert got[0].dtype == dtype
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        b = np.asarray(b, "float64")
        assert np.all(np.isfinite(b))
        np.testing.assert_allclose(np.asarray(a, "float64"), b, atol=tolerance * np.abs(b).max())
    # Scores in the thousands: exp takes no float32 above 88.
    far, theirs = (
        np.asarray(slopes(f, jnp.asarray(1000 * np.float32(q), dtype), k, v)[0], "float64")
        for f in (attended, jax.nn.dot_product_attention)
    )
    np.testing.assert_allclose(far, theirs, atol=1e-2)


def test_vgg_equals_a_numpy_computation():
    module, variables, x = narrow("vgg11_bn")
    p = jax.tree.map(lambda a: np.asarray(a, "float64"), variables["params"])
    s = jax.tree.map(lambda a: np.asarray(a, "float64"), variables["batch_stats"])
    y, count = np.asarray(x, "float64"), 0
    for entry in module.features:
        if entry == "M":
            n, h, w, c = y.shape
            y = y.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
            continue
        count += 1
        y = conv_loops(y, p[f"conv{count}"]["kernel"]) + p[f"conv{count}"]["bias"]
        y = np.maximum(norm_eval(y, p[f"bn{count}"], s[f"bn{count}"]), 0)
    assert y.shape[1:3] == (1, 1)
    want = y[:, 0, 0] @ p["classifier"]["kernel"] + p["classifier"]["bias"]
    got = jax.jit(module.apply)(variables, x)
    np.testing.assert_allclose(np.asarray(got), want, atol=2e-4 * np.abs(want).max())


def test_training_moves_the_running_statistics_by_a_tenth():
    module, variables, x = narrow("mlp")
    _, updates = module.apply(variables, x, train=True, mutable=["batch_stats"])
    before, after = variables["batch_stats"]["bn1"], updates["batch_stats"]["bn1"]
    y = np.asarray(x, "float64").reshape(len(x), -1) @ np.asarray(
        variables["params"]["dense1"]["kernel"], "float64"
    )
    np.testing.assert_allclose(after["mean"], 0.9 * before["mean"] + 0.1 * y.mean(0), rtol=1e-4)
    np.testing.assert_allclose(after["var"], 0.9 * before["var"] + 0.1 * y.var(0), rtol=1e-4)


# --- options ----------------------------------------------------------------------------------


class Told(models.Model):
    """Says when it is traced; `sizes` may be a list, which has no hash."""

    sizes: Any = (5,)

    @nn.compact
    def __call__(self, x, train=False):
        TRACED.append((self.width, self.sizes))
        return self.logits(nn.Dense(self.sizes[0], name="fc1")(x.reshape(len(x), -1)))


TRACED = []


def test_equal_models_are_traced_once_and_others_are_others():
    TRACED.clear()
    first, second = (models.init(Told(width=3.0), jax.random.key(i), (2, 2, 1)) for i in range(2))
    assert TRACED == [(3.0, (5,))]
    assert (first["params"]["fc1"]["kernel"] != second["params"]["fc1"]["kernel"]).all()
    for other in (Told(width=4.0), Told(width=3.0, sizes=(6,)), Told(sizes=[7])):
        found = models.init(other, jax.random.key(0), (2, 2, 1))
        assert TRACED[-1] == (other.width, tuple(other.sizes))
        assert found["params"]["fc1"]["kernel"].shape == (4, other.sizes[0])
    wider = models.init(Told(width=3.0), jax.random.key(0), (3, 2, 1))
    assert wider["params"]["fc1"]["kernel"].shape == (6, 5)


def test_init_is_a_function_of_the_key_and_may_be_vmapped():
    module = models.create("mlp", hidden=[16])
    keys = jnp.stack([rng.at(seed, "init") for seed in range(3)])
    several = jax.vmap(lambda key: models.init(module, key, (8, 8, 1)))(keys)
    one = models.init(module, keys[1], (8, 8, 1))
    np.testing.assert_allclose(  # two programs: the last bit is the compiler's
        several["params"]["dense1"]["kernel"][1], one["params"]["dense1"]["kernel"], rtol=3e-7
    )
    assert np.any(several["params"]["dense1"]["kernel"][0] != one["params"]["dense1"]["kernel"])


@pytest.mark.parametrize(
    ("name", "leaf", "variance"),
    [
        ("vgg11_bn", "conv3/kernel", 2 / (9 * 128)),  # fan-out
        ("resnet20", "stage2_block1_conv1/kernel", 2 / (9 * 8)),  # fan-in
        ("resnet18", "stage2_block1_conv1/kernel", 1 / (3 * 9 * 32)),
        ("conv4", "conv3/kernel", 2 / (9 * (32 + 64))),  # Glorot
    ],
)
def test_initial_scales(name, leaf, variance):
    module = models.create(name, width=0.5)

    @jax.jit  # one leaf only: XLA drops the others
    def initial(key):
        return trees.get(models.init(module, key, INPUTS[name])["params"], leaf)

    values = np.asarray(initial(rng.at(0, "init")))
    # 5 standard errors of the variance of a normal
    assert abs(values.var() / variance - 1) < 5 * np.sqrt(2 / values.size)
    assert abs(values.mean()) < 5 * np.sqrt(variance / values.size)


@pytest.mark.parametrize("name", SMALL)
def test_dropout_acts_in_training_only(name):
    module, variables, x = narrow(name)
    wet = module.clone(dropout=0.5)
    np.testing.assert_array_equal(jax.jit(wet.apply)(variables, x), applied(module)(variables, x))

    @jax.jit
    def train(seed):
        return wet.apply(
            variables, x, True, rngs={"dropout": rng.at(seed, "dropout")}, mutable=["batch_stats"]
        )[0]

    assert np.any(np.asarray(train(0)) != np.asarray(train(1)))
    np.testing.assert_array_equal(train(0), train(0))


def test_width_scales_every_hidden_layer():
    for name in ("mlp", "conv4", "vgg11_bn", "resnet20"):
        full, half = (models.create(name, width=width) for width in (1.0, 0.5))
        a, b = shapes(full, INPUTS[name]), shapes(half, INPUTS[name])
        for one, two in zip(models.groups(full, a), models.groups(half, b), strict=True):
            assert two.units == round(one.units / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="vgg11"), r"unknown model 'vgg11'.*Did you mean 'vgg11_bn'\?"),
        (dict(name="mlp", hiden=(3,)), r"no option 'hiden'.*Did you mean 'hidden'\?"),
        (dict(name="resnet20", blocks=(1, 1, 1)), "no option 'blocks'"),
        (dict(name="lenet300", hidden=(3,)), "no option 'hidden'"),
        (dict(name="mlp", hidden=(3, 0)), "hidden is .* positive integers"),
        (dict(name="mlp", hidden=128), "hidden is 128"),
        (dict(name="mlp", num_classes=0), "num_classes is 0"),
        (dict(name="mlp", num_classes=2.5), "num_classes is 2.5"),
        (dict(name="mlp", width=0), "width is 0"),
        (dict(name="mlp", dropout=1.0), r"dropout is 1.0; it must be in \[0, 1\)"),
        (dict(name="mlp", dtype="int8"), "dtype 'int8' is no floating-point type"),
        (dict(name="mlp", dtype="half-ish"), "dtype 'half-ish'"),
        (dict(name="mlp", conv_method="fast"), "conv_method 'fast'"),
    ],
)
def test_bad_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.create(**arguments)


def test_groups_of_a_foreign_module():
    import flax.linen as nn

    with pytest.raises(ValueError, match="Dense has no method `prunable`"):
        models.groups(nn.Dense(3), {"params": {}})
    module, _, _ = narrow("mlp")
    with pytest.raises(ValueError, match="no leaf 'dense1/kernel'"):
        models.groups(module, {"params": {"x": jnp.ones(3)}})
