"""Exact selection against a brute-force ranking: dtypes, ties, special values, vmap, meshes."""

import functools
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax.ops import radix, ranking

SHAPES = [(3, 3, 2, 8), (), (0, 3), (7, 11)]
SIZE = sum(int(np.prod(s)) for s in SHAPES)


def brute(leaves, k, eligible=None):
    """The k largest by a stable sort of the concatenated leaves; NaN last, zeros equal."""
    flat = np.concatenate([np.asarray(x).astype(np.float64).ravel() for x in leaves]) + 0.0
    nan = np.isnan(flat)
    free = np.ones(flat.size, bool)
    if eligible is not None:
        free = np.concatenate([np.asarray(x).ravel() for x in eligible])
    order = np.lexsort((np.arange(flat.size), -np.where(nan, 0, flat), nan, ~free))
    chosen = np.zeros(flat.size, bool)
    chosen[order[: max(k, 0)]] = True
    return chosen & free


def flat(masks):
    return np.concatenate([np.asarray(m).ravel() for m in masks])


def draw(kind, dtype, seed=0):
    r = np.random.default_rng(seed)
    leaves = []
    for shape in SHAPES:
        x = r.standard_normal(shape) * 5
        if kind == "ties":
            x = np.round(x / 5)
        if kind == "equal":
            x = np.zeros(shape)
        if kind == "special":
            odd = r.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, -1e-42], shape)
            x = np.where(r.random(shape) < 0.4, odd, x)
        if not jnp.issubdtype(dtype, jnp.floating):
            x = np.clip(
                np.nan_to_num(x), 0 if jnp.issubdtype(dtype, jnp.unsignedinteger) else -9, 9
            )
        leaves.append(jax.device_put(np.float32(x).astype(dtype)))
    return leaves


@pytest.mark.parametrize(
    ("dtype", "method"),
    [
        (jnp.float32, "scatter"),
        (jnp.float32, "compare"),
        (jnp.bfloat16, "scatter"),
        (jnp.float16, "compare"),
        (jnp.int32, "scatter"),
        (jnp.bool_, "scatter"),
    ],
)
def test_is_the_brute_force_ranking(dtype, method):
    top = jax.jit(functools.partial(ranking.top, method=method))
    some = [jnp.asarray(np.random.default_rng(1).random(s) < 0.6) for s in SHAPES]
    for kind in ("continuous", "ties", "equal", "special"):
        leaves = draw(kind, dtype)
        for eligible in ([jnp.ones(s, bool) for s in SHAPES], some):
            for k in (0, 1, 17, 100, SIZE, -3):
                got = top(leaves, jnp.int32(k), eligible=eligible)
                assert [m.shape for m in got] == SHAPES
                np.testing.assert_array_equal(flat(got), brute(leaves, k, eligible))


def test_everything_is_eligible_by_default():
    leaves = draw("special", jnp.float32)
    for method in (None, "scatter"):  # one sort, counting
        got = ranking.top(leaves, 99, method=method)
        np.testing.assert_array_equal(flat(got), brute(leaves, 99))


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint32, jnp.float8_e4m3fn])
def test_further_dtypes(dtype):
    leaves = draw("ties", dtype)
    got = ranking.top(leaves, 100, method="scatter")
    np.testing.assert_array_equal(flat(got), brute(leaves, 100))


def test_double_precision():
    with jax.enable_x64(True):
        leaves = [jnp.asarray(1 + np.arange(300) * 2.0**-50), jnp.full((4, 5), 1 + 2.0**-44)]
        assert leaves[0].dtype == jnp.float64
        got = ranking.top([leaves[0].reshape(20, 15), leaves[1]], 250, method="scatter")
        np.testing.assert_array_equal(flat(got), brute(leaves, 250))


def test_mixed_precision_leaves_compare_exactly():
    leaves = [jnp.linspace(-1, 1, 60, dtype=jnp.float32).reshape(6, 10)]
    leaves += [leaves[0].astype(jnp.bfloat16), leaves[0].astype(jnp.float16)]
    got = ranking.top(leaves, 77, method="scatter")
    np.testing.assert_array_equal(flat(got), brute(leaves, 77))


def test_one_sort_for_few_scores_and_counting_agree():
    r = np.random.default_rng(0)
    leaves = [jnp.asarray(r.integers(0, 9, s), jnp.float32) for s in [(1, 1, 1, 64), (9, 8), (20,)]]
    eligible = [jnp.asarray(r.random(x.shape) < 0.7) for x in leaves]
    for method in (None, "scatter"):
        top = jax.jit(functools.partial(ranking.top, method=method))
        for k in (0, 3, 100, 156):
            got = top(leaves, jnp.int32(k), eligible=eligible)
            np.testing.assert_array_equal(flat(got), brute(leaves, k, eligible))


@pytest.mark.parametrize("method", [None, *radix.METHODS])
def test_vmap_with_a_count_per_member(method):
    members = [draw("ties", jnp.float32, seed) for seed in range(5)]
    stacked = [jnp.stack(leaves) for leaves in zip(*members, strict=True)]
    ks = jnp.array([0, 3, 100, SIZE - 1, SIZE])
    got = jax.vmap(functools.partial(ranking.top, method=method))(stacked, ks)
    for i, (leaves, k) in enumerate(zip(members, ks, strict=True)):
        np.testing.assert_array_equal(flat([m[i] for m in got]), brute(leaves, int(k)))


