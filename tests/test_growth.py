"""Drops and growths against brute force; exact counts; moments of what grows."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from prunejax import masks, rng
from prunejax.methods import growth
from prunejax.sparsify import sparsify


def case(seed=0, density=0.4):
    r = np.random.default_rng(seed)
    w = {"a": r.normal(size=(7, 6)), "b": r.normal(size=(6, 5)), "c": np.ones(3)}
    g = {"a": r.normal(size=(7, 6)), "b": r.normal(size=(6, 5)), "c": np.ones(3)}
    m = {"a": r.random((7, 6)) < density, "b": r.random((6, 5)) < density, "c": np.array(True)}
    to = lambda t: jax.tree.map(jnp.asarray, t)  # noqa: E731
    scores = lambda t: to({"a": np.abs(t["a"]), "b": np.abs(t["b"]), "c": np.float32(0)})  # noqa: E731
    return to(w), to(m), scores(w), scores(g)


def brute(m, drop, grow, swaps):
    """One layer by sorting."""
    m, drop, grow = (np.asarray(x).ravel() for x in (m, drop, grow))
    live = np.flatnonzero(m)
    kept = np.zeros(m.size, bool)
    kept[live[np.argsort(-drop[live], kind="stable")][: live.size - swaps]] = True
    dead = np.flatnonzero(~kept)
    grown = dead[np.argsort(-grow[dead], kind="stable")][:swaps]
    after = kept.copy()
    after[grown] = True
    return after, grown


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_rigl_grows_the_largest_gradients_of_the_dead(scope):
    _, m, w, g = case()
    u = growth.drop_and_grow(m, w, g, 4, scope=scope)
    if scope == "layer":
        for k in "ab":
            after, grown = brute(m[k], w[k], g[k], 4)
            assert (np.ravel(u.masks[k]) == after).all()
            assert sorted(np.flatnonzero(u.grown[k])) == sorted(grown)
            assert u.masks[k].sum() == m[k].sum()
    else:
        joined = [np.concatenate([np.ravel(t["a"]), np.ravel(t["b"])]) for t in (m, w, g)]
        after, grown = brute(*joined, 4)
        ours = np.concatenate([np.ravel(u.masks[k]) for k in "ab"])
        assert (ours == after).all()
        assert sum(int(u.grown[k].sum()) for k in "ab") == 4
    assert u.masks["c"].shape == ()
    assert not u.grown["c"]
    for k in "ab":  # what is dropped and grown at once is no drop, but starts anew
        before, now = np.asarray(m[k]), np.asarray(u.masks[k])
        assert (np.asarray(u.dropped[k]) == (before & ~now)).all()


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_what_is_dropped_alone_is_the_first_half(scope):
    """For events by count, windows and studies: the worst of what is live, NaN before all."""
    _, m, w, g = case(2)
    w = w | {"a": w["a"].at[np.argwhere(m["a"])[0][0], np.argwhere(m["a"])[0][1]].set(jnp.nan)}
    counts = {"a": 5, "b": 2} if scope == "layer" else 7
    ours = growth.dropped(m, w, counts, scope=scope)
    for k in "ab":
        assert not (ours[k] & ~m[k]).any()
    live = [np.flatnonzero(m[k]) for k in "ab"]
    worth = [np.nan_to_num(np.ravel(w[k])[at], nan=-1) for k, at in zip("ab", live, strict=True)]
    places = [(x, i) for n, each in enumerate(worth) for i, x in enumerate(each, 1000 * n)]
    if scope == "global":
        gone = {i for _, i in sorted(places, key=lambda p: (p[0], -p[1]))[:7]}
    else:
        parts = [[p for p in places if p[1] // 1000 == n] for n in range(2)]
        gone = {i for p, c in zip(parts, (5, 2), strict=True) for _, i in sorted(p)[:c]}
    found = {
        1000 * n + i
        for n, k in enumerate("ab")
        for i, at in enumerate(live[n])
        if not np.ravel(ours[k])[at]
    }
    assert found == gone
    assert ours["c"] == m["c"]
    both = growth.drop_and_grow(m, w, g, counts, scope=scope)
    assert jax.tree.all(jax.tree.map(lambda k, u: not (k & ~u).any(), ours, both.masks))


def test_gradual_with_regrowth_and_counts_by_path():
    _, m, w, g = case(1)
    keep = {"a": 9, "b": 7}
    u = growth.drop_and_grow(m, w, g, {"a": 3, "b": 0}, keep=keep)
    assert {k: int(u.masks[k].sum()) for k in keep} == keep
    assert {k: int(u.grown[k].sum()) for k in keep} == {"a": 3, "b": 0}
    only = growth.drop_and_grow(m, w, g, {"a": 3})
    assert (only.masks["b"] == m["b"]).all()
    same = growth.drop_and_grow(m, w, g, 0)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), same.masks, m))


def test_growth_counts_ties_and_nan():
    m = {"w": jnp.array([[True, False, False], [False, False, True]])}
    zeros = {"w": jnp.zeros((2, 3))}
    assert masks.grow(zeros, m, 2)["w"].tolist() == [[True, True, True], [False, False, True]]
    nan = {"w": jnp.array([[9.0, jnp.nan, 0], [-jnp.inf, jnp.nan, 9]])}
    assert masks.grow(nan, m, 2)["w"].tolist() == [[True, False, True], [True, False, True]]
    assert masks.grow(nan, m, 4)["w"].all()  # only where no other is left
    assert masks.grow(nan, m, {"w": 1}, scope="layer")["w"].sum() == 3
    traced = jax.jit(lambda k: masks.grow(zeros, m, k)["w"])(jnp.int32(99))
    assert traced.all()
    with pytest.raises(ValueError, match="counts = 5 for the tree: there are 4 dead units"):
        masks.grow(nan, m, 5)
    with pytest.raises(ValueError, match=r"counts = 0\.5 for the tree is no integer"):
        masks.grow(nan, m, 0.5)
    with pytest.raises(ValueError, match="'tree' is not one of"):
        masks.grow(nan, m, 1, scope="tree")


def test_set_grows_without_regard_to_weights_and_gradients():
    key = jax.random.key(3)
    w = {"w": jax.random.normal(key, (100, 100))}
    drawn = growth.random_growth(rng.at(3, "grow", 40), w)["w"]
    assert abs(stats.spearmanr(np.ravel(drawn), np.ravel(w["w"])).statistic) < 0.05
    other = growth.random_growth(rng.at(3, "grow", 60), w)["w"]
    assert abs(stats.spearmanr(np.ravel(drawn), np.ravel(other)).statistic) < 0.05


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("cosine", [30, 25, 15, 4, 0]),
        ("constant", [30, 30, 30, 30, 30]),
        ("linear", [30, 22, 15, 7, 0]),
    ],
)
def test_drop_fractions(decay, expected):
    steps = (0, 100, 200, 300, 400)
    assert [growth.swaps(100, 0.3, step=t, end=400, decay=decay) for t in steps] == expected
    assert growth.swaps(3, 0.3, step=0, end=400, decay=decay) == 0  # f n < 1: no swap
    assert growth.swaps(10, 0.7, step=0, end=1, decay=decay) == 7  # the decimal number


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, 0.9), optax.adam(0.1)], ids=["sgd", "adam"])
def test_counters_of_one_bare_array_go_on(optimizer):
    w = jnp.ones((3, 2))
    schedule = optax.scale_by_schedule(lambda t: 1.0)
    state = optax.chain(optimizer, schedule).init(w)
    later = jax.tree.map(lambda x: x + 5, state)
    mixed = growth.with_counters(state, later, w)
    for x, y, z in zip(*map(jax.tree.leaves, (state, later, mixed)), strict=True):
        np.testing.assert_array_equal(z, x if np.shape(x) == w.shape else y)


def test_bad_fractions():
    with pytest.raises(ValueError, match=r"drop = 1.5 is not in \[0, 1\]"):
        growth.swaps(3, 1.5, step=0, end=1)
    with pytest.raises(ValueError, match="an update at step 3"):
        growth.swaps(3, 0.5, step=3, end=1)
    with pytest.raises(ValueError, match="unknown decay of the drop fraction 'cosin'"):
        growth.swaps(3, 0.5, step=0, end=1, decay="cosin")


@pytest.mark.parametrize(
    "factor", [-1, 4, np.nan, np.inf, "much", None, 1j, np.ones(2)], ids=lambda x: str(x)[:4]
)
def test_decays_of_others_that_give_no_factor_are_told(monkeypatch, factor):
    """-1 gave -30 swaps, 4 more than are live; NaN and the others an error of Python."""
    monkeypatch.setitem(growth.DECAYS, "mine", lambda part: factor)
    with pytest.raises(ValueError, match=r"decay 'mine' gives .* at step 2 of 8; a number is need"):
        growth.swaps(100, 0.3, step=2, end=8, decay="mine")


@pytest.mark.parametrize("kind", [float, np.float32, jnp.float32, Fraction, np.array])
def test_a_factor_is_any_number(monkeypatch, kind):
    monkeypatch.setitem(growth.DECAYS, "mine", lambda part: kind(float(part) / 2))
    assert growth.swaps(100, 0.5, step=2, end=8, decay="mine") == 6  # of 50 an eighth
    monkeypatch.setitem(growth.DECAYS, "mine", lambda part: kind(2 * float(part) + 1))
    assert growth.swaps(100, 0.5, step=4, end=8, decay="mine") == 100


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.1, 0.9),
        optax.adamw(0.1),
        optax.chain(optax.clip(1.0), optax.scale_by_schedule(lambda t: 1.0), optax.adam(1e-3)),
        optax.lbfgs(memory_size=2),
        optax.adafactor(0.1, min_dim_size_to_factor=2),
        optax.masked(optax.adam(0.1), {"a": True, "b": True, "c": False}),
        optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    ],
    ids=["sgd", "adamw", "chain", "lbfgs", "adafactor", "masked", "inject"],
)
@pytest.mark.parametrize("whole", [False, True])
def test_moments_of_what_grows(optimizer, whole):
    w, m, _, _ = case()
    where = {**m, "c": jnp.array(False)}
    if whole:  # as units of a filter have them: flags along the last axis alone
        where["a"] = m["a"][:1]
        m = m | {"a": np.broadcast_to(np.asarray(where["a"]), w["a"].shape)}
    state = jax.tree.map(lambda x: x + 1, optimizer.init(w))
    new = growth.zero_moments(state, where)
    found = 0
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        for k in "ab":
            if np.shape(x)[-2:] == w[k].shape:
                assert (np.asarray(y)[..., np.asarray(m[k])] == 0).all()
                assert (np.asarray(y)[..., ~np.asarray(m[k])] != 0).all()
                found += 1
        if np.shape(x)[-2:] not in (w["a"].shape, w["b"].shape):
            np.testing.assert_array_equal(x, y)
    assert found or "v_row" in str(state)
    later = jax.tree.map(lambda x: x + 5, state)
    mixed = growth.with_counters(state, later, w)
    for x, y, z in zip(*map(jax.tree.leaves, (state, later, mixed)), strict=True):
        moment = np.shape(x)[-2:] in (w["a"].shape, w["b"].shape)
        if moment or not np.shape(x):
            np.testing.assert_array_equal(z, x if moment else y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_hyperparameters_are_no_moments_whatever_parameters_are_called():
    """An AC/DC event ends all moments; "b1" of Adam is no moment of a bias "b1"."""
    p = {"w1": jnp.ones((3, 2)), "b1": jnp.ones(2), "w2": jnp.ones((2, 2)), "b2": jnp.float32(1)}
    inner = optax.inject_hyperparams(optax.adam)(0.1, b1=0.8, b2=0.9)
    tx = sparsify(inner, "acdc", sparsity=0.5, phases=(1, 2, 3))
    state = jax.tree.map(lambda x: x + 1, inner.init(p))
    ends = growth.zero_moments(state, jax.tree.map(lambda x: jnp.array(True), p))
    assert jax.tree.all(jax.tree.map(lambda x, y: x == y, ends.hyperparams, state.hyperparams))
    for moments in (ends.inner_state[0].mu, ends.inner_state[0].nu):  # of the scalar, too
        assert all(not x.any() for x in jax.tree.leaves(moments))
    later = jax.tree.map(lambda x: x + 5, state)
    mixed = growth.with_counters(state, later, p)
    assert mixed.hyperparams == later.hyperparams
    np.testing.assert_array_equal(mixed.inner_state[0].mu["b1"], state.inner_state[0].mu["b1"])
    state, slopes = tx.init(p), jax.tree.map(jnp.ones_like, p)
    for _ in range(4):
        _, state = tx.update(slopes, state, p)
    assert state.inner.hyperparams["b1"] == jnp.float32(0.8)
    assert state.inner.hyperparams["b2"] == jnp.float32(0.9)


@pytest.mark.parametrize("reset", ["grown", "all"])
def test_what_an_event_ends_begins_as_the_optimizer_begins_it(reset):
    """Adagrad's sums at 0.1, schedule-free's copy at the parameters: at none of them is it 0."""
    p = {"w": jnp.arange(1.0, 7.0).reshape(2, 3), "b": jnp.ones(3)}
    inner = optax.contrib.schedule_free(optax.adagrad(0.5), 0.5)
    tx = sparsify(inner, "acdc", sparsity=0.5, phases=(0, 2, 9), reset=reset)
    state = tx.init(p)
    slopes = jax.tree.map(jnp.ones_like, p)
    for _ in range(2):
        updates, state = tx.update(slopes, state, p)
        p = optax.apply_updates(p, updates)
    dead = ~np.asarray(state.masks["w"])
    assert dead.sum() == 3
    _, after = tx.update(jax.tree.map(jnp.zeros_like, p), state, p)  # releases, and moves nothing
    for name, ended in (("w", dead | (reset == "all")), ("b", np.full(3, reset == "all"))):
        z, before = after.inner.z[name], state.inner.z[name]
        np.testing.assert_array_equal(z, np.where(ended, p[name], before))
        sums = after.inner.base_optimizer_state[0].sum_of_squares[name]
        np.testing.assert_allclose(sums, np.where(ended, 0.1, 2.1), rtol=1e-6)


def test_masks_that_are_numbers_and_trees_that_differ():
    scores = {"w": jnp.array([[1.0, 2.0, 3.0]])}
    number = growth.drop_and_grow({"w": jnp.array([[2, 1, 0]])}, scores, scores, 1)
    truth = growth.drop_and_grow({"w": jnp.array([[True, True, False]])}, scores, scores, 1)
    for a, b in zip(jax.tree.leaves(number), jax.tree.leaves(truth), strict=True):
        assert a.dtype == bool
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match=r"masks must have the structure.*missing w"):
        growth.drop_and_grow({"v": True}, scores, scores, 1)
    with pytest.raises(ValueError, match="for integers of 0 to 4"):
        growth.swaps(10, 0.3, step=0.5, end=4)
