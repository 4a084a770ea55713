"""Workdirs behind a URL: a copy that is sent, whole or not at all, and read back."""

import json
import os
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import fsspec
import pytest

from prunejax.configs import default
from prunejax.errors import ConfigError, Interrupted, RecordError, ReportError, WorkdirError
from prunejax.record import mirror, remote
from prunejax.record.mirror import Mirror
from prunejax.study import run as study
from prunejax.system import files
from tests import faults

WRITES = ("put_file", "pipe_file", "cp_file", "rm_file")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """`machine("a")`: from here on this is a machine of that name, with copies of its own."""

    def switch(name):
        monkeypatch.setenv(mirror.VARIABLE, str(tmp_path / name))
        return tmp_path / name

    switch("first")
    return switch


@pytest.fixture
def url(tmp_path):
    return f"memory://{tmp_path.name}-{os.getpid()}/run"


def put(path: Path, **contents: str) -> None:
    for name, text in contents.items():
        file = path / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def state(path: Path) -> dict[str, str]:
    """Files and their text, as a run directory is compared."""
    return {
        str(file.relative_to(path)): file.read_text()
        for file in sorted(path.rglob("*"))
        if file.is_file() and not file.name.startswith((".lock", ".mirror", ".tmp"))
    }


OLD = {"epochs_dot_csv": "a\n1\n", "checkpoints__chunk__1__x": "one", "config_dot_json": "{}"}
NEW = {
    "epochs_dot_csv": "a\n1\n2\n",
    "checkpoints__chunk__2__x": "two",
    "config_dot_json": "{}",
    "runs_dot_csv": "r\n",
    "status_dot_json": "{}",
}


def replaced(copy: Mirror) -> None:
    shutil.rmtree(copy.path / "checkpoints/chunk/1")
    put(copy.path, **NEW)


class Failing:
    """Counts what is written to stores and fails at one of the writes, before or after it."""

    def __init__(self, patch, kind=OSError):
        self.count, self.at, self.late, self.kind = 0, -1, False, kind
        store = type(fsspec.filesystem("memory"))
        for name in WRITES:
            patch.setattr(store, name, self._counted(getattr(store, name)))

    def _counted(self, function):
        def counted(*args, **options):
            self.count += 1
            fails = self.count == self.at
            if fails and not self.late:
                raise self.kind("the store is away")
            found = function(*args, **options)
            if fails:
                raise self.kind("the store is away")
            return found

        return counted


def test_what_is_sent_comes_back_elsewhere(machine, url):
    copy = Mirror(url)
    put(copy.path, **OLD)
    copy.claim()
    copy.push()
    replaced(copy)
    copy.push()
    machine("second")
    assert Mirror(url).path != copy.path
    assert state(Mirror(url).fetch()) == state(copy.path)
    # Under plain names as well, for whoever looks there; nothing else is left.
    store, root = fsspec.core.url_to_fs(url)
    there = {name[len(root) + 1 :]: store.cat_file(name).decode() for name in store.find(root)}
    assert set(json.loads(there.pop("mirror.json"))["files"]) == set(there)
    assert there == state(copy.path)


@pytest.mark.parametrize("late", [False, True])
def test_an_end_at_any_write_leaves_one_state_or_the_other(machine, url, late):
    """A push that fails at its nth write, for every n; then read elsewhere, and made again."""
    ends, n = [], 0
    while True:
        n += 1
        here = f"{url}-{n}"
        machine(f"first-{n}")
        copy = Mirror(here)
        put(copy.path, **OLD)
        copy.claim()
        copy.push()
        before = state(copy.path)
        replaced(copy)
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch)
            failing.at, failing.late = n, late
            try:
                copy.push()
            except RecordError as error:
                told = str(error.strerror)
            else:
                break
        assert str(copy.path) in told
        machine(f"second-{n}")
        found = state(Mirror(here).fetch())
        assert found in (before, state(copy.path))
        ends.append(found == before)
        machine(f"first-{n}")
        again = Mirror(here)  # a new process
        try:
            again.fetch()
            again.claim()
            again.push()
        except WorkdirError:
            pytest.fail("a copy that was half sent cannot go on")
        store, root = fsspec.core.url_to_fs(here)
        machine(f"third-{n}")
        assert state(Mirror(here).fetch()) == state(again.path) == state(copy.path)
        assert not store.exists(f"{root}/.staged") or not store.find(f"{root}/.staged")
        assert not store.exists(f"{root}/checkpoints/chunk/1/x")
    assert True in ends
    assert False in ends
    assert len(ends) > 6


