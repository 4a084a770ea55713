"""Studies end to end: records, reproducibility, resume, twins, compilation counts."""

import json
import re

import jax
import numpy as np
import pytest

from prunejax.configs import default
from prunejax.errors import ConfigError, Interrupted, ReportError, WorkdirError
from prunejax.record.run_directory import RunDirectory
from prunejax.report import tables
from prunejax.study import final
from prunejax.study import run as study
from prunejax.study.devices import host_devices
from prunejax.study.planning import attributes, plan
from prunejax.study.settings import config as config_lib
from prunejax.train import prune, step
from tests.studies import PRUNE, go, plain_checkpoints, rows, tiny

TABLES = ("epochs", "events", "runs")


def content(path):
    return {t: (path / f"{t}.csv").read_bytes() for t in TABLES}


# Only the study of `finished`, which is older than this fixture, takes the time for a report.
pytestmark = pytest.mark.usefixtures("quick_report")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "run"
    study.run(tiny(), path, default.get_config(), quiet=True)
    return path


def test_run_directory_is_complete(finished):
    for name in ("config.json", "environment.json", "summary.json", "report.html", "tb", "figures"):
        assert (finished / name).exists(), name
    assert len(rows(finished, "epochs")) == 3 * 2 * 4
    assert [r["run"] for r in rows(finished, "runs")] == [
        f"{v}-{s}" for v in ("none", "S", "L") for s in (0, 1)
    ]
    assert json.loads((finished / "config.json").read_text())["epochs"] == 4


def test_a_study_records_its_time(finished):
    times = json.loads((finished / "times.json").read_text())
    assert times["begun"] <= times["ended"]
    assert times["device_seconds"] >= times["wall_seconds"] > 0


def test_events_have_the_scheduled_counts(finished):
    events = rows(finished, "events")
    for variant in ("S", "L"):
        for seed in ("0", "1"):
            mine = [e for e in events if e["variant"] == variant and e["seed"] == seed]
            # 16 units each: 12 kept after 3 events, 8 kept after 3 events
            counts = [(e["epoch"], e["layer"], e["targeted"], e["live"]) for e in mine]
            assert counts == [
                ("0", "dense2", "1", "15"),
                ("1", "dense2", "1", "14"),
                ("1", "dense3", "2", "14"),
                ("2", "dense2", "2", "12"),
                ("2", "dense3", "3", "11"),
                ("3", "dense3", "3", "8"),
            ]
    for e in events:
        pre, post = float(e["pre_accuracy"]), float(e["post_accuracy"])
        assert float(e["instability"]) == pytest.approx((pre - post) / pre)


def test_runs_follow_from_epochs_and_events(finished):
    for r in rows(finished, "runs"):
        epochs = [e for e in rows(finished, "epochs") if e["run"] == r["run"]]
        events = {e["epoch"]: e for e in rows(finished, "events") if e["run"] == r["run"]}
        stability = np.mean([1 - float(e["instability"]) for e in events.values()]) if events else 1
        assert float(r["mean_stability"]) == pytest.approx(stability)
        late = [e for e in epochs if not events or int(e["epoch"]) >= max(map(int, events))]
        best = max(late, key=lambda e: float(e["test_accuracy"]))
        assert r["best_test_accuracy"] == best["test_accuracy"]
        gap = float(best["train_accuracy"]) - float(best["test_accuracy"])
        assert float(r["generalization_gap"]) == pytest.approx(gap, abs=1e-7)
        assert r["final_test_accuracy"] == epochs[-1]["test_accuracy"]
    final = {r["run"]: float(r["sparsity"]) for r in rows(finished, "runs")}
    # 16 hidden units: 4 and 8 dead ones with 16 weights, scale and bias each
    total = (64 * 16 + 16 * 16 * 2) + 2 * 16 * 3 + (16 * 10 + 10)
    kernels_only = [64 * 16 + 2 * 256 + 96 + 170, total]
    assert any(final["S-0"] == pytest.approx(12 * 18 / t, rel=1e-6) for t in kernels_only)
    assert final["none-0"] == 0


