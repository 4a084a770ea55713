"""Straight-through, movement, N:M and other parts of methods in studies, beside the library."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prunejax import trees
from prunejax.errors import ConfigError
from prunejax.methods import before
from prunejax.sparsify import forward, masks_of, sparsify
from prunejax.train import evidence, prune, step
from tests.studies import begun, functions, planned, small


def momentum(**arms):
    config = small(**arms)
    config.optimizer.name, config.optimizer.momentum = "sgd", 0.9
    config.optimizer.learning_rate, config.optimizer.schedule = 0.05, "constant"
    return config


def one(settings, **changes):
    """Batch, data and the first run's state before training, its first events done."""
    config = momentum(a={"prune": settings})
    config.update(changes)
    return begun(config)


def batches(batch, state, data, count):
    """The first batches (inputs and labels) that a run trains on."""
    order = np.asarray(step._order(batch.program, state))
    size = batch.program.batch_size
    for i in range(count):
        chosen = order[i * size : (i + 1) * size]
        yield step.inputs(batch.program, data.train_images[chosen]), data.train_labels[chosen]


def go(batch, state, data, count):
    """So many steps of the first epoch, with the events that fall on them."""
    table, epochs = batch.members[0].table, batch.program.epochs
    does = functions(batch.program)
    due = lambda n: [r for r in range(epochs + 1, len(table.steps)) if table.steps[r] == n]  # noqa: E731
    for row in (0, *due(0)):
        state, _ = does.event(state, data, row)
    for n in range(1, count + 1):
        state = does.train(state, data, 1)
        for row in due(n):
            state, _ = does.event(state, data, row)
    return state


def library(batch, state, data, tx, count):
    """The same steps in a loop of the library's."""
    module, params = batch.program.module, state.params

    def loss(params, x, y):
        logits = module.apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    opt_state = tx.init(params)

    @jax.jit
    def update(params, opt_state, x, y):
        gradients = jax.grad(lambda p: loss(forward(p, opt_state), x, y))(params)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for x, y in batches(batch, state, data, count):
        params, opt_state = update(params, opt_state, x, y)
    return params, opt_state


def same(batch, state, params, opt_state):
    """Masks and weights agree, but for the odd weight at the threshold (rounding)."""
    live = {p: m for p, m in trees.leaves_with_paths(masks_of(opt_state)) if jnp.ndim(m)}
    for g in batch.program.groups:
        ours = np.asarray(state.windows.remaining[g.name]) == 0
        assert np.mean(ours != live[g.kernel]) < 0.003, g.name
        mine, theirs = (np.asarray(trees.get(p, g.kernel)) for p in (state.params, params))
        assert np.mean(~np.isclose(mine, theirs, rtol=1e-4, atol=1e-6)) < 0.01, g.name
        assert np.abs(mine[~ours]).max() > 0.01  # hidden, not gone


STE = {"method": "ste", "fraction": (0.75,), "dead_decay": 0.02, "refresh_every": 2}
MOVEMENT = {
    "method": "movement",
    "fraction": (0.75,),
    **{"start": (1,), "end": (3,), "period": 1, "refresh_every": 1, "score_rate": 3.0},
}


def test_straight_through_is_the_librarys():
    batch, data, state = one(STE, epochs=1)
    tx = sparsify(
        optax.sgd(0.05, 0.9),
        *("ste",),
        sparsity=0.75,
        dead_decay=0.02,
        every=2,
        start=1,
        forward=forward,
    )
    same(batch, go(batch, state, data, 3), *library(batch, state, data, tx, 3))


def test_movement_is_the_librarys():
    batch, data, state = one(MOVEMENT, epochs=1)
    # An event of a study comes between two steps, that of the library within the earlier one.
    plain = sparsify(
        optax.sgd(0.05, 0.9),
        *("movement",),
        sparsity=0.75,
        **{"start": 0, "end": 2, "every": 1, "score_rate": 3.0},
        forward=forward,
    )
    found = go(batch, state, data, 3)
    _, opt_state = library(batch, state, data, plain, 1)
    first = go(batch, state, data, 1)
    for g in batch.program.groups:  # one step with nothing dead: S = -rate * w g
        learnt = trees.get(opt_state.scores, g.kernel)
        np.testing.assert_allclose(first.learnt[g.name], learnt, rtol=1e-3, atol=1e-7)
    left = sum(int((np.asarray(r) == 0).sum()) for r in found.windows.remaining.values())
    total = sum(r.size for r in found.windows.remaining.values())
    assert left == total // 4
    learnt = np.concatenate([np.asarray(s).ravel() for s in found.learnt.values()])
    alive = np.concatenate([np.asarray(r).ravel() == 0 for r in found.windows.remaining.values()])
    assert learnt[alive].min() >= learnt[~alive].max()


