"""Events between epochs: drop and regrow, rounds before training, resume between any two steps."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prunejax import schedules, trees
from prunejax.configs import default
from prunejax.errors import ConfigError, Interrupted
from prunejax.study.devices.population import Population
from prunejax.study.loop import saving
from prunejax.study.planning import plan, step_plan
from prunejax.study.settings import config as config_lib
from prunejax.train import evidence as evidence_lib
from prunejax.train import optim, prune, step
from tests.studies import PRUNE, begun, functions, go, planned, rows, tiny

ERK = {
    "schedule": "scratch",
    "granularity": "weight",
    "score": "weight_random",
    "allocation": "erk",
    "fraction": (0.8,),
}
UPDATES = {"update_every": 2, "evidence": "batch", "update_fraction": 0.5}
RIGL = ERK | UPDATES | {"grow": "gradient"}
SET = ERK | UPDATES | {"grow": "random"}


pytestmark = pytest.mark.usefixtures("few_layers", "quick_report")


def few(**arms):
    config = tiny(**arms)
    config.model.name = "few2"
    return config


def one(settings):
    """Program, data and state (on the device) of the first run of an arm, before its events."""
    return begun(few(a={"prune": settings}))


def row_at(batch, done, epochs=4):
    steps = batch.members[0].table.steps
    return next(i for i in range(epochs + 1, len(steps)) if steps[i] == done)


def trained(batch, data, state, steps):
    """Before-training events, then that many steps."""
    does = functions(batch.program)
    return does.train(does.event(state, data, 0)[0], data, steps)


def live(state):
    return {name: np.asarray(left) == 0 for name, left in state.windows.remaining.items()}


@pytest.fixture(scope="module")
def first():
    """Program, data and first state of a RigL run, whose functions are compiled once."""
    return one(RIGL)


@pytest.fixture(scope="module")
def rigl(first):
    """That run on its way, and what its first update did."""
    batch, data, state = first
    before = trained(batch, data, state, 2)
    row = row_at(batch, 2)
    after, info = functions(batch.program).event(before, data, row)
    return batch, data, before, row, after, info


def test_an_update_drops_the_smallest_and_grows_the_largest_gradients(rigl):
    batch, data, before, row, after, info = rigl
    indices = np.asarray(evidence_lib.last_indices(batch.program, before))
    found = jax.jit(lambda s: step.variables(batch.program, s))(before)
    dropped_state = before._replace(params=found["params"])  # dead weights are zeros there

    def loss(params):
        mean, std = (np.reshape(v, (1, 1, 1, -1)) for v in (batch.program.mean, batch.program.std))
        x = (data.train_images[indices] / 255.0 - mean) / std
        outputs = batch.program.module.apply(found | {"params": params}, x, train=False)
        return jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(outputs, data.train_labels[indices])
        )

    masked = {}
    for i, g in enumerate(batch.program.groups):
        kernel = np.asarray(trees.get(dropped_state.params, g.kernel))
        was, count = live(before)[g.name], int(batch.members[0].table.counts[row, i])
        assert count == info.targeted[i] == info.growth.grown[i] > 0
        order = np.argsort(np.where(was, np.abs(kernel), np.inf).ravel(), kind="stable")
        gone = np.zeros(was.size, bool)
        gone[order[:count]] = True
        masked[g.name] = gone.reshape(was.shape)
        np.testing.assert_array_equal(info.selected[g.name], masked[g.name])
    params = trees.replace(
        found["params"],
        {
            g.kernel: np.where(masked[g.name], 0, trees.get(found["params"], g.kernel))
            for g in batch.program.groups
        },
    )
    gradients = jax.jit(jax.grad(loss))(params)
    for i, g in enumerate(batch.program.groups):
        dead = ~live(before)[g.name] | masked[g.name]
        size = np.where(dead, np.abs(np.asarray(trees.get(gradients, g.kernel))), -1).ravel()
        largest = np.sort(size)[::-1][: int(info.growth.grown[i])]
        grown = np.asarray(after.windows.grown[g.name])
        assert not (grown & ~dead).any()
        np.testing.assert_allclose(np.sort(size[grown.ravel()])[::-1], largest, rtol=1e-4)


def test_what_comes_back_is_zero_without_moments_and_may_go_again(rigl):
    batch, _, before, _, after, _ = rigl
    moments = [optax.tree_utils.tree_get(after.opt_state, name) for name in ("mu", "nu")]
    for g in batch.program.groups:
        grown = np.asarray(after.windows.grown[g.name])
        assert (np.asarray(trees.get(after.params, g.kernel))[grown] == 0).all()
        for moment in moments:
            assert (np.asarray(trees.get(moment, g.kernel))[grown] == 0).all()
        assert not np.asarray(after.windows.targeted[g.name])[grown].any()
        assert live(after)[g.name][grown].all()
        assert live(after)[g.name].sum() == live(before)[g.name].sum()


def test_sums_of_what_comes_back_begin_as_the_optimizer_begins_them(monkeypatch):
    """Adagrad's are 0.1 at first; at 0 the first step of a grown weight is far larger."""
    monkeypatch.setitem(optim.OPTIMIZERS, "rss", lambda momentum, nesterov: optax.scale_by_rss(0.1))
    config = few(a={"prune": SET})
    config.optimizer.name = "rss"
    batch, data, state = begun(config)
    before = trained(batch, data, state, 2)
    after, _ = functions(batch.program).event(before, data, row_at(batch, 2))
    sums, old = (optax.tree_utils.tree_get(s.opt_state, "sum_of_squares") for s in (after, before))
    for g in batch.program.groups:
        grown = np.asarray(after.windows.grown[g.name])
        now, then = (np.asarray(trees.get(tree, g.kernel)) for tree in (sums, old))
        assert grown.any()
        assert (now[grown] == np.float32(0.1)).all()
        np.testing.assert_array_equal(now[~grown], then[~grown])


