"""Smaller networks against the masked ones: outputs, sizes, what is refused."""

import dataclasses
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prunejax import groups as groups_lib
from prunejax import masks as masks_lib
from prunejax import models, rng, shrink, sparsity, trees, wiring
from prunejax.groups import Group
from prunejax.measures import folding
from prunejax.sparsify import sparsify
from tests.test_models import INPUTS
from tests.test_wiring import SMALL, drawn, masks_at_random

PAGE = Path(__file__).resolve().parents[1] / "docs" / "shrink.md"


def halved(module, variables, seed=0, keep=0.5):
    """Masks with about half of each group's units, and the gates that go with them."""
    r = np.random.default_rng(seed)
    groups = models.groups(module, variables)
    units = {g.name: r.random(g.units) < keep for g in groups}
    units[groups[0].name] = np.arange(groups[0].units) == 1
    gates = {g.gate: units[g.name] for g in groups if g.gate is not None}
    own = {path: units[g.name] for g in groups for path in (g.kernel, *g.affine)}
    masks = trees.map_with_path(lambda path, _: own.get(path, np.array(True)), variables["params"])
    return masks, gates, units


def inputs(examples, shape):
    return np.random.default_rng(1).normal(size=(examples, *shape)).astype(np.float32)


def outputs(module, variables, x):
    return np.asarray(jax.jit(module.apply)(variables, x))


def masked(variables, masks, gates):
    zeroed = jax.tree.map(lambda m, p: np.where(m, p, np.zeros_like(p)), masks, variables["params"])
    found = dict(variables) | {"params": zeroed}
    return found | {"gates": dict(variables.get("gates", {})) | gates}


def sizes(tree):
    return {path: np.shape(x) for path, x in trees.leaves_with_paths(tree)}


def assert_shapes(small, variables, shape):
    """The variables are those that the smaller module would make itself."""
    expected = jax.eval_shape(lambda: models.init(small, jax.random.key(0), shape))
    assert sizes(variables["params"]) == sizes(expected["params"])
    assert sizes(variables.get("batch_stats", {})) == sizes(expected.get("batch_stats", {}))
    assert sizes(variables.get("gates", {})) == sizes(expected.get("gates", {}))


@pytest.mark.parametrize("name", SMALL)
def test_pruned_filters_go_and_outputs_stay(name):
    module, shape, variables = drawn(name)
    masks, gates, units = halved(module, variables)
    before = masked(variables, masks, gates)
    small, found = shrink.shrink(module, before, masks)
    x = inputs(8, shape)
    expected = outputs(module, before, x)
    assert np.ptp(expected) > 0.01
    scale = np.abs(expected).max()
    np.testing.assert_allclose(outputs(small, found, x), expected, rtol=0, atol=1e-5 * scale)
    assert_shapes(small, found, shape)
    for g in models.groups(small, found):
        assert g.units <= max(1, int(units[g.name].sum()))
    again, same = shrink.shrink(small, found)  # the zeros are the masks; nothing more to cut
    assert sizes(same["params"]) == sizes(found["params"])
    assert again.wiring() == small.wiring()
    if name == "wide":
        with pytest.raises(ValueError, match="'stage1_block1_bn1' reads a sum"):
            shrink.shrink(module, before, masks, fold=True)
    elif "batch_stats" in variables:
        folded, flat = shrink.shrink(module, before, masks, fold=True)
        assert "batch_stats" not in flat
        got = outputs(folded, flat, x)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * scale)
        assert_shapes(folded, flat, shape)
        whole = jax.tree.map(lambda p: np.array(True), flat["params"])
        assert wiring.live(folded.wiring(), flat["params"], whole).sparsity == 0


# Every class of `two_patch` has the same number of neurons, and no weights read them.
WHOLE = {"two_patch"}


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_a_model_that_cannot_be_cut_is_refused_in_a_line(name):
    module = models.create(name)
    variables = models.init(module, rng.at(0, "init"), (8, 8, 1))
    live = jax.tree.map(lambda p: np.array(True), variables["params"])
    with pytest.raises(ValueError, match="has no method `shrunk`"):
        shrink.shrink(module, variables, live)


