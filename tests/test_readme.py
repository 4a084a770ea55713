"""The README's Python runs as it stands, and the files that it names exist."""

import re
from pathlib import Path

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
