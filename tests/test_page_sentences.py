"""Sentences, labels and curves of a page against the rows that they are about."""

import itertools
import types

import numpy as np
import pytest

from prunejax.measures import relations
from prunejax.measures.columns import by_variant
from prunejax.measures.summary import summarize
from prunejax.report import (
    curves,
    figures,
    figures_dynamics,
    figures_flatness,
    figures_paper,
    figures_tickets,
    headline,
    panels,
    provenance,
    so_far,
    tables,
    words,
)
from prunejax.report.names import apart
from prunejax.report.results import Study
from prunejax.report.style import Look


def epoch(arm, seed, at, accuracy):
    return {"run": f"{arm}-{seed}", "variant": arm, "seed": str(seed), "epoch": str(at),
            "step": str(at), "test_accuracy": str(accuracy)}  # fmt: skip


def ended(arm, seed, accuracy, **more):
    row = {"run": f"{arm}-{seed}", "variant": arm, "seed": str(seed), "status": "done"}
    row |= {"final_test_accuracy": str(accuracy), "best_test_accuracy": str(accuracy)}
    return row | {"mean_stability": "1.0", "events": "0", "sparsity": "0"} | more


def study_of(epochs=(), runs=(), events=(), **about):
    """A study of these rows; `about`: what is known of an arm besides."""
    labels = dict.fromkeys(row["variant"] for row in [*epochs, *runs])
    known = {"target": None, "data": "digits", "settings": {}}
    return Study(
        {}, {}, {}, {}, {}, {}, [*epochs], [*events], [*runs], {},
        {label: known | about.get(label, {}) for label in labels},
    )  # fmt: skip


def curve(arm, seed, accuracies, every=1):
    return [epoch(arm, seed, every * (i + 1) - 1, x) for i, x in enumerate(accuracies)]


def test_means_over_epochs_are_over_all_runs_to_the_end():
    """A mean at the last epoch was that of the one run which `stop_loss` had let train longest."""
    values = {0: [0.1, 0.5], 1: [0.2, 0.6, 0.8, 0.9], 2: [0.0, 0.0, 0.0]}
    epochs = [row for seed, own in values.items() for row in curve("none", seed, own)]
    runs = [ended("none", 0, 0.5, stopped_step="1"), ended("none", 1, 0.9)]
    runs += [ended("none", 2, "", status="non-finite loss at step 3")]
    study = study_of(epochs, runs)
    found, mean = curves.advantage(study, "none", None)
    expected = np.mean([[0.1, 0.5, 0.5, 0.5], values[1]], axis=0)  # stays; what broke off is out
    assert found.tolist() == [0, 1, 2, 3]
    assert mean == pytest.approx(expected)
    np.testing.assert_allclose(curves.accuracy_curves(study, "none")[1].mean(0), expected)
    drawn = figures_dynamics.dynamics(study, Look(["none"], ["none"]))
    assert drawn.alt == "Mean test accuracy at the end of the curves: none 70.0%."
    assert drawn.caption == "Means over seeds."  # no differences, no events, nothing smoothed
    only = study_of(curve("none", 0, [0.1, 0.2]), [ended("none", 0, "", status="non-finite")])
    assert curves.advantage(only, "none", None)[1] == pytest.approx([0.1, 0.2])


def test_a_difference_ends_where_the_baseline_does():
    """The running mean of an arm that trains for longer went on beyond it, for half a width."""
    epochs = [row for seed in range(3) for row in
              [*curve("none", seed, [0.1, 0.2, 0.3 + seed / 10]),
               *curve("long", seed, [0.2] * 40)]]  # fmt: skip
    study = study_of(epochs, [ended(arm, s, 0.2) for arm in ("none", "long") for s in range(3)])
    found, mean = curves.advantage(study, "long", "none")
    assert found.tolist() == [0, 1, 2]
    assert mean == pytest.approx([0.1, 0.0, -0.2])
    drawn = figures_dynamics.dynamics(study, Look(["none", "long"], ["none"]))
    axes = drawn.panels[1].axes[0]
    assert axes.get_title() == "minus none"
    assert max(axes.lines[0].get_xdata()) == 2
    assert "Differences are taken between runs of the same seed" in drawn.caption
    assert (
        "Arms that train for longer are shown to the last epoch of the other arm." in drawn.caption
    )


