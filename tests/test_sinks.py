"""Trackers get each run once, with its numbers; TensorBoard gets the settings of each run."""

import json
import os
import sys
import types
from typing import ClassVar

import pytest

from prunejax.errors import ConfigError, ReportError
from prunejax.record import scalars, sinks
from prunejax.record.tensorboard_view import TensorBoardView
from prunejax.system import files, optional

CONFIG = {
    "name": "small",
    "seeds": 2,
    "prune": {"period": 1, "fraction": [0.5], "score": "l2"},
    "variants": {"none": {}, "S-1": {"prune": {"period": 4, "fraction": [0.25, 0.5]}}},
}
EPOCHS = "run,variant,seed,epoch,step,train_loss,test_accuracy,sparsity"
RUNS = "run,variant,seed,final_test_accuracy,mean_stability,status"


def write(path, runs):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    epochs, ends, events = [EPOCHS], [RUNS], ["run,variant,seed,epoch,step,layer,instability"]
    for run in runs:
        variant, _, seed = run.rpartition("-")
        epochs += [f"{run},{variant},{seed},{e},{10 * e + 10},{1 / (e + 1)},0.5,0" for e in (0, 1)]
        events += [f"{run},{variant},{seed},0,10,{layer},0.125" for layer in ("a", "b")]
        ends.append(f"{run},{variant},{seed},0.75,,completed")
    for name, lines in (("epochs", epochs), ("runs", ends), ("events", events)):
        (path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (path / "barriers.csv").write_text("pair,seed,error\na:b,0,0.1\n")  # not of runs
    return path


def test_settings_of_variants_are_the_fields_that_any_changes():
    assert scalars.hyperparameters(CONFIG) == {
        "none": {"prune.period": 1, "prune.fraction": "[0.5]"},
        "S-1": {"prune.period": 4, "prune.fraction": "[0.25, 0.5]"},
    }


def test_settings_of_variants_have_what_a_method_sets():
    arms = {"a": {"prune": {"method": "snip"}}, "b": {"prune": {"score": "magnitude"}}}
    config = {"prune": {"method": "none", "score": "l2"}, "variants": arms}
    found = scalars.hyperparameters(config, {"a": {"preset": {"score": "snip", "rounds": 1}}})
    assert found == {
        "a": {"prune.method": "snip", "prune.score": "snip"},
        "b": {"prune.method": "none", "prune.score": "magnitude"},
    }


def test_each_run_is_sent_once_with_its_numbers(tmp_path, monkeypatch):
    found, told = [], []
    monkeypatch.setitem(sinks.SINKS, "mine", found.append)
    write(tmp_path / "a", ["none-0"])
    tracking = sinks.Tracking(tmp_path / "a", ["mine"], told.append)
    tracking.send()
    write(tmp_path / "a", ["none-0", "S-1-1"])
    tracking.send()
    sinks.send(tmp_path / "a", ["mine"])  # by another process: nothing is left
    assert [run.run for run in found] == ["none-0", "S-1-1"]
    assert told == []
    run = found[1]
    assert (run.study, run.variant, run.seed) == ("small", "S-1", 1)
    assert run.settings == {"prune.period": 4, "prune.fraction": "[0.25, 0.5]", "seed": 1}
    assert run.summary == {"final_test_accuracy": 0.75}
    epoch = {"train/loss": 1.0, "test/accuracy": 0.5, "prune/sparsity": 0.0}
    assert run.scalars == [
        (10, epoch | {"prune/instability": 0.125}),
        (20, epoch | {"train/loss": 0.5}),
    ]
    assert json.loads((tmp_path / "a" / sinks.FILE).read_text()) == {"mine": ["none-0", "S-1-1"]}


def test_events_of_one_step_and_tables_of_ends(tmp_path, monkeypatch):
    """Of rounds before training the first alone was sent, and costs stood at step 0."""
    found = []
    monkeypatch.setitem(sinks.SINKS, "mine", found.append)
    path = write(tmp_path / "a", ["none-0"])
    rounds = [("a", 0.1), ("b", 0.1), ("a", 0.1), ("b", 0.1), ("a", 0.3)]  # two are equal
    head = "run,variant,seed,epoch,step,layer,instability,targeted\n"
    lines = [f"none-0,none,0,-1,0,{layer},{fell},{i}\n" for i, (layer, fell) in enumerate(rounds)]
    (path / "events.csv").write_text(head + "".join(lines))
    (path / "costs.csv").write_text("run,variant,seed,layer,density\nnone-0,none,0,a,0.5\n")
    sinks.send(path, ["mine"])
    rows = found[0].scalars
    shared = [values["prune/instability"] for _, values in rows if "prune/instability" in values]
    assert shared == [0.1, 0.1, 0.3]
    targeted = [v for _, values in rows for tag, v in values.items() if tag.endswith("targeted")]
    assert targeted == [0, 1, 2, 3, 4]
    assert [step for step, values in rows if "cost/a/density" in values] == [20]


def test_a_study_that_goes_on_sends_its_runs_itself(tmp_path, monkeypatch):
    """Both read `sinks.json` once, so that `send` beside the study sent runs twice."""
    found = []
    monkeypatch.setitem(sinks.SINKS, "mine", found.append)
    path = write(tmp_path / "a", ["none-0"])
    with (
        files.locked(path),
        pytest.raises(ConfigError, match=rf"a is in use by process {os.getpid()} on .*; wait for"),
    ):
        sinks.send(path, ["mine"])
    assert found == []
    sinks.send(path, ["mine"])
    assert len(found) == 1


def test_shards_are_sent_and_nothing_is_left_where_no_study_is(tmp_path, monkeypatch):
    found = []
    monkeypatch.setitem(sinks.SINKS, "mine", found.append)
    (tmp_path / "a" / "shards").mkdir(parents=True)
    for name in ("none-0", "S-1-1"):
        write(tmp_path / "a" / "shards" / name, [name])
    sinks.send(tmp_path / "a", ["mine"])
    assert sorted(run.run for run in found) == ["S-1-1", "none-0"]
    (tmp_path / "b").mkdir()
    for path, what in (tmp_path / "b", "no run directory"), (tmp_path / "c", "no directory"):
        with pytest.raises(ReportError, match=f"is {what}.*; name the --workdir"):
            sinks.send(path, ["mine"])
    assert [path.name for path in tmp_path.rglob(".lock")] == [".lock"] * 2  # of the shards
    assert len(found) == 2


def test_damaged_records_are_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sinks.SINKS, "mine", print)
    path = write(tmp_path / "a", ["none-0"])
    (path / sinks.FILE).write_text('{"mine": "none-0"}')
    with pytest.raises(ConfigError, match=r"sinks\.json: 'mine' is 'none-0', not a list"):
        sinks.send(path, ["mine"])


