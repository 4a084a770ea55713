"""Pruning before training: accuracy against what is kept beside its control, and trackers."""

import re
from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
from matplotlib.figure import Figure

from prunejax.measures import statistics
from prunejax.measures.columns import by_variant, grouped, number, pairs, value
from prunejax.report import tables, words
from prunejax.report.figures import Drawing
from prunejax.report.figures_density import percents, ticks_apart
from prunejax.report.results import Row, Study
from prunejax.report.style import (
    BASELINE,
    COLORS,
    Look,
    legend,
    line_handle,
    nth,
    panel,
)

FITS = 0.99  # of the training set: points below are hollow
KINDS = ("keep", "scaled", "rescaled", "magnitude", "snip", "during")
WORDS = {
    "keep": "random mask",
    "scaled": "control: dense, start times √p",
    "rescaled": "random mask, weights over √p",
    "magnitude": "largest initial weights",
    "snip": "SNIP",
    "during": "random, in ten events",
}

Points = dict[float, list[Row]]  # share kept -> rows of the arm's runs


def _value(text: str) -> float:
    return float(text.replace("_", "."))


def arms(study: Study) -> dict[float, dict[str, Points]]:
    """Initial standard deviation -> kind of arm -> share kept -> runs, from labels std=S-KIND=P.

    The dense arm keep=1 is the end of both the curve of masks and that of its control.
    """
    found: dict[float, dict[str, Points]] = {}
    for label, rows in study.good_of.items():
        hit = re.fullmatch(r"std=(\d+(?:_\d+)?)-(\w+)=(\d+(?:_\d+)?)", label)
        if hit and hit[2] in KINDS:
            kinds = found.setdefault(_value(hit[1]), {})
            kinds.setdefault(hit[2], {})[_value(hit[3])] = rows
    for kinds in found.values():
        dense = kinds.get("keep", {}).get(1.0)
        if dense and "scaled" in kinds:
            kinds["scaled"][1.0] = dense
    return {std: found[std] for std in sorted(found, reverse=True)}


def _mean(rows: Sequence[Row]) -> float:
    return statistics.center(percents(rows))  # of the runs that have a number


def _fits(rows: Sequence[Row]) -> bool:
    found = [value(row, "final_train_accuracy") for row in rows]
    return not statistics.center(found) < FITS  # where it was not recorded nothing is known


def _style(kind: str) -> tuple[str, str]:
    color, marker = nth(KINDS.index(kind))
    return BASELINE if kind == "scaled" else color, marker


