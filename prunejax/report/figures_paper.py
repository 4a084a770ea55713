"""The paper's other figures about accuracy: iterative rate, noise, and groups of arms."""

import re
from collections.abc import Collection, Mapping, Sequence
from math import isfinite, log2

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunejax.measures import correlation, statistics
from prunejax.measures.columns import number, value
from prunejax.report import words
from prunejax.report.figures import (
    TARGET_COLORS,
    TARGET_MARKERS,
    Drawing,
    listed,
    points_of,
    scatter_panel,
)
from prunejax.report.results import Row, Study
from prunejax.report.style import BASELINE, COLORS, FEW, Look, legend, line_handle, panel
from prunejax.report.words import MINUS, TARGETS

_BEST = "best_test_accuracy"
# Of arms that prune nothing and are no baseline (longer training, another schedule).
GREYS, UNPRUNED = (BASELINE, "#888888", *COLORS), ("D", "v", "P", "X")


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


def _rate_curves(axes: Axes, cells: Mapping[tuple[str, float], list[Row]], column: str) -> None:
    for target in TARGETS:
        rates = sorted(rate for t, rate in cells if t == target)
        if not rates:
            continue
        means = [statistics.mean([value(r, column) for r in cells[target, x]]) for x in rates]
        x, color = 100 * np.array(rates), TARGET_COLORS[target]
        y, low, high = (100 * np.array([getattr(m, n) for m in means]) for n in _BAND)
        axes.plot(x, y, color=color, marker=TARGET_MARKERS[target], markersize=4.5)
        if min(len(cells[target, rate]) for rate in rates) >= FEW:
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            continue
        for rate in rates:
            values = [100 * value(row, column) for row in cells[target, rate]]
            axes.plot([100 * rate] * len(values), values, ".", color=color)


_BAND = ("mean", "low", "high")
_CORRELATION = "correlation of accuracy and stability"


def _of_target(target: str) -> tuple[str, str]:
    return TARGET_COLORS[target], TARGET_MARKERS[target]


def _target_handles(targets: Collection[str | None], line: str = "-") -> list[Line2D]:
    shown = [t for t in TARGETS if t in targets]
    return [line_handle(f"target: {TARGETS[t]}", *_of_target(t), line) for t in shown]


def rate(study: Study, _look: Look) -> Drawing | None:
    """Figures 3 and C2: accuracy, stability and their correlation against iterative rate."""
    cells = by_rate(study)
    rates = sorted({rate for _, rate in cells})
    if len(rates) < 2:
        return None
    labels = (words.axis(_BEST), words.axis("mean_stability"), _CORRELATION)
    across = "iterative rate (% of the layer per event)"
    panels, (left, middle, right) = zip(
        *(panel(xlabel=across, ylabel=label) for label in labels), strict=True
    )
    _rate_curves(left, cells, _BEST)
    baseline = [row for row in study.good if row["variant"] == study.baseline]
    mean = statistics.mean([value(row, _BEST) for row in baseline])
    handles = _target_handles({target for target, _ in cells})
    if isfinite(mean.mean):
        left.axhline(100 * mean.mean, color=BASELINE, linestyle="--", linewidth=1)
        handles.append(line_handle(study.baseline, BASELINE, line="--"))
        if mean.n >= FEW:
            left.axhspan(100 * mean.low, 100 * mean.high, color=BASELINE, alpha=0.08, linewidth=0)
    _rate_curves(middle, cells, "mean_stability")
    found = _rate_correlations(right, cells, rates)
    for axes in (left, middle, right):
        _rate_axis(axes, rates)
    return Drawing(
        [*panels, legend(handles)],
        "Accuracy, stability and their correlation against the iterative rate",
        "Means over seeds with 95% confidence intervals (of fewer than four runs a dot per run "
        "instead). The total removed is the same at every "
        "rate: a larger rate means fewer, larger events. Last: correlation of accuracy and "
        "stability over the runs of all targets at one rate.",
        f"Correlation of best accuracy and stability by iterative rate: {found}.",
    )


