"""The figures of every study: stability, accuracy and gap against stability.

A figure is a function of the study and the look of its arms that returns a `Drawing`, or None
where the study has nothing to show. `FIGURES` in `prunejax.report.gallery` lists them all.
"""

from collections.abc import Callable, Collection, Sequence
from math import isfinite
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunejax.measures import correlation, statistics
from prunejax.measures.columns import by_variant, number, value
from prunejax.report import words
from prunejax.report.drawing import Drawing as Drawing
from prunejax.report.names import apart
from prunejax.report.results import Row, Study
from prunejax.report.style import (
    BASELINE,
    COLORS,
    FEW,
    GREY,
    MARKERS,
    Look,
    legend,
    line_handle,
    panel,
)
from prunejax.report.words import TARGETS, percent

Draw = Callable[[Study, Look], Drawing | None]
PointStyle = Callable[[str], tuple[str, str]]  # arm -> colour, marker

_MANY = 9  # more arms than this are not all drawn where they say nothing
_APART = len(COLORS) * len(MARKERS)  # more arms than this are not told apart
STABILITY = "in brackets: mean stability"  # title of legends of `legend_label`s
TARGET_COLORS = {"S": COLORS[0], "R": COLORS[2], "L": COLORS[1]}
TARGET_MARKERS = {"S": "o", "R": "^", "L": "s"}


def legend_label(study: Study, variant: str) -> str:
    """The arm with its mean stability, as in the paper's legends."""
    stability = study.mean_stability(variant)
    return f"{variant} ({percent(stability)})" if isfinite(stability) else variant


def arm_legend(
    study: Study,
    look: Look,
    variants: Sequence[str],
    points: bool = True,
    hollow: Collection[str] = (),
) -> Figure:
    """The legend of arms, with their stabilities; those that are drawn hollow are so here, too."""
    handles = [look.handle(v, legend_label(study, v), points=points) for v in variants]
    for variant, handle in zip(variants, handles, strict=True):
        if variant in hollow:
            handle.set_markerfacecolor("none")
    return legend(handles, STABILITY if study.has_events else None)


def points_of(
    study: Study, look: Look, variants: Sequence[str], hollow: Collection[str] = ()
) -> tuple[PointStyle, Figure]:
    """How points of arms look, and their legend: arm by arm, of very many arms by target."""
    if len(variants) <= _APART:
        return look_of(look), arm_legend(study, look, variants, hollow=hollow)
    groups: dict[str, list[str]] = {}
    for variant in variants:
        groups.setdefault(study.attribute(variant, "target"), []).append(variant)
    styles: dict[str, tuple[str, str]] = {}
    handles = []
    for target, arms in groups.items():
        color, marker = TARGET_COLORS.get(target, BASELINE), TARGET_MARKERS.get(target, "D")
        styles |= dict.fromkeys(arms, (color, marker))
        label = f"{TARGETS.get(target, 'none')} ({words.count(len(arms), 'arm')})"
        handles.append(line_handle(label, color, marker, "none"))
        if hollow and {*arms} <= {*hollow}:
            handles[-1].set_markerfacecolor("none")
    return styles.__getitem__, legend(handles, "target of pruning")


def listed(
    numbers: Sequence[tuple[str, float]], unit: str = "%", most: int = 9, form: str = ".1f"
) -> str:
    """`none 94.1%, L_large 94.2%`; of many arms the lowest and the highest."""
    known = [(label, x) for label, x in numbers if isfinite(x)]
    told = [f"{label} {words.minus(format(x, form))}{unit}" for label, x in known]
    if len(known) > most:
        values = [x for _, x in known]
        low, high = values.index(min(values)), values.index(max(values))
        return f"from {told[low]} to {told[high]} over {len(known)} arms"
    return ", ".join(told)


def dots(axes: Axes, look: Look, variant: str, size: float, x: Any, y: Any) -> None:
    """Points of an arm, `x` and `y` [n], told apart where they overlap."""
    axes.plot(
        x, y, linestyle="none", marker=look.marker(variant), markersize=size,
        color=look.color(variant), markeredgecolor="white", markeredgewidth=0.4,
    )  # fmt: skip


