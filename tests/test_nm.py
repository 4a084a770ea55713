"""N:M in studies: every way of pruning that takes it, against the library and in each layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import masks as mask_algebra
from prunejax import models, trees
from prunejax.errors import ConfigError
from prunejax.methods import before, resolve, timetable
from prunejax.models.mlp import MLP
from prunejax.study import loaded
from prunejax.study.settings import presets
from tests.studies import (
    assert_alike,
    begun,
    functions,
    in_layouts,
    plain_checkpoints,
    planned,
)
from tests.studies import small as two_layers

STEPS = {"start": (2,), "end": (6,), "period": 2}
NEEDED = {
    "synflow": {"rounds": 100},
    "snip": {"rounds": 3},
    "once": {"start": (2,)},
    "gradual": STEPS,
    "acdc": {"phases": (2, 4, 6)},
    "ste": {"refresh_every": 3},
    "movement": STEPS | {"refresh_every": 3},
}
REFUSED = {
    "set": ({"update_every": 2}, "prune.grow = 'random': blocks of N:M cannot swap"),
    "rigl": ({"update_every": 2}, "prune.grow = 'gradient': blocks of N:M cannot swap"),
    "gradual_regrow": (STEPS, "prune.grow = 'gradient': blocks of N:M cannot swap"),
    "movement_soft": (
        {"threshold": 0.4},
        "prune.schedule = 'threshold': how many a threshold keeps is another sparsity",
    ),
}
SERVED = sorted(set(presets.METHODS) - set(REFUSED))


def arm(name, **changes):
    settings = {"method": name, "nm": (1, 4), "evidence": "balanced", "per_class": 3}
    return {"prune": settings | NEEDED.get(name, {}) | changes}


@pytest.fixture(scope="module", autouse=True)
def tiny_network():
    """An MLP 64-8-10: time here is the compilation of events."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "mlp64", (MLP, {"hidden": (64,), "batch_norm": False}))
        yield


def small(**variants):
    config = two_layers(**variants)
    config.model.name = "mlp64"
    return config


def alive(state):
    return {n: np.asarray(left) == 0 for n, left in state.windows.remaining.items()}


def blocks(mask):
    """Live weights of every block of 4 inputs."""
    mask = np.asarray(mask)
    return mask.reshape(-1, 4, mask.shape[-1]).sum(1)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    config = small(**{name: arm(name) for name in SERVED})
    config.epochs = 2
    return in_layouts(config, tmp_path_factory.mktemp("nm"))


@pytest.mark.slow
def test_every_method_ends_at_one_of_four_in_each_layout(layouts, monkeypatch):
    plain_checkpoints(monkeypatch)
    studies = [loaded.load(path) for path in layouts.values()]
    assert {name.rpartition("-")[0] for name in studies[0].names} == set(SERVED)
    for name in studies[0].names:
        one, other = (
            [m for m in jax.tree.leaves(study.masks(name)) if np.ndim(m) > 1] for study in studies
        )
        assert len(one) == len(other) == 2
        for mask, same in zip(one, other, strict=True):
            assert (blocks(mask) == 1).all(), name
            np.testing.assert_array_equal(mask, same, err_msg=name)


@pytest.mark.parametrize("table", ["epochs", "events", "updates"])
def test_tables_are_those_of_each_layout(layouts, table):
    assert_alike(layouts, table)


