"""Selection of leaves laid end to end: against brute force, and by counts of work, not clocks."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from prunejax import masks
from prunejax.ops import ranking, segments

SIZES = [5, 40, 41, 7, 300, 64, 129]  # of small kinds: one slice, whole slices, a rest


def brute(x, k, allowed=None):
    """The k largest of a flat array by a stable sort: ties in order, NaN last."""
    x = np.asarray(x, np.float64).ravel() + 0.0
    free = np.ones(x.size, bool) if allowed is None else np.asarray(allowed).ravel()
    nan = np.isnan(x)
    order = np.lexsort((np.arange(x.size), -np.where(nan, 0, x), nan, ~free))
    chosen = np.zeros(x.size, bool)
    chosen[order[: max(k, 0)]] = True
    return chosen & free


def draw(seed=0):
    r = np.random.default_rng(seed)
    leaves = [np.round(r.standard_normal(n) * 3) for n in SIZES]
    leaves[4][::7], leaves[0][:2], leaves[3][:] = np.nan, -np.inf, 1.0
    return [jnp.asarray(x, jnp.float32) for x in leaves]


@pytest.fixture
def small_kinds(monkeypatch):
    kinds = (segments.Kind(41, 16, 8), segments.Kind(150, 32, 11), segments.Kind(math.inf, 64, 16))
    monkeypatch.setattr(segments, "KINDS", kinds)
    return kinds


@pytest.mark.usefixtures("small_kinds")
@pytest.mark.parametrize("among", ["all", "some"])
def test_is_the_brute_force_ranking_of_all_and_of_each(among):
    r = np.random.default_rng(1)
    leaves = draw()
    allowed = None if among == "all" else [jnp.asarray(r.random(n) < 0.6) for n in SIZES]
    flags = [None] * len(SIZES) if allowed is None else allowed

    @jax.jit
    def both(leaves, k, ks, allowed):
        return segments._top(leaves, k, allowed, True), segments._top(leaves, ks, allowed, False)

    whole = np.concatenate(leaves)
    free = None if allowed is None else np.concatenate(allowed)
    for share in (0.0, 0.1, 0.5, 0.93, 1.0):
        k = round(share * sum(SIZES))
        ks = [round(share * n) for n in SIZES]
        together, apart = both(leaves, jnp.int32(k), jnp.asarray(ks, jnp.int32), allowed)
        np.testing.assert_array_equal(np.concatenate(together), brute(whole, k, free))
        for x, n, flag, mask in zip(leaves, ks, flags, apart, strict=True):
            np.testing.assert_array_equal(mask, brute(x, n, flag))


def test_layers_of_every_size_and_dtype_are_ranked_each_by_itself():
    r = np.random.default_rng(0)
    shapes = {"a": (7,), "b": (30, 30), "c": (300, 300), "d": (4,), "e": (1, 1, 1, 9), "f": (31,)}
    scores = {n: jnp.asarray(np.round(r.standard_normal(s) * 9), "f") for n, s in shapes.items()}
    scores |= {"d": jnp.arange(4), "s": jnp.float32(0), "none": jnp.zeros((0, 3))}
    keep = {name: 3 * x.size // 5 for name, x in scores.items() if x.ndim and name != "f"}
    got = jax.jit(lambda s, k: masks.prune(s, k, scope="layer"))(scores, keep)
    for name, n in keep.items():
        np.testing.assert_array_equal(np.ravel(got[name]), brute(scores[name], n))
        assert got[name].shape == scores[name].shape
    assert np.all(got["f"])  # no count speaks of it
    assert got["s"]  # a scalar
    again = masks.prune(scores, dict.fromkeys(keep, 2) | {"none": 0}, masks=got, scope="layer")
    for name in keep.keys() - {"none"}:
        np.testing.assert_array_equal(np.ravel(again[name]), brute(scores[name], 2, got[name]))


def test_counts_beyond_and_below_what_there_is():
    leaves, free = draw(), [None] * len(SIZES)
    for run in (lambda fn: fn, jax.jit):  # by NumPy, and as a program
        huge = run(lambda x: ranking.each(x, [10**12] * len(x), free))(leaves)
        assert all(np.all(m) for m in huge)
        none = run(lambda x, k: ranking.each(x, [k] * len(x), free))(leaves, jnp.int32(-4))
        assert not any(np.any(m) for m in none)


def program(leaves, scope):
    """The compiled text of `masks.prune` for leaves of two shapes."""
    tree = {f"{i:03}": jnp.zeros((40, 50) if i % 2 else (30, 30, 7)) for i in range(leaves)}
    keep = 1000 if scope == "global" else dict.fromkeys(tree, 100)
    fn = jax.jit(lambda t, k: masks.prune(jax.tree.map(jnp.abs, t), k, scope=scope))
    return fn.lower(tree, keep).compile().as_text()


def distinct(text):
    """How many different routines a program holds: equal ones are compiled once."""
    plain = re.sub(r", metadata=\{[^}]*\}|%[\w.\-]+|/\*.*?\*/", "", text)
    bodies = {part.partition("{")[2] for part in plain.split("\n\n")[1:]}
    return len(bodies)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_program_does_not_grow_with_the_leaves(scope):
    few, many = program(8, scope), program(64, scope)
    assert many.count(" while(") == few.count(" while(") <= 12
    assert distinct(many) <= distinct(few) + 4, (distinct(few), distinct(many))


def test_members_are_worked_through_one_after_the_other():
    """Under `vmap` as under `lax.map`: the same loops, and no histogram of all members at once."""
    tree = [jnp.zeros((8, 300, 400)), jnp.zeros((8, 40, 50))]
    ks = jnp.arange(8)
    one = lambda t, k: masks.prune(t, k)  # noqa: E731
    mapped = jax.jit(lambda t, k: lax.map(lambda a: one(*a), (t, k))).lower(tree, ks).compile()
    vectorized = jax.jit(jax.vmap(one)).lower(tree, ks).compile()
    loops = [p.as_text().count(" while(") for p in (vectorized, mapped)]
    memory = [p.memory_analysis().temp_size_in_bytes for p in (vectorized, mapped)]
    assert loops[0] <= loops[1]
    assert memory[0] <= 1.05 * memory[1] + 4096


def test_members_within_members_and_shared_counts():
    r = np.random.default_rng(0)
    x = jnp.asarray(r.standard_normal((2, 3, 70, 80)), jnp.float32)
    y = jnp.asarray(r.standard_normal((50, 90)), jnp.float32)  # the same for all members
    fn = jax.vmap(jax.vmap(lambda a, k: masks.prune([a, y], k), in_axes=(0, None)))
    got = jax.jit(fn)(x, jnp.array([100, 9000]))
    for i, k in enumerate((100, 9000)):
        for j in range(3):
            found = np.concatenate([np.ravel(m[i, j]) for m in got])
            assert (found == brute(np.concatenate([np.ravel(x[i, j]), np.ravel(y)]), k)).all()


def test_nothing_is_differentiated_through_a_choice():
    w = {"a": jnp.linspace(-1, 2, 5000).reshape(50, 100), "b": jnp.linspace(0, 1, 300)}

    def loss(w):
        live = masks.prune(jax.tree.map(jnp.abs, w), 700)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(masks.apply(live, w)))

    live = masks.prune(jax.tree.map(jnp.abs, w), 700)
    for gradient in (jax.grad(loss)(w), jax.jit(jax.grad(jax.checkpoint(loss)))(w)):
        expected = jax.tree.map(lambda m, x: jnp.where(m, 2 * x, 0), live, w)
        jax.tree.map(np.testing.assert_array_equal, gradient, expected)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_double_precision(scope):
    """Scores that differ beyond single precision, in a caller's program of 64 bits."""
    with jax.enable_x64(True):
        r = np.random.default_rng(3)
        scores = {
            f"w{i}": 1 + 1e-12 * r.permutation(n).astype(float) for i, n in enumerate((40, 300))
        }
        kept = jax.jit(lambda s: masks.prune(s, 30, scope=scope))(jax.tree.map(jnp.asarray, scores))
    if scope == "layer":
        for name, s in scores.items():
            np.testing.assert_array_equal(kept[name], brute(s, 30))
    else:
        whole = brute(np.concatenate(list(scores.values())), 30)
        np.testing.assert_array_equal(np.concatenate([kept[n] for n in scores]), whole)
