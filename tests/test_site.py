"""The site: its tutorials run letter by letter, and it builds without a warning."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorials_run_as_they_stand(page, capsys):
    if page.stem == "search":
        pytest.importorskip("optuna", reason="the searcher of this page")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, str(page), "exec"), names)
    CHECKS[page.stem](names)


def _study(names):
    assert names["runs"]["variant"].tolist() == [
        arm for arm in ("none", "small", "large") for _ in range(2)
    ]
    assert set(names["events"]["variant"]) == {"small", "large"}
    assert names["result"].report.exists()
    assert names["result"]._repr_html_().startswith('<iframe srcdoc="&lt;!')
    runs = dict(zip(names["runs"]["run"], names["runs"]["final_test_accuracy"], strict=True))
    assert names["accuracy"] == pytest.approx(runs["large-0"], abs=1e-6)
    assert names["small"].hidden[2] < names["study"].model("large-0").hidden[2]


def _search(names):
    assert len(names["search"].trials) == 2
    assert 0 < names["search"].best_value <= 1
    assert len(names["runs"]["run"]) == 2


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


DOCUMENTED = {
    "curvature": {"curvature": "hessian_trace"},
    "plugins": {"wiring": "live"},
    "methods": {"methods.evidence": "Evidence", "methods.growth": "drop_and_grow"},
}
CHECKS = {"search": _search, "study": _study, "tickets": _tickets, "flatness": _flatness}


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
    for page, modules in DOCUMENTED.items():
        text = (tmp_path / "api" / page / "index.html").read_text()
        for module, name in modules.items():
            anchor = f'id="prunejax.{module}.{name}"'
            assert anchor in text, anchor
    fields = (tmp_path / "api" / "plugins" / "index.html").read_text()
    assert "equal blocks that are mixed: LayerNorm has 1" in fields  # behind `Link.blocks`
    assert "Refuses, by a ConfigError, programs that" in fields  # above `Tracker.check`


def test_what_others_import_is_on_a_page_of_the_api():
    """The flat modules of floor 2, which CONTRIBUTING calls what others import."""
    row = re.search(r"\| 2 \| (.*?); `cluster/`", (ROOT / "CONTRIBUTING.md").read_text())
    flat = re.findall(r"`(\w+)`", row[1])
    assert len(flat) > 10
    pages = (ROOT / "docs" / "api").glob("*.md")
    given = re.findall(r"^::: prunejax\.(\S+)", "\n".join(p.read_text() for p in pages), re.M)
    assert sorted({*flat, "methods.evidence", "methods.growth"} - {*given}) == []
    assert len(given) == len({*given})