@pytest.mark.parametrize(
    "asked",
    [
        lambda module, given: shrink.shrink(module, given),
        lambda module, given: shrink.with_optimizer(module, given, None),
        models.groups,
        lambda module, given: folding.layers(module, given, (8, 8, 1)),
        lambda _, given: folding.fold(given, ()),
    ],
)
def test_parameters_in_place_of_variables_are_told(asked):
    """They were a KeyError."""
    module = models.create("mlp", width=0.125)
    variables = models.init(module, rng.at(0, "init"), (8, 8, 1))
    for given, there in (variables["params"], r"\['bn1', "), (jnp.ones(3), "ArrayImpl"):
        with pytest.raises(ValueError, match=rf"no 'params' \({there}.*give all that `init` gives"):
            asked(module, given)


@pytest.mark.parametrize("name", sorted(set(models.MODELS) - WHOLE))
def test_every_shipped_model_can_be_cut(name):
    """Shapes of each; the outputs of one of each kind are compared above."""
    shape = (32, 32, 3) if name in ("resnet50", "vit_s16") else INPUTS[name]
    module = models.create(name, width=0.25)
    shapes = jax.eval_shape(lambda: models.init(module, rng.at(0, "init"), shape))
    variables = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), shapes)
    masks, gates, units = halved(module, variables, seed=1)
    small, found = shrink.shrink(module, masked(variables, masks, gates), masks)
    assert_shapes(small, found, shape)
    assert sum(x.size for x in jax.tree.leaves(found["params"])) < 0.75 * sum(
        x.size for x in jax.tree.leaves(variables["params"])
    )
    for g in models.groups(small, found):  # fewer where all that reads a unit is gone as well
        assert g.units <= max(1, int(units[g.name].sum()))


def test_cutting_compiles_nothing():
    """It did a program for each shape."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        found = groups_lib.cut({"a": np.ones((3, 13)), "b": np.ones(29)}, {"a": [(-1, [0, 5])]})
    finally:
        jax.monitoring.clear_event_listeners()
    assert found["a"].shape == (3, 2)
    assert all(isinstance(x, jax.Array) for x in found.values())
    assert not compiled


@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet_a", "bottleneck", "vit"])
def test_single_weights_leave_units_that_nobody_reads(name):
    """What has no live weight, or feeds none, goes; units of a bias alone are kept on request."""
    module, shape, variables = drawn(name)
    masks = masks_at_random(name, 0, 0.3)
    before = masked(variables, masks, {})
    small, found = shrink.shrink(module, before, masks, constants="keep")
    x = inputs(8, shape)
    expected = outputs(module, before, x)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(outputs(small, found, x), expected, rtol=0, atol=1e-5 * scale)
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    assert count(found["params"]) < count(before["params"])


def test_heads_without_values_go():
    module, shape, variables = drawn("vit")
    params = dict(trees.leaves_with_paths(variables["params"]))
    masks = {path: np.ones(x.shape, bool) for path, x in params.items()}
    masks["block2_attention_in/kernel"][:, 12:15] = False  # the values of head 0
    masks["block2_attention_in/bias"][12:15] = False
    masks = trees.map_with_path(lambda path, _: masks[path], variables["params"])
    small, found = shrink.shrink(module, variables, masks)
    assert small.cut == ((2, 5), (1, 5))
    assert found["params"]["block2_attention_in"]["kernel"].shape == (6, 9)
    x = inputs(3, shape)
    expected = outputs(module, masked(variables, masks, {}), x)
    np.testing.assert_allclose(outputs(small, found, x), expected, rtol=1e-5, atol=1e-5)


def test_a_pruned_unit_that_is_not_zero_is_refused():
    module, _, variables = drawn("mlp")
    masks = jax.tree.map(lambda p: np.ones(p.shape, bool), variables["params"])
    masks["dense2"]["kernel"][:, 3] = False
    message = r"layer 'dense2/kernel': nothing is live of unit 3, but it gives .*, not 0"
    with pytest.raises(ValueError, match=message):
        shrink.shrink(module, variables, masks)
    small, _ = shrink.shrink(module, variables, masks, constants="keep")
    assert small.hidden == (6, 5, 4)
    masks["bn2"]["scale"][3] = masks["bn2"]["bias"][3] = False
    small, _ = shrink.shrink(module, variables, masks)
    assert small.hidden == (6, 4, 4)


@dataclasses.dataclass(frozen=True)
class Net:
    """Somebody's network: a convolution, a flattened map, two dense layers; leaves of their own."""

    channels: int = 4
    hidden: int = 6

    def apply(self, variables, x):
        p = variables["params"]
        dims = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, p["c"]["w"], (1, 1), "SAME", dimension_numbers=dims)
        y = jax.nn.relu(y + p["c"]["b"][None, None, None]).reshape(x.shape[0], -1)
        y = jax.nn.relu(y @ p["d"]["w"] + p["d"]["b"][None])
        return y @ p["out"]["w"].T


