"""How well gradient and curvature foretell what an event does to the loss.

Before an event that takes the weights d away, the expansion of the loss says g·d (first order) and
g·d + d·Hd/2 (second order); `events.csv` has both beside the loss before and after. Events of
one seed belong together: they are the blocks of the interval (`correlation.clustered`), which asks
what other seeds would give for these arms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

import numpy as np

from prunejax.measures import correlation
from prunejax.measures.columns import number
from prunejax.measures.summary import jsonable
from prunejax.record.summary import by_event

COLUMNS = {"first": "predicted_first", "second": "predicted_second"}  # order -> column

Row = Mapping[str, str]


def forecast_rows(events: Sequence[Row]) -> list[Row]:
    """The rows of `events.csv` that have both forecasts."""
    return [r for r in events if all(isfinite(number(r.get(c))) for c in COLUMNS.values())]


def points(rows: Sequence[Row], column: str) -> list[tuple[str, float, float]]:
    """(seed, measured, predicted) change of the loss in nats, per event.

    Layers of one event share the measured change. They share the prediction too if it was made
    for the event as a whole; predictions of single layers are added.
    """
    found = []
    for layers in by_event(rows):
        values = [number(row[column]) for row in layers]
        predicted = values[0] if len(set(values)) == 1 else sum(values)
        # of the evaluation before and after, no step in between
        measured = number(layers[0]["post_loss"]) - number(layers[0]["pre_loss"])
        found.append((layers[0]["seed"], measured, predicted))
    return found


def forecasts(events: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """By order, "first" and "second": r of measured and predicted, its interval, rms error, n.

    Args: events: rows of `events.csv`.

    Returns:
      Dicts of `correlation.Correlation` (`n` events, seeds as blocks) with `rms_error` in nats and
      `seeds`; empty without forecasts.
    """
    rows = forecast_rows(events)
    found: dict[str, dict[str, Any]] = {}
    for order, column in COLUMNS.items() if rows else ():
        seeds, measured, predicted = zip(*points(rows, column), strict=True)
        off = np.array(predicted) - np.array(measured)
        off = off[np.isfinite(off)]  # an event may leave a loss that is no number
        error = np.sqrt(np.mean(off**2)) if off.size else np.nan
        found[order] = {
            # events of one seed are no independent pairs
            **asdict(correlation.clustered(measured, predicted, seeds)),
            "rms_error": float(error),
            "seeds": len(set(seeds)),
        }
    result: dict[str, dict[str, Any]] = jsonable(found)
    return result
