"""Recall distortion class by class: balances against each other, recalls as a heat map."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunejax.measures import recall, statistics
from prunejax.measures.columns import by_variant
from prunejax.report import contrast
from prunejax.report.figures import Drawing
from prunejax.report.figures_density import live_share
from prunejax.report.figures_recall import distortions, families
from prunejax.report.results import Study
from prunejax.report.style import GREY, WIDTH, Look, legend, line_handle, nth, panel

Runs = Mapping[str, recall.Distortion]  # by seed


def _families(study: Study, found: Mapping[str, Runs]) -> dict[str, list[str]]:
    rows = by_variant(study.good)
    return families(study, sorted(found, key=lambda v: -live_share(rows[v])))


def _mean(runs: Runs, name: str) -> np.ndarray:
    return statistics.means([getattr(d, name) for d in runs.values()])


def _same_classes(runs: Runs) -> bool:
    return len({d.classes for d in runs.values()}) == 1


def balance(study: Study, _look: Look) -> Drawing | None:
    """Normalized balance of pruned against dense, a point a class, a line an arm."""
    found = {v: runs for v, runs in distortions(study).items() if _same_classes(runs)}
    if not found:
        return None
    panels: list[Figure] = []
    sentences: list[str] = []
    handles: dict[str, Line2D] = {}
    for name, arms in _families(study, found).items():
        words = {"xlabel": "normalized balance, dense", "ylabel": "normalized balance, pruned"}
        made, axes = panel(3.6, title=name, **words)
        told = ""
        for index, variant in enumerate(arms):
            color, marker = nth(index)
            x, y = statistics.finite(*(_mean(found[variant], n) for n in ("nb_dense", "nb_pruned")))
            if not x.size:
                continue
            slope = recall.slopes(x, y)[0]
            axes.plot(x, y, linestyle="none", marker=marker, color=color, markersize=4)
            span = x[[x.argmin(), x.argmax()]]
            axes.plot(span, slope * span, color=color, linewidth=1.1)
            ending = variant.removeprefix(name).strip("-_=") or variant
            handles.setdefault(ending, line_handle(ending, color, marker))
            told = f"{variant} {slope:.2f}"
        sentences += [told] if told else []
        axes.axline((0, 0), slope=1, color=GREY, linestyle="--", linewidth=1)
        axes.locator_params(axis="x", nbins=5)
        panels.append(made)
    return Drawing(
        [*panels, legend(list(handles.values()), "ending of the arm's label")],
        "Balance of classes, pruned against dense",
        "A point a class: recall over accuracy, less one, mean over seeds; the line through the "
        "origin that fits; dashed: no distortion. Slopes of means over seeds: the means of "
        "slopes are in the figure Recall distortion.",
        "Slopes at the lowest density of each: " + "; ".join(sentences) + ".",
    )


def classes(study: Study, _look: Look) -> Drawing | None:
    """Recalls by class (row) in the dense network and in each arm (column)."""
    found = {v: runs for v, runs in distortions(study).items() if _same_classes(runs)}
    if not found:
        return None
    panels, sentences = [], []
    for name, arms in _families(study, found).items():
        columns = [_mean(found[arms[0]], "recall_dense")]
        columns += [_mean(found[variant], "recall_pruned") for variant in arms]
        endings = [variant.removeprefix(name).strip("-_=") or variant for variant in arms]
        kinds = next(iter(found[arms[0]].values())).classes
        panels.append(_map(100 * np.array(columns).T, ["dense", *endings], kinds, name))
        lowest = [100 * float(column.min()) for column in columns]
        sentences.append(f"{name} from {lowest[0]:.0f}% to {lowest[-1]:.0f}%")
    return Drawing(
        panels,
        "Recall of every class",
        "Percent of the class's test examples that are recognized, mean over seeds; dense network "
        "and arms from the densest on. classes.csv has every run.",
        "The lowest mean recall of a class, dense and at the lowest density: "
        + "; ".join(sentences)
        + ".",
    )


def _map(values: np.ndarray, columns: Sequence[str], kinds: Sequence[int], title: str) -> Figure:
    made, axes = panel(
        max(2.2, 0.9 + 0.27 * len(kinds)), title=f"{title}: recall, %", ylabel="class"
    )
    drawn = axes.imshow(values, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    axes.grid(visible=False)
    if len(kinds) <= 20 and len(columns) <= 9:
        size = min(9.0, 62 * WIDTH / len(columns) / 8)
        for (i, j), x in np.ndenumerate(values):
            axes.text(
                j, i, f"{x:.0f}", ha="center", va="center", fontsize=size,
                color=contrast.upon(drawn.to_rgba(x)),
            )  # fmt: skip
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(kinds)), [str(k) for k in kinds])
    return made
