"""The paper's other figures about accuracy: iterative rate, noise, and groups of arms."""

from collections.abc import Collection, Mapping, Sequence
from math import isfinite, log2

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from prunejax.measures import statistics
from prunejax.measures.summary import number, value
from prunejax.report.figures import (
    STABILITY,
    Drawing,
    coefficients,
    legend_label,
    regression,
)
from prunejax.report.results import Row, Study
from prunejax.report.style import (
    BASELINE,
    COLORS,
    FEW,
    MINUS,
    Look,
    figure,
    legend_below,
    line_handle,
    pad,
)

TARGETS = {"S": "smallest scores", "R": "random", "L": "largest scores"}
_TARGET_COLORS = {"S": COLORS[0], "R": COLORS[2], "L": COLORS[1]}
_TARGET_MARKERS = {"S": "o", "R": "^", "L": "s"}
_ACCURACY = "best test accuracy since the last event (%)"


def by_rate(study: Study) -> dict[tuple[str, float], list[Row]]:
    """Runs by (target, iterative rate); rates that agree to three digits are one."""
    found: dict[tuple[str, float], list[Row]] = {}
    for row in study.good:
        target = study.attribute(row["variant"], "target")
        rate = study.attribute(row["variant"], "iterative_rate")
        if target in TARGETS and rate:
            found.setdefault((target, float(f"{rate:.3g}")), []).append(row)
    return found


def _rate_axis(axes: Axes, rates: Sequence[float]) -> None:
    axes.set_xscale("log", base=2)
    shown: list[float] = []
    for rate in rates:  # no two labels nearer than half a doubling
        if not shown or log2(rate / shown[-1]) > 0.5:
            shown.append(rate)
    axes.set_xticks([100 * rate for rate in shown], [f"{100 * rate:.2g}" for rate in shown])
    axes.minorticks_off()
    axes.set_xlabel("iterative rate (% of the layer per event)")


def _rate_curves(
    axes: Axes,
    cells: Mapping[tuple[str, float], list[Row]],
    column: str,
    highest: float = np.inf,
) -> None:
    for target in TARGETS:
        rates = sorted(rate for t, rate in cells if t == target and rate <= highest)
        means = [statistics.mean([value(r, column) for r in cells[target, x]]) for x in rates]
        if not rates:
            continue
        x = 100 * np.array(rates)
        color = _TARGET_COLORS[target]
        y, low, high = (100 * np.array([getattr(m, n) for m in means]) for n in _BAND)
        axes.plot(x, y, color=color, marker=_TARGET_MARKERS[target], markersize=4.5)
        if min(len(cells[target, rate]) for rate in rates) >= FEW:
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            continue
        for rate in rates:
            _points(axes, cells[target, rate], color, ".", column, 100 * rate)


_BAND = ("mean", "low", "high")


def _target_handles(targets: Collection[str | None], line: str = "-") -> list[Line2D]:
    return [
        line_handle(f"target: {TARGETS[t]}", _TARGET_COLORS[t], _TARGET_MARKERS[t], line)
        for t in TARGETS
        if t in targets
    ]


def rate(study: Study, look: Look) -> Drawing | None:
    """Figures 3 and C2: accuracy, stability and their correlation against iterative rate."""
    del look  # curves are targets here, not arms
    cells = by_rate(study)
    rates = sorted({rate for _, rate in cells})
    if len(rates) < 2:
        return None
    made = figure(11, 4.6)
    left, middle, right = made.subplots(1, 3)
    _rate_curves(left, cells, "best_test_accuracy")
    baseline = [row for row in study.good if row["variant"] == study.baseline]
    mean = statistics.mean([value(row, "best_test_accuracy") for row in baseline])
    if isfinite(mean.mean):
        left.axhline(100 * mean.mean, color=BASELINE, linestyle="--", linewidth=1)
        if mean.n >= FEW:
            left.axhspan(100 * mean.low, 100 * mean.high, color=BASELINE, alpha=0.08, linewidth=0)
    left.set_ylabel(_ACCURACY)
    _rate_curves(middle, cells, "mean_stability")
    middle.set_ylabel("mean stability (%)")
    low_rates = [x for x in rates if x < 0.72]
    if rates[-1] >= 0.72 and len(low_rates) > 1:  # one huge event flattens all others
        inset = middle.inset_axes((0.16, 0.1, 0.5, 0.42))
        _rate_curves(inset, cells, "mean_stability", low_rates[-1])
        inset.set_xscale("log", base=2)
        inset.set_xticks([100 * low_rates[0], 100 * low_rates[-1]],
                         [f"{100 * x:.2g}" for x in (low_rates[0], low_rates[-1])])  # fmt: skip
        inset.minorticks_off()
        inset.tick_params(labelsize=8)
    for axes in (left, middle, right):
        _rate_axis(axes, rates)
    _rate_correlations(right, cells, rates)
    handles = _target_handles({target for target, _ in cells})
    if isfinite(mean.mean):
        handles.append(line_handle(study.baseline, BASELINE, line="--"))
    legend_below(made, handles)
    return Drawing(
        made,
        "Accuracy, stability and their correlation against the iterative rate",
        "Means over seeds with 95% confidence intervals (of fewer than four runs a dot per run "
        "instead). The total removed is the same at every "
        "rate: a larger rate means fewer, larger events. Right: correlation of accuracy and "
        "stability over the runs of all targets at one rate, with its 95% interval.",
    )


