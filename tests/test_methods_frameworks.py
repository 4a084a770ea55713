"""Methods by name in loops of Linen, NNX, Equinox and Haiku: counts, swaps, dead weights at 0."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prunejax import trees
from prunejax.sparsify import forward, masked, masks_of, sparsify

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the frameworks
X = jax.random.normal(jax.random.key(0), (32, 20))
Y = jnp.sin(X[:, :1])
STEPS = 7
WEIGHTS = 20 * 12 + 12  # of the kernels of every network here
NAMES = ("rigl", "gradual", "ste")


def made(name):
    parts = {
        "rigl": {"every": 2, "end": 6, "seed": 0},
        "gradual": {"every": 2, "end": 4},
        "ste": {"forward": forward},
    }[name]
    return sparsify(optax.adam(1e-2), name, sparsity=0.75, **parts)


def mse(outputs):
    return jnp.mean((outputs - Y) ** 2)


def ends_well(first, params, state, name):
    """A quarter of the weights is live; the others are 0 in what is used; something was learnt."""
    live = masks_of(state)
    used = masked(params, state)
    flat = zip(jax.tree.leaves(live), jax.tree.leaves(used), strict=True)
    kernels = [(np.asarray(m), np.asarray(p)) for m, p in flat if jnp.ndim(m)]
    assert sum(m.size for m, _ in kernels) == WEIGHTS
    assert sum(int(m.sum()) for m, _ in kernels) == WEIGHTS // 4
    assert all((p[~m] == 0).all() for m, p in kernels)
    if name == "rigl":
        moved = zip(jax.tree.leaves(live), jax.tree.leaves(masks_of(first)), strict=True)
        assert any((a != b).any() for a, b in moved)
    if name == "ste":
        hidden = [p for p in jax.tree.leaves(params) if jnp.ndim(p) > 1]
        assert all((np.asarray(p) != 0).mean() > 0.9 for p in hidden)


def plain_loop(params, apply, name):
    """Any framework whose parameters are a tree and whose network is a function of it."""
    tx = made(name)
    state = first = tx.init(params)
    if name != "ste":
        params = masked(params, state)

    @jax.jit
    def step(params, state):
        gradients = jax.grad(lambda p: mse(apply(forward(p, state))))(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(STEPS):
        params, state = step(params, state)
    assert step._cache_size() == 1
    return first, params, state


@pytest.mark.parametrize("name", NAMES)
def test_linen(name):
    import flax.linen as nn

    net = nn.Sequential([nn.Dense(12), nn.LayerNorm(), nn.relu, nn.Dense(1)])
    params = net.init(jax.random.key(1), X)["params"]
    ends_well(*plain_loop(params, lambda p: net.apply({"params": p}, X), name), name)


@pytest.mark.parametrize("name", NAMES)
def test_haiku(name):
    import haiku as hk

    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([12, 1])(x)))
    params = net.init(jax.random.key(1), X)
    ends_well(*plain_loop(params, lambda p: net.apply(p, X), name), name)


@pytest.mark.parametrize("name", NAMES)
def test_equinox(name):
    import equinox as eqx

    net = eqx.nn.MLP(20, 1, 12, 1, key=jax.random.key(1))
    params, rest = eqx.partition(net, eqx.is_inexact_array)
    ends_well(
        *plain_loop(params, lambda p: jax.vmap(eqx.combine(p, rest))(X), name),
        name,
    )


@pytest.mark.parametrize("name", NAMES)
def test_nnx(name):
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.c1, self.c2 = nnx.Linear(20, 12, rngs=rngs), nnx.Linear(12, 1, rngs=rngs)

        def __call__(self, x):
            return self.c2(nnx.relu(self.c1(x)))

    graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    ends_well(*plain_loop(params, lambda p: nnx.merge(graph, p, rest)(X), name), name)


def test_nnx_optimizer():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.c1, self.c2 = nnx.Linear(20, 12, rngs=rngs), nnx.Linear(12, 1, rngs=rngs)

        def __call__(self, x):
            return self.c2(nnx.relu(self.c1(x)))

    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, made("gradual"), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: mse(m(X)))(model))

    for _ in range(STEPS):
        step(model, optimizer)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    kernels = [np.asarray(p) for path, p in trees.leaves_with_paths(params) if "kernel" in path]
    assert sum(int(np.count_nonzero(k)) for k in kernels) == WEIGHTS // 4


def test_nnx_optimizer_with_masks_from_the_start():
    """What docs say before the first step, `masked(params, state)`, of boxed masks."""
    from flax import nnx

    model = nnx.Linear(20, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, made("rigl"), wrt=nnx.Param)
    before = np.asarray(model.kernel[...])
    nnx.update(model, masked(nnx.state(model, nnx.Param), optimizer.opt_state))
    (live,) = (np.asarray(m) for m in jax.tree.leaves(masks_of(optimizer.opt_state)) if m.ndim)
    assert live.sum() == 5
    np.testing.assert_array_equal(model.kernel[...], np.where(live, before, 0))
    dense = nnx.state(nnx.Linear(20, 1, rngs=nnx.Rngs(0)), nnx.Param)
    slope = jax.grad(lambda p: jnp.sum(forward(p, optimizer.opt_state)["kernel"][...]))(dense)
    np.testing.assert_array_equal(slope["kernel"][...], np.ones((20, 1)))  # dead weights too
