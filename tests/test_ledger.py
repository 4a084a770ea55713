"""No change of a run directory's files passes in silence, nor is anything refused that is whole."""

import json

import numpy as np
import pytest

from prunejax.errors import WorkdirError
from prunejax.record import ledger
from prunejax.record.run_directory import RunDirectory

TABLES = {"epochs": ("run", "loss"), "runs": ("run", "accuracy")}
CONFIG = {"name": "made up"}


def opened(path):
    return RunDirectory.open(path, CONFIG, {"python": "3"}, TABLES)


@pytest.fixture
def finished(tmp_path):
    path = tmp_path / "run"
    with opened(path) as directory:
        directory.append("epochs", [{"run": "a-0", "loss": 0.125 * i} for i in range(20)])
        directory.append("runs", [{"run": "a-0", "accuracy": 0.5}])
        directory.save_json("study.json", {"runs": ["a-0"]})
        directory.save_arrays("a-0", tic=np.arange(3.0))
        (path / "targets").mkdir()
        np.savez(path / "targets" / "a-0.npz", dense1=np.ones(3, bool))
        (path / "report.html").write_text("<html></html>\n")
        (path / "summary.json").write_text("{}\n")
        (path / "figures").mkdir()
        (path / "figures" / "gap.svg").write_text("<svg></svg>\n")
        directory.finish(report="report.html")
    return path


def cut(file):
    file.write_bytes(file.read_bytes()[:-7])


def cut_a_row(file):
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def remove(file):
    file.unlink()


RECORDS = (
    *("epochs.csv", "runs.csv", "study.json", "environment.json"),
    *("targets/a-0.npz", "measures/a-0.npz"),
)


@pytest.mark.parametrize("harm", [cut, cut_a_row, flip, remove], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_of_a_finished_study_is_named(finished, name, harm):
    if harm is cut_a_row and name.endswith("npz"):
        pytest.skip("no rows")
    harm(finished / name)
    before = {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}
    with pytest.raises(WorkdirError, match=f"{finished / name} ") as error:
        opened(finished)
    assert "\n" not in str(error.value)
    del before[finished / ".lock"]
    assert {f: f.read_bytes() for f in before if f.exists()} == before  # nothing was "mended"
    with pytest.raises(WorkdirError):  # nor is the second try silent
        opened(finished)


def test_what_is_whole_is_opened_and_left_alone(finished):
    before = (finished / "status.json").read_bytes()
    with opened(finished) as directory:
        assert directory.finished
        assert ledger.lost_views(finished, directory.status) == []
    assert (finished / "status.json").read_bytes() == before
    assert ledger.damage(finished, json.loads(before)) is None


def test_measured_again_is_no_damage(finished):
    np.savez_compressed(finished / "measures" / "a-0.npz", tic=np.arange(4.0))
    (finished / "measures.csv").write_text("run,tic\na-0,3\n")
    opened(finished).close()


@pytest.mark.parametrize("harm", [cut, remove], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["report.html", "summary.json", "figures/gap.svg"])
def test_lost_views_are_told_apart(finished, name, harm):
    harm(finished / name)
    with opened(finished) as directory:
        assert ledger.lost_views(finished, directory.status) == [name]


@pytest.mark.parametrize(
    "content",
    ["[]", "3", '{"finished": true, "files": 3}', '{"finished": true, "files": {"a": 1}}'],
)
def test_a_status_of_another_kind_is_one_line(finished, content):
    (finished / "a").write_text("")
    (finished / "status.json").write_text(content)
    with pytest.raises(WorkdirError, match=r"status\.json is no(t what this program writes| JSON)"):
        opened(finished)


def test_a_directory_of_an_earlier_version_is_taken_at_its_word(finished):
    (finished / "status.json").write_text('{"finished": true, "report": "report.html"}')
    flip(finished / "epochs.csv")
    with opened(finished) as directory:
        assert directory.finished
        assert ledger.lost_views(finished, directory.status) == []
        (finished / "report.html").unlink()
        assert ledger.lost_views(finished, directory.status) == ["report.html"]


def test_a_changed_row_does_not_survive_a_checkpoint(tmp_path):
    row = {"run": "a-0", "loss": 0.25}
    with opened(tmp_path / "run") as directory:
        directory.append("epochs", [row])
        marks = directory.marks()
        directory.append("epochs", [row, row])
        assert directory.marks()["sizes"]["epochs"] > marks["sizes"]["epochs"]
    file = tmp_path / "run" / "epochs.csv"
    good = file.read_bytes()
    file.write_bytes(good.replace(b"0.25", b"0.26", 1))
    with opened(tmp_path / "run") as directory:
        with pytest.raises(WorkdirError, match="differs from what the checkpoint saw"):
            directory.truncate(**marks)
        directory.truncate(marks["sizes"])  # earlier versions kept no digests
        assert directory.marks()["sizes"] == marks["sizes"]
    file.write_bytes(good)
    with opened(tmp_path / "run") as directory:
        directory.truncate(**marks)
        assert directory.marks() == marks
        directory.append("epochs", [row])
        directory.finish()
    assert (
        ledger.damage(tmp_path / "run", json.loads((file.parent / "status.json").read_text()))
        is None
    )


def test_a_table_changed_while_the_study_ran_is_no_finished_study(tmp_path):
    with opened(tmp_path / "run") as directory:
        directory.append("epochs", [{"run": "a-0", "loss": 0.25}])
        flip(tmp_path / "run" / "epochs.csv")
        with pytest.raises(WorkdirError, match=r"epochs\.csv differs"):
            directory.finish()
    assert not (tmp_path / "run" / "status.json").exists()