def _told(study: Study) -> tuple[list[str], str]:
    """Arms whose stability is drawn, and a sentence on those that are not.

    Of many arms those without events, 100 % by convention, would hide the others.
    """
    arms = [v for v in study.variants if v in study.good_of]
    own = {row["variant"] for row in study.good if number(row.get("events")) > 0}
    own |= {study.baseline, *study.baselines.values(), *study.report_option("correlate", ())}
    left = [v for v in arms if v not in own]
    if len(arms) <= _MANY or not left:
        return arms, ""
    are = "is" if len(left) == 1 else "are"
    return [v for v in arms if v in own], (
        f" {words.count(len(left), 'arm')} without events {are} left out."
    )


def stability(study: Study, look: Look) -> Drawing | None:
    """Stability of each arm: a point per run, mean and interval."""
    if not study.has_events:
        return None
    drawn, left = _told(study)
    arms = {v: study.good_of[v] for v in drawn}
    made, axes = panel(1.0 + 0.36 * len(arms), xlabel="mean stability of a run (%)")
    means = []
    for place, (variant, rows) in enumerate(arms.items()):
        values = 100 * np.array([value(row, "mean_stability") for row in rows])
        mean = statistics.mean(values)
        dots(axes, look, variant, 5, values, np.full(len(values), place + 0.16))
        if not isfinite(mean.mean):
            continue
        means.append((variant, mean.mean))
        above = place - 0.16  # the interval, clear of the points
        if len(rows) >= FEW:
            axes.plot([mean.low, mean.high], [above, above], color="black", linewidth=1.8)
        axes.plot(mean.mean, above, marker="|", color="black", markersize=9, markeredgewidth=1.8)
        axes.annotate(
            f"{mean.mean:.2f}%", (1.0, place), xycoords=("axes fraction", "data"),
            xytext=(6, 0), textcoords="offset points", va="center",
        )  # fmt: skip
    axes.set_yticks(range(len(arms)), apart([*arms], 24))
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.margins(0.03)
    return Drawing(
        [made],
        "Stability",
        "Stability is accuracy after an event / accuracy before it. One point per run, the mean "
        "over its pruning events. Black: mean over seeds (written at the right) and, from four "
        f"runs on, its 95% confidence interval. Runs without events count as 100%.{left}",
        f"Mean stability: {listed(means)}.",
    )


def coefficients(rows: Sequence[Row], x: str, y: str) -> str:
    """`r = ..., τ = ..., n = ...`; the intervals are in the page's table of relations."""
    a, b = [value(row, x) for row in rows], [value(row, y) for row in rows]
    r, tau = (correlation.coefficient(a, b, kind) for kind in ("pearson", "kendall"))
    n = words.count(int(np.sum(np.isfinite(a) & np.isfinite(b))), "run")  # that have both numbers
    return f"{words.coefficient('r', r)}, {words.coefficient('τ', tau)}, n = {n}"


def scatter_panel(
    rows: Sequence[Row],
    x: str,
    y: str,
    style: PointStyle,
    *,
    fitted: Sequence[Row] | None = None,
    title: str = "",
    height: float = 3.4,
) -> tuple[Figure, str]:
    """A point per run with its standard errors, the least-squares line, r and tau above it.

    Args:
      rows: the points.
      x, y: columns.
      style: colour and marker of an arm.
      fitted: the runs that line and coefficients are about, all by default; others are hollow.
      title: what stands before the coefficients.

    Returns:
      The panel, and its coefficients in words.
    """
    fitted = rows if fitted is None else fitted
    found = coefficients(fitted, x, y)
    head = "\n".join(text for text in (title, found) if text)
    made, axes = panel(height, title=head, xlabel=words.axis(x), ylabel=words.axis(y))
    inside = {row["run"] for row in fitted}
    looks: dict[tuple[str, str, bool], list[Row]] = {}
    for variant, own in by_variant(rows).items():
        hollow = not any(row["run"] in inside for row in own)
        looks.setdefault((*style(variant), hollow), []).extend(own)
    for (color, marker, hollow), own in looks.items():
        errors = []
        for column in (x, y):
            error = [words.factor(column) * number(row.get(f"{column}_stderr")) for row in own]
            errors.append(error if np.isfinite(error).any() else None)
        axes.errorbar(
            [words.factor(x) * value(row, x) for row in own],
            [words.factor(y) * value(row, y) for row in own],
            xerr=errors[0], yerr=errors[1], linestyle="none", marker=marker, color=color,
            markerfacecolor="none" if hollow else color, elinewidth=0.8, markersize=5, zorder=2,
        )  # fmt: skip
    line(axes, fitted, x, y)
    axes.locator_params(axis="x", nbins=5)  # "99.975" needs its room
    axes.margins(0.06)  # no point sits on the frame
    return made, f"{words.name(y)} against {words.name(x)}: {found}"


