"""Tables of a study: their columns, and rows of epochs and events from what runs have measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prunejax.groups import Group
from prunejax.measures import suite
from prunejax.record import columns as columns_lib
from prunejax.record.columns import FORECAST
from prunejax.record.directory import SharedDirectory
from prunejax.study.planning.programs import Member
from prunejax.study.settings.config import Variant
from prunejax.train import probes, trackers
from prunejax.train.evaluation import Metrics
from prunejax.train.step import Program

Row = dict[str, Any]


def by_run(
    directory: SharedDirectory, begins: Mapping[str, int], members: Sequence[Member]
) -> list[dict[str, list[dict[str, str]]]]:
    """Of `epochs` and of `events`: run -> its rows, in their order.

    Args: begins: bytes of each table before the members' rows, the only ones that are read.
    """
    found = []
    for table in ("epochs", "events"):
        rows: dict[str, list[dict[str, str]]] = {m.run: [] for m in members}
        for row in directory.rows(table, begins[table]):
            rows[row["run"]].append(row)
        found.append(rows)
    return found


def tables(arms: Sequence[Variant], programs: Sequence[Program]) -> dict[str, tuple[str, ...]]:
    """The columns of each table of a study, whose arms run these programs."""
    settings = arms[0].settings
    found: dict[str, tuple[str, ...]] = {
        "epochs": columns_lib.EPOCHS,
        "events": columns_lib.EVENTS,
        "layers": columns_lib.LAYERS,
        "runs": (*columns_lib.RUNS, *columns_lib.STRUCTURE),
    }
    found |= probes.tables(tuple(settings.probes.names))
    if settings.data.validation_examples:
        found["epochs"] += ("validation_loss", "validation_accuracy")
        found["runs"] += ("selected_epoch", "selected_test_accuracy")
    stops = any(p.stops for p in programs)
    if stops or settings.evaluate_train:
        found["runs"] += (*columns_lib.FIT, columns_lib.LOSS_SUM)
    if stops:
        found["runs"] += (columns_lib.STOPPED,)
    if any(arm.settings.prune.method != "none" for arm in arms):
        found["costs"] = columns_lib.COSTS
        found["runs"] += (*columns_lib.SPENT, columns_lib.PRUNABLE)
    if settings.trackers:
        found["trackers"] = (*trackers.KEYS, *trackers.columns(settings.trackers))
    if any(p.features.growth for p in programs):
        found["updates"] = columns_lib.UPDATES
    if settings.measures.forecast:
        found["events"] += columns_lib.FORECAST
    found["runs"] += suite.columns(settings.measures.names)
    return found


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
    row = member.keys | {
        "epoch": epoch,
        "step": step,
        "train_loss": train.loss[index],
        "train_accuracy": train.accuracy[index],
        "test_loss": test.loss[index],
        "test_accuracy": test.accuracy[index],
        "learning_rate": member.hyper.learning_rate[epoch],  # without the share of a warm-up
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
    before: Metrics | None,
    after: Metrics | None,
    info: Any,
) -> list[Row]:
    """The rows of a run's event: one for each layer in which it had targets.

    `epoch` is the one that it follows or falls into; `before` and `after` are None where the event
    was not tested.
    """
    rows: list[Row] = []
    tested: Row = dict.fromkeys(
        ("pre_accuracy", "post_accuracy", "pre_loss", "post_loss", "instability")
    )
    if before is not None and after is not None:
        # Quotients in double precision, of what was measured in single.
        pre, post = float(before.accuracy[index]), float(after.accuracy[index])
        tested = {
            "pre_accuracy": before.accuracy[index],
            "post_accuracy": after.accuracy[index],
            "pre_loss": before.loss[index],
            "post_loss": after.loss[index],
            "instability": (pre - post) / pre if pre else None,  # relative: 0.9 -> 0.63 is 0.3
        }
    # All with one test: events have no stability by layer.
    for layer in np.flatnonzero(info.targeted[index]):
        row = member.keys | {
            "epoch": epoch,
            "step": step,
            "layer": program.groups[layer].layer,
            "targeted": info.targeted[index, layer],
            "live": info.live[index, layer],
        }
        row |= tested
        if program.forecast:  # of the event: the same in its layers
            row |= dict(zip(FORECAST, info.predicted[index], strict=True))
        rows.append(row)
    return rows


def of_update(
    groups: Sequence[Group],
    member: Member,
    index: int,
    epoch: int,
    number: int,
    step: Any,
    info: Any,
) -> list[Row]:
    """The rows of `updates.csv` of the event in row `number`: one a layer that drops or grows."""
    growth, targeted, rows = info.growth, info.targeted[index], []
    asked = member.table.grow[number] > 0
    several = bool(asked[1:].any()) or len(groups) == 1
    for layer, group in enumerate(groups):
        grown, before = growth.grown[index, layer], growth.before[index, layer]
        zero = growth.zero[index, layer]  # -1: what came back was not chosen by gradients
        if not (targeted[layer] or grown or (several and asked[layer])):
            continue
        rows.append(
            member.keys
            | {
                "epoch": epoch,
                "step": step,
                "layer": group.layer,
                "dropped": targeted[layer],
                "grown": grown,
                "live": info.live[index, layer],
                "zero_gradient": zero / grown if grown and zero >= 0 else None,
                "survival": growth.survived[index, layer] / before if before else None,
                "ever_live": growth.ever[index, layer],
            }
        )
    return rows
