"""Lines between networks: barriers against the step of the common state, error along the way."""

import re
from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from prunejax.measures import statistics
from prunejax.measures.columns import grouped, number
from prunejax.report import tables
from prunejax.report.figures import Drawing, listed
from prunejax.report.panels import Table
from prunejax.report.results import Row, Study
from prunejax.report.style import COLORS, LINES, Look, legend, line_handle, nth, panel, seeds
from prunejax.report.words import DASH, minus, percent

COLUMNS = {  # of runs, for claims -> (split, column of barriers.csv)
    "barrier_error": ("test", "barrier_error"),
    "barrier_loss": ("test", "barrier_loss"),
    "barrier_train_error": ("train", "barrier_error"),
}
_READING = (
    "Barrier: highest error on the line between two networks less the mean of the ends. Where the "
    "training error of the ends is far above that of others, copies have diverged: such a barrier "
    "says nothing of stability."
)


def barriers(study: Study) -> list[Row]:
    """The rows of barriers.csv, of all directories."""
    return tables.rows(study, "barriers")


def _same_seed(row: Row) -> bool:
    return row["seed_a"] == row["seed_b"]


def annotate(study: Study) -> None:
    """Gives a run that ends one line of its seed (as `run_b`) the columns of `COLUMNS`."""
    rows = [r for r in barriers(study) if r["matched"] == "0" and _same_seed(r)]
    if not rows:
        return
    ending: dict[str, set[str]] = {}
    for row in rows:
        ending.setdefault(row["run_b"], set()).add(row["run_a"])
    values = {
        (row["run_b"], name): row[column]
        for row in rows
        for name, (split, column) in COLUMNS.items()
        if len(ending[row["run_b"]]) == 1 and row["split"] == split
    }
    for run in study.runs:
        run.update({name: values.get((run["run"], name), "") for name in COLUMNS})


def _step(study: Study, label: str) -> float:
    """The step of the state that an arm was taken from; NaN where it is no such arm."""
    start = study.settings(label, "start")
    run, at = ("rewind_run", "rewind_at") if start.get("rewind_run") else ("run", "at")
    found = re.fullmatch(r"(step|epoch):(\d+)", str(start.get(at)))
    if not start.get("copy") or not start.get(run) or (not found and start.get(at) != "start"):
        return nan
    if not found or int(found[2]) == 0:
        return 0.0
    if found[1] == "step":
        return float(found[2])
    own = [r for r in study.epochs if r["variant"] == start[run]]
    per_epoch = (number(r["step"]) / (1 + number(r["epoch"])) for r in own)
    return float(found[2]) * max(per_epoch, default=nan)  # less where a run stopped in an epoch


def _by_pair(study: Study, **where: str) -> dict[str, list[Row]]:
    rows = [row for row in barriers(study) if all(row[k] == v for k, v in where.items())]
    return grouped(rows, "pair")


def instability(study: Study, _look: Look) -> Drawing | None:
    """Barrier between copies against the step they part at; training error of the ends beside."""
    series: dict[str, list[tuple[float, list[float], list[float]]]] = {}
    train = _by_pair(study, split="train", matched="0")
    for pair, rows in _by_pair(study, split="test", matched="0").items():
        label = pair.rpartition(":")[2]
        step = _step(study, label)
        if isfinite(step) and _same_seed(rows[0]):
            folder, slash, own = label.rpartition("/")  # of merged studies
            name = folder + slash + (re.sub(r"-?k\d+-\w+$", "", own) or "dense")
            ends = [100 * (number(r["error_a"]) + number(r["error_b"])) / 2 for r in train[pair]]
            values = [100 * number(r["barrier_error"]) for r in rows]
            series.setdefault(name, []).append((step, values, ends))
    if not series:
        return None
    parting = "step at which the copies part"
    made, axes = panel(3.6, xlabel=parting, ylabel="barrier, points of test error")
    other, beside = panel(3.6, xlabel=parting, ylabel="training error of the ends, %")
    handles, numbers = [], []
    for index, (name, points) in enumerate(series.items()):
        color, marker = nth(index)
        points.sort(key=lambda p: p[0])
        seeds(axes, [(x, ys) for x, ys, _ in points], color, marker)
        seeds(beside, [(x, ends) for x, _, ends in points], color, marker)
        handles.append(line_handle(name, color, marker))
        numbers += [(f"{name} from step {x:g}:", statistics.center(ys)) for x, ys, _ in points]
    return Drawing(
        [made, other, legend(handles)],
        "Instability",
        _READING + " Mean over parents (marker), every parent (dot), 95 % interval over parents.",
        f"Barriers in points: {listed(numbers, '')}.",
    )