def own():
    r = np.random.default_rng(0)
    shapes = {"c": {"w": (3, 3, 1, 4), "b": (4,)}, "d": {"w": (36, 6), "b": (6,)}}
    shapes["out"] = {"w": (2, 6)}
    params = jax.tree.map(
        lambda s: r.normal(size=s).astype(np.float32), shapes, is_leaf=lambda s: type(s) is tuple
    )
    groups = [
        Group("c", "c/w", (), (), None, 4, ("c/b",), (("d/w", 0),)),
        Group("d", "d/w", (), (), None, 6, ("d/b",), (("out/w", 1),)),
    ]
    return Net(), {"params": params}, groups


def rebuild(sizes):
    return Net(sizes["c"], sizes["d"])


def test_a_model_of_ones_own_through_stated_groups():
    net, variables, groups = own()
    units = {"c": np.array([1, 0, 1, 1], bool), "d": np.array([1, 1, 0, 1, 0, 1], bool)}
    masks = masks_lib.from_units(jax.tree.map(jnp.asarray, units), groups, variables["params"])
    masks["out"]["w"] = np.arange(12).reshape(2, 6) % 6 != 5  # nobody reads unit 5 of "d"
    x = inputs(5, (3, 3, 1))
    small, found = shrink.shrink(net, variables, masks, groups=groups, rebuild=rebuild, example=x)
    assert small == Net(3, 3)
    assert found["params"]["d"]["w"].shape == (27, 3)
    assert found["params"]["out"]["w"].shape == (2, 3)
    live = {"params": masks_lib.apply(masks, variables["params"])}
    np.testing.assert_allclose(small.apply(found, x), net.apply(live, x), atol=1e-5)


@dataclasses.dataclass(frozen=True)
class Off(Net):
    """Outputs a thousandth too large, whatever their size."""

    def apply(self, variables, x):
        return 1.001 * super().apply(variables, x)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_outputs_of_any_size_are_compared_with_the_largest(scale):
    net, variables, groups = own()
    variables["params"]["out"]["w"] *= np.float32(scale)
    units = {"c": jnp.arange(4) != 1, "d": jnp.arange(6) % 2 == 0}
    masks = masks_lib.from_units(units, groups, variables["params"])
    options = {"groups": groups, "example": inputs(5, (3, 3, 1))}
    shrink.shrink(net, variables, masks, rebuild=rebuild, **options)
    with pytest.raises(ValueError, match="the smaller network's outputs differ by"):
        shrink.shrink(net, variables, masks, rebuild=lambda sizes: Off(3, 3), **options)