def test_dead_weights_have_a_dense_gradient_and_none_through_the_mask(rigl):
    batch, data, before, *_ = rigl
    gradient = functools.partial(evidence_lib.saliency_gradient, batch.program)
    masked = jax.jit(gradient)(before, data)
    dense = jax.jit(functools.partial(gradient, dense=True))(before, data)
    for g in batch.program.groups:
        dead = ~live(before)[g.name]
        assert (np.asarray(masked[g.kernel])[dead] == 0).all()
        assert (np.asarray(dense[g.kernel])[dead] != 0).mean() > 0.3  # but for dead inputs


def test_random_growth_sees_neither_weights_nor_gradients():
    batch, data, state = one(SET)
    before = trained(batch, data, state, 2)
    row = row_at(batch, 2)
    other = before._replace(params=jax.tree.map(lambda p: -2 * p, before.params))
    data2 = data._replace(train_labels=data.train_labels[::-1])
    grow = jax.jit(lambda s, d, row: prune.grow(batch.program, s, d, row)[0])
    grown = [grow(s, d, row) for s, d in ((before, data), (other, data2))]
    for name, chosen in grown[0].items():
        assert np.asarray(chosen).sum() == batch.members[0].table.grow[row].max() or chosen.any()
        np.testing.assert_array_equal(chosen, grown[1][name])
    third = grow(before, data, row_at(batch, 4))
    assert any((np.asarray(third[n]) != np.asarray(grown[0][n])).any() for n in third)


def test_updates_keep_every_count_and_are_recorded(tmp_path):
    go(few(rigl={"prune": RIGL}, set={"prune": SET}), tmp_path / "run")
    epochs, updates = (rows(tmp_path / "run", name) for name in ("epochs", "updates"))
    assert len({e["sparsity"] for e in epochs}) == 1
    during = [u for u in updates if int(u["epoch"]) >= 0]
    assert sorted({int(u["step"]) for u in during}) == [2, 4, 6, 8, 10]  # 3/4 of 16 steps
    for u in during:
        assert u["dropped"] == u["grown"]
    for layer in {u["layer"] for u in updates}:
        own = [u for u in during if u["layer"] == layer and u["run"] == "rigl-0"]
        assert len({u["live"] for u in own}) == 1
        ever = [int(u["ever_live"]) for u in own]
        assert ever == sorted(ever)
        assert all(0 <= float(u["survival"]) <= 1 for u in own[1:])
    events = rows(tmp_path / "run", "events")
    assert {e["epoch"] for e in events} == {"-1"}  # updates are no pruning