@pytest.mark.parametrize("ties", [False, True])
def test_large_leaves_are_counted_in_slices(ties):
    shapes = [(3, 3, 128, 256), (1_200_000,), (1000, 300)]  # above _WIDE; one is no multiple of 16
    r = np.random.default_rng(0)
    leaves = [r.standard_normal(s).astype(np.float32) for s in shapes]
    if ties:
        leaves = [np.round(x) for x in leaves]
    k = 900_001
    got = jax.jit(ranking.top)(leaves, k)
    all_of_them = np.concatenate([x.ravel() for x in leaves])
    cut = np.partition(all_of_them, -k)[-k]
    expected = all_of_them > cut
    expected[np.flatnonzero(all_of_them == cut)[: k - expected.sum()]] = True
    np.testing.assert_array_equal(flat(got), expected)


def test_each_leaf_by_itself():
    leaves = [jnp.array([[3.0, 1], [2, 2]]), jnp.arange(5)]
    a, b = ranking.each(leaves, [2, jnp.int32(1)], [None, None])
    np.testing.assert_array_equal(a, [[1, 0], [1, 0]])
    np.testing.assert_array_equal(b, [0, 0, 0, 0, 1])


def test_huge_and_static_counts():
    x = [jnp.arange(6.0)]
    assert flat(ranking.top(x, 10**12)).all()
    assert not flat(ranking.top(x, -(10**12))).any()
    assert ranking.top([], 3) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ranking.top(x, 0.5), "turn a fraction into a count"),
        (lambda x: ranking.top(x, True), "bool"),
        (lambda x: ranking.top(x, jnp.array([1, 2])), r"shape \(2,\)"),
        (lambda x: ranking.top([*x, jnp.arange(3)], 1), "do not compare"),
        (lambda x: ranking.top([1j * x[0]], 1), "do not compare"),
        (lambda x: ranking.top(x, 1, eligible=[jnp.ones(4, bool)]), "one boolean array per score"),
        (lambda x: ranking.top(x, 1, method="sort"), "unknown counting method"),
        (
            lambda x: jax.eval_shape(
                lambda y: ranking.top(y, 1), jax.ShapeDtypeStruct((2**16, 2**15), jnp.bfloat16)
            ),
            "32 bits",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call([jnp.arange(6.0)])


MESHES = """
    import functools, re
    import jax, jax.numpy as jnp, numpy as np
    from jax import lax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from prunejax import masks
    from prunejax.ops import ranking

    r = np.random.default_rng(0)
    shapes = [(3, 3, 16, 128), (128, 64), (512,)]
    host = [(np.round(r.standard_normal(s) * 50) / 50).astype(np.float32) for s in shapes]
    k = 10_000
    expected = ranking.top(host, k)
    assert sum(int(m.sum()) for m in expected) == k

    def same(got, expected):
        assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(got, expected))

    members = [np.round(r.standard_normal((8, *s)) * 9).astype(np.float32) for s in shapes[1:]]
    ks = jnp.asarray(r.integers(0, 9_000, 8))
    one = jax.jit(ranking.top)
    each = [one([x[i] for x in members], ks[i]) for i in range(8)]
    each = [np.stack([np.asarray(m[j]) for m in each]) for j in range(2)]
    last = [P(None, None, None, "data"), P(None, "data"), P("data")]
    first = [P(None, None, "data"), P("data"), P("data")]
    for kind, method, specs in (
        (AxisType.Auto, "scatter", last),
        (AxisType.Auto, "scatter", first),
        (AxisType.Auto, "compare", first),
        (AxisType.Explicit, "scatter", first),
    ):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
        sharded = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(host, specs)]
        top = jax.jit(functools.partial(ranking.top, method=method))
        program = top.lower(sharded, jnp.int32(k)).compile()
        got = program(sharded, jnp.int32(k))
        same(got, expected)
        for mask, x in zip(got, sharded):
            assert mask.sharding.is_equivalent_to(x.sharding, x.ndim)
        text = program.as_text()
        assert not re.search("all-gather|all-to-all|collective-permute", text)
        reductions = text.count("all-reduce(")  # a few per pass, none per slice
        assert 0 < reductions < 20, reductions

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    tree = dict(zip("abc", [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(host, last)]))
    live = masks.prune(tree, k)
    same(live.values(), expected)
    again = masks.prune(jax.tree.map(lambda x: -x, tree), k - 5, masks=live)
    assert not any((again[name] & ~live[name]).any() for name in tree)
    assert sum(n for n, _ in masks.count(again, tree).values()) == k - 5

    def mapped(top):
        return lambda xs, ns: lax.map(lambda a: top(*a), (xs, ns))

    stacked = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in members]
    for method, lay_out in (("scatter", mapped), ("scatter", jax.vmap), ("compare", jax.vmap)):
        run = lay_out(functools.partial(ranking.top, method=method))
        shards = jax.shard_map(run, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
        same(jax.jit(shards)(stacked, ks), each)
"""


@pytest.mark.slow
def test_meshes_give_the_same_masks_and_gather_nothing():
    """Four simulated devices: automatic and explicit sharding, members in `shard_map`."""
    warnings = ["-W", "error", "-W", "ignore:Error reading persistent compilation cache entry"]
    subprocess.run(
        [sys.executable, *warnings, "-c", textwrap.dedent(MESHES)],
        check=True,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"},
        cwd=os.path.dirname(os.path.dirname(__file__)),
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint8", "bool"])
def test_the_opposite_order_ranks_the_smallest_first(dtype):
    numbers = (
        np.array([0, 3, 1, 1, 0, 2]) if dtype != "int8" else np.array([-128, 127, 0, -1, 5, 0])
    )
    x = jnp.asarray(numbers).astype(dtype)
    kept = np.asarray(ranking.top([radix.opposite(x)], 3)[0])
    smallest = np.argsort(np.asarray(x).astype(float), kind="stable")[:3]
    np.testing.assert_array_equal(np.flatnonzero(kept), np.sort(smallest))
