"""Ticket studies: counts, nesting, learning rate 0, early stop, overlap, matching, the page."""

import csv
import dataclasses

import numpy as np
import pytest
from scipy import stats

from prunejax import masks
from prunejax.configs import default, recipes
from prunejax.measures import tickets
from prunejax.report import figures_tickets, levels, overlaps, words
from prunejax.report.tables import load
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib
from tests.studies import go, tiny, turned

LEVELS = 2
SEEDS = 2
FRACTION = 0.3


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    config = tiny()
    config.data.name, config.data.validation_examples = "digits_mixed", 32
    config.seeds, config.batch_size, config.data.train_examples = SEEDS, 64, 128
    config.epochs = 2
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 0.05
    same = [c for c in recipes.CONTROLS if c not in ("erk", "extended")]  # one compiled program
    controls = dict.fromkeys(same, (LEVELS,))
    arms = recipes.lottery(config, levels=LEVELS, fraction=FRACTION, controls=controls)
    arms |= recipes.lottery(
        config, levels=LEVELS, fraction=FRACTION, rewind="step:1", prefix="later"
    )
    still = recipes.lottery(config, levels=LEVELS, fraction=FRACTION, prefix="still")
    frozen = {"optimizer": {"learning_rate": 0.0}}
    arms["still0"] = frozen | {"keep": ("start",)}
    for level in range(1, LEVELS + 1):
        start = still[f"still{level}"]["start"] | {"rewind_run": "still0"}
        start["run"] = f"still{level - 1}"
        arms[f"still{level}"] = still[f"still{level}"] | {"start": start} | frozen
    config.variants = default.arms(arms)
    config.measures.names, config.measures.examples = ("ticket",), 0
    config.report.baseline, config.report.figures = "dense", ("tickets", "early_stop", "overlap")
    path = tmp_path_factory.mktemp("tickets") / "run"
    go(config, path)
    return load([path])


def of(study, variant, seed="0"):
    return levels.of(study)[variant].masks[seed]


