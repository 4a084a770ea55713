import csv
import errno
import io
import json
import math
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from prunejax.errors import RecordError, WorkdirError
from prunejax.record.columns import EPOCHS, EVENTS, RUNS
from prunejax.record.progress import Progress, duration, standing, whose
from prunejax.record.run_directory import RunDirectory
from prunejax.record.times import Times
from prunejax.system import command, files

CONFIG = {"epochs": 3, "model": {"name": "mlp", "widths": (8, 8)}, "prune": {"start": [1]}}
TABLES = {"epochs": EPOCHS, "events": EVENTS, "runs": (*RUNS, "hessian_trace")}


def make(path, config=CONFIG, **kwargs):
    return RunDirectory.open(path, config, {"jax": "0"}, TABLES, **kwargs)


def epoch_row(run="none-0", epoch=0, **values):
    row = dict.fromkeys(EPOCHS, 0.5) | {"run": run, "variant": "none", "seed": 0}
    return row | {"epoch": epoch, "step": 10 * (epoch + 1)} | values


def event_row(layer, step=20, **values):
    row = dict.fromkeys(EVENTS, 0.25) | {"run": "none-0", "variant": "none", "seed": 0}
    return row | {"epoch": 1, "step": step, "layer": layer, "targeted": 3, "live": 5} | values


def test_a_new_directory_has_config_environment_and_headers(tmp_path):
    with make(tmp_path / "a" / "b") as directory:
        assert json.loads((directory.path / "config.json").read_text())["model"]["widths"] == [8, 8]
        assert json.loads((directory.path / "environment.json").read_text()) == {"jax": "0"}
        assert (directory.path / "epochs.csv").read_text() == ",".join(EPOCHS) + "\n"
        assert (directory.path / "runs.csv").read_text().endswith("sparsity,hessian_trace\n")
        assert not directory.finished


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (np.int64(7), "7"),
        (0.1, "0.1"),
        (np.float32(0.1), "0.1"),
        (1e-12, "1e-12"),
        (1 / 3, "0.3333333333333333"),
        (np.asarray(0.25), "0.25"),
        (np.ones((1,), np.int32), "1"),
        (float("nan"), ""),
        (np.float32("nan"), ""),
        (float("inf"), "inf"),
        (None, ""),
        (True, "true"),
        (np.bool_(False), "false"),
        ("two\nlines", "two lines"),
    ],
)
def test_cells(value, text):
    assert files.cell(value) == text


def test_a_cell_is_one_number():
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        files.cell(np.zeros(2))


def test_float_cells_round_trip_exactly():
    values = np.random.default_rng(0).standard_normal(200) * 10.0 ** np.arange(-100, 100)
    assert all(float(files.cell(v)) == v for v in values)
    assert all(np.float32(files.cell(v)) == v for v in values[80:120].astype(np.float32))


def test_append_and_rows(tmp_path):
    with make(tmp_path) as directory:
        directory.append("epochs", [epoch_row(epoch=e, test_loss=math.nan) for e in range(3)])
        directory.append("epochs", [])
        directory.append("epochs", [epoch_row(variant='L, "13%"')])
        rows = directory.rows("epochs")
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "0"]
    assert rows[0]["test_loss"] == ""
    assert rows[3]["variant"] == 'L, "13%"'


def test_rows_must_have_exactly_the_columns(tmp_path):
    with make(tmp_path) as directory:
        bad = epoch_row() | {"loss": 1.0}
        del bad["test_loss"]
        with pytest.raises(ValueError, match=r"unknown columns \['loss'\], missing .*test_loss"):
            directory.append("epochs", [epoch_row(), bad])
        assert directory.rows("epochs") == []
        with pytest.raises(KeyError):
            directory.append("epoch", [epoch_row()])


