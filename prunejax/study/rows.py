"""The rows of `epochs.csv` and `events.csv`, from what a stack of runs has measured."""

from typing import Any

import numpy as np

from prunejax.record.run_directory import FORECAST
from prunejax.study.plan import Member
from prunejax.train.evaluation import Metrics
from prunejax.train.step import Program

Row = dict[str, Any]


def _run(member: Member) -> Row:
    return {"run": member.run, "variant": member.variant, "seed": member.seed}


def of_epoch(
    member: Member,
    index: int,
    epoch: int,
    *,
    step: Any,
    sparsity: Any,
    train: Metrics,
    test: Metrics,
    validation: Metrics | None,
) -> Row:
    """The row of a run after an epoch; it is the `index`-th of the stack."""
    row = _run(member) | {
        "epoch": epoch,
        "step": step,
        "train_loss": train.loss[index],
        "train_accuracy": train.accuracy[index],
        "test_loss": test.loss[index],
        "test_accuracy": test.accuracy[index],
        "learning_rate": member.hyper.learning_rate[epoch],
        "sparsity": sparsity,
    }
    if validation is not None:
        row["validation_loss"] = validation.loss[index]
        row["validation_accuracy"] = validation.accuracy[index]
    return row


def of_event(
    program: Program,
    member: Member,
    index: int,
    epoch: int,
    *,
    step: Any,
    before: Metrics,
    after: Metrics,
    info: Any,
) -> list[Row]:
    """The rows of a run's event after an epoch: one for each layer in which it had targets."""
    pre, post = float(before.accuracy[index]), float(after.accuracy[index])
    rows = []
    for layer in np.flatnonzero(info.targeted[index]):
        row = _run(member) | {
            "epoch": epoch,
            "step": step,
            "layer": program.groups[layer].name,
            "targeted": info.targeted[index, layer],
            "live": info.live[index, layer],
            "pre_accuracy": before.accuracy[index],
            "post_accuracy": after.accuracy[index],
            "pre_loss": before.loss[index],
            "post_loss": after.loss[index],
            "instability": (pre - post) / pre if pre else None,
        }
        if program.forecast:  # of the event: the same in its layers
            row |= dict(zip(FORECAST, info.predicted[index], strict=True))
        rows.append(row)
    return rows