def test_what_a_tracker_writes_beside_the_tables_is_its_own(tmp_path, monkeypatch):
    """A CSV file whose first column is "run" was read as a table: its numbers were sent as those of
    runs, and rows of other lengths ended the study in an error of Python.
    """
    found = []

    def own(run):
        found.append(run)
        with (run.workdir / "own.csv").open("a") as file:
            file.write("run,accuracy\n" * (len(found) == 1) + f"{run.run},1,{len(found)}\n")

    monkeypatch.setitem(sinks.SINKS, "mine", own)
    write(tmp_path / "a", ["none-0", "none-1"])
    (tmp_path / "a" / "bytes.csv").write_bytes(b"run\xff")
    sinks.send(tmp_path / "a", ["mine"])
    write(tmp_path / "a", ["none-0", "none-1", "S-1-0"])
    sinks.send(tmp_path / "a", ["mine"])
    assert [run.run for run in found] == ["none-0", "none-1", "S-1-0"]
    assert {tag for run in found for _, row in run.scalars for tag in row} == {
        "train/loss", "test/accuracy", "prune/sparsity", "prune/instability"
    }  # fmt: skip


def test_a_tracker_that_fails_is_told_once_and_tried_by_the_next_start(tmp_path, monkeypatch):
    told = []
    monkeypatch.setitem(sinks.SINKS, "mine", lambda run: 1 / 0)
    tracking = sinks.Tracking(write(tmp_path / "a", ["none-0"]), ["mine"], told.append)
    tracking.send()
    tracking.send()
    (line,) = told
    assert line.startswith("tracker mine: run none-0 was not sent (ZeroDivisionError: ")
    assert not (tmp_path / "a" / sinks.FILE).exists()
    found = []
    monkeypatch.setitem(sinks.SINKS, "mine", found.append)
    sinks.send(tmp_path / "a", ["mine"])
    assert len(found[0].scalars) == 2


