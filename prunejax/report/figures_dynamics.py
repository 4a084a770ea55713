"""Accuracy over epochs: figure 2 (left), and figures 5 and D2 under noise."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunejax.measures import statistics
from prunejax.measures.summary import by_variant, number
from prunejax.report.figures import STABILITY, Drawing, legend_label
from prunejax.report.results import Study
from prunejax.report.style import FEW, Look, figure, legend_below

_MANY = 9  # more arms than this do not go into one panel


def accuracy_curves(study: Study, variant: str) -> tuple[np.ndarray, np.ndarray]:
    """(epochs [points], accuracies [runs, points]) with the drop of each event as two points.

    At an event's epoch the curve goes from the accuracy before to the one after pruning.
    """
    rows = by_variant(study.epochs).get(variant, [])
    runs = dict.fromkeys(row["run"] for row in rows)
    points: dict[str, dict[tuple[int, int], float]] = {run: {} for run in runs}
    for row in rows:
        points[row["run"]][int(row["epoch"]), 1] = number(row["test_accuracy"])
    for row in by_variant(study.events).get(variant, []):
        if row["run"] in points:
            points[row["run"]][int(row["epoch"]), 0] = number(row["pre_accuracy"])
            points[row["run"]][int(row["epoch"]), 1] = number(row["post_accuracy"])
    keys = sorted({key for run in points.values() for key in run})
    # A run without an event where others have one is flat there.
    curves = [
        [run.get(key, run.get((key[0], 1), np.nan)) for key in keys] for run in points.values()
    ]
    return np.array([key[0] for key in keys]), np.array(curves).reshape(len(runs), len(keys))


def draw_curves(axes: Axes, study: Study, look: Look, variants: Sequence[str]) -> list[np.ndarray]:
    """Mean accuracy over epochs of each arm, with its 95% band or its runs; returns the means."""
    means = []
    for variant in variants:
        epochs, curves = accuracy_curves(study, variant)
        if not curves.size:
            continue
        mean, low, high = (np.clip(part, 0, 1) for part in statistics.bands(curves))
        color = look.color(variant)
        axes.plot(epochs, 100 * mean, color=color, linestyle=look.line(variant), linewidth=1.3)
        if len(curves) < FEW:
            axes.plot(epochs, 100 * curves.T, color=color, alpha=0.35, linewidth=0.6)
        else:
            axes.fill_between(epochs, 100 * low, 100 * high, color=color, alpha=0.15, linewidth=0)
        means.append(mean[epochs >= 0.4 * epochs.max()])
    axes.set_xlabel("epoch (from 0)")
    axes.set_ylabel("test accuracy (%)")
    axes.margins(x=0.01)
    return means


def zoom(axes: Axes, means: Sequence[np.ndarray]) -> None:
    """Frames where the curves end, leaving out the start and the deepest dips."""
    found = np.concatenate([mean[np.isfinite(mean)] for mean in means] or [np.zeros(0)])
    if not found.size:
        return
    ends = [mean[np.isfinite(mean)][-1] for mean in means if np.isfinite(mean).any()]
    low, high = min(float(np.percentile(found, 15)), *ends), found.max()
    spread = max(high - low, 0.005)
    axes.set_ylim(100 * (low - 0.5 * spread), min(100 * (high + 0.3 * spread), 100.5))


def panels(study: Study, look: Look, arms: Mapping[str, Sequence[str]]) -> Figure:
    """One enlarged panel per entry of `arms` (title -> arms), each with its own legend."""
    wide = min(3, len(arms)) if len(arms) != 4 else 2
    lines = -(-len(arms) // wide)
    most = max(len(variants) for variants in arms.values())
    longest = max(len(legend_label(study, v)) for variants in arms.values() for v in variants)
    columns = max(1, min(3, int(110 / wide) // (longest + 8)))
    height = 3.8 + 0.22 * -(-most // columns)
    made = figure(11 if wide > 1 else 7.5, height * lines)
    grid = made.subplots(lines, wide, squeeze=False).flatten()
    for axes in grid[len(arms) :]:
        axes.set_visible(False)
    for axes, (title, variants) in zip(grid, arms.items(), strict=False):
        zoom(axes, draw_curves(axes, study, look, variants))
        axes.set_title(title)
        axes.legend(
            handles=[look.handle(v, legend_label(study, v)) for v in variants],
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.16),
            ncols=columns,
            fontsize=9,
            title=STABILITY,
            alignment="left",
        )
    return made


_CAPTION = (
    "Mean over seeds; bands are 95% confidence intervals of the mean (of fewer than four runs the "
    "runs themselves are drawn, as thin lines). Vertical drops are pruning "
    "events: test accuracy right before and right after, without training in between. "
)


def dynamics(study: Study, look: Look) -> Drawing | None:
    """Figure 2, left: accuracy over epochs."""
    recorded = by_variant(study.epochs)
    variants = [v for v in study.variants if v in recorded]
    if not variants:
        return None
    title = "Accuracy over epochs"
    arms = {name: [v for v in group if v in recorded] for name, group in study.groups.items()}
    arms = {name: group for name, group in arms.items() if group}
    if len(arms) == 1 and len(variants) > _MANY:
        arms = _by_target(study, variants)
    if len(arms) > 12:  # "Where the tradeoff holds" says it better
        return None
    if len(arms) > 1:
        made = panels(study, look, arms)
        return Drawing(made, title, _CAPTION + "Deep drops are cut off.")
    made = figure(11, 5.0)
    whole, near = made.subplots(1, 2)
    draw_curves(whole, study, look, variants)
    whole.set_title("whole training")
    zoom(near, draw_curves(near, study, look, variants))
    near.set_title("the same, enlarged near the final accuracy")
    legend_below(made, [look.handle(v, legend_label(study, v)) for v in variants], STABILITY)
    return Drawing(made, title, _CAPTION + "The right panel cuts off deep drops.")


def _by_target(study: Study, variants: Sequence[str]) -> dict[str, list[str]]:
    """Arms by target, the baseline in each."""
    names = {"S": "smallest scores", "R": "random", "L": "largest scores", None: "other arms"}
    found: dict[str, list[str]] = {}
    for variant in variants:
        if variant != study.baseline:
            target = study.attribute(variant, "target")
            title = f"target: {names.get(target, target)}" if target else "other arms"
            found.setdefault(title, []).append(variant)
    first = [study.baseline] if study.baseline in variants else []
    return {title: first + arms for title, arms in found.items()}


Arm = Mapping[str, Any]
NOISES: dict[str, Callable[[Arm], bool]] = {
    "zeroing for a while": lambda arm: arm["kind"] == "zero" and not _restores(arm),
    "Gaussian noise for a while": lambda arm: arm["kind"] == "gaussian",
    "zeroing, then restoring": lambda arm: arm["kind"] == "zero" and _restores(arm),
}


def _restores(arm: Arm) -> bool:
    return arm.get("restore") not in (None, "no")


def noise(study: Study, look: Look) -> Drawing | None:
    """Figures 5 and D2: accuracy over epochs under noise of several durations."""
    variants = [v for v in study.variants if v in by_variant(study.epochs)]
    kinds = {v: study.attribute(v, "kind") for v in variants}
    first = [v for v in variants if v == study.baseline]
    first += [v for v in variants if v not in first and kinds[v] == "prune"]
    arms = {
        title: [v for v in variants if v not in first and test(study.attributes[v])]
        for title, test in NOISES.items()
    }
    arms = {title: first + found for title, found in arms.items() if found}
    if not arms:
        return None
    return Drawing(
        panels(study, look, arms),
        "Accuracy over epochs under noise",
        _CAPTION + "Deep drops are cut off. If the gain of pruning comes from instability and not "
        "from having fewer weights, noise that lasts long enough does the same.",
    )
