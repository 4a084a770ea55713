"""Losses, data sets of any kind, imbalance and frozen parameters, as studies use them."""

import csv
import dataclasses
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from sklearn import datasets

import prunejax
from prunejax import data, losses
from prunejax.configs import default
from prunejax.data import choices
from prunejax.data import dataset as dataset_lib
from prunejax.errors import ConfigError
from prunejax.measures import suite
from prunejax.record import summary
from prunejax.report import figures_dynamics, gallery, panels, style, tables, units
from prunejax.report.curves import accuracy_curves
from prunejax.study import run
from prunejax.study.loop import measure_check
from prunejax.study.planning import attributes, plan
from prunejax.study.settings import config as config_lib
from prunejax.train import optim
from tests.studies import tiny

PRUNE = {"schedule": "one_shot", "layers": ("dense2",), "start": (1,), "end": (1,), "score": "ebn"}


def planned(config):
    return plan.build(config_lib.variants(config, default.get_config()))


def regression(**changes):
    config = tiny(**{"none": {}, "S": {"prune": PRUNE}, **changes})
    config.seeds, config.epochs = 1, 3
    config.data.name, config.loss = "diabetes", "mse"
    config.report.figures = ("dynamics", "scatter", "gap", "table")
    return config


# -- losses ------------------------------------------------------------------------------------


def test_hinge_against_optax_and_by_hand():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(7, 5)), jnp.float32)
    y = jnp.array([0, 1, 2, 3, 4, 0, 1])
    np.testing.assert_allclose(losses.hinge(z, y), optax.losses.multiclass_hinge_loss(z, y), 1e-6)
    found = losses.hinge(jnp.array([[3.0, 1.0, 2.5], [0.0, 9.0, 2.0]]), jnp.array([0, 1]))
    np.testing.assert_array_equal(found, [0.5, 0.0])


def test_objective_is_the_loss_of_that_name():
    z, y = jnp.arange(6.0).reshape(2, 3), jnp.array([0, 2])
    for smoothing in (0.0, 0.2):
        found = losses.objective("cross_entropy", z, y, smoothing)
        np.testing.assert_array_equal(found, losses.cross_entropy(z, y, smoothing))
    np.testing.assert_array_equal(losses.objective("mse", z, y), losses.mse(z, y))
    with pytest.raises(ValueError, match=r"smoothing 0\.2 goes with cross_entropy, not with 'mse'"):
        losses.objective("mse", z, y, 0.2)
    with pytest.raises(ValueError, match=r"unknown loss 'hing'.*Did you mean 'hinge'"):
        losses.objective("hing", z, y)
    for name in ("cross_entropy", "hinge"):
        with pytest.raises(ValueError, match="needs class labels"):
            losses.objective(name, z, jnp.zeros((2, 3)))


def test_numbers_have_no_hits():
    assert not losses.hits(jnp.ones((3, 1)), jnp.ones((3, 1))).any()
    assert losses.hits(jnp.eye(2), jnp.array([0, 1])).all()


# -- data sets ---------------------------------------------------------------------------------


def test_diabetes_is_scikit_learns():
    found, raw = data.load("diabetes"), datasets.load_diabetes(scaled=False)
    both = np.concatenate([found.train_images, found.test_images])
    np.testing.assert_array_equal(both, raw.data.astype(np.float32))
    assert (found.train_labels.shape, found.test_labels.shape) == ((350, 1), (92, 1))
    target = np.concatenate([found.train_labels, found.test_labels])[:, 0]
    assert np.corrcoef(target, raw.target)[0, 1] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(
        [found.train_labels.mean(), found.train_labels.std()], [0, 1], atol=1e-6
    )
    inputs = np.asarray(found.prepare(found.train_images), np.float64)
    np.testing.assert_allclose(inputs.mean(axis=0), np.zeros(10), atol=1e-5)
    np.testing.assert_allclose(inputs.std(axis=0), np.ones(10), atol=1e-5)


def test_standardize_keeps_a_constant_feature_finite():
    examples = np.array([[1, 5], [3, 5]], np.int16)
    np.testing.assert_array_equal(
        dataset_lib.Standardize.of(examples)(jnp.asarray(examples)), [[-1, 0], [1, 0]]
    )