def test_the_same_config_continues_and_another_is_refused_with_the_difference(tmp_path):
    with make(tmp_path) as directory:
        directory.append("epochs", [epoch_row()])
    with make(tmp_path) as directory:
        assert len(directory.rows("epochs")) == 1
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir() if f.is_file()}
    other = {**CONFIG, "epochs": 4, "model": {"name": "mlp", "widths": (8, 9)}, "new": True}
    with pytest.raises(WorkdirError) as refusal:
        make(tmp_path, other)
    text = str(refusal.value)
    assert "epochs: 3 -> 4" in text
    assert "model.widths: [8, 8] -> [8, 9]" in text
    assert "new: '(absent)' -> True" in text
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir() if f.is_file()} == before
    make(tmp_path, {**CONFIG, "epochs": 4}, ignore=["epochs"]).close()
    make(tmp_path, {**CONFIG, "model": {"name": "x", "widths": (8, 8)}}, ignore=["model"]).close()
    with pytest.raises(WorkdirError, match="epochs"):
        make(tmp_path, other, ignore=["model", "epoch", "new"])


def test_another_config_that_began_since_it_was_looked_is_refused(tmp_path, monkeypatch):
    """Between the look and the lock a study may begin and be killed; it was gone on with."""
    acquire = files.acquire

    def late(path):
        monkeypatch.undo()
        make(tmp_path).close()
        return acquire(path)

    monkeypatch.setattr(files, "acquire", late)
    with pytest.raises(WorkdirError, match="epochs: 3 -> 4"):
        make(tmp_path, {**CONFIG, "epochs": 4})
    make(tmp_path).close()  # the lock is free, and the config the first one's


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES])
def test_a_full_disk_is_no_bad_request(tmp_path, monkeypatch, number):
    def full(path):
        raise OSError(number, "no", str(path))

    monkeypatch.setattr(files, "acquire", full)
    kind, code = (WorkdirError, 2) if number == errno.EACCES else (RecordError, 1)
    with pytest.raises(kind, match=r"cannot use workdir .*\.lock: no") as error:
        make(tmp_path)
    assert command.outcome(error.value) == (
        error.value.strerror if code == 1 else str(error.value),
        code,
    )


def test_a_new_environment_is_added_not_lost(tmp_path):
    make(tmp_path).close()
    for _ in range(2):
        RunDirectory.open(tmp_path, CONFIG, {"jax": "1"}, TABLES).close()
    make(tmp_path).close()
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found == {"jax": "0", "continued": [{"jax": "1"}]}


