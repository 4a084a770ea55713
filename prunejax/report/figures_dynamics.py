"""Accuracy over epochs: figure 2 (left), and figures 5 and D2 under noise.

Of a regression, which has no accuracy, the test loss.
"""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prunejax.measures import statistics
from prunejax.report.curves import accuracy_curves, advantage, by_seed, shown, smooth
from prunejax.report.figures import Drawing, arm_legend, listed
from prunejax.report.results import Study
from prunejax.report.style import BASELINE, Look, label_ends, panel
from prunejax.report.words import MINUS, TARGETS

_MANY = 9  # more arms than this do not go into one panel


def _over_epochs(ylabel: str, title: str = "") -> tuple[Figure, Axes]:
    """A panel whose ticks are whole epochs."""
    made, axes = panel(title=title, xlabel="epoch (from 0)", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    return made, axes


def _whole(study: Study, look: Look, variants: Sequence[str]) -> Figure:
    """Mean accuracy over epochs of each arm, with the drops of its events."""
    what, ends = shown(study), []
    made, axes = _over_epochs(title="whole training", ylabel=what.axis)
    for variant in variants:
        epochs, curves = accuracy_curves(study, variant)
        if not curves.size:
            continue
        mean = what.factor * statistics.bands(curves)[0]
        color = look.color(variant)
        _draw(axes, look, variant, epochs, mean, 1.2)
        known = mean[np.isfinite(mean)]
        ends += [(known[-1], variant, color)] if known.size else []
    axes.margins(x=0.01)
    label_ends(axes, ends)
    return made


def _draw(axes: Axes, look: Look, variant: str, x: np.ndarray, y: np.ndarray, width: float) -> None:
    """A curve [points] over epochs; of one epoch alone its point."""
    marker = look.marker(variant) if len({*x}) == 1 else "none"
    line = look.line(variant)
    axes.plot(x, y, color=look.color(variant), linestyle=line, linewidth=width, marker=marker)


def _differences(
    study: Study, look: Look, variants: Sequence[str], said: set[str], title: str = ""
) -> Figure:
    """Each arm minus the baseline of the same seeds, smoothed, with its name at its end.

    `said` gets what the caption must tell: "differences", "smoothed", "cut", "longer".
    """
    baseline = study.baselines.get(variants[0]) if variants else None
    baseline = baseline if baseline in study.epochs_of else None
    what = shown(study)
    word = f"{what.name} {MINUS} {baseline}'s ({what.difference})" if baseline else what.axis
    made, axes = _over_epochs(ylabel=word)
    ends, late, drawn = [], [], []
    found = {v: advantage(study, v, baseline) for v in variants if v != baseline}
    found = {variant: curve for variant, curve in found.items() if curve[1].size}
    # one for the panel, whose title tells it: as the shortest curve allows
    width = 1 + 2 * round(min((mean.size for _, mean in found.values()), default=0) / 24)
    for variant, (epochs, mean) in found.items():
        curve = what.factor * smooth(mean, width)
        _draw(axes, look, variant, epochs, curve, 1.5)
        ends.append((curve[-1], variant, look.color(variant)))
        last = max(map(max, by_seed(study, variant).values()))
        said |= {"longer"} if last > epochs[-1] else set()
        late += [*curve[int(0.4 * curve.size) :]]
        drawn += [*curve]
    if late:
        low, high = np.percentile(late, 3), np.percentile(late, 97)
        low, high = min(low, *(end[0] for end in ends)), max(high, *(end[0] for end in ends))
        low, high = (min(low, 0.0), max(high, 0.0)) if baseline else (low, high)
        spread = max(high - low, 0.005 * what.factor)
        axes.set_ylim(low - 0.15 * spread, high + 0.15 * spread)
        beyond = min(drawn) < low - 0.15 * spread or max(drawn) > high + 0.15 * spread
        said |= {"cut"} if beyond else set()
    if baseline:
        axes.axhline(0, color=BASELINE, linewidth=1)
        ends.append((0.0, baseline, BASELINE))
        said |= {"differences"}
    each = all((np.diff(epochs) == 1).all() for epochs, _ in found.values())
    over = f" (mean of {width} {'epochs' if each else 'evaluations'})" if width > 1 else ""
    said |= {"smoothed"} if over else set()
    head = f"minus {baseline}{over}" if baseline else f"{what.name}{over}"
    axes.set_title("\n".join(text for text in (title, head) if text))
    axes.margins(x=0.01)
    label_ends(axes, ends)
    return made


def _caption(study: Study, said: set[str]) -> str:
    """What must be known of the panels that are there; `said` as of `_differences`."""
    several = any(len(by_seed(study, variant)) > 1 for variant in study.variants)
    parts = ["Means over seeds."] if several else ["One run an arm."]
    smoothed = "smoothed by a running mean" if "smoothed" in said else ""
    if "differences" in said:
        column = "final_test_accuracy" if study.has_accuracy else "final_test_loss"
        known = any(isfinite(study.gain(variant, column).low) for variant in study.variants)
        above = "; their intervals at the end of training are at the top of the page" * known
        told = f" and {smoothed}" if smoothed else ""
        parts.append(f"Differences are taken between runs of the same seed{told}{above}.")
        if "longer" in said:
            parts.append("Arms that train for longer are shown to the last epoch of the other arm.")
    elif smoothed:
        parts.append(f"Curves are {smoothed}.")
    parts += ["Curves that leave a panel are cut off."] if "cut" in said else []
    return " ".join(parts)


def _drops(study: Study, panels: int) -> str:
    """What the steps of the curves of whole trainings are; empty without any."""
    what = shown(study).name
    if not any(row[f"pre_{what}"] for row in study.events):
        return ""
    where = " of the first panel" if panels > 1 else ""
    return (
        f" Vertical steps{where} are pruning events: test {what} right before and right after, "
        "without training in between."
    )


def _ends(study: Study, variants: Sequence[str]) -> str:
    """What the curves come to."""
    what, found = shown(study), []
    for variant in variants:
        mean = advantage(study, variant, None)[1]
        found.append((variant, what.factor * float(mean[-1]) if mean.size else np.nan))
    told = listed(found, what.unit, form=f".{what.digits}f")
    return f"Mean test {what.name} at the end of the curves: {told}."


def dynamics(study: Study, look: Look) -> Drawing | None:
    """Figure 2, left: accuracy over epochs."""
    recorded = study.epochs_of
    variants = [v for v in study.variants if v in recorded]
    if len({row["epoch"] for row in study.epochs}) < 2:
        return None  # no curve
    said: set[str] = set()
    what = shown(study).name
    title, alt = f"{what.capitalize()} over epochs", _ends(study, variants)
    arms = {name: [v for v in group if v in recorded] for name, group in study.groups.items()}
    arms = {name: group for name, group in arms.items() if group}
    if len(arms) == 1 and len(variants) > _MANY:
        arms = _by_target(study, variants)
    if len(arms) > 12:  # "Where the tradeoff holds" says it better
        return None
    if len(arms) > 1:
        panels = [_differences(study, look, group, said, name) for name, group in arms.items()]
        return Drawing(panels, title, _caption(study, said), alt)
    panels = [_whole(study, look, variants)]
    if len(variants) > 1:
        panels.append(_differences(study, look, variants, said))
    return Drawing(panels, title, _caption(study, said) + _drops(study, len(panels)), alt)


def _by_target(study: Study, variants: Sequence[str]) -> dict[str, list[str]]:
    """Arms by target, at most as many as go into a panel."""
    found: dict[str, list[str]] = {}
    for variant in variants:
        if variant != study.baselines.get(variant):
            target = study.attribute(variant, "target")
            title = f"target: {TARGETS[target]}" if target in TARGETS else "other arms"
            found.setdefault(title, []).append(variant)
    parts: dict[str, list[str]] = {}
    for title, arms in found.items():
        for i in range(0, len(arms), _MANY):
            more = f", {i // _MANY + 1}" if len(arms) > _MANY else ""
            parts[title + more] = arms[i : i + _MANY]
    return parts


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
    variants = [v for v in study.variants if v in study.epochs_of]
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
    said: set[str] = set()
    panels = [_differences(study, look, group, said, title) for title, group in arms.items()]
    drawn = list(dict.fromkeys(v for group in arms.values() for v in group))
    panels.append(arm_legend(study, look, drawn, points=False))
    return Drawing(
        panels,
        f"{shown(study).name.capitalize()} over epochs under noise",
        f"{_caption(study, said)} If the gain of pruning comes from instability and not from "
        "having fewer weights, noise that lasts long enough does the same.",
        _ends(study, variants),
    )
