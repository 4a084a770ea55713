"""Programs on meshes of simulated devices; see `tests/layouts.py` and `tests/collectives.py`."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("program", ["layouts", "collectives"])
def test_meshes_give_what_one_device_gives_and_exchange_what_they_must(program):
    done = subprocess.run(
        [sys.executable, "-m", f"tests.{program}"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("done\n")