def test_unusable_paths_are_refused_and_left_alone(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below", "gs://bucket/run"):
        with pytest.raises(WorkdirError):
            make(path)
    with pytest.raises(WorkdirError, match=r"/proc/none"):
        make("/proc/none")  # nobody may make directories there, not even root
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    with pytest.raises(WorkdirError, match=r"no run directory.*chapter1\.tex"):
        make(tmp_path / "thesis")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_a_start_that_was_cut_short_is_no_obstacle(tmp_path):
    make(tmp_path).close()
    (tmp_path / "config.json").unlink()  # written last
    (tmp_path / "shards").mkdir()
    make(tmp_path).close()
    (tmp_path / "config.json").unlink()
    with (tmp_path / "epochs.csv").open("a") as file:
        file.write("1," * 10 + "1\n")  # rows without a config: somebody's data
    with pytest.raises(WorkdirError, match=r"epochs\.csv"):
        make(tmp_path)


def test_other_columns_are_refused(tmp_path):
    make(tmp_path).close()
    with pytest.raises(WorkdirError, match="columns"):
        RunDirectory.open(tmp_path, CONFIG, {}, {**TABLES, "runs": RUNS})


def test_a_second_process_is_refused_and_a_dead_one_is_not(tmp_path):
    code = f"""
        import sys
        from prunejax.record.run_directory import RunDirectory
        directory = RunDirectory.open({str(tmp_path)!r}, {CONFIG!r}, {{}}, {TABLES!r})
        print("held", flush=True)
        sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(WorkdirError, match=rf"in use by process {process.pid} on "):
        make(tmp_path)
    process.kill()
    process.communicate()
    with make(tmp_path), pytest.raises(WorkdirError, match=f"process {os.getpid()}"):
        make(tmp_path)


def test_truncate_goes_back_to_a_checkpoint(tmp_path):
    with make(tmp_path) as directory:
        directory.append("epochs", [epoch_row(epoch=0)])
        sizes = directory.marks()["sizes"]
        directory.append("epochs", [epoch_row(epoch=1), epoch_row(epoch=2)])
        directory.append("events", [event_row("conv1")])
    with (tmp_path / "epochs.csv").open("a") as file:
        file.write("none-0,none,0,3")  # killed in the middle of a row
    with make(tmp_path) as directory:
        assert len(directory.rows("epochs")) == 3
        directory.truncate(sizes)
        assert [row["epoch"] for row in directory.rows("epochs")] == ["0"]
        assert directory.rows("events") == []
        assert directory.marks()["sizes"] == sizes
        directory.truncate({})
        assert directory.rows("epochs") == []
        with pytest.raises(WorkdirError, match="the checkpoint saw"):
            directory.truncate(sizes)


def test_a_full_disk_is_one_clear_line_and_leaves_whole_rows(tmp_path):
    # A limit on the file size fails like a full disk, in the middle of a write.
    code = f"""
        import resource, signal
        from prunejax.errors import RecordError
        from prunejax.record.columns import EPOCHS
        from prunejax.record.run_directory import RunDirectory
        directory = RunDirectory.open({str(tmp_path)!r}, {CONFIG!r}, {{}}, {TABLES!r})
        row = dict.fromkeys(EPOCHS, 0.5)
        directory.append("epochs", [row])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
        try:
            for _ in range(50):
                directory.append("epochs", [row] * 3)
        except RecordError as error:
            print(error.strerror)
        try:
            directory.save_json("config.json", "x" * 1000)
        except RecordError as error:
            print(error.strerror)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("cannot write" in line and "File too large" in line for line in lines)
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 3
    text = (tmp_path / "epochs.csv").read_text()
    assert text.endswith("\n")
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) % 3 == 2  # header, one row, whole batches of three
    assert {len(row) for row in rows} == {len(EPOCHS)}
    assert not list(tmp_path.glob(".tmp-*"))


def test_record_error_is_an_os_error(tmp_path):
    with make(tmp_path) as directory:
        (tmp_path / "epochs.csv").unlink()
        with pytest.raises(RecordError, match=r"epochs\.csv: No such file"):
            directory.append("epochs", [epoch_row()])


def test_arrays_and_status(tmp_path):
    with make(tmp_path) as directory:
        directory.save_arrays("S 13%-0", eigenvalues=np.arange(3.0))
        directory.save_arrays("S 13%-0", eigenvalues=np.arange(4.0))
        directory.save_arrays("../../x", x=np.zeros(1))
        saved = tmp_path / "measures"
        assert list(np.load(saved / "S_13_-0.npz")["eigenvalues"]) == [0, 1, 2, 3]
        assert sorted(f.name for f in saved.iterdir()) == ["S_13_-0.npz", "_._.._x.npz"]
        directory.finish(seconds=3.5)
    with make(tmp_path) as directory:
        assert directory.finished
        assert directory.load_json("status.json")["seconds"] == 3.5
        assert directory.load_json("nothing.json") is None


def test_a_finished_study_is_told_where_nothing_can_be_written(tmp_path, monkeypatch):
    make(tmp_path).close()

    def read_only(path):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files, "acquire", read_only)
    with pytest.raises(WorkdirError, match="Read-only file system"):
        make(tmp_path)
    (tmp_path / "status.json").write_text('{"finished": true}')
    with make(tmp_path) as directory:
        assert directory.finished


@pytest.mark.parametrize("continued", [3, "x", {}, None])
def test_environments_of_another_kind_are_told(tmp_path, continued):
    make(tmp_path).close()
    file = tmp_path / "environment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"continued": continued}))
    with pytest.raises(WorkdirError, match=r"environment\.json: 'continued' is .*Restore it"):
        make(tmp_path)