def test_same_seeds_give_the_same_bytes(finished, tmp_path):
    go(tiny(), tmp_path / "again")
    assert content(tmp_path / "again") == content(finished)


def test_a_finished_study_says_so_and_does_nothing(finished):
    before = content(finished)
    assert go(tiny(), finished).already_finished
    assert content(finished) == before


@pytest.mark.parametrize("calls", [1, 3, 6, 11, 17])
def test_interrupted_at_any_call_continues_to_the_same_bytes(finished, tmp_path, calls):
    left = [calls]

    def stop():
        left[0] -= 1
        return left[0] < 0

    path = tmp_path / "run"
    with pytest.raises(Interrupted):
        go(tiny(), path, stop_requested=stop)
    go(tiny(), path)
    assert content(path) == content(finished)


FEW_PRUNE = PRUNE | {"layers": ("dense1", "dense2")}


def few(**arms):
    config = tiny(**arms)
    config.model.name = "few2"
    return config


@pytest.mark.slow
@pytest.mark.parametrize("as_released", [False, True])
def test_one_trace_per_program_whatever_happens(few_layers, tmp_path, monkeypatch, as_released):
    """Events, windows and arms cause no recompilation: one trace for full batches, one for last."""
    traces = []
    original = step.train_step
    monkeypatch.setattr(step, "train_step", lambda *a: traces.append(1) or original(*a))
    arms = {
        "none": {},
        "S": {"prune": FEW_PRUNE},
        "R": {"prune": FEW_PRUNE | {"target": "random", "period": 2}},
        "L": {"prune": FEW_PRUNE | {"target": "largest"}, "optimizer": {"learning_rate": 1e-2}},
        "zero": {
            "prune": FEW_PRUNE,
            "intervention": {"kind": "zero", "duration": 3, "mask_norm": False},
        },
        "noise": {
            "prune": FEW_PRUNE,
            "intervention": {"kind": "gaussian", "duration": 2, "mask_norm": False},
        },
        "endless": {
            "prune": FEW_PRUNE,
            "intervention": {"kind": "gaussian", "scope": "cumulative", "mask_norm": False},
        },
        "restore": {
            "prune": FEW_PRUNE | {"schedule": "cubic"},
            "intervention": {
                "kind": "zero", "duration": 5, "scope": "cumulative", "restore": "weights+norm"
            },
        },
        "dense": {
            "prune": FEW_PRUNE | {"schedule": "one_shot"},
            "intervention": {"kind": "prune", "duration": 4, "restore": "weights"},
        },
        "twin": {
            "prune": FEW_PRUNE | {"target": "random", "period": 2},
            "intervention": {"kind": "zero", "duration": 1, "twin": "R", "mask_norm": False},
        },
        "cosine": {"optimizer": {"schedule": "cosine", "weight_decay": 1e-4}},
    }  # fmt: skip
    config = few(**arms)
    config.seeds, config.intervention.as_released = 1, as_released
    plain_checkpoints(monkeypatch)
    monkeypatch.setattr(RunDirectory, "tensorboard", lambda self: None)
    study.run(config, tmp_path / "run", default.get_config(), quiet=True)
    assert len(traces) == 2
    assert len(rows(tmp_path / "run", "runs")) == 11


def test_twins_replay_targets_even_of_random_draws(few_layers, tmp_path):
    arms = {
        "R": {"prune": FEW_PRUNE | {"target": "random"}},
        "noise": {
            "prune": FEW_PRUNE | {"target": "random"},
            "intervention": {"kind": "gaussian", "duration": 2, "twin": "R", "mask_norm": False},
        },
        "L": {"prune": FEW_PRUNE | {"target": "largest"}},
        "zero": {
            "prune": FEW_PRUNE | {"target": "largest"},
            "intervention": {"kind": "zero", "duration": 1, "twin": "L", "mask_norm": False},
        },
    }
    go(few(**arms), tmp_path / "run")
    for twin, other in (("noise", "R"), ("zero", "L")):
        for seed in (0, 1):
            a = np.load(tmp_path / "run" / "targets" / f"{twin}-{seed}.npz")
            b = np.load(tmp_path / "run" / "targets" / f"{other}-{seed}.npz")
            assert set(a.files) == set(b.files)
            assert a.files
            for name in a.files:
                np.testing.assert_array_equal(a[name], b[name])
    assert float(rows(tmp_path / "run", "runs")[0]["sparsity"]) > 0
    noise = [r for r in rows(tmp_path / "run", "runs") if r["variant"] == "noise"]
    assert all(float(r["sparsity"]) == 0 for r in noise)