def test_a_difference_is_over_the_same_seeds_at_all_epochs():
    """Of a seed that ended early the last number went on, alone, where the others had none."""
    at = {("none", 0): (4,), ("none", 1): (4, 9, 14), ("a", 0): (4, 9, 11, 14, 19)}
    at["a", 1] = at["a", 0]  # 11: of an event that the other arm has not; 19: it trains for longer
    level = {("none", 0): 0.2, ("none", 1): 0.8, ("a", 0): 0.5, ("a", 1): 0.5}
    rows = [epoch(*run, e, level[run]) for run, own in at.items() for e in own]
    runs = [ended(*run, x, stopped_step="4" * (x == 0.2)) for run, x in level.items()]
    found, mean = curves.advantage(study_of(rows, runs), "a", "none")
    assert found.tolist() == [4, 9, 14]
    assert mean == pytest.approx([0, 0, 0], abs=1e-12)
    found, _ = curves.advantage(study_of(rows, runs), "a", None)
    assert found.tolist() == [*at["a", 0]]


def test_running_means_count_what_they_are_over():
    """Of epochs 9, 19, 29, ... a mean of three was told as one of 3 epochs."""
    for every, unit in ((1, "epochs"), (10, "evaluations")):
        rows = [r for arm in ("none", "a") for r in curve(arm, 0, [0.5] * 24, every)]
        drawn = figures_dynamics.dynamics(study_of(rows), Look(["none", "a"], ["none"]))
        title = drawn.panels[1].axes[0].get_title()
        assert title == f"minus none (mean of 3 {unit})"
        assert drawn.caption.startswith("One run an arm.")
    alone = study_of(curve("none", 0, [0.5]))
    assert figures_dynamics.dynamics(alone, Look(["none"], ["none"])) is None  # axes without a line


def test_cut_labels_are_all_different():
    """Periods 1 and 10 were both "target=smallest,period=1", and both ends of all were alike."""
    product = [
        f"target={t},period={p},granularity=filter"
        for t in ("smallest", "random", "largest") for p in (1, 5, 10, 20)
    ]  # fmt: skip
    for most in (20, 24, 34):
        found = apart(["none", *product], most)
        assert len(set(found)) == 13
        assert max(map(len, found)) <= most
        assert found[0] == "none"
    assert apart(["a" * 40], 20) == ["a" * 9 + "…" + "a" * 10]
    twins = ["x" * 30 + middle + "x" * 30 for middle in "ab"]
    assert apart(twins, 20) == twins  # nothing else tells them apart


def test_arms_without_events_have_looks_of_their_own_and_are_not_all_unpruned():
    """Of six such arms two each shared colour and marker; sparse ones were called unpruned."""
    others = [f"masked-{i}" for i in range(6)] + ["long"]
    labels = ["none", *others, "other-none", "other"]
    runs = [ended(arm, s, 0.5, sparsity=str(0.9 * ("masked" in arm)))
            for arm in labels for s in range(2)]  # fmt: skip
    about = {arm: {"data": "mnist"} for arm in ("other-none", "other")}
    study = study_of((), runs, **about)
    drawn = figures_paper.corners(study, None)
    assert len(drawn.panels) == 2  # none of a correlation that no run has
    assert "correlation" not in drawn.caption
    handles = drawn.panels[-1].legends[0].legend_handles
    assert len({(h.get_color(), h.get_marker()) for h in handles}) == len(handles) == 8
    told = [text.get_text() for text in drawn.panels[-1].legends[0].get_texts()]
    assert told[0] == "no events: masked-0"
    assert told[6] == "unpruned: long"
    assert figures_paper.group_scatter(study, Look(labels, ["none"])) is None


