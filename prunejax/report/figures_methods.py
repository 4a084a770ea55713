"""Ways of pruning side by side: cost, controls, densities by layer, what updates do over time."""

from collections.abc import Mapping, Sequence
from math import isfinite, nan

import numpy as np
from matplotlib.lines import Line2D

from prunejax.measures import statistics
from prunejax.measures.columns import by_variant, grouped, number, value
from prunejax.report.figures import Drawing, listed
from prunejax.report.figures_density import (
    ACCURACY,
    CONTROLS,
    family,
    looks,
    of_baseline,
    parts,
    percents,
)
from prunejax.report.names import apart
from prunejax.report.results import Study
from prunejax.report.style import (
    GREY,
    Look,
    band,
    legend,
    line_handle,
    panel,
    plain_numbers,
)


def flops(study: Study, _look: Look) -> Drawing | None:
    """Final accuracy against the multiply-adds of training, relative to dense training."""
    lines: dict[str, list[tuple[float, statistics.Mean]]] = {}
    for variant, rows in study.good_of.items():
        cost = statistics.center([value(row, "training_flops") for row in rows])
        if variant != study.baseline and isfinite(cost) and not parts(variant)[1]:
            mean = statistics.mean(percents(rows))
            lines.setdefault(family(variant), []).append((cost, mean))
    if not lines:
        return None
    word = "multiply-adds of training, relative to dense (log scale)"
    made, axes = panel(3.8, xlabel=word, ylabel=ACCURACY)
    handles: list[Line2D] = []
    for name, (color, marker, _) in looks(list(lines)).items():
        points = sorted(lines[name], key=lambda point: point[0])
        for x, mean in points:
            if isfinite(mean.low):
                axes.plot([x, x], [mean.low, mean.high], color=color, linewidth=1)
        means = [mean.mean for _, mean in points]
        axes.plot([x for x, _ in points], means, color=color, marker=marker, markersize=5)
        handles.append(line_handle(name, color, marker))
    band(axes, handles, study.baseline, of_baseline(study))
    axes.set_xscale("log")
    plain_numbers(axes.xaxis)
    cheapest = [(name, 100 * min(x for x, _ in points)) for name, points in lines.items()]
    return Drawing(
        [made, legend(handles)],
        "Accuracy against the cost of training",
        "Multiply-adds that hardware would do which skips masked weights, forward and backward, "
        "relative to as many dense steps: for each layer twice its mean density for the forward "
        "pass and the inputs' gradient, and once for the weights' gradient, which is dense where "
        "dead weights train or growth looks at it. Scores before training are not counted. Masked "
        "training here takes as long as dense training.",
        f"Least cost of each, relative to dense: {listed(cheapest)}.",
    )


def sanity(study: Study, _look: Look) -> Drawing | None:
    """Each method with its controls and variants, at one density, beside each other."""
    runs = study.good_of
    groups: dict[str, dict[str, statistics.Mean]] = {}
    for variant, rows in runs.items():
        name, word, digits = parts(variant)
        if word and f"{name}-{digits}" in runs:
            of = groups.setdefault(f"{name}-{digits}", {})
            of.setdefault("", statistics.mean(percents(runs[f"{name}-{digits}"])))
            of[word] = statistics.mean(percents(rows))
    if not groups:
        return None
    made, axes = panel(1.0 + 0.42 * len(groups), xlabel=ACCURACY)
    words = [w for w in ("", *CONTROLS) if any(w in of for of in groups.values())]
    style, sentences = looks(words), []
    for place, (label, of) in enumerate(groups.items()):
        for word, mean in of.items():
            color, marker, _ = style[word]
            at = place + 0.7 * ((words.index(word) + 0.5) / len(words) - 0.5)  # in its own row
            if isfinite(mean.low):
                axes.plot([mean.low, mean.high], [at, at], color=color, linewidth=1.2)
            axes.plot(mean.mean, at, marker=marker, color=color, markersize=5, linestyle="none")
        beside = ", ".join(f"{w} {of[w].mean:.1f}%" for w in of if w)
        sentences.append(f"{label} {of[''].mean:.1f}% ({beside})")
    axes.set_yticks(range(len(groups)), list(groups))
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    for place in range(1, len(groups)):
        axes.axhline(place - 0.5, color=GREY, linewidth=0.4)
    handles = [line_handle(CONTROLS.get(w, "as it is"), *style[w][:2], "none") for w in words]
    return Drawing(
        [made, legend(handles)],
        "Controls and variants",
        "Mean over seeds and its 95 % interval. A mask whose shuffled form is as good chose only "
        "how dense layers are; one that is as good on fresh weights did not look at these weights.",
        "; ".join(sentences) + ".",
    )


