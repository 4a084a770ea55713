"""`measures.csv`, which `prunejax measure` leaves, beside `runs.csv`: one row of each run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunejax.measures.columns import CONTEXT, LABELS
from prunejax.system import files

_EXAMPLES = ("split", "batch_norm", "examples")  # of `CONTEXT`, what a setting decides

# Column -> what it was taken on -> the runs that have it from there.
Taken = dict[str, dict[tuple[str, ...], list[str]]]


def join(
    runs: Sequence[dict[str, Any]], measured: Sequence[Mapping[str, str]], context: bool
) -> None:
    """Puts cells of `measures.csv` into the rows of runs; an empty one takes no number's place.

    Args:
      runs: rows of `runs.csv`.
      measured: rows of `measures.csv`.
      context: also the columns that say what measures were taken on.
    """
    rows = {row["run"]: row for row in measured}
    for run in runs:
        later = rows.get(run["run"], {})
        run.update({k: v for k, v in later.items() if v and (context or k not in CONTEXT)})


def taken(
    found: Taken,
    config: Mapping[str, Any],
    runs: Sequence[Mapping[str, str]],
    measured: Sequence[Mapping[str, str]],
    path: Path,
) -> None:
    """Adds to `found` what the numbers of a run directory were taken on.

    Args:
      found: of the directories before.
      config: of the study.
      runs: rows of `runs.csv`, as the study left them.
      measured: rows of `measures.csv`.
      path: the directory; `measures/RUN.npz` tell how many examples all of them are.
    """
    rows = {row["run"]: row for row in measured}
    chosen = config.get("measures") or {}
    own = tuple(str(chosen.get(name, "")) for name in _EXAMPLES)
    if rows and own[2] == "0":
        own = (*own[:2], _all(path, [run["run"] for run in runs if run["run"] not in rows]))
    for column in [c for c in (measured[0] if measured else ()) if c not in (*CONTEXT, *LABELS)]:
        for run in runs:
            later = rows.get(run["run"], {})
            if later.get(column):
                on = tuple(later.get(name, "") for name in _EXAMPLES)
                if own == (*on[:2], "0"):  # all of them, and nobody knows how many that was
                    on = own
            elif run.get(column):
                on = own
            else:
                continue
            found.setdefault(column, {}).setdefault(on, []).append(run["run"])


def _all(path: Path, runs: Sequence[str]) -> str:
    """Examples that a study took, from what it left of a run that was not measured again, or 0."""
    for run in runs:
        file = path / "measures" / f"{files.plain_name(run)}.npz"
        if file.exists():
            with files.arrays(file) as saved:
                return str(int(saved["examples"])) if "examples" in saved else "0"
    return "0"


def notes(found: Taken) -> list[str]:
    """Sentences for columns that were not taken on the same examples in all runs."""
    said: dict[str, list[str]] = {}
    for column, of in found.items():
        if len(of) > 1 and not column.endswith("_stderr"):
            parts = [
                f"{'all' if on[2] == '0' else on[2]} of {on[0]}, BatchNorm as in {on[1]} "
                f"({len(runs)} run{'s' if len(runs) > 1 else ''}: {', '.join(runs[:3])}"
                f"{', ...' if len(runs) > 3 else ''})"
                for on, runs in of.items()
            ]
            said.setdefault("; ".join(parts), []).append(column)
    return [
        f"Taken on other examples in some runs than in others: {', '.join(columns)}. Examples: "
        f"{parts}."
        for parts, columns in said.items()
    ]
