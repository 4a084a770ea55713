"""`benchmarks/gpu.sh` without a GPU: options, records that continue, the schedule of its study."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prunejax import schedules
from tests.launching import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import gpu_figure2
import gpu_smoke
import gpu_stage

STAGES = ("smoke", "tests", "throughput", "projection", "memory", "figure2")


def call(*arguments):
    command = ["bash", ROOT / "benchmarks" / "gpu.sh", f"--python={sys.executable}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_dry_run_names_every_stage_and_writes_nothing(tmp_path):
    out = tmp_path / "the results"
    done = call("--cpu", "--dry-run", f"--out={out}", "--minutes=7")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if "--seconds=370" in line] == lines[1:-1]
    for line, stage in zip(lines[1:-1], STAGES, strict=True):
        assert f"gpu_{stage}.py" in line
        assert (ROOT / "benchmarks" / f"gpu_{stage}.py").exists()
    assert not out.exists()


def test_letters_are_stages(tmp_path):
    done = call("--cpu", "--dry-run", f"--out={tmp_path}", "--stage=b,memory")
    assert done.stdout.splitlines()[-1].endswith("tests memory")


def test_wheels_are_installed_without_a_network(tmp_path):
    (tmp_path / "some-1-py3-none-any.whl").touch()
    done = call("--cpu", "--dry-run", f"--out={tmp_path / 'out'}", f"--wheels={tmp_path}")
    first = done.stdout.splitlines()[0]
    assert " -m pip install " in first
    assert " --no-index --no-deps " in first
    assert first.endswith("/some-1-py3-none-any.whl")


@pytest.mark.parametrize(
    "argument",
    ["--stage=g", "--stage=", "--minutes=0", "--wheels=/nowhere", "--data=/nowhere", "--quick"],
)
def test_bad_options_are_one_line_and_code_2(argument):
    done = call("--dry-run", argument)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert argument.split("=")[0] in done.stderr


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Makes the same stage again, as the next call does."""
    (tmp_path / "device.json").write_text('{"device": "stand-in"}')
    arguments = ["gpu_memory.py", f"--out={tmp_path}", "--cpu", "--seconds=100"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(gpu_stage.signal, "signal", lambda *_: None)
    return lambda: gpu_stage.Stage("memory", "A stage.")


def end(stage, body):
    with pytest.raises(SystemExit) as ended:
        stage.main(body)
    return ended.value.code


def test_the_next_call_keeps_what_is_known_and_tries_again_what_failed(stage, tmp_path):
    def first(stage):
        stage.add(network="a", gib=1.5)
        stage.add(network="b", failed="no memory", gib=float("nan"))

    assert end(stage(), first) == 1
    assert "NaN" not in next(tmp_path.glob("*-memory.json")).read_text()
    again = stage()
    assert again.found(network="a") == [{"network": "a", "gib": 1.5}]
    assert again.found(network="b") == []
    assert gpu_stage.summary(tmp_path, ["memory"]) == 1
    assert end(again, lambda s: s.add(network="b", gib=2.0)) == 0
    (file,) = tmp_path.glob("????-??-??-memory.json")
    record = json.loads(file.read_text())
    assert (record["ended"], record["device"]) == ("done", "stand-in")
    assert [row["network"] for row in record["rows"]] == ["a", "b"]
    assert gpu_stage.summary(tmp_path, ["memory"]) == 0
    assert gpu_stage.summary(tmp_path, ["memory", "smoke"]) == 75


def test_a_stage_without_time_ends_with_what_it_has(stage, tmp_path):
    def slow(stage):
        stage.add(network="a", gib=1.5)
        stage.deadline = 0.0
        stage.run([sys.executable, "-c", "import time; time.sleep(60)"], "slow")

    assert end(stage(), slow) == 75
    assert stage().found(network="a")
    assert gpu_stage.summary(tmp_path, ["memory"]) == 75


def alive(process):
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat")  # a process that nobody waits for stays as a name
        return not state.exists() or state.read_text().split()[2] != "Z"
    except (OSError, IndexError):
        return False


def test_a_program_that_is_stopped_takes_its_children_along(stage, tmp_path):
    made, file = stage(), tmp_path / "pid"
    sleeper = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    command = [sys.executable, "-c", sleeper, str(file)]
    child = f"import subprocess; subprocess.run({command!r})"
    process = made.start([sys.executable, "-c", child], "children")
    while not (file.exists() and file.read_text()):
        time.sleep(0.02)
    gpu_stage.stop(process)
    deadline = time.monotonic() + 20
    while alive(int(file.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("epochs", [10, 26, 52, 100, 325])
def test_a_piece_of_figure_2_has_as_many_events_as_the_whole(epochs):
    config = gpu_figure2.get_config(f"epochs={epochs},seeds=4")
    full = gpu_figure2.get_config("")
    assert list(config.variants) == list(gpu_figure2.ARMS)

    def counts(config):
        p = config.variants.L_13.prune
        return [
            [count for _, count in schedules.linear(
                units=512, fraction=f, start=start, end=stop, period=p.period)]
            for f, start, stop in zip(p.fraction, p.start, p.end, strict=True)
        ]  # fmt: skip

    assert counts(config) == counts(full)
    last = config.variants.L_13.prune
    assert max(last.end) < epochs
    assert config.optimizer.milestones[1] < epochs
    assert config.seeds == 4


@pytest.mark.parametrize(
    "argument", ["epochs=5,seeds=4", "epoch=50", "epochs=x", "epochs=20,seeds=0"]
)
def test_a_piece_that_cannot_be_is_refused(argument):
    with pytest.raises(ValueError, match=r"epochs=N|invalid literal"):
        gpu_figure2.get_config(argument)


def test_tables_are_compared_byte_by_byte_and_number_by_number(tmp_path):
    for name, loss in (("one", "0.5"), ("two", "0.5000005"), ("three", "no")):
        (tmp_path / name).mkdir()
        for table in gpu_smoke.TABLES:
            (tmp_path / name / f"{table}.csv").write_text(f"run,loss\nS-0,{loss}\n")
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    assert gpu_smoke.same(one, one) == (True, 0.0)
    equal, largest = gpu_smoke.same(one, two)
    assert not equal
    assert largest == pytest.approx(1e-6, rel=1e-3)
    assert gpu_smoke.same(one, three) == (False, float("inf"))


def test_all_packages_that_are_missing_are_named_at_once(tmp_path, monkeypatch, capsys):
    needed = {"numpy": "numpy", "one": "no_such_module", "two": "numpy.no_such_module"}
    monkeypatch.setattr(gpu_stage, "NEEDED", needed)
    assert gpu_stage.device(tmp_path, cpu=True, data=False) == gpu_stage.REFUSED
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        "gpu.sh: bring along (--wheels): one: No module named 'no_such_module'; "
        "two: No module named 'numpy.no_such_module'"
    )
    assert not (tmp_path / "device.json").exists()
