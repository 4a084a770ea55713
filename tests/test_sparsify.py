"""The optax wrapper: exact counts at the right steps, and nothing revives the dead."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prunejax import masks, schedules
from prunejax.methods import growth
from prunejax.sparsify import forward, masked, masks_of, sparsify, windows


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
    with pytest.raises(ValueError, match="the score of leaf 'heat' is one number"):
        sparsify(optax.sgd(0.1), [(0, 1)], rules="heat").init({"heat": jnp.ones(())})
    tx = sparsify(optax.sgd(0.1), [(0, 1)])
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(params(), tx.init(params()))


def test_what_could_fail_late_is_refused_at_once():
    wrong = ([], [(-1, 2)], [(0.5, 1)], [(0, 1.5)], [3], [(1, 2, 3)], {1: 2}, [("a", 1)])
    for events in (*wrong, [(2**31, 1)], [(0, 2**40)]):
        with pytest.raises(ValueError, match=r"pairs of integers below 2\^31, at least one"):
            sparsify(optax.sgd(0.1), events)
    with pytest.raises(ValueError, match="pairs of integers") as error:
        sparsify(optax.sgd(0.1), [(step, -1) for step in range(1000)])
    assert len(str(error.value)) < 300
    with pytest.raises(ValueError, match="'tree' is not one of: global, layer"):
        sparsify(optax.sgd(0.1), [(0, 1)], scope="tree")


def flat(n=72):
    r = np.random.default_rng(1)
    return {"w": jnp.asarray(r.normal(size=(8, n // 8)), jnp.float32), "bias": jnp.ones(3)}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"events": [(0, 60), (3, 40)]}, "remove 100 units in all, but there are 72"),
        ({"events": [(0, 73)]}, "remove 73 units in all, but there are 72"),
        ({"events": [(0, 9)], "rules": []}, "no path rule"),
        ({"events": [(0, 9)], "score": lambda w: jnp.sum(jnp.abs(w))}, "leaf 'w' is one number"),
        (
            {"events": [(0, 9)], "score": lambda w: jnp.sum(jnp.abs(w), axis=1)},
            r"leaf 'w': a mask of shape \(8,\) does not broadcast against its leaf .* \(8, 9\)",
        ),
        ({"events": [(0, 9)], "score": lambda w: w[None]}, r"\(1, 8, 9\) does not broadcast"),
        ({"events": [(0, 9)], "rules": "bias", "scope": "layer"}, "'bias', the smallest, has 3"),
        ({"events": [(0, 9)], "masks": {"w": True}}, "masks must have the structure"),
        (
            {"events": [(0, 9)], "masks": {"w": np.arange(72).reshape(8, 9) < 5, "bias": True}},
            "remove 9 units in all, but there are 5",
        ),
        (
            {"events": [(0, 1)], "masks": {"w": np.ones(7, bool), "bias": True}},
            "does not broadcast",
        ),
    ],
)
def test_more_than_there_is_is_refused_at_init(options, text):
    with pytest.raises(ValueError, match=text):
        sparsify(optax.sgd(0.1), options.pop("events"), **options).init(flat())


def test_no_leaf_to_prune_is_told():
    with pytest.raises(ValueError, match="no leaf is pruned"):
        sparsify(optax.sgd(0.1), [(0, 1)]).init({"bias": jnp.ones(3), "scale": jnp.ones((1, 3))})
    with pytest.raises(ValueError, match="or masks= to be kept"):
        sparsify(optax.sgd(0.1))


def test_given_masks_are_kept_and_pruned_further():
    p = flat()
    ticket = {"w": jnp.abs(p["w"]) > 0.5, "bias": jnp.array(True)}
    alive = int(ticket["w"].sum())
    for events in ([], [(2, 5)]):
        tx = sparsify(optax.adam(0.1), events, masks=ticket)
        q, state = p, tx.init(p)
        for i in range(4):
            u, state = tx.update(jax.tree.map(jnp.ones_like, q), state, q)
            q = optax.apply_updates(q, u)
            gone = np.asarray(q["w"]) == 0
            assert gone.sum() == 72 - alive + (5 if events and i >= 2 else 0)
            assert gone[~np.asarray(ticket["w"])].all()
        assert (np.asarray(q["bias"]) != 1).all()
    # A checkpoint's zeros are its mask; masks of leaves that rules leave alone are kept as well.
    sparse = masks.apply(ticket, p)
    tx = sparsify(optax.sgd(0.1), masks=masks.of(sparse, "w"), rules="bias")
    u, state = tx.update(jax.tree.map(jnp.ones_like, p), tx.init(p), p)
    assert (np.asarray(optax.apply_updates(p, u)["w"]) == 0).sum() == 72 - alive


def test_pruned_infinities_become_zero_in_masked_only():
    p = {"w": jnp.array([[jnp.nan, 1.0], [jnp.inf, 2.0]])}
    tx = optax.MultiSteps(sparsify(optax.sgd(0.1), [(0, 2)], score=lambda w: -jnp.abs(w)), 1)
    u, state = tx.update({"w": jnp.ones((2, 2))}, tx.init(p), p)
    q = optax.apply_updates(p, u)
    assert not np.isfinite(q["w"][:, 0]).any()
    np.testing.assert_allclose(masked(q, state)["w"], [[0, 0.9], [0, 1.9]])
    assert masks_of(state)["w"].tolist() == [[False, True], [False, True]]
    with pytest.raises(ValueError, match="0 states of sparsify"):
        masks_of(optax.sgd(0.1).init(p))


def test_extra_arguments_reach_the_optimizer():
    p = flat()

    def loss(p):
        return jnp.sum((p["w"] - 1) ** 2) + jnp.sum(p["bias"] ** 2)

    value, gradient = jax.value_and_grad(loss)(p)
    plateau = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
    cases = {
        "plateau": (plateau, {"value": value}),
        "polyak": (optax.polyak_sgd(), {"value": value}),
        "lbfgs": (optax.lbfgs(), {"value": value, "grad": gradient, "value_fn": loss}),
    }
    for name, (inner, extra) in cases.items():
        tx = sparsify(inner, [(0, 10)])
        u, _ = (
            jax.jit(tx.update)(gradient, tx.init(p), p, **extra)
            if name != "lbfgs"
            else (tx.update(gradient, tx.init(p), p, **extra))
        )
        q = optax.apply_updates(p, u)
        assert (np.asarray(q["w"]) == 0).sum() == 10, name
        assert loss(q) < value, name


def test_no_gradient_where_there_is_no_number():
    p = {"w": jnp.ones((2, 3)), "step": None}
    tx = sparsify(optax.sgd(0.1), [(0, 1)])
    u, _ = tx.update({"w": jnp.ones((2, 3)), "step": None}, tx.init(p), p)
    assert u["step"] is None
    masked_leaf = optax.masked(optax.sgd(0.1), {"w": True, "frozen": False})
    p = {"w": jnp.ones((2, 3)), "frozen": jnp.ones(2)}
    tx = sparsify(masked_leaf, [(0, 1)])
    u, _ = tx.update({"w": jnp.ones((2, 3)), "frozen": None}, tx.init(p), p)
    assert u["frozen"] is None


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_vmap_strict_promotion_and_short_floats(dtype):
    batch = jax.tree.map(lambda x: jnp.stack([x, 2 * x]).astype(dtype), flat())
    tx = sparsify(optax.sgd(0.125), [(0, 4)])
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        state = jax.vmap(tx.init)(batch)
        u, state = jax.vmap(tx.update)(jax.tree.map(jnp.ones_like, batch), state, batch)
        q = optax.apply_updates(batch, u)
    assert q["w"].dtype == dtype
    assert (np.asarray(q["w"], np.float32) == 0).sum((1, 2)).tolist() == [4, 4]


def sums(program):
    """(entries, type) of every sum of integers in a program, inner ones too."""
    for line in program.eqns:
        if line.primitive.name == "reduce_sum" and line.outvars[0].aval.dtype.kind in "iu":
            yield line.invars[0].aval.size, line.outvars[0].aval.dtype.name
        for value in jax.tree.leaves(line.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sums(inner)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_2_to_the_31_weights_are_counted_in_64_bits_or_refused(scope):
    """By the program alone: such arrays do not fit here."""
    tx = sparsify(optax.sgd(0.1), [(0, 5)], scope=scope)
    w = {"w": jax.ShapeDtypeStruct((2**16, 2**15), jnp.bfloat16)}
    m = {"w": jax.ShapeDtypeStruct(w["w"].shape, bool)}
    swap = lambda m, w, g: growth.drop_and_grow(m, w, g, 3, scope=scope)  # noqa: E731
    state = jax.eval_shape(tx.init, w)
    for function, given in ((tx.update, (w, state, w)), (swap, (m, w, w))):
        with jax.enable_x64(True):
            program = jax.make_jaxpr(function)(*given).jaxpr
        kinds = {kind for size, kind in sums(program) if size >= 2**31}
        assert kinds
        assert kinds <= {"int64", "uint64"}
        with pytest.raises(ValueError, match="cannot be counted in 32 bits"):
            jax.eval_shape(function, *given)


def test_events_are_held_to_counts_of_any_size(monkeypatch):
    events = [(0, 2**31 - 1), (1, 2**31 - 1)]
    with pytest.raises(ValueError, match="there are 60"):
        sparsify(optax.sgd(0.1), events).init(params())
    monkeypatch.setattr("prunejax.ops.counts.live", lambda mask: 2**31)
    sparsify(optax.sgd(0.1), events).init(params())


def odd():
    """Parameters beside what is not trained: truth values, whole numbers, a random key."""
    trained = {"w": jnp.arange(1.0, 13).reshape(3, 4), "empty": jnp.zeros((0, 4))}
    return trained, trained | {
        "flags": jnp.array([[True, False]]), "steps": jnp.arange(3), "key": jax.random.key(0),
        "nothing": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [
        lambda tx, rules: sparsify(tx, [(1, 5)], rules=rules),
        lambda tx, rules: sparsify(tx, "once", sparsity=0.4, start=1, rules=rules),
        lambda tx, rules: sparsify(tx, "ste", sparsity=0.4, every=1, forward=forward, rules=rules),
        lambda tx, rules: sparsify(tx, "rigl", sparsity=0.4, every=1, end=2, seed=0, rules=rules),
        lambda tx, rules: windows(tx, [(1, 5)], rules=rules),
    ],
    ids=["events", "once", "ste", "rigl", "windows"],
)
def test_what_is_not_trained_may_be_of_any_kind(make, request):
    alone, whole = odd()
    found = []
    for p in (alone, whole):
        tx = make(optax.sgd(0.1), ["w", "empty"])
        state = tx.init(p)

        @jax.jit
        def step(p, state, tx=tx):
            g = {k: jnp.ones_like(v) if k in alone else None for k, v in p.items()}
            u, state = tx.update(g, state, p)
            assert all(u[k] is None for k in p if k not in alone)
            return {k: v if u[k] is None else v + u[k] for k, v in p.items()}, state

        for _ in range(3):
            p, state = step(p, state)
        found.append({k: np.asarray(p[k]) for k in alone})
    np.testing.assert_array_equal(found[0]["w"], found[1]["w"])
    if "ste" not in request.node.callspec.id:  # there the dead train on
        assert (found[0]["w"] == 0).sum() in (5, 4)  # 60 % of 12 stay, rounded up


@pytest.mark.parametrize(
    "make",
    [
        lambda live: sparsify(optax.sgd(0.1), [(1, 2)], masks=live),
        lambda live: sparsify(optax.sgd(0.1), "static", masks=live),
        lambda live: sparsify(optax.sgd(0.1), "rigl", every=1, end=2, masks=live),
        lambda live: windows(optax.sgd(0.1), [(0, 2)], duration=1, restore="weights"),
    ],
    ids=["events", "static", "rigl", "windows"],
)
def test_a_loop_may_donate_parameters_and_state(make):
    """The caller's masks outlive it, though one array of them stands for several leaves."""
    whole = jnp.array(True)
    half = jax.tree.map(lambda x: jnp.arange(x.size).reshape(x.shape) % 2 == 0, params())
    live = {"a": half["a"] | {"bias": whole}, "b": half["b"]}
    tx, ends = make(live), []
    for donated in ((), (0, 1)):
        p = params()
        state = tx.init(p)

        def step(p, state):
            updates, state = tx.update(jax.tree.map(jnp.sign, p), state, p)
            return optax.apply_updates(p, updates), state

        step = jax.jit(step, donate_argnums=donated)
        for _ in range(3):
            p, state = step(p, state)
        ends.append(p)
        assert not any(x.is_deleted() for x in jax.tree.leaves(live))
    for x, y in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(x, y)
    same = {"a": dict.fromkeys(("kernel", "bias"), whole), "b": {"kernel": whole}}
    state = sparsify(optax.sgd(0.1), masks=same).init(params())
    places = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.masks)]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("whole", [False, True], ids=["leaves", "subtree"])