def test_bad_requests():
    net, variables, groups = own()
    masks = masks_lib.ones(variables["params"])

    def refused(message, model=net, masks=masks, **options):
        with pytest.raises(ValueError, match=message):
            shrink.shrink(model, variables, masks, **options)

    refused("constants 'drop' is not one of: refuse, keep", constants="drop")
    refused("Net has no method `shrunk`")
    refused("give rebuild as well", groups=groups)
    stated = {"groups": [groups[0]._replace(reads=())], "rebuild": rebuild}
    refused("group 'c' names no readers", **stated)
    stated["groups"] = [groups[0]._replace(gate="g")]
    refused("group 'c' ends in a residual sum", **stated)
    stated["groups"] = [groups[0]._replace(reads=(("out/w", 0),))]
    refused("axis 0 of 'out/w' .* is no multiple of its 4 units", **stated)
    first = {
        "c": masks["c"],
        "d": {"w": jnp.array([[1, 1, 1, 1, 1, 0]], bool), "b": masks["d"]["b"]},
    }
    refused("nothing is live of unit 5", masks=masks | first, groups=groups, rebuild=rebuild)
    # A reader that is left out is found by the example.
    units = {"d": jnp.arange(6) != 2}
    pruned = masks_lib.from_units(units, groups[1:], variables["params"])
    short = [groups[1]._replace(bias=())]
    with pytest.raises((ValueError, TypeError)):
        shrink.shrink(
            net, variables, pruned, groups=short, rebuild=lambda sizes: Net(4, sizes["d"]),
            example=jnp.ones((2, 3, 3, 1)),
        )  # fmt: skip


def test_a_step_of_the_smaller_network_is_the_masked_step():
    """Adam with momentum in both; after two steps the kept weights agree."""
    module, shape, variables = drawn("convnet")
    masks, gates, _ = halved(module, variables)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01))
    x, y = jnp.asarray(inputs(8, shape)), jnp.arange(8) % 3

    def stepped(net, params, state, live):
        def loss(p):
            logits = net.apply({"params": masks_lib.apply(live, p)}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        grads = masks_lib.apply(live, jax.grad(loss)(params))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    before = jax.tree.map(jnp.asarray, masked(variables, masks, gates)["params"])
    params, state = jax.jit(lambda p, s: stepped(module, p, s, masks))(before, tx.init(before))
    whole = jax.tree.map(jnp.asarray, masks_lib.apply(masks, params))
    small, found, cut = shrink.with_optimizer(module, {"params": whole}, state, masks)
    assert jax.tree.structure(cut) == jax.tree.structure(tx.init(found["params"]))
    assert sizes(cut[1][0].mu) == sizes(found["params"])
    ones = masks_lib.ones(found["params"])
    after, _ = jax.jit(lambda p, s: stepped(small, p, s, ones))(found["params"], cut)
    again, _ = jax.jit(lambda p, s: stepped(module, p, s, masks))(whole, state)
    _, expected = shrink.shrink(module, {"params": again}, masks)
    for (path, a), (_, b) in zip(
        trees.leaves_with_paths(after), trees.leaves_with_paths(expected["params"]), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=path)


def two_layers():
    """Parameters of two layers, the masks of half of the hidden units, and how they are cut."""
    r = np.random.default_rng(7)
    draw = lambda *shape: jnp.asarray(r.normal(size=shape), jnp.float32)  # noqa: E731
    params = {"l1": {"w": draw(3, 4), "b": draw(4)}, "l2": {"w": draw(4, 2)}}
    group = Group("l1", "l1/w", (), (), None, 4, bias=("l1/b",), reads=(("l2/w", 0),))
    masks = masks_lib.from_units({"l1": jnp.array([1, 0, 1, 0])}, [group], params)
    return params, masks, {"groups": [group], "rebuild": lambda sizes: sizes}


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda masks: optax.masked(optax.adam(0.1), {"l1": True, "l2": False}),
        lambda masks: optax.partition(
            {"a": optax.adam(0.1), "b": optax.sgd(0.1, 0.9)}, {"l1": "a", "l2": "b"}
        ),
        lambda masks: optax.lbfgs(0.1, 3, linesearch=None),
        lambda masks: sparsify(optax.adam(0.1), masks=masks),
        lambda masks: sparsify(optax.adam(0.1), masks=masks, rules=["l2/w"]),
    ],
    ids=["masked", "partition", "lbfgs", "sparsify", "sparsify, broadcast masks"],
)
def test_what_belongs_to_a_parameter_is_cut_as_it_is(optimizer):
    """The next update of the smaller network is the cut of the whole network's."""
    params, masks, how = two_layers()
    tx = optimizer(masks)
    live = masks_lib.apply(masks, params)
    gradients = masks_lib.apply(masks, jax.tree.map(jnp.cos, params))
    gradients["l2"]["w"] = gradients["l2"]["w"] * jnp.array([1, 0, 1, 0])[:, None]
    live["l2"]["w"] = live["l2"]["w"] * jnp.array([1, 0, 1, 0])[:, None]
    _, state = tx.update(gradients, tx.init(live), live)
    _, found, cut = shrink.with_optimizer(None, {"params": live}, state, masks, **how)

    def small(tree):
        w, b, v = tree["l1"]["w"], tree["l1"]["b"], tree["l2"]["w"]
        return {"l1": {"w": w[:, ::2], "b": b[::2]}, "l2": {"w": v[::2]}}

    whole, _ = tx.update(gradients, state, live)
    part, after = tx.update(small(gradients), cut, found["params"])
    expected = small(whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), part, expected)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, cut)


