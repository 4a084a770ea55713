"""Forecasts of events: per event, and their correlation with seeds as blocks."""

import numpy as np
import pytest

from prunejax.measures import correlation, forecasts


def test_forecasts_of_an_event_are_shared_or_added():
    event = {"run": "a", "seed": "0", "pre_loss": "1"}
    rows = [
        event | {"epoch": "1", "post_loss": "2.5", "predicted": "0.5"},
        event | {"epoch": "1", "post_loss": "2.5", "predicted": "0.5"},
        event | {"epoch": "2", "post_loss": "1.5", "predicted": "0.5"},
        event | {"epoch": "2", "post_loss": "1.5", "predicted": "0.25"},
    ]
    assert forecasts.points(rows, "predicted") == [("0", 1.5, 0.5), ("0", 0.5, 0.75)]


def events(shared, seeds=6, count=20):
    """Events whose forecasts err by what a seed's events have in common, and by their own."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(seeds):
        slope = 1 + shared * rng.normal()
        for epoch in range(count):
            predicted = rng.uniform(0, 1)
            measured = slope * predicted + 0.2 * rng.normal()
            rows.append({
                "run": f"L-{seed}", "seed": str(seed), "epoch": str(epoch), "pre_loss": "1",
                "post_loss": repr(1 + measured), "predicted_first": "0.1",
                "predicted_second": repr(predicted),
            })  # fmt: skip
    return rows


def test_seeds_are_the_blocks_of_the_interval():
    rows = events(shared=1.0)
    found = forecasts.forecasts(rows)["second"]
    seeds, measured, predicted = zip(*forecasts.points(rows, "predicted_second"), strict=True)
    expected = correlation.clustered(measured, predicted, seeds)
    assert (found["value"], found["low"], found["high"]) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    assert (found["n"], found["seeds"]) == (120, 6)
    off = np.array(predicted) - np.array(measured)
    assert found["rms_error"] == pytest.approx(np.sqrt(np.mean(off**2)))
    pooled = correlation.pearson(measured, predicted)  # as if 120 events were independent
    assert found["high"] - found["low"] > 1.5 * (pooled.high - pooled.low)


def test_undefined_forecasts():
    assert forecasts.forecasts([]) == {}
    assert forecasts.forecasts([{"run": "a", "predicted_first": ""}]) == {}
    first = forecasts.forecasts(events(0.0))["first"]
    assert first["value"] is None  # the same for all events
    rows = [row | {"post_loss": "nan"} for row in events(0.0, seeds=1, count=2)]
    assert forecasts.forecasts(rows)["second"]["rms_error"] is None
