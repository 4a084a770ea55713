"""What records cost grows with what is new, not with what is there: by counts of work."""

import types
from pathlib import Path

import numpy as np
import pytest

from prunejax.errors import RecordError, WorkdirError
from prunejax.record import ledger
from prunejax.record.run_directory import RunDirectory
from prunejax.study.loop import rows as rows_lib
from prunejax.study.loop import targets as targets_lib
from prunejax.study.loop.targets import Targets
from prunejax.system import files

EVENTS = 12


def member(run, twin="", events=EVENTS):
    rows = np.arange(events)
    return types.SimpleNamespace(
        run=run, twin=twin, events=rows, table=types.SimpleNamespace(ids=rows + 1)
    )


def chosen(row, members=1):
    flags = np.zeros((members, 7, 9), bool)
    flags[:, row % 7, : 1 + row % 9] = True
    return {"layer": flags}


@pytest.fixture
def written(monkeypatch):
    """How many arrays each file was given."""
    counts = []
    original = Targets._write

    def write(file, events, names):
        counts.append((file.name, len(names)))
        original(file, events, names)

    monkeypatch.setattr(Targets, "_write", staticmethod(write))
    return counts


def test_a_checkpoint_writes_the_new_events_only(tmp_path, written):
    held = Targets(tmp_path / "targets", [member("a-0")])
    for row in range(EVENTS):
        held.add(row, chosen(row))
        held.save()
        held.save()  # nothing is new
    assert [n for _, n in written] == [1] * EVENTS
    assert written[0][0] == "a-0.npz"
    assert written[3][0] == "a-0.npz+3"
    held.save(whole=True)
    held.save(whole=True)
    assert written[EVENTS:] == [("a-0.npz", EVENTS)]
    assert [p.name for p in (tmp_path / "targets").iterdir()] == ["a-0.npz"]
    with np.load(tmp_path / "targets" / "a-0.npz") as saved:
        assert set(saved.files) == {f"{row}/layer" for row in range(EVENTS)}
        for row in range(EVENTS):
            np.testing.assert_array_equal(saved[f"{row}/layer"], chosen(row)["layer"][0])
            assert saved[f"{row}/layer"].dtype == bool


def test_a_continued_run_reads_its_parts_and_twins_replay_them(tmp_path, written):
    path = tmp_path / "targets"
    first = Targets(path, [member("a-0")])
    for row in range(5):
        first.add(row, chosen(row))
        first.save()
    again = Targets(path, [member("a-0"), member("b-0", twin="a-0")])
    assert again.twins
    like = {"layer": np.zeros((2, 7, 9), bool)}
    for row in (0, 4):
        replayed = again.replay([member("b-0", twin="a-0")], row, like)["layer"]
        np.testing.assert_array_equal(replayed, chosen(row)["layer"])
    assert not again.replay([member("b-0", twin="a-0")], 7, like)["layer"].any()
    again.add(4, chosen(4, 2))  # done once more after an older checkpoint: nothing is new
    again.add(5, chosen(5, 2))
    written.clear()
    again.save()
    assert ("a-0.npz+5", 1) in written
    assert dict(written)["b-0.npz"] == 2  # of the twin, which has no file yet


def test_runs_without_targets_have_a_file_and_a_lost_one_is_told(tmp_path):
    path = tmp_path / "targets"
    held = Targets(path, [member("a-0"), member("none-0", events=0)])
    held.save()
    assert [p.name for p in path.iterdir()] == ["a-0.npz"]
    held.require()
    (path / "a-0.npz").unlink()
    with pytest.raises(RecordError, match=r"cannot read .*a-0.npz .*No such file"):
        held.require()
    (path / "a-0.npz").write_bytes(b"PK")
    with pytest.raises(RecordError, match=r"cannot read .*a-0\.npz"):
        Targets(path, [member("a-0")])


def test_names_that_begin_alike_keep_their_parts_apart(tmp_path):
    path = tmp_path / "targets"
    both = [member("a-0"), member("a-01")]
    held = Targets(path, both)
    for row in range(3):
        held.add(row, chosen(row, 2))
        held.save()
    held.save(whole=True)
    assert sorted(p.name for p in path.iterdir()) == ["a-0.npz", "a-01.npz"]


def test_bits_hold_any_shape():
    for shape in [(), (1,), (3, 3, 5, 7), (0, 4), (16,)]:
        flags = np.random.default_rng(0).random(shape) < 0.5
        packed = targets_lib._Packed.of(flags)
        np.testing.assert_array_equal(packed.flags, flags)
        assert packed.bits.nbytes <= flags.size // 8 + 1


