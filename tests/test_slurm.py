import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "slurm" / "run.sh"
NO_CLUSTER = 77


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_launchers_on_a_real_cluster():
    process = subprocess.Popen(
        # Without the study, which takes minutes: run the script by hand for that.
        ["bash", SCRIPT, sys.executable, "--without-study"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        process.terminate()  # its trap stops the cluster
        output, errors = process.communicate()
    if process.returncode == NO_CLUSTER:
        pytest.skip(output.strip())
    assert process.returncode == 0, output + errors
    assert output.splitlines() == [
        "ok: array, stop signal, requeue, resume, report",
        "ok: failure",
        "ok: cancel",
        "ok: several nodes",
    ]
