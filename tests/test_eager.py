"""The choice outside of programs: bit by bit that of the compiled one, at every size and value."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import masks
from prunejax.ops import eager, ranking

SHAPES = [(3, 3, 10, 16), (7,), (30_000,), (0, 4), (100, 300)]
SIZE = sum(int(np.prod(s)) for s in SHAPES)
FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)


def draw(kind, dtype):
    r = np.random.default_rng(0)
    leaves = []
    for shape in SHAPES:
        x = r.standard_normal(shape) * 5
        x = {"continuous": x, "ties": np.round(x / 3), "equal": np.zeros(shape)}.get(kind, x)
        if kind == "special":
            odd = r.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, -1e-42], shape)
            x = np.where(r.random(shape) < 0.5, odd, x)
        if kind == "mostly nan":
            x = np.where(r.random(shape) < 0.97, np.nan, x)
        leaves.append(jax.device_put(np.float32(x)).astype(dtype))
    return leaves


def same(got, expected):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


COMPILED = jax.jit(functools.partial(ranking.top, method="scatter"))


@pytest.fixture(autouse=True)
def two_chunks(monkeypatch):
    """The larger arrays, which are small ones, are looked at in two chunks."""
    monkeypatch.setattr(eager, "_CHUNK", 1 << 14)


@pytest.fixture
def bracketed(monkeypatch):
    """As trees of many millions are: these would be partitioned whole."""
    monkeypatch.setattr(eager, "_WHOLE", 1 << 15)


@pytest.mark.parametrize("dtype", [*FLOATS, jnp.int32, jnp.uint8, jnp.bool_])
@pytest.mark.parametrize("kind", ["continuous", "ties", "equal", "special", "mostly nan"])
def test_is_the_compiled_choice(dtype, kind, monkeypatch):
    if dtype not in FLOATS and kind not in ("ties", "equal"):
        pytest.skip("whole numbers have neither fractions nor special values")
    leaves = draw(kind, dtype)
    some = [jax.device_put(np.random.default_rng(1).random(s) < 0.6) for s in SHAPES]
    everything = [jax.device_put(np.ones(s, bool)) for s in SHAPES]
    for allowed in (everything, some):
        for k in (-3, 0, 1, 900, SIZE // 2, SIZE - 5, 10**12):
            given = [None] * len(SHAPES) if allowed is everything else allowed
            expected = COMPILED(leaves, jnp.int32(min(k, 2**31 - 1)), eligible=allowed)
            for most in (SIZE, 1 << 15):  # partitioned whole, and in a bracket
                monkeypatch.setattr(eager, "_WHOLE", most)
                got = eager.top(leaves, k, given)
                same(got, expected)
                assert sum(np.count_nonzero(m) for m in got) == min(
                    max(k, 0), sum(np.count_nonzero(a) for a in allowed)
                )


def test_each_leaf_is_ranked_by_itself():
    leaves, ks = draw("ties", jnp.float32), [500, 3, 29_999, 1, 1_234]
    allowed = [None, None, jnp.asarray(np.random.default_rng(2).random(30_000) < 0.5), None, None]
    got = eager.each(leaves, ks, allowed)
    for x, k, a, mask in zip(leaves, ks, allowed, got, strict=True):
        same([mask], eager.top([x], k, [a]))
    same(got, jax.jit(ranking.each)(leaves, [jnp.int32(k) for k in ks], allowed))


@pytest.mark.usefixtures("bracketed")
@pytest.mark.parametrize("bracket", [(1.0, 1.5), (-9.0, -8.0), (8.0, 9.0), (-99.0, 99.0)])
def test_a_bracket_that_missed_costs_time_only(bracket, monkeypatch):
    leaves = draw("continuous", jnp.float32)
    expected = eager.top(leaves, SIZE // 2, [None] * len(SHAPES))
    asked = []

    def missed(chunks, k):
        asked.append(k)
        return np.float32(bracket[0]), np.float32(bracket[1])

    monkeypatch.setattr(eager, "_bracket", missed)
    same(eager.top(leaves, SIZE // 2, [None] * len(SHAPES)), expected)
    assert asked


@pytest.mark.usefixtures("bracketed")
def test_a_large_tree_is_bracketed_and_little_of_it_is_partitioned(monkeypatch):
    """By a count of work: what lies in the bracket is a few hundredths of all."""
    sizes, concatenate = [], np.concatenate

    def counted(parts):
        sizes.append(sum(len(p) for p in parts))
        return concatenate(parts)

    leaves = [jnp.asarray(np.random.default_rng(0).standard_normal(2_000_000), jnp.float32)]
    monkeypatch.setattr(eager.np, "concatenate", counted)
    got = eager.top(leaves, 200_000, [None])
    assert np.count_nonzero(got[0]) == 200_000
    sample, bracket = [n for n in sizes if n > 100]  # no third: it did not miss
    assert sample <= 1.01 * eager.SAMPLE
    assert bracket <= 0.06 * 2_000_000


def test_double_precision_beyond_single():
    with jax.enable_x64(True):
        x = jnp.asarray(1 + 2.0**-50 * np.random.default_rng(0).permutation(400_000))
        got = masks.prune({"w": x}, 1000)["w"]
        assert np.count_nonzero(got) == 1000
        assert np.min(np.asarray(x)[got]) > np.max(np.asarray(x)[~np.asarray(got)])


def test_what_is_traced_or_spread_is_left_to_programs():
    x = jnp.arange(6.0)
    assert eager.usable(x, 3, jnp.int32(3), None)
    seen = []
    jax.jit(lambda y: seen.append(eager.usable(y)))(x)
    jax.vmap(lambda k: seen.append(eager.usable(x, k)))(jnp.arange(2))
    assert seen == [False, False]
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    assert not eager.usable(spread)
    if jax.device_count() > 1:
        assert not eager.usable(jax.device_put(x, jax.devices()[1]))


def test_nothing_is_compiled_for_the_shapes_of_a_tree():
    r = np.random.default_rng(0)
    tree = {f"w{i}": jax.device_put(r.random(1000 + i, np.float32)) for i in range(12)}
    masks.prune({"w": jax.device_put(r.random(7, np.float32))}, 3)  # what depends on no shape
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        for scope in ("global", "layer"):
            live = masks.prune(tree, 700, scope=scope)
            masks.prune(tree, 300, masks=live, scope=scope)
    finally:
        jax.monitoring.clear_event_listeners()
    assert not compiled, compiled


def test_masks_may_be_used_anywhere_like_other_new_arrays():
    live = masks.prune({"w": jnp.arange(6.0)}, 2)["w"]
    assert isinstance(live, jax.Array)
    assert (live & jax.device_put(jnp.ones(6, bool), jax.devices()[-1])).sum() == 2