def test_masks_where_others_are_trained_by_another_optimizer(whole):
    p = params()
    label = {"kernel": "rest"} if not whole else "rest"
    labels = {"a": {"kernel": "pruned", "bias": "rest"}, "b": label}
    pruned = sparsify(optax.sgd(0.1), [(0, 15)])
    tx = optax.partition({"pruned": pruned, "rest": optax.adam(0.1)}, labels)
    updates, state = tx.update(jax.tree.map(jnp.ones_like, p), tx.init(p), p)
    p = optax.apply_updates(p, updates)
    live = masks_of(state, p)
    assert masks.count(live, p) == {"a/bias": (5, 5), "a/kernel": (25, 40), "b/kernel": (20, 20)}
    assert jax.tree.structure(live) == jax.tree.structure(p)
    for used in (masked(p, state), forward(p, state)):
        np.testing.assert_array_equal(used["a"]["kernel"], p["a"]["kernel"] * live["a"]["kernel"])
        np.testing.assert_array_equal(used["b"]["kernel"], p["b"]["kernel"])
    alone = optax.masked(pruned, jax.tree.map(lambda x: x == "pruned", labels))
    assert masks.count(masks_of(alone.init(p), p), p)["b/kernel"] == (20, 20)
    if not whole:
        assert jax.tree.structure(masks_of(state)) == jax.tree.structure(p)