@pytest.mark.parametrize("name", ["snip", "synflow"])
def test_masks_before_training_are_those_of_the_library(name):
    batch, data, state = begun(small(a=arm(name)))
    program, does = batch.program, functions(batch.program)
    first = state.params
    for row in range(len(batch.members[0].table.steps)):
        if batch.members[0].table.steps[row] == 0:
            state, _ = does.event(state, data, row)
    x = jnp.take(data.train_images, jnp.array(program.evidence_examples or (0,)), axis=0)
    labels = np.asarray(data.train_labels)[list(program.evidence_examples or (0,))]
    mean, std = (np.reshape(values, (1, 1, 1, -1)) for values in (program.mean, program.std))

    def loss(params):
        logits = program.module.apply({"params": params}, (x / 255.0 - mean) / std)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])

    def output(params):
        kind = jax.tree.leaves(params)[0].dtype
        module = program.module.clone(dtype=kind)
        return module.apply({"params": params}, jnp.ones((1, *program.image_shape), kind))

    rounds = len(batch.members[0].events)
    assert rounds == 3  # 3, 2 and 1 of 4 stay
    asked = NEEDED.get(name, {}).get("rounds")
    live = before.prune(first, name, nm=(1, 4), rounds=asked, loss=loss, output=output)
    for g in program.groups:
        ours, theirs = alive(state)[g.name], np.asarray(trees.get(live, g.kernel))
        assert (blocks(ours) == 1).all()
        assert np.mean(ours != theirs) < 0.002, g.name


@pytest.mark.parametrize(("name", "nm"), [("gradual", (1, 4)), ("movement", (2, 8))])
def test_events_are_those_of_the_library(name, nm):
    config = small(a=arm(name, nm=nm, start=(1,), end=(5,), period=2))
    config.epochs = 2
    batch, data, state = begun(config)
    does, table = functions(batch.program), batch.members[0].table
    parts = {"nm": nm, "start": 1, "end": 5, "every": 2}
    m = resolve(name, **parts, **({"score_rate": 1.0} if name == "movement" else {}))
    shapes = {g.name: trees.get(state.params, g.kernel).shape for g in batch.program.groups}
    plan = timetable.plan(m, shapes)
    assert plan.keep[-1] == [nm[0]]
    kept, seen = dict(zip(plan.steps.tolist(), plan.keep[:, 0].tolist(), strict=True)), []
    for step in range(1, 6):
        state = does.train(state, data, 1)
        for row in np.flatnonzero((table.steps == step) & (table.ids > batch.program.epochs)):
            live = alive(state)
            state, _ = does.event(state, data, int(row))
            for g in batch.program.groups:
                of = jnp.abs(trees.get(state.params, g.kernel))
                of, start = (
                    (of, live[g.name]) if name == "gradual" else (state.learnt[g.name], None)
                )
                expected = mask_algebra.nm(of, kept[step], nm[1], masks=start)
                np.testing.assert_array_equal(alive(state)[g.name], expected)
            seen.append(step)
    assert seen == list(kept)


def test_epochs_count_as_steps_do():
    config = small(
        a=arm("gradual", unit="epoch", schedule="linear", start=(0,), end=(2,), period=1)
    )
    batch, data, state = begun(config)
    for row, left in ((1, 3), (2, 2), (3, 1)):
        state, event = functions(batch.program).event(state, data, row)
        for mask in alive(state).values():
            assert (blocks(mask) == left).all()
        sizes = [alive(state)[g.name].size for g in batch.program.groups]
        assert event.targeted.tolist() == [size // 4 for size in sizes]


def test_n_falls_to_one_in_the_library_too():
    params = {"a": {"kernel": jnp.arange(32.0).reshape(8, 4) % 7 + 1.0}}
    seen = []

    def score(e):
        jax.debug.callback(lambda w: seen.append(int((w != 0).sum())), e.weights["a"]["kernel"])
        return e.weights

    live = before.prune(params, score, nm=(1, 4), rounds=100)
    jax.effects_barrier()
    assert seen == [32, 24, 16]
    once = before.prune(params, "magnitude", nm=(1, 4))
    np.testing.assert_array_equal(live["a"]["kernel"], once["a"]["kernel"])


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_others_are_refused_by_name(name):
    settings, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        planned(small(a={"prune": {"method": name, "nm": (2, 4)} | settings}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scope": "global"}, "prune.scope = 'global': every block ranks its own weights"),
        ({"of": "live"}, "prune.of = 'live': n of m is a share of all weights"),
    ],
)
def test_parts_that_do_not_go_with_blocks(changes, message):
    with pytest.raises(ConfigError, match=message):
        planned(small(a=arm("gradual", **changes)))