def _rate_correlations(
    axes: Axes, cells: Mapping[tuple[str, float], list[Row]], rates: Sequence[float]
) -> str:
    # all targets at one rate: differences of target, not of rate
    pools = [[r for (_, x), rows in cells.items() if x == rate for r in rows] for rate in rates]
    kinds = (
        (correlation.kendall, "Kendall τ", COLORS[5], "s", "--"),
        (correlation.pearson, "Pearson r", COLORS[3], "o", "-"),
    )
    for function, label, color, marker, line in kinds:
        y = [
            function([value(r, "mean_stability") for r in pool], [value(r, _BEST) for r in pool])
            .value
            for pool in pools
        ]  # fmt: skip
        axes.plot(100 * np.array(rates), y, line, color=color, marker=marker, label=label)
    axes.axhline(0, color="#888888", linewidth=1)
    axes.set_ylim(-1.05, 1.05)
    axes.legend(loc="best")
    return ", ".join(
        words.minus(f"{r:.2f} at {100 * rate:.2g} %")
        for rate, r in zip(rates, y, strict=True)
        if isfinite(r)
    )


def rate_scatter(study: Study, _look: Look) -> Drawing | None:
    """Figure C1: accuracy against stability at each iterative rate."""
    cells = by_rate(study)
    rates = sorted({rate for _, rate in cells})
    if len(rates) < 2:
        return None

    style = lambda variant: _of_target(str(study.attribute(variant, "target")))  # noqa: E731
    panels, texts = [], []
    for level in rates:
        pool = [row for (_, x), rows in cells.items() if x == level for row in rows]
        head = f"rate {100 * level:.2g}%"
        made, text = scatter_panel(pool, "mean_stability", _BEST, style, title=head, height=3.0)
        panels.append(made)
        texts.append(f"{head}, {text}")
    panels.append(legend(_target_handles({target for target, _ in cells}, "none")))
    return Drawing(
        panels,
        "Accuracy against stability at each iterative rate",
        "One point per run; Pearson r and Kendall τ.",
        "; ".join(texts) + ".",
    )


def _accuracy(study: Study) -> tuple[str, str]:
    """The accuracy that the study's claims are about, and its word; the best one without any."""
    final = {claim.column for claim in study.claims} == {"final_test_accuracy"}
    return ("final_test_accuracy", "final") if final else (_BEST, "best")


def _unpruned(study: Study) -> dict[str, str]:
    """Arm without a target -> what tells it from the baseline of its group: the label's end."""
    found = {}
    for variant in study.variants:
        base = study.baselines.get(variant, variant)
        if variant != base and study.attribute(variant, "target") not in TARGETS:
            own, other = (re.split(r"([-_ ])", label) for label in (variant, base))
            same = [a == b for a, b in zip(own, other, strict=False)]
            found[variant] = "".join(own[[*same, False].index(False) :]) or variant
    return found


