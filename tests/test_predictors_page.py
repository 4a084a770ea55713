"""The statistics page of a grid of models, and measures that its studies take."""

import csv
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from prunejax.configs import default, predictors
from prunejax.measures import folding, norms, rivals
from prunejax.measures.prunability import prune_curve
from prunejax.measures.ranking_statistics import kendall
from prunejax.record.checkpoint import Checkpoints
from prunejax.report import figures_predictors, ranking, tables
from prunejax.report.style import Look
from prunejax.study import config as config_lib
from prunejax.study import measuring, plan, run
from prunejax.study.arrangement import device_data
from prunejax.study.population import Population


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Eight small networks that stop at one training loss, with every measure of the grid."""
    path = tmp_path_factory.mktemp("grid") / "run"
    config = predictors.get_config("quick")
    config.population.layout = "sequential"
    run.run(config, path, default.get_config(), quiet=True)
    return path


def test_the_grid_is_that_of_the_tables(study):
    loaded = tables.load([study])
    grid, rows = ranking.of(loaded)
    assert set(grid.axes) == {
        "optimizer.learning_rate", "start.scale", "optimizer.weight_decay"
    }  # fmt: skip
    assert len(grid.runs) == 8
    with open(study / "epochs.csv", newline="") as file:
        epochs = list(csv.DictReader(file))
    for i, name in enumerate(grid.runs):
        own = [e for e in epochs if e["run"] == name]
        assert grid.targets["test_loss"][i] == float(own[-1]["test_loss"])
        assert grid.targets["test_error"][i] == pytest.approx(1 - float(own[-1]["test_accuracy"]))
    row = next(
        r for r in rows
        if (r["measure"], r["target"], r["models"]) == ("l2_norm", "test_loss", "all")
    )  # fmt: skip
    expected = kendall(grid.measures["l2_norm"], grid.targets["test_loss"])
    assert row["tau_a"] == pytest.approx(expected.value)
    assert grid.train_loss[grid.fit.keep].max() <= 0.5 or grid.fit.keep.sum() == 0
    with open(study / "predictors.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows)
    assert {r["models"] for r in written} == {"fit", "all"}


def test_the_page_draws_and_says_what_was_left_out(study):
    loaded = tables.load([study])
    drawing = figures_predictors.predictors(loaded, Look([], []))
    grid, _ = ranking.of(loaded)
    assert grid.fit.sentence in drawing.caption
    page = (study / "report.html").read_text()
    assert "What predicts generalization" in page
    assert (study / "figures" / "predictors.svg").exists()


def test_measured_columns_are_those_of_the_library(study):
    """One run measured by hand: rivals and prunability on its own weights and training set."""
    config = predictors.get_config("quick")
    config.population.layout = "sequential"
    (batch,) = plan.build(config_lib.variants(config, default.get_config()))
    row = tables.load([study]).runs[0]

    member = next(m for m in batch.members if m.run == row["run"])
    people = Population(
        batch.program, device_data(batch.dataset), "sequential", jax.devices()[:1], member
    )
    finals = sorted((study / "checkpoints").glob("final-*"))
    saved = next(
        r
        for f in finals
        if (r := Checkpoints(f, keep=1).restore(people.abstract(1))).facts["runs"] == [member.run]
    )
    state = jax.tree.map(np.asarray, people.member(saved.states, 0))
    context = measuring.Measurer(batch, config_of(config)).context(state)
    of = context.network()
    layers = folding.layers(of.module, of.variables, of.batches[0][0].shape[1:])
    kernels = [np.asarray(of.variables["params"][x.name]["kernel"], np.float64) for x in layers]
    assert float(row["l2_norm"]) == pytest.approx(
        np.sqrt(sum((k**2).sum() for k in kernels)), rel=1e-5
    )
    assert float(row["log_spectral_product"]) == pytest.approx(
        sum(np.log(np.linalg.norm(k, 2)) for k in kernels), rel=1e-5
    )
    assert float(row["parameters"]) == sum(k.size for k in kernels)
    assert norms.log_spectral_product(of.variables["params"], layers) == pytest.approx(
        float(row["log_spectral_product"]), rel=1e-5
    )
    curve = prune_curve(context.evaluate, context.params, context.batches, scope="layer")
    assert float(row["prunability_layerwise"]) == curve.at().value
    assert set(rivals.COLUMNS) <= set(row)
    moved = [
        k - np.asarray(of.untrained["params"][x.name]["kernel"])
        for k, x in zip(kernels, layers, strict=True)
    ]
    assert float(row["distance_to_init"]) == pytest.approx(
        np.sqrt(sum((m**2).sum() for m in moved)), rel=1e-5
    )


def config_of(config):
    """The complete settings of a study's first arm."""
    return config_lib.variants(config, default.get_config())[0].settings


def test_fields_that_go_together_are_one_axis():
    arms = {
        "a": {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "batch_size": 8},
        "b": {"optimizer": {"name": "adam", "learning_rate": 1e-3}, "batch_size": 8},
    }
    assert ranking.axes(SimpleNamespace(overrides=arms), ["a", "b", "b"]) == {
        "optimizer.name": ["sgd", "adam", "adam"]
    }


def test_double_descent_needs_four_widths():
    assert figures_predictors.double_descent(SimpleNamespace(good=[]), None) is None