def _panel(std: float, kinds: Mapping[str, Points], guides: Sequence[float]) -> Figure:
    made, axes = panel(
        3.6, title=f"initial standard deviation {std:g}", ylabel="final test accuracy, %",
        xlabel="p, first-layer weights kept (%, log scale)",
    )  # fmt: skip
    for p in guides:
        axes.axvline(100 * p, color="0.6", linestyle="--", linewidth=1, zorder=0)
    for index, kind in enumerate(k for k in KINDS if k in kinds):
        color, marker = _style(kind)
        points = sorted(kinds[kind].items())
        means = [statistics.mean(percents(rows)) for _, rows in points]
        xs = [100 * p for p, _ in points]
        if kind in ("keep", "scaled"):
            for x, (_, rows) in zip(xs, points, strict=True):
                ys = percents(rows)
                axes.plot([x] * len(ys), ys, ".", color=color, markersize=2.5, alpha=0.4)
            low, high = [m.low for m in means], [m.high for m in means]
            axes.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
            line = "--" if kind == "scaled" else "-"
            axes.plot(xs, [m.mean for m in means], line, color=color, linewidth=1.4)
        for x, (_, rows), mean in zip(xs, points, means, strict=True):
            axes.plot(
                [x], [mean.mean], marker, color=color, markersize=6, zorder=3 + index,
                markerfacecolor=color if _fits(rows) else "white",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.invert_xaxis()
    shown = ticks_apart((100 * p for points in kinds.values() for p in points), 1.45)
    axes.set_xticks(shown, [f"{x:g}" for x in shown])
    axes.set_xticks([], minor=True)
    return made


def _gain(kinds: Mapping[str, Points], a: tuple[str, float], b: tuple[str, float]) -> str:
    """`+10.0 [+7.5, +12.5]` points, paired by seed."""
    rows = [kinds.get(kind, {}).get(p, []) for kind, p in (a, b)]
    found = statistics.paired(*pairs(rows[0], rows[1], "final_test_accuracy"))
    if not isfinite(found.difference):
        return ""
    text = words.minus(f"{100 * found.difference:+.1f}")
    return " ".join([text, words.interval(100 * found.low, 100 * found.high, 1, "+")]).strip()


def _verdicts(std: float, kinds: Mapping[str, Points]) -> list[str]:
    """Where no mask helps on average, and where the smaller start beats the mask at every p."""
    means = {
        kind: {p: _mean(rows) for p, rows in kinds.get(kind, {}).items()}
        for kind in ("keep", "scaled")
    }
    keep, scaled = means["keep"], means["scaled"]
    inside = [p for p in keep if p < 1]
    found = []
    if len(inside) > 1 and max(keep[p] for p in inside) < keep[1.0]:
        found.append(f"at this start of {std:g} no mask is better than dense on average")
    if len(inside) > 1 and all(p in scaled and scaled[p] > keep[p] for p in inside):
        found.append(f"scaling the start of {std:g} is better than pruning on average, at every p")
    return found


def before_training(study: Study, _look: Look) -> Drawing | None:
    """Accuracy against the share of weights kept before training, a panel for each start."""
    found = arms(study)
    if not any("keep" in kinds and len(kinds["keep"]) > 1 for kinds in found.values()):
        return None
    swept = {std: kinds for std, kinds in found.items() if len(kinds.get("keep", {})) > 2}
    used = [k for k in KINDS if any(k in kinds for kinds in (swept or found).values())]
    lines = {"keep": "-", "scaled": "--"}
    handles = [line_handle(WORDS[k], *_style(k), lines.get(k, "none")) for k in used]
    guides = tuple(float(p) for p in study.report_option("guides", ()))
    if guides:
        handles.append(line_handle("order of magnitude, remembered", "0.6", "", "--"))
    sentences = []
    seeds = len({row["seed"] for row in study.good})
    for std, kinds in found.items():
        inside = [p for p in kinds.get("keep", {}) if p < 1]
        if not inside or 1.0 not in kinds["keep"]:
            continue
        # Picked by its own mean, which is too large for that: the gain of the best of several.
        best = statistics.largest({p: _mean(kinds["keep"][p]) for p in inside})
        if best is None:
            continue
        text = f"start {std:g}: the best mask (p = {best:g}) against dense "
        text += _gain(kinds, ("keep", best), ("keep", 1.0))
        control = _gain(kinds, ("scaled", best), ("keep", best))
        sentences.append(text + (f", its control against it {control}" if control else ""))
        sentences += _verdicts(std, kinds)
    return Drawing(
        [
            *(_panel(std, kinds, guides) for std, kinds in (swept or found).items()),
            legend(handles),
        ],
        "Pruning before training and its control",
        "Random masks shrink the first answer to noise by √p. The control does that and no more: "
        "a dense network that starts √p smaller. Mean over seeds with its 95 % interval, every "
        f"seed as a dot; hollow: less than {100 * FITS:g} % of the training set is fitted, where "
        "test accuracy mixes two effects. Masks of a seed are nested."
        + " Dashed grey: rates of the analysis as remembered, orders of magnitude."
        * bool(guides),
        f"Points of test accuracy, paired by seed [95 %], {words.count(seeds, 'seed')}: "
        f"{'; '.join(sentences)}.",
    )


def _rows(study: Study) -> dict[str, list[Row]]:
    """Arm -> rows of `trackers.csv`."""
    return by_variant(tables.rows(study, "trackers"))


def _mean_curve(rows: Sequence[Row], column: str) -> tuple[list[int], list[float]]:
    """Mean over runs at each step, lines between those of a run; one that has stopped stays."""
    steps = sorted({int(row["step"]) for row in rows})
    at = {
        run: {int(row["step"]): number(row[column]) for row in own}
        for run, own in grouped(rows, "run").items()
    }
    curves = [np.interp(steps, list(own), list(own.values())) for own in at.values()]
    return steps, statistics.means(curves).tolist()


def trackers(study: Study, _look: Look) -> Drawing | None:
    """How the neurons' answers to signal and to noise grow: dense, best mask, smallest mask."""
    recorded, found = _rows(study), arms(study)
    kinds = next((k for k in found.values() if len(k.get("keep", {})) > 1), None)
    if not recorded or kinds is None:
        return None
    keep = kinds["keep"]
    best = statistics.largest({p: _mean(rows) for p, rows in keep.items()})
    shares = list(dict.fromkeys(p for p in (max(keep), best, min(keep)) if p is not None))
    panels = []
    lines = {"signal": "signal", "noise_own_max": "noise, own class (largest)",
             "noise_own_mean": "noise, own class (mean)"}  # fmt: skip
    for p in shares:
        rows = recorded.get(keep[p][0]["variant"], [])
        if not rows or not set(lines) <= set(rows[0]):
            return None
        kept = _mean_curve(rows, "signal_neurons")[1][0]
        title = f"p = {p:g}: the signal reaches {kept:.1f} neurons a class"
        made, axes = panel(
            3.2, title=title, xlabel="training step", ylabel="<w, signal> and <w, noise>"
        )
        for index, column in enumerate(lines):
            axes.plot(*_mean_curve(rows, column), color=COLORS[index], linewidth=1.4)
        panels.append(made)
    handles = [line_handle(text, COLORS[i]) for i, text in enumerate(lines.values())]
    return Drawing(
        [*panels, legend(handles)],
        "Answers to signal and noise",
        "Of the neurons of each class: the largest answer to the class's mean signal, and answers "
        "to the noise of its training examples. Mean over seeds; one that has stopped stays as it "
        "is. "
        "The table trackers.csv has other classes too.",
        f"Answers over steps for p = {', '.join(f'{p:g}' for p in shares)}.",
    )
