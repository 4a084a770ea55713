"""Stage "tests": `pytest -m gpu`, with the outcome of every test."""

import sys
import xml.etree.ElementTree as ET

from gpu_stage import ROOT, Stage, last_line


def body(stage: Stage) -> None:
    """Runs the file of tests that are marked (others need packages of the test extra)."""
    report = stage.out / "tests.xml"
    report.unlink(missing_ok=True)
    cache = f"cache_dir={stage.out / 'pytest'}"
    # -o: options of pyproject.toml may need plugins that are not here.
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-o", cache, f"--junitxml={report}"]
    mode = {"PRUNEJAX_GPU_TESTS": "cpu"} if stage.cpu else {}
    code = stage.run([*command, ROOT / "tests" / "test_gpu.py"], "tests", 60.0, **mode)
    stage.rows.clear()
    for case in ET.parse(report).getroot().iter("testcase") if report.exists() else ():
        row = {"test": case.get("name"), "seconds": float(case.get("time", 0)), "outcome": "passed"}
        for kind in ("failure", "error", "skipped"):
            if (found := case.find(kind)) is not None:
                row["outcome"], row["message"] = kind, (found.get("message") or "")[:500]
        if row["outcome"] in ("failure", "error"):
            row["failed"] = (
                f"{row['test']}: {row['message'].splitlines()[0] if row['message'] else ''}"
            )
        stage.add(**row)
    if code and not stage.failures:
        said = last_line(stage.logs / "tests.log")
        stage.add(test="pytest", failed=f"exit code {code}: {said}")


if __name__ == "__main__":
    Stage("tests", __doc__).main(body)
