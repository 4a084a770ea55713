"""All rank statistics of a grid of models as rows, one per measure and target."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from prunejax.measures import pair_information
from prunejax.measures.pair_information import Axes
from prunejax.measures.ranking_statistics import (
    DRAWS,
    KINDS,
    Fit,
    granulated,
    kendall,
    partial_kendall,
    r_squared,
)


def rows(
    measures: Mapping[str, ArrayLike],
    targets: Mapping[str, ArrayLike],
    axes: Axes,
    *,
    train_loss: ArrayLike | None = None,
    clusters: Sequence[Hashable] | None = None,
    fit: Fit | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row per measure and target, of all models and of those that fit.

    `measures`, `targets` and `train_loss` are [models].

    Columns: measure, target, models ("fit" | "all"), n, left_out, and per statistic (tau_a, tau_b,
    partial_tau_b where `train_loss` is given, r_squared) `name`, `name_low`, `name_high`; Psi,
    psi_AXIS, cells that count and cells_left_out over all axes; K and the axes `K_given` of its
    set.
    """
    first = np.asarray(next(iter(targets.values())), float).reshape(-1)
    selections = {"all": np.ones(first.size, bool)}
    if fit is not None:
        selections = {"fit": fit.keep, **selections}
    table = []
    for label, chosen in selections.items():
        some = {
            kind: {k: np.asarray(v, float).reshape(-1)[chosen] for k, v in group.items()}
            for kind, group in (("measures", measures), ("targets", targets))
        }
        loss = None if train_loss is None else np.asarray(train_loss, float).reshape(-1)[chosen]
        own = None if clusters is None else [c for c, k in zip(clusters, chosen, strict=True) if k]
        grid = {k: [x for x, c in zip(v, chosen, strict=True) if c] for k, v in axes.items()}
        options: dict[str, Any] = {"clusters": own, "draws": draws, "seed": seed}
        for measure, x in some["measures"].items():
            for target, y in some["targets"].items():
                found = [kendall(x, y, kind=kind, **options) for kind in KINDS]
                found += [] if loss is None else [partial_kendall(x, y, loss, **options)]
                found += [r_squared(x, y, **options)]
                row: dict[str, Any] = {"measure": measure, "target": target, "models": label}
                row |= {"n": found[0].n, "left_out": found[0].left_out}
                for f in found:
                    row |= {f.name: f.value, f"{f.name}_low": f.low, f"{f.name}_high": f.high}
                table.append(row | _grid_columns(x, y, grid))
    return table


def _grid_columns(x: np.ndarray, y: np.ndarray, axes: Axes) -> dict[str, Any]:
    along = granulated(x, y, axes)
    finite = np.isfinite(x) & np.isfinite(y)
    grid = {k: [v for v, f in zip(c, finite, strict=True) if f] for k, c in axes.items()}
    k = pair_information.conditional(x[finite], y[finite], grid)
    psi = {f"psi_{name}": mean.mean for name, mean in along.psi.items()}
    cells = {
        "cells": sum(mean.n for mean in along.psi.values()),
        "cells_left_out": sum(along.left_out.values()),
    }
    return {"Psi": along.value, **psi, **cells, "K": k.value, "K_given": " ".join(k.given)}
