"""Checkpoints: what is read is what was written, and nothing else is ever believed."""

import errno
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from prunejax.errors import RecordError
from prunejax.record.checkpoint import Checkpoints
from prunejax.system import files


def tree(value):
    return {
        "kernel": jnp.full((2, 3, 4), value, jnp.float32),
        "mask": jnp.arange(8) % 2 == 0,
        "step": jnp.int32(value),
        "empty": {},
    }


def check(restored, value):
    assert restored is not None
    np.testing.assert_array_equal(restored.states["kernel"], np.full((2, 3, 4), value))
    np.testing.assert_array_equal(restored.states["mask"], np.arange(8) % 2 == 0)
    assert restored.states["step"].dtype == jnp.int32
    assert restored.facts["epoch"] == value


@pytest.fixture
def three(tmp_path):
    """Two checkpoints, 2 and 3; 1 has been dropped."""
    checkpoints = Checkpoints(tmp_path / "chunk-0", keep=2)
    for value in (1, 2, 3):
        checkpoints.save(tree(value), {"epoch": value, "measured": {"tic": float("nan")}})
    return checkpoints


def array_files(directory: Path):
    """The files that hold array bytes, largest first."""
    files = [p for p in directory.rglob("*") if p.is_file() and "/d/" in str(p)]
    assert files
    return sorted(files, key=lambda p: -p.stat().st_size)


def test_the_newest_is_read_and_the_oldest_are_dropped(three):
    assert three.numbers() == [2, 3]
    restored = three.restore(tree(0))
    check(restored, 3)
    assert restored.damaged == []
    assert np.isnan(restored.facts["measured"]["tic"])
    three.clear()
    assert not three.directory.exists()


def test_none_to_read(tmp_path):
    assert Checkpoints(tmp_path / "none", keep=1).restore(tree(0)) is None


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("what", "harm"),
    [
        ("arrays", truncate),
        ("arrays", flip),
        ("arrays", Path.unlink),
        ("facts.json", flip),
        ("manifest.json", truncate),
        ("manifest.json", Path.unlink),
    ],
)
def test_damage_is_found_reported_and_the_one_before_used(three, harm, what):
    newest = three.directory / "3"
    harm(array_files(newest)[0] if what == "arrays" else newest / what)
    restored = three.restore(tree(0))
    check(restored, 2)
    assert len(restored.damaged) == 1
    assert str(newest) in restored.damaged[0]
    # The damaged one does not come back, and does not push the good one out.
    three.save(tree(4), {"epoch": 4})
    assert three.numbers() == [2, 3]
    newest = three.restore(tree(0))
    check(newest, 4)
    assert newest.damaged == []


def test_all_damaged(three):
    for number in ("2", "3"):
        truncate(array_files(three.directory / number)[0])
    restored = three.restore(tree(0))
    assert restored.states is None
    assert len(restored.damaged) == 2
    assert three.restore(tree(0)) is None


def test_leftovers_of_a_kill_are_ignored_and_removed(three):
    for name in ("tmp-4", "tmp-2"):  # a save that did not end, a removal that did not end
        (three.directory / name / "states").mkdir(parents=True)
    check(three.restore(tree(0)), 3)
    three.save(tree(4), {"epoch": 4})
    assert sorted(p.name for p in three.directory.iterdir()) == ["3", "4"]


def test_what_is_whole_but_cannot_be_read_is_an_error_and_not_damage(three, monkeypatch):
    def refuse(*_):
        raise ValueError("shapes differ")

    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", refuse)
    with pytest.raises(RecordError, match="as it was written, but cannot be read: ValueError"):
        three.restore(tree(0))
    assert three.numbers() == [2, 3]


def test_a_failed_save_is_one_clear_error_and_leaves_the_others(three, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointer, "save", full)
        with pytest.raises(RecordError, match=r"No space left on device.*intact") as error:
            three.save(tree(4), {"epoch": 4})
        assert error.value.errno == errno.ENOSPC
    with monkeypatch.context() as patch:
        patch.setattr(files, "replace", full)
        with pytest.raises(RecordError, match="No space left on device"):
            three.save(tree(4), {"epoch": 4})
    check(three.restore(tree(0)), 3)
    three.save(tree(4), {"epoch": 4})
    check(three.restore(tree(0)), 4)


@pytest.mark.parametrize("name", ["save", "restore"])
def test_a_lost_peer_is_told_as_such_and_not_as_a_full_disk(three, monkeypatch, name):
    def lost(*_):
        raise ValueError("Gloo AllGather failed: Connection closed by peer")

    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    monkeypatch.setattr(ocp.StandardCheckpointer, name, lost)
    with pytest.raises(ValueError, match="Connection closed by peer"):
        three.save(tree(4), {}) if name == "save" else three.restore(tree(0))


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot write"):
        Checkpoints(tmp_path / "file" / "chunk-0", keep=1).save(tree(1), {})