def corners(study: Study, _look: Look) -> Drawing | None:
    """The correlation and the gain of each group of arms: where does the tradeoff hold?"""
    groups = study.groups
    if len(groups) < 2:
        return None
    if not any(study.baselines.get(v) in arms for arms in groups.values() for v in arms):
        return None  # nothing to gain over: the scatter of each group says the rest
    column, word = _accuracy(study)
    others_of = _unpruned(study)
    kinds = list(dict.fromkeys(others_of.values()))
    places = {kind: divmod(i, len(UNPRUNED)) for i, kind in enumerate(kinds)}  # no two alike
    styles = {k: (GREYS[turn % len(GREYS)], UNPRUNED[i]) for k, (turn, i) in places.items()}
    height = 0.9 + 0.46 * len(groups)
    first, left = panel(
        height, xlabel=f"Pearson r of {word} accuracy and stability (runs with events)"
    )
    second, right = panel(height, xlabel=f"{word} accuracy {MINUS} unpruned arm's (points)")
    gains = []
    for place, (name, arms) in enumerate(groups.items()):
        for axes in (left, right):
            axes.text(0.01, place - 0.33, name, transform=axes.get_yaxis_transform(), va="center")
        rows = [r for r in study.good if r["variant"] in arms and number(r.get("events")) > 0]
        r = correlation.pearson(
            [value(row, "mean_stability") for row in rows], [value(row, column) for row in rows]
        )
        known = study.relation("mean_stability", column, f"group: {name}").get("these_arms") or {}
        _whisker(left, place + 0.1, r.value, known.get("low"), known.get("high"), COLORS[3])
        others = [v for v in arms if v != study.baselines.get(v)]
        for j, variant in enumerate(others):
            gain = study.gain(variant, column)
            gains.append((variant, 100 * gain.difference))
            target = str(study.attribute(variant, "target"))
            offset = 0.1 + (j - (len(others) - 1) / 2) * 0.4 / max(len(others), 1)
            low, high = (gain.low, gain.high) if gain.n >= FEW else (np.nan, np.nan)
            style = styles[others_of[variant]] if variant in others_of else _of_target(target)
            _whisker(right, place + offset, 100 * gain.difference, 100 * low, 100 * high, *style)
    left.set_xlim(-1.05, 1.05)
    for axes in (left, right):
        axes.set_ylim(len(groups) - 0.5, -0.6)
        axes.set_yticks([])
        axes.axvline(0, color="#888888", linewidth=1)
    handles = _target_handles({study.attribute(v, "target") for v in study.variants}, "none")
    masked = {  # they go on from masks of others: sparse, without events of their own
        kind for arm, kind in others_of.items()
        if statistics.center([value(row, "sparsity") for row in study.good_of.get(arm, [])]) > 0
    }  # fmt: skip
    called = {kind: "no events" if kind in masked else "unpruned" for kind in styles}
    handles += [line_handle(f"{called[k]}: {k}", *style, "none") for k, style in styles.items()]
    correlated = (
        "First: correlation over the runs with events, with the interval over seeds as blocks "
        "where there is one. Second: what"
    )
    gained = (
        " each arm gains over the unpruned arm of its group, paired by seed, with its 95% interval "
        "from four seeds on."
    )
    return Drawing(
        [*([first] if study.has_events else []), second, legend(handles)],
        "Where the tradeoff holds",
        f"One line per group of arms. {correlated if study.has_events else 'What'}{gained}",
        f"Gain in {word} accuracy over the unpruned arm: {listed(gains, ' points')}.",
    )


def _whisker(
    axes: Axes,
    place: float,
    center: float,
    low: float | None,
    high: float | None,
    color: str,
    marker: str = "o",
) -> None:
    if low is not None and high is not None and isfinite(low + high):
        axes.plot([low, high], [place, place], color=color, linewidth=1.6)
    axes.plot(center, place, marker=marker, color=color, markersize=5.5)


def group_scatter(study: Study, look: Look) -> Drawing | None:
    """Figure 4: accuracy and gap against stability, a panel of each per group."""
    groups = study.groups
    if not 2 <= len(groups) <= 5 or not study.has_events:
        return None
    drawn = [v for arms in groups.values() for v in arms]
    eventful = {row["variant"] for row in study.good if number(row.get("events")) > 0}
    style, key = points_of(study, look, drawn, {*drawn} - eventful)
    panels: list[Figure] = []
    texts = []
    for name, arms in groups.items():
        pool = [row for row in study.good if row["variant"] in arms]
        events = [row for row in pool if number(row.get("events")) > 0]
        for y in (_BEST, "generalization_gap"):
            made, text = scatter_panel(pool, "mean_stability", y, style, fitted=events, title=name)
            panels.append(made)
            texts.append(f"{name}, {text}")
    panels.append(key)
    return Drawing(
        panels,
        "Accuracy and gap against stability, by group",
        "One point per run. Lines and coefficients are about runs with events; arms without are "
        "drawn hollow.",
        "; ".join(texts) + ".",
    )
