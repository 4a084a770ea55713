"""Meshes of simulated devices give what one device gives; see `tests/layouts.py`."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("count", [2, 4])
def test_meshes_give_the_result_of_one_device(count):
    done = subprocess.run(
        [sys.executable, "-m", "tests.layouts", str(count)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("done\n")
