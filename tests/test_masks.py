"""Masks against a brute-force ranking; counts, ties, monotony, foreign pytrees, jit and vmap."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prunejax import masks, sparsity, trees
from prunejax.groups import Group
from prunejax.ops import counts, ranking


def scores(seed=0, ties=False):
    r = np.random.default_rng(seed)
    draw = (lambda *s: r.integers(0, 3, s)) if ties else (lambda *s: r.normal(size=s))
    return {
        "a": {"kernel": jnp.asarray(draw(7, 5), jnp.float32), "bias": jnp.float32(0)},
        "b": (jnp.asarray(draw(3, 3, 2, 4), jnp.float32), jnp.asarray(draw(11), jnp.float32)),
    }


def brute(tree, keep, live=None):
    """Flat boolean: the `keep` best of the concatenated leaves, stable for ties."""
    leaves = [np.asarray(x).ravel() for x in jax.tree.leaves(tree) if np.ndim(x)]
    flat = np.concatenate(leaves).astype(np.float64)
    live = np.ones(flat.size, bool) if live is None else live
    order = np.argsort(np.where(live, -flat, np.inf), kind="stable")
    result = np.zeros(flat.size, bool)
    result[order[:keep]] = True
    return result


def flat(tree):
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(tree) if np.ndim(x)])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("keep", [0, 1, 40, 117, 118])
def test_global_is_the_brute_force_ranking(keep, ties):
    s = scores(1, ties)
    m = masks.prune(s, keep)
    np.testing.assert_array_equal(flat(m), brute(s, keep))
    assert m["a"]["bias"].shape == ()
    assert bool(m["a"]["bias"])
    jitted = jax.jit(masks.prune)(s, jnp.int32(keep))
    np.testing.assert_array_equal(flat(jitted), flat(m))


def test_all_ties_keep_the_first_in_leaf_order():
    s = jax.tree.map(jnp.ones_like, scores())
    s["a"]["bias"] = jnp.float32(1)
    assert flat(masks.prune(s, 50)).tolist() == [True] * 50 + [False] * 68


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_pruned_units_stay_pruned(scope):
    s = scores(2)
    first = masks.prune(s, 60 if scope == "global" else 10, scope=scope)
    other = scores(3)
    second = masks.prune(other, 30 if scope == "global" else 4, masks=first, scope=scope)
    assert not (flat(second) & ~flat(first)).any()
    assert (flat(first) & ~flat(second)).any()
    if scope == "global":
        np.testing.assert_array_equal(flat(second), brute(other, 30, flat(first)))


def test_layer_counts_by_integer_dict_and_tree():
    s = scores(4)
    total = lambda m: [int(x.sum()) for x in jax.tree.leaves(m) if x.ndim]  # noqa: E731
    assert total(masks.prune(s, 3, scope="layer")) == [3, 3, 3]
    counts = {"a/kernel": 4, "b/1": 0}
    assert total(masks.prune(s, counts, scope="layer")) == [4, 72, 0]
    tree = {"a": {"kernel": 1, "bias": 0}, "b": (2, 3)}
    assert total(masks.prune(s, tree, scope="layer")) == [1, 2, 3]


def test_vmap_with_a_count_per_member():
    many = jax.tree.map(lambda *x: jnp.stack(x), *[scores(i) for i in range(4)])
    keep = jnp.array([0, 7, 50, 118])
    axes = jax.tree.map(lambda x: 0 if x.ndim > 1 else None, many)
    many["a"]["bias"], axes["a"]["bias"] = jnp.float32(0), None
    m = jax.vmap(masks.prune, in_axes=(axes, 0))(many, keep)
    for i in range(4):
        one = jax.tree.map(lambda x, i=i: x[i], [m["a"]["kernel"], *m["b"]])
        np.testing.assert_array_equal(flat(one), brute(scores(i), int(keep[i])))


def test_filter_masks_broadcast_and_apply_blocks_nan():
    params = {"conv": {"kernel": jnp.ones((3, 3, 2, 4)).at[..., 1].set(jnp.nan)}}
    s = {"conv": {"kernel": jnp.array([3.0, 0.0, 2.0, 1.0]).reshape(1, 1, 1, 4)}}
    m = masks.prune(s, 2)
    assert m["conv"]["kernel"].shape == (1, 1, 1, 4)
    out = masks.apply(m, params)["conv"]["kernel"]
    np.testing.assert_array_equal(np.asarray(out).sum((0, 1, 2)), [18, 0, 18, 0])
    gradient = jax.grad(lambda p: masks.apply(m, p)["conv"]["kernel"].sum())(params)
    np.testing.assert_array_equal(
        np.asarray(gradient["conv"]["kernel"]).sum((0, 1, 2)), [18, 0, 18, 0]
    )


NARROW = [jnp.float8_e4m3fn, jnp.int4, jnp.uint8]


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_numbers_are_ranked_as_what_they_are(dtype):
    values = jnp.arange(24) % 8 - (0 if dtype == jnp.uint8 else 4)
    s = values.astype(dtype)
    np.testing.assert_array_equal(masks.prune(s, 7), masks.prune(values, 7))
    np.testing.assert_array_equal(
        masks.nm(s, 2, 4, axis=0), masks.nm(values.astype(jnp.float32), 2, 4, axis=0)
    )


def test_nan_of_8_bits_goes_first():
    s = jnp.array([1.0, jnp.nan, -2.0, -3.0]).astype(jnp.float8_e4m3fn)
    np.testing.assert_array_equal(masks.nm(s, 3, 4, axis=0), [1, 0, 1, 1])
    np.testing.assert_array_equal(masks.prune(s, 3), [1, 0, 1, 1])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtypes_keep_exact_counts(dtype):
    s = {"w": jax.random.normal(jax.random.key(0), (300, 7)).astype(dtype)}
    for keep in (1, 1000, 2099):
        assert int(masks.prune(s, keep)["w"].sum()) == keep
    assert masks.apply(masks.prune(s, 5), s)["w"].dtype == dtype


def test_nnx_and_equinox_trees():
    model = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    m = masks.prune(jax.tree.map(jnp.abs, state), 9)
    assert flat(m).sum() == 9
    assert jax.tree.structure(masks.apply(m, state)) == jax.tree.structure(state)
    mlp = eqx.nn.MLP(3, 2, 8, 2, key=jax.random.key(0))
    arrays, rest = eqx.partition(mlp, eqx.is_array)
    m = masks.prune(jax.tree.map(jnp.abs, arrays), 20)
    pruned = eqx.combine(masks.apply(m, arrays), rest)
    assert sum(int((x != 0).sum()) for x in jax.tree.leaves(eqx.filter(pruned, eqx.is_array))) == 20


def test_more_than_2_to_the_24_units_count_exactly():
    n = 2**24 + 12345
    s = {"w": jnp.ones(n, jnp.bfloat16)}
    keep = 2**24 + 7
    m = jax.jit(masks.prune)(s, jnp.int32(keep))["w"]
    assert int(np.count_nonzero(np.asarray(m))) == keep
    assert sparsity.count({"w": m}, s)["w"] == (keep, n)


def test_more_than_2_to_the_31_units_on_devices_count_exactly(monkeypatch):
    """A mask that NumPy cannot reach, each entry of which counts for 2^31 and one more."""
    count = jnp.count_nonzero

    def many(mask):
        return count(mask) * 2**16 * 2**15 + count(mask)  # in the type of the count

    monkeypatch.setattr(jnp, "count_nonzero", jax.jit(many))
    monkeypatch.setattr(counts, "_on_host", lambda mask: False)
    mask = jnp.array([True, False, True])
    assert counts.live(mask) == 2 * (2**31 + 1)
    assert sparsity.count({"w": mask}, {"w": jnp.ones((5, 3))})["w"] == (10 * (2**31 + 1), 15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: masks.prune(s, 119), "there are 118 live units"),
        (lambda s: masks.prune(s, -1), "there are 118"),
        (lambda s: masks.prune(s, 0.5), "keep_count"),
        (lambda s: masks.prune(s, 5, scope="tree"), "global, layer"),
        (lambda s: masks.prune(s, {"a/kernl": 3}, scope="layer"), "a/kernl"),
        (lambda s: masks.prune(s, {"a/kernel": 99}, scope="layer"), "'a/kernel': there are 35"),
        (lambda s: masks.nm(jnp.ones((6, 2)), 2, 4), "divisible by 4"),
        (lambda s: masks.nm(jnp.ones((8, 2)), 5, 4), "5:4: m is an integer .* n one in 0..m"),
        (lambda s: masks.nm(jnp.ones((8, 2)), 0, 0), "m is an integer of at least 1"),
        (lambda s: masks.nm(jnp.ones((8, 2)), 2.0, 4), "m is an integer"),
        (lambda s: masks.prune(s, jnp.array([1, 2])), "is no integer"),
        (lambda s: masks.prune({"w": 1.0}, 1), "scalars are never pruned"),
        (lambda s: masks.prune({"w": jnp.ones(2)}, 1, masks={"v": True}), "masks must have the"),
        (
            lambda s: masks.apply({"v": True}, {"w": jnp.ones(2)}),
            "1 leaves: missing w; not in the tree v",
        ),
        (lambda s: masks.apply({"w": None}, {"w": jnp.ones(2)}), "'w': its mask is None"),
        (lambda s: masks.count({"w": jnp.ones(5, bool)}, {"w": jnp.ones(3)}), r"shape \(5,\)"),
        (lambda s: masks.keep_count(s, "0.5"), "'0.5' is no number"),
    ],
)
def test_errors_name_value_and_limits(call, message):
    with pytest.raises(ValueError, match=message):
        call(scores())


def test_masks_of_another_granularity_are_refused():
    s = {"w": jnp.ones((1, 4))}
    with pytest.raises(ValueError, match="granularity"):
        masks.prune(s, 2, masks={"w": jnp.ones((3, 4), bool)})
    assert int(masks.prune({"w": jnp.ones((3, 4))}, 7, masks=masks.ones(s))["w"].sum()) == 7
    filters = {"w": jnp.array([[True, False, True, True]])}  # coarser than the scores: fine
    m = masks.prune({"w": jnp.ones((3, 4))}, 5, masks=filters)["w"]
    np.testing.assert_array_equal(m, [[1, 0, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]])


def test_leaves_without_scores_keep_the_masks_they_have():
    before = {"a": jnp.array([True, False, True]), "b": jnp.array([True, True])}
    s = {"a": jnp.float32(0), "b": jnp.array([2.0, 1.0])}
    after = masks.prune(s, 1, masks=before)
    np.testing.assert_array_equal(after["a"], before["a"])
    np.testing.assert_array_equal(after["b"], [True, False])
    layers = masks.prune({"a": jnp.arange(3.0), "b": s["b"]}, {"b": 1}, scope="layer", masks=before)
    np.testing.assert_array_equal(layers["a"], before["a"])


@pytest.mark.parametrize(
    ("keep", "message"),
    [(True, "True for the tree is no integer"), (jnp.array(5), "there are 4"), (-1, "there are 4")],
)
def test_counts_that_can_be_known_are_checked_under_jit_too(keep, message):
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda s: masks.prune(s, keep))({"w": jnp.ones((2, 2))})


def test_traced_counts_are_clamped():
    s, live = {"w": jnp.arange(6.0)}, {"w": jnp.arange(6) < 4}
    prune = jax.jit(lambda keep: masks.prune(s, keep, masks=live))
    assert [int(prune(jnp.int32(k))["w"].sum()) for k in (-2, 3, 5, 100)] == [0, 3, 4, 4]


def test_states_with_random_keys_and_modules_with_functions():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 4, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

    state = nnx.state(Net(nnx.Rngs(0)))
    out = masks.apply(masks.ones(state), state)
    assert jax.tree.structure(out) == jax.tree.structure(state)
    assert trees.paths(out) == trees.paths(state)
    mlp = eqx.nn.MLP(3, 2, 8, 2, key=jax.random.key(0))
    with pytest.raises(ValueError, match="'activation' is no array but"):
        masks.apply(masks.ones(mlp), mlp)


def test_leaves_that_are_empty_none_keys_or_python_numbers():
    tree = {"none": None, "empty": jnp.zeros((0, 3)), "w": jnp.arange(4.0), "number": 2.0}
    m = masks.prune(tree, 2)
    assert m["none"] is None
    np.testing.assert_array_equal(m["w"], [0, 0, 1, 1])
    assert masks.count(m, tree) == {"empty": (0, 0), "number": (1, 1), "w": (2, 4)}
    assert masks.report(m, tree).prunable == 0.5
    with_key = {"w": jnp.array([0.0, 1]), "key": jax.random.key(0)}
    np.testing.assert_array_equal(masks.of(with_key)["w"], [0, 1])
    assert bool(masks.of(with_key)["key"])


def test_masks_must_broadcast_against_their_leaf():
    with pytest.raises(ValueError, match=r"'w': a mask of shape \(3, 1\)"):
        masks.apply({"w": jnp.ones((3, 1), bool)}, {"w": jnp.ones(4)})


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_n_of_m_against_brute_force(axis):
    r = np.random.default_rng(0)
    s = r.integers(0, 4, (8, 12)).astype(np.float32)
    m = np.moveaxis(np.asarray(masks.nm(jnp.asarray(s), 2, 4, axis=axis)), axis, -1)
    blocks = np.moveaxis(s, axis, -1).reshape(-1, 4)
    expected = np.zeros_like(blocks, bool)
    for row, block in zip(expected, blocks, strict=True):
        row[np.argsort(-block, kind="stable")[:2]] = True
    np.testing.assert_array_equal(m.reshape(-1, 4), expected)


def test_n_of_m_is_one_program_for_each_shape():
    known = ranking.of_blocks._cache_size()
    for seed in (0, 1):
        s = jax.device_put(np.random.default_rng(seed).normal(size=(20, 3)).astype(np.float32))
        assert int(np.count_nonzero(masks.nm(s, 1, 5, axis=0))) == 12
    assert ranking.of_blocks._cache_size() == known + 1


def test_n_of_m_on_trees_with_earlier_masks_and_nan():
    s = {"w": jnp.array([[3.0, jnp.nan, 1, 2], [0, 0, 0, 0]]).T, "b": jnp.float32(0)}
    m = masks.nm(s, 1, 2, axis=0)
    np.testing.assert_array_equal(m["w"].T, [[1, 0, 0, 1], [1, 0, 1, 0]])
    assert bool(m["b"])
    before = {"w": jnp.array([[0, 1, 1, 0], [0, 0, 0, 1]], bool).T, "b": jnp.array(True)}
    after = masks.nm(s, 1, 2, axis=0, masks=before)["w"]
    np.testing.assert_array_equal(after.T, [[0, 1, 1, 0], [0, 0, 0, 1]])
    many = jax.vmap(lambda x: masks.nm(x, 2, 4, axis=0))(jnp.stack([s["w"], -s["w"]]))
    np.testing.assert_array_equal(many[0], masks.nm(s["w"], 2, 4, axis=0))
    with pytest.raises(ValueError, match="'w' of shape"):
        masks.nm(s, 1, 3, axis=0)


def test_units_of_groups():
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
        "bn": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
        "head": {"kernel": jnp.ones((4, 3))},
    }
    g = Group("conv", "conv/kernel", ("bn/scale", "bn/bias"), (), None, 4, ("conv/bias",))
    m = masks.from_units({"conv": jnp.array([1, 0, 1, 0], bool)}, [g], params)
    out = masks.apply(m, params)
    assert not np.asarray(out["conv"]["kernel"])[..., [1, 3]].any()
    np.testing.assert_array_equal(out["bn"]["scale"], [1, 0, 1, 0])
    np.testing.assert_array_equal(out["conv"]["bias"], np.ones(4))  # irrelevant before a norm
    kept = masks.apply(
        masks.from_units({"conv": jnp.zeros(4, bool)}, [g], params, norm=False), params
    )
    np.testing.assert_array_equal(kept["bn"]["bias"], np.ones(4))
    single = jnp.arange(72).reshape(3, 3, 2, 4) % 5 > 0
    m = masks.from_units({"conv": single}, [g], params)
    np.testing.assert_array_equal(m["conv"]["kernel"], single)
    assert m["bn"]["scale"].shape == ()
    with pytest.raises(ValueError, match="has 4 units"):
        masks.from_units({"conv": jnp.ones(5, bool)}, [g], params)
    plain = g._replace(norm=())  # without a norm the layer's own bias belongs to the unit
    out = masks.apply(masks.from_units({"conv": jnp.arange(4) > 0}, [plain], params), params)
    np.testing.assert_array_equal(out["conv"]["bias"], [0, 1, 1, 1])
    with pytest.raises(ValueError, match="there are: conv"):
        masks.from_units({"cnv": jnp.ones(4, bool)}, [g], params)


def test_report_counts_and_names_collapsed_layers():
    params = {
        "conv1": {"kernel": jnp.ones((3, 3, 1, 4))},
        "bn1": {"scale": jnp.ones(4)},
        "conv2": {"kernel": jnp.ones((3, 3, 4, 5))},
        "head": {"kernel": jnp.ones((5, 10))},
    }
    m = masks.ones(params)
    m["conv1"]["kernel"] = jnp.array([1, 0, 0, 1], bool).reshape(1, 1, 1, 4)
    r = sparsity.report(m, params, prunable="conv.*")
    assert r.prunable == pytest.approx(18 / (36 + 180))
    assert r.overall == pytest.approx(18 / (36 + 4 + 180 + 50))
    assert r.collapsed == ()
    m["conv2"]["kernel"] = jnp.zeros((1, 1, 1, 5), bool)
    r = sparsity.report(m, params, prunable="conv.*")
    assert r.collapsed == ("conv2/kernel",)
    assert "COLLAPSED" in str(r)
    assert masks.report(m, params, prunable="conv.*") == r
    other = masks.ones(params) | {"head": {"kernel": jnp.arange(50).reshape(5, 10) < 20}}
    assert sparsity.overlap(m, m, params) == 1.0
    live = {"m": 18 + 4 + 0 + 50, "other": 36 + 4 + 180 + 20, "both": 18 + 4 + 0 + 20}
    expected = live["both"] / (live["m"] + live["other"] - live["both"])
    assert masks.overlap(m, other, params) == pytest.approx(expected)


def test_keep_count_is_exact_decimal():
    assert masks.keep_count({"w": jnp.ones(512), "b": jnp.float32(0)}, 0.9) == 52
    assert masks.keep_count({"w": jnp.ones(10)}, 0.7) == 3


def test_masks_of_saved_parameters():
    p = {"w": jnp.arange(-2.0, 3.0)}
    np.testing.assert_array_equal(masks.of(p)["w"], [1, 1, 0, 1, 1])
    p = {"a": {"kernel": jnp.array([0.0, 1]), "bias": jnp.zeros(2)}}
    m = masks.of(p, ".*/kernel")["a"]
    np.testing.assert_array_equal(m["kernel"], [0, 1])
    assert m["bias"].shape == ()
    with pytest.raises(ValueError, match="a/kernel"):
        masks.of(p, "kernel")


@pytest.mark.parametrize("count", [jnp.int32, jnp.uint8, np.int64, int])
def test_n_of_m_takes_counts_of_every_kind(count):
    s = jnp.asarray(np.random.default_rng(4).normal(size=(8, 3)))
    wanted = np.zeros((8, 3), bool)
    for block in (slice(0, 4), slice(4, 8)):
        best = np.argsort(-np.asarray(s[block]), axis=0)[:2]
        np.put_along_axis(wanted[block], best, True, axis=0)
    np.testing.assert_array_equal(masks.nm(s, count(2), 4), wanted)
    np.testing.assert_array_equal(jax.jit(lambda n: masks.nm(s, n, 4))(count(2)), wanted)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"n": jnp.array([1, 2])}, "one in 0..m"),
        ({"n": jnp.float32(2)}, "one in 0..m"),
        ({"n": True}, "one in 0..m"),
        ({"axis": 0.0}, r"axis 0\.0 one"),
        ({"scores": jnp.ones((4, 1), complex)}, "complex64.* do not compare"),
    ],
)
def test_n_of_m_refuses_in_a_line(options, text):
    given = {"scores": jnp.ones((4, 1)), "n": 2, "m": 4} | options
    with pytest.raises(ValueError, match=text):
        masks.nm(**given)
    if not isinstance(given["n"], bool) and "axis" not in options:
        with pytest.raises(ValueError, match=text):
            jax.jit(lambda n: masks.nm(given["scores"], n, 4))(given["n"])


def test_masks_that_are_numbers_are_live_where_they_are_not_zero():
    x, y = np.array([1, 0, 2, 0, 4]), np.array([2, 0, 1, 3, 0])  # x & y of the bits: nothing
    p = {"w": jnp.ones(5)}
    for kind in (int, float, bool):
        a, b = {"w": x.astype(kind)}, {"w": y.astype(kind)}
        assert sparsity.overlap(a, b, p) == 2 / 4
        assert masks.count(a, p) == {"w": (3, 5)}


@pytest.mark.parametrize("of", [masks.count, masks.report])
def test_masks_that_are_traced_are_told_in_a_line(of):
    p = {"w": jnp.ones((2, 3))}
    with pytest.raises(TypeError, match="counted on the host: count and report outside"):
        jax.jit(lambda q: of(masks.of(q), q))(p)
