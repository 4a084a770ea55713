"""Commands on a workdir behind a URL, with orbax's checkpoints and the report."""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import prunejax
from prunejax import main
from prunejax.__main__ import main as door
from prunejax.record import mirror, remote
from tests.children import Child


def _killed_at(call, words):
    """The command, killed before a call of `Mirror._settle`; 0: not at all."""
    left, settle = [call], mirror.Mirror._settle

    def deadly(self, *args):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        settle(self, *args)

    mirror.Mirror._settle = deadly
    sys.exit(main.main(words))


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """A study of the command line behind a URL that other processes see, ended by SIGKILL before.

    Returns the URL, a workdir with the same study, and what the command said.
    """
    folder = tmp_path_factory.mktemp("commands")
    place, told = f"file://{folder}/bucket/run", []
    config = Path(__file__).with_name("remote_config.py")

    def started(workdir, machine, kill=0):
        words = ["prunejax", f"--config={config}", f"--workdir={workdir}"]
        env = {**os.environ, mirror.VARIABLE: str(folder / machine)}
        process = Child(_killed_at, kill, words, env=env, apart=True)
        return process, *process.communicate(timeout=300)

    told.append(started(place, "one", kill=4))
    told.append(started(place, "two"))
    plain, _, errors = started(folder / "plain", "none")
    assert plain.returncode == 0, errors
    return place, folder, told


@pytest.mark.slow
def test_a_killed_study_goes_on_on_another_machine(commands):
    """With orbax's checkpoints, the report and TensorBoard: all tables are the same bytes."""
    place, folder, ((killed, *_), (finished, output, errors)) = commands
    assert killed.returncode == -9
    assert finished.returncode == 0, errors
    assert f"finished: {place}; report: {folder}/two/" in output
    assert f"{place}: worked on in {folder}/two/" in errors
    assert "continuing from a checkpoint" in errors
    bucket = folder / "bucket" / "run"
    tables = sorted(path.name for path in (folder / "plain").glob("*.csv"))
    assert len(tables) >= 4
    for name in tables:
        assert (bucket / name).read_bytes() == (folder / "plain" / name).read_bytes(), name
    listed = json.loads((bucket / "mirror.json").read_text())["files"]
    assert {"report.html", "status.json", "config.json"} <= set(listed)
    assert list((bucket / ".staged").glob("*")) == []


@pytest.mark.slow
def test_commands_read_a_url(commands, monkeypatch, capsys, tmp_path):
    place, folder, _ = commands
    monkeypatch.setenv(mirror.VARIABLE, str(folder / "three"))
    assert door(["show", place]) == 0
    assert "table    epochs.csv: 8 rows" in capsys.readouterr().out
    loaded, plain = prunejax.load(place), prunejax.load(folder / "plain")
    assert list(loaded.columns("runs")["run"]) == list(plain.columns("runs")["run"])
    for a, b in zip(*(jax.tree.leaves(x.weights("S-0")) for x in (loaded, plain)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert door(["export", f"--workdir={place}", "--run=S-0", f"--output={tmp_path}/net.npz"]) == 0
    assert (
        door(["measure", f"--workdir={place}", "--names=predictions", "--examples=64", "--run=S-0"])
        == 0
    )
    monkeypatch.setenv(mirror.VARIABLE, str(folder / "four"))
    assert "S-0" in (remote.fetched(place) / "measures.csv").read_text()
    page = remote.fetched(place) / "report.html"
    page.unlink()
    assert door(["report", place]) == 0
    assert (folder / "bucket/run/report.html").read_bytes() == page.read_bytes()


@pytest.mark.slow
def test_the_command_line_tells_in_a_line(commands, monkeypatch, capsys):
    place, folder, _ = commands
    monkeypatch.setenv(mirror.VARIABLE, str(folder / "five"))
    monkeypatch.setattr("prunejax.cluster.distributed.leave", lambda code: None)
    config = f"--config={Path(__file__).with_name('remote_config.py')}"
    for url, code, text in (
        ("nowhere://x/y", 2, "workdir nowhere://x/y: Protocol not known: nowhere"),
        ("file:///proc/nowhere/run", 1, "cannot write to file:///proc/nowhere/run: "),
    ):
        assert main.main(["prunejax", config, f"--workdir={url}", "--quiet"]) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"prunejax: {text}")
    assert main.main(["prunejax", config, f"--workdir={place}", "--quiet"]) == 0
    assert f"was finished before: {place}; report: {folder}/five/" in capsys.readouterr().out