def test_a_reader_meets_whole_states_while_another_is_sent(machine, url):
    copy = Mirror(url)
    put(copy.path, **OLD)
    copy.push()
    before, seen = state(copy.path), []
    replaced(copy)
    with pytest.MonkeyPatch.context() as patch:
        store = type(fsspec.filesystem("memory"))

        def reading(original):
            def write(*args, **options):
                original(*args, **options)
                machine(f"reader-{len(seen)}")
                seen.append(state(Mirror(url).fetch()))

            return write

        for name in WRITES:
            patch.setattr(store, name, reading(getattr(store, name)))
        copy.push()
    assert all(found in (before, state(copy.path)) for found in seen)
    assert seen[0] == before
    assert seen[-1] == state(copy.path)


def test_a_copy_that_is_ahead_stays_and_one_that_is_behind_follows(machine, url):
    first = Mirror(url)
    put(first.path, **OLD)
    first.push()
    put(first.path, runs_dot_csv="only here")
    assert (Mirror(url).fetch() / "runs.csv").read_text() == "only here"
    machine("second")
    second = Mirror(url)
    second.fetch()
    replaced(second)
    second.push()
    with pytest.raises(RecordError, match=r"was written to by process .* only one may"):
        first.push()
    assert state(Mirror(url).path) == state(second.path)
    machine("first")
    assert state(Mirror(url).fetch()) == state(second.path)


def test_a_copy_that_was_removed_is_fetched_anew(machine, url):
    copy = Mirror(url)
    put(copy.path, **OLD)
    copy.push()
    before = state(copy.path)
    shutil.rmtree(copy.path)
    assert state(Mirror(url).fetch()) == before


def test_what_is_gone_or_changed_there_is_refused(machine, url):
    copy = Mirror(url)
    put(copy.path, **OLD)
    copy.push()
    store, root = fsspec.core.url_to_fs(url)
    store.pipe_file(f"{root}/epochs.csv", b"others\n")
    machine("second")
    with pytest.raises(WorkdirError, match=r"are not as mirror\.json lists them"):
        Mirror(url).fetch()
    for text in (b"{", b"[]", b'{"files": {"../x": [1, ""]}}', b'{"files": {"/x": [1, ""]}}'):
        store.pipe_file(f"{root}/mirror.json", text)
        with pytest.raises(WorkdirError, match="is not what this program writes"):
            Mirror(url).fetch()
    store.rm(root, recursive=True)
    machine("first")
    with pytest.raises(WorkdirError, match="is gone; remove the copy"):
        Mirror(url).fetch()


def test_a_directory_copied_there_by_other_means_is_read_and_taken_over(machine, url):
    store, root = fsspec.core.url_to_fs(url)
    store.pipe_file(f"{root}/config.json", b"{}")
    store.pipe_file(f"{root}/checkpoints/1/x", b"one")
    assert state(remote.fetched(url)) == {"config.json": "{}", "checkpoints/1/x": "one"}
    copy = Mirror(url)
    copy.claim()
    machine("second")
    assert state(Mirror(url).fetch()) == {"config.json": "{}", "checkpoints/1/x": "one"}


def test_bad_urls(machine, url, monkeypatch):
    with pytest.raises(ReportError, match="nothing is there; name the --workdir of a study"):
        remote.fetched(url)
    for none in ("://x", "1://x"):  # fsspec takes them for local paths
        with pytest.raises(ConfigError, match=f"workdir {none}: no scheme stands before"):
            Mirror(none)
    with pytest.raises(ConfigError, match="Protocol not known: nowhere"):
        Mirror("nowhere://x")
    with pytest.raises(ConfigError, match=r"4 processes of one study.*mount the bucket"):
        remote.mirror(url, 1, 1, 4)
    monkeypatch.setenv(mirror.VARIABLE, "~nouser/x")
    with pytest.raises(ConfigError, match=f"{mirror.VARIABLE}: ~nouser/x: no such user"):
        Mirror(url)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConfigError, match=r"needs fsspec, .*pip install 'prunejax\[remote\]'"):
        Mirror(url)


