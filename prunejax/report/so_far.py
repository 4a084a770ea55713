"""How far an unfinished study has come, as a table of the page."""

from math import isfinite
from typing import Any

import numpy as np

from prunejax.measures.columns import by_variant, number
from prunejax.report.panels import Table
from prunejax.report.results import Study
from prunejax.report.words import DASH


def progress(study: Study) -> Table | None:
    """How far the runs of an unfinished study have come, from `epochs.csv`."""
    ended = {row["run"] for row in study.runs}
    accuracy = study.has_accuracy  # a regression has none
    test, word = ("test_accuracy", "test accuracy, %") if accuracy else ("test_loss", "test loss")
    rows = []
    for label, own in by_variant(study.epochs).items():
        last = {row["run"]: row for row in own}  # the latest of each run
        epochs = sorted(int(row["epoch"]) + 1 for row in last.values())
        reached = str(epochs[0]) if epochs[0] == epochs[-1] else f"{epochs[0]} to {epochs[-1]}"
        asked = study.settings(label).get("epochs")
        reached += f" of {asked}" if asked else ""
        cells = [_latest(last.values(), c) for c in ("train_loss", test, "sparsity")]
        done = str(sum(run in ended for run in last))
        rows.append([label, str(len(last)), done, reached, *cells])
    if not rows:
        return None
    head = ["arm", "runs begun", "ended", "epochs", "train loss", word]
    text = "Means over the runs that have begun, each after its latest epoch."
    return Table([*head, "sparsity, %"], rows, "So far", text)


def _latest(rows: Any, column: str) -> str:
    values = [number(row.get(column)) for row in rows]
    known = [x for x in values if isfinite(x)]
    if not known:
        return DASH
    if column.endswith("loss"):
        return f"{np.mean(known):.3g}"
    return f"{100 * np.mean(known):.2f}"
