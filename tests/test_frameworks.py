"""The loops of docs/frameworks.md, letter by letter; paths, axes and dtypes of other frameworks."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prunejax import curvature, masks, scores, sparsity, trees
from prunejax.methods import before
from prunejax.sparsify import sparsify, windows

PAGE = Path(__file__).resolve().parent.parent / "docs" / "frameworks.md"


@pytest.mark.usefixtures("promoting")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_loops_of_the_page_end_with_a_tenth_of_the_weights():
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    for which in ("plain", "linen", "nnx_params", "equinox_params", "haiku_params"):
        params = names[which]
        chosen = jax.tree.leaves(trees.kernels(params))
        leaves = jax.tree.leaves(params)
        kernels = [np.asarray(p) for k, p in zip(chosen, leaves, strict=True) if k]
        others = [np.asarray(p) for k, p in zip(chosen, leaves, strict=True) if not k]
        assert [k.size for k in kernels] in ([30, 600], [600, 30]), which
        assert sum(np.count_nonzero(k) for k in kernels) == 63, which
        assert all(np.any(p != 0) for p in others), which
    live = names["live"]
    assert int(live["w"].sum() + live["out"].sum()) == 63
    assert live["b"].shape == ()


def test_boxes_are_no_part_of_a_path():
    import flax.linen as nn
    from flax import nnx

    boxed = {"d": {"kernel": nn.Partitioned(jnp.ones((2, 3)), (None, "x")), "bias": jnp.ones(3)}}
    assert trees.paths(boxed) == ["d/bias", "d/kernel"]
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    assert trees.paths(state) == trees.paths(nnx.to_pure_dict(state)) == ["bias", "kernel"]
    assert trees.paths({"value": 1, "a": {"value": 2}}) == ["a/value", "value"]  # a user's own key


def test_a_field_called_value_is_a_name_like_others():
    attention = jax.tree_util.register_dataclass(
        dataclasses.make_dataclass("Attention", ["query", "key", "value"]),
        data_fields=["query", "key", "value"],
        meta_fields=[],
    )
    tree = {"a": attention(*(i * jnp.ones((2, 2)) for i in (1, 2, 3))), "out": jnp.ones((2, 2))}
    found = ["a/query", "a/key", "a/value"]
    assert trees.paths(tree) == [*found, "out"]
    assert trees.match(tree, "a/.*") == found
    assert trees.paths({"a": attention(None, None, jnp.ones(2))}) == ["a/value"]  # as filtered
    assert trees.replace(tree, {"a/value": 0})["a"].value == 0
    live = masks.prune(tree, {path: 1 for path in found}, scope="layer")
    assert sparsity.count(live, tree) == {path: (1, 4) for path in found} | {"out": (4, 4)}


@pytest.mark.parametrize(
    "tree",
    [
        {"a/b": jnp.ones((2, 2)), "a": {"b": jnp.ones((3, 3))}},
        {"a": {"0": jnp.ones(2)}, "a/0": jnp.ones(2)},
    ],
)
def test_two_leaves_with_one_path_are_refused(tree):
    live = masks.ones(tree)
    for act in (
        lambda: sparsity.count(live, tree),
        lambda: masks.apply(live, tree),
        lambda: trees.match(tree, ".*"),
        lambda: masks.prune(tree, 1),
        lambda: trees.get(tree, next(key for key in tree if "/" in key)),
    ):
        with pytest.raises(ValueError, match="two leaves have the path 'a/"):
            act()


def test_a_leaf_is_the_one_of_its_path(monkeypatch):
    x, y, z = (np.full(2, value) for value in (1, 2, 3))
    plain = {"a": {"kernel": x, "bias": y}, "c": z}
    odd = {"a": [x, {"b/c": y, "b": {"d": z}}], "e": {"n": None, "o": {}}, "f/g": y, "h": {1: x}}
    for tree in (plain, odd):
        for path, leaf in trees.leaves_with_paths(tree):
            assert trees.get(tree, path) is leaf
    for tree, path in (
        (plain, "a"),
        (plain, "a/kernel/x"),
        (odd, "e/n"),
        (odd, "e/o"),
        (plain, ""),
    ):
        with pytest.raises(KeyError, match="no leaf"):
            trees.get(tree, path)
    monkeypatch.setattr(trees, "leaves_with_paths", None)  # one leaf of many costs no look at all
    assert trees.get(plain, "a/bias") is y


def _module():
    import equinox as eqx

    return eqx.nn.MLP(3, 1, 4, 1, key=jax.random.key(0))


@pytest.mark.parametrize(
    "act",
    [
        lambda net, live: masks.apply(live, net),
        lambda net, live: masks.of(net),
        lambda net, live: sparsity.count(live, net),
        lambda net, live: sparsity.report(live, net),
        lambda net, live: sparsity.overlap(live, live, net),
        lambda net, live: sparsity.csr(net, live),
        lambda net, live: before.prune(net, "magnitude", sparsity=0.5),
        lambda net, live: sparsify(optax.sgd(0.1), [(0, 1)]).init(net),
        lambda net, live: sparsify(optax.sgd(0.1), "once", start=0, sparsity=0.5).init(net),
        lambda net, live: windows(optax.sgd(0.1), [(0, 1)]).init(net),
        lambda net, live: curvature.hvp(lambda p: 0.0, net, net),
        lambda net, live: curvature.hessian_trace(lambda p: 0.0, net, key=jax.random.key(0)),
    ],
)
def test_a_module_with_functions_among_its_leaves_is_refused(act):
    net = _module()
    with pytest.raises(ValueError, match="leaf 'activation' is no array but") as error:
        act(net, masks.ones(net))
    assert "\n" not in str(error.value)


def test_errors_on_large_trees_are_short():
    tree = {f"layer{i}": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)} for i in range(150)}
    other = {k: v for k, v in tree.items() if k != "layer7"} | {"extra": jnp.ones(2)}
    for act, text in (
        (lambda: masks.apply(masks.ones(other), tree), "missing layer7/bias, layer7/kernel; not"),
        (lambda: masks.apply(masks.ones({}), tree), "and 290 more"),
        (lambda: trees.match(tree, "conv.*"), "none of the 300 leaves.*and 290 more"),
        (lambda: trees.get(tree, "conv"), "and 290 more"),
        (lambda: trees.replace(tree, {"conv": 1}), "and 290 more"),
        (lambda: masks.prune(tree, {"conv": 1}, scope="layer"), "and 290 more"),
    ):
        with pytest.raises((ValueError, KeyError), match=text) as error:
            act()
        assert len(str(error.value)) < 700


def test_filter_scores_along_another_axis():
    w = jax.random.normal(jax.random.key(0), (6, 5, 3, 2))  # (out, in, h, w)
    for score in (scores.filter_l1, scores.filter_l2):
        ours = score(w, axis=0)
        assert ours.shape == (6, 1, 1, 1)
        np.testing.assert_allclose(ours.ravel(), score(jnp.moveaxis(w, 0, -1)), rtol=1e-6)
    stacked = jax.random.normal(jax.random.key(1), (4, 5, 6))  # (layers, in, out)
    ours = scores.filter_l2(stacked, axis=(0, -1))
    assert ours.shape == (4, 1, 6)
    np.testing.assert_allclose(ours[:, 0], jax.vmap(scores.filter_l2)(stacked), rtol=1e-6)
    g = jnp.cos(w)
    np.testing.assert_allclose(
        scores.filter_saliency(w, g, axis=0).ravel(),
        scores.filter_saliency(jnp.moveaxis(w, 0, -1), jnp.moveaxis(g, 0, -1)),
        rtol=1e-5,
    )
    live = masks.prune({"w": scores.filter_l2(w, axis=0)}, 2)
    dead = (np.asarray(masks.apply(live, {"w": w})["w"]) == 0).all((1, 2, 3))
    assert dead.sum() == 4


def test_what_is_pruned_by_default():
    tree = {
        "conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
        "haiku_norm": {"scale": jnp.ones((1, 1, 1, 4)), "offset": jnp.ones((1, 1, 1, 4))},
        "scanned": {"kernel": jnp.ones((7, 4, 4)), "bias": jnp.ones((7, 4))},
        "head": {"w": jnp.ones((4, 1)), "b": jnp.ones(1)},
        "table": jnp.ones((3, 3), bool),
        "stacked": {  # as of equinox.filter_vmap
            "norm1": {"weight": jnp.ones((7, 4))},
            "LayerNorm": [{"weight": jnp.ones((7, 4))}],
            "ln_2": {"weight": jnp.ones((7, 4)), "bias": jnp.ones((7, 4))},
            "plan": {"weight": jnp.ones((7, 4, 4))},
        },
    }
    chosen = trees.kernels(tree)
    assert [p for p, k in trees.leaves_with_paths(chosen) if k] == [
        *("conv/kernel", "head/w", "scanned/kernel", "stacked/plan/weight"),
    ]


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_magnitudes_of_integers_hold_the_most_negative(bits):
    low = -(2 ** (bits - 1))
    w = jnp.array([low, low + 1, 3, 0], f"int{bits}")
    assert scores.magnitude(w).tolist() == [-low, -low - 1, 3, 0]
    kept = masks.prune({"w": scores.magnitude(w)}, 1)["w"]
    assert kept.tolist() == [True, False, False, False]


def test_magnitudes_of_complex_unsigned_and_truth_values():
    z = jnp.array([[3 + 4j, 1j], [0.5, 2]])
    assert scores.magnitude(z).tolist() == [[5, 1], [0.5, 2]]
    np.testing.assert_allclose(scores.filter_l2(z), np.linalg.norm(np.asarray(z), axis=0), 1e-6)
    np.testing.assert_allclose(scores.filter_l1(z), np.abs(np.asarray(z)).sum(0), 1e-6)
    assert scores.magnitude(jnp.array([200, 7], jnp.uint8)).tolist() == [200, 7]
    assert scores.magnitude(jnp.array([True, False])).tolist() == [True, False]


def test_strict_promotion_and_rank_promotion_of_the_caller():
    params = {
        "k": jax.random.normal(jax.random.key(0), (3, 3, 2, 8), jnp.bfloat16),
        "b": jnp.ones(8),
    }
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        filters = {"k": scores.filter_l2(params["k"]), "b": jnp.float32(0)}
        live = masks.prune(filters, 3)
        pruned = masks.apply(live, params)
        report = sparsity.report(live, params)
        scores.filter_saliency(params["k"], params["k"].astype(jnp.float32))
        scores.ebn(jnp.ones(8, jnp.bfloat16), jnp.ones(8, jnp.bfloat16))
        masks.nm(jnp.abs(params["k"]), 1, 2)
    assert report.prunable == 5 / 8
    assert (np.asarray(pruned["k"], np.float32) == 0).all((0, 1, 2)).sum() == 5
