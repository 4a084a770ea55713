"""Whether the tables of a run directory are whole: rows that are gone, words for numbers.

A run with a lost row would silently leave a mean or a curve. `runs.csv` follows from the other
tables (`prunejax.record.summary`), and arms repeat their events in every seed: both are checked.
"""

import re
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from prunejax.errors import ReportError
from prunejax.measures.columns import grouped, is_completed, number
from prunejax.record import arms
from prunejax.record.summary import summarize

Row = Mapping[str, str]

_WORDS = {"run", "variant", "status", "layer", "split", "batch_norm", "pair", "run_a", "run_b"}
_WHOLE = {
    "dead_units",
    "seed",
    "seed_a",
    "seed_b",
    "epoch",
    "step",
    "targeted",
    "live",
    "events",
    "best_epoch",
    "selected_epoch",
}
_ALWAYS = {"run", "variant", "seed", "epoch"}  # never empty
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf", re.IGNORECASE)
_NEEDED = {
    "epochs.csv": ("run", "variant", "seed", "epoch", "test_accuracy"),
    "events.csv": ("run", "variant", "seed", "epoch", "layer", "targeted", "instability"),
    "runs.csv": ("run", "variant", "seed", "status", "mean_stability", "events"),
    "measures.csv": ("run",),
}
_WAY_OUT = "the table was changed or damaged: restore it, or repeat the study in a new workdir"


def cells(path: Path, rows: Sequence[Row]) -> None:
    """Refuses a table with a missing column, or a cell that is not what its column holds.

    Raises:
      ReportError: names the line, the column and the cell.
    """
    if not rows:
        return
    gone = [column for column in _NEEDED.get(path.name, ()) if column not in rows[0]]
    if gone:
        raise ReportError(f"{path} has no column {gone[0]}: {_WAY_OUT}")
    for index, row in enumerate(rows):
        for column, cell in row.items():
            if (cell == "" and column not in _ALWAYS) or (cell and column in _WORDS):
                continue
            fits = cell.isdecimal() or cell == "-1" if column in _WHOLE else _NUMBER.fullmatch(cell)
            if not fits:
                what = "whole number" if column in _WHOLE else "number"
                what = "name" if column in _WORDS else what
                raise ReportError(
                    f"{path}, line {index + 2}: {cell[:40]!r} in column {column} is no {what}; "
                    + _WAY_OUT
                )


