"""Every way of pruning by name in a study: counts, scores against the library, a page's arms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import methods, trees
from prunejax.configs import default
from prunejax.errors import ConfigError
from prunejax.methods import evidence, timetable
from prunejax.study import loaded
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib
from prunejax.study.settings import presets
from prunejax.train import prune, step
from tests.studies import assert_alike, begun, in_layouts, plain_checkpoints, planned, rows, small

NEEDED = {
    "set": {"update_every": 3},
    "rigl": {"update_every": 3},
    "once": {"start": (3,)},
    "gradual": {"start": (2,), "end": (10,), "period": 2},
    "gradual_regrow": {"start": (2,), "end": (10,), "period": 2},
    "acdc": {"phases": (2, 6, 10)},
    "synflow": {"rounds": 5},
    "snip": {"per_class": 3},
    "grasp": {"per_class": 3},
    "nm": {"nm": (1, 4)},
    "ste": {"refresh_every": 5},
    "movement": {"start": (2,), "end": (10,), "period": 2, "refresh_every": 2},
    "movement_soft": {"refresh_every": 4, "threshold": 0.4},
}


def arm(method, **changes):
    return {"prune": {"method": method, "fraction": (0.8,)} | NEEDED.get(method, {}) | changes}


def study():
    """The smoke study of all presets."""
    return small(**{name: arm(name) for name in presets.METHODS})


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    return in_layouts(study(), tmp_path_factory.mktemp("presets"))


@pytest.mark.slow
def test_masks_are_those_of_each_layout(layouts, monkeypatch):
    plain_checkpoints(monkeypatch)
    one, other = (loaded.load(path) for path in layouts.values())
    assert {name.rpartition("-")[0] for name in one.names} == set(presets.METHODS)
    for name in one.names:
        jax.tree.map(np.testing.assert_array_equal, one.masks(name), other.masks(name))


@pytest.mark.parametrize("table", ["epochs", "events", "updates", "layers", "costs"])
def test_tables_are_those_of_each_layout(layouts, table):
    assert_alike(layouts, table)


def test_every_method_removes_exactly_four_fifths_of_the_kernels(layouts):
    config = study()
    last = {row["variant"]: float(row["sparsity"]) for row in rows(layouts["sequential"], "epochs")}
    arms = config_lib.variants(config, default.get_config())
    program = plan.build(arms[:1])[0].program
    variables = jax.eval_shape(
        lambda: program.module.init(jax.random.key(0), jnp.ones((1, *program.image_shape)))
    )
    leaves = jax.tree.leaves(variables["params"])
    every = sum(x.size for x in leaves)
    kernels = sum(x.size for x in leaves if x.ndim > 1)
    for name, sparsity in last.items():
        removed = {"nm": 0.75, "movement_soft": sparsity * every / kernels}.get(name, 0.8)
        assert sparsity * every == pytest.approx(removed * kernels, abs=4), name
    assert set(last) == set(presets.METHODS)


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow"])
def test_scores_are_those_of_the_library(name):
    batch, data, state = begun(small(a=arm(name)))
    program = batch.program
    ours = jax.jit(lambda s, d: prune.unit_scores(program, s, d, jnp.int32(0)))(state, data)
    images, labels = np.asarray(data.train_images), np.asarray(data.train_labels)
    if name != "synflow":
        chosen = np.array(program.evidence_examples)
        counts = np.bincount(labels[chosen])
        assert (counts == 3).all()
        images, labels = images[chosen], labels[chosen]
    mean, std = (np.reshape(values, (1, 1, 1, -1)) for values in (program.mean, program.std))
    x = np.float32((images / 255.0 - mean) / std)

    @jax.jit
    def loss(params):
        logits = program.module.apply({"params": params}, x) / (200 if name == "grasp" else 1)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])

    @jax.jit
    def output(params):
        kind = jax.tree.leaves(params)[0].dtype
        module = program.module.clone(dtype=kind)
        return module.apply({"params": params}, jnp.ones((1, *program.image_shape), kind))

    found = evidence.Evidence(state.params, loss=loss, output=output)
    theirs = evidence.EVIDENCE[name].fn(found)
    for g in program.groups:
        expected = np.asarray(trees.get(theirs, g.kernel))
        np.testing.assert_allclose(
            ours[g.name], expected, rtol=2e-3, atol=1e-5 * np.abs(expected).max()
        )


def test_methods_of_studies_are_rows_of_the_librarys_table():
    assert set(presets.METHODS) == set(methods.METHODS)
    weights = {"granularity": "weight", "layers": ("kernel:.*",)}
    rigl = dataclasses.replace(methods.METHODS["rigl"], allocation="global", initial="magnitude")
    assert presets.fields(rigl) == weights | {
        "schedule": "scratch", "score": "magnitude", "scope": "global", "evidence": "batch",
        "grow": "gradient", "update_every": 100,
    }  # fmt: skip
    control = dataclasses.replace(methods.METHODS["movement"], score="learnt_magnitude")
    assert presets.fields(control) == weights | {
        "schedule": "cubic", "unit": "step", "score": "learnt_magnitude", "scope": "global",
        "forward": "movement", "refresh_every": 10,
    }  # fmt: skip


@pytest.mark.parametrize("redistribute", [False, True])
def test_updates_swap_as_many_as_those_of_the_library(redistribute):
    """Of a layer that the allocation leaves dense none: its weights would come back as 0."""
    fields = {"fraction": (0.3,), "update_every": 2, "update_end": 1.0}
    config = small(a=arm("rigl", **fields, redistribute=redistribute))
    (batch,) = planned(config)
    member, program = batch.members[0], batch.program
    steps, between = program.epochs * program.steps_per_epoch, program.epochs + 1
    params = step.initial_state(program, 0, member.table, member.hyper).params
    shapes = {g.kernel: trees.get(params, g.kernel).shape for g in program.groups}
    method = methods.resolve(
        "rigl", sparsity=0.3, every=2, end=steps, redistribute=redistribute, ingredients=None
    )
    of = timetable.plan(method, shapes)
    assert redistribute or (of.swap == 0).all(0).any()  # one is dense
    ours = {int(t): n for t, n in zip(member.table.steps, member.table.grow, strict=True)}
    for at, swaps in zip(of.steps, of.swap, strict=True):
        np.testing.assert_array_equal(ours[at][: len(swaps)], swaps)
    np.testing.assert_array_equal(member.table.counts[between:], member.table.grow[between:])
    assert np.sum(member.table.grow) == np.sum(of.swap)


def test_what_an_arm_sets_itself_stays():
    config = small(a=arm("rigl", grow="random", layers=("dense1",)))
    config.prune.update_fraction = 0.1
    (found,) = config_lib.variants(config, default.get_config())
    assert found.settings.prune.grow == "random"
    assert tuple(found.settings.prune.layers) == ("dense1",)
    assert found.settings.prune.update_fraction == 0.1
    assert found.settings.prune.allocation == "erk"


@pytest.mark.parametrize(
    ("prune_settings", "message"),
    [
        ({"method": "rigel"}, "Did you mean 'rigl'"),
        (arm("acdc", phases=(2, 6))["prune"], "odd number of rising steps"),
        (arm("snip", per_class=99)["prune"], "per_class = 99: class"),
        (arm("gradual", end=(99,))["prune"], "training has 16"),
        (arm("synflow", layers=("kernel:x",))["prune"], "none of the model's kernels: dense1"),
        (arm("static", layers=("kernel:.*",), granularity="filter")["prune"], "granularity"),
    ],
)
def test_refused(prune_settings, message):
    with pytest.raises(ConfigError, match=message):
        plan.build(config_lib.variants(small(a={"prune": prune_settings}), default.get_config()))


def test_an_event_computes_the_score_that_it_uses_and_no_other(monkeypatch):
    seen = []

    def synflow(e):
        jax.debug.callback(lambda: seen.append(1))
        return evidence.EVIDENCE["magnitude"].fn(e)

    found = evidence.EVIDENCE["synflow"]
    monkeypatch.setitem(evidence.EVIDENCE, "synflow", found._replace(fn=synflow))
    arms = {name: arm(name) for name in ("synflow", "gradual")}
    batch, data, state = begun(small(**arms))
    members, program = {m.variant: m for m in batch.members}, batch.program
    assert set(program.scores) == {"magnitude", "synflow"}
    event = jax.jit(lambda s, row: prune.apply_event(program, s, data, row, s.windows.targeted))
    asked = {}
    for name, member in members.items():
        table = member.table
        for row in range(len(table.steps)):
            seen.clear()
            _, made = event(state._replace(table=table), row)
            jax.effects_barrier()
            asked.setdefault((name, bool(table.counts[row].any())), set()).add(len(seen))
            assert int(made.targeted.sum()) == table.counts[row].sum()
    assert asked == {
        ("synflow", True): {1},
        ("synflow", False): {0},
        ("gradual", True): {0},
        ("gradual", False): {0},
    }