def test_a_state_without_an_entry_for_each_weight_is_refused():
    params, masks, how = two_layers()
    state = optax.adafactor(0.1, min_dim_size_to_factor=1).init(params)
    with pytest.raises(ValueError, match="no entry for each weight"):
        shrink.with_optimizer(None, {"params": params}, state, masks, **how)


def test_leaves_that_groups_name_are_there():
    params, masks, how = two_layers()
    (group,) = how.pop("groups")
    for wrong in ({"kernel": "l3/w"}, {"bias": ("l3/w",)}, {"reads": (("l3/w", 0),)}):
        with pytest.raises(ValueError, match="group 'l1': no leaf 'l3/w'; there are: l1/b"):
            shrink.shrink(None, {"params": params}, masks, groups=[group._replace(**wrong)], **how)
    for wrong in ({"kernel": "l3/w"}, {"bias": ("l3/w",)}):  # a bias was left live, untold
        with pytest.raises(ValueError, match="group 'l1': no leaf 'l3/w'"):
            masks_lib.from_units({"l1": jnp.ones(4, bool)}, [group._replace(**wrong)], params)


def test_sparse_matrices_are_the_masked_products():
    r = np.random.default_rng(0)
    params = {"a": {"w": r.normal(size=(6, 5)), "b": r.normal(size=5)}, "c": np.ones((2, 2, 3, 4))}
    masks = {"a": {"w": r.random((6, 5)) < 0.3, "b": np.array(True)}}
    masks["c"] = r.random((2, 2, 3, 4)) < 0.2
    params = jax.tree.map(np.float32, params)
    x, live = r.normal(size=(3, 6)).astype(np.float32), masks_lib.apply(masks, params)
    for form in (sparsity.bcoo, sparsity.csr):
        found = form(params, masks)
        product = (found["a"]["w"].T @ x.T).T
        np.testing.assert_allclose(product, x @ live["a"]["w"], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found["a"]["b"], params["a"]["b"])
        assert found["c"].shape == (12, 4)
        assert len(found["c"].data) == masks["c"].sum()
    with pytest.raises(ValueError, match=r"the masks must have the structure.*missing c"):
        form(params, {"a": masks["a"]})
    with pytest.raises(ValueError, match=r"leaf 'c': a mask of shape \(3, 5\)"):
        form(params, masks | {"c": np.ones((3, 5), bool)})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sparse_matrices_of_16_bits(dtype):
    r = np.random.default_rng(1)
    w, mask = jnp.asarray(r.normal(size=(6, 5)), dtype), r.random((6, 5)) < 0.4
    found = sparsity.bcoo({"w": w}, {"w": mask})["w"]
    assert found.dtype == w.dtype
    assert found.nse == mask.sum()
    np.testing.assert_array_equal(found.todense(), jnp.where(mask, w, 0))
    with pytest.raises(ValueError, match=f"leaf 'w' is {dtype}, of which SciPy makes no sparse"):
        sparsity.csr({"w": w}, {"w": mask})


def test_kept():
    assert wiring.kept(np.array([True, False, True])).tolist() == [1]
    assert wiring.kept(np.ones(3, bool)).tolist() == [0]


