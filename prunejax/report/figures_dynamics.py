"""Accuracy over epochs: figure 2 (left), and figures 5 and D2 under noise.

Of a regression, which has no accuracy, the test loss.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prunejax.measures import statistics
from prunejax.measures.columns import number
from prunejax.report.figures import Drawing, arm_legend, listed
from prunejax.report.results import Study
from prunejax.report.style import BASELINE, Look, label_ends, panel
from prunejax.report.words import MINUS, TARGETS

_MANY = 9  # more arms than this do not go into one panel


class Shown(NamedTuple):
    """What is drawn over epochs: `test_NAME`, and at events `pre_NAME` and `post_NAME`."""

    name: str
    factor: int  # on the numbers of the tables
    axis: str
    unit: str  # behind a number
    difference: str  # unit of a difference, in words
    digits: int  # of a number


ACCURACY = Shown("accuracy", 100, "test accuracy (%)", "%", "points", 1)
LOSS = Shown("loss", 1, "test loss (nats)", "", "nats", 3)


def shown(study: Study) -> Shown:
    """Accuracy where any run has one, else the loss."""
    return ACCURACY if study.has_accuracy else LOSS


def accuracy_curves(study: Study, variant: str) -> tuple[np.ndarray, np.ndarray]:
    """(epochs [points], accuracies [runs, points]) with the drop of each event as two points.

    At an event's epoch the curve goes from the accuracy before to the one after pruning. Losses
    where there are no accuracies: see `shown`.
    """
    what = shown(study).name
    rows = study.epochs_of.get(variant, [])
    runs = dict.fromkeys(row["run"] for row in rows)
    points: dict[str, dict[tuple[int, int], float]] = {run: {} for run in runs}
    ends = {}
    for row in rows:
        points[row["run"]][int(row["epoch"]), 1] = number(row[f"test_{what}"])
        ends[row["run"], row["epoch"]] = row.get("step")  # none of earlier versions
    for row in study.events_of.get(variant, []):
        # Amid an epoch: its curve has no point there.
        step = row.get("step")
        amid = step and row["epoch"] != "-1" and step != ends.get((row["run"], row["epoch"]))
        if row["run"] in points and row[f"pre_{what}"] and not amid:
            # Of several on one step the first has what was before them, the last what is after.
            points[row["run"]].setdefault((int(row["epoch"]), 0), number(row[f"pre_{what}"]))
            points[row["run"]][int(row["epoch"]), 1] = number(row[f"post_{what}"])
    keys = sorted({key for run in points.values() for key in run})
    # A run without an event where others have one is flat there.
    curves = [
        [run.get(key, run.get((key[0], 1), np.nan)) for key in keys] for run in points.values()
    ]
    return np.array([key[0] for key in keys]), np.array(curves).reshape(len(runs), len(keys))


def by_seed(study: Study, variant: str) -> dict[str, dict[int, float]]:
    """Seed -> epoch -> test accuracy at its end (after an event); see `shown`."""
    column = f"test_{shown(study).name}"
    found: dict[str, dict[int, float]] = {}
    for row in study.epochs_of.get(variant, []):
        found.setdefault(row["seed"], {})[int(row["epoch"])] = number(row[column])
    return found


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Running mean over `width` points around each, fewer at the ends; NaN is left out."""
    half = width // 2
    windows = (values[max(0, i - half) : i + half + 1] for i in range(values.size))
    return np.array([w[np.isfinite(w)].mean() if np.isfinite(w).any() else np.nan for w in windows])


def advantage(study: Study, variant: str, baseline: str | None) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, mean over seeds of the accuracy minus the baseline's of the same seed)."""
    own = by_seed(study, variant)
    other = by_seed(study, baseline) if baseline else {}
    # without a partner a seed would shift the difference
    seeds = [seed for seed in own if not baseline or seed in other]
    epochs = sorted({epoch for seed in seeds for epoch in own[seed]})
    curves = np.array([
        [own[s].get(e, np.nan) - (other[s].get(e, np.nan) if baseline else 0) for e in epochs]
        for s in seeds
    ])  # fmt: skip
    if not curves.size:
        return np.zeros(0), np.zeros(0)
    return np.array(epochs), statistics.bands(curves)[0]


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
        axes.plot(epochs, mean, color=color, linestyle=look.line(variant), linewidth=1.2)
        known = mean[np.isfinite(mean)]
        ends += [(known[-1], variant, color)] if known.size else []
    axes.margins(x=0.01)
    label_ends(axes, ends)
    return made