def _rate_correlations(
    axes: Axes, cells: Mapping[tuple[str, float], list[Row]], rates: Sequence[float]
) -> None:
    pools = [[r for (_, x), rows in cells.items() if x == rate for r in rows] for rate in rates]
    kinds = (
        (statistics.pearson, "Pearson r", COLORS[3], "o"),
        (statistics.kendall, "Kendall τ", COLORS[6], "s"),
    )
    for function, label, color, marker in kinds:
        found = [
            function(
                [value(row, "mean_stability") for row in pool],
                [value(row, "best_test_accuracy") for row in pool],
            )
            for pool in pools
        ]
        x = 100 * np.array(rates)
        y, low, high = (np.array([getattr(f, n) for f in found]) for n in ("value", "low", "high"))
        axes.plot(x, y, color=color, marker=marker, markersize=4.5, label=label)
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    axes.axhline(0, color="#888888", linewidth=1)
    axes.set_ylim(-1.05, 1.05)
    axes.set_ylabel("correlation of accuracy and stability")
    axes.legend(loc="best")


def rate_scatter(study: Study, look: Look) -> Drawing | None:
    """Figure C1: accuracy against stability at each iterative rate."""
    del look
    cells = by_rate(study)
    rates = sorted({rate for _, rate in cells})
    if len(rates) < 2:
        return None
    columns = min(4, len(rates))
    lines = -(-len(rates) // columns)
    made = figure(11, 0.6 + 3.1 * lines)
    grid = made.subplots(lines, columns, squeeze=False).flatten()
    for axes, level in zip(grid, rates, strict=False):
        pool = []
        for (target, x), rows in cells.items():
            if x == level:
                pool += rows
                _points(axes, rows, _TARGET_COLORS[target], _TARGET_MARKERS[target])
        regression(axes, pool, "mean_stability", "best_test_accuracy")
        _title(axes, f"rate {100 * level:.2g}%", pool, "best_test_accuracy")
        axes.set_xlabel("mean stability (%)")
    for axes in grid[::columns]:
        axes.set_ylabel("best test accuracy (%)")
    for axes in grid[len(rates) :]:
        axes.set_visible(False)
    legend_below(made, _target_handles({target for target, _ in cells}, "none"))
    return Drawing(
        made,
        "Accuracy against stability at each iterative rate",
        "One point per run; Pearson r and Kendall τ with 95% confidence intervals.",
    )


def _points(
    axes: Axes,
    rows: Sequence[Row],
    color: str,
    marker: str,
    column: str = "best_test_accuracy",
    x: float | None = None,
) -> None:
    """A point per run over its mean stability, or all of them over `x`."""
    axes.plot(
        [100 * value(row, "mean_stability") if x is None else x for row in rows],
        [100 * value(row, column) for row in rows],
        linestyle="none",
        color=color,
        marker=marker,
        alpha=0.8,
    )


def _title(axes: Axes, text: str, rows: Sequence[Row], column: str) -> None:
    """The coefficients in three short lines, as narrow panels need them."""
    lines = coefficients(rows, "mean_stability", column).replace(", τ", "\nτ")
    axes.set_title(f"{text}\n{lines}", fontsize=8.5)
    pad(axes)


def corners(study: Study, look: Look) -> Drawing | None:
    """The correlation and the gain of each group of arms: where does the tradeoff hold?"""
    del look  # colours are targets here
    groups = study.groups
    if len(groups) < 2:
        return None
    rows = {name: [r for r in study.good if r["variant"] in arms] for name, arms in groups.items()}
    if not any(study.baselines.get(v) in arms for arms in groups.values() for v in arms):
        return None  # nothing to gain over: the scatter of each group says the rest
    made = figure(11, 1.6 + 0.36 * len(groups))
    left, right = made.subplots(1, 2, sharey=True)
    for place, (name, arms) in enumerate(groups.items()):
        events = [row for row in rows[name] if number(row.get("events")) > 0]
        found = statistics.pearson(
            [value(row, "mean_stability") for row in events],
            [value(row, "best_test_accuracy") for row in events],
        )
        _whisker(left, place, found.value, found.low, found.high, COLORS[3])
        others = [v for v in arms if v != study.baselines.get(v)]
        for j, variant in enumerate(others):
            gain = study.gain(variant, "best_test_accuracy")
            target = study.attribute(variant, "target")
            offset = (j - (len(others) - 1) / 2) * 0.5 / max(len(others), 1)
            low, high = (gain.low, gain.high) if gain.n >= FEW else (np.nan, np.nan)
            a, b, c = 100 * gain.difference, 100 * low, 100 * high
            color, marker = _TARGET_COLORS.get(target, BASELINE), _TARGET_MARKERS.get(target, "D")
            _whisker(right, place + offset, a, b, c, color, marker)
    left.set_yticks(range(len(groups)), list(groups))
    left.set_ylim(len(groups) - 0.5, -0.5)
    left.set_xlim(-1.05, 1.05)
    left.set_xlabel("Pearson r of accuracy and stability\n(runs with events)")
    right.set_xlabel(f"best accuracy {MINUS} that of\nthe unpruned arm (points)")
    for axes in (left, right):
        axes.axvline(0, color="#888888", linewidth=1)
        axes.grid(axis="y", visible=False)
    targets = {study.attribute(v, "target") for v in study.variants}
    legend_below(made, _target_handles(targets, "none"))
    return Drawing(
        made,
        "Where the tradeoff holds",
        "One line per group of arms. Left: correlation over the runs with events; below zero the "
        "tradeoff holds, and an interval (95%) that contains zero carries no claim. Right: what "
        "each arm gains over the unpruned arm of its group, paired by seed, with its interval from "
        "four seeds on.",
    )


def _whisker(
    axes: Axes, place: float, center: float, low: float, high: float, color: str, marker: str = "o"
) -> None:
    if isfinite(low):
        axes.plot([low, high], [place, place], color=color, linewidth=1.6)
    axes.plot(center, place, marker=marker, color=color, markersize=5.5)


def group_scatter(study: Study, look: Look) -> Drawing | None:
    """Figure 4: accuracy (top) and gap (bottom) against stability, a column per group."""
    groups = study.groups
    if not 2 <= len(groups) <= 5:
        return None
    made = figure(11, 7.2)
    grid = made.subplots(2, len(groups))
    for column, (name, arms) in enumerate(groups.items()):
        pool = [row for row in study.good if row["variant"] in arms]
        events = [row for row in pool if number(row.get("events")) > 0]
        for line, y in enumerate(("best_test_accuracy", "generalization_gap")):
            axes = grid[line, column]
            for variant in arms:
                rows = [row for row in pool if row["variant"] == variant]
                _points(axes, rows, look.color(variant), look.marker(variant), y)
            regression(axes, events, "mean_stability", y)
            _title(axes, name if line == 0 else "", events, y)
            axes.set_xlabel("mean stability (%)")
    grid[0, 0].set_ylabel("best test accuracy (%)")
    grid[1, 0].set_ylabel("generalization gap (points)")
    handles = [
        look.handle(v, legend_label(study, v), points=True)
        for arms in groups.values()
        for v in arms
    ]
    legend_below(made, handles, STABILITY)
    return Drawing(
        made,
        "Accuracy and gap against stability, by group",
        "One point per run. Lines and coefficients (95% intervals) are about runs with events.",
    )
