"""The site: its tutorials run letter by letter, and it builds without a warning."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorials_run_as_they_stand(page, capsys):
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, str(page), "exec"), names)
    CHECKS[page.stem](names)


def _study(names):
    assert [row["variant"] for row in names["runs"]] == [
        arm for arm in ("none", "small", "large") for _ in range(2)
    ]
    assert {row["variant"] for row in names["events"]} == {"small", "large"}
    assert names["result"].report.exists()


def _tickets(names):
    counts = [1536]
    for _ in range(5):
        counts.append(counts[-1] - -(-counts[-1] // 5))
    assert names["counts"] == counts
    assert max(names["losses"]) < 0.3
    assert list(names["arms"])[:4] == ["dense", "ticket1", "ticket2", "ticket3"]


def _flatness(names):
    assert abs(names["trace"].value - names["exact"]) < 5 * names["trace"].stderr
    assert names["noise"].value > 0


CHECKS = {"study": _study, "tickets": _tickets, "flatness": _flatness}


def test_every_tutorial_is_checked():
    assert sorted(CHECKS) == [page.stem for page in TUTORIALS]


def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for page in ("", "methods", "tutorials/study", "api/curvature"):
        assert (tmp_path / page / "index.html").exists()
    assert "hessian_trace" in (tmp_path / "api" / "curvature" / "index.html").read_text()
