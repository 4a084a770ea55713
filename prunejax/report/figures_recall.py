"""Recall distortion: what pruning does to the recalls of classes, from stored predictions."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np

from prunejax.measures import recall
from prunejax.measures.statistics import Comparison
from prunejax.measures.summary import by_variant
from prunejax.report.figures import Drawing
from prunejax.report.figures_density import density_axis, family, live_share
from prunejax.report.results import Study
from prunejax.report.style import COLORS, GREY, MARKERS, Look, legend, line_handle, panel


def _predictions(study: Study) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Arm -> seed -> (predicted, labels) of its completed runs."""
    found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for variant, rows in by_variant(study.good).items():
        for row in rows:
            path = study.arrays.get(row["run"])
            if path is None:
                continue
            with np.load(path) as file:
                if "predicted" in file.files:
                    pair = file["predicted"], file["labels"]
                    found.setdefault(variant, {})[row["seed"]] = pair
    return found


def distortions(study: Study) -> dict[str, dict[str, recall.Distortion]]:
    """Arm -> seed -> how the baseline's run of that seed and the arm's differ."""
    known = _predictions(study)
    dense = known.pop(study.baseline, {})
    found: dict[str, dict[str, recall.Distortion]] = {}
    for variant, runs in known.items():
        for seed, (predicted, labels) in runs.items():
            if seed in dense and np.array_equal(labels, dense[seed][1]):
                classes = int(labels.max()) + 1
                found.setdefault(variant, {})[seed] = recall.distortion(
                    dense[seed][0], predicted, labels, classes, seed=int(seed)
                )
    return found


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


def recall_distortion(study: Study, look: Look) -> Drawing | None:
    """Alpha of every arm against density, one line a family of arms."""
    del look
    found = distortions(study)
    if not found:
        return None
    live = {variant: live_share(rows) for variant, rows in by_variant(study.good).items()}
    families: dict[str, list[str]] = {}
    for variant in found:
        families.setdefault(family(variant), []).append(variant)
    made, axes = panel(3.8)
    handles, sentences = [], []
    for index, (name, arms) in enumerate(families.items()):
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        xs, ys = [], []
        for variant in sorted(arms, key=lambda v: -live[v]):
            runs = list(found[variant].values())
            alphas = recall.alphas(runs)
            test = recall.neutral(alphas)
            if not isfinite(test.difference):
                sentences.append(f"{variant} at chance")
                continue
            xs.append(live[variant])
            ys.append(1 + test.difference)
            axes.plot([xs[-1]] * len(alphas), alphas, ".", color=color, markersize=3, alpha=0.5)
            if isfinite(test.low):
                between = [1 + test.low, 1 + test.high]
                axes.plot([xs[-1]] * 2, between, color=color, linewidth=1.2)
            sentences.append(f"{variant} {_words(ys[-1], test, runs)}")
        axes.plot(xs, ys, marker=marker, color=color, markersize=5, linewidth=1.4)
        handles.append(line_handle(name, color, marker))
    axes.axhline(1, color=GREY, linewidth=1, linestyle="--")
    handles.append(line_handle("1: no distortion", GREY, line="--"))
    density_axis(axes, [live[v] for v in found])
    axes.set_ylabel("alpha")
    return Drawing(
        [made, legend(handles)],
        "Recall distortion",
        "alpha: slope through the origin of the classes' normalized balance (recall over accuracy, "
        f"less one) in the pruned network on that in {study.baseline} of its seed (Good et al. "
        "2022); above 1 pruning sharpens what the network was good and bad at. Mean over seeds, "
        "every seed, 95 % interval. Small test sets pull alpha towards 0; split halves do not. "
        "recalls.csv has every class.",
        "alpha of " + "; ".join(sentences) + ".",
    )


def _words(alpha: float, test: Comparison, runs: list[recall.Distortion]) -> str:
    interval = f" [{1 + test.low:.2f}, {1 + test.high:.2f}]" if isfinite(test.low) else ""
    halves = np.array(recall.alphas(runs, "split_half"))
    known = halves[np.isfinite(halves)]
    return f"{alpha:.2f}{interval}" + (f" (split halves {known.mean():.2f})" if known.size else "")
