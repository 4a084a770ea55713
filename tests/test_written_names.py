"""Module paths that stand in texts (scripts inside tests, docs, launch scripts) lead somewhere.

An import statement that goes stale is seen by ruff, mypy and the collection; a path inside a string
(`monkeypatch.setattr("prunejax.x.y", ...)`, a script for another process, a page) is seen by
nothing until it runs.
"""

import importlib
import re
from pathlib import Path

import pytest

from prunejax.measures import columns as of_measures
from prunejax.record import columns
from prunejax.train import probes

ROOT = Path(__file__).resolve().parents[1]
PATHS = re.compile(r"\bprunejax(?:\.[A-Za-z_]\w*)+")
IMPORTS = re.compile(r"^\s*from (prunejax[\w.]*) import ([\w, ]+)$", re.MULTILINE)
# written as an example of a path that leads nowhere, or the name of a file
EXEMPT = {"prunejax.mask", "prunejax.tar.gz", "prunejax.XXXXXXXX"}
PLACES = (
    "*.md",
    "*.toml",
    "prunejax/**/*",
    "tests/**/*",
    "benchmarks/**/*",
    "docs/*",
    "launch/**/*",
)
KINDS = {".py", ".md", ".toml", ".sh", ".yaml", ".sbatch"}
FILES = sorted(
    path
    for place in PLACES
    for path in ROOT.glob(place)
    if path.suffix in KINDS and path.name != Path(__file__).name
)


def leads_somewhere(path: str) -> bool:
    """Whether the longest importable prefix of `path` has the rest as attributes."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for name in parts[length:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


def written(text: str) -> set[str]:
    """Paths in `text`: dotted ones, and the names that `from ... import ...` lines take."""
    paths = set(PATHS.findall(text))
    for module, names in IMPORTS.findall(text):
        paths |= {
            f"{module}.{name.split(' as ')[0].strip()}" for name in names.split(",") if name.strip()
        }
    return paths - EXEMPT


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_lead_somewhere(path):
    assert [name for name in sorted(written(path.read_text())) if not leads_somewhere(name)] == []


def test_a_stale_path_is_seen():
    text = 'setattr("prunejax.distributed.leave", f)\n from prunejax.report.results import load\n'
    assert {name for name in written(text) if not leads_somewhere(name)} == {
        "prunejax.distributed.leave",
        "prunejax.report.results.load",
    }


def test_every_column_of_a_study_is_in_the_documents():
    text = (ROOT / "docs" / "tables.md").read_text()
    told = set(re.findall(r"`(\w+)`", text))
    known = {c for v in vars(columns).values() if isinstance(v, tuple) for c in v}
    known |= {columns.PRUNABLE, columns.LOSS_SUM, columns.STOPPED, *of_measures.CONTEXT}
    known |= {c for probe in probes.PROBES.values() for c in probe.columns}
    assert known - told == set()
    for table, names in {
        "runs": (*columns.RUNS[3:], *columns.STRUCTURE, *columns.FIT, *columns.SPENT),
        "epochs": columns.EPOCHS[5:],
        "events": (*columns.EVENTS[5:], *columns.FORECAST),
        "layers": columns.LAYERS[4:],
        "updates": columns.UPDATES[6:],
        "costs": columns.COSTS[4:],
    }.items():
        part = text.partition(f"**{table}.csv**")[2].partition("\n**")[0]
        of_table = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", part, re.M))))
        assert set(names) <= of_table, table
