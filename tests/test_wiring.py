"""Readers and live paths: against perturbation, gradients of positive networks, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import groups as groups_lib
from prunejax import masks as masks_lib
from prunejax import models, rng, trees, wiring
from prunejax.models.convnets import ConvNet
from prunejax.models.mlp import MLP
from prunejax.models.resnet import Bottleneck, ResNet
from prunejax.models.vgg import VGG
from prunejax.models.vit import ViT
from prunejax.models.wide_resnet import WideResNet
from prunejax.wiring import Link

# Small ones of each kind: (module, shape of an example). Maps are 2 wide or more before their last
# convolution, so that every tap of a kernel sees more than padding.
SMALL = {
    "mlp": (MLP(num_classes=3, hidden=(6, 5, 4)), (2, 2, 1)),
    "mlp_bias": (MLP(num_classes=3, hidden=(6, 5), batch_norm=False), (2, 2, 1)),
    "convnet": (ConvNet(num_classes=3, features=(4, "M", 5), hidden=(6,), kernel=3), (6, 6, 1)),
    "vgg": (VGG(num_classes=3, features=(4, "M", 5, 3)), (6, 6, 1)),
    "resnet_a": (
        ResNet(num_classes=3, stages=(4, 7), blocks=(2, 2), projection=False),
        (6, 6, 1),
    ),
    "resnet_crop": (
        ResNet(num_classes=3, stages=(5, 4), blocks=(1, 1), projection=False),
        (6, 6, 1),
    ),
    "resnet_b": (ResNet(num_classes=3, stages=(4, 6), blocks=(1, 1)), (6, 6, 1)),
    "bottleneck": (Bottleneck(num_classes=3, stages=(2,), blocks=(2,)), (16, 16, 1)),
    "wide": (WideResNet(num_classes=3, stages=(4, 6), blocks=(2, 1), stem=3), (6, 6, 1)),
    "vit": (ViT(num_classes=3, depth=2, heads=2, head_units=3, mlp_units=5, patch=2), (4, 4, 1)),
}


def drawn(name, seed=0):
    """Variables without a zero, of random sign; biases open the ReLUs."""
    module, shape = SMALL[name]
    variables = jax.eval_shape(lambda: models.init(module, rng.at(0, "init"), shape))
    r = np.random.default_rng(seed)

    def draw(path, p):
        if path.endswith("bias"):
            return np.asarray(r.uniform(3, 5, p.shape), p.dtype)
        fan_in = np.prod(p.shape[:-1]) if path.endswith("kernel") else 1
        sizes = r.uniform(0.3, 1, p.shape) / fan_in
        return np.asarray(sizes * r.choice([-1, 1], p.shape), p.dtype)

    params = trees.map_with_path(draw, variables["params"])
    stats = trees.map_with_path(
        lambda path, x: np.asarray(r.uniform(0.5, 1, x.shape), x.dtype),
        variables.get("batch_stats", {}),
    )
    gates = jax.tree.map(lambda x: np.ones(x.shape, bool), variables.get("gates", {}))
    found = {"params": params, "gates": gates}
    return module, shape, found | ({"batch_stats": stats} if stats else {})


@pytest.mark.parametrize("name", SMALL)
def test_readers_of_a_pruned_unit_read_nothing(name):
    """Zeroing them moves no output; zeroing those of some live unit does."""
    module, shape, variables = drawn(name)
    x = np.random.default_rng(1).normal(size=(4, *shape)).astype(np.float32)
    apply = jax.jit(module.apply)
    flat = dict(trees.leaves_with_paths(variables["params"]))
    for g in models.groups(module, variables):
        assert g.reads, g.name
        kept = np.arange(g.units) != 1
        own = {path: np.where(kept, flat[path], 0) for path in (g.kernel, *g.affine)}
        pruned = variables | {"params": trees.replace(variables["params"], own)}
        if g.gate is not None:
            pruned["gates"] = dict(pruned["gates"]) | {g.gate: kept}
        before = apply(pruned, x)

        def without(unit, g=g, pruned=pruned, own=own):
            changed = {}
            for path, axis in g.reads:
                assert (axis, flat[path].shape[axis] % g.units) == (-2, 0)
                reads_it = np.arange(flat[path].shape[axis]) % g.units == unit
                changed[path] = np.where(reads_it[:, None], 0, own.get(path, flat[path]))
            return apply(pruned | {"params": trees.replace(pruned["params"], changed)}, x)

        np.testing.assert_array_equal(without(1), before, err_msg=g.name)
        others = (u for u in range(g.units) if u != 1)
        assert any(not np.array_equal(without(u), before) for u in others), g.name


def positive(name, masks):
    """Gradient of the summed outputs by all weights, in a network of positive numbers.

    Live weights are positive and biases 0, so that nothing cancels and no ReLU is shut; the tokens
    of a ViT, whose attention and LayerNorm need differences, are drawn.
    """
    module, shape, variables = drawn(name)
    vit = name == "vit"

    def value(path, p, m):
        if path.endswith("bias"):
            return np.zeros_like(p)
        p = p if vit else np.ones_like(p)
        return np.where(m, p, np.zeros_like(p))

    params = trees.map_with_path(value, variables["params"], masks)
    fixed = {"gates": variables["gates"]}
    if "batch_stats" in variables:
        fixed["batch_stats"] = trees.map_with_path(
            lambda path, x: np.zeros_like(x) if path.endswith("mean") else np.ones_like(x),
            variables["batch_stats"],
        )
    x, weights = np.ones((1, *shape), np.float32), np.ones(module.num_classes, np.float32)
    if vit:
        x = np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
        weights = np.arange(1, module.num_classes + 1, dtype=np.float32)

    def total(params):
        return jnp.sum(module.apply({"params": params, **fixed}, x) @ weights)

    return jax.jit(jax.grad(total))(params)


def masks_at_random(name, seed, density):
    """Masks of kernels at a density, some units' columns and rows wholly dead."""
    _, _, variables = drawn(name)
    r = np.random.default_rng([seed, 7])

    def mask(path, p):
        if p.ndim < 2 or path.startswith("tokens"):
            return np.array(True)
        m = r.random(p.shape) < density
        if name == "convnet":  # its dense layer tells positions apart, channels are what counts
            rows = 5 if path == "dense1/kernel" else p.shape[-2]
            m = np.tile(r.random((rows, p.shape[-1])) < density, (*p.shape[:-2], 1, 1))
            m = np.tile(m, (p.shape[-2] // rows, 1))
        m[..., r.integers(p.shape[-1])] = False
        if p.shape[-2] > 1:  # else nothing is left of the network
            m[..., r.integers(p.shape[-2]), :] = False
        return m if path != "classifier/kernel" else r.random(p.shape) < 0.6

    return trees.map_with_path(mask, variables["params"])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("seed", "density"), [(0, 0.5), (1, 0.2)])
def test_live_weights_are_those_with_a_gradient(name, seed, density):
    module, _, variables = drawn(name)
    masks = masks_at_random(name, seed, density)
    found = wiring.live(module.wiring(), variables["params"], masks)
    gradients = dict(trees.leaves_with_paths(positive(name, masks)))
    kernels = [p for p, x in gradients.items() if x.ndim > 1 and not p.startswith("tokens")]
    mask_of = dict(trees.leaves_with_paths(masks))
    dead_on_path = 0
    for path in kernels:
        expected = (np.asarray(gradients[path]) != 0) & mask_of[path]
        np.testing.assert_array_equal(found.leaves[path], expected, err_msg=path)
        dead_on_path += int((mask_of[path] & ~expected).sum())
    assert dead_on_path > 0  # else nothing was tested
    for path, gradient in gradients.items():  # a gain's gradient is that of what it multiplies
        if path.endswith("/scale"):
            np.testing.assert_array_equal(found.leaves[path], np.asarray(gradient) != 0, path)
            bias = path.replace("/scale", "/bias")
            np.testing.assert_array_equal(found.leaves[bias], found.leaves[path], bias)
    total = sum(x.size for x in found.leaves.values())
    live = sum(x.sum() for x in found.leaves.values())
    assert found.sparsity == pytest.approx(1 - live / total)


def test_gates_and_whole_filters():
    """A channel whose gate is shut is dead after the sum, though the shortcut carries it."""
    module, _, variables = drawn("resnet_a")
    groups = models.groups(module, variables)
    last = groups[-1]
    assert last.gate == "stage2_block2_conv2"
    kept = np.arange(last.units) != 2
    masks = masks_lib.from_units({last.name: jnp.asarray(kept)}, [last], variables["params"])
    links = module.wiring()
    with_gate = wiring.live(links, variables["params"], masks, gates={last.gate: kept})
    without = wiring.live(links, variables["params"], masks)
    assert with_gate.units[last.gate].tolist() == kept.tolist()
    assert without.units[last.gate].all()
    assert not with_gate.leaves["classifier/kernel"][2].any()
    first = "stage2_block1_conv2"  # read by the block that follows, except for its sum
    assert with_gate.units[first].all()
    nothing = jax.tree.map(lambda _: np.array(True), variables["params"])
    assert wiring.live(links, variables["params"], nothing).sparsity == 0


def test_keys_without_queries_and_heads_without_values():
    module, _, variables = drawn("vit")
    params = variables["params"]
    names = [f"block1_{n}" for n in ("query", "key", "value", "attended")]
    masks = jax.tree.map(lambda p: np.ones(p.shape, bool), params)
    into = masks["block1_attention_in"]["kernel"]
    into[:, 0] = False  # a query unit of head 0: its key unit is multiplied by nothing
    into[:, 12 + 3 : 12 + 6] = False  # the values of head 1
    found = wiring.live(module.wiring(), params, masks)
    query, key, value, attended = (found.units[n].tolist() for n in names)
    assert query == [False, True, True, False, False, False]
    assert key == query
    assert value == attended == [True] * 3 + [False] * 3
    assert not found.leaves["block1_attention_out/kernel"][3:].any()


def test_stated_groups_of_a_model_of_ones_own():
    module, _, variables = drawn("convnet")
    groups = models.groups(module, variables)
    assert {g.name: g.reads for g in groups} == {
        "conv1": (("conv2/kernel", -2),),
        "conv2": (("dense1/kernel", -2),),
        "dense1": (("classifier/kernel", -2),),
    }


def test_an_own_bias_below_a_norm_goes_with_its_unit():
    """Its unit is dead by kernel and norm; the bias moves nothing, and is not masked."""
    shapes = {"a/kernel": (2, 4), "a/bias": (4,), "n/scale": (4,), "n/bias": (4,), "b": (4, 3)}
    params = {path: np.ones(shape) for path, shape in shapes.items()}
    norm = ("n/scale", "n/bias")
    group = models.Group("a", "a/kernel", norm, (), None, 4, bias=("a/bias",), reads=(("b", 0),))
    live = masks_lib.from_units({"a": np.array([True, False, True, False])}, [group], params)
    links = (
        Link("input", "a", "a/kernel", norm[:1], ("a/bias", norm[1])),
        Link("a", "output", "b"),
    )
    assert wiring.live(links, params, live).sparsity == 1 - (2 * (2 + 1 + 2 + 3)) / 32


def test_bad_links():
    params = {"a": {"kernel": np.ones((2, 3))}, "b": {"kernel": np.ones((4, 2))}}
    masks = jax.tree.map(lambda p: np.ones(p.shape, bool), params)
    first = Link("input", "a", "a/kernel")

    def check(*links, message, **options):
        with pytest.raises(ValueError, match=message):
            wiring.live(links, params, masks, **options)

    check(Link("input", "a", "c/kernel"), message="no leaf 'c/kernel'; there are: a/kernel")
    check(Link("b", "output", "b/kernel"), message="no earlier link leads to 'b'")
    check(first, Link("a", "output", "b/kernel"), message="4 entries, no multiple of the 3 units")
    check(first, Link("a", "s"), Link("a", "s", take=(0, 1)), message="2 units; other links lead")
    check(first, Link("a", "s", take=(0, 3)), message="a -> s: take names unit 3 of 3")
    check(first, Link("a", "a", times="q"), message="no earlier link leads to 'q'")
    check(first._replace(columns=(1, 9)), message=r"'a/kernel' has .* no columns \(1, 9\)")
    check(first._replace(gains=("b/kernel",)), message="'b/kernel' has not 3 entries")
    check(first._replace(biases=("b/kernel",)), message="'b/kernel' has not 3 entries")
    check(first, Link("a", "s", blocks=2), message="do not divide into 2 blocks")
    check(first, gates={"a": np.ones(2, bool)}, message=r"gate 'a' has shape \(2,\)")


def test_axes_of_units_by_leaf():
    links = (
        Link("input", "a", "a/kernel", gains=("n/scale",), biases=("n/bias",)),
        Link("a", "q", "qkv/kernel", columns=(0, 2)),
        Link("a", "k", "qkv/kernel", columns=(2, 4)),
        Link("q", "output", "out/kernel", biases=("out/bias",)),
        Link("k", "output", "out/kernel", biases=("out/bias",)),  # the same leaf once more
    )
    writes_a = [(-1, "a", 0)]
    assert groups_lib.unit_axes(links) == {
        "a/kernel": writes_a,
        **dict.fromkeys(("n/scale", "n/bias", "n/mean", "n/var"), writes_a),
        "qkv/kernel": [(-2, "a", 0), (-1, "q", 0), (-1, "k", 2)],
        "out/kernel": [(-2, "q", 0), (-1, "output", 0)],
        "out/bias": [(-1, "output", 0)],
    }


def test_parts_of_a_state_that_are_like_the_parameters():
    params = {"a": np.zeros(2), "b": np.ones((1, 3))}
    state = ({"a": np.ones(2), "b": np.zeros((1, 3))}, np.int32(4), {"a": np.ones(1), "b": 0.5})
    other = jax.tree.map(lambda x: x + 1, state)
    seen = []
    found = trees.map_alike(
        lambda old, new: seen.append((old, new)) or "moment", params, state, other
    )
    assert found[0] == "moment"
    assert len(seen) == 1
    assert seen[0] == (state[0], other[0])
    assert found[1:] == other[1:]  # a count, and a tree of other shapes
