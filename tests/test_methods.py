"""Every method in an optax loop: exact counts, and what each is equal to in its limits."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prunejax import masks as masks_lib
from prunejax.methods import METHODS, growth, resolve, timetable
from prunejax.sparsify import forward, masked, masks_of, sparsify

R = np.random.default_rng(0)
X = jnp.asarray(R.normal(size=(16, 8)), "f")
Y = jnp.sin(X @ jnp.asarray(R.normal(size=(8, 3)), "f"))
STEPS = 16


def net(scale=1.0):
    r = np.random.default_rng(1)
    draw = lambda *s: jnp.asarray(scale * r.normal(size=s) / np.sqrt(s[0]), "f")  # noqa: E731
    return {"a": draw(8, 8), "m": draw(8, 4), "bias": jnp.zeros((1, 4)), "c": draw(4, 3)}


def apply(p, x):
    return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["m"] + p["bias"]) @ p["c"]


def loss(p):
    return jnp.mean((apply(p, X) - Y) ** 2)


def output(p):
    return apply(p, jnp.ones((1, 8)))


SETTINGS = {
    "random": {"seed": 1},
    "magnitude": {},
    "snip": {"loss": loss},
    "grasp": {"loss": loss},
    "synflow": {"output": output, "rounds": 3},
    "static": {"seed": 1},
    "set": {"seed": 1, "every": 3, "end": 12},
    "rigl": {"seed": 1, "every": 3, "end": 12},
    "once": {"start": 2},
    "gradual": {"every": 3, "end": 12},
    "gradual_regrow": {"every": 3, "end": 12},
    "ste": {"forward": forward},
    "acdc": {"phases": (3, 6, 9)},
    "movement": {"forward": forward, "end": 12, "score_rate": 1.0},
    "movement_soft": {
        **{"forward": forward, "score_rate": 1.0, "penalty": 50.0, "threshold": 0.4},
        "sparsity": None,
    },
    "nm": {},
}


def made(name, optimizer=None, **parts):
    sparsity = {} if name == "nm" else {"sparsity": 0.75}
    options = {**sparsity, **SETTINGS[name], **parts}
    return sparsify(optimizer or optax.sgd(0.1, 0.9), name, **options)


def train(tx, params=None, steps=STEPS):
    """Parameters, state and the masks and parameters after each step."""

    def step(carry, _):
        p, state = carry
        g = jax.grad(lambda p: loss(forward(p, state)))(p)
        u, state = tx.update(g, state, p)
        p = optax.apply_updates(p, u)
        return (p, state), (state.masks, p, g)

    @jax.jit
    def run(p):
        state = tx.init(p)
        if tx.frozen_start:
            p = masked(p, state)
        return state, jax.lax.scan(step, (p, state), None, steps)

    start, ((p, state), history) = run(net() if params is None else params)
    return start, p, state, history


class Loop:
    """A transformation, and whether its loop begins at masked parameters."""

    def __init__(self, tx, dead="zero"):
        self.init, self.update, self.frozen_start = tx.init, tx.update, dead == "zero"


@functools.cache
def trained(name):
    return train(Loop(made(name), METHODS[name].dead))


def counts(m):
    return {k: int(np.sum(m[k])) for k in "amc"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_ends_at_its_counts(name):
    _, p, state, (history, _, _) = trained(name)
    assert set(SETTINGS) == set(METHODS)
    live = counts(state.masks)
    if name == "nm":
        assert live == {"a": 32, "m": 16, "c": 6}
    elif name == "movement_soft":
        assert 3 <= sum(live.values()) < 108
    else:
        assert sum(live.values()) == 27
    assert state.masks["bias"].shape == ()
    out = masked(p, state)
    for k in "amc":
        assert np.isfinite(p[k]).all()
        dead = ~np.asarray(state.masks[k])
        assert (np.asarray(out[k])[dead] == 0).all()
        if METHODS[name].dead == "zero":
            assert (np.asarray(p[k])[dead] == 0).all()
    if name in ("set", "rigl", "static"):
        per_layer = np.array([[history[k][i].sum() for k in "amc"] for i in range(STEPS)])
        assert (per_layer == per_layer[0]).all()
    if name.startswith("gradual"):
        total = [sum(history[k][i].sum() for k in "amc") for i in range(STEPS)]
        assert total == sorted(total, reverse=True)
        assert total[0] == 27 - (27 - 108) * 64 // 125


def same(a, b, exact=False):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if exact:
            np.testing.assert_array_equal(x, y)
        else:
            np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7)


def test_limits():
    _, static, _, _ = trained("static")
    for name in ("set", "rigl"):
        _, p, _, _ = train(Loop(made(name, drop=0.0)))
        same(p, static, exact=True)

    def dense(steps=STEPS):
        tx, p = optax.sgd(0.1, 0.9), net()
        (p, _), _ = jax.lax.scan(
            lambda c, _: (
                (lambda u, s: (optax.apply_updates(c[0], u), s))(
                    *tx.update(jax.grad(loss)(c[0]), c[1], c[0])
                ),
                None,
            ),
            (p, tx.init(p)),
            None,
            steps,
        )
        return p

    expected = dense()
    for name, dead, parts in (
        ("rigl", "zero", {}),
        ("gradual", "zero", {}),
        ("ste", "trained", {}),
        ("acdc", "zero", {"reset": "grown"}),
        ("movement", "frozen", {}),
    ):
        _, p, _, _ = train(Loop(made(name, sparsity=0.0, **parts), dead))
        same(p, expected)


def test_a_rigl_update_is_a_drop_and_a_growth_without_a_gradient_step():
    _, _, _, (history, params, gradients) = trained("rigl")
    at = lambda t, i: jax.tree.map(lambda x: x[i], t)  # noqa: E731
    before, p, g = at(history, 2), at(params, 2), at(gradients, 3)
    rank = {k: jnp.abs(p[k]) if k != "bias" else jnp.float32(0) for k in p}
    towards = {k: jnp.abs(g[k]) if k != "bias" else jnp.float32(0) for k in p}
    live = counts(before)
    swaps = {k: growth.swaps(n, 0.3, step=3, end=12) for k, n in live.items()}
    assert sum(swaps.values()) > 0
    u = growth.drop_and_grow(before, rank, towards, swaps)
    same(at(history, 3), u.masks, exact=True)
    for k in "amc":
        stay = np.asarray(u.masks[k]) & ~np.asarray(u.grown[k])
        expected = np.where(stay, p[k], 0)
        np.testing.assert_array_equal(params[k][3], expected)
    same(at(history, 12), at(history, STEPS - 1), exact=True)  # nothing after the end
    same(at(params, 3)["bias"], at(params, 2)["bias"], exact=True)


def test_moments_are_zero_where_weights_have_grown_and_counters_go_on():
    tx = made("rigl", optax.adam(0.1))
    p = net()
    state = tx.init(p)
    p = masked(p, state)
    step = jax.jit(lambda p, s: tx.update(jax.grad(loss)(p), s, p))
    for i in range(4):
        before = state
        u, state = step(p, state)
        p = optax.apply_updates(p, u)
        assert int(state.inner[0].count) == i + 1
    grown = {k: np.asarray(state.masks[k]) & ~np.asarray(before.masks[k]) for k in "amc"}
    assert sum(x.sum() for x in grown.values()) > 0
    for k, x in grown.items():
        assert (np.asarray(state.inner[0].mu[k])[x] == 0).all()
        assert (np.asarray(state.inner[0].nu[k])[x] == 0).all()
        stay = np.asarray(state.masks[k]) & np.asarray(before.masks[k])
        same(np.asarray(state.inner[0].mu[k])[stay], np.asarray(before.inner[0].mu[k])[stay])
    assert step._cache_size() == 1


def test_growth_by_the_gradients_of_several_batches():
    """Given gradients that only the window tells apart: growth follows their sum."""
    tx = made("rigl", average=2, every=4, redistribute=True, sparsity=0.5)
    p = net()
    state = tx.init(p)
    p = masked(p, state)
    step = jax.jit(tx.update)
    r = np.random.default_rng(5)
    seen = []
    for _ in range(5):
        before = state
        g = jax.tree.map(lambda x: jnp.asarray(r.normal(size=x.shape), "f"), p)
        seen.append(g)
        u, state = step(g, state, p)
        held, p = p, optax.apply_updates(p, u)
    total = jax.tree.map(jnp.add, seen[3], seen[4])
    rank = {k: jnp.abs(held[k]) if k != "bias" else jnp.float32(0) for k in p}
    towards = {k: jnp.abs(total[k]) if k != "bias" else jnp.float32(0) for k in p}
    swaps = growth.swaps(54, 0.3, step=4, end=12)
    expected = growth.drop_and_grow(before.masks, rank, towards, swaps, scope="global")
    same(state.masks, expected.masks, exact=True)
    assert counts(state.masks) != counts(before.masks)


def test_straight_through_masks_fit_the_parameters_and_the_dead_are_pulled():
    _, p, state, (history, _, gradients) = trained("ste")
    flat = np.concatenate([np.abs(np.ravel(p[k])) for k in "amc"])
    live = np.concatenate([np.ravel(state.masks[k]) for k in "amc"])
    assert flat[live].min() >= flat[~live].max()
    for k in "amc":  # dense, at the masks of the step before
        assert np.asarray(gradients[k][5])[~np.asarray(history[k][4])].any()
    tx = made("ste", optax.sgd(1.0), dead_decay=0.5)
    p = net()
    state = tx.init(p)
    u, _ = tx.update(jax.tree.map(jnp.zeros_like, p), state, p)
    for k in "amc":
        same(u[k], -0.5 * p[k] * ~state.masks[k])


def test_forward_has_masked_values_and_dense_slopes():
    tx = made("ste")
    p = net()
    p["a"] = p["a"].at[0, 0].set(jnp.nan)
    state = tx.init(p)
    same(forward(p, state), masked(p, state), exact=True)
    assert not state.masks["a"][0, 0]
    slopes = jax.grad(lambda p: sum(jnp.sum(x) for x in jax.tree.leaves(forward(p, state))))(p)
    same(slopes, jax.tree.map(jnp.ones_like, p), exact=True)


def test_phases_compress_and_release():
    _, _, state, (history, _, _) = trained("acdc")
    total = [sum(int(history[k][i].sum()) for k in "amc") for i in range(STEPS)]
    assert total == [108] * 3 + [27] * 3 + [108] * 3 + [27] * (STEPS - 9)
    assert timetable.alternate(total=90, warmup=10, sparse=20, dense=10, final=20) == (
        *(10, 30, 40, 60, 70),
    )
    with pytest.raises(ValueError, match=r"are no multiple of 10 \+ 10"):
        timetable.alternate(total=95, warmup=10, sparse=10, dense=10, final=20)
    tx = made("acdc", optax.sgd(0.1, 0.9))
    p = net()
    s = tx.init(p)._replace(step=jnp.int32(6))
    s = s._replace(inner=jax.tree.map(lambda x: x + 1, s.inner))
    _, s = tx.update(jax.tree.map(jnp.zeros_like, p), s, p)
    assert all((x == 0).all() for x in jax.tree.leaves(s.inner))
    del state


def test_movement_scores_are_cumulated_gradient_times_weight():
    for name in ("movement", "movement_soft"):
        parts = {"penalty": 0.0} if name == "movement_soft" else {}
        start, _, state, (_, params, gradients) = train(
            Loop(made(name, **parts), "frozen"), steps=6
        )
        del start
        for k in "amc":
            w = np.concatenate([np.asarray(net()[k])[None], np.asarray(params[k])[:-1]])
            same(state.scores[k], -np.sum(w * np.asarray(gradients[k]), 0))
        assert state.scores["bias"].shape == ()


def test_top_scores_not_top_magnitudes():
    _, _, state, _ = trained("movement")
    s = np.concatenate([np.ravel(state.scores[k]) for k in "amc"])
    live = np.concatenate([np.ravel(state.masks[k]) for k in "amc"])
    assert s[live].min() >= s[~live].max()
    _, _, state, _ = train(Loop(made("movement", score="learnt_magnitude"), "frozen"))
    s = np.abs(np.concatenate([np.ravel(state.scores[k]) for k in "amc"]))
    live = np.concatenate([np.ravel(state.masks[k]) for k in "amc"])
    assert s[live].min() >= s[~live].max()


@pytest.mark.parametrize("name", ["set", "gradual_regrow"])
def test_vmapped_over_seeds_equals_one_after_the_other(name):
    def run(seed, scale):
        tx = made(name, seed=seed)
        p = jax.tree.map(lambda x: x * scale, net())
        state = tx.init(p)
        p = masked(p, state)

        def step(carry, _):
            p, state = carry
            u, state = tx.update(jax.grad(loss)(p), state, p)
            return (optax.apply_updates(p, u), state), None

        (p, state), _ = jax.lax.scan(step, (p, state), None, 8)
        return p, state.masks

    seeds, scales = jnp.arange(2), jnp.array([1.0, 1.5])
    together = jax.jit(jax.vmap(run))(seeds, scales)
    alone = jax.jit(run)
    for i in range(2):
        one = alone(seeds[i], scales[i])
        same(jax.tree.map(lambda x, i=i: x[i], together[1]), one[1], exact=True)
        same(jax.tree.map(lambda x, i=i: x[i], together[0]), one[0])
    first, second = (jax.tree.map(lambda x, i=i: x[i], together[1]) for i in range(2))
    assert any((first[k] != second[k]).any() for k in "amc")


def test_multi_steps_short_floats_and_extra_arguments():
    tx = optax.MultiSteps(made("rigl", optax.adam(0.1), every=1, end=4), 2)
    p = jax.tree.map(lambda x: x.astype(jnp.bfloat16), net())
    state = tx.init(p)
    p = masked(p, state)
    start = masks_of(state)
    step = jax.jit(tx.update)
    for i in range(4):
        u, state = step(jax.grad(loss)(p), state, p)
        p = optax.apply_updates(p, u)
        if i < 3:  # the update numbered 1 is that of the fourth batch
            same(masks_of(state), start, exact=True)
    assert counts(masks_of(state)) == counts(start)
    assert any((masks_of(state)[k] != start[k]).any() for k in "amc")
    assert p["a"].dtype == jnp.bfloat16
    assert sum(int(jnp.count_nonzero(p[k])) for k in "amc") <= 27
    polyak = made("static", optax.polyak_sgd())
    p = net()
    value, g = jax.value_and_grad(loss)(p)
    polyak.update(g, polyak.init(p), p, value=value)


def test_given_masks_are_swapped_at_the_sparsity_they_have():
    p = net()
    ticket = masks_lib.prune(jax.tree.map(lambda x: jnp.abs(x) if x.ndim > 1 else 0.0, p), 30)
    tx = sparsify(optax.sgd(0.1), "rigl", masks=ticket, every=2, end=4, drop=0.5)
    state = tx.init(p)
    p = masked(p, state)
    for _ in range(3):
        u, state = tx.update(jax.grad(loss)(p), state, p)
        p = optax.apply_updates(p, u)
    assert counts(state.masks) == counts(ticket)
    assert any((state.masks[k] != ticket[k]).any() for k in "amc")


def test_plans_have_exact_counts():
    shapes = {"a": (30, 40), "b": (40, 10)}
    m = resolve("gradual", sparsity=0.9, start=10, end=50, every=10, allocation="erk")
    plan = timetable.plan(m, shapes)
    assert plan.steps.tolist() == [10, 20, 30, 40, 50]
    assert plan.keep[-1].sum() == 160
    ramp = [160 + (1600 - 160) * (1 - i / 5) ** 3 for i in range(1, 6)]
    np.testing.assert_allclose(plan.keep.sum(1), ramp, atol=2)
    m = resolve(
        "gradual", schedule="accelerated_cubic", jump_sparsity=0.5, sparsity=0.9, end=40, every=10
    )
    assert timetable.plan(m, shapes).keep[:, 0].tolist() == [800, 430, 240, 170, 160]
    m = resolve("rigl", sparsity=0.5, end=400, every=100)
    assert timetable.plan(m, shapes).steps.tolist() == [100, 200, 300]  # at 400 f is 0
    m = resolve("set", sparsity={"a": 0.5, "b": 0.25}, end=40, every=10, drop=0.1)
    assert timetable.plan(m, shapes).keep[0].tolist() == [600, 300]
    m = resolve("gradual", nm=(1, 4), end=20, every=10)
    plan = timetable.plan(m, shapes)
    assert (plan.scope, plan.keep[:, 0].tolist()) == ("nm", [2, 1, 1][: len(plan.keep)])


@pytest.mark.parametrize(
    ("name", "parts", "text"),
    [
        ("snip", {}, r"snip needs loss= \(a function from parameters to the loss"),
        ("synflow", {}, r"synflow needs output= \(a function"),
        ("static", {}, "static needs seed="),
        (
            "ste",
            {},
            r"ste needs forward= \(prunejax.sparsify.forward.*loss\(forward\(params, state",
        ),
        ("rigl", {"seed": 1}, r"rigl needs end= \(the last step.*every= \(the steps between"),
        ("set", {"sparsity": None}, "set needs end= .*every= .*sparsity= .*seed= "),
        ("snip", {"sparsity": None}, "snip needs sparsity= .*loss= "),
        ("movement", {}, "movement needs end= .*score_rate= .*forward= "),
        ("acdc", {}, r"acdc needs phases= \(steps that compress"),
        ("movement", {"end": 9}, r"needs score_rate= \(the learning rate"),
        ("rigel", {}, "unknown method 'rigel'.*Did you mean 'rigl'"),
        ("gradual", {"evry": 3}, "gradual: no setting 'evry'.*Did you mean 'every'"),
        ("gradual", {"end": 9, "every": 0}, "every = 0 must be an integer of at least 1"),
        ("gradual", {"end": 9, "every": 3, "allocation": "erc"}, "allocation 'erc' is not one of"),
        ("set", {"end": 9, "every": 3}, "set needs seed="),
        ("set", {"end": 9, "every": 3, "nm": (2, 4)}, "blocks of N:M cannot swap"),
        ("set", {"end": 9, "every": 3, "growth": None}, "needs growth='random' or 'gradient'"),
        ("acdc", {"phases": (3, 5)}, "an odd number of rising steps"),
        ("gradual", {"end": 9, "every": 3, "average": 2}, "goes with growth='gradient'"),
        ("rigl", {"end": 9, "every": 2, "average": 5, "seed": 1}, "average = 5: .* at most 2"),
        (
            "rigl",
            {"start": 2, "end": 9, "every": 4, "average": 4, "seed": 1},
            "at step 2, has 3 batches up to it",
        ),
        ("static", {"seed": 1, "scope": "layer"}, "methods have allocation="),
        ("static", {"seed": 1, "masks": True}, "no sparsity="),
        ("gradual", {"end": 9, "every": 3, "sparsity": 90}, "sparsity = 90: fraction 90 is not in"),
        (
            "gradual",
            {"end": 9, "every": 3, "sparsity": ".9"},
            "sparsity = '.9': .* is no number in",
        ),
        ("set", {"end": 9, "every": 3, "seed": 0, "drop": 2.0}, "drop = 2.0: .* not in"),
        ("random", {"sparsity": {"w": 2.0}, "seed": 0}, "sparsity of 'w' = 2.0: .* not in"),
        ("random", {"sparsity": None, "allocation": [("w", 0.5)]}, "or a dict from path rule"),
        ("nm", {"nm": 2, "sparsity": None}, "nm = 2 must be a pair of integers"),
        ("nm", {"nm": (5, 4), "sparsity": None}, r"nm = \(5, 4\) must be a pair"),
        ("nm", {"nm": (1, 2), "sparsity": None, "axis": "in"}, "axis = 'in' must be an integer"),
        ("acdc", {"phases": 5}, "phases = 5 must be an odd number of rising steps"),
        ("acdc", {"phases": "abc"}, "phases = 'abc' must be an odd number"),
        ("acdc", {"phases": [1.5]}, r"phases = \[1\.5\] must be"),
        (
            "rigl",
            {"end": 9, "every": 3, "redistribute": "no"},
            "redistribute = 'no' must be True or",
        ),
        ("movement", {"end": 9, "score_rate": "1"}, "score_rate = '1' must be a finite number"),
        ("static", {"decay": "cosin"}, "decay 'cosin' is not one of: cosine, constant, linear"),
    ],
)
def test_one_clear_error(name, parts, text):
    with pytest.raises(ValueError, match=text) as error:
        sparsify(optax.sgd(0.1), name, **{"sparsity": 0.5, **parts}).init(net())
    assert "\n" not in str(error.value)


def test_more_errors():
    with pytest.raises(ValueError, match="gradual needs sparsity="):
        sparsify(optax.sgd(0.1), "gradual", every=1, end=3)
    with pytest.raises(ValueError, match="sparsity= is a setting of a method"):
        sparsify(optax.sgd(0.1), [(0, 1)], sparsity=0.9)
    with pytest.raises(ValueError, match="no axis -2 whose size is divisible by 5"):
        made("nm", nm=(2, 5)).init(net())
    tx = made("once", score=lambda w: jnp.sum(w, 0))
    with pytest.raises(ValueError, match="prune single weights"):
        tx.update(net(), tx.init(net()), net())


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from prunejax.sparsify import masked, sparsify
mesh = Mesh(jax.devices(), "x")
normal = np.random.default_rng(0).normal
p = {"w": jnp.float32(normal(size=(64, 96))), "v": jnp.float32(normal(size=(96, 8)))}
loss = lambda p: jnp.sum(jnp.tanh(p["w"] @ p["v"]) ** 2)
tx = sparsify(optax.sgd(1e-3, 0.9), "rigl", sparsity=0.9, every=1, end=4, seed=0)
def run(p):
    s = tx.init(p)
    p = masked(p, s)
    def step(_, carry):
        p, s = carry
        u, s = tx.update(jax.grad(loss)(p), s, p)
        return optax.apply_updates(p, u), s
    p, s = jax.lax.fori_loop(0, 2, step, (p, s))
    return p, s.masks
one = jax.jit(run)(p)
sharded = jax.device_put(p, {"w": NamedSharding(mesh, P(None, "x")),
                             "v": NamedSharding(mesh, P("x"))})
many = jax.jit(run)(sharded)
assert len(jax.devices()) == 2
one, many = jax.device_get((one, many))
assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (one[1], many[1]))))
assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(*map(jax.tree.leaves, (one[0], many[0]))))
print("done")
"""


def test_sharded_over_two_devices():
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "done\n", done.stderr


PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"


@pytest.mark.usefixtures("promoting")
def test_the_page_runs_and_names_every_method():
    names: dict = {}
    text = PAGE.read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    assert set(METHODS) <= set(re.findall(r'"(\w+)"', text))
    exact = [*("random", "magnitude", "snip", "snip_rounds", "grasp", "synflow", "shuffled")]
    exact += [*("static", "set_", "rigl", "once", "gradual", "gradual_regrow", "ste", "acdc")]
    for name in (*exact, "movement", "soft", "nm", "ste_nm"):
        params, live = names[name]
        left = sum(int(jnp.count_nonzero(params[k]["w"])) for k in params)
        total = sum(int(jnp.sum(live[k]["w"])) for k in params)
        assert left <= total, name
        if name in exact:
            assert total == 154, name  # ceil(768 / 5)
    assert sum(int(jnp.sum(m["w"])) for m in names["nm"][1].values()) == 384
    assert sum(int(jnp.sum(m["w"])) for m in names["ste_nm"][1].values()) == 192
