import importlib
import json
import shutil
from pathlib import Path

import pytest

from prunejax import data, losses, models, report, schedules, scores
from prunejax.configs import default, fields
from prunejax.errors import ConfigError
from prunejax.main import main
from prunejax.measure import main as command
from prunejax.measure import measure
from prunejax.measures import suite
from prunejax.report import tables
from prunejax.study.settings import config as config_lib
from prunejax.study.settings import entries, presets
from prunejax.system import config_file

TEMPLATE = Path(__file__).resolve().parent.parent / "docs" / "plugin_config.py"
TABLES = (
    (models.MODELS, "two_layers"),
    (data.DATASETS, "blobs"),
    (scores.SCORES, "spread"),
    (losses.LOSSES, "brier"),
)


@pytest.fixture
def forget():
    def clear():
        for table, name in TABLES:
            table.pop(name, None)
        config_file._loaded.clear()

    clear()
    yield clear
    clear()


@pytest.mark.usefixtures("promoting")
def test_a_file_brings_model_data_score_and_loss(tmp_path, forget):
    file, workdir = tmp_path / "mine.py", tmp_path / "run"
    shutil.copy(TEMPLATE, file)
    assert entries.registered() == []
    assert main(["main", f"--config={file}", f"--workdir={workdir}", "--quiet"]) == 0
    assert sorted(entries.registered()) == sorted(name for _, name in TABLES)
    kept = json.loads((workdir / "study.json").read_text())["config_file"]
    assert kept["path"] == str(file)

    forget()  # as in another process
    assert measure(workdir, changes={"names": ("tic",), "examples": 20}) == 0
    assert "brier" in losses.LOSSES
    forget()
    report.build([workdir])
    assert "brier" in losses.LOSSES

    forget()
    file.write_text(file.read_text() + "# changed\n")
    with pytest.raises(ConfigError, match="it was changed since") as error:
        report.build([workdir])
    assert "\n" not in str(error.value)
    shutil.copy(TEMPLATE, workdir / file.name)  # for whoever has but the run directory
    text = report.build([workdir]).read_text()
    assert "brier" in losses.LOSSES
    assert "it was changed" not in text
    forget()
    (workdir / file.name).write_text("# another file")
    file.unlink()
    with pytest.raises(ConfigError, match="it is not there; restore it"):
        measure(workdir, changes={"names": ("tic",)})


OWN = """
import jax.numpy as jnp

from prunejax import schedules
from prunejax.configs import default, fields
from prunejax.measures import suite
from prunejax.study.settings import presets

fields.declare("measures.power", fields.number(2.0, 1, 8, "exponent"))
fields.declare("prune.stairs", fields.number(2, 1, 9, "events"))


def norm(context):
    power = context.options["power"]
    kernel = jnp.abs(context.params["classifier"]["kernel"])
    return {"classifier_norm": float((kernel ** power).sum())}, {}


def stairs(*, units, fraction, start, end, period, stairs):
    counts = [round(units * fraction) * (i + 1) // stairs for i in range(stairs)]
    return [(start + i, b - a) for i, (a, b) in enumerate(zip([0, *counts], counts))]


suite.MEASURES["classifier_norm"] = suite.Measure(norm, ("classifier_norm",))
schedules.SCHEDULES["stairs"] = stairs
presets.METHODS["in_stairs"] = {"schedule": "stairs", "layers": ("dense.*",), "stairs": 3}


def get_config(arg=""):
    config = default.get_config()
    config.epochs, config.data.train_examples, config.data.test_examples = 4, 200, 100
    config.prune.end = (3,)
    config.measures.names, config.measures.power = ("classifier_norm",), 3.0
    config.measures.examples = 100
    config.variants = default.arms({
        "three": {"prune": {"method": "in_stairs"}},
        "two": {"prune": {"method": "in_stairs", "stairs": 2}},
    })
    return config
"""