def test_the_network_gets_what_prepare_gives():
    def one_hot(tokens):
        return jax.nn.one_hot(tokens, 4)

    tokens, labels = np.zeros((5, 3), np.int32), np.zeros((5,), np.int32)
    found = dataset_lib.make("tokens", (tokens, labels), (tokens, labels), 2, prepare=one_hot)
    assert found.image_shape == (3, 4)
    assert found.has_classes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train_labels": np.zeros(350, np.float32)}, "train_labels are float32"),
        ({"test_images": np.zeros((92, 9), np.float32)}, "one dtype and shape"),
        ({"prepare": None}, "without `prepare` they must be uint8"),
    ],
)
def test_data_that_does_not_fit_together(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(data.load("diabetes"), **change)


def test_choices_that_need_classes():
    for field, value in (("label_noise", 0.1), ("imbalance", 2.0)):
        with pytest.raises(ValueError, match=f"{field}={value}: the targets of diabetes"):
            data.load("diabetes", **{field: value})


# -- a study -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("regression") / "run"
    config = regression()
    config.measures.names, config.measures.examples = ("tic",), 40
    config.data.validation_examples = 50
    run.run(config, path, default.get_config(), quiet=True)
    return path


def rows(path, table):
    with (path / f"{table}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("losses", [("nan", "0.7", "0.6"), ("0.7", "nan", "0.6")])
def test_an_epoch_whose_loss_is_nan_is_not_the_best(losses):
    row = {"train_accuracy": "", "test_accuracy": "", "sparsity": "0.0"}
    epochs = [row | {"epoch": str(i), "test_loss": loss} for i, loss in enumerate(losses)]
    assert summary.summarize(epochs, [], "done")["best_epoch"] == 2


def test_a_regression_is_trained_without_accuracy(finished):
    epochs, events = rows(finished, "epochs"), rows(finished, "events")
    assert {r[f"{s}_accuracy"] for r in epochs for s in ("train", "test", "validation")} == {""}
    first, last = (float(r["train_loss"]) for r in (epochs[0], epochs[2]))
    assert 0 < last < first
    assert [(r["pre_accuracy"], r["instability"]) for r in events] == [("", "")]
    assert float(events[0]["post_loss"]) > 0
    for row in rows(finished, "runs"):
        own = [r for r in epochs if r["run"] == row["run"]]
        own = own if row["variant"] == "none" else own[1:]  # from the event on
        best = min(own, key=lambda r: float(r["test_loss"]))
        chosen = min(own, key=lambda r: float(r["validation_loss"]))
        assert (row["best_epoch"], row["selected_epoch"]) == (best["epoch"], chosen["epoch"])
        assert (row["final_test_accuracy"], row["mean_stability"]) == ("", "")
        assert float(row["tic"]) > 0
    assert 0.2 < float(epochs[0]["test_loss"]) < 3  # targets have variance 1
    assert (finished / "report.html").exists()
    assert json.loads((finished / "study.json").read_text())["classes"] == {}


def test_losses_are_those_of_the_targets_as_they_are(finished):
    """Recomputed from the final weights and the data set: targets are not cut to integers."""
    found = prunejax.load(finished)
    for row in rows(finished, "runs"):
        dataset, variables = found.dataset(row["run"]), found.variables(row["run"])
        assert np.any(dataset.test_labels != np.round(dataset.test_labels))
        x = dataset.prepare(jnp.asarray(dataset.test_images))
        outputs = found.model(row["run"]).apply(variables, x, train=False)
        loss = np.mean(np.square(np.asarray(outputs) - dataset.test_labels))
        last = [r for r in rows(finished, "epochs") if r["run"] == row["run"]][-1]
        assert float(last["test_loss"]) == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": "cross_entropy"}, "config.loss = 'cross_entropy' does not fit"),
        ({"loss": "msee"}, "Did you mean 'mse'"),
        ({"model": {"name": "vgg4_bn"}}, "config.model.name = 'vgg4_bn' does not take"),
        ({"data": {"augment": True}}, "config.data.augment = True"),
        ({"data": {"imbalance": 0.5}}, "config.data.imbalance = 0.5"),
        ({"optimizer": {"label_smoothing": 0.1}}, "goes with config.loss = 'cross_entropy'"),
        ({"optimizer": {"frozen": "conv1/.*"}}, "config.optimizer.frozen: path rule"),
    ],
)
def test_settings_that_do_not_fit(change, words):
    with pytest.raises(ValueError, match=r"\S") as error:
        planned(regression(S=change))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def huber(outputs, targets):
    gap = jnp.abs(outputs - targets).sum(-1)
    return jnp.where(gap < 1, gap**2 / 2, gap - 0.5)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Eight networks of a loss of one's own, with a measure that cannot always be taken."""

    def sometimes(context):
        return {"sometimes": 1 / (context.live_dim > 1000)}, {}  # ZeroDivisionError of the narrow

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(losses.LOSSES, "huber", huber)
        patch.setitem(suite.MEASURES, "sometimes", suite.Measure(sometimes, ("sometimes",)))
        config = regression()
        config.loss, config.epochs, config.evaluate_train = "huber", 2, True
        config.measures.names = ("prunability", "rivals", "sometimes", "hessian_trace")
        config.measures.split, config.measures.examples = "train", 50
        config.model.name = "mlp64_64"
        axes = {"model.width": (0.25, 0.5), "start.scale": (1.0, 3.0)}  # two programs
        axes["optimizer.learning_rate"] = (0.01, 0.005)
        config.variants = default.product(axes)
        config.report.figures = ("predictors", "table")
        config.report.baseline = next(iter(config.variants))
        path = tmp_path_factory.mktemp("grid") / "run"
        run.run(config, path, default.get_config(), quiet=True)
    return path


