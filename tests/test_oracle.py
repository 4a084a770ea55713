"""The comparison of `tests/oracle.py` notices one changed digit, array entry, row and file."""

import shutil

import numpy as np
import pytest

from tests import oracle, oracle_config

TABLE = "run,seed,loss\nS-0,0,0.125\nS-1,1,0.5\n"


@pytest.fixture
def directories(tmp_path):
    before = tmp_path / "before"
    (before / "targets").mkdir(parents=True)
    (before / "epochs.csv").write_text(TABLE)
    np.savez(before / "targets" / "S-0.npz", dense1=np.array([[True, False]]), x=np.float32(np.nan))
    shutil.copytree(before, tmp_path / "after")
    return before, tmp_path / "after"


def test_a_copy_is_the_same_however_it_was_packed(directories):
    before, after = directories
    with np.load(before / "targets" / "S-0.npz") as saved:
        np.savez_compressed(after / "targets" / "S-0.npz", **saved)
    assert oracle.compare(before, after) == []


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (TABLE.replace("0.125", "0.126"), "row 1 (S-0), column loss: 0.125 became 0.126"),
        (TABLE + "S-2,2,1\n", "2 rows became 3"),
        (TABLE.replace("S-1,1,0.5\n", ""), "2 rows became 1"),
        (TABLE.replace("loss", "error"), "columns"),
        (TABLE.replace("\n", "\r\n"), "other line ends"),
    ],
)
def test_one_changed_digit_row_or_name_is_told(directories, table, told):
    before, after = directories
    (after / "epochs.csv").write_bytes(table.encode())
    (line,) = oracle.compare(before, after)
    assert line.startswith(f"epochs.csv: {told}")


def test_a_changed_array_is_told(directories):
    before, after = directories
    np.savez(after / "targets" / "S-0.npz", dense1=np.array([[True, True]]), x=np.float32(np.nan))
    told = "targets/S-0.npz: dense1[0, 1]: False became True (1 of 2)"
    assert oracle.compare(before, after) == [told]


def test_a_file_more_or_less_is_told(directories):
    before, after = directories
    (after / "targets" / "S-0.npz").rename(after / "targets" / "S-1.npz")
    told = ["targets/S-0.npz: missing", "targets/S-1.npz: new"]
    assert oracle.compare(before, after) == told


@pytest.mark.parametrize("name", oracle_config.STUDIES)
def test_every_study_of_the_oracle_is_accepted(name):
    from prunejax.configs import default
    from prunejax.study.settings import config

    assert config.variants(oracle_config.get_config(name), default.get_config())
