"""Archives of arrays that are damaged, or none: one line wherever they are read."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from prunejax import data
from prunejax.errors import ConfigError, RecordError, WorkdirError
from prunejax.study.loop import handover
from prunejax.study.loop.targets import Targets
from prunejax.study.planning import ticket_file
from prunejax.system import files


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.npz"
    np.savez_compressed(path, x_train=np.arange(40) % 7, other=np.zeros(9, bool))
    return path.read_bytes()


def damages(content: bytes):
    for at in range(len(content)):
        yield content[:at]
        for value in (content[at] ^ 1, content[at] ^ 0x80):
            yield content[:at] + bytes([value]) + content[at + 1 :]


@pytest.mark.filterwarnings("ignore")
def test_whatever_is_damaged_is_told(tmp_path, good):
    path, told = tmp_path / "some.npz", []
    for content in damages(good):
        path.write_bytes(content)
        try:
            with files.arrays(path) as saved:
                dict(saved)
        except WorkdirError as error:
            told.append(str(error))
    assert len(told) > len(good)
    assert not any("\n" in text for text in told)


def compressed_badly(good: bytes, path: Path) -> None:
    """Bytes of the first entry's data: zlib cannot read them, which is no OSError."""
    start = good.index(b"x_train.npy") + len(b"x_train.npy") + 20  # behind its local header
    path.write_bytes(good[:start] + bytes([0xFF] * 8) + good[start + 8 :])


def one_array(good: bytes, path: Path) -> None:
    del good
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize("damage", [compressed_badly, one_array])
def test_every_reader_tells_it_in_its_own_line(tmp_path, good, damage):
    path = tmp_path / "a-0.npz"
    damage(good, path)
    member = SimpleNamespace(run="a-0", twin="", events=(1,))
    for error, words, read in (
        (RecordError, "the state that a run starts from; restore it", lambda: handover.read(path)),
        (RecordError, "restore it, or start over", lambda: Targets(tmp_path, [member])),
        (ConfigError, "config.start.ticket: cannot read .* give", lambda: ticket_file.read(path)),
        (ValueError, "cannot be read .* write it with", lambda: data.load(f"npz:{path}")),
    ):
        with pytest.raises(error, match=words) as found:
            read()
        assert str(path) in str(found.value)
        assert "\n" not in str(found.value)
