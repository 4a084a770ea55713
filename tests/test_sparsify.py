"""The optax wrapper: exact counts at the right steps, and nothing revives the dead."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prunejax import schedules
from prunejax.optim import sparsify


def params():
    r = np.random.default_rng(0)
    return {
        "a": {"kernel": jnp.asarray(r.normal(size=(8, 5)), jnp.float32), "bias": jnp.ones(5)},
        "b": {"kernel": jnp.asarray(r.normal(size=(5, 4)), jnp.float32)},
    }


def dead(p):
    return {k: np.asarray(v["kernel"]) == 0 for k, v in p.items()}


@pytest.mark.parametrize(
    "inner", [optax.adam(0.1), optax.sgd(0.1, 0.9), optax.adamw(0.1, weight_decay=0.3)]
)
def test_counts_and_permanence(inner):
    events = schedules.cubic(units=60, fraction=0.8, start=2, end=8, period=3)
    tx = sparsify(inner, events)
    p = params()
    state = tx.init(p)

    @jax.jit
    def step(p, state, i):
        u, state = tx.update(jax.tree.map(lambda x: jnp.cos(x * i + 1), p), state, p)
        return optax.apply_updates(p, u), state

    removed, before = 0, None
    for i in range(12):
        scores = np.concatenate([np.abs(np.asarray(p[k]["kernel"])).ravel() for k in "ab"])
        p, state = step(p, state, i)
        gone = dict(events).get(i, 0)
        removed += gone
        now = dead(p)
        assert sum(m.sum() for m in now.values()) == removed
        if gone:  # the smallest of the parameters before the update
            flat = np.concatenate([now[k].ravel() for k in "ab"])
            assert scores[flat].max() <= scores[~flat].min()
        if before is not None:
            assert all((now[k] | ~before[k]).all() for k in now)
        before = now
    assert removed == 60 - schedules.kept(60, 0.8)
    assert (np.asarray(p["a"]["bias"]) != 0).all()


def test_layer_scope_takes_the_count_from_every_leaf():
    tx = sparsify(optax.sgd(0.1), [(0, 3)], scope="layer")
    p = params()
    u, _ = tx.update(jax.tree.map(jnp.ones_like, p), tx.init(p), p)
    assert [m.sum() for m in dead(optax.apply_updates(p, u)).values()] == [3, 3]


def test_bad_requests():
    with pytest.raises(ValueError, match="at least one"):
        sparsify(optax.sgd(0.1), [])
    with pytest.raises(ValueError, match="matches none"):
        sparsify(optax.sgd(0.1), [(0, 1)], rules="conv.*").init(params())
    tx = sparsify(optax.sgd(0.1), [(0, 1)])
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(params(), tx.init(params()))


def test_what_could_fail_late_is_refused_at_once():
    for events in ([], [(-1, 2)], [(0.5, 1)], [(0, 1.5)]):
        with pytest.raises(ValueError, match="pairs of integers, at least one"):
            sparsify(optax.sgd(0.1), events)
    with pytest.raises(ValueError, match="'tree' is not one of: global, layer"):
        sparsify(optax.sgd(0.1), [(0, 1)], scope="tree")
