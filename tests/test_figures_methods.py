"""Figures of ways of pruning: what they say is what the rows hold."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from prunejax.errors import ReportError
from prunejax.measures.claims import Claim
from prunejax.measures.columns import by_variant
from prunejax.report import figures_density, intact
from prunejax.report import figures_methods as figures

ARMS = {  # arm -> accuracy of two seeds, cost of training
    "dense": ((0.98, 0.97), 1.0),
    "snip-05": ((0.94, 0.95), 0.05),
    "snip-02": ((0.70, 0.72), 0.02),
    "snip_shuffled-05": ((0.80, 0.82), 0.05),
    "snip_fresh-05": ((0.93, 0.94), 0.05),
    "rigl-05": ((0.95, 0.96), 0.06),
}


@pytest.fixture
def study():
    good = [
        {
            "run": f"{arm}-{seed}",
            "variant": arm,
            "seed": str(seed),
            "final_test_accuracy": str(accuracy),
            "training_flops": str(cost),
            "sparsity": "0.9",
        }
        for arm, (accuracies, cost) in ARMS.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    layers = [
        {**row, "layer": layer, "weights": "100", "live_weights": live, "dead_units": "1"}
        for row in good
        if row["variant"] != "dense"
        for layer, live in (("a", "5"), ("b", "20"))
    ]
    costs = [{**row, "layer": layer, "weights": "100"} for row in good for layer in ("a", "b")]
    updates = [
        {**row, "step": str(step), "layer": layer, "ever_live": ever, "survival": survival}
        for row in good
        if row["variant"] == "rigl-05"
        for step, ever, survival in (("10", "20", ""), ("20", "30", "0.5"), ("30", "45", "0.25"))
        for layer in ("a", "b")
    ]
    arms = by_variant(good)
    return SimpleNamespace(
        good=good, good_of=arms, baseline="dense", layers=layers, costs=costs, updates=updates
    )


def test_labels_have_a_name_a_control_and_a_density():
    assert figures.parts("snip_fan_in-05") == ("snip", "fan_in", "05")
    assert figures.parts("gradual_regrow-20") == ("gradual_regrow", "", "20")
    assert figures.parts("dense") == ("dense", "", "")


def test_costs_are_named_from_the_cheapest_density(study):
    found = figures.flops(study, None)
    assert found.alt == "Least cost of each, relative to dense: snip 2.0%, rigl 6.0%."


def test_one_cost_that_is_no_number_leaves_the_others(study):
    for row in study.good:
        if row["run"] == "snip-02-1":
            row["training_flops"] = "nan"
    assert "snip 2.0%" in figures.flops(study, None).alt


def test_controls_stand_beside_their_method(study):
    found = figures.sanity(study, None)
    assert found.alt == "snip-05 94.5% (shuffled 81.0%, fresh 93.5%)."


def test_densities_by_layer_of_the_density_that_most_share(study):
    found = figures.layers(study, None)
    assert "arms that end in -05" in found.caption
    assert "(12 in all runs" in found.caption
    assert found.alt == "Sparsest layer of each: snip-05 5.0%, rigl-05 5.0%."


def test_what_was_ever_live_is_of_all_layers(study):
    found = figures.updates(study, None)
    assert found.alt == "Ever live at the last update: rigl-05 45.0%."
    rows = [row for row in study.updates if row["variant"] == "rigl-05"]
    sizes = {"a": 100.0, "b": 100.0}
    assert figures._over_time(rows, "survival", sizes) == ([20, 30], [50.0, 25.0])


def test_nothing_to_show():
    empty = SimpleNamespace(good=[], good_of={}, baseline="dense", layers=[], costs=[], updates=[])
    for draw in (figures.flops, figures.sanity, figures.layers, figures.updates):
        assert draw(empty, None) is None


def test_seeds_of_a_global_preset_may_lose_other_layers():
    config = {"variants": {"a": {"prune": {"method": "gradual"}}}}
    runs = [{"run": f"a-{seed}", "variant": "a"} for seed in (0, 1)]
    row = {"epoch": "0", "step": "4", "layer": "dense1"}
    events = {"a-0": [row, row | {"layer": "dense2"}], "a-1": [row]}
    intact._events(Path("x"), config, runs, events, {"a": {"scope": "global"}})
    with pytest.raises(ReportError, match="no row for layer dense2"):
        intact._events(Path("x"), config, runs, events, {})


def test_rounds_of_a_preset_are_events_of_one_step():
    config = {"variants": {"a": {"prune": {"method": "synflow", "scope": "layer"}}}}
    row = {"epoch": "-1", "step": "0", "layer": "dense1"}
    given = Path("x"), config, [{"run": "a-0", "variant": "a"}], {"a-0": [row, row]}
    intact._events(*given, {"a": {"scope": "layer", "preset": {"rounds": 100}}})
    with pytest.raises(ReportError, match="has a twin"):
        intact._events(*given, {})


def test_density_shows_the_shares_that_claims_are_about():
    """Accuracy, and beside it each measured share of a claim; its curves are the means of seeds."""
    good = []
    for arm, live in (("dense", 1.0), ("snip-50", 0.5), ("snip-20", 0.2), ("erk-20", 0.2)):
        for seed in range(3):
            row = {"run": f"{arm}-{seed}", "variant": arm, "seed": str(seed)}
            row |= {"final_test_accuracy": f"{0.9 * live + 0.01 * seed}", "sparsity": str(1 - live)}
            row |= {"crown_certified": f"{0.4 + live / 10}", "live_weights": f"{100 * live}"}
            good.append(row)
    columns = ("crown_certified", "final_test_accuracy", "live_weights")
    claims = [Claim("", "snip-20", ">", "dense", c) for c in columns]
    study = SimpleNamespace(good=good, good_of=by_variant(good), baseline="dense", claims=claims)
    drawing = figures_density.density(study, None)
    axes = [panel.axes[0] for panel in drawing.panels[:-1]]
    assert [a.get_ylabel() for a in axes] == [
        "final test accuracy, %",
        "share certified by CROWN, %",
    ]
    (snip,) = (x for x in axes[1].lines if len(x.get_xdata()) == 2 and x.get_marker() != "None")
    assert list(snip.get_xdata()) == pytest.approx([20, 50])
    assert list(snip.get_ydata()) == pytest.approx([42, 45])
    assert "share certified by CROWN: snip 42.0%, erk 42.0%" in drawing.alt
    study.claims = []
    assert figures_density.density(study, None).alt.endswith(": snip 19.0%, erk 19.0%.")