def layers(study: Study, _look: Look) -> Drawing | None:
    """Densities by layer after training, at the density that most methods share."""
    plain = [row for row in study.layers if not parts(row["variant"])[1]]
    numbers = [parts(v)[2] for v in by_variant(plain)]
    if not any(numbers):
        return None
    common = max(dict.fromkeys(n for n in numbers if n), key=numbers.count)
    chosen = {v: rows for v, rows in by_variant(plain).items() if parts(v)[2] == common}
    names = list(dict.fromkeys(row["layer"] for rows in chosen.values() for row in rows))
    made, axes = panel(3.6, ylabel="live weights of the layer, %")
    handles, sentences = [], []
    for variant, (color, marker, line) in looks(list(chosen)).items():
        shares = [_share(chosen[variant], name) for name in names]
        axes.plot(range(len(names)), shares, color=color, marker=marker, linestyle=line, ms=4)
        handles.append(line_handle(variant, color, marker, line))
        sentences.append((variant, min((x for x in shares if isfinite(x)), default=nan)))
    axes.set_yscale("log")
    plain_numbers(axes.yaxis)
    upright = 90 * (sum(map(len, names)) > 40)  # they would stand on each other
    axes.set_xticks(range(len(names)), apart(names, 24), rotation=upright)
    dead = sum(number(row["dead_units"]) for row in plain)
    return Drawing(
        [made, legend(handles)],
        "Densities by layer",
        "Share of each layer's weights that is live after training, mean over seeds, arms that "
        f"end in -{common}. layers.csv has every run, and units on no live path ({dead:.0f} in "
        "all runs of these methods together).",
        f"Sparsest layer of each: {listed(sentences)}.",
    )


def _share(rows: Sequence[Mapping[str, str]], layer: str) -> float:
    own = [
        100 * number(r["live_weights"]) / number(r["weights"]) for r in rows if r["layer"] == layer
    ]
    return statistics.center(own)


def updates(study: Study, _look: Look) -> Drawing | None:
    """Over training: weights that were ever live, and how many of those grown survive."""
    sizes = {row["layer"]: number(row["weights"]) for row in study.costs}
    arms = {
        v: rows for v, rows in by_variant(study.updates).items() if any(r["survival"] for r in rows)
    }
    if not arms or not sizes:
        return None
    panels, style = [], looks(list(arms))
    ends = []
    for column, words in (
        ("ever_live", "weights that were ever live, %"),
        ("survival", "grown and not dropped next, %"),
    ):
        made, axes = panel(3.2, xlabel="training step", ylabel=words)
        for variant, (color, _, line) in style.items():
            steps, ys = _over_time(arms[variant], column, sizes)
            axes.plot(steps, ys, color=color, linestyle=line, linewidth=1.3)
            if column == "ever_live" and len(ys):
                ends.append((variant, float(ys[-1])))
        panels.append(made)
    handles = [line_handle(v, color, line=line) for v, (color, _, line) in style.items()]
    return Drawing(
        [*panels, legend(handles)],
        "Updates over training",
        "First: share of all prunable weights that was live in some training step so far (in-time "
        "over-parameterization rate). Second: of the weights grown at an update, those that the "
        "next one did not drop. Means over seeds; updates.csv has every layer.",
        f"Ever live at the last update: {listed(ends)}.",
    )


def _over_time(
    rows: Sequence[Mapping[str, str]], column: str, sizes: Mapping[str, float]
) -> tuple[list[int], list[float]]:
    """Steps, and there the percentage over layers in the mean over runs."""
    latest: dict[tuple[str, str], float] = {}
    found: dict[int, float] = {}
    at = grouped(rows, "step")
    for step in sorted(map(int, at)):
        own = at[str(step)]
        if column == "survival":
            known = [number(r["survival"]) for r in own if r["survival"]]
            if known:
                found[step] = 100 * float(np.mean(known))
            continue
        # a layer without an update keeps its last count
        latest |= {(r["run"], r["layer"]): number(r["ever_live"]) for r in own}
        runs = len({run for run, _ in latest})
        whole = runs * sum(sizes[layer] for layer in {layer for _, layer in latest})
        found[step] = 100 * sum(latest.values()) / whole
    return list(found), list(found.values())