def test_correlations_are_over_one_test_set():
    """Accuracies on MNIST and on Fashion-MNIST made one line, of data and not of sparsity."""
    rng = np.random.default_rng(0)
    runs = [
        ended(arm, seed, level + rng.normal(0, 0.01), trace=str(level + rng.normal()))
        for arm, level in (("none", 0.5), ("a", 0.55), ("mnist", 0.9)) for seed in range(4)
    ]  # fmt: skip
    study = study_of((), runs, mnist={"data": "mnist"})
    assert study.comparable == ["none", "a"]
    found = summarize(runs, pooled=study.comparable)
    own = summarize([row for row in runs if row["variant"] != "mnist"])
    assert found["correlations"] == own["correlations"]
    assert "no correlation over all runs: mnist." in found["notes"][-1]
    asked = {arms: summarize(runs, pooled=study.comparable, selected=arms)["correlations"]
             for arms in (("mnist",), ("a", "mnist"))}  # fmt: skip
    counts = [next(iter(next(iter(of["selected"].values())).values()))["pearson"]["n"]
              for of in asked.values()]  # fmt: skip
    assert counts == [4, 4]  # those alone that were asked for; of several sets those of one
    assert not any("other data" in note for note in own["notes"])
    drawn = figures_flatness.flatness(study, Look(["none", "a", "mnist"], ["none"]))
    assert drawn.alt.startswith("Correlations: ")
    assert "n = 8 runs" in drawn.alt
    assert "all runs on digits; Pearson" in drawn.caption  # no bars without standard errors
    many = [f"pair {i}" for i in range(7)]
    assert figures_flatness._finding(many).startswith("7 pairs of quantities; the table")


def test_captions_of_scatters_name_what_is_there():
    """A study of one arm was told of hollow arms and sent to a table that it has not."""
    one = [ended("a", s, 0.5 + s / 10, events="2", mean_stability=str(0.9 - s / 10))
           for s in range(3)]  # fmt: skip
    two = [row | {"run": f"b-{row['seed']}", "variant": "b"} for row in one]
    for runs, hollow, table in (
        (one, False, False),
        ([*one, ended("none", 0, 0.5)], True, False),
        ([*one, *two], False, True),
    ):
        labels = list(by_variant(runs))
        drawn = figures.scatter(study_of((), runs), Look(labels, ["none"]))
        assert ("hollow" in drawn.caption) is hollow
        assert ("the table" in drawn.caption) is table


def test_of_many_arms_those_without_events_are_left_out_of_stabilities():
    """62 of 64 arms of `before_training` were 100 % by convention, in a figure of 25 inches."""
    runs = [ended(f"dense{i}", s, 0.5) for i in range(10) for s in range(2)]
    runs += [ended("none", s, 0.5) for s in range(2)]
    runs += [ended(arm, s, 0.5 + s / 10, events="2", mean_stability=str(0.9 - s / 10))
             for arm in ("a", "b") for s in range(2)]  # fmt: skip
    study = study_of((), runs)
    look = Look(study.variants, ["none"])
    drawn = figures.stability(study, look)
    assert [t.get_text() for t in drawn.panels[0].axes[0].get_yticklabels()] == ["none", "a", "b"]
    assert drawn.caption.endswith("10 arms without events are left out.")
    drawn = figures.scatter(study, look)
    assert len(drawn.panels[-1].legends[0].get_texts()) == 3
    assert drawn.caption.endswith("10 arms without events are left out.")
    study.config["report"] = {"correlate": ["a", "dense1"]}  # what coefficients are about is drawn
    drawn = figures.scatter(study, look)
    assert drawn.alt.startswith("a, dense1: ")  # labels as they are
    assert "n = 4 runs" in drawn.alt
    assert len(drawn.panels[-1].legends[0].get_texts()) == 4
    few = study_of((), [row for row in runs if row["variant"] in ("dense0", "none", "a")])
    assert "left out" not in figures.stability(few, look).caption


