"""The README's Python runs as it stands, and the files that it names exist."""

import json
import re
from pathlib import Path

import pytest

from tests import default_study

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_library_examples_run(capsys):
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert int(names["live"]["dense"]["kernel"].sum()) == 3000
    assert names["trace"].live_dim == 3100  # 3,000 weights and 100 biases
    assert "0.9000" in capsys.readouterr().out


def test_named_files_exist():
    named = set(re.findall(r"\]\(([^)#]+)\)", TEXT))
    named |= set(re.findall(r"`((?:prunejax|configs|launch)/[\w./]*)[`:]", TEXT))
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert missing == []


def test_what_is_said_of_the_default_study_is_what_its_summary_says():
    found = json.loads(default_study.SUMMARY.read_text())
    said = TEXT.split(default_study.BEGIN)[1].split(default_study.END)[0]
    assert said == default_study.part(found)
    for row in default_study.table(found).splitlines():
        assert row in TEXT
    assert not re.search(r'["\s]~?/\w', json.dumps(found))  # no place of a machine


def test_the_summary_is_of_the_default_study_as_it_is():
    from prunejax.configs import digits

    found = json.loads(default_study.SUMMARY.read_text())
    config = digits.get_config()
    assert [claim["text"] for claim in found["claims"]] == list(config.report.claims)
    assert list(found["variants"]) == list(config.variants)
    assert found["runs"] == config.seeds * len(config.variants)


@pytest.mark.parametrize(
    ("p_holm", "verdict"), [(0.001, "confirmed"), (0.6, "undecided"), (0.001, "contradicted")]
)
def test_another_outcome_makes_another_sentence(p_holm, verdict):
    found = json.loads(default_study.SUMMARY.read_text())
    found["claims"][0] |= {"p_holm": p_holm, "verdict": verdict}
    found["paired"]["variants"]["L_large"]["hessian_trace"]["p_holm"] = p_holm
    text = default_study.sentences(found)
    assert text.startswith(f"- **{verdict.capitalize()}.** L_large < R_large in mean stability")
    assert ("L_large differ from none in Tr(H)" in text) == (p_holm < 0.05)


@pytest.mark.parametrize("file", ["README.md", "prunejax/configs/tradeoff.py"])
def test_no_coefficient_over_runs_has_an_interval_of_independent_runs(file):
    """Where r or tau is followed by an interval, the text says what is resampled."""
    text = " ".join((ROOT / file).read_text().split())
    for found in re.finditer(r"(?<!\w)(r|tau|τ) = \S?[\d.]+ \[[^]]*\]", text):
        assert "seeds as blocks" in text[found.end() : found.end() + 160], found[0]
