"""The statistics page of a grid of models, and measures that its studies take."""

import csv
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax.configs import default, predictors
from prunejax.measures import folding, norms, rivals
from prunejax.measures import predictors as measured
from prunejax.measures.prunability import prune_curve
from prunejax.measures.ranking_statistics import kendall
from prunejax.record.checkpoint import Checkpoints
from prunejax.report import figures_predictors, ranking, tables
from prunejax.report.attributes import attributes_of
from prunejax.report.results import Study
from prunejax.report.style import Look
from prunejax.study import run
from prunejax.study.devices.arrangement import device_data
from prunejax.study.devices.population import Population
from prunejax.study.loop import measuring
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Eight small networks that stop at one training loss, with every measure of the grid."""
    path = tmp_path_factory.mktemp("grid") / "run"
    config = predictors.get_config("quick")
    config.population.layout = "sequential"
    run.run(config, path, default.get_config(), quiet=True)
    return path


@pytest.mark.slow
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
    speed = [float(r["training_loss_sum"]) for r in loaded.runs]
    np.testing.assert_array_equal(grid.measures["training_loss_sum"], speed)
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
    context = measuring.Measurer(batch, config_of(config), print).context(state)
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
    assert float(row["kernel_distance_to_init"]) == pytest.approx(
        np.sqrt(sum((m**2).sum() for m in moved)), rel=1e-5
    )


def test_of_few_configurations_and_missing_values_the_headline_tells(study):
    loaded = tables.load([study])
    for row in loaded.runs[:3]:
        row["l2_norm"] = ""
    grid, rows = ranking.of(loaded)
    models = "fit" if grid.fit.keep.sum() >= ranking.LEAST else "all"
    row = next(r for r in ranking.chosen(rows, "test_loss", models) if r["measure"] == "l2_norm")
    assert row["left_out"] == 3
    assert figures_predictors.sentence(row).startswith("L2 norm (n = 5) ")
    drawing = figures_predictors.predictors(loaded, Look([], []))
    labels = [t.get_text() for t in drawing.panels[0].axes[0].get_yticklabels()]
    assert "L2 norm (n = 5)" in labels
    assert "L2 norm" not in labels
    assert "of those that every model has" in drawing.caption
    few = [r | {"tau_a_low": np.nan, "tau_a_high": np.nan} for r in rows]
    (line, _) = figures_predictors.first_lines(grid, few)
    assert "too few configurations (8) for intervals: " in line
    assert "[95 %]" not in line


def test_a_measure_of_the_same_numbers_is_named_once(study):
    loaded = tables.load([study])
    for row in loaded.runs:
        row["path_norm"] = row["l2_norm"] = str(10 * float(row["final_train_loss"]))
    grid, rows = ranking.of(loaded)
    shown = figures_predictors._strongest(grid, ranking.chosen(rows, "test_loss", "all"))
    names = [r["measure"] for r in shown]
    assert ("path_norm" in names) + ("l2_norm" in names) == 1
    assert len(names) == len(set(names))


@pytest.mark.parametrize("loss", [0.0, 0.5])
def test_a_tolerance_that_switched_is_told(loss):
    """A network of two weights that has the loss given with both of them, 1 with fewer."""
    params = {"w": {"kernel": jnp.array([[1.0, 2.0]])}}

    def evaluate(params):
        whole = jnp.count_nonzero(params["w"]["kernel"]) == 2
        return {"loss": jnp.where(whole, loss, 1.0), "accuracy": jnp.where(whole, 1.0, 0.0)}

    context = SimpleNamespace(
        curve=prune_curve(evaluate, params, None), params=params, batches=[[None]], loss_of=None,
        outputs=lambda params, batch: params["w"]["kernel"],
    )  # fmt: skip
    columns, arrays = measured.prunability(context)
    assert columns["prunability"] == 1
    assert bool(arrays["prunability_switched"]) == (loss == 0)
    told, saved = [], {}
    hook = SimpleNamespace(
        _last=1, _tell=told.append,
        _directory=SimpleNamespace(save_arrays=lambda name, **arrays: saved.update(arrays)),
    )  # fmt: skip
    measuring.Hook.record(hook, (columns, arrays, {}), SimpleNamespace(run="a-0"), 1)
    assert set(saved) == set(arrays)
    assert [t.split(":")[0] for t in told] == ["a-0"] * (loss == 0)


def config_of(config):
    """The complete settings of a study's first arm."""
    return config_lib.variants(config, default.get_config())[0].settings