def test_random_targets_do_not_depend_on_the_other_arms():
    arm = {"prune": PRUNE | {"target": "random"}}

    def targets(**others):
        (batch,) = plan.build(config_lib.variants(tiny(R=arm, **others), default.get_config()))
        m, program = batch.members[0], batch.program
        shapes = jax.eval_shape(lambda: step.initial_state(program, np.uint32(0), m.table, m.hyper))
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        state = state._replace(table=m.table)  # random targets do not look at the weights
        return jax.jit(lambda state: prune.select(program, state, None, np.int32(2)))(state)

    alone, beside = targets(), targets(S={"prune": PRUNE | {"layers": ("dense1", "dense3")}})
    assert not beside.pop("dense1").any()
    assert {name: int(chosen.sum()) for name, chosen in alone.items()} == {"dense2": 1, "dense3": 2}
    for name, chosen in alone.items():
        np.testing.assert_array_equal(chosen, beside[name])


def test_layouts_agree_on_targets_and_nearly_on_losses(finished, tmp_path):
    config = tiny()
    config.population.layout = "vectorized"
    go(config, tmp_path / "run")
    for name in ("S-0", "L-1"):
        a = np.load(tmp_path / "run" / "targets" / f"{name}.npz")
        b = np.load(finished / "targets" / f"{name}.npz")
        for key in b.files:
            np.testing.assert_array_equal(a[key], b[key])
    key = lambda r: (r["run"], int(r["epoch"]))  # noqa: E731
    for a, b in zip(
        sorted(rows(tmp_path / "run", "epochs"), key=key),
        sorted(rows(finished, "epochs"), key=key),
        strict=True,
    ):
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), rel=1e-4)


def test_a_run_with_a_non_finite_loss_stops_alone(tmp_path):
    bad = {"optimizer": {"learning_rate": 1e38}}
    go(tiny(none={}, S={"prune": PRUNE}, bad=bad), tmp_path / "run")  # the program of `tiny()`
    runs = {r["run"]: r for r in rows(tmp_path / "run", "runs")}
    assert runs["bad-0"]["status"].startswith("non-finite loss at step ")
    assert runs["bad-0"]["final_test_accuracy"] == ""
    assert runs["none-0"]["status"] == "done"
    assert len([e for e in rows(tmp_path / "run", "epochs") if e["run"] == "none-1"]) == 4


def test_scratch_prunes_before_training_and_counts_as_stable(tmp_path):
    config = tiny(scratch={"prune": PRUNE | {"schedule": "scratch", "score": "l2"}})
    go(config, tmp_path / "run")
    events = rows(tmp_path / "run", "events")
    assert {e["epoch"] for e in events} == {"-1"}
    assert {e["step"] for e in events} == {"0"}
    assert [e["targeted"] for e in events[:2]] == ["4", "8"]
    assert all(float(r["mean_stability"]) == 1 for r in rows(tmp_path / "run", "runs"))


def test_another_config_is_refused_and_nothing_is_written_over(finished):
    before = content(finished)
    config = tiny()
    config.optimizer.learning_rate = 0.5
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate: 0\.001 -> 0\.5"):
        go(config, finished)
    assert content(finished) == before


def test_weight_granularity_and_global_scope(tmp_path):
    prune = PRUNE | {"score": "magnitude", "granularity": "weight", "scope": "global"}
    go(tiny(S={"prune": prune}), tmp_path / "run")
    events = [e for e in rows(tmp_path / "run", "events") if e["seed"] == "0"]
    # 2 layers of 256 weights: a quarter and a half go
    assert sum(int(e["targeted"]) for e in events) == 64 + 128