def paths(study: Study, _look: Look) -> Drawing | None:
    """Test and training error along the lines, mean over seeds."""
    rows = tables.rows(study, "paths")
    if not rows:
        return None
    found: dict[str, dict[str, dict[float, list[float]]]] = {"test": {}, "train": {}}
    for r in rows:
        name = r["pair"] + (", matched" if r["matched"] == "1" else "")
        line = found[r["split"]].setdefault(name, {})
        line.setdefault(number(r["t"]), []).append(100 * number(r["error"]))
    panels, handles = [], []
    for split, lines in found.items():
        made, axes = panel(3.6)
        for index, (name, line) in enumerate(lines.items()):
            color, style = COLORS[index % len(COLORS)], LINES[(index // len(COLORS)) % len(LINES)]
            axes.plot(
                list(line), [*map(statistics.center, line.values())], color=color, linestyle=style
            )
            if split == "test":
                handles.append(line_handle(name, color, line=style))
        axes.set_xlabel("place on the line, from the first network to the second")
        axes.set_ylabel(f"{split} error, %")
        panels.append(made)
    highest = [
        (name, max((y for y in map(statistics.center, line.values()) if isfinite(y)), default=nan))
        for name, line in found["test"].items()
    ]
    return Drawing(
        [*panels, legend(handles)],
        "Error along the lines",
        "Means over seeds, or over pairs of seeds. BatchNorm statistics on the way: "
        f"{_policy(study)}.",
        f"Highest test error on the way: {listed(highest)}.",
    )


def _policy(study: Study) -> str:
    known = {r["batch_norm"] for r in barriers(study)}
    return ", ".join(sorted(known - {""})) or "none, the networks have none"


def matrix(study: Study, _look: Look) -> Drawing | None:
    """Barriers between each two seeds of an arm."""
    panels: list[Figure] = []
    numbers: list[tuple[str, float]] = []
    for matched in ("0", "1"):
        for pair, rows in _by_pair(study, split="test", matched=matched).items():
            if _same_seed(rows[0]):
                continue
            runs = sorted({run for r in rows for run in (r["run_a"], r["run_b"])})
            values = np.zeros((len(runs), len(runs)))
            for r in rows:
                i, j = runs.index(r["run_a"]), runs.index(r["run_b"])
                values[i, j] = values[j, i] = 100 * number(r["barrier_error"])
            made, axes = panel(3.4)
            image = axes.imshow(values, cmap="viridis", vmin=0)
            axes.grid(visible=False)
            made.colorbar(image, ax=axes, label="barrier, points of test error")
            axes.set_xticks(range(len(runs)), [run.rpartition("-")[2] for run in runs])
            axes.set_yticks(range(len(runs)), [run.rpartition("-")[2] for run in runs])
            name = pair + (", units matched" if matched == "1" else "")
            axes.set_title(name)
            panels.append(made)
            numbers.append((name, statistics.center(values[np.triu_indices(len(runs), 1)])))
    if not panels:
        return None
    return Drawing(
        panels,
        "Barriers between seeds",
        "Networks of independent initial weights. Units matched: those of the second network are "
        "permuted so that its weights are nearest the first's (weight matching, Ainsworth et al. "
        "2023), which changes no function.",
        f"Mean barrier in points: {listed(numbers, '')}.",
    )


def table(study: Study) -> Table | None:
    """The barriers on the page, means over seeds."""
    rows = []
    train: Mapping[tuple[str, str], list[Row]] = {
        (pair, m): found
        for m in ("0", "1")
        for pair, found in _by_pair(study, split="train", matched=m).items()
    }
    for m in ("0", "1"):
        for pair, found in _by_pair(study, split="test", matched=m).items():
            other = train[pair, m]
            train_error, test_error = (
                percent((_mean(own, "error_a") + _mean(own, "error_b")) / 2)
                for own in (other, found)
            )
            rows.append({
                "pair": pair + (", units matched" if m == "1" else ""),
                "lines": str(len(found)),
                "barrier, test (points)": _barrier(found, pair),
                "barrier, train (points)": _barrier(other, pair),
                "barrier, loss": f"{_mean(found, 'barrier_loss'):.3f}",
                "train error of ends": train_error,
                "test error of ends": test_error,
                "disagreement": percent(_mean(found, "disagreement")),
                "distance": f"{_mean(found, 'distance'):.2f}",
                "cosine": f"{_mean(found, 'cosine'):.3f}",
            })  # fmt: skip
    return Table.of(
        rows,
        "Barriers",
        _READING + f" BatchNorm statistics on the line: {_policy(study)}. Intervals are over "
        "parents (seeds); of pairs of seeds, which share networks, there is none. barriers.csv has "
        "every line, paths.csv every point.",
    )


def _mean(rows: Sequence[Row], column: str) -> float:
    return statistics.center([number(r[column]) for r in rows])


def _barrier(rows: Sequence[Row], pair: str) -> str:
    found: Any = statistics.mean([100 * number(r["barrier_error"]) for r in rows])
    text = minus(f"{found.mean:.2f}")
    if ":" not in pair or not isfinite(found.low):
        return text if isfinite(found.mean) else DASH
    return minus(f"{text} [{found.low:.2f}, {found.high:.2f}]")
