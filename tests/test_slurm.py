import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "slurm" / "run.sh"
NO_CLUSTER = 77


def test_launchers_on_a_real_cluster():
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    result = subprocess.run(
        ["bash", SCRIPT, sys.executable], capture_output=True, text=True, timeout=600
    )
    if result.returncode == NO_CLUSTER:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines() == [
        "ok: array, stop signal, requeue, resume, report",
        "ok: failure",
        "ok: cancel",
        "ok: several processes",
    ]
