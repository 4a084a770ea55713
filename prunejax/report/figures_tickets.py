"""Lottery tickets: accuracy and early stop against the share kept, overlap of masks."""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunejax.measures import statistics
from prunejax.measures.columns import pairs
from prunejax.report import levels
from prunejax.report.figures import Drawing
from prunejax.report.figures_density import ACCURACY, density_axis, family, percents
from prunejax.report.levels import Level
from prunejax.report.results import Study
from prunejax.report.style import (
    COLORS,
    GREY,
    Look,
    band,
    legend,
    line_handle,
    nth,
    panel,
    plain_numbers,
    seeds,
)
from prunejax.report.words import interval, minus

_EXTENDED = "extended"  # the control that sentences on generalization need
_KEPT = "weights kept, % of those that can be pruned"
Series = Mapping[str, Sequence[Level]]


def _levels(study: Study) -> dict[str, Level]:
    """Those on one data set: accuracies on another, and steps to them, compare with none here."""
    return {v: level for v, level in levels.of(study).items() if v in study.comparable}


def _series(study: Study) -> tuple[dict[str, list[Level]], dict[str, Level]]:
    """(families of pruned arms, most kept first; the last dense arm of each further family)."""
    pruned: dict[str, list[Level]] = {}
    dense: dict[str, Level] = {}
    for variant, level in _levels(study).items():
        if level.keep < 1:
            pruned.setdefault(family(variant), []).append(level)
        else:  # of a chain of dense trainings the last one has had all steps
            dense[family(variant)] = level
    for found in pruned.values():
        found.sort(key=lambda level: -level.keep)
    return pruned, {k: v for k, v in dense.items() if v.variant != study.baseline}


def _against_kept(
    series: Series,
    bands: Sequence[tuple[Level, str, str]],
    values: Callable[[Level], Sequence[float] | np.ndarray],
    height: float,
    word: str,
) -> tuple[list[Figure], dict[str, list[tuple[float, float]]]]:
    """A panel with mean, interval and seeds of each family and its legend; (keep, mean) of each.

    `bands`: dense arms, their colours and lines.
    """
    made, axes = panel(height, ylabel=word)
    handles: list[Line2D] = []
    drawn = {}
    for index, (name, arms) in enumerate(series.items()):
        color, marker = nth(index)
        points = [(100 * level.keep, values(level)) for level in arms]
        told = name.replace("_", " ")
        drawn[told] = seeds(axes, points, color, marker, markersize=4.5)
        handles.append(line_handle(told, color, marker))
    for level, color, line in bands:
        band(axes, handles, level.variant, values(level), color, line, alpha=0.12)
    density_axis(axes, [x for found in drawn.values() for x, _ in found], _KEPT)
    return [made, legend(handles)], drawn


def accuracy(study: Study, _look: Look) -> Drawing | None:
    """Final accuracy against the share kept, with controls, and dense arms as bands."""
    pruned, dense = _series(study)
    if not pruned:
        return None
    base = levels.of(study).get(study.baseline)
    bands = [(base, GREY, "--")] if base else []
    bands += [(x, c, ":") for x, c in zip(dense.values(), ("#000000", COLORS[4]), strict=False)]
    panels, drawn = _against_kept(pruned, bands, lambda level: percents(level.rows), 4.2, ACCURACY)
    lowest = "; ".join(
        f"{name} {found[-1][1]:.1f}% at {found[-1][0]:.2g}% kept" for name, found in drawn.items()
    )
    return Drawing(
        panels,
        "Accuracy of tickets and their controls",
        f"Mean over seeds{study.where} (marker), every seed (dot), 95 % interval of the mean "
        "(line). Bands: dense networks, their mean and interval. The table Levels has the counts. "
        + _gain(study),
        f"At the smallest share of each: {lowest}.",
    )