def test_rows_are_read_from_where_they_begin(tmp_path, monkeypatch):
    columns = {"epochs": ("run", "epoch")}
    with RunDirectory.open(tmp_path / "run", {}, {}, columns) as directory:
        rows = [{"run": f"a-{i}", "epoch": i} for i in range(50)]
        directory.append("epochs", rows[:30])
        begins = directory.marks()["sizes"]["epochs"]
        directory.append("epochs", rows[30:])
        found = directory.rows("epochs", begins)
        assert [r["run"] for r in found] == [f"a-{i}" for i in range(30, 50)]
        assert directory.rows("epochs") == directory.rows("epochs", 0)
        assert len(directory.rows("epochs")) == 50
        assert directory.rows("epochs", directory.marks()["sizes"]["epochs"]) == []


def test_tables_that_stand_are_not_read_again_and_changed_ones_are(tmp_path, monkeypatch):
    read = []
    begin = ledger.Running.__init__

    def counted(self, file, size=None):
        begin(self, file, size)
        read.append(self.size)

    monkeypatch.setattr(ledger.Running, "__init__", counted)
    with RunDirectory.open(tmp_path / "run", {}, {}, {"epochs": ("run", "epoch")}) as directory:
        for chunk in range(20):  # as chunks of runs do: cut back to where they begin, then append
            marks = directory.marks()
            directory.truncate(marks["sizes"], marks["digests"])
            directory.append("epochs", [{"run": f"a-{chunk}", "epoch": i} for i in range(30)])
        assert sum(read) < 100  # the header, at first
        directory.truncate(marks["sizes"], marks["digests"])  # rows of the last one are too many
        assert len(directory.rows("epochs")) == 19 * 30
        table = directory.path / "epochs.csv"
        table.write_text(table.read_text()[:-8])
        with pytest.raises(WorkdirError, match="the table was changed"):
            directory.truncate(marks["sizes"], marks["digests"])


def recorded(path, monkeypatch, *, chunks, epochs, events=3, layers=2):
    """Work where so many chunks of two runs record, as `study.loop.chunk` does, by kinds of it.

    Bytes of tables read (for digests) and appended, rows read, arrays of targets written, and
    files asked for.
    """
    work = dict.fromkeys(("read", "appended", "rows", "arrays", "asked"), 0)
    begin, append, rows, exists = (
        ledger.Running.__init__, files.append, RunDirectory.rows, Path.exists
    )  # fmt: skip

    def reading(self, file, size=None):
        begin(self, file, size)
        work["read"] += self.size

    def appending(file, content):
        append(file, content)
        work["appended"] += len(content)

    def taking(self, table, since=0):
        found = rows(self, table, since)
        work["rows"] += len(found)
        return found

    def asking(self, **options):
        work["asked"] += 1
        return exists(self, **options)

    def writing(file, held, names):
        work["arrays"] += len(names)
        write(file, held, names)

    write = Targets._write
    columns = {"epochs": ("run", "epoch"), "events": ("run", "epoch"), "runs": ("run",)}
    with monkeypatch.context() as patch:
        patch.setattr(ledger.Running, "__init__", reading)
        patch.setattr(files, "append", appending)
        patch.setattr(RunDirectory, "rows", taking)
        patch.setattr(Path, "exists", asking)
        patch.setattr(Targets, "_write", staticmethod(writing))
        with RunDirectory.open(path, {}, {}, columns) as directory:
            work |= dict.fromkeys(work, 0)
            for chunk in range(chunks):
                runs = [f"a-{2 * chunk + i:04d}" for i in (0, 1)]
                members = [member(run, events=events) for run in runs]
                held = Targets(path / "targets", members)
                marks = directory.marks()
                directory.truncate(marks["sizes"], marks["digests"])
                for epoch in range(epochs):
                    new = [{"run": run, "epoch": f"{epoch:04d}"} for run in runs]
                    if epoch < events:
                        flags = chosen(epoch, 2)["layer"]
                        held.add(epoch, {f"layer{i}": flags for i in range(layers)})
                        directory.append("events", new)
                    directory.append("epochs", new)
                    directory.marks()
                    held.save()  # with every checkpoint
                of_runs, _ = rows_lib.by_run(directory, marks["sizes"], members)
                assert [len(of_runs[run]) for run in runs] == [epochs] * 2
                held.save(whole=True)
                directory.append("runs", [{"run": run} for run in runs])
    return work


@pytest.mark.parametrize("axis", ["chunks", "epochs", "events", "layers"])
def test_work_of_records_is_linear(tmp_path, monkeypatch, axis):
    """Four times as much takes at most four times the work: what grew faster would take more."""
    base = {"chunks": 4, "epochs": 8, "events": 4, "layers": 2}
    if axis == "events":
        base["epochs"] = 16  # as many checkpoints in both
    small = recorded(tmp_path / "small", monkeypatch, **base)
    large = recorded(tmp_path / "large", monkeypatch, **base | {axis: 4 * base[axis]})
    assert small["appended"] > 0
    assert small["arrays"] > 0
    for kind, count in large.items():
        assert count <= 4 * small[kind] + (kind == "read"), (kind, small, large)