def test_a_grid_of_regressions_is_ranked_by_norms(grid):
    runs = rows(grid, "runs")
    assert all(float(r["path_norm"]) > 0 and float(r["prunability"]) > 0 for r in runs)
    assert {r["inverse_margin"] + r["pac_bayes_flatness"] for r in runs} == {""}
    assert {r["sometimes"] for r in runs} == {"", "1.0"}
    ranked = [r for r in rows(grid, "predictors") if r["models"] == "all"]
    by = {(r["measure"], r["target"]): r for r in ranked}
    last = {r["run"]: float(r["test_loss"]) for r in rows(grid, "epochs")}
    x, y = [float(r["path_norm"]) for r in runs], [last[r["run"]] for r in runs]
    tau = stats.kendalltau(x, y).statistic
    assert float(by["path_norm", "test_loss"]["tau_b"]) == pytest.approx(tau)
    assert (by["path_norm", "test_error"]["n"], by["sometimes", "test_loss"]["n"]) == ("0", "4")


@pytest.mark.parametrize("name", [n for n, m in suite.MEASURES.items() if m.classes])
def test_measures_of_classes_are_refused(name):
    """Labels that are numbers equal no class: they gave a number, or ended the study at its end."""
    config = regression()
    config.measures.names, config.measures.examples = (name,), 50
    arms = config_lib.variants(config, default.get_config())
    with pytest.raises(ConfigError, match=f"'{name}' is about classes, and targets of 'diabetes'"):
        measure_check.check(arms[0].settings, list(plan.build(arms)))
    x, y = jnp.zeros((5, 4)), jnp.zeros((5, 1))
    context = SimpleNamespace(batches=[(x, y)], test=[(x, y)])
    columns, arrays, failed = suite.measure(context, [name])
    assert np.isnan(list(columns.values())).all()
    assert "targets are numbers" in failed[name]
    assert not arrays


def test_its_page_is_about_losses_without_a_unit(grid):
    text = (grid / "report.html").read_text()
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub("<style.*?</style>", "", text)))
    assert "final test loss" in words
    assert "mean stability" not in words
    assert "Kendall's tau-a with test error" not in words
    assert "8 of 8 models left out: train loss above 0.01" in words
    assert "nats" not in words
    assert "Tr(H), curvature" in words
    arms = panels.arms(tables.load([grid]), json.loads((grid / "summary.json").read_text()))
    assert arms.head == ["arm", "runs", "final test loss", "sparsity, %"]
    found = {r["variant"]: float(r["test_loss"]) for r in rows(grid, "epochs")}
    assert {r[0]: r[2] for r in arms.rows} == {k: f"{v:.4f}" for k, v in found.items()}


def test_the_page_of_a_regression_compares_test_losses(finished):
    text = (finished / "report.html").read_text()
    assert "Difference to none in final test loss" in text
    assert "Loss over epochs" in text
    assert "could not be drawn" not in text
    study, look = tables.load([finished]), style.Look(("none", "S"), ("none",))
    for name in gallery.FIGURES:
        made = gallery.make(name, study, look)
        assert not isinstance(made, str), made
        assert made is None or "ccuracy" not in f"{made.title} {made.alt}", name
    assert "Accuracy over epochs" not in text
    assert "test accuracy (%)" not in text
    ends = {r["variant"]: float(r["test_loss"]) for r in rows(finished, "epochs")}
    told = ", ".join(f"{label} {value:.3f}" for label, value in ends.items())
    assert f"Mean test loss at the end of the curves: {told}." in text
    epochs, curves = accuracy_curves(study, "S")
    first = next(r for r in rows(finished, "events") if r["variant"] == "S")
    ticks = figures_dynamics._over_epochs(ylabel="y")[1].xaxis.get_major_locator()
    assert ticks.tick_values(0, 3).tolist() == [0, 1, 2, 3]
    drop = curves[0, np.flatnonzero(epochs == int(first["epoch"]))]
    assert drop.tolist() == [float(first["pre_loss"]), float(first["post_loss"])]
    summary = json.loads((finished / "summary.json").read_text())
    last = {r["variant"]: float(r["test_loss"]) for r in rows(finished, "epochs")}
    found = summary["paired"]["variants"]["S"]["final_test_loss"]["difference"]
    assert found == pytest.approx(last["S"] - last["none"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("test loss (nats)", "test loss"),
        ("Tr(C), gradients (nats²)", "Tr(C), gradients"),
        ("is largest, 2.41 nats, at", "is largest, 2.41, at"),
        ("Largest eigenvalue in nats, mean", "Largest eigenvalue, mean"),
        ("density (fraction per nat)", "density (fraction)"),
        ("coordinates, native", "coordinates, native"),
    ],
)
def test_words_without_the_unit(text, found):
    assert units.without(text) == found


