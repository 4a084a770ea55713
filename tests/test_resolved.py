"""A finished study says so at once; whatever is in doubt goes the long way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunejax.configs import default
from prunejax.record.columns import EPOCHS, EVENTS, RUNS
from prunejax.record.run_directory import RunDirectory
from prunejax.study.settings import resolved

ROOT = Path(__file__).resolve().parent.parent
TABLES = {"epochs": EPOCHS, "events": EVENTS, "runs": RUNS}


@pytest.fixture
def path(tmp_path):
    """A run directory that was finished, of the default settings with other epochs."""
    path = tmp_path / "run"
    with RunDirectory.open(path, resolved.resolve(asked(), default.get_config()), {}, TABLES) as d:
        d.save_json("study.json", {"runs": ["none-0"]})
        d.append("runs", [dict.fromkeys(RUNS, 1)])
        (path / "report.html").write_text("<html></html>")
        (path / "summary.json").write_text("{}")
        d.finish(report="report.html")
    return path


def asked():
    config = default.get_config()
    config.epochs = 7
    return config


def found(path, config=None, shard=(1, 1), environment=None):
    config = config or asked()
    return resolved.finished(config, default.get_config(), str(path), shard, environment or {})


def test_what_is_plainly_finished(path):
    assert found(path) == (path, path / "report.html")
    shards = path.parent / "of" / "shards"
    shards.mkdir(parents=True)
    path.rename(shards / "2-of-3")
    assert found(path.parent / "of", shard=(2, 3)) == (
        shards / "2-of-3",
        shards / "2-of-3/report.html",
    )
    assert found(path.parent / "of", shard=(1, 3)) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "status.json").unlink(),
        lambda path: (path / "status.json").write_text("[]"),
        lambda path: (path / "report.html").write_text("<html>"),
        lambda path: (path / "summary.json").unlink(),
        lambda path: (path / "runs.csv").write_bytes((path / "runs.csv").read_bytes()[:-2]),
        lambda path: (path / "config.json").write_text("{}"),
    ],
)
def test_whatever_is_in_doubt(path, change):
    change(path)
    assert found(path) is None


def test_another_request(path):
    other = asked()
    with other.unlocked(), other.ignore_type():
        other.epochs = 7.0  # of another type: refused by the long way
    assert found(path, other) is None
    other = asked()
    other.checkpoint.every_epochs += 1  # may differ, but has to be checked
    assert found(path, other) is None
    assert found(path, environment={"SLURM_STEP_NODELIST": "a[1-2]"}) is None
    assert found(path, shard=(0, 1)) is None
    assert found(path.parent / "nowhere") is None


def test_the_command_says_so_without_jax_or_numpy(path):
    config = path.parent / "config.py"
    config.write_text(
        "from prunejax.configs import default\n\n"
        "def get_config():\n    c = default.get_config()\n    c.epochs = 7\n    return c\n"
    )
    code = (
        "import sys; from prunejax import main; code = main.main(sys.argv); "
        "print(code, *sorted({'jax', 'numpy', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    words = [f"--config={config}", f"--workdir={path}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        check=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        f"was finished before: {path}; report: {path / 'report.html'}",
        "0",
    ]


def test_resolved_configs_hold_every_field_and_the_arms():
    config = asked()
    whole = resolved.resolve(config, default.get_config(), "a label")
    assert whole["epochs"] == 7
    assert whole["variants"] == {"a label": {}}
    assert whole.keys() == resolved.to_dict(default.get_config()).keys()
    assert json.loads(json.dumps(whole)) == whole