def test_one_is_singular():
    assert [words.count(n, "seed") for n in (0, 1, 2)] == ["0 seeds", "1 seed", "2 seeds"]
    settings = {"epochs": 1, "batch_size": 64, "data": {"name": "digits", "train_examples": 1}}
    known = {"settings": settings, "model": "mlp"}
    study = study_of((), [ended("none", 0, 0.5)], none=known)
    assert headline.lead(study) == (
        "1 run, 1 arm; data set digits, 1 training example; network mlp; 1 epoch of batches of 64."
    )
    more = known | {"settings": settings | {"epochs": 3, "data": {"name": "mnist"}}, "model": "cnn"}
    study = study_of((), [ended(a, 0, 0.5) for a in ("none", "b")], none=known, b=more)
    assert headline.lead(study) == (
        "2 runs, 2 arms; data sets digits, mnist, 1 training example; networks mlp, cnn; "
        "1 to 3 epochs of batches of 64."
    )
    values = {f"a{i}": {"0": (0.1 * i, 0.2)} for i in range(8)}
    found = [relations.relate(values, "x", "y", "runs")]
    relations.sentences(found)
    assert found[0]["reason"].startswith("1 seed is too few to tell")
    table = panels.relations({"relations": found, "methods": {"clustered": ""}})
    assert "8 runs, 8 arms, 1 seed<" in table.rows[0][1]
    assert words._every(1) == "every epoch"


def test_runs_that_stopped_are_told_in_a_sentence():
    """A page of 256 such runs began with as many paragraphs."""
    stop = {"status": "non-finite loss at step 1"}
    runs = [ended(f"arm{i}", s, "", **(stop if s < 2 else {})) for i in range(6) for s in range(3)]
    stopped = [row for row in runs if row["status"] != "done"]
    (text,) = tables._stopped(runs, stopped)
    assert text.startswith("12 of 18 runs stopped")
    assert "2 of 3 runs of arm0 (non-finite loss at step 1), 2 of 3 runs of arm1" in text
    assert text.endswith("and runs of 2 more arms.")
    assert len(tables._stopped(runs, stopped[:3])) == 3
    none = study_of((), stopped)
    nothing = {"claims": [], "paired": {"variants": {}, "baselines": {}}}
    nothing["variants"] = {f"arm{i}": {"completed": 0, "columns": {}} for i in range(6)}
    said = [result.text for result in headline.results(none, nothing)]
    assert said == ["No run was completed: there is nothing to compare."]


def test_events_count_what_they_take_in_full():
    """1234567 weights were "1.23457e+06 units"; a regression had columns of an accuracy."""
    row = {"run": "a-0", "variant": "a", "seed": "0", "epoch": "0", "step": "1", "layer": "x",
           "targeted": "1234567", "live": "1", "instability": "", "pre_accuracy": ""}  # fmt: skip
    for kind, word in (("weight", "weights"), ("filter", "units")):
        study = study_of((), [ended("a", 0, "")], [row], a={"granularity": kind})
        table = panels.events(study)
        assert table.head == ["arm", "events per run", "layers", f"{word} targeted per run"]
        assert table.rows[0][3] == "1,234,567"
        assert "nstability" not in table.text


def test_a_regression_under_way_tells_its_test_loss():
    """It had an empty column of accuracies."""
    rows = [epoch("a", seed, 0, "") | {"train_loss": "2", "test_loss": str(x), "sparsity": "0.5"}
            for seed, x in enumerate((1.0, 2.0))]  # fmt: skip
    table = so_far.progress(study_of(rows))
    assert table.head[4:] == ["train loss", "test loss", "sparsity, %"]
    assert table.rows == [["a", "2", "0", "1", "2", "1.5", "50.00"]]


