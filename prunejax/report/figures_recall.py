"""Recall distortion: what pruning does to the recalls of classes, from stored predictions."""

from collections.abc import Iterable, Mapping
from math import isfinite, nan
from typing import Any

import numpy as np

from prunejax.measures import recall
from prunejax.measures.columns import by_variant
from prunejax.measures.statistics import Comparison
from prunejax.report.figures import Drawing
from prunejax.report.figures_density import ACCURACY, density_axis, family, live_share
from prunejax.report.results import Study, once
from prunejax.report.style import GREY, Look, legend, line_handle, nth, panel
from prunejax.report.words import interval, minus
from prunejax.system import files


def _predictions(study: Study) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Arm -> seed -> (predicted, labels) of its completed runs, of the measure or the probe."""
    found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for variant, rows in by_variant(study.good).items():
        for row in rows:
            path = study.arrays.get(row["run"])
            if path is None:
                continue
            probed = path.with_name(f"{path.stem.removesuffix('-end')}-end.npz")
            for place in (p for p in dict.fromkeys((path, probed)) if p.exists()):
                with files.arrays(place) as file:
                    if "predicted" in file.files and row["seed"] not in found.get(variant, {}):
                        pair = file["predicted"], file["labels"]
                        found.setdefault(variant, {})[row["seed"]] = pair
    return found


def parent(study: Study, variant: str) -> str:
    """The arm that a chain of runs began with (`start.run`), or the baseline."""
    seen = {variant}
    while run := study.settings(variant, "start").get("run"):
        if run in seen or run not in study.attributes:
            break
        variant = str(run)
        seen.add(variant)
    return variant if len(seen) > 1 else study.baseline


@once
def distortions(study: Study) -> dict[str, dict[str, recall.Distortion]]:
    """Arm -> seed -> how the dense run of that seed (of `parent`) and the arm's differ."""
    known = _predictions(study)
    found: dict[str, dict[str, recall.Distortion]] = {}
    classes = _classes(known)
    for variant, runs in known.items():
        start = study.settings(variant, "start").get("run")
        if not start and study.attribute(variant, "target") is None:
            continue  # dense itself
        dense = known.get(parent(study, variant), {})
        for seed, (predicted, labels) in runs.items():
            if variant == parent(study, variant) or variant == study.baseline or seed not in dense:
                continue
            if np.array_equal(labels, dense[seed][1]):  # else not the same examples in one order
                found.setdefault(variant, {})[seed] = recall.distortion(
                    dense[seed][0], predicted, labels, classes, seed=int(seed)
                )
    return found


