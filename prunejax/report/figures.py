"""The figures of every study: stability, accuracy and gap against stability.

A figure is a function of the study and the look of its arms that returns a `Drawing`, or None
where the study has nothing to show. `FIGURES` in `prunejax.report.gallery` lists them all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunejax.measures import statistics
from prunejax.measures.summary import number, value
from prunejax.report.results import Row, Study
from prunejax.report.style import (
    FEW,
    MINUS,
    Look,
    figure,
    legend_below,
    pad,
    percent,
    with_interval,
)


@dataclass
class Drawing:
    """A figure with the words around it."""

    figure: Figure
    title: str
    caption: str


Draw = Callable[[Study, Look], Drawing | None]


STABILITY = "in brackets: mean stability"  # title of legends of `legend_label`s


def legend_label(study: Study, variant: str) -> str:
    """The arm with its mean stability, as in the paper's legends."""
    stability = study.mean_stability(variant)
    return f"{variant} ({percent(stability)})" if isfinite(stability) else variant


def stability(study: Study, look: Look) -> Drawing | None:
    """Stability of each arm: a point per run, mean and interval."""
    arms = {v: [r for r in study.good if r["variant"] == v] for v in study.variants}
    arms = {v: rows for v, rows in arms.items() if rows}
    if not arms:
        return None
    made = figure(11, 1.2 + 0.46 * len(arms))
    axes = made.subplots()
    for place, (variant, rows) in enumerate(arms.items()):
        values = 100 * np.array([value(row, "mean_stability") for row in rows])
        mean = statistics.mean(values)
        axes.plot(
            values,
            np.full(len(values), place + 0.16),
            linestyle="none",
            marker=look.marker(variant),
            markersize=6,
            color=look.color(variant),
            alpha=0.6,
            markeredgewidth=0,
        )
        if not isfinite(mean.mean):
            continue
        above = place - 0.16  # the interval, clear of the points
        if len(rows) >= FEW:
            axes.plot([mean.low, mean.high], [above, above], color="black", linewidth=1.8)
        axes.plot(mean.mean, above, marker="|", color="black", markersize=9, markeredgewidth=1.8)
        axes.annotate(
            f"{mean.mean:.2f}%",
            (1.0, place),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(arms)), list(arms))
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("mean stability of a run (%): accuracy after an event / accuracy before it")
    pad(axes, 0.03)
    return Drawing(
        made,
        "Stability",
        "One point per run, the mean over its pruning events. Black: mean over seeds (written at "
        "the right) and, from four runs on, its 95% confidence interval. Runs without events count "
        "as 100%.",
    )


def regression(axes: Axes, rows: Sequence[Row], x: str, y: str) -> None:
    """The least-squares line over the span of the points."""
    a = np.array([value(row, x) for row in rows])
    slope, intercept = statistics.fit_line(a, [value(row, y) for row in rows])
    if isfinite(slope):
        span = np.array([np.nanmin(a), np.nanmax(a)])
        axes.plot(
            100 * span, 100 * (slope * span + intercept), color="#555555", linewidth=1.2, zorder=1
        )


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


def coefficients(rows: Sequence[Row], x: str, y: str) -> str:
    """`r = ..., tau = ..., n = ...` with intervals."""
    a, b = [value(row, x) for row in rows], [value(row, y) for row in rows]
    r, tau = statistics.pearson(a, b), statistics.kendall(a, b)
    return f"{with_interval('r', r)}, {with_interval('τ', tau)}, n = {r.n}"


def against_stability(
    study: Study, look: Look, columns: Sequence[tuple[str, str]]
) -> Figure | None:
    """One panel per column, a point per run; the coefficients stand above each panel.

    Nothing for groups of arms: pooled, they would show the differences between the groups.
    """
    if len(study.groups) > 1:
        return None
    variants = [v for v in study.variants if any(row["variant"] == v for row in study.good)]
    columns = [c for c in columns if any(isfinite(value(r, c[0])) for r in study.good)]
    if not columns or len(study.good) < 2:
        return None
    made = figure(11 if len(columns) > 1 else 7, 5.2)
    scope, rows = chosen(study)
    for axes, (column, label) in zip(
        made.subplots(1, len(columns), squeeze=False)[0], columns, strict=True
    ):
        for variant in variants:
            own = [row for row in study.good if row["variant"] == variant]
            inside = any(row in rows for row in own)
            axes.plot(
                [100 * value(row, "mean_stability") for row in own],
                [100 * value(row, column) for row in own],
                linestyle="none",
                marker=look.marker(variant),
                color=look.color(variant),
                markerfacecolor=look.color(variant) if inside else "none",
                markersize=6,
                alpha=0.8,
                zorder=2,
            )
        regression(axes, rows, "mean_stability", column)
        axes.set_title(f"{scope}:\n{coefficients(rows, 'mean_stability', column)}", fontsize=9.5)
        axes.set_xlabel("mean stability (%)")
        axes.set_ylabel(label)
        pad(axes)
    legend_below(
        made, [look.handle(v, legend_label(study, v), points=True) for v in variants], STABILITY
    )
    return made


_READING = (
    "One point per run. Line and coefficients (Pearson r, Kendall τ, 95% confidence intervals) are "
    "about the runs named above the panel; arms outside are drawn hollow. The intervals take runs "
    "as independent, although those of one arm share its treatment."
)


def scatter(study: Study, look: Look) -> Drawing | None:
    """Figure 2, right: accuracy against stability."""
    made = against_stability(
        study,
        look,
        [
            ("final_test_accuracy", "test accuracy after the last epoch (%)"),
            ("best_test_accuracy", "best test accuracy since the last event (%)"),
        ],
    )
    if made is None:
        return None
    return Drawing(
        made,
        "Accuracy against stability",
        _READING + " A negative r is the tradeoff: less stable training generalizes better.",
    )


def gap(study: Study, look: Look) -> Drawing | None:
    """Figure 4, bottom: generalization gap against stability."""
    made = against_stability(
        study,
        look,
        [("generalization_gap", f"train {MINUS} test accuracy (percentage points)")],
    )
    if made is None:
        return None
    return Drawing(
        made,
        "Generalization gap against stability",
        _READING + " A positive r is the tradeoff. The gap is taken at the best epoch.",
    )
