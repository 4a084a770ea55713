"""A study as a grid of models: which measure ranks them as their generalization does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunejax.measures import pair_information, ranking_table
from prunejax.measures.columns import measure_columns, number
from prunejax.measures.ranking_statistics import Fit, fit_filter
from prunejax.record.arms import flat
from prunejax.report.results import Row, Study, once

LEAST = 8  # models
TARGETS = ("test_loss", "test_error", "loss_gap", "error_gap")
NO_MEASURE = (  # of other questions
    *("recall_lowest", "recall_spread", "eigen_residual"),
    *("effective_sparsity", "dead_units"),
)


@dataclass(frozen=True)
class Grid:
    """The completed runs of a study as models.

    Attributes:
      runs: names, [models].
      variants: the configuration of each.
      axes: field -> its value in each model, of the fields in which arms differ.
      measures, targets: name -> [models].
      train_loss: [models], at the end, evaluation mode.
      fit: which models fit the training set.
    """

    runs: list[str]
    variants: list[str]
    axes: dict[str, list[Any]]
    measures: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]
    train_loss: np.ndarray
    fit: Fit


def axes(study: Study, variants: list[str]) -> dict[str, list[Any]]:
    """Field -> its value in the arm of each model, of the fields that arms set differently.

    Fields that go together (a learning rate with its optimizer) are one axis, named by the first.
    """
    labels = dict.fromkeys(variants)
    own = dict.fromkeys(name for v in labels for name in flat(study.overrides.get(v) or {}))
    whole = {v: flat(study.settings(v)) for v in labels}
    # what arms set first, then what sets directories apart
    names = own | dict.fromkeys(name for values in whole.values() for name in values)
    found: dict[str, list[Any]] = {}
    seen: set[tuple[int, ...]] = set()
    for name in names:
        values = [whole[v].get(name) for v in variants]
        column = [tuple(x) if isinstance(x, list) else x for x in values]
        # equal codes: the same partition of the models
        codes = tuple(pair_information.codes(column).tolist())
        if len(set(codes)) > 1 and codes not in seen:
            seen.add(codes)
            found[name] = column
    return found


def ends(study: Study) -> dict[str, Row]:
    """Run -> its last row of epochs.csv."""
    return {row["run"]: row for row in study.epochs}


def grid(study: Study) -> Grid | None:
    """The models of a study; None where it is no grid: too few, no axes, no training loss."""
    rows = [row for row in study.good if row.get("final_train_loss")]
    if len(rows) < LEAST:
        return None
    variants = [row["variant"] for row in rows]
    found_axes = axes(study, variants)
    if not found_axes:
        return None
    column = lambda name: np.array([number(row.get(name)) for row in rows])  # noqa: E731
    loss, accuracy = column("final_train_loss"), column("final_train_accuracy")
    names = [c for c in measure_columns(rows) if c not in NO_MEASURE]
    measures = {name: column(name) for name in names}
    if "training_loss_sum" in rows[0]:
        measures["training_loss_sum"] = column("training_loss_sum")
    measures |= {"train_loss": loss, "train_error": 1 - accuracy}
    last = ends(study)
    # evaluation mode, after the last epoch
    test = np.array([number(last[row["run"]]["test_loss"]) for row in rows])
    error = 1 - np.array([number(last[row["run"]]["test_accuracy"]) for row in rows])
    targets = dict(zip(TARGETS, (test, error, test - loss, error - (1 - accuracy)), strict=True))
    # A study in which every run had to come down to one training loss fits by that rule.
    stops = {float(study.settings(v).get("stop_loss") or 0.0) for v in variants}
    fit = fit_filter(accuracy, loss, loss=max(0.01, *stops) if len(stops) == 1 else 0.01)
    runs = [row["run"] for row in rows]
    return Grid(runs, variants, found_axes, measures, targets, loss, fit)


@once
def of(study: Study) -> tuple[Grid, list[dict[str, Any]]] | None:
    """The grid and `ranking_table.rows` of it; None where it is no grid.

    Models are resampled by configuration.
    """
    found = grid(study) if "predictors" in study.report_option("figures", ()) else None
    return None if found is None else (
        found,
        ranking_table.rows(
            found.measures, found.targets, found.axes, train_loss=found.train_loss,
            clusters=found.variants, fit=found.fit,
        ),
    )  # fmt: skip


def chosen(
    rows: Sequence[dict[str, Any]], target: str, models: str = "fit"
) -> list[dict[str, Any]]:
    """The rows of one target over the models that fit, by tau-a, the largest first."""
    some = [r for r in rows if r["target"] == target and r["models"] == models]
    return sorted(some, key=lambda r: -r["tau_a"] if np.isfinite(r["tau_a"]) else np.inf)