def test_soft_movement_keeps_what_exceeds_the_threshold():
    soft = {"method": "movement_soft", "threshold": 0.499, "penalty": 20.0, "refresh_every": 1}
    batch, data, state = one(soft, epochs=1)
    found = go(batch, state, data, 3)
    for g in batch.program.groups:
        s, live = np.asarray(found.learnt[g.name]), np.asarray(found.windows.remaining[g.name]) == 0
        over = 1 / (1 + np.exp(-s.astype(np.float64))) > 0.499
        assert (live | ~over).all()
        assert (live & ~over).sum() <= -(-s.size // 200)
    share = np.mean([np.mean(np.asarray(r) == 0) for r in found.windows.remaining.values()])
    assert 0.01 < share < 0.99


@pytest.mark.parametrize("method", ["nm", "ste", "acdc"])
def test_nm_leaves_one_of_four_along_the_inputs(method):
    settings = {"method": method, "nm": (1, 4), "scope": "layer"}
    settings |= {"layers": ("dense1", "dense2")}
    settings |= {"acdc": {"phases": (1, 2, 3)}, "ste": {"refresh_every": 1}}.get(method, {})
    batch, data, state = one(settings, epochs=1)
    found = go(batch, state, data, 3)
    for left in found.windows.remaining.values():
        live = np.asarray(left) == 0
        assert (live.reshape(-1, 4, live.shape[-1]).sum(1) == 1).all()


def test_sparse_fan_in_is_the_librarys():
    arms = {
        name: {"prune": {"method": "static", "fraction": (0.9,), "weight_init": name}}
        for name in ("dense", "sparse_fan_in")
    }
    batch, data, state = begun(momentum(**arms))
    for member in batch.members:
        state, _ = functions(batch.program).event(state._replace(table=member.table), data, 0)
        found = prune.with_sparse_fan_in(batch.program, state).params
        expected = state.params
        if member.variant == "sparse_fan_in":
            expected = before.sparse_fan_in(state.params, step.masks(batch.program, state))
        for (path, a), (_, b) in zip(*map(trees.leaves_with_paths, (found, expected)), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=path)


def test_redistribution_keeps_the_sum_and_moves_the_layers():
    settings = {"method": "rigl", "fraction": (0.9,), "update_every": 1, "redistribute": True}
    settings |= {"update_fraction": 0.5}
    batch, data, state = one(settings, epochs=1)
    start = go(batch, state, data, 0)
    after = go(batch, state, data, 2)
    live = lambda s: [int((np.asarray(r) == 0).sum()) for r in s.windows.remaining.values()]  # noqa: E731
    assert sum(live(start)) == sum(live(after))
    assert live(start) != live(after)


def test_growth_sees_the_mean_gradient_of_the_last_batches():
    settings = {"method": "rigl", "fraction": (0.9,), "update_every": 3, "average": 3}
    batch, data, state = one(settings, epochs=1)
    state = go(batch, state, data, 2)._replace(step=jnp.int32(3))
    indices = np.asarray(evidence.last_indices(batch.program, state))
    order, size = np.asarray(step._order(batch.program, state)), batch.program.batch_size
    assert [set(part) for part in np.split(indices, 3)] == [
        set(order[i * size : (i + 1) * size]) for i in (2, 1, 0)
    ]
    early = evidence.last_indices(batch.program, state._replace(step=jnp.int32(1)))
    assert all(set(part) == set(order[:size]) for part in np.split(np.asarray(early), 3))


def test_snip_in_rounds_scores_what_is_left():
    batch, data, state = one({"method": "snip", "fraction": (0.75,), "rounds": 2, "per_class": 3})
    found = go(batch, state, data, 0)
    images, labels = (x[np.array(batch.program.evidence_examples)] for x in data[:2])
    x = step.inputs(batch.program, images)

    def loss(params):
        logits = batch.program.module.apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    live = before.prune(state.params, "snip", sparsity=0.75, rounds=2, loss=loss)
    for g in batch.program.groups:
        ours = np.asarray(found.windows.remaining[g.name]) == 0
        assert np.mean(ours != np.asarray(trees.get(live, g.kernel))) < 0.002, g.name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (STE | {"grow": "gradient"}, "needs prune.granularity = 'weight', prune.grow = 'none'"),
        (STE | {"score": "learnt"}, "go with prune.forward = 'movement'"),
        (STE | {"schedule": "one_shot"}, "straight_through has 'scratch'"),
        ({"method": "rigl", "update_every": 2, "dead_decay": 0.1}, "goes with straight_through"),
        ({"method": "set", "update_every": 2, "average": 2}, "prune.grow = 'gradient'"),
        ({"method": "rigl", "update_every": 2, "average": 3}, "at step 2, has 2 full batches"),
        ({"method": "static", "redistribute": True}, "goes with prune.update_every"),
        ({"method": "movement_soft", "refresh_every": 0, "threshold": 0.4}, "refresh_every = 0"),
        (MOVEMENT | {"start": (0,)}, "these scores are all 0"),
        ({"method": "nm", "nm": (4, 2)}, r"must be \(n, m\)"),
        ({"method": "nm", "nm": (1, 3)}, "are no multiple of 3"),
        ({"method": "rigl", "update_every": 2, "nm": (2, 4)}, "blocks of N:M cannot swap"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        planned(momentum(a={"prune": settings}))


def dead_after(batch, member, data, steps):
    """Dead units by layer of a member of a program, after so many steps."""
    state = step.initial_state(batch.program, jnp.uint32(0), member.table, member.hyper)
    one = dataclasses.replace(batch, members=(member,))
    found = go(one, jax.device_put(state), data, steps)
    return {n: np.asarray(left) > 0 for n, left in found.windows.remaining.items()}, state


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"method": "magnitude"}, 0),
        ({"method": "gradual_regrow", "start": (1,), "end": (2,), "average": 1}, 2),
        ({"method": "movement_soft", "threshold": 0.499, "penalty": 9.0, "refresh_every": 1}, 3),
    ],
)
def test_an_arm_leaves_the_layers_of_others_alone(settings, steps):
    own = {"a": "dense1", "b": "dense2"}
    arms = {k: {"prune": settings | {"layers": (f"kernel:{n}.*",)}} for k, n in own.items()}
    (both,), data = planned(momentum(**arms)), begun(momentum(a=arms["a"]))[1]
    assert {g.name for g in both.program.groups} == set(own.values())
    for member in both.members:
        layer = own[member.variant]
        dead, state = dead_after(both, member, data, steps)
        assert {n for n, gone in dead.items() if gone.any()} == {layer}
        if settings["method"] == "magnitude":  # the smaller half of that kernel
            size = np.abs(np.asarray(trees.get(state.params, f"{layer}/kernel")))
            np.testing.assert_array_equal(dead[layer], size < np.median(size))
        else:  # as in a study of its own
            (alone,) = planned(momentum(**{member.variant: arms[member.variant]}))
            expected, _ = dead_after(alone, alone.members[0], data, steps)
            np.testing.assert_array_equal(dead[layer], expected[layer])


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(("of", "share"), [("all", 0.25), ("live", 0.5)])
@pytest.mark.parametrize("child", [STE, MOVEMENT])
def test_a_child_of_hidden_weights_prunes_on_from_its_parent(child, of, share, scope):
    half = {"method": "random", "allocation": "rules", "scope": scope, "fraction": (0.5,)}
    child = child | {"fraction": (share,), "of": of, "scope": scope}
    batches = planned(momentum(p={"prune": half}, c={"prune": child, "start": {"run": "p"}}))
    (member,) = (m for b in batches for m in b.members if m.variant == "c")
    sizes = [1024, 128, 80] if scope == "layer" else [1232, 0, 0]
    last = member.table.counts[member.table.counts.any(axis=1)][-1]
    np.testing.assert_array_equal(last, [n * 3 // 4 for n in sizes])  # half, and a quarter of all
    assert (member.table.counts[member.table.counts.any(axis=1)] >= np.array(sizes) // 2).all()


def test_fewer_of_m_may_stay_in_a_child():
    arms = {"p": {"prune": {"method": "nm"}}}
    arms["c"] = {"prune": {"method": "nm", "nm": (1, 4)}, "start": {"run": "p"}}
    arms["d"] = {"prune": {"method": "random", "of": "live"}, "start": {"run": "c"}}
    with pytest.raises(ConfigError, match="is up to scores"):  # 1 of 4 of masks of 2 of 4
        planned(momentum(**arms))
    del arms["d"]
    (member,) = (m for b in planned(momentum(**arms)) for m in b.members if m.variant == "c")
    np.testing.assert_array_equal(member.table.counts[0], [768, 96, 60])


def test_what_a_threshold_leaves_has_no_counts_for_a_child():
    soft = {"method": "movement_soft", "threshold": 0.4}
    child = {"prune": {"method": "static"}, "start": {"run": "soft", "take": ("masks",)}}
    with pytest.raises(ConfigError, match="is up to scores"):
        planned(momentum(soft={"prune": soft}, child=child))