def test_trackers_that_there_are_not(monkeypatch):
    with pytest.raises(ConfigError, match=r"unknown tracker 'wandv'; there are: wandb, mlflow"):
        sinks.check(["wandv"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"tracker wandb needs wandb, .*'prunejax\[wandb\]'"):
        sinks.check(["wandb"])


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("CACHE_DIR", tmp_path)):
        monkeypatch.setenv(f"WANDB_{name}", str(value))
    path = write(tmp_path / "a", ["none-0", "S-1-1"])
    sinks.send(path, ["wandb"])
    files = sorted(path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    for word in (b"train/loss", b"prune/instability", b"final_test_accuracy", b"prune.period"):
        assert all(word in file.read_bytes() for file in files), word


def test_weights_and_biases_get_each_event_of_a_step(tmp_path, monkeypatch):
    """Of the rows that it gets with one `step` it makes one, of the last numbers."""
    history, axes = {}, {}

    class Tracked:
        summary: ClassVar[dict] = {}

        def define_metric(self, name, step_metric=None):
            axes[name] = step_metric

        def log(self, values, step=None):
            history.setdefault(len(history) if step is None else step, {}).update(values)

        def finish(self):
            pass

    fake = types.SimpleNamespace(init=lambda **_: Tracked(), Settings=dict)
    monkeypatch.setattr(optional, "need", lambda *_: fake)
    rows = [(0, {"fell": 0.1}), (0, {"fell": 0.3}), (5, {"fell": 0.2})]
    sinks.wandb(sinks.EndedRun("s", tmp_path, "a-0", "a", 0, {}, rows, {}))
    told = [(row[sinks.STEP], row["fell"]) for row in history.values()]
    assert told == [(0, 0.1), (0, 0.3), (5, 0.2)]
    assert axes["*"] == sinks.STEP


def test_mlflow_gets_settings_curves_and_ends(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    path = write(tmp_path / "a", ["none-0", "S-1-1"])
    sinks.send(path, ["mlflow"])
    client = mlflow.MlflowClient(tracking_uri=(path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("small")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"none-0", "S-1-1"}
    assert runs["S-1-1"].data.params["prune.period"] == "4"
    history = client.get_metric_history(runs["none-0"].info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(10, 1.0), (20, 0.5)]
    assert runs["none-0"].data.metrics["final_test_accuracy"] == 0.75


def test_tensorboard_shows_the_settings_of_runs(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
    from tensorboard.plugins.hparams import plugin_data_pb2

    path = write(tmp_path / "a", ["none-0", "S-1-1"])
    view = TensorBoardView(tmp_path / "tb")
    tables = {name: path / f"{name}.csv" for name in ("epochs", "events", "runs")}
    for _ in range(2):
        view.update(tables, (path / "config.json").read_text())
    read = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "tb")).Reload()
    found = {}
    for run, tags in read.PluginRunToTagToContent("hparams").items():
        data = plugin_data_pb2.HParamsPluginData.FromString(tags["_hparams_/session_start_info"])
        values = data.session_start_info.hparams
        found[run] = (values["prune.period"].number_value, values["seed"].number_value)
        assert values["prune.fraction"].string_value.startswith("[0.")
    assert found == {"none-0": (1, 0), "S-1-1": (4, 1)}


def test_a_notebook_rewrites_its_line():
    from prunejax.record.progress import Progress

    stream = type("OutStream", (), {"__module__": "ipykernel.iostream"})()
    stream.isatty, written = (lambda: False), []
    stream.write, stream.flush = written.append, (lambda: None)
    progress = Progress(10, stream=stream, interval=0.0)
    progress.advance(1)
    progress.advance(1)
    assert [text[0] for text in written] == ["\r", "\r"]
