"""Accuracy against the share of weights that are left: methods, tickets and their controls."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunejax.measures import statistics
from prunejax.measures.columns import measure_columns, value
from prunejax.report import words
from prunejax.report.figures import Drawing, listed
from prunejax.report.results import Row, Study
from prunejax.report.style import (
    COLORS,
    LINES,
    MARKERS,
    Look,
    band,
    legend,
    line_handle,
    panel,
    seeds,
)

CONTROLS = {
    "shuffled": "mask shuffled within layers",
    "fresh": "mask on weights drawn anew",
    "inverted": "score inverted",
    "fan_in": "weights scaled to live inputs",
    "rounds": "in rounds",
    "average": "gradient of several batches",
    "global": "swaps across layers",
}
_LABEL = re.compile(r"(?P<name>.+?)(?:_(?P<word>" + "|".join(CONTROLS) + r"))?-(?P<number>\d+)")


def parts(label: str) -> tuple[str, str, str]:
    """`snip_fresh-05` -> ("snip", "fresh", "05"); the last two empty where there are none."""
    found = _LABEL.fullmatch(label)
    return (found["name"], found["word"] or "", found["number"]) if found else (label, "", "")


def looks(names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and line of each; no two of 28 share colour and line."""
    return {
        name: (COLORS[i % 7], MARKERS[(i + i // 7) % 7], LINES[i // 7 % 4])
        for i, name in enumerate(dict.fromkeys(names))
    }


def family(label: str) -> str:
    """What arms of several densities share: "ticket12" -> "ticket", "a-keep=0_5" -> "a-keep"."""
    return re.sub(r"(=\d+_\d+|[-_=]?\d+)$", "", label) or label


def ticks_apart(values: Iterable[float], ratio: float) -> list[float]:
    """Values for ticks, the largest first, each at least `ratio` times the next."""
    shown: list[float] = []
    for x in sorted(set(values), reverse=True):
        if not shown or shown[-1] / x > ratio:
            shown.append(x)
    return shown


def density_axis(
    axes: Axes, live: Sequence[float], word: str = "weights that are live, % of all"
) -> None:
    """A logarithmic axis of the share of live weights in percent, dense on the left."""
    axes.set_xscale("log")
    axes.invert_xaxis()
    shown = ticks_apart(live, 1.35)
    axes.set_xticks(shown, [f"{x:.2g}" if x < 10 else f"{x:.0f}" for x in shown])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(f"{word} (log scale)")


def live_share(rows: Sequence[Row]) -> float:
    """Mean share of all weights that is live at the end, in percent."""
    return 100 * (1 - float(np.mean([value(row, "sparsity") for row in rows])))


_ACCURACY = "final_test_accuracy"
ACCURACY = "final test accuracy, %"  # of an axis
Points = dict[str, list[tuple[float, np.ndarray]]]


def percents(rows: Sequence[Row], column: str = _ACCURACY) -> np.ndarray:
    """[runs] a column of the rows in percent."""
    return 100 * np.array([value(row, column) for row in rows])


def of_baseline(study: Study, column: str = _ACCURACY) -> np.ndarray:
    """[runs] a column of the baseline in percent."""
    return percents([row for row in study.good if row["variant"] == study.baseline], column)


def _points(study: Study, column: str) -> Points:
    """Family of arms -> (live weights in percent, [seeds] of the column in percent), by density."""
    points: Points = {}
    runs = study.good_of
    several = Counter(family(variant) for variant in runs)
    for variant, rows in runs.items():
        if parts(variant)[1] and several[family(variant)] == 1:
            continue
        values = percents(rows, column)
        live = live_share(rows)
        if variant != study.baseline and live > 0 and np.isfinite(values).all():
            points.setdefault(family(variant), []).append((live, values))
    return {name: sorted(found, key=lambda p: p[0]) for name, found in points.items()}


def _panel(study: Study, column: str, lines: Points) -> tuple[Figure, list[Line2D]]:
    word = ACCURACY if column == _ACCURACY else words.percented(column)
    made, axes = panel(3.8, ylabel=word)
    handles: list[Line2D] = []
    for name, (color, marker, line) in looks(list(lines)).items():
        seeds(axes, lines[name], color, marker, linewidth=1.4, linestyle=line)
        handles.append(line_handle(name, color, marker, line))
    band(axes, handles, study.baseline, of_baseline(study, column))
    density_axis(axes, [x for found in lines.values() for x, _ in found])
    return made, handles


def density(study: Study, _look: Look) -> Drawing | None:
    """Final accuracy of each family of arms against density, with the baseline as a band.

    Beside it the measured shares that claims are about. Controls and variants of a method at one
    density alone are in the figure `sanity`.
    """
    lines = _points(study, _ACCURACY)
    if not any(len({round(x, 6) for x, _ in found}) > 1 for found in lines.values()):
        return None  # one density: the comparisons of arms say it
    measured = {*measure_columns(study.good)}
    claimed = dict.fromkeys(claim.column for claim in study.claims)
    more = [c for c in claimed if c in measured and words.factor(c) == 100]
    panels, told = [], []
    for column in (_ACCURACY, *more):
        found = lines if column == _ACCURACY else _points(study, column)
        made, handles = _panel(study, column, found)
        panels.append(made)
        lowest = [(name, statistics.center(points[0][1])) for name, points in found.items()]
        told.append((f"{words.name(column)}: " if more else "") + listed(lowest))
    return Drawing(
        [*panels, legend(handles)],
        "Accuracy against density",
        "Mean over seeds (marker), every seed (dot) and the 95 % interval of the mean (line).",
        f"At the lowest density of each: {'; '.join(told)}.",
    )