def test_leftovers_of_a_kill_go(tmp_path):
    with make(tmp_path) as directory:
        directory.save_arrays("a", x=np.zeros(1))
    for name in ("targets", "states"):
        (tmp_path / name).mkdir()
    for name in ("", "measures", "targets", "states"):
        (tmp_path / name / ".tmp-x").touch()
    make(tmp_path).close()
    assert not list(tmp_path.rglob(".tmp-*"))


def scalars(path):
    """(run, tag) -> [(step, value)] as TensorBoard itself reads it."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    multiplexer = EventMultiplexer(size_guidance={"scalars": 0, "tensors": 0})
    multiplexer.AddRunsFromDirectory(str(path / "tb"))
    multiplexer.Reload()
    found = {}
    for run, tags in multiplexer.Runs().items():
        for tag in tags["scalars"]:
            found[run, tag] = [(e.step, e.value) for e in multiplexer.Scalars(run, tag)]
        for tag in tags["tensors"]:
            found[run, tag] = [
                b"".join(e.tensor_proto.string_val).decode()  # hyperparameters are metadata alone
                for e in multiplexer.Tensors(run, tag)
            ]
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_each_row_once_also_after_a_resume(tmp_path):
    with make(tmp_path) as directory:
        directory.append("epochs", [epoch_row(epoch=0, train_loss=2.0), epoch_row("none-1")])
        directory.tensorboard()
        sizes = directory.marks()["sizes"]
        directory.append("epochs", [epoch_row(epoch=1, train_loss=1.0, test_loss=math.nan)])
        directory.append("events", [event_row("conv1"), event_row("conv2", live=4)])
        directory.tensorboard()
        directory.tensorboard()
    found = scalars(tmp_path)
    assert found["none-0", "train/loss"] == [(10, 2.0), (20, 1.0)]
    assert found["none-0", "test/loss"] == [(10, 0.5)]
    assert found["none-0", "prune/instability"] == [(20, 0.25)]  # the event's, not each layer's
    assert found["none-0", "prune/conv2/live"] == [(20, 4.0)]
    assert found["none-1", "schedule/learning_rate"] == [(10, 0.5)]
    assert '"epochs": 3' in found["study", "config"][0]

    with make(tmp_path) as directory:  # resumed from the checkpoint after epoch 0
        directory.truncate(sizes)
        directory.append("epochs", [epoch_row(epoch=1, train_loss=1.5)])
        done = dict.fromkeys(TABLES["runs"], 0.75) | {"run": "none-0", "status": "completed"}
        directory.append("runs", [done])
        directory.tensorboard()
    found = scalars(tmp_path)
    assert found["none-0", "train/loss"] == [(10, 2.0), (20, 1.5)]
    assert found["none-0", "run/mean_stability"] == [(20, 0.75)]
    assert ("none-0", "prune/instability") not in found


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_progress_leaves_compilation_out_of_the_rate():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(1200, 200, stream=stream, clock=clock)
    with progress.excluded("compiling"):
        clock.now += 30
    clock.now += 2
    progress.advance(500, "Prune_L seed 3")
    assert progress.rate() == 250
    assert stream.getvalue() == (
        " 16%  200/1200 steps  compiling\n"
        " 58%  700/1200 steps  250 steps/s  ETA 0:02  Prune_L seed 3\n"
    )


def test_progress_of_measures_after_training_tells_no_time_left():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(100, stream=stream, clock=clock)
    clock.now += 1
    progress.advance(100, "training")
    for run in range(9):  # said at once, then every five seconds
        with progress.excluded(f"measuring {run}"):
            clock.now += 2
    lines = stream.getvalue().splitlines()
    assert lines[1:] == [f"100%  100/100 steps  100 steps/s  measuring {r}" for r in (0, 3, 6)]


def test_progress_prints_seldom_to_a_file_and_rewrites_on_a_terminal():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(100, stream=stream, clock=clock)
    for _ in range(100):
        clock.now += 0.1
        progress.advance(1)
    progress.message("kept")
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[-2] == "kept"
    assert lines[-1].startswith("100%  100/100 steps")

    clock, terminal = Clock(), Terminal()
    progress = Progress(100, stream=terminal, clock=clock)
    for text in ("a long description", "short"):
        clock.now += 1
        progress.advance(1, text)
    shown = terminal.getvalue()
    assert "\n" not in shown
    first, second = shown.split("\r")[1:]
    assert len(second) == len(first)  # the longer line before it is overwritten
    progress.close("end")
    assert terminal.getvalue().split("\r")[-1].rstrip(" \n").endswith("end")
    assert terminal.getvalue().count("\n") == 1


def test_quiet_progress_prints_nothing():
    stream = io.StringIO()
    progress = Progress(10, quiet=True, stream=stream, interval=0)
    progress.advance(5)
    progress.message("x")
    progress.close()
    assert stream.getvalue() == ""


class Gone(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


@pytest.mark.parametrize(
    "stream",
    [
        Gone(BrokenPipeError()),
        Gone(OSError(5, "Input/output error")),
        Gone(ValueError("I/O operation on closed file")),
    ],
)
def test_a_study_outlives_its_progress_line(stream):
    for terminal in (False, True):
        stream.isatty = lambda terminal=terminal: terminal
        progress = Progress(10, stream=stream, interval=0)
        with progress.excluded("compiling"):
            progress.advance(5, timed=False)
        progress.message("x")
        progress.close("done")


def test_progress_without_a_standard_error(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr("sys.stderr", stream)
        progress = Progress(10, interval=0)
        progress.advance(5)
        progress.message("x")
        progress.close()


def test_progress_writes_what_a_terminal_has_characters_for():
    raw = io.BytesIO()
    progress = Progress(10, stream=io.TextIOWrapper(raw, "ascii"), interval=0)
    progress.advance(5, "arm \u03b5")
    progress.advance(1, "next")
    assert raw.getvalue().decode().splitlines()[0].endswith("arm ?")
    assert raw.getvalue().decode().splitlines()[1].endswith("next")


def test_time_left_knows_no_compilation_from_the_first_line_on():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(1000, stream=stream, clock=clock, interval=0)
    progress.advance(200, "from a checkpoint", timed=False)
    with progress.excluded():  # an epoch, in it an event: both for the first time
        clock.now += 20
        with progress.excluded():
            clock.now += 40
    progress.advance(100, "first", timed=False)
    clock.now += 1
    progress.advance(100, "second")
    lines = stream.getvalue().splitlines()
    assert "ETA" not in lines[1]
    assert lines[2] == " 40%  400/1000 steps  100 steps/s  ETA 0:06  second"


def test_lines_say_whose_loss_and_accuracy():
    assert whose([("a", 0), ("b", 0)]) == "a, b, seed 0"
    assert whose([(arm, seed) for arm in "abcd" for seed in (0, 1)]) == "4 variants, 2 seeds"
    found = standing([1.0, float("nan"), 2.0], "test", [0.5, 0.25, float("nan")])
    assert found == ", loss 1.5, test accuracy 37.5%"


def test_duration():
    assert [duration(s) for s in (0.4, 75, 3700)] == ["0:00", "1:15", "1:01:40"]


def test_a_damaged_json_file_is_named(tmp_path):
    with make(tmp_path / "run") as directory:
        (directory.path / "layout.json").write_text("{")
        with pytest.raises(WorkdirError, match=r"layout\.json is no JSON.* Restore it"):
            directory.load_json("layout.json")
        for damaged in ('{"wall_seconds": "long"}', '{"device_seconds": null}', '{"begun": 3}'):
            (directory.path / "times.json").write_text(damaged)
            with pytest.raises(
                WorkdirError, match=r"times\.json: '\w+' is .*, not a .* Restore it"
            ):
                Times(directory, 2)  # it would be added to
