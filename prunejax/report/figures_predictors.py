"""What predicts generalization: measures ranked over a grid of models.

Bars of Kendall's tau, scatters of the first measures, the axes' own tau, information.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from prunejax.measures import pair_information, ranking_table, statistics
from prunejax.measures.columns import number
from prunejax.report import contrast, ranking
from prunejax.report.figures import Drawing
from prunejax.report.names import apart
from prunejax.report.ranking import Grid
from prunejax.report.results import Row, Study
from prunejax.report.style import (
    COLORS,
    GREY,
    WIDTH,
    Look,
    legend,
    line_handle,
    nth,
    panel,
)
from prunejax.report.words import minus, name

SHOWN = 3  # scatters
CROWD = 22  # names side by side from here on would lie on each other
TITLES = {
    "test_loss": "test loss",
    "test_error": "test error",
    "loss_gap": "test loss less train loss",
    "error_gap": "test error less train error",
}
PRUNABLE = {"loss + 0.1": "prunability_absolute", "loss x 1.1": "prunability"}  # at the widths
Rows = Sequence[dict[str, Any]]


def _bars(rows: Rows, target: str) -> Figure:
    """Tau-a of every measure with its interval, sorted."""
    made, axes = panel(1.0 + 0.2 * len(rows), xlabel=f"Kendall's tau-a with {TITLES[target]}")
    for place, row in enumerate(rows):
        value, low, high = (row[c] for c in ("tau_a", "tau_a_low", "tau_a_high"))
        if not isfinite(value):
            continue
        sure = isfinite(low) and low * high > 0  # the interval leaves out 0
        color = COLORS[0] if row["measure"].startswith("prunability") else COLORS[4]
        axes.barh(place, value, color=color, alpha=0.85 if sure else 0.35, height=0.7)
        if isfinite(low):
            axes.plot([low, high], [place, place], color="black", linewidth=1.1)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(rows)), _labels(rows), fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-1, 1)
    axes.grid(axis="y", visible=False)
    return made


def _label(row: dict[str, Any], text: str = "") -> str:
    """The measure (or `text` for it), with the number of models where some have no value."""
    return (text or name(row["measure"])) + (f" (n = {row['n']})" if row["left_out"] else "")


def _labels(rows: Rows) -> list[str]:
    """The measures as a figure has room for."""
    names = apart([name(row["measure"]) for row in rows], 34)
    return [_label(row, text) for row, text in zip(rows, names, strict=True)]


def _widest(grid: Grid, keep: np.ndarray) -> str:
    """The axis along which the mean test loss differs most."""
    y = grid.targets["test_loss"][keep]

    def spread(axis: str) -> float:
        column = [v for v, k in zip(grid.axes[axis], keep, strict=True) if k]
        codes = pair_information.codes(column)
        means = [y[codes == c].mean() for c in range(int(codes.max()) + 1)] if codes.size else [0.0]
        return float(max(means) - min(means))

    return max(grid.axes, key=spread)


def _levels(values: Sequence[Any]) -> list[Any]:
    found = list(dict.fromkeys(values))
    return sorted(found, key=lambda v: (v is None, str(type(v)), v if v is not None else 0))


def _scatter(grid: Grid, measure: str, axis: str, levels: Sequence[Any]) -> Figure:
    made, axes = panel(3.2, xlabel=name(measure), ylabel="test loss (nats)")
    x, y = grid.measures[measure], grid.targets["test_loss"]
    for i, (a, b) in enumerate(zip(x, y, strict=True)):
        place = levels.index(grid.axes[axis][i])
        color, marker = nth(place)
        axes.plot(
            [a], [b], marker, color=color, markersize=5,
            markerfacecolor=color if grid.fit.keep[i] else "white",
        )  # fmt: skip
    axes.locator_params(nbins=5)
    axes.margins(0.06)
    return made


def _table(title: str, columns: Sequence[str], names: Sequence[str], cells: np.ndarray) -> Figure:
    """A matrix of numbers in [-1, 1] with colours."""
    crowded = columns == names and len(names) > CROWD
    words = 3 if crowded else max(map(len, columns), default=1)
    size = 0.62 + 0.19 * len(names) + 0.06 * words
    made = Figure(figsize=(WIDTH, size), dpi=150, layout="constrained")
    axes = made.subplots()
    drawn = axes.imshow(cells, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axes.grid(visible=False)
    axes.set_yticks(range(len(names)), apart(names, 34), fontsize=7)
    if crowded:
        axes.set_xticks([])
        axes.set_xlabel("the same, in the order of the rows", fontsize=7)
    else:
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
    if len(columns) <= 10:
        for i, j in np.ndindex(*cells.shape):
            if isfinite(cells[i, j]):
                axes.text(
                    j, i, minus(f"{cells[i, j]:.2f}"), ha="center", va="center", fontsize=6.5,
                    color=contrast.upon(drawn.to_rgba(cells[i, j])),
                )  # fmt: skip
    made.suptitle(title, fontsize="medium")  # wider than the cells
    return made


def sentence(row: dict[str, Any]) -> str:
    """`L2 norm (n = 23) +0.71 [0.60, 0.79]`."""
    text = f"{_label(row)} {minus(format(row['tau_a'], '+.2f'))}"
    if isfinite(row["tau_a_low"]):
        text += minus(f" [{row['tau_a_low']:.2f}, {row['tau_a_high']:.2f}]")
    return text


def _strongest(grid: Grid, rows: Rows) -> list[dict[str, Any]]:
    """By the size of tau, once of measures that are the same number in every model."""
    found: dict[tuple[float, ...], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda r: -abs(r["tau_a"])):
        # One number under two names, to six decimals.
        found.setdefault(tuple(np.round(grid.measures[row["measure"]], 6)), row)
    return list(found.values())


def first_lines(grid: Grid, rows: Rows) -> list[str]:
    """What stands first on the page of a grid: the strongest measures, and prunability."""
    keep = grid.fit.keep
    models = "fit" if keep.sum() >= ranking.LEAST else "all"
    lines = []
    chosen = [v for v, k in zip(grid.variants, keep, strict=True) if k or models == "all"]
    arms = len(set(chosen))
    for target in ("test_loss", "test_error"):
        known = [r for r in ranking.chosen(rows, target, models) if isfinite(r["tau_a"])]
        strongest = _strongest(grid, known)[:3]
        own = [r for r in known if r["measure"] == "prunability" and r not in strongest]
        if known:
            rest = f", {grid.fit.removed} of {len(keep)} do not" if grid.fit.removed else ""
            of = f"{keep.sum()} networks that fit{rest}" if models == "fit" else "all networks"
            sure = any(isfinite(r["tau_a_low"]) for r in known)
            after = " [95 %]" if sure else f", too few configurations ({arms}) for intervals"
            text = "; ".join(sentence(r) for r in [*strongest, *own])
            lines.append(f"Kendall's tau with {TITLES[target]} over {of}{after}: {text}.")
    return lines


def predictors(study: Study, _look: Look) -> Drawing | None:
    """The statistics page of a grid: bars, scatters, axes, information."""
    found = ranking.of(study)
    if found is None:
        return None
    grid, rows = found
    keep = grid.fit.keep
    models = "fit" if keep.sum() >= ranking.LEAST else "all"
    by_loss = [r for r in ranking.chosen(rows, "test_loss", models) if isfinite(r["tau_a"])]
    by_error = [r for r in ranking.chosen(rows, "test_error", models) if isfinite(r["tau_a"])]
    if not by_loss:
        return None
    axis = _widest(grid, keep if models == "fit" else np.ones(len(keep), bool))
    levels = _levels(grid.axes[axis])
    strongest = _strongest(grid, by_loss)
    shown = ["prunability"] if "prunability" in grid.measures else []
    shown += [r["measure"] for r in strongest if r["measure"] not in shown]
    panels = [_bars(by_loss, "test_loss"), *([_bars(by_error, "test_error")] if by_error else [])]
    panels += [_scatter(grid, m, axis, levels) for m in shown[:SHOWN]]
    handles = [line_handle(f"{axis} = {x}", *nth(i), "none") for i, x in enumerate(levels)]
    panels.append(legend(handles))
    names = [r["measure"] for r in by_loss]
    along = [a for a in grid.axes if any(isfinite(r[f"psi_{a}"]) for r in by_loss)]
    psi = np.array([[r[f"psi_{a}"] for a in along] + [r["Psi"], r["K"]] for r in by_loss])
    words = _labels(by_loss)
    panels.append(_table("tau along each axis, Psi; K", [*along, "Psi", "K"], words, psi))
    values = {n: grid.measures[n][keep if models == "fit" else slice(None)] for n in names}
    finite = {n: v for n, v in values.items() if np.isfinite(v).all()}
    order, shared = pair_information.mutual_matrix(finite)
    labels = [name(n) for n in order]
    panels.append(_table("what measures share of each other's order", labels, labels, shared))
    missing = ", of those that every model has" if len(finite) < len(names) else ""
    best = "; ".join(sentence(r) for r in strongest[:4])
    return Drawing(
        panels,
        "What predicts generalization",
        f"{grid.fit.sentence}. {next(iter(values.values())).size} models ({models}), resampled by "
        f"configuration ({ranking_table.DRAWS} draws, 95 %). Bars: Kendall's tau-a; pale where the "
        "interval holds 0 or there is none (fewer than 8 configurations, or a complete order). "
        "Scatters: test loss, hollow for models that do not fit. Along each axis: tau over pairs "
        "that differ there alone (of any seeds), and Psi, their mean; K: normalized mutual "
        "information with the order of test losses, the least over sets of up to two axes (0 "
        "nothing, 1 all; too large where models are few). Last: mutual information of the orders "
        f"of two measures over the root of their entropies{missing}. All statistics, without the "
        "filter too, are in predictors.csv.",
        f"With test loss: {best}.",
    )


def _by_width(study: Study, rows: Sequence[Row]) -> dict[float, list[int]]:
    """Model width -> places of its runs."""
    found: dict[float, list[int]] = {}
    for i, row in enumerate(rows):
        width = study.settings(row["variant"], "model").get("width")
        if width is not None:
            found.setdefault(float(width), []).append(i)
    return dict(sorted(found.items()))


def double_descent(study: Study, _look: Look) -> Drawing | None:
    """Train loss, test loss, test error and prunability against width, in one panel."""
    rows = [row for row in study.good if row.get("final_train_loss")]
    by_width = _by_width(study, rows)
    if len(by_width) < 4:
        return None
    last = [ranking.ends(study)[row["run"]] for row in rows]
    losses = {
        "train loss": [number(row["final_train_loss"]) for row in rows],
        "test loss": [number(end["test_loss"]) for end in last],
    }
    shares = {"test error": [1 - number(end["test_accuracy"]) for end in last]}
    for text, column in PRUNABLE.items():
        if all(row.get(column) for row in rows):
            shares[f"prunability, {text}"] = [number(row[column]) for row in rows]
    made, axes = panel(3.6, xlabel="width (log scale)", ylabel="loss (nats)")
    right = axes.twinx()
    right.grid(visible=False)
    right.spines["right"].set_visible(True)
    handles, found = [], {}
    for index, (title, values) in enumerate((losses | shares).items()):
        left = title in losses
        line = "-" if left else "--"
        found[title] = _curve(axes if left else right, by_width, values, COLORS[index], line)
        side = "left" if left else "right"
        handles.append(line_handle(f"{title} ({side})", COLORS[index], "o", line))
    axes.set_ylim(bottom=0)
    right.set_ylabel("share")
    right.set_ylim(0, 1)
    test = found["test loss"]
    peak = statistics.largest(test)
    largest = "" if peak is None else f"largest, {test[peak]:.2f} nats, at width {peak:g}"
    return Drawing(
        [made, legend(handles)],
        "Double descent",
        "Mean over seeds (line), every seed (dot), 95 % interval where there are enough. "
        "Prunability: the smallest share of weights, largest magnitudes first, that keeps the "
        "training loss within the tolerance.",
        f"Test loss is {largest or 'finite at no width'}.",
    )


def _curve(
    axes: Any, by_width: dict[float, list[int]], values: Sequence[float], color: str, line: str
) -> dict[float, float]:
    means = {w: statistics.mean([values[i] for i in places]) for w, places in by_width.items()}
    for w, places in by_width.items():
        axes.plot([w] * len(places), [values[i] for i in places], ".", color=color, alpha=0.4)
        if isfinite(means[w].low) and means[w].n >= 4:
            axes.plot([w, w], [means[w].low, means[w].high], color=color, linewidth=1.1)
    middle = [m.mean for m in means.values()]
    axes.plot(list(means), middle, "o", linestyle=line, color=color, markersize=4)
    axes.set_xscale("log")
    shown = list(by_width)
    axes.set_xticks(shown, [f"{w:g}" for w in shown], fontsize=8)
    axes.set_xticks([], minor=True)
    return {w: m.mean for w, m in means.items()}