def test_no_update_fraction_is_static_bit_for_bit(tmp_path):
    go(few(a={"prune": RIGL | {"update_fraction": 0.0}}), tmp_path / "none")
    go(few(a={"prune": ERK | {"evidence": "batch"}}), tmp_path / "static")
    assert rows(tmp_path / "none", "epochs") == rows(tmp_path / "static", "epochs")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("step_events") / "whole"
    go(few(rigl={"prune": RIGL}), path, page=False)
    return path


def assert_same_tables(path, other):
    for table in ("epochs", "events", "updates", "runs"):
        assert (path / f"{table}.csv").read_bytes() == (other / f"{table}.csv").read_bytes(), table


@pytest.mark.parametrize("stops", [1, 3])
def test_a_study_continues_between_any_two_steps(whole, tmp_path, stops):
    config = few(rigl={"prune": RIGL})
    asked = iter([False] * stops + [True])
    with pytest.raises(Interrupted):
        go(config, tmp_path / "cut", stop_requested=lambda: next(asked, False))
    go(config, tmp_path / "cut")
    assert_same_tables(tmp_path / "cut", whole)


@pytest.mark.parametrize("nth", [2, 4])
def test_a_failure_within_an_event_is_no_event_lost(whole, tmp_path, monkeypatch, nth):
    """What is saved then is from before the step of the event, or from after all its rows."""
    config = few(rigl={"prune": RIGL})
    original, left = Population.event, [nth]

    def fails(*args, **options):
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("nobody foresaw this")
        return original(*args, **options)

    monkeypatch.setattr(saving, "WORTH_SAVING", 0.0)
    monkeypatch.setattr(saving, "COST", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Population, "event", fails)
        with pytest.raises(RuntimeError, match="nobody foresaw this"):
            go(config, tmp_path / "cut")
    go(config, tmp_path / "cut")
    assert_same_tables(tmp_path / "cut", whole)


def test_one_program_serves_all_updates(first):
    batch, data, alone = first
    people = Population(batch.program, data, "vectorized", jax.devices()[:1], batch.members[0])
    states = people.initial(batch.members)
    states, _ = people.event(states, 0)
    for done in (2, 4):
        states = people.train(states, people.data, np.int32(2))
        states, info = people.event(states, row_at(batch, done))
        assert info.growth.grown.sum() > 0
    assert people._event._cache_size() == 1
    does = functions(batch.program)
    alone, _ = does.event(alone, data, 0)
    for done in (2, 4):
        alone = does.train(alone, data, 2)
        alone, _ = does.event(alone, data, row_at(batch, done))
    for name, own in live(alone).items():
        together = np.asarray(states.windows.remaining[name][0]) == 0
        assert (own != together).mean() < 0.01  # rounding may swap a near tie


def test_pruning_by_step_and_rounds_before_training_count_exactly(tmp_path):
    weights = {"granularity": "weight", "score": "magnitude", "fraction": (0.5,)}
    by_step = weights | {"schedule": "cubic", "unit": "step", "start": (2,), "end": (11,)}
    config = tiny(
        step={"prune": by_step | {"period": 3}},
        rounds={"prune": weights | {"schedule": "scratch", "rounds": 5, "layers": ("dense3",)}},
        both={"prune": by_step | {"period": 3, "regrow": 0.25, "grow": "gradient"}},
    )
    go(config, tmp_path / "run")
    events = [e for e in rows(tmp_path / "run", "events") if e["seed"] == "0"]
    own = [e for e in events if e["variant"] == "step" and e["layer"] == "dense3"]
    wanted = schedules.cubic(units=256, fraction=0.5, start=2, end=11, period=3)
    assert [(int(e["step"]), int(e["targeted"])) for e in own] == wanted
    assert {e["instability"] for e in own} == {""}  # not tested between epochs
    own = [int(e["targeted"]) for e in events if e["variant"] == "rounds"]
    wanted = schedules.geometric(units=256, fraction=0.5, start=0, end=4, period=1)
    assert own == [count for _, count in wanted]
    last = {e["variant"]: e["sparsity"] for e in rows(tmp_path / "run", "epochs")}
    assert last["both"] == last["step"]


