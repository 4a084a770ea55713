"""Measures of predictions and of what a network can lose, and the figures made of them."""

import numpy as np
import pytest

from prunejax.measures import predictors, recall
from prunejax.report import figures_density, figures_recall
from prunejax.report.style import Look
from prunejax.report.tables import load
from prunejax.study import run
from tests.studies import tiny

WEIGHTS = {"granularity": "weight", "score": "magnitude", "schedule": "scratch"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    from prunejax.configs import default

    path = tmp_path_factory.mktemp("predictors") / "run"
    arms = {f"mp-{p}": {"prune": WEIGHTS | {"fraction": (p / 100,)}} for p in (50, 80)}
    config = tiny(none={}, **arms)
    config.measures.names = ("predictions", "prunability")
    config.measures.examples = 64
    config.report.figures = ("recall", "density")
    run.run(config, path, default.get_config(), quiet=True)
    return path


def test_predictions_give_the_accuracy_that_the_study_recorded(study):
    for row in load([study]).runs:
        with np.load(study / "measures" / f"{row['run']}.npz") as saved:
            predicted, labels = saved["predicted"], saved["labels"]
        assert len(labels) == 90
        assert (predicted == labels).mean() == pytest.approx(float(row["final_test_accuracy"]))
        recalls = [(predicted == labels)[labels == c].mean() for c in np.unique(labels)]
        assert float(row["recall_lowest"]) == pytest.approx(min(recalls))


def test_prunability_is_on_the_recorded_curve(study):
    for row in load([study]).runs:
        with np.load(study / "measures" / f"{row['run']}.npz") as saved:
            kept, loss = saved["prunability_fractions"], saved["prunability_loss"]
        whole = loss[-1]
        met = kept[loss <= 1.1 * whole * (1 + 1e-6)]
        assert float(row["prunability"]) == pytest.approx(met.min())
        assert float(row["prunability_monotone"]) >= float(row["prunability"])
        assert kept[-1] == 1


def test_recalls_csv_and_alpha_follow_from_the_predictions(study):
    found = figures_recall.distortions(load([study]))
    assert set(found) == {"mp-50", "mp-80"}
    lines = (study / "recalls.csv").read_text().splitlines()
    assert len(lines) == 1 + sum(len(d.classes) for runs in found.values() for d in runs.values())
    (one, *_) = found["mp-80"].values()
    expected = recall.slopes(one.nb_dense, one.nb_pruned)[0]
    assert one.alpha == pytest.approx(expected)
    page = (study / "report.html").read_text()
    assert "Recall distortion" in page
    assert "Accuracy against density" in page


def test_families_of_arms():
    names = {"ticket12": "ticket", "rigl-05": "rigl", "none": "none", "7": "7", "a_b-3": "a_b"}
    assert {name: figures_density.family(name) for name in names} == names


def test_nothing_is_drawn_of_a_study_without_predictions(study):
    found = load([study])
    found.arrays.clear()
    look = Look(found.variants, {"none"})
    assert figures_recall.recall_distortion(found, look) is None
    assert figures_recall.table(found) == []


def test_columns_are_those_of_the_measures():
    assert set(predictors.PREDICTIONS) == {"recall_lowest", "recall_spread"}