def test_iterative_rates_are_fractions_of_what_is_ranked():
    rates = {
        "layer": {},
        "weight": {"granularity": "weight", "score": "magnitude"},
        "global": {"scope": "global"},
    }
    found = {}
    for label, changes in rates.items():
        arms = config_lib.variants(tiny(a={"prune": PRUNE | changes}), default.get_config())
        found[label] = attributes.of_arms(arms, plan.build(arms))["a"]["iterative_rate"]
    assert found == pytest.approx({"layer": 0.5 / 3, "weight": 0.5 / 3, "global": 0.5 / 4})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prune": {"fraction": (1.5,)}}, "fraction"),
        ({"prune": {"period": 0}}, "period"),
        ({"prune": {"start": (3,), "end": (1,)}}, "before"),
        ({"prune": {"layers": ("conv9", "dense3")}}, "dense1"),
        ({"prune": {"score": "ebm"}}, "Did you mean 'ebn'"),
        ({"prune": {"target": "smalest"}}, "Did you mean 'smallest'"),
        ({"model": {"name": "mpl"}}, "Did you mean 'mlp'"),
        ({"data": {"name": "digit"}}, "Did you mean 'digits'"),
        ({"batch_size": 1000}, "batch_size"),
        ({"optimzer": {"name": "adam"}}, "unknown field"),
        ({"epochs": "many"}, "type"),
        ({"intervention": {"restore": "weights"}}, "window"),
        ({"intervention": {"twin": "nobody"}}, "twin"),
        ({"data": {"label_noise": -0.1}}, "label_noise"),
        ({"model": {"width": 0.0}}, "width"),
        ({"intervention": {"duration": 0}}, "duration"),
    ],
)
def test_bad_requests_fail_before_anything_is_written(tmp_path, change, message):
    prune = PRUNE | change.get("prune", {})
    with pytest.raises(ConfigError, match=message):
        go(tiny(S=change | {"prune": prune}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_leaves_the_directory_free(tmp_path, monkeypatch):
    def refuse(*_):
        raise ConfigError("cannot hold")

    with monkeypatch.context() as patch:
        patch.setattr(study.Arrangement, "chunks", refuse)
        with pytest.raises(ConfigError, match="cannot hold"):
            go(tiny(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]
    with pytest.raises(Interrupted):
        go(tiny(), tmp_path, stop_requested=lambda: True)
    before = content(tmp_path)
    monkeypatch.setattr(study.Arrangement, "chunks", refuse)
    with pytest.raises(ConfigError, match="cannot hold"):  # here something was trained
        go(tiny(), tmp_path)
    assert content(tmp_path) == before


def test_shards_partition_the_members_and_keep_twins_together():
    config = tiny(
        a={"prune": PRUNE},
        b={"prune": PRUNE, "intervention": {"kind": "none", "twin": "a"}},
        c={},
    )
    members = plan.build(config_lib.variants(config, default.get_config()))[0].members
    batches = [members[:2], members[2:]]  # a twin need not share the program of what it replays
    parts = [[m for b in study.shard(batches, i, 3) for m in b] for i in range(3)]
    assert sorted(m.run for p in parts for m in p) == sorted(m.run for m in members)
    for part in parts:
        names = {m.run for m in part}
        assert all(m.twin in names for m in part if m.twin)


def test_finished_shards_are_read_together_and_say_what_they_lost(tmp_path):
    for index in (1, 2, 3):
        go(tiny(a={}, b={"start": {"run": "a"}}), tmp_path / "run", shard_of=(index, 3))
    whole = tables.load([tmp_path / "run"])
    assert sorted(row["run"] for row in whole.runs) == ["a-0", "a-1", "b-0", "b-1"]
    assert not whole.unfinished
    assert whole.missing_shards == []
    empty = tmp_path / "run" / "shards" / "3-of-3"
    assert rows(empty, "runs") == final.states(empty, [], re.compile(".*")) == []
    part = tmp_path / "run" / "shards" / "2-of-3"
    assert {row["run"] for row in rows(part, "runs")} == {"a-1", "b-1"}
    assert go(tiny(a={}, b={"start": {"run": "a"}}), tmp_path / "run", shard_of=(2, 3)).rebuilt
    lines = (part / "runs.csv").read_text().splitlines(keepends=True)
    (part / "runs.csv").write_text("".join(lines[:-1]))
    with pytest.raises(ReportError, match=r"1 of the 2 runs of a finished study"):
        tables.load([tmp_path / "run"])


@pytest.mark.parametrize("parts", [(2, 1), (2, 3), (1, 2)])
def test_a_workdir_holds_a_study_once(tmp_path, parts):
    """Its runs were there twice: trained to the end, and then no page of them could be made."""
    (path := tmp_path / "run").mkdir()
    where = {n: path / f"shards/1-of-{n}" if n > 1 else path for n in parts}
    for folder in where.values():
        folder.mkdir(parents=True, exist_ok=True)
    (where[parts[0]] / "config.json").write_text("{}")
    there = "shard 1/2" if parts[0] == 2 else "the whole study"
    with pytest.raises(WorkdirError, match=f"run holds {there}, and its runs would be there twice"):
        go(tiny(a={}), path, shard_of=(1, parts[1]))
    files = [file for file in path.rglob("*") if file.is_file()]
    assert files == [where[parts[0]] / "config.json"]


def test_a_shard_without_runs_is_finished_at_once(tmp_path):
    for already in (False, True):
        result = go(tiny(), tmp_path, shard_of=(9, 9))
        assert (result.report, result.already_finished) == (None, already)
    assert rows(tmp_path / "shards" / "9-of-9", "epochs") == []


def test_host_devices_are_those_of_all_processes_together(tmp_path, monkeypatch):
    set_to = []
    monkeypatch.setattr(study.jax.config, "update", lambda _, count: set_to.append(count))
    monkeypatch.setattr(host_devices.limits, "cores", lambda: 2)
    config = tiny()
    host_devices.use(config, tmp_path, 2)
    (tmp_path / "layout.json").write_text('{"0": {"devices": 6}}')
    host_devices.use(config, tmp_path, 2)
    config.population.devices = 8
    host_devices.use(config, tmp_path, 2)
    assert set_to == [2, 3, 4]
    config.population.devices = -3
    for wrong in (config, {"population": {"devices": 10**9}}, {"population": 3}):
        host_devices.use(wrong, tmp_path, 2)  # refused later: JAX must not have failed on it
    assert set_to[3:] == [3, 3, 3]


def test_layers_and_effective_sparsity(finished):
    """16 hidden units a layer; in S 4 of dense2 and 8 of dense3 are gone, and who reads them."""
    kernels, norms = 64 * 16 + 2 * 256 + 160, 3 * 32 + 10
    live = {"none": (64 * 16, 256, 256, 160), "S": (64 * 16, 16 * 12, 12 * 8, 80)}
    for variant, dead in (("none", (0, 0, 0)), ("S", (0, 4, 8))):
        mine = [r for r in rows(finished, "layers") if r["run"] == f"{variant}-1"]
        assert [r["layer"] for r in mine] == ["dense1", "dense2", "dense3", "classifier"]
        assert tuple(int(r["effective_weights"]) for r in mine) == live[variant]
        assert tuple(int(r["dead_units"]) for r in mine[:3]) == dead
        assert tuple(int(r["masked_units"]) for r in mine[:3]) == dead
        (run,) = (r for r in rows(finished, "runs") if r["run"] == f"{variant}-1")
        gone = 1 - (sum(live[variant]) + norms - 2 * sum(dead)) / (kernels + norms)
        assert float(run["effective_sparsity"]) == pytest.approx(gone)
        assert int(run["dead_units"]) == sum(dead)
        assert float(run["effective_sparsity"]) >= float(run["sparsity"])