def _gain(study: Study) -> str:
    """What may be said of tickets that beat the dense network: nothing without longer training."""
    found = _levels(study)
    longer = [level for name, level in found.items() if family(name) == _EXTENDED]
    chain = [level for name, level in found.items() if 0 < level.keep < 1 and name[-1].isdigit()]
    chain = [level for level in chain if family(level.variant) == "ticket"]
    if not longer or not chain or study.baseline not in found:
        return ""
    means = {x.variant: x.mean("final_test_accuracy") for x in chain}
    name = statistics.largest(means)
    if name is None:
        return ""
    best, words = found[name], []
    epochs = [study.settings(arm).get("epochs") for arm in (study.baseline, longer[-1].variant)]
    for other in (found[study.baseline], longer[-1]):
        a, b = pairs(best.rows, other.rows, "final_test_accuracy")
        test = statistics.paired(a, b)  # paired: runs of one seed share start and order
        reach = f" {interval(100 * test.low, 100 * test.high, sign='+')}" * isfinite(test.low)
        words.append(f"{minus(f'{100 * test.difference:+.1f}')}{reach} points to {other.variant}")
    return (
        f"The best ticket of the chain, {best.variant}, chosen by looking at all of them, differs "
        f"by {words[0]}, by {words[1]}, which trains for {epochs[1]} epochs where {study.baseline} "
        f"and each ticket train for {epochs[0]}."
    )


def early_stop(study: Study, _look: Look) -> Drawing | None:
    """The step of the lowest validation loss against the share kept."""
    pruned, _ = _series(study)
    known = {name: [level for level in arms if level.stops] for name, arms in pruned.items()}
    known = {name: arms for name, arms in known.items() if arms}
    if not known:
        return None
    base = levels.of(study).get(study.baseline)
    bands = [(base, GREY, "--")] if base else []
    word = "step of lowest validation loss"
    panels, drawn = _against_kept(
        known, bands, lambda level: [s[1] for s in level.stops.values()], 3.8, word
    )
    words = "; ".join(
        f"{name} {found[0][1]:.0f} at {found[0][0]:.2g}% kept, "
        f"{found[-1][1]:.0f} at {found[-1][0]:.2g}%"
        for name, found in drawn.items()
    )
    return Drawing(
        panels,
        "Early stop against the share kept",
        "Training step after which the validation loss is lowest (Frankle and Carbin 2019)"
        f"{study.where}: mean, every seed, 95 % interval. Epochs are what is resolved; a step at "
        "the end of training says that the loss still fell.",
        f"Early-stop step: {words}.",
    )


def overlap(study: Study, _look: Look) -> Drawing | None:
    """Jaccard index of the masks of two seeds against that of chance; densities of layers."""
    pruned, _ = _series(study)
    arms = pruned.get("ticket") or next(iter(pruned.values()), [])
    if not arms or not isfinite(arms[0].overlap()[0]):
        return None
    made, axes = panel(3.8, ylabel="Jaccard index of two seeds' masks")
    xs = [100 * level.keep for level in arms]
    found, chance = zip(*(level.overlap() for level in arms), strict=True)
    axes.plot(xs, found, color=COLORS[0], marker="o", markersize=4.5)
    axes.plot(xs, chance, color=GREY, linestyle="--")
    density_axis(axes, xs, _KEPT)
    handles = [
        line_handle(f"masks of {family(arms[0].variant)}s", COLORS[0], "o"),
        line_handle("chance, same counts by layer", GREY, line="--"),
    ]
    layers, more = _layers(arms, xs)
    return Drawing(
        [made, layers, legend([*handles, *more])],
        "Masks: overlap across seeds, and density of layers",
        f"First: mean over pairs of seeds{study.where} of live in both over live in either. "
        "Second: share of each layer that is live.",
        f"Overlap {found[0]:.3f} (chance {chance[0]:.3f}) at {xs[0]:.2g}% kept, {found[-1]:.3f} "
        f"({chance[-1]:.3f}) at {xs[-1]:.2g}%.",
    )


def _layers(arms: Sequence[Level], xs: Sequence[float]) -> tuple[Figure, list[Line2D]]:
    made, axes = panel(3.8, ylabel="live share of the layer, %")
    handles = []
    for index, layer in enumerate(arms[0].sizes, 1):
        color, marker = nth(index)
        shares = [100 * level.densities()[layer] for level in arms]
        axes.plot(xs, shares, color=color, marker=marker, markersize=4.5)
        handles.append(line_handle(layer, color, marker))
    density_axis(axes, xs, _KEPT)
    axes.set_yscale("log")
    plain_numbers(axes.yaxis)
    return made, handles
