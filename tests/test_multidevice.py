"""Meshes of simulated devices give what one device gives; see `tests/layouts.py`."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_meshes_of_two_and_four_devices_give_the_result_of_one():
    done = subprocess.run(
        [sys.executable, "-m", "tests.layouts"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("done\n")