def _classes(known: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> int:
    """How many there are, also where the last one has no test examples: by what was predicted."""
    arrays = [a for runs in known.values() for pair in runs.values() for a in pair if a.size]
    return 1 + max((int(a.max()) for a in arrays), default=-1)


def annotate(study: Study) -> None:
    """Gives every run with a distortion its columns `alpha` and `alpha_split_half`.

    Empty where a network is at chance: its alpha counts for nothing.
    """
    known = distortions(study)
    if not known:
        return
    for row in study.runs:
        found = known.get(row["variant"], {}).get(row["seed"])
        values = {"alpha": nan, "alpha_split_half": nan}
        if found is not None and not found.degenerate:
            values = {"alpha": found.alpha, "alpha_split_half": found.split_half}
        row.update({k: repr(v) if isfinite(v) else "" for k, v in values.items()})


def table(study: Study) -> list[Mapping[str, Any]]:
    """The rows of `recalls.csv`: recalls and normalized balances by run and class."""
    rows: list[Mapping[str, Any]] = []
    for variant, runs in distortions(study).items():
        for seed, d in runs.items():
            for i, c in enumerate(d.classes):
                rows.append(
                    {
                        "run": f"{variant}-{seed}",
                        "variant": variant,
                        "seed": seed,
                        "class": c,
                        "examples": d.examples[i],
                        "recall": d.recall_pruned[i],
                        "recall_baseline": d.recall_dense[i],
                        "normalized_balance": d.nb_pruned[i],
                        "normalized_balance_baseline": d.nb_dense[i],
                    }
                )
    return rows


def families(study: Study, arms: Iterable[str]) -> dict[str, list[str]]:
    """Family -> those of `arms` in it, densest first, in the order of first appearance."""
    live = {variant: live_share(rows) for variant, rows in by_variant(study.good).items()}
    found: dict[str, list[str]] = {}
    for variant in arms:
        found.setdefault(family(variant), []).append(variant)
    return {name: sorted(own, key=lambda v: -live[v]) for name, own in found.items()}


def recall_distortion(study: Study, _look: Look) -> Drawing | None:
    """Alpha of every arm against density, one line a family of arms."""
    found = distortions(study)
    if not found:
        return None
    live = {variant: live_share(rows) for variant, rows in by_variant(study.good).items()}
    made, axes = panel(3.8, ylabel="alpha")
    other, beside = panel(3.8, ylabel=ACCURACY)
    handles, sentences = [], []
    for index, (name, arms) in enumerate(families(study, found).items()):
        color, marker = nth(index)
        points, told = [], ""
        for variant in arms:
            runs = list(found[variant].values())
            alphas = recall.alphas(runs)
            test = recall.neutral(alphas)
            if not isfinite(test.difference):
                told = f"{variant} at chance"
                continue
            accuracy = 100 * float(np.mean([d.accuracy_pruned for d in runs]))
            points.append((live[variant], 1 + test.difference, 1 + test.low, 1 + test.high))
            axes.plot([live[variant]] * len(alphas), alphas, ".", color=color, ms=3, alpha=0.5)
            beside.plot(
                [live[variant]] * len(runs), [100 * d.accuracy_pruned for d in runs], ".",
                color=color, ms=3, alpha=0.5,
            )  # fmt: skip
            told = f"{variant} {_words(points[-1][1], test, runs)} at {accuracy:.1f}% accuracy"
        sentences.append(told)
        if not points:
            continue
        xs, means, low, high = map(np.asarray, zip(*points, strict=True))
        axes.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(xs, means, marker=marker, color=color, markersize=5, linewidth=1.4)
        accuracies = [100 * np.mean([d.accuracy_pruned for d in found[v].values()]) for v in arms]
        shares = [live[v] for v in arms]
        beside.plot(shares, accuracies, marker=marker, color=color, markersize=5, linewidth=1.4)
        handles.append(line_handle(name, color, marker))
    axes.axhline(1, color=GREY, linewidth=1, linestyle="--")
    handles.append(line_handle("1: no distortion", GREY, line="--"))
    for each in (axes, beside):
        density_axis(each, [live[v] for v in found])
    return Drawing(
        [made, other, legend(handles)],
        "Recall distortion",
        "alpha: slope through the origin of the classes' normalized balance (recall over accuracy, "
        "less one) in the pruned network on that in the dense one it came from (Good et al. "
        "2022; that alpha is this slope is a reading of ours); above 1 pruning sharpens what the "
        "network was good and bad at. Accuracy is weighted by test examples. Mean over seeds, "
        "every seed, 95 % interval as a band. Small test sets pull alpha towards 0; split halves "
        "do not. Accuracy beside it: alpha of a network that has forgotten much means little. "
        "recalls.csv has every class. " + _undecayed(study, found),
        "alpha at the lowest density of each: " + "; ".join(sentences) + ".",
    )


def _undecayed(study: Study, found: Mapping[str, Mapping[str, recall.Distortion]]) -> str:
    """Whether Undecayed Pruning's alpha is below that of magnitudes, ratio by ratio."""
    scores = {v: study.attribute(v, "score") for v in found}
    words = []
    for variant, score in scores.items():
        twin = next(
            (v for v, s in scores.items() if s == "magnitude" and _alike(study, variant, v)), None
        )
        if score != "undecayed" or twin is None:
            continue
        seeds = [s for s in found[variant] if s in found[twin]]
        test = recall.compare(
            *(recall.alphas([found[v][s] for s in seeds]) for v in (variant, twin))
        )
        if isfinite(test.low):
            # by the interval, not by the sign of the mean
            verdict = "reproduced" if test.high < 0 else "not reproduced"
            words.append(
                f"{variant} minus {twin} {minus(f'{test.difference:+.3f}')} "
                f"{interval(test.low, test.high, 3, sign='+')}: {verdict}"
            )
    if not words or study.report_option("mechanics_only", False):
        return ""
    return "Published: Undecayed Pruning has the lower alpha. Here: " + "; ".join(words) + "."


def _alike(study: Study, a: str, b: str) -> bool:
    """Whether two arms differ in the score alone."""
    x, y = (study.settings(v) for v in (a, b))
    p, q = ({k: v for k, v in (o.pop("prune", None) or {}).items() if k != "score"} for o in (x, y))
    return x == y and p == q


def _words(alpha: float, test: Comparison, runs: list[recall.Distortion]) -> str:
    interval = f" [{1 + test.low:.2f}, {1 + test.high:.2f}]" if isfinite(test.low) else ""
    halves = np.array(recall.alphas(runs, "split_half"))
    known = halves[np.isfinite(halves)]
    return f"{alpha:.2f}{interval}" + (f" (split halves {known.mean():.2f})" if known.size else "")