def test_shares_are_of_the_decimal_number():
    assert 0.29 * 100 < 29  # in binary
    (regrown,) = step_plan._with_regrowth([step_plan.Row(3, {"a": 5}, {})], 0.29, {"a": 105})
    assert (regrown.drop, regrown.grow) == ({"a": 34}, {"a": 29})
    config = tiny(rigl={"prune": {"method": "rigl", "fraction": (0.5,), "update_every": 1}})
    config.prune.update_end, config.epochs = 0.29, 25  # of 100 steps
    (batch,) = plan.build(config_lib.variants(config, default.get_config()))
    member = batch.members[0]
    assert max(member.table.steps[e] for e in member.events) == 28  # before 29


def test_the_steps_of_other_arms_change_no_draw():
    """The random draws of a run are named by its own events, not by rows that arms share."""
    alone = plan.build(config_lib.variants(tiny(a={"prune": SET}), default.get_config()))
    other = {"prune": SET | {"update_every": 3}}
    (both,) = plan.build(config_lib.variants(tiny(a={"prune": SET}, b=other), default.get_config()))
    own = alone[0].members[0].table
    shared = next(m for m in both.members if m.variant == "a").table
    for field in ("ids", "steps"):
        mine = getattr(shared, field)[shared.ids >= 0]
        np.testing.assert_array_equal(mine, getattr(own, field)[own.ids >= 0])
    np.testing.assert_array_equal(shared.counts[shared.ids >= 0], own.counts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prune": ERK | {"grow": "random"}}, "never happens: set prune.update_every"),
        ({"prune": RIGL, "intervention": {"kind": "zero"}}, "only what is pruned for good"),
        ({"prune": RIGL, "intervention": {"duration": 3}}, "only what is pruned for good"),
        (
            {"prune": PRUNE | {"unit": "step", "end": (99,), "start": (0,)}},
            "training has 16; end the schedule earlier",
        ),
        ({"prune": ERK | {"granularity": "filter"}}, "allocation = 'erk'"),
        ({"prune": ERK | {"scope": "global"}}, "allocation = 'erk'"),
        ({"prune": RIGL | {"update_fraction": 1.5}}, "update_fraction"),
        (
            {"prune": PRUNE | {"grow": "random", "update_every": 4}},
            "prune.update_score = 'magnitude' .* ranks weights, not filters; .* use: l1, l2",
        ),
        (
            {"prune": PRUNE | {"score": "magnitude"}},
            "prune.score = 'magnitude' .* ranks weights, not filters",
        ),
    ],
)
def test_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        plan.build(config_lib.variants(tiny(a=change), default.get_config()))


def test_shared_steps_are_multisets():
    some = [step_plan.Row(s, {}, {}) for s in (0, 0, 5)]
    other = [step_plan.Row(s, {}, {}) for s in (0, 3)]
    assert step_plan.shared_steps([some, other]) == [0, 0, 3, 5]


BY_STEP = {"schedule": "one_shot", "unit": "step", "start": (3,), "layers": ("dense2",)}
ROUNDS = {"schedule": "scratch", "rounds": 2, "layers": ("dense2",)}
NOISE = {"kind": "gaussian", "duration": 3, "mask_norm": False}


@pytest.mark.parametrize("when", [BY_STEP, ROUNDS, {"schedule": "one_shot", "layers": ("dense2",)}])
def test_events_of_nothing_and_noise_on_all_are_refused_whenever_they_are(when):
    """By step and in rounds the first had no event, and the noise of the second none to add."""
    for fraction, window, message in (
        (0.01, {}, "removes no unit of any layer .dense2 of 16.: raise it"),
        (1.0, NOISE, "leaves 0 untargeted in dense2"),
    ):
        if "rounds" in when and fraction == 1:  # no number of rounds reaches it
            message = "fraction 1.0 cannot be reached in geometric rounds"
        arm = {"prune": when | {"fraction": (fraction,)}, "intervention": window}
        with pytest.raises(ConfigError, match=message):
            begun(tiny(a=arm))