def rows(
    path: Path,
    config: Mapping[str, Any],
    tables: Mapping[str, Sequence[Row]],
    promised: Sequence[str] = (),
    variants: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Refuses tables that do not belong together.

    Args:
      path: the run directory, for messages.
      config: its config.
      tables: "epochs", "events" and "runs".
      promised: the runs of a finished study; empty: of one that is still to end.
      variants: what study.json says of each: a run that goes on from a later state than the start
        has no rows of the epochs before `first_epoch`; `scope` and `preset` are what a method may
        have set, which the config does not say.

    Raises:
      ReportError: names the table, the run, and what is missing.
    """
    ended = {row["run"]: row for row in tables["runs"]}
    if len(ended) != len(tables["runs"]):
        raise ReportError(f"{path / 'runs.csv'} names a run twice: {_WAY_OUT}")
    lost = [run for run in promised if run not in ended]
    if lost:
        raise ReportError(
            f"{path / 'runs.csv'} has {len(ended)} of the {len(promised)} runs of a finished "
            f"study ({lost[0]} is missing): {_WAY_OUT}"
        )
    epochs, events = (grouped(tables[name], "run") for name in ("epochs", "events"))
    for run, row in ended.items():
        first = int(((variants or {}).get(row["variant"]) or {}).get("first_epoch", 0))
        _epochs(path, config, row, epochs.get(run, []), first)
    done = [row for row in tables["runs"] if is_completed(row)]
    _events(path, config, done, events, variants)
    for run, row in ended.items():
        _agrees(path, row, epochs.get(run, []), events.get(run, []))


def _epochs(
    path: Path, config: Mapping[str, Any], run: Row, own: Sequence[Row], first: int
) -> None:
    """Epochs of a run count from `first` without a gap; of one trained to the end, all.

    With `evaluate_every` those in between may be missing; a run that stopped ends where it did.
    """
    asked = int(arms.settings(config, run["variant"]).get("epochs") or 0)
    found = [int(row["epoch"]) for row in own]
    stopped, last = run.get("stopped_step"), own[-1]["step"] if own else ""
    whole = asked and is_completed(run) and (not stopped or stopped != last)
    end = asked if whole else max(found, default=first - 1) + 1
    expected = end - first
    every = int(config.get("evaluate_every") or 1)
    needed = {e for e in range(first, end) if (e + 1) % every == 0 or e + 1 == asked}
    missing = sorted(needed - set(found))
    beyond = [e for e in found if not first <= e < end]
    if missing or beyond or found != sorted(set(found)):
        what = f"epoch {missing[0]} is missing" if missing else "an epoch is there twice"
        raise ReportError(
            f"{path / 'epochs.csv'}: run {run['run']} has {len(found)} rows for {expected} epochs "
            f"({what}): {_WAY_OUT}"
        )


def _agrees(path: Path, run: Row, epochs: Sequence[Row], events: Sequence[Row]) -> None:
    """A row of runs.csv says what the rows of the other tables come to."""
    computed = summarize(epochs, events, run["status"])
    for column in ("events", *computed):
        value = computed[column]
        if column == "status" or column not in run:
            continue
        expected, found = number(value), number(run[column])
        same = expected == found or (isnan(expected) and isnan(found))  # NaN equals nothing
        if not same and column == "events":
            raise ReportError(
                f"{path / 'events.csv'} has {expected:g} events of run {run['run']}, runs.csv "
                f"counts {found:g}: {_WAY_OUT}"
            )
        if not same:
            raise ReportError(
                f"{path}: {column} of run {run['run']} is {run[column] or 'empty'} in runs.csv, "
                f"but {expected:g} by epochs.csv and events.csv: {_WAY_OUT}"
            )


def _events(
    path: Path,
    config: Mapping[str, Any],
    runs: Sequence[Row],
    events: Mapping[str, Sequence[Row]],
    stated: Mapping[str, Any] | None,
) -> None:
    """Schedules know no seed: the runs of an arm have the same layers in the same epochs."""
    by_arm: dict[str, dict[str, list[tuple[str, str, str]]]] = {}
    for run in runs:
        own = [(row["epoch"], row["layer"], row["step"]) for row in events.get(run["run"], [])]
        by_arm.setdefault(run["variant"], {})[run["run"]] = own
    for variant, found in by_arm.items():
        common = arms.settings(config, variant, stated).get("prune") or {}
        if common.get("scope", "layer") != "layer" or _uneven(common):
            continue  # what a layer loses is up to the scores
        # events of one step
        several = int(common.get("rounds", 1)) > 1 or bool(common.get("update_every"))
        everywhere = dict.fromkeys(key for own in found.values() for key in own)
        for label, own in found.items():
            lost = [key for key in everywhere if key not in own]
            if lost or (not several and len(set(own)) != len(own)):
                what = f"no row for layer {lost[0][1]} in epoch {lost[0][0]}" if lost else "a twin"
                raise ReportError(
                    f"{path / 'events.csv'}: run {label} has {what}, unlike the other seeds of its "
                    f"arm: {_WAY_OUT}"
                )


def _uneven(prune: Mapping[str, Any]) -> bool:
    """Whether how many units an event takes from a layer differs between the seeds of an arm."""
    hidden = prune.get("forward", "masked") != "masked"  # as many as are not chosen again
    return bool(hidden or prune.get("redistribute") or prune.get("nm"))  # of masks that were there
