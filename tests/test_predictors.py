"""Measures of predictions and of what a network can lose, and the figures made of them."""

import shutil

import numpy as np
import pytest
from scipy import stats

from prunejax.errors import ConfigError
from prunejax.measures import predictors, recall, summary
from prunejax.report import figures_classes, figures_density, figures_recall
from prunejax.report.style import Look
from prunejax.report.tables import load
from prunejax.study import run
from tests.studies import begun, functions, planned, small, tiny, turned

WEIGHTS = {"granularity": "weight", "score": "magnitude", "schedule": "scratch"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    from prunejax.configs import default

    path = tmp_path_factory.mktemp("predictors") / "run"
    arms = {f"mp-{p}": {"prune": WEIGHTS | {"fraction": (p / 100,)}} for p in (50, 80)}
    config = tiny(none={}, **arms)
    config.measures.names = ("predictions", "prunability")
    config.measures.examples, config.measures.split = 64, "train"
    config.probes.names, config.probes.at = ("loss", "accuracy", "predictions"), ("end",)
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


def test_what_a_study_sets_for_all_arms_is_theirs_as_what_they_set(study, tmp_path):
    plain, again = load([study]), load([turned(study, tmp_path / "turned", "mp-80")])
    assert figures_recall.table(again) == figures_recall.table(plain)
    assert figures_recall.parent(again, "mp-50") == "none"
    for each in (plain, again):
        each.attributes["mp-50"]["score"] = "undecayed"
        each.attributes["mp-50"]["settings"]["prune"] = {
            **each.settings("mp-80", "prune"), "score": "undecayed"
        }  # fmt: skip
        assert figures_recall._alike(each, "mp-50", "mp-80")


def test_the_parent_of_a_chain_is_found_where_the_study_names_it(study):
    found = load([study])
    for arm, above in (("none", ""), ("mp-50", "none"), ("mp-80", "mp-50")):
        found.attributes[arm]["settings"]["start"] = {"run": above}
    assert [figures_recall.parent(found, arm) for arm in ("mp-50", "mp-80")] == ["none", "none"]


def test_a_class_without_test_examples_is_one(study, monkeypatch):
    """The last one, which only predictions tell of: chance is 1.5 / 10, and it is named."""
    found = load([study])
    known = figures_recall._predictions(found)

    def without(pair):
        predicted, labels = pair
        return predicted[labels < 9], labels[labels < 9]

    some = {arm: {seed: without(p) for seed, p in runs.items()} for arm, runs in known.items()}
    some["none"]["0"][0][:1] = 9
    monkeypatch.setattr(figures_recall, "_predictions", lambda study: some)
    for runs in figures_recall.distortions(found).values():
        for one in runs.values():
            assert one.absent == (9,)
            worst = min(one.accuracy_dense, one.accuracy_pruned)
            assert one.degenerate == (worst < 0.15)


def test_undecayed_pruning_without_decay_is_refused_and_with_decoupled_decay_noted():
    from prunejax.configs import default
    from prunejax.errors import ConfigError
    from prunejax.study.planning import plan
    from prunejax.study.settings import config as config_lib

    def planned(optimizer, **prune):
        arm = {"prune": WEIGHTS | {"score": "undecayed"} | prune, "optimizer": optimizer}
        config = tiny(up=arm)
        config.prune.saliency_examples = 50
        return plan.build(config_lib.variants(config, default.get_config()))

    with pytest.raises(ConfigError, match="use 'weight_saliency'"):
        planned({"weight_decay": 0.0})
    (batch,) = planned({"weight_decay": 0.0}, decay_coef=0.01)
    assert float(batch.members[0].hyper.score_decay) == pytest.approx(0.01)
    (batch,) = planned({"weight_decay": 1e-3})
    assert float(batch.members[0].hyper.score_decay) == pytest.approx(1e-3)
    assert not batch.notes
    (batch,) = planned({"weight_decay": 1e-3, "weight_decay_kind": "decoupled"})
    assert "undecayed (up)" in batch.notes[0]


def test_alpha_is_a_column_that_claims_may_be_about(study):
    from prunejax.measures import claims

    loaded = load([study])
    figures_recall.annotate(loaded)
    found = figures_recall.distortions(loaded)
    for row in loaded.runs:
        if row["variant"] == "none":
            assert row["alpha"] == ""
        else:
            one = found[row["variant"]][row["seed"]]
            assert row["alpha"] == ("" if one.degenerate else repr(one.alpha))
    claim = claims.parse("mp-80 > 1.0 in alpha")
    assert (claim.arms, claim.constant) == (("mp-80",), 1.0)
    assert claims.parse("a < b").arms == ("a", "b")


def test_recalls_are_drawn_class_by_class(study):
    loaded = load([study])
    for draw in (figures_classes.balance, figures_classes.classes):
        drawing = draw(loaded, Look(loaded.variants, {"none"}))
        assert "mp" in drawing.alt


def test_predictions_of_the_probe_serve_as_well(study, tmp_path):
    """Without the measure the page takes what the probe left at the end."""
    found = figures_recall.distortions(load([study]))
    copy = shutil.copytree(study, tmp_path / "run")
    for file in copy.glob("measures/*[0-9].npz"):
        with np.load(file) as a, np.load(file.with_name(f"{file.stem}-end.npz")) as b:
            for name in ("predicted", "labels"):
                np.testing.assert_array_equal(a[name], b[name])
        file.unlink()
    again = figures_recall.distortions(load([copy]))
    assert {a: {s: d.alpha for s, d in runs.items()} for a, runs in again.items()} == {
        a: {s: d.alpha for s, d in runs.items()} for a, runs in found.items()
    }


def test_families_of_arms():
    names = {"ticket12": "ticket", "rigl-05": "rigl", "none": "none", "7": "7", "a_b-3": "a_b"}
    names |= {"s=0_1-keep=0_05": "s=0_1-keep", "s=0_1-keep=1": "s=0_1-keep"}  # one family
    assert {name: figures_density.family(name) for name in names} == names


def test_nothing_is_drawn_of_a_study_without_predictions(study):
    found = load([study])
    found.arrays.clear()
    look = Look(found.variants, {"none"})
    assert figures_recall.recall_distortion(found, look) is None
    assert figures_recall.table(found) == []


def test_columns_are_those_of_the_measures():
    assert set(predictors.PREDICTIONS) == {"recall_lowest", "recall_spread"}


def test_a_claim_against_a_number_is_a_one_sample_t_test():
    values = [1.2, 1.1, 1.25, 0.98, 1.3]
    rows = [
        {"run": f"a-{i}", "variant": "a", "seed": str(i), "status": "done", "alpha": repr(x)}
        for i, x in enumerate(values)
    ]
    (claim,) = summary.summarize(rows, claims=("a > 1 in alpha",))["claims"]
    expected = stats.ttest_1samp(values, 1)
    assert claim["difference"] == pytest.approx(np.mean(values) - 1)
    assert claim["p"] == pytest.approx(expected.pvalue)
    assert claim["low"] == pytest.approx(expected.confidence_interval(0.95).low - 1)
    assert claim["verdict"] == ("confirmed" if expected.pvalue < 0.05 else "undecided")


def test_of_the_total_gradient_undecayed_pruning_is_that_by_w_times_g():
    def arm(score, **more):
        prune = WEIGHTS | {"score": score, "schedule": "scratch", "layers": (".*",)} | more
        return {"prune": prune, "optimizer": {"weight_decay": 0.3}}

    def pruned(config):
        batch, data, state = begun(config)
        return functions(batch.program).event(state, data, 0)[1].selected

    one = {"up": arm("undecayed"), "total": arm("undecayed", grad_of="total")}
    one["gp"] = arm("weight_saliency")
    found = {}
    for name, about in one.items():
        config = small(**{name: about})
        config.prune.saliency_examples = 50
        found[name] = pruned(config)
    for layer, gone in found["gp"].items():
        np.testing.assert_array_equal(found["total"][layer], gone)
    assert any((found["up"][k] != found["gp"][k]).any() for k in found["gp"])


@pytest.mark.parametrize(
    ("more", "optimizer", "said"),
    [
        ({"score": "magnitude"}, {"weight_decay": 0.1}, "'magnitude' reads no gradient"),
        ({"decay_coef": 0.1}, {}, "weight_decay = 0.0 .coupled. is no part"),
        ({}, {"weight_decay": 0.1, "weight_decay_kind": "decoupled"}, "decoupled. is no part"),
        ({}, {"weight_decay": 0.1, "weight_decay_rule": "classifier/.*"}, "leaves out dense1"),
    ],
)
def test_a_total_gradient_that_is_none_is_refused(more, optimizer, said):
    prune = WEIGHTS | {"score": "undecayed", "grad_of": "total"} | more
    config = small(up={"prune": prune, "optimizer": optimizer})
    config.prune.saliency_examples = 50
    with pytest.raises(ConfigError, match=said):
        planned(config)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("fraction", [0.5, 0.77, 0.9])
def test_a_fraction_of_all_parameters_counts_what_stays(scope, fraction):
    prune = WEIGHTS | {"score": "magnitude", "schedule": "scratch", "layers": (".*",)}
    prune |= {"fraction": (fraction,), "scope": scope, "ratio_of": "all"}
    (batch,) = planned(small(a={"prune": prune}))
    (member,) = batch.members
    every = (64 + 1) * 16 + (16 + 1) * 8 + (8 + 1) * 10
    removed = int(member.table.counts.sum())
    if scope == "global":
        assert every - removed == -(-round((1 - fraction) * 100) * every // 100)
    else:  # a ceiling a layer
        assert 0 <= fraction * every - removed <= 2 + 1


def test_a_fraction_that_layers_cannot_give_is_refused():
    def config(**more):
        prune = WEIGHTS | {"score": "magnitude", "schedule": "scratch", "layers": (".*",)}
        return small(a={"prune": prune | {"scope": "global", "ratio_of": "all"} | more})

    with pytest.raises(ConfigError, match=r"114 of 1,266 parameters are .* give 0.9099 at most"):
        planned(config(fraction=(0.96,)))
    planned(config(fraction=(0.9099,)))
    for more in ({"of": "live"}, {"fraction": (0.5, 0.4), "layers": ("dense1", "dense2")}):
        with pytest.raises(ConfigError, match="one fraction of single weights is needed"):
            planned(config(**more))
