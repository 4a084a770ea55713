"""Optimizers against optax and a NumPy simulation; dead weights do not move."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prunejax.train import optim
from tests.studies import begun, functions, small


def params():
    r = np.random.default_rng(0)
    return {
        "w": jnp.asarray(r.normal(size=(4, 3)), jnp.float32),
        "b": jnp.asarray(r.normal(size=3), jnp.float32),
    }


def run(optimizer, steps, decay=0.0, masks=None, rate=0.1):
    p = params()
    masks = masks if masks is not None else jax.tree.map(lambda _: jnp.array(True), p)
    state = optimizer.init(p)

    @jax.jit
    def step(p, state, i):
        g = jax.tree.map(lambda x: jnp.sin(x + i), p)
        return optimizer.update(g, state, p, masks, jnp.float32(rate), jnp.float32(decay))

    for i in range(steps):
        p, state = step(p, state, i)
    return p


def all_decay():
    return {"w": True, "b": True}


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_matches_optax(name):
    reference = {"adam": optax.adam(0.1), "sgd": optax.sgd(0.1, 0.9)}[name]
    p = params()
    state = reference.init(p)
    for i in range(5):
        g = jax.tree.map(lambda x, i=i: jnp.sin(x + i), p)
        u, state = reference.update(g, state, p)
        p = optax.apply_updates(p, u)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        run(optim.build(name, all_decay()), 5),
        p,
    )


@pytest.mark.parametrize("nesterov", [False, True])
def test_coupled_decay_enters_before_momentum_as_in_pytorch(nesterov):
    decay, momentum, rate = 0.3, 0.9, 0.1
    ours = run(optim.build("sgd", all_decay(), momentum=momentum, nesterov=nesterov), 4, decay)
    for name, p in params().items():
        p, buffer = np.asarray(p, np.float64), 0.0
        for i in range(4):
            d = np.sin(p + i) + decay * p
            buffer = momentum * buffer + d
            p = p - rate * (d + momentum * buffer if nesterov else buffer)
        np.testing.assert_allclose(ours[name], p, rtol=1e-4, atol=1e-6)


def test_decoupled_decay_is_adamw_and_respects_the_rule():
    rule = {"w": True, "b": False}
    ours = run(optim.build("adam", rule, decoupled=True), 4, decay=0.2)
    reference = optax.adamw(0.1, weight_decay=0.2, mask=rule)
    p = params()
    state = reference.init(p)
    for i in range(4):
        g = jax.tree.map(lambda x, i=i: jnp.sin(x + i), p)
        u, state = reference.update(g, state, p)
        p = optax.apply_updates(p, u)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, p)


def test_clipping_bounds_the_global_norm():
    clipped = optim.build("sgd", all_decay(), momentum=0.0, clip_norm=0.5)
    p = params()
    g = jax.tree.map(lambda x: 10 * jnp.ones_like(x), p)
    masks = jax.tree.map(lambda _: jnp.array(True), p)
    new, _ = clipped.update(g, clipped.init(p), p, masks, jnp.float32(1.0), jnp.float32(0.0))
    norm = optax.tree.norm(jax.tree.map(jnp.subtract, p, new))
    assert float(norm) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("name", ["adam", "sgd"])
@pytest.mark.parametrize("decoupled", [False, True])
def test_neither_momentum_nor_decay_moves_a_dead_weight(name, decoupled):
    optimizer = optim.build(name, all_decay(), decoupled=decoupled)
    p = params()
    live = jax.tree.map(lambda _: jnp.array(True), p)
    g = jax.tree.map(jnp.ones_like, p)
    p, state = optimizer.update(g, optimizer.init(p), p, live, jnp.float32(0.1), jnp.float32(0.1))
    masks = {"w": jnp.zeros((4, 1), bool).at[0].set(True), "b": jnp.array(True)}
    bad = {"w": jnp.full((4, 3), jnp.nan).at[0].set(1.0), "b": jnp.ones(3)}
    new, _ = optimizer.update(bad, state, p, masks, jnp.float32(0.1), jnp.float32(0.1))
    np.testing.assert_array_equal(new["w"][1:], p["w"][1:])
    assert np.isfinite(np.asarray(new["w"])).all()
    assert (np.asarray(new["w"][0]) != np.asarray(p["w"][0])).all()


def test_learning_rates():
    rates = optim.learning_rates("multistep", 1.0, 6, milestones=(2, 4), decay=0.1)
    np.testing.assert_allclose(rates, [1, 1, 0.1, 0.1, 0.01, 0.01])
    assert optim.learning_rates("constant", 0.5, 3) == [0.5] * 3
    cosine = optim.learning_rates("cosine", 2.0, 4)
    np.testing.assert_allclose(cosine, [1 + np.cos(np.pi * e / 4) for e in range(4)], rtol=1e-6)
    for given in ((4, 2), (2, 4, 2)):  # six epochs have six rates, in whatever order
        many = optim.learning_rates("cosine", 2.0, 6, restarts=given)
        assert many == optim.learning_rates("cosine", 2.0, 6, restarts=(2, 4))
    again = optim.learning_rates("cosine", 2.0, 6, restarts=(2,))
    assert again == optim.learning_rates("cosine", 2.0, 2) + cosine
    steps = optim.learning_rates("multistep", 1.0, 6, milestones=(1, 5), restarts=(3,))
    np.testing.assert_allclose(steps, [1, 0.1, 0.1, 1, 0.1, 0.1])
    with pytest.raises(ValueError, match="Did you mean 'cosine'"):
        optim.learning_rates("cosin", 1.0, 3)


def test_unknown_optimizer_is_told():
    with pytest.raises(ValueError, match="unknown optimizer 'adm'"):
        optim.build("adm", all_decay())


def test_the_rate_rises_in_a_line_over_the_first_steps():
    steps = jnp.arange(6)
    share = optim.warmed(steps, jnp.float32(4))
    np.testing.assert_array_equal(share, np.float32([0.25, 0.5, 0.75, 1, 1, 1]))
    np.testing.assert_array_equal(optim.warmed(steps, jnp.float32(0)), np.ones(6, np.float32))


def test_the_first_step_of_a_warm_up_is_one_at_that_share_of_the_rate():
    def first(**optimizer):
        config = small(a={"optimizer": {"name": "sgd", "schedule": "constant"} | optimizer})
        batch, data, state = begun(config)
        functions_of = functions(batch.program)
        return functions_of.train(state, data, jnp.int32(1)).params

    warm = first(learning_rate=0.5, warmup_steps=4)
    jax.tree.map(np.testing.assert_array_equal, warm, first(learning_rate=0.125))