def test_trackers_temporary_files_and_links_stay_here(machine, url):
    copy = Mirror(url)
    put(copy.path, x="1", wandb__run="w", mlruns__r="m", checkpoints__tmp_x="t")
    put(copy.path, **{".tmp-a": "1", "checkpoints__tmp-4__y": "2", ".lock": ""})
    (copy.path / "link").symlink_to(copy.path / "x")
    copy.push()
    machine("second")
    assert state(Mirror(url).fetch()) == {"x": "1", "checkpoints/tmp_x": "t"}


# -- studies ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        faults.make_quick(patch)
        yield patch


@pytest.fixture(scope="module")
def reference(quick, tmp_path_factory):
    path = tmp_path_factory.mktemp("remote") / "reference"
    faults.run(path)
    return faults.content(path)


def run(place, **options):
    return study.run(faults.config(), place, default.get_config(), quiet=True, **options)


@pytest.fixture(scope="module")
def writes(reference, tmp_path_factory):
    """How often a whole study writes to its store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(mirror.VARIABLE, str(tmp_path_factory.mktemp("copies")))
        failing = Failing(patch)
        run(f"memory://writes-{os.getpid()}/run")
    assert failing.count > 200
    return failing.count


@pytest.mark.parametrize(
    ("share", "where"), [(0.001, "here"), (0.4, "elsewhere"), (0.7, "here"), (0.999, "elsewhere")]
)
def test_a_store_that_fails_costs_no_row(reference, writes, machine, url, share, where):
    with pytest.MonkeyPatch.context() as patch:
        failing = Failing(patch, RuntimeError)
        failing.at = max(1, int(share * writes))
        patch.setattr("prunejax.study.loop.saving.Saving.rescued", lambda self: nullcontext())
        with pytest.raises(RecordError, match=r"the store is away.*same command continues"):
            run(url)
    if where == "elsewhere":
        machine("second")
    result = run(url)
    assert faults.content(result.workdir) == reference
    machine("third")
    assert faults.content(remote.fetched(url)) == reference
    assert run(url).already_finished


def test_a_study_that_is_stopped_goes_on_elsewhere(reference, machine, url):
    asked = []
    with pytest.raises(Interrupted):
        run(url, stop_requested=lambda: asked.append(1) or len(asked) > 9)
    first = Mirror(url).path
    machine("second")
    result = run(url)
    assert result.workdir != first
    assert faults.content(result.workdir) == reference
    with (
        files.acquire(result.workdir / ".lock"),
        pytest.raises(WorkdirError, match=f"{url}: .*in use"),
    ):
        run(url)
    other = faults.config()
    other.epochs = 5
    with pytest.raises(WorkdirError, match=rf"{url}: .*holds another config.*epochs: 4 -> 5"):
        study.run(other, url, default.get_config(), quiet=True)


@pytest.mark.parametrize("parts", [(2, 1), (2, 3), (1, 2)])
def test_a_workdir_there_holds_a_study_once(machine, url, parts):
    """Each machine looked into its own copy alone."""
    begun = Mirror(url, remote.part(1, parts[0]))
    put(begun.path, **OLD)
    begun.push()
    machine("second")
    there = "shard 1/2" if parts[0] == 2 else "the whole study"
    with pytest.raises(WorkdirError, match=f"run holds {there}, and its runs would be there twice"):
        remote.mirror(url, 1, parts[1], 1)
    assert remote.mirror(url, 1, parts[0], 1).url == begun.url


def test_shards_lie_beside_each_other(reference, machine, url):
    for index in (1, 2):
        machine(f"shard-{index}")
        run(url, shard_of=(index, 2))
    machine("reader")
    whole = remote.fetched(url)
    rows = [
        line
        for index in (1, 2)
        for line in (whole / f"shards/{index}-of-2/runs.csv").read_text().splitlines()[1:]
    ]
    runs = {line.split(",")[0] for line in rows}
    assert runs == {"S-0", "R-0", "noise-0", "zero-0"}
    assert len(rows) == 4