def _differences(study: Study, look: Look, variants: Sequence[str], title: str = "") -> Figure:
    """Each arm minus the baseline of the same seeds, smoothed, with its name at its end."""
    baseline = study.baselines.get(variants[0]) if variants else None
    baseline = baseline if baseline in study.epochs_of else None
    what = shown(study)
    word = f"{what.name} {MINUS} {baseline}'s ({what.difference})" if baseline else what.axis
    made, axes = _over_epochs(ylabel=word)
    ends, late = [], []
    width = 1
    for variant in variants:
        if variant == baseline:
            continue
        epochs, mean = advantage(study, variant, baseline)
        if not mean.size:
            continue
        width = 1 + 2 * round(mean.size / 24)
        curve = what.factor * smooth(mean, width)
        color = look.color(variant)
        axes.plot(epochs, curve, color=color, linestyle=look.line(variant), linewidth=1.5)
        known = curve[np.isfinite(curve)]
        if known.size:
            ends.append((known[-1], variant, color))
            late += [*known[int(0.4 * known.size) :]]
    if late:
        low, high = np.percentile(late, 3), np.percentile(late, 97)
        low, high = min(low, *(end[0] for end in ends)), max(high, *(end[0] for end in ends))
        low, high = (min(low, 0.0), max(high, 0.0)) if baseline else (low, high)
        spread = max(high - low, 0.005 * what.factor)
        axes.set_ylim(low - 0.15 * spread, high + 0.15 * spread)
    if baseline:
        axes.axhline(0, color=BASELINE, linewidth=1)
        ends.append((0.0, baseline, BASELINE))
    over = f" (mean of {width} epochs)" if width > 1 else ""
    head = f"minus {baseline}{over}" if baseline else f"{what.name}{over}"
    axes.set_title("\n".join(text for text in (title, head) if text))
    axes.margins(x=0.01)
    label_ends(axes, ends)
    return made


_CAPTION = (
    "Means over seeds. Differences are taken between runs of the same seed and smoothed by a "
    "running mean; their intervals at the end of training are at the top of the page. Deep dips "
    "are cut off. "
)
_DROPS = (
    "Vertical steps of the left panel are pruning events: test {} right before and right "
    "after, without training in between. "
)


def _ends(study: Study, variants: Sequence[str]) -> str:
    """What the curves come to."""
    what, found = shown(study), []
    for variant in variants:
        mean = advantage(study, variant, None)[1]
        found.append((variant, what.factor * float(mean[-1]) if mean.size else np.nan))
    told = listed(found, what.unit, digits=what.digits)
    return f"Mean test {what.name} at the end of the curves: {told}."


def dynamics(study: Study, look: Look) -> Drawing | None:
    """Figure 2, left: accuracy over epochs."""
    recorded = study.epochs_of
    variants = [v for v in study.variants if v in recorded]
    if not variants:
        return None
    what = shown(study).name
    title, alt = f"{what.capitalize()} over epochs", _ends(study, variants)
    arms = {name: [v for v in group if v in recorded] for name, group in study.groups.items()}
    arms = {name: group for name, group in arms.items() if group}
    if len(arms) == 1 and len(variants) > _MANY:
        arms = _by_target(study, variants)
    if len(arms) > 12:  # "Where the tradeoff holds" says it better
        return None
    if len(arms) > 1:
        panels = [_differences(study, look, group, name) for name, group in arms.items()]
        return Drawing(panels, title, _CAPTION, alt)
    panels = [_whole(study, look, variants)]
    if len(variants) > 1:
        panels.append(_differences(study, look, variants))
    return Drawing(panels, title, _CAPTION + _DROPS.format(what), alt)


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
    panels = [_differences(study, look, group, title) for title, group in arms.items()]
    drawn = list(dict.fromkeys(v for group in arms.values() for v in group))
    panels.append(arm_legend(study, look, drawn, points=False))
    return Drawing(
        panels,
        f"{shown(study).name.capitalize()} over epochs under noise",
        _CAPTION + "If the gain of pruning comes from instability and not from having fewer "
        "weights, noise that lasts long enough does the same.",
        _ends(study, variants),
    )