def line(axes: Axes, rows: Sequence[Row], x: str, y: str) -> None:
    """The least-squares line over the span of the points."""
    a = words.factor(x) * np.array([value(row, x) for row in rows])
    slope, intercept = statistics.fit_line(a, [words.factor(y) * value(row, y) for row in rows])
    if isfinite(slope):
        span = np.array([np.nanmin(a), np.nanmax(a)])
        axes.plot(span, slope * span + intercept, color=GREY, linewidth=1.2, zorder=1)


def look_of(look: Look) -> PointStyle:
    """Colour and marker by arm."""
    return lambda variant: (look.color(variant), look.marker(variant))


def chosen(study: Study) -> tuple[str, list[Row]]:
    """The runs that line and coefficients are about, in words and as rows."""
    selected = study.report_option("correlate", ())
    if selected:
        rows = [row for row in study.good if row["variant"] in selected]
        return ", ".join(selected), rows
    with_events = [row for row in study.good if number(row.get("events")) > 0]
    if with_events:
        return "runs with events", with_events
    return "all runs", study.good


def _reading(hollow: bool, several: bool) -> str:
    """How to read the points; `several`: the coefficients are about several arms."""
    outside = "; arms outside are drawn hollow" if hollow else ""
    table = ': the table "Stability and accuracy" says what they carry' if several else ""
    return (
        "One point per run. Line and coefficients (Pearson r, Kendall τ) are about the runs named "
        f"above the panel{outside}. Runs of one arm share its treatment and runs of one seed their "
        f"start{table}."
    )


def _against_stability(
    study: Study, look: Look, columns: Sequence[str], title: str, caption: str
) -> Drawing | None:
    """One panel per column. Nothing for groups of arms: pooled, they would show the groups."""
    if len(study.groups) > 1 or len(study.good) < 2 or not study.has_events:
        return None
    variants, left = _told(study)
    points = [row for row in study.good if row["variant"] in variants]
    columns = [c for c in columns if any(isfinite(value(r, c)) for r in study.good)]
    if not columns:
        return None
    scope, rows = chosen(study)
    hollow = {*variants} - {row["variant"] for row in rows}
    style, key = points_of(study, look, variants, hollow)
    found = [
        scatter_panel(points, "mean_stability", c, style, fitted=rows, title=scope) for c in columns
    ]
    panels = [*(made for made, _ in found), key]
    first = scope[0] if study.report_option("correlate", ()) else scope[0].upper()  # a label
    alt = f"{first}{scope[1:]}: {'; '.join(text for _, text in found)}."
    reading = _reading(bool(hollow), len({row["variant"] for row in rows}) > 1)
    return Drawing(panels, title, reading + caption + left, alt)


def scatter(study: Study, look: Look) -> Drawing | None:
    """Figure 2, right: accuracy against stability."""
    columns = ("final_test_accuracy", "best_test_accuracy")
    text = " The best accuracy is taken since the last event."
    return _against_stability(study, look, columns, "Accuracy against stability", text)


def gap(study: Study, look: Look) -> Drawing | None:
    """Figure 4, bottom: generalization gap against stability."""
    title, text = "Generalization gap against stability", " The gap is taken at the best epoch."
    return _against_stability(study, look, ("generalization_gap",), title, text)