@pytest.mark.usefixtures("promoting")
def test_the_page_runs():
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, "docs/shrink.md", "exec"), names)
    assert names["small"].features == (4, "M", 8, "M", 64, "M", 64)
    x = inputs(2, (28, 28, 1))
    expected = outputs(names["small"], names["weights"], x)
    np.testing.assert_allclose(outputs(names["folded"], names["plain"], x), expected, atol=1e-5)
    assert names["cut"]["params"]["w2"].shape == (4, 2)
    assert names["smaller"].hidden == 4


class Own(models.Model):
    """A hidden layer whose last two units are dead."""

    hidden: int = 4

    def wiring(self):
        return wiring.chain(["hidden"], norm=False, bias=True)

    @nn.compact
    def __call__(self, x, train=False):
        return self.logits(nn.relu(nn.Dense(self.hidden, name="hidden")(x)))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"hidden": [0, 1]}, ""),
        ({"hidden": [True, True, False, False]}, ""),
        ({}, "does not take its arrays: .*shape"),
        ({"hidden": [2, 3]}, r"outputs differ by .*`wiring` and `shrunk`"),
        ({"fc1": [0, 1]}, r"Own.shrunk gives \.\.\. .*\{'fc1': \[0, 1\]\}\); a pair .*: hidden"),
        *(({"hidden": k}, "a pair is needed") for k in ([], [0, 9], [0.0, 1.0], 1, None)),
        (None, "a pair is needed"),
    ],
)
def test_what_shrunk_of_others_gives_is_judged(monkeypatch, kept, message):
    """These ended in errors of NumPy, Flax and Python."""
    r = np.random.default_rng(0)
    live = np.array([1, 1, 0, 0], np.float32)
    hidden = {"kernel": r.normal(size=(3, 4)) * live, "bias": r.normal(size=4) * live}
    classifier = {"kernel": r.normal(size=(4, 10)), "bias": r.normal(size=10)}
    params = jax.tree.map(np.float32, {"hidden": hidden, "classifier": classifier})
    found = lambda self, gone: None if kept is None else (self.clone(hidden=2), kept)  # noqa: E731
    monkeypatch.setattr(Own, "shrunk", found)
    of = {"model": Own(), "variables": {"params": params}, "example": inputs(5, (3,))}
    if not message:
        assert shrink.shrink(**of)[0].hidden == 2
        return
    with pytest.raises(ValueError, match=message):
        shrink.shrink(**of)


class Scaled(models.Model):
    """A norm, and gains of two axes behind it."""

    hidden: int = 4

    def wiring(self):
        (link, last) = wiring.chain(["hidden"], norm=True, bias=False)
        return (link._replace(gains=(*link.gains, "gain")), last)

    def shrunk(self, gone):
        kept = wiring.kept(gone["hidden"])
        return self.clone(hidden=kept.size), {"hidden": kept}

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(self.hidden, use_bias=False, name="hidden")(x)
        x = self.norm(x, train, "bn1") * self.param("gain", nn.initializers.ones, (1, self.hidden))
        return self.logits(nn.relu(x))


@pytest.mark.parametrize("shut", ["bn1/scale", "gain"])
def test_links_with_several_gains(shut):
    """A link of two gains, or of one with several axes, ended in an error of Python or NumPy."""
    r = np.random.default_rng(0)
    drawn = lambda *shape: r.normal(size=shape).astype(np.float32)  # noqa: E731
    params = {
        "hidden": {"kernel": drawn(3, 4)},
        "bn1": {"scale": drawn(4), "bias": drawn(4)},
        "gain": drawn(1, 4),
        "classifier": {"kernel": drawn(4, 10), "bias": drawn(10)},
    }
    trees.get(params, shut)[..., 1:3] = 0
    params["bn1"]["bias"][2] = 0  # unit 1 has a bias behind the first gain: it may be a constant
    variables = {"params": params, "batch_stats": {"bn1": {"mean": drawn(4), "var": drawn(4) ** 2}}}
    example = inputs(5, (3,))
    small, found = shrink.shrink(Scaled(), variables, example=example)
    assert small.hidden == 3
    want, got = Scaled().apply(variables, example), small.apply(found, example)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
