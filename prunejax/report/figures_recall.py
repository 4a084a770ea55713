"""Recall distortion: what pruning does to the recalls of classes, from stored predictions."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np

from prunejax.measures import recall
from prunejax.measures.summary import by_variant
from prunejax.report.figures import Drawing
from prunejax.report.results import Study
from prunejax.report.style import COLORS, GREY, Look, legend, line_handle, panel


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
    """The rows of `classes.csv`: recalls and normalized balances by run and class."""
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
    """Normalized balance of every class, pruned against the baseline, and alpha of each arm."""
    found = distortions(study)
    if not found:
        return None
    made, axes = panel(3.8)
    handles, sentences = [], []
    span = 0.0
    for index, (variant, runs) in enumerate(found.items()):
        color = look.color(variant) if len(found) > 1 else COLORS[index]
        x = np.concatenate([d.nb_dense for d in runs.values()])
        y = np.concatenate([d.nb_pruned for d in runs.values()])
        span = max(span, float(np.abs(x).max()))
        axes.plot(x, y, ".", color=color, markersize=4, alpha=0.5)
        alphas = recall.alphas(list(runs.values()))
        halves = recall.alphas(list(runs.values()), "split_half")
        test = recall.neutral(alphas)
        mean = test.difference + 1
        if isfinite(mean):
            axes.axline((0, 0), slope=mean, color=color, linewidth=1.2)
        interval = ""
        if isfinite(test.low):
            interval = f" [{test.low + 1:.2f}, {test.high + 1:.2f}]"
        half = float(np.nanmean(halves)) if np.isfinite(halves).any() else float("nan")
        split = f", split halves {half:.2f}" if isfinite(half) else ""
        sentences.append(f"{variant} alpha = {mean:.2f}{interval}{split} (n = {test.n})")
        handles.append(line_handle(f"{variant}: alpha {mean:.2f}{interval}", color, "o"))
    axes.axline((0, 0), slope=1, color=GREY, linewidth=1, linestyle="--")
    handles.append(line_handle("alpha = 1: no distortion", GREY, line="--"))
    axes.set_xlim(-1.1 * span, 1.1 * span)
    axes.set_xlabel(f"normalized balance of a class, {study.baseline}")
    axes.set_ylabel("of the pruned network")
    return Drawing(
        [made, legend(handles)],
        "Recall distortion",
        "A dot is a class of a run: its recall relative to the accuracy, minus one (Good et al. "
        "2022). Lines: slope through the origin, mean over runs; above 1 pruning sharpens what the "
        "network was good and bad at. Small test sets pull the slope towards 0; the split-half "
        "slope does not have that pull. classes.csv has every class.",
        "; ".join(sentences) + ".",
    )