def test_the_command_that_draws_a_page_names_the_folder_of_all_shards(tmp_path):
    """`report 1-of-2 2-of-2` holds in the folder of the shards alone."""
    study = study_of((), [ended("a", 0, 0.5)])
    study.directories = {f"{i}-of-2": tmp_path / "digits" / "shards" / f"{i}-of-2" for i in (1, 2)}
    assert provenance._given(study) == ["digits"]
    study.missing_shards = ["2-of-2"]
    study.directories.pop("2-of-2")
    assert provenance._given(study) == ["1-of-2"]
    study = study_of((), [ended("a", 0, 0.5)])
    study.directories = {"a": tmp_path / "a", "b": tmp_path / "b"}
    assert provenance._given(study) == ["a", "b"]


def test_a_page_of_two_studies_names_both(tmp_path):
    """It had the name and the command of the first, and groups lost the underscores of theirs."""
    runs = [ended(arm, s, 0.5) for arm in ("a", "b") for s in range(2)]
    prune = {"prune": {"period": 1, "fraction": [0.5]}}
    known = {"target": "L", "score": "ebn", "overrides": prune}
    study = study_of((), runs, a=known, b=known)
    study.configs = {k: {"name": f"study {k}", "epochs": k} for k in "ab"}
    study.directories = {k: tmp_path / k for k in "ab"}
    study.stated = {k: {"command": f"run {k}"} for k in "ab"}
    assert study.title == "study a, study b"
    assert [row[0] for row in provenance._commands(study)] == ["to repeat a", "to repeat b"]
    assert "run b --workdir=b" in provenance._commands(study)[1][1]
    assert words.arms(study) == dict.fromkeys("ab", "largest E[BN]")  # nothing tells them apart
    study.attributes["b"] |= {"overrides": {"prune": {"period": 2, "fraction": [0.5]}}}
    assert words.arms(study) == {k: f"largest E[BN], period {i}" for k, i in (("a", 1), ("b", 2))}
    study.configs = {k: {"name": "one", "seeds": k} for k in "ab"}  # parts of a study
    assert study.title == "one"
    assert [row[0] for row in provenance._commands(study)] == ["to repeat"]
    assert panels._scope("group: t_A") == "group: t_A"
    assert panels._scope("runs_with_events") == "runs with events"


def test_bars_beyond_a_plot_are_told():
    wide = {"difference": 0.001, "low": -0.2, "high": 0.2, "n": 3, "p": 0.9, "p_holm": 0.9}
    fine = wide | {"low": 0.0, "high": 0.002}
    for found, cut in ((wide, True), (fine, False)):
        summary = {"paired": {"baselines": {"a": "none"},
                              "variants": {"a": {"final_test_accuracy": found}}}}  # fmt: skip
        study = study_of((), [ended(a, 0, 0.5) for a in ("none", "a")])
        assert headline.forest(study, summary, "final_test_accuracy").cut is cut


def test_the_control_of_a_chain_is_told_with_its_own_length(monkeypatch):
    """A chain's best ticket was said to have had as many steps as the control of its last level."""
    level = lambda arm, keep: types.SimpleNamespace(  # noqa: E731
        variant=arm, keep=keep, rows=by_variant(runs)[arm],
        mean=lambda column: np.mean([float(r[column]) for r in by_variant(runs)[arm]]),
    )  # fmt: skip
    arms = {"none": 0.5, "ticket1": 0.6, "ticket2": 0.4, "extended2": 0.7}
    runs = [ended(arm, s, x + s / 100) for (arm, x), s in itertools.product(arms.items(), range(2))]
    keeps = dict(zip(arms, (1, 0.5, 0.2, 1), strict=True))
    monkeypatch.setattr(
        figures_tickets.levels, "of", lambda study: {a: level(a, k) for a, k in keeps.items()}
    )
    about = {arm: {"settings": {"epochs": 120 if arm == "extended2" else 40}} for arm in arms}
    assert figures_tickets._gain(study_of((), runs, **about)) == (
        "The best ticket of the chain, ticket1, chosen by looking at all of them, differs by "
        "+10.0 points to none, by \N{MINUS SIGN}10.0 points to extended2, which trains for 120 "
        "epochs where none and each ticket train for 40."
    )