def test_rounds_before_training_draw_the_noise_of_a_unit_once():
    """Those of the first round got noise again in the second: their windows were new, too."""
    arm = {"prune": ROUNDS | {"score": "random", "fraction": (0.75,)}, "intervention": NOISE}
    batch, data, state = begun(tiny(a=arm))
    event, rows_ = functions(batch.program).event, list(batch.members[0].events)
    one_round, first = event(state, data, rows_[0])
    both, second = event(one_round, data, rows_[1])
    kernels = [np.asarray(s.params["dense2"]["kernel"]) for s in (state, one_round, both)]
    changed = [(a != b).any(axis=0) for a, b in itertools.pairwise(kernels)]
    for seen, info in zip(changed, (first, second), strict=True):
        np.testing.assert_array_equal(seen, np.asarray(info.selected["dense2"]))


UNITS = {"layers": ("dense2",), "grow": "random", "update_score": "l2"}  # 16 of them
ON_EPOCHS = UNITS | {"schedule": "linear", "end": (2,), "fraction": (0.75,)}
HALF = {"update_every": 2, "update_fraction": 0.5, "update_schedule": "constant"}


def in_order(member):
    """Step, drop and growth of each event of a run in dense2, in the order in which they come."""
    steps, drop, grow = member.table.steps, member.table.counts.sum(1), member.table.grow.sum(1)
    last = lambda row: steps[row] > 0 and not member.is_between(row)  # noqa: E731
    order = sorted(member.events, key=lambda row: (steps[row], last(row), row))
    return [(int(steps[row]), int(drop[row]), int(grow[row])) for row in order]


@pytest.mark.parametrize(
    ("arms", "live"),
    [
        # On an epoch's last step they come before its event, and counted what that leaves.
        ({"a": {"prune": ON_EPOCHS | HALF}}, 16),
        ({"a": {"prune": ON_EPOCHS | HALF | {"unit": "step", "end": (8,), "period": 4}}}, 16),
        # What was dead at the beginning is dead, too.
        (
            {
                "p": {"prune": UNITS | HALF | {"schedule": "scratch", "fraction": (0.5,)}},
                "a": {"prune": ON_EPOCHS | HALF | {"of": "live"}, "start": {"run": "p"}},
            },
            8,
        ),
    ],
)
def test_updates_swap_of_what_is_live_when_they_come(arms, live):
    (batch,) = planned(tiny(**arms))
    member = next(m for m in batch.members if m.variant == "a")
    found, updates = in_order(member), 0
    for step_, drop, grown in found:
        if grown or not drop:  # an update
            assert grown == drop == min(live // 2, 16 - live), (step_, found)
            updates += 1
        live += grown - drop
    assert updates == 5


def test_each_event_grows_its_share_of_what_it_leaves():
    """At epochs nothing came back, untold; in rounds the share was of what the last one leaves."""
    regrow = UNITS | {"regrow": 0.5}
    arms = {
        "epochs": regrow | {"schedule": "linear", "end": (1,), "fraction": (0.5,)},
        "rounds": regrow | {"schedule": "scratch", "rounds": 2, "fraction": (0.75,)},
    }
    (batch,) = planned(tiny(**{name: {"prune": p} for name, p in arms.items()}))
    found = {m.variant: in_order(m) for m in batch.members}
    # 16 -> 12 -> 8, and 16 -> 8 -> 4
    assert found["epochs"] == [(4, 4 + 6, 6), (8, 4 + 4, 4)]
    assert found["rounds"] == [(0, 8 + 4, 4), (0, 4 + 2, 2)]


def test_updates_that_never_come_are_told():
    prune = SET | {"update_every": 12}  # the last one would come before step 12 of 16
    (batch,) = plan.build(config_lib.variants(tiny(a={"prune": prune}), default.get_config()))
    assert batch.notes == (
        "Arm a: no unit is swapped; no update falls into training (prune.update_every = 12, "
        "prune.update_end = 0.75).",
    )
    prune = SET | {"update_every": 11}
    (batch,) = plan.build(config_lib.variants(tiny(a={"prune": prune}), default.get_config()))
    assert not batch.notes