@pytest.fixture
def owned():
    tables = (suite.MEASURES, schedules.SCHEDULES, presets.METHODS, fields.OWN)
    before = [dict(table) for table in tables]

    def clear():
        for table, content in zip(tables, before, strict=True):
            table.clear()
            table.update(content)
        config_file._loaded.clear()

    yield clear
    clear()


def test_a_measure_a_schedule_and_a_method_declare_their_own_fields(tmp_path, owned, capsys):
    file, workdir = tmp_path / "mine.py", tmp_path / "run"
    file.write_text(OWN)
    run = ["main", f"--config={file}", f"--workdir={workdir}", "--quiet"]
    for bad, text in {
        "--config.measures.power=0.5": "config.measures.power = 0.5 must be between 1 and 8 (expo",
        "--config.prune.stairs=x": "stairs",
        "--config.variants.two.prune.stairs=0": "(variant 'two') must be between 1 and 9 (events)",
        "--config.measures.powr=3": "Did you mean 'power'?",
    }.items():
        assert main([*run, bad]) == 2
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
    assert main(run) == 0
    assert {"classifier_norm", "stairs", "in_stairs", "measures.power"} <= set(entries.registered())
    rows = tables.read_csv(workdir / "runs.csv")
    events = tables.read_csv(workdir / "events.csv")
    epochs = {
        arm: sorted({e["epoch"] for e in events if e["variant"] == arm}) for arm in ("three", "two")
    }
    assert epochs == {"three": ["0", "1", "2"], "two": ["0", "1"]}
    owned()  # as in another process
    assert "stairs" not in schedules.SCHEDULES
    of_mine = ["measure", f"--workdir={workdir}", "--names=classifier_norm"]
    capsys.readouterr()
    assert command([*of_mine, "--power=9"]) == 2
    told = capsys.readouterr().err
    assert "config.measures.power = 9.0 must be between 1 and 8 (exponent)" in told
    assert told.count("\n") == 1
    owned()
    assert command([*of_mine, "--power=2.0"]) == 0  # declared by the file: a flag as the others
    again = {row["run"]: row for row in tables.read_csv(workdir / "measures.csv")}
    for row in rows:
        assert float(row["classifier_norm"]) != float(again[row["run"]]["classifier_norm"])


@pytest.mark.parametrize("where", entries.REGISTRIES)
def test_every_entry_of_others_is_known(monkeypatch, where):
    """New names and old ones, also of the package's own parts, as (MLP, {"hidden": (9,)}) is."""
    module, _, name = where.rpartition(".")
    table = getattr(importlib.import_module(f"prunejax.{module}"), name)
    assert entries.registered() == []
    old, entry = next(iter(table.items()))
    monkeypatch.setitem(table, "mine", entry)
    assert entries.registered() == ["mine"]
    monkeypatch.setitem(table, old, object())
    assert entries.registered() == [old, "mine"]


def test_declarations_that_cannot_be_are_refused(owned):
    with pytest.raises(ValueError, match=r"give 'GROUP.FIELD' and what number, word or many make"):
        fields.declare("power", fields.number(1, 1, 2, "exponent"))
    with pytest.raises(ValueError, match=r"give 'GROUP.FIELD'"):
        fields.declare("measures.power", 3)
    fields.declare("measurs.power", fields.number(1, 1, 2, "exponent"))
    with pytest.raises(ValueError, match=r"no group 'measurs'; there are: data, model"):
        default.get_config()
    owned()
    fields.declare("measures.radius", fields.number(1, 1, 2, "length"))
    with pytest.raises(ValueError, match=r"'measures.radius' is one of the package"):
        default.get_config()


def test_a_method_of_a_field_that_is_not_there_is_refused(owned):
    presets.METHODS["odd"] = {"periodd": 3}
    config = default.get_config()
    config.variants = default.arms({"a": {"prune": {"method": "odd"}}})
    with pytest.raises(ConfigError, match=r"'odd' sets 'periodd'.* Did you mean 'period'\?"):
        config_lib.variants(config, default.get_config())