# -- class imbalance ---------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1.0, 4.0, 100.0])
def test_class_counts_fall_geometrically(ratio):
    labels = np.repeat(np.arange(5), [100, 200, 150, 120, 110]).astype(np.int32)
    chosen, ranked = choices.unbalanced(labels, 5, ratio, seed=3)
    counts = np.bincount(labels[chosen], minlength=5)[list(ranked)]
    assert sorted(ranked) == list(range(5))
    have = np.bincount(labels)[list(ranked)]
    share = ratio ** (-np.arange(5) / 4)
    np.testing.assert_array_equal(counts, np.maximum(1, np.rint(min(have / share) * share)))
    assert (counts <= have).all()
    assert (np.diff(chosen) > 0).all()


def test_imbalance_of_a_study_is_recorded():
    config = tiny(even={}, rare={"data": {"imbalance": 5.0}})
    config.data.train_examples = 600
    found = attributes.of_classes(planned(config))
    assert list(found) == ["rare"]
    ranked = [found["rare"]["train_examples"][c] for c in found["rare"]["ranked"]]
    assert ranked == sorted(ranked, reverse=True)
    assert ranked[0] / ranked[-1] == pytest.approx(5, rel=0.1)
    assert json.loads(json.dumps(found)) == found  # for study.json


def test_imbalance_that_cannot_be():
    labels = np.array([0, 0, 2], np.int32)
    for ratio, classes, words in ((0.5, 3, "at least 1"), (2, 3, r"they have \[2, 0, 1\]")):
        with pytest.raises(ValueError, match=words):
            choices.unbalanced(labels, classes, ratio, 0)


# -- parameters that are not trained -----------------------------------------------------------


@pytest.mark.parametrize("decoupled", [False, True])
def test_frozen_leaves_stay_and_the_others_train_as_if_alone(decoupled):
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([3.0])}
    gradients = {"a": jnp.array([0.5, 0.25]), "b": jnp.array([100.0])}
    every = {"a": True, "b": True}
    options = {"clip_norm": 0.1, "decoupled": decoupled}
    both = optim.build("adam", every, frozen={"a": False, "b": True}, **options)
    alone = optim.build("adam", {"a": True}, **options)
    masks = {"a": jnp.array([True, True]), "b": jnp.array([True])}
    state, other = both.init(params), alone.init({"a": params["a"]})
    now, then = params, {"a": params["a"]}
    for _ in range(3):
        now, state = both.update(gradients, state, now, masks, 0.1, 0.01)
        then, other = alone.update({"a": gradients["a"]}, other, then, {"a": masks["a"]}, 0.1, 0.01)
    np.testing.assert_array_equal(now["b"], params["b"])
    np.testing.assert_array_equal(now["a"], then["a"])


def test_a_rule_chooses_what_is_frozen():
    (batch, *_) = planned(regression(S={"optimizer": {"frozen": "dense1/.*|classifier/bias"}}))
    (frozen,) = (b for b in planned(regression(S={"optimizer": {"frozen": "dense1/.*"}}))
                 if b.program.optimizer.frozen)  # fmt: skip
    tree = frozen.program.optimizer.frozen
    assert tree["dense1"]["kernel"] is True
    assert tree["dense2"]["kernel"] is False
    assert batch.program.optimizer.frozen is None


def test_a_loss_that_gives_one_number_for_all_is_refused(monkeypatch):
    monkeypatch.setitem(losses.LOSSES, "mean", lambda z, y: jnp.mean((z - y) ** 2))
    config = regression()
    config.loss = "mean"
    with pytest.raises(ConfigError, match=r"'mean' does not fit.*not one number each"):
        planned(config)
