"""`costs.csv` and the columns of cost in runs.csv, of a study that names methods."""

import csv

import pytest

from prunejax.configs import default
from prunejax.study import run
from tests.studies import go, rows, tiny


def test_what_a_run_cost_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(run.report, "build", lambda paths: paths[0] / "report.html")
    rigl = {"method": "rigl", "fraction": (0.75,), "update_every": 2}
    config = tiny(dense={}, rigl={"prune": rigl})
    config.seeds, config.epochs = 1, 1
    config.model.name = "mlp128_64"
    run.run(config, tmp_path / "run", default.get_config(), quiet=True)
    found = {}
    for table in ("runs", "costs", "updates", "events", "layers"):
        with open(tmp_path / "run" / f"{table}.csv", newline="") as file:
            found[table] = list(csv.DictReader(file))
    sizes = {"dense1": 1024, "dense2": 128, "classifier": 80}
    mine = {r["layer"]: r for r in found["costs"] if r["variant"] == "rigl"}
    assert {k: int(r["weights"]) for k, r in mine.items()} == sizes
    assert {k: int(r["multiply_adds"]) for k, r in mine.items()} == sizes
    assert sum(int(r["live"]) for r in mine.values()) == 1232 // 4
    for table in ("updates", "events", "layers"):  # a layer has one name, whatever chose it
        assert {r["layer"] for r in found[table] if r["variant"] == "rigl"} == set(sizes), table
    assert all(float(r["mean_live"]) == int(r["live"]) for r in mine.values())
    costs = {r["variant"]: r for r in found["runs"]}
    assert float(costs["dense"]["training_flops"]) == 1
    of_pruned = {name: row["prunable_sparsity"] for name, row in costs.items()}
    assert of_pruned == {"dense": "", "rigl": "0.75"}  # nothing is pruned in the program of dense
    assert float(costs["rigl"]["sparsity"]) < 0.75  # of all parameters: biases stay
    assert float(costs["rigl"]["inference_flops"]) == pytest.approx(0.25)
    # 4 steps, one update (at step 2): a pass forward and back with a dense gradient.
    expected = (3 * 0.25 + (2 * 0.25 + 1) / 4) / 3
    assert float(costs["rigl"]["training_flops"]) == pytest.approx(expected)


def test_what_an_arm_cost_does_not_depend_on_its_neighbours(tmp_path, monkeypatch):
    """Its share was of the layers of all arms of the program, and its events were updates, too."""
    monkeypatch.setattr(run.report, "build", lambda paths: paths[0] / "report.html")
    steps = {"start": (2,), "end": (6,), "period": 2, "layers": ("dense1",), "fraction": (0.5,)}
    acdc = {"method": "acdc", "phases": (1, 2, 3), "fraction": (0.25,), "layers": ("dense2",)}
    config = tiny(gradual={"prune": {"method": "gradual", **steps}}, acdc={"prune": acdc})
    config.prune.granularity = "weight"
    config.seeds, config.epochs, config.data.train_examples = 1, 2, 128
    config.model.name = "mlp128_64"
    go(config, tmp_path / "run")
    found = {t: rows(tmp_path / "run", t) for t in ("runs", "costs", "updates", "events")}
    assert {r["variant"] for r in found["updates"]} == {"acdc"}
    events = [r for r in found["events"] if r["variant"] == "gradual"]
    assert [int(r["step"]) for r in events] == [2, 4, 6]
    costs = {(r["variant"], r["layer"]): r for r in found["costs"]}
    assert set(costs) == {("gradual", "dense1"), ("acdc", "dense2")}
    shares = {r["variant"]: float(r["prunable_sparsity"]) for r in found["runs"]}
    assert shares == {"gradual": 0.5, "acdc": 0.25}
    assert [r["ever_live"] for r in costs.values()] == ["", "128"]
    targeted = [int(r["targeted"]) for r in events]
    live = [1024, 1024 - targeted[0], 1024 - sum(targeted[:2]), 512]
    mean = float(costs["gradual", "dense1"]["mean_live"])
    assert mean == pytest.approx(sum(2 * n for n in live) / 8, abs=1e-3)