def test_fields_that_go_together_are_one_axis():
    arms = {
        "a": {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "batch_size": 8},
        "b": {"optimizer": {"name": "adam", "learning_rate": 1e-3}, "batch_size": 8},
    }
    assert ranking.axes(studied(arms), ["a", "b", "b"]) == {
        "optimizer.name": ["sgd", "adam", "adam"]
    }


def studied(arms, **study):
    """What `ranking` asks of a study with these arms."""
    known = attributes_of({"variants": arms, **study}, {}, {"epochs": [], "events": []})
    return Study(
        {}, study, {}, {}, {}, {}, epochs=[], events=[], runs=[], arrays={}, attributes=known
    )


def test_an_axis_is_of_what_arms_are_and_not_of_who_sets_it():
    arms = {"a": {"batch_size": 8}, "b": {}, "c": {"batch_size": 16}, "d": {"epochs": 2}}
    assert ranking.axes(studied(arms, batch_size=8, epochs=2, seeds=3), list("abcd")) == {
        "batch_size": [8, 8, 16, 8]
    }


def test_double_descent_has_its_curves_in_one_panel():
    """Two seeds at each of four widths; the dashed curves go by the right axis."""
    widths, curves = (4, 8, 16, 32), np.random.default_rng(0).uniform(0.1, 0.9, size=(5, 4, 2))
    good, epochs, arms = [], [], {}
    for i, width in enumerate(widths):
        arms[f"w{width}"] = {"model": {"width": float(width)}}
        for seed in range(2):
            run, of = f"w{width}-{seed}", curves[:, i, seed]
            row = {"run": run, "variant": f"w{width}", "final_train_loss": str(of[0])}
            good.append(row | {"prunability_absolute": str(of[3]), "prunability": str(of[4])})
            epochs += [
                {"run": run, "test_loss": "9", "test_accuracy": "0"},
                {"run": run, "test_loss": str(of[1]), "test_accuracy": str(1 - of[2])},
            ]
    arms["w4"] = {}  # of the study
    study = studied(arms, model={"width": 4.0})
    study.runs, study.epochs = [row | {"status": "completed"} for row in good], epochs
    drawing = figures_predictors.double_descent(study, None)
    panel, legend = drawing.panels
    left, right = panel.axes
    drawn = [
        line.get_ydata() for axes in (left, right) for line in axes.lines
        if tuple(line.get_xdata()) == widths
    ]  # fmt: skip
    np.testing.assert_allclose(drawn, curves.mean(2))
    peak = widths[curves.mean(2)[1].argmax()]
    assert drawing.alt.endswith(f"at width {peak}.")
    for row in study.epochs[1::4]:  # a seed of each width that came to no number
        row["test_loss"] = "nan"
    best = widths[curves[1, :, 1].argmax()]
    alt = figures_predictors.double_descent(study, None).alt
    assert alt == f"Test loss is largest, {curves[1, :, 1].max():.2f} nats, at width {best}."
    for row in study.epochs:
        row["test_loss"] = "nan"
    assert "finite at no width" in figures_predictors.double_descent(study, None).alt
    texts = [t.get_text() for t in legend.legends[0].get_texts()]
    assert texts == [
        *("train loss (left)", "test loss (left)", "test error (right)"),
        *("prunability, loss + 0.1 (right)", "prunability, loss x 1.1 (right)"),
    ]
    peak = int(curves[1].mean(1).argmax())
    assert f"{curves[1].mean(1)[peak]:.2f} nats, at width {widths[peak]}." in drawing.alt


def test_double_descent_needs_four_widths():
    assert figures_predictors.double_descent(SimpleNamespace(good=[]), None) is None