def test_counts_follow_the_integer_recursion_and_levels_are_nested(study):
    found = levels.of(study)
    live = sum(found["dense"].sizes.values())
    before = of(study, "dense")
    assert all(m.all() for m in before.values())
    for level in range(1, LEVELS + 1):
        live -= -(-int(3 * live) // 10)  # ceil(0.3 n) go
        assert set(found[f"ticket{level}"].live) == {live}
        now = of(study, f"ticket{level}")
        assert not any((now[k] & ~before[k]).any() for k in now)
        before = now


def test_without_learning_a_ticket_is_one_shot_pruning_of_the_initial_weights(study):
    path = next(iter(study.directories.values()))
    with np.load(path / "states" / "still0-0@step0.npz") as saved:
        start = {k.removeprefix("weights/"): v for k, v in saved.items()}
    masks = of(study, f"still{LEVELS}")
    size = np.concatenate([np.abs(start[k]).ravel() for k in masks])
    live = np.concatenate([m.ravel() for m in masks.values()])
    order = np.argsort(size, kind="stable")
    assert set(np.flatnonzero(~live)) == set(order[: (~live).sum()])
    (row,) = [r for r in study.runs if r["run"] == f"still{LEVELS}-0"]
    assert float(row["distance_to_init"]) == pytest.approx(0, abs=1e-6)  # drawn in two programs
    assert float(row["cosine_to_init"]) == pytest.approx(1, abs=1e-6)


def test_controls_have_the_counts_of_their_ticket(study):
    found = levels.of(study)
    ticket = found[f"ticket{LEVELS}"]
    for name in ("fresh", "layer_shuffle", "global_shuffle", "one_shot", "inverted"):
        assert found[f"{name}{LEVELS}"].live == ticket.live
    shuffled = of(study, f"layer_shuffle{LEVELS}")
    for layer, mask in of(study, f"ticket{LEVELS}").items():
        assert shuffled[layer].sum() == mask.sum()
    assert found[f"restart{LEVELS}"].keep == 1


def test_controls_of_other_programs_as_planned(study):
    config = tiny()
    config.seeds = 1
    controls = dict.fromkeys(("erk", "extended"), (LEVELS,))
    arms = recipes.lottery(config, levels=LEVELS, fraction=FRACTION, controls=controls)
    config.variants = default.arms(arms)
    config.data.name, config.batch_size = "digits_mixed", 64
    members, steps = {}, {}
    for batch in plan.build(config_lib.variants(config, default.get_config())):
        for m in batch.members:
            members[m.variant] = m
            steps[m.variant] = batch.program.epochs * batch.program.steps_per_epoch
    assert steps["extended2"] == (LEVELS + 1) * steps["dense"]
    ticket = levels.of(study)["ticket2"]
    gone = sum(ticket.sizes.values()) - ticket.live[0]
    assert members["erk2"].table.counts.sum() == gone
    assert not members["extended2"].table.counts.any()
    assert len([r for r in study.runs if r["variant"].startswith("restart")]) == LEVELS * SEEDS


def test_the_early_stop_step_is_that_of_the_lowest_validation_loss(study):
    level = levels.of(study)["dense"]
    rows = [r for r in study.epochs if r["run"] == "dense-1"]
    lowest = min(rows, key=lambda r: float(r["validation_loss"]))
    assert level.stops["dense-1"] == (
        int(lowest["epoch"]), int(lowest["step"]), float(lowest["test_accuracy"]),
    )  # fmt: skip


def test_masks_are_compared_across_rewind_steps(study):
    path = next(iter(study.directories.values()))
    with open(path / "overlaps.csv", newline="") as file:
        rows = {(r["variant"], r["other"]): r for r in csv.DictReader(file)}
    # Not dense, whose masks are whole, nor controls, whose masks are their ticket's; "still" has
    # another learning rate.
    assert set(rows) == {(f"ticket{n}", f"later{n}") for n in range(1, LEVELS + 1)}
    assert float(rows["ticket1", "later1"]["overlap"]) == 1  # the same dense weights were pruned
    row, found, chance = rows["ticket2", "later2"], [], []
    for seed in range(SEEDS):
        a, b = (of(study, f"{name}2", str(seed)) for name in ("ticket", "later"))
        places = [{(k, *at) for k in m for at in np.argwhere(m[k]).tolist()} for m in (a, b)]
        found.append(len(places[0] & places[1]) / len(places[0] | places[1]))
        both = sum(a[k].sum() * b[k].sum() / a[k].size for k in a)
        chance.append(both / (sum(a[k].sum() + b[k].sum() for k in a) - both))
    assert 0 < found[0] < 1
    assert float(row["overlap"]) == pytest.approx(np.mean(found), rel=1e-12)
    assert float(row["overlap_chance"]) == pytest.approx(np.mean(chance), rel=1e-12)
    assert (row["rewind"], row["other_rewind"], int(row["seeds"])) == ("start", "step:1", SEEDS)
    text = (path / "report.html").read_text()
    assert "Masks across rewind steps" in text
    assert f"{np.mean(found):.3f}" in text


def test_only_arms_that_differ_in_the_rewind_step_are_compared(study, monkeypatch):
    changed = {name: dict(about) for name, about in study.attributes.items()}
    changed["later1"]["settings"] = {**study.settings("later1"), "epochs": 1}
    monkeypatch.setattr(study, "attributes", changed)
    assert overlaps.alike(study) == []  # level 2 has a parent of another kind, too
    assert overlaps.table(study) is None
    monkeypatch.setattr(study, "attributes", {})  # where no arm's making is known
    assert overlaps.records(study) == []


def test_what_a_study_sets_for_all_arms_is_theirs_as_what_they_set(study, tmp_path):
    (path,) = study.directories.values()
    study = load([path])
    again = load([turned(path, tmp_path / "turned", f"ticket{LEVELS}")])
    assert overlaps.records(study)
    assert overlaps.records(again) == overlaps.records(study)
    assert levels.records(again) == levels.records(study)
    told = {v: words.arms(s)[f"later{LEVELS}"] for v, s in (("plain", study), ("turned", again))}
    assert told["turned"].partition(",")[0] == f"from later{LEVELS - 1}"
    assert told["turned"].partition(",")[0] in told["plain"].replace("masks of ", "")
    assert set(words.arms(again)) == set(words.arms(study))


def test_the_page_has_the_levels_and_no_sentence_without_longer_training(study, monkeypatch):
    path = next(iter(study.directories.values()))
    with open(path / "tickets.csv", newline="") as file:
        rows = {r["variant"]: r for r in csv.DictReader(file)}
    assert int(rows["ticket1"]["live_weights"]) == levels.of(study)["ticket1"].live[0]
    assert float(rows["ticket1"]["density:dense1/kernel"]) < 1
    assert float(rows["dense"]["overlap"]) == float(rows["dense"]["overlap_chance"]) == 1
    text = (path / "report.html").read_text()
    assert "Levels" in text
    assert "best ticket" not in text
    known = levels.of(study)
    known["extended2"] = dataclasses.replace(known["restart2"], variant="extended2")
    monkeypatch.setattr(levels, "of", lambda study: known)
    monkeypatch.setattr(study, "comparable", [*known])
    assert "The best ticket of the chain" in figures_tickets.accuracy(study, None).caption
    monkeypatch.setattr(study, "comparable", [v for v in known if v != "extended2"])  # other data
    assert "The best ticket" not in figures_tickets.accuracy(study, None).caption


def test_tickets_of_one_data_set_are_drawn(study, monkeypatch):
    """`transfer` drew accuracies on MNIST and on Fashion-MNIST as points of one panel."""
    plain = figures_tickets.accuracy(study, None)
    assert " on " not in plain.caption
    changed = {name: dict(about) for name, about in study.attributes.items()}
    for name in ("later1", f"later{LEVELS}"):
        changed[name]["data"] = "another"
    monkeypatch.setattr(study, "attributes", changed)
    monkeypatch.setattr(study, "comparable", type(study).comparable.func(study))
    other = figures_tickets.accuracy(study, None)
    assert "later" in plain.alt
    assert "later" not in other.alt
    assert f"Mean over seeds on {study.attribute('dense', 'data')} (marker)" in other.caption
    assert "later" not in figures_tickets.early_stop(study, None).alt


def test_masks_are_those_of_open_lth_but_for_the_weight_at_its_threshold():
    rng = np.random.default_rng(4)
    shapes = {"a": (37, 41), "b": (41, 23)}
    kept, before = sum(np.prod(s) for s in shapes.values()), None
    for _ in range(12):
        size = {k: np.abs(rng.normal(size=s)).astype(np.float32) for k, s in shapes.items()}
        flat = np.concatenate([x.ravel() for x in size.values()])
        live = np.ones(flat.size, bool)
        if before is not None:
            live = np.concatenate([np.asarray(m).ravel() for m in before.values()])
        gone = -(-int(kept) // 5)
        kept -= gone
        before = masks.prune(size, int(kept), masks=before)
        threshold = np.sort(flat[live])[gone]
        theirs = live & (flat > threshold)  # "strictly above" takes the one at the threshold, too
        ours = np.concatenate([np.asarray(m).ravel() for m in before.values()])
        assert ours.sum() == kept == theirs.sum() + 1
        assert flat[ours ^ theirs] == [threshold]


def test_jaccard_and_its_chance_value():
    rng = np.random.default_rng(0)
    sizes, counts = {"a": 4000, "b": 1000}, [{"a": 400, "b": 500}, {"a": 600, "b": 100}]

    def drawn(live):
        return {k: rng.permutation(np.arange(n) < live[k]) for k, n in sizes.items()}

    found = [tickets.jaccard(drawn(counts[0]), drawn(counts[1])) for _ in range(200)]
    chance = tickets.chance_jaccard(*counts, sizes)
    assert chance == pytest.approx((60 + 50) / (1600 - 110))
    assert np.mean(found) == pytest.approx(chance, rel=0.01)
    mask = drawn(counts[0])
    assert tickets.jaccard(mask, mask) == 1
    assert tickets.jaccard(mask, {k: ~m for k, m in mask.items()}) == 0
    with pytest.raises(ValueError, match="do not fit"):
        tickets.jaccard(mask, {"a": mask["a"]})


def test_early_stop_takes_the_first_of_the_lowest_and_no_nan():
    assert tickets.early_stop([3, np.nan, 1, 1, 2, -np.inf]) == 2
    with pytest.raises(ValueError, match="no finite"):
        tickets.early_stop([np.nan, np.inf])


def test_matching_is_a_one_sided_t_test_with_the_right_size():
    rng = np.random.default_rng(1)
    d = rng.normal(-0.004, 0.003, 6)
    dense = rng.normal(0.9, 0.01, 6)
    found = tickets.matching(dense + d, dense, 0.01)
    assert found.p == pytest.approx(stats.ttest_1samp(d, -0.01, alternative="greater").pvalue)
    assert found.low == pytest.approx(
        stats.ttest_1samp(d, 0, alternative="greater").confidence_interval(0.95).low
    )
    assert found.not_inferior == (found.p < 0.05)
    assert found.within_std == (d.mean() >= -dense.std(ddof=1))
    worst = [  # truly worse by the margin: refused in 5 % at most
        tickets.matching(rng.normal(-0.01, 0.003, 5), np.zeros(5), 0.01).not_inferior
        for _ in range(2000)
    ]
    assert np.mean(worst) == pytest.approx(0.05, abs=0.015)
    assert not tickets.matching([0.5], [0.5], 0.01).not_inferior  # nothing is known of others
    gone = [0.9, *(dense + d), np.nan], [np.nan, *dense, 0.9]  # a run without a number
    assert tickets.matching(*gone, 0.01) == found
    assert tickets.matching([np.nan], [0.5], 0.01).n == 0
    same = np.array([0.97, 0.53, 0.21, 0.11])  # less 0.01 each: what is left is rounding
    assert np.ptp(same - 0.01 - same) > 0
    assert np.isnan(tickets.matching(same - 0.01, same, 0.02).p)
    for values, margin in (([1.0], 0.0), ([], 0.1)):
        with pytest.raises(ValueError, match=r"margin|values"):
            tickets.matching(values, values, margin)
