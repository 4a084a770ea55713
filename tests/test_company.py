"""What a run records does not depend on the runs that train beside it."""

import numpy as np
import pytest

from prunejax.report import panels, tables
from prunejax.report.curves import accuracy_curves
from tests.studies import go, rows, small

LAYER = {"layers": ("dense1",), "fraction": (0.5,)}
EPOCHS = LAYER | {"schedule": "linear", "start": (0,), "end": (1,), "target": "largest"}
STEPS = LAYER | {"schedule": "one_shot", "unit": "step", "start": (6,)}
WILD = {"prune": EPOCHS, "optimizer": {"learning_rate": 1e30}}
REPLAY = {"kind": "zero", "duration": 1, "mask_norm": False, "twin": "wild"}
ARMS = {
    "quiet": {},
    "stops": {"stop_loss": 100.0},
    "S": {"prune": EPOCHS},
    "tested": {"prune": STEPS | {"evaluate_between": True}},
    "untested": {"prune": STEPS},
    "wild": WILD,
    "twin": {"prune": EPOCHS, "intervention": REPLAY},
    "masks": {"start": {"run": "wild", "take": ("masks",)}},
    # Updates on the steps of its other events, all of them tested.
    "both": {
        "prune": EPOCHS
        | {"grow": "random", "update_every": 4, "update_score": "l2", "update_schedule": "constant"}
        | {"evaluate_between": True}
    },
    "mixed": {"start": {"run": "quiet", "shuffle": "global"}},  # of no masks; it was a trace
}


@pytest.fixture(scope="module", params=["sequential", "vectorized"])
def study(request, tmp_path_factory):
    """4 epochs of 4 steps, of which the third and the last are evaluated."""
    config = small(**ARMS)
    config.evaluate_every, config.population.layout = 3, request.param
    path = tmp_path_factory.mktemp("study")
    go(config, path, page=False)
    return path


def of(path, table, arm):
    return [row for row in rows(path, table) if row["variant"] == arm]


def test_epochs_with_events_of_other_arms_are_not_evaluated(study):
    """They were, in a stack: rows, the best epoch, and whether a run stops followed from it."""
    found = {arm: [int(row["epoch"]) for row in of(study, "epochs", arm)] for arm in ARMS}
    assert found["quiet"] == found["tested"] == found["masks"] == found["mixed"] == [2, 3]
    assert found["S"] == found["twin"] == found["both"] == [0, 1, 2, 3]
    assert found["wild"] == []
    assert found["stops"] == [2]
    assert [row["stopped_step"] for row in of(study, "runs", "stops")] == ["12"]


def test_events_are_tested_where_the_arm_asks(study):
    """An arm beside one that asks was tested as well: it had a stability, alone it had none."""
    (asked,), (not_asked,) = (of(study, "events", arm) for arm in ("tested", "untested"))
    assert asked["targeted"] == not_asked["targeted"]
    assert asked["pre_accuracy"]
    assert asked["post_loss"]
    for column in ("pre_accuracy", "post_accuracy", "pre_loss", "post_loss", "instability"):
        assert not not_asked[column]
    events = {arm: of(study, "runs", arm)[0]["events"] for arm in ("tested", "untested")}
    assert events == {"tested": "1", "untested": "0"}


def test_targets_are_called_by_epoch_and_from_the_number_of_epochs_on_by_step(study):
    """As `Loaded.targets` says: of 4 epochs, the events by step are 4, 5, ..., in any company."""
    found = {}
    for arm in ("S", "tested", "both"):  # "both" has updates at steps 4, where none is dead, and 8
        with np.load(study / "targets" / f"{arm}-0.npz") as targets:
            found[arm] = sorted({int(name.partition("/")[0]) for name in targets.files})
    assert found == {"S": [0, 1], "tested": [4], "both": [0, 1, 5]}


def test_a_run_that_diverges_leaves_to_others_what_it_leaves_in_company(study):
    """Alone it ended at once, without its second event; then its twin had none either."""
    assert "non-finite" in of(study, "runs", "wild")[0]["status"]
    with (
        np.load(study / "targets" / "wild-0.npz") as own,
        np.load(study / "targets" / "twin-0.npz") as replayed,
    ):
        assert set(own.files) == set(replayed.files) == {"0/dense1", "1/dense1"}
        for name in own.files:
            np.testing.assert_array_equal(own[name], replayed[name])
    (layer,) = [row for row in of(study, "layers", "masks") if row["layer"] == "dense1"]
    assert int(layer["masked_units"]) == int(layer["units"]) // 2  # both events, as planned
    targeted = [int(row["targeted"]) for row in of(study, "events", "twin")]
    assert targeted == [int(row["targeted"]) for row in of(study, "events", "S")]


def test_several_events_on_one_step_are_several(study):
    """The page of such a study was refused, as if its table were damaged; stability was of one."""
    assert {row["variant"] for row in rows(study, "updates")} == {"both"}
    own = of(study, "events", "both")
    # The update on step 4 comes before any unit is dead: there is nothing to swap.
    assert [row["step"] for row in own] == ["4", "8", "8"]
    drops = [float(row["instability"]) for row in own]
    (row,) = of(study, "runs", "both")
    assert row["events"] == "3"
    assert float(row["mean_stability"]) == pytest.approx(1 - np.mean(drops))
    assert own[1]["post_loss"] == own[2]["pre_loss"]
    loaded = tables.load([study])
    table = panels.events(loaded)
    (shown,) = (dict(zip(table.head, row, strict=True)) for row in table.rows if row[0] == "both")
    assert shown["events per run"] == "3"
    mean = float(shown["mean instability, %"].replace("\u2212", "-"))
    assert mean == pytest.approx(100 * np.mean(drops), abs=0.005)
    # The curve goes from before the first to after the last; events amid an epoch have no point.
    epochs, (curve,) = accuracy_curves(loaded, "both")
    assert [*epochs] == [0, 0, 1, 1, 2, 3]
    expected = [own[i][f"{when}_accuracy"] for i, when in ((1, "pre"), (2, "post"))]
    assert [*curve[2:4]] == pytest.approx([float(x) for x in expected])
    epochs, _ = accuracy_curves(loaded, "tested")
    assert [*epochs] == [2, 3]
