"""Zeroing and noise in a loop of one's own, step by step against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prunejax import rng, scores
from prunejax.ops import noise
from prunejax.sparsify import windows

RATE = 0.25
START = {
    "a": {"kernel": np.arange(1, 13, dtype=np.float32).reshape(3, 4)},
    "b": {"kernel": -np.arange(1, 9, dtype=np.float32).reshape(2, 4) / 16, "bias": np.ones(4)},
}
GRADIENT = {"a": {"kernel": 0.5}, "b": {"kernel": 1.0, "bias": 1.0}}


def go(tx, updates):
    """The parameters after each update."""
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), START)
    gradients = jax.tree.map(
        lambda g, p: jnp.broadcast_to(jnp.float32(g), p.shape), GRADIENT, START
    )
    state, found = tx.init(params), []

    @jax.jit
    def step(params, state):
        changes, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, changes), state

    for _ in range(updates):
        params, state = step(params, state)
        found.append(jax.tree.map(np.asarray, params))
    return found


def after(leaf, layer="b"):
    """The leaf after a plain SGD step."""
    return leaf - np.float32(RATE * GRADIENT[layer]["kernel"])


@pytest.mark.parametrize("restore", ["no", "weights"])
def test_zeroed_for_three_steps_and_then_free(restore):
    tx = windows(optax.sgd(RATE), [(1, 5)], duration=3, restore=restore, rules="b/kernel")
    w = START["b"]["kernel"]
    small = np.zeros(8, bool)
    expected = []
    for number in range(7):
        w = after(w)
        if number == 1:
            small[np.argsort(np.abs(w).ravel(), kind="stable")[:5]] = True
            small, before = small.reshape(w.shape), w.copy()
        if 1 <= number < 4:
            w = np.where(small, 0, w)
        if number == 4 and restore == "weights":
            w = np.where(small, before, w)
        expected.append(w)
    found = go(tx, 7)
    for ours, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours["b"]["kernel"], wanted, rtol=1e-6)
        assert (ours["b"]["kernel"] == 0).sum() == (wanted == 0).sum()
    np.testing.assert_array_equal(
        found[-1]["a"]["kernel"], go(optax.sgd(RATE), 7)[-1]["a"]["kernel"]
    )


def test_noise_is_the_studies_and_ends():
    rules = ["b/kernel"]
    tx = windows(
        optax.sgd(RATE), [(0, 2)], kind="gaussian", duration=2, target="largest", rules=rules,
        score=scores.filter_l2, noise_scale=0.5, seed=3,
    )  # fmt: skip
    w, expected = START["b"]["kernel"], []
    for number in range(4):
        w = after(w)
        if number == 0:
            chosen = np.zeros(4, bool)
            chosen[np.argsort(-np.sum(w**2, 0), kind="stable")[:2]] = True
        if number < 2:  # the event's draw is that of the first step
            sigma = 0.5 * np.std(w[:, np.argmin(chosen)], ddof=1)
            stream = ("noise at events", 0) if number == 0 else ("noise", number + 1)
            key = noise.keys(rng.at(3, *stream), ("b/kernel",))["b/kernel"]
            w = w + np.where(chosen, sigma * np.asarray(noise.normal(key, w.shape)), 0)
        expected.append(w)
    for ours, wanted in zip(go(tx, 4), expected, strict=True):
        np.testing.assert_allclose(ours["b"]["kernel"], wanted, rtol=2e-5)


def test_random_targets_and_each_unit_once():
    tx = windows(optax.sgd(0.0), [(0, 3), (1, 3)], target="random", scope="layer", seed=1)
    first, second = go(tx, 2)
    for found, gone in ((first, 3), (second, 6)):
        assert [(x["kernel"] == 0).sum() for x in found.values()] == [gone, gone]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "prune"}, "unknown kind 'prune'; there are: gaussian, zero"),
        ({"duration": 0}, "at least 1 step"),
        ({"target": "smalest"}, "Did you mean 'smallest'"),
        ({"events": [(0, 99)]}, "target 99 units in all, but there are 20"),
        ({"events": [(0, 9)], "scope": "layer"}, "'b/kernel', the smallest, has 8"),
        ({"events": [(0, 0.5)]}, "pairs of integers"),
        ({"events": [3]}, "pairs of integers"),
        ({"events": None}, "pairs of integers"),
        ({"events": [(i, -1) for i in range(1000)]}, r"\.\.\..*pairs of integers"),
        ({"duration": 1.5}, r"duration 1\.5: an integer of at least 1 step"),
        ({"duration": "3"}, "duration '3'"),
        ({"duration": 2**31}, "below 2.30"),
        ({"noise_scale": float("nan")}, "noise_scale nan: a finite number"),
        ({"noise_scale": -1.0}, r"noise_scale -1\.0"),
        (
            {"rules": ["b/bias"], "events": [(0, 5)]},
            "target 5 units in all, but there are 4",
        ),
        ({"score": lambda w: jnp.sum(w, 1)}, "one number per weight"),
        ({"kind": "gaussian", "events": [(0, 19)]}, "target 19 units in all: the noise"),
        (
            {"kind": "gaussian", "events": [(0, 4)], "scope": "layer", "score": scores.filter_l2},
            "target 4 units in all: the noise",
        ),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        windows(optax.sgd(RATE), **({"events": [(0, 1)]} | options)).init(START)


def test_noise_in_a_vector_has_the_spread_of_its_untargeted_weights():
    bias = {"b": {"bias": jnp.arange(6, dtype=jnp.float32)}}
    tx = windows(optax.sgd(0.0), [(0, 3)], kind="gaussian", duration=1, rules="b/bias", seed=3)
    changed, _ = tx.update(jax.tree.map(jnp.zeros_like, bias), tx.init(bias), bias)
    key = noise.keys(rng.at(3, "noise at events", 0), ("b/bias",))["b/bias"]
    drawn = np.std([3.0, 4, 5], ddof=1) * np.asarray(noise.normal(key, (6,)))
    np.testing.assert_allclose(
        changed["b"]["bias"], np.where(np.arange(6) < 3, drawn, 0), rtol=1e-5
    )
    one = {"b": {"bias": jnp.ones(1)}}
    windows(optax.sgd(0.0), [(0, 0)], kind="gaussian", rules="b/bias").init(one)  # targets nothing
    thin = {"a": jnp.ones((1, 4))}
    with pytest.raises(ValueError, match=r"filter of leaf 'a' \(1, 4\) is a single weight"):
        windows(optax.sgd(0.0), [(0, 1)], kind="gaussian", score=scores.filter_l2, rules="a").init(
            thin
        )


def test_no_leaf_to_target_is_told():
    with pytest.raises(ValueError, match="no leaf is pruned"):
        windows(optax.sgd(RATE), [(0, 1)]).init({"bias": jnp.ones(3)})


def test_events_of_numpy_are_those_of_python():
    number = np.int64
    ours, theirs = (
        go(windows(optax.sgd(RATE), [pair]), 3)[-1] for pair in ((1, 2), (number(1), number(2)))
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert sum((x["kernel"] == 0).sum() for x in ours.values()) == 2


def test_the_largest_of_unsigned_scores():
    def whole(w):  # 0 is the least of them, and no target
        return jnp.round(16 * jnp.abs(w)).astype(jnp.uint8) // 2

    tx = windows(optax.sgd(0.0), [(0, 2)], target="largest", rules=["b/kernel"], score=whole)
    gone = go(tx, 1)[0]["b"]["kernel"] == 0
    worth = np.round(16 * np.abs(START["b"]["kernel"])) // 2
    assert gone.sum() == 2
    assert worth[gone].min() >= worth[~gone].max()
