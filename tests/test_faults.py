"""Nothing is lost: a study that ends at any moment continues to the same bytes."""

import itertools
import json
import os
import random
import shutil

import numpy as np
import pytest

from prunejax import report
from prunejax.configs import default
from prunejax.errors import RecordError, WorkdirError
from prunejax.record import checkpoint
from prunejax.record.progress import Progress
from prunejax.record.run_directory import RunDirectory
from prunejax.study import run as study
from prunejax.study.devices.population import Population
from prunejax.study.loop import chunk, saving
from prunejax.study.loop.saving import Saving
from prunejax.system import files
from tests import faults
from tests.children import Child


@pytest.fixture(scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        faults.make_quick(patch)
        yield patch


@pytest.fixture(scope="module")
def counted(quick, tmp_path_factory):
    """A study that nothing ends, and its moments in order."""
    path = tmp_path_factory.mktemp("faults") / "reference"
    with pytest.MonkeyPatch.context() as patch:
        names = faults.Moments(patch).names
        faults.run(path)
    return path, names


@pytest.fixture(scope="module")
def reference(counted):
    return counted[0]


@pytest.fixture(scope="module")
def names(counted):
    return counted[1]


@pytest.fixture
def moments(quick):
    with pytest.MonkeyPatch.context() as patch:
        yield faults.Moments(patch)


def test_the_study_has_open_windows_twins_and_all_kinds_of_moments(reference, names):
    assert set(names) >= {"write", "fsync", "replace", "rename", "rmtree", "save"}
    assert set(names) >= {"initial", "evaluate", "event", "build"}
    assert len(names) > 300
    assert len([name for name in faults.content(reference) if name.endswith(".npz")]) == 4


@pytest.mark.parametrize("part", range(5))
def test_an_end_at_any_moment_leads_to_the_same_bytes(reference, moments, names, tmp_path, part):
    """Kills at moments drawn from all of them, again while it continues, then to the end."""
    total, draw = len(names), random.Random(part)
    path = tmp_path / "run"
    for at in [draw.randrange(1, total + 1) for _ in range(5)]:
        moments.count, moments.at = 0, at
        try:
            faults.run(path)
        except faults.Killed:
            continue
        assert (path / "status.json").exists()
    moments.at = -1
    faults.run(path)
    assert faults.content(path) == faults.content(reference)


@pytest.mark.parametrize("what", ["write", "replace", "save", "fsync"])
def test_a_full_disk_is_one_error_and_loses_nothing(reference, moments, names, tmp_path, what):
    late = [i for i, name in enumerate(names, 1) if name == what]
    path = tmp_path / "run"
    moments.end = OSError
    moments.count, moments.at = 0, late[len(late) // 2]
    with pytest.raises(RecordError, match=r"(No space left on device).*intact"):
        faults.run(path)
    moments.at = -1
    faults.run(path)
    assert faults.content(path) == faults.content(reference)


def test_damaged_newest_checkpoint_is_reported_and_the_one_before_used(
    reference, moments, tmp_path, monkeypatch
):
    path, told = tmp_path / "run", []
    moments.at = 250
    with pytest.raises(faults.Killed):
        faults.run(path)
    moments.at = -1
    newest = max(
        (p for p in path.glob("checkpoints/chunk-*/*") if p.name.isdigit()),
        key=lambda p: int(p.name),
    )
    file = newest / "states" / "leaves.npz"
    file.write_bytes(file.read_bytes()[:-100])
    monkeypatch.setattr(
        "prunejax.record.progress.Progress.message", lambda self, text: told.append(text)
    )
    faults.run(path)
    assert any(f"damaged checkpoint skipped: {newest}" in text for text in told)
    assert faults.content(path) == faults.content(reference)


def seldom(path):
    """The study without checkpoints but those that an exception or a signal leads to."""
    config = faults.config()
    config.checkpoint.every_minutes = 0.0
    return study.run(config, path, default.get_config(), quiet=True)


@pytest.mark.parametrize(
    ("owner", "name", "nth", "steps"),
    [
        (Progress, "advance", 2, 12),  # after the first two calls of an epoch of 13 steps
        (Progress, "advance", 3, 13),
        (Population, "evaluate", 1, 13),  # at the end of an epoch, its event and its rows to come
    ],
)
def test_an_unexpected_exception_costs_nothing(reference, tmp_path, owner, name, nth, steps):
    path, original, left = tmp_path / "run", getattr(owner, name), [nth]

    def fails(*args, **options):
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("nobody foresaw this")
        return original(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, fails)
        with pytest.raises(RuntimeError, match="nobody foresaw this") as error:
            seldom(path)
    assert "is saved" in error.value.__notes__[0]
    (newest,) = (path / "checkpoints" / "chunk-0").glob("[0-9]*")
    with np.load(newest / "states" / "leaves.npz") as saved:
        assert any(leaf.tolist() == [steps] * 2 for leaf in saved.values())
    faults.run(path)
    assert faults.content(path) == faults.content(reference)


@pytest.mark.parametrize(
    ("owner", "name", "nth"),
    [
        (Population, "evaluate", 4),  # after an event
        (RunDirectory, "append", 4),  # half of an epoch's rows are written
        (Saving, "rows_written", 3),  # all of them
    ],
)
@pytest.mark.parametrize("worth", [True, False])
def test_an_exception_after_an_event_costs_little(
    reference, tmp_path, monkeypatch, owner, name, nth, worth
):
    """The event took the states' buffers: what is worth it was saved right before."""
    path, original, left = tmp_path / "run", getattr(owner, name), [nth]

    def fails(*args, **options):
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("nobody foresaw this")
        return original(*args, **options)

    if worth:
        monkeypatch.setattr(saving, "WORTH_SAVING", 0.0)
        monkeypatch.setattr(saving, "COST", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        with pytest.raises(RuntimeError, match="nobody foresaw this"):
            seldom(path)
    assert (path / "checkpoints" / "chunk-0").exists() == worth
    faults.run(path)
    assert faults.content(path) == faults.content(reference)


def test_an_exception_on_a_full_disk_is_still_the_one_that_is_told(reference, tmp_path):
    path = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "advance", lambda *_, **__: 1 / 0)
        patch.setattr(checkpoint.Checkpoints, "save", lambda *_: os.write(-1, b""))
        with pytest.raises(ZeroDivisionError) as error:
            seldom(path)
    assert not hasattr(error.value, "__notes__")
    faults.run(path)
    assert faults.content(path) == faults.content(reference)


def interrupted(path, moments, at):
    moments.count, moments.at = 0, at
    with pytest.raises(faults.Killed):
        faults.run(path)
    moments.at = -1


@pytest.mark.parametrize("table", ["epochs", "events"])
def test_a_flipped_digit_or_a_lost_row_does_not_survive(reference, moments, tmp_path, table):
    path = tmp_path / "run"
    interrupted(path, moments, 250)
    file = path / f"{table}.csv"
    good = file.read_bytes()
    row = good.splitlines()[1]
    other = row[:-1] + (b"1" if row[-1:] == b"0" else b"0")
    for bad in (good.replace(row, other, 1), good.replace(row + b"\n", b"", 1), b"", None):
        file.unlink()
        if bad is not None:
            file.write_bytes(bad)
        with pytest.raises(WorkdirError, match=rf"{table}\.csv .*the table was changed"):
            faults.run(path)
    file.write_bytes(good)
    faults.run(path)
    assert faults.content(path) == faults.content(reference)


def test_runs_that_are_done_are_not_lost_in_silence(reference, moments, names, tmp_path):
    """The first chunk has ended; its rows in runs.csv, or what tells of them, go away."""
    late = [i for i, name in enumerate(names, 1) if name == "initial"]
    for name in ("runs.csv", "progress.json", "layout.json"):
        path = tmp_path / name
        interrupted(path, moments, late[1] + 40)
        (path / name).unlink()
        with pytest.raises(WorkdirError, match=name):
            faults.run(path)


def test_progress_of_another_kind_is_told(reference, moments, tmp_path):
    path = tmp_path / "run"
    interrupted(path, moments, 250)
    file, changes = path / "progress.json", [{"chunk": "1"}, {"sizes": None}, {"digests": []}]
    changes += [{"sizes": sizes} for sizes in ({"epochs": "3"}, {"epochs": -1}, {"nothing": 3})]
    changes += [{"digests": digests} for digests in ({"epochs": 3}, {"nothing": "3"})]
    whole = json.loads(file.read_text())
    for change in changes:
        file.write_text(json.dumps(whole | change))
        with pytest.raises(WorkdirError, match=r"progress\.json is not what this program writes"):
            faults.run(path)
    file.write_text(json.dumps(whole))
    faults.run(path)
    assert faults.content(path) == faults.content(reference)


def test_directories_of_an_earlier_version_go_on(reference, moments, tmp_path):
    path = tmp_path / "run"
    interrupted(path, moments, 250)
    for file in [path / "progress.json", *path.glob("checkpoints/chunk-*/*/facts.json")]:
        facts = json.loads(file.read_text())
        del facts["digests"]
        file.write_text(json.dumps(facts))
        if file.name == "facts.json":
            (file.parent / checkpoint.MANIFEST).unlink()
            files.save_json(file.parent / checkpoint.MANIFEST, checkpoint._digests(file.parent))
    faults.run(path)
    assert faults.content(path) == faults.content(reference)


def test_a_lost_report_is_built_anew(reference, tmp_path, monkeypatch):
    path = tmp_path / "run"
    shutil.copytree(reference, path)
    built = []
    monkeypatch.setattr(report, "build", lambda paths: built.append(paths) or path / "report.html")
    for name in ("report.html", "summary.json"):  # neither was written by the stand-in
        assert not (path / name).exists()
    result = faults.run(path)
    assert result.already_finished
    assert result.rebuilt
    assert built == [[path]]


def test_a_lost_file_of_targets_is_one_error(reference, moments, names, tmp_path):
    """Twins would replay nothing: neither where their runs go on, nor where they begin."""
    late = [i for i, name in enumerate(names, 1) if name == "event"]
    for nth in (2, 5):  # of the two runs, and the first of their twins
        path = tmp_path / str(nth)
        moments.count, moments.at = 0, late[nth]
        with pytest.raises(faults.Killed):
            faults.run(path)
        moments.at = -1
        (path / "targets" / "S-0.npz").unlink()
        told = {2: r"cannot read .*S-0.npz .*No such file", 5: r"S-0.npz is missing since its run"}
        with pytest.raises((RecordError, WorkdirError), match=told[nth]):
            faults.run(path)


def leaving(path):
    """The study with measures on the way and at the end, and states that stay."""
    config = faults.config()
    config.measures.names, config.measures.epochs, config.measures.examples = (
        ("predictions",),
        (1,),
        32,
    )
    config.keep = ("end", "step:13")
    return study.run(config, path, default.get_config(), quiet=True)


def harms(file):
    """What can happen to a file: a bit flips, it is cut short, it is lost. Then it is put back."""
    good = file.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for bad in (bytes(flipped), good[:-9], None):
        file.unlink(missing_ok=True)
        if bad is not None:
            file.write_bytes(bad)
        yield
    file.write_bytes(good)


def test_arrays_of_runs_are_not_lost_while_a_study_is_interrupted(reference, tmp_path, monkeypatch):
    """Of runs that have ended, of those that go on from a checkpoint, and the states of the end."""
    path, events, event = tmp_path / "run", [], Population.event

    def deadly(self, *args):
        events.append(args)
        if len(events) == 7:  # after epoch 2 of the second chunk
            raise faults.Killed
        return event(self, *args)

    monkeypatch.setattr(Population, "event", deadly)
    with pytest.raises(faults.Killed):
        leaving(path)
    ended = ("measures/S-0.npz", "states/S-0@end.npz", "states/R-0@step13.npz", "targets/S-0.npz")
    going = ("measures/noise-0-epoch1.npz", "states/zero-0@step13.npz")
    first = {ended[0]: 0, going[0]: 1}  # of the last the check sums inside, not of every byte
    for name in (*ended, *going):
        for _ in itertools.islice(harms(path / name), first.get(name, 2), None):
            with pytest.raises(WorkdirError, match=rf"{name} .*(since|when) its run was") as told:
                leaving(path)
            assert "\n" not in str(told.value)
    (path / "checkpoints" / "final-0").rename(path / "aside")
    with pytest.raises(WorkdirError, match="final-0 holds no whole states any more"):
        leaving(path)
    (path / "aside").rename(path / "checkpoints" / "final-0")
    leaving(path)
    assert len(list((path / "measures").iterdir())) == len(list((path / "states").iterdir())) == 8
    assert faults.content(path)["events"] == faults.content(reference)["events"]


@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("before", ["_train_epochs", "_maybe_save", "_end_epoch", "_finish"])
def test_a_removed_directory_is_one_error_and_stays_removed(quick, tmp_path, before):
    path = tmp_path / "run"
    original = getattr(chunk.Chunk, before)

    def removes(self, *args, **options):
        shutil.rmtree(path, ignore_errors=True)
        return original(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk.Chunk, before, removes)
        with pytest.raises(RecordError, match=f"{path}, or a file in it, was removed"):
            faults.run(path)
    assert not path.exists()


def test_a_second_process_is_refused(reference, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(reference, path)
    with (
        files.acquire(path / ".lock"),
        pytest.raises(WorkdirError, match=f"in use by process {os.getpid()}"),
    ):
        faults.run(path)


MOMENTS = [
    ("Checkpoints._complete", 2),
    ("RunDirectory.append", 3),
    ("report.build", 1),
]


@pytest.mark.slow
def test_real_kills_one_after_another(reference, tmp_path):
    """SIGKILL in processes of their own, with orbax: in an event, a save, a window, the report."""
    path, code = tmp_path / "run", tmp_path / "code"
    for moment, nth in [*MOMENTS, ("", 1)]:
        process = Child(faults.child, path, moment, nth, code)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == (-9 if moment else 0), (moment, output)
    assert code.read_text() == "0"
    assert faults.content(path) == faults.content(reference)