@pytest.mark.parametrize(
    "make",
    [
        lambda rules: sparsify(optax.sgd(0.1), [(0, 3)], rules=rules),
        lambda rules: sparsify(optax.sgd(0.1), "once", start=0, sparsity=0.5, rules=rules),
        lambda rules: sparsify(optax.sgd(0.1), "magnitude", sparsity=0.5, rules=rules),
        lambda rules: windows(optax.sgd(0.1), [(0, 3)], rules=rules),
    ],
    ids=["events", "once", "magnitude", "windows"],
)
def test_rules_may_come_from_an_iterator(make):
    p, found = params(), []
    for rules in (["a/kernel"], iter(["a/kernel"])):
        tx = make(rules)
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, p), tx.init(p), p)
        found.append(optax.apply_updates(p, updates))
    assert (np.asarray(found[0]["a"]["kernel"]) == 0).sum() in (3, 20)
    for x, y in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rigl", {"every": 1, "end": 2, "seed": 0}),
        ("rigl", {"every": 2, "end": 4, "seed": 0, "average": 2}),
        ("movement", {"end": 1, "score_rate": 1.0, "forward": forward}),
    ],
)
def test_a_leaf_that_is_pruned_by_its_gradient_needs_one(name, options):
    p = params()
    tx = sparsify(optax.masked(optax.sgd(0.1), False), name, sparsity=0.5, **options)
    g = jax.tree.map(jnp.ones_like, p)
    g["a"]["bias"] = None  # nothing is asked of it
    state = tx.init(p)
    tx.update(g, state, p)
    g["b"]["kernel"] = None
    with pytest.raises(ValueError, match=f"{name}: leaf 'b/kernel' is pruned by .* has none"):
        tx.update(g, state, p)
