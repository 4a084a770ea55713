"""Lines between runs of a study: same stream, known path, pairs of seeds, matching, the page."""

import csv
import json
import shutil

import numpy as np
import pytest

from prunejax import models, report
from prunejax.configs import default, recipes
from prunejax.errors import ConfigError
from prunejax.report import figures_barriers
from prunejax.report.tables import load
from prunejax.study import run
from prunejax.study.settings import config as config_lib
from prunejax.study.settings.pairs import pairs
from tests.studies import go, tiny, turned

WEIGHT = {"prune": {"granularity": "weight", "scope": "global"}}
WHOLE = ("weights", "statistics", "optimizer", "step")


def config(**connect):
    start = {"run": "dense", "at": "step:4", "take": WHOLE}
    made = tiny(
        dense={},
        again={"start": start | {"copy": "a"}},
        **recipes.copies("k4", start),
        on={"start": start},
    )
    made.prune.granularity, made.prune.scope = "weight", "global"
    made.model.name, made.model.width = "mlp64_64", 0.25
    made.seeds = 3
    made.connect.points, made.connect.matching = 5, True
    made.connect.pairs = ("k4-a:again", "k4-a:k4-b", "dense:on", "dense")
    made.report.baseline, made.report.figures = "dense", ("barriers", "paths", "matrix")
    for name, value in connect.items():
        made.connect[name] = value
    return made


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("connect") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.report, "build", lambda paths: paths[0] / "report.html")
        made = config()
        made.data.train_examples = 128  # whole batches: one program less
        run.run(made, path, default.get_config(), quiet=True)
    report.build([path])
    return path


def rows(path, table, **where):
    with open(path / f"{table}.csv", newline="") as file:
        found = list(csv.DictReader(file))
    return [r for r in found if all(r[k] == v for k, v in where.items())]


def test_copies_with_the_same_stream_have_no_barrier_at_all(study):
    found = rows(study, "barriers", pair="k4-a:again", matched="0")
    assert len(found) == 2 * 3  # splits, seeds
    for row in found:
        assert float(row["barrier_error"]) == float(row["distance"]) == 0
        assert float(row["disagreement"]) == 0
        assert abs(float(row["barrier_loss"])) < 1e-6


def test_a_run_that_goes_on_from_a_state_ends_where_its_parent_ends(study):
    for row in rows(study, "barriers", pair="dense:on", matched="0"):
        assert float(row["distance"]) == 0


def test_what_a_study_sets_for_all_arms_is_drawn_as_what_they_set(study, tmp_path):
    plain = load([study])
    drawn = figures_barriers.instability(plain, None)
    assert "from step 4" in drawn.alt
    again = load([turned(study, tmp_path / "turned", "k4-b")])
    assert figures_barriers.instability(again, None).alt == drawn.alt
    start = again.attributes["k4-b"]["settings"]["start"]
    start["at"] = "epoch:1"  # the same state: an epoch has four steps
    assert figures_barriers.instability(again, None).alt == drawn.alt


def test_two_studies_on_one_page_keep_their_lines_apart(study, tmp_path):
    other = shutil.copytree(study, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["optimizer"]["learning_rate"] = 0.5  # another study with the same labels
    (other / "config.json").write_text(json.dumps(config))
    merged, alone = load([study, other]), load([study])
    found = figures_barriers.barriers(merged)
    assert len(found) == 2 * len(figures_barriers.barriers(alone))
    assert {r["run_a"].partition("/")[0] for r in found} == {study.name, "other"}
    assert merged.settings("other/k4-a", "start")["run"] == "other/dense"
    for name in figures_barriers.COLUMNS:
        for s in (merged, alone):
            figures_barriers.annotate(s)
        assert [r[name] for r in merged.runs] == 2 * [r[name] for r in alone.runs]
    lines = figures_barriers.table(merged).rows
    assert len(lines) == 2 * len(figures_barriers.table(alone).rows)
    told, once = (figures_barriers.instability(s, None).alt for s in (merged, alone))
    assert told.count(" from step 4: ") == 2 * once.count(" from step 4: ") > 0
    assert "other/dense from step 4" in told


def test_copies_with_streams_of_their_own_part(study):
    for row in rows(study, "barriers", pair="k4-a:k4-b", matched="0"):
        assert float(row["distance"]) > 0
        assert 0 < float(row["cosine"]) < 1


def test_the_ends_are_what_the_study_recorded(study):
    accuracy = {r["run"]: float(r["final_test_accuracy"]) for r in rows(study, "runs")}
    for row in rows(study, "barriers", split="test"):
        assert 1 - float(row["error_a"]) == pytest.approx(accuracy[row["run_a"]], abs=1e-6)
        assert 1 - float(row["error_b"]) == pytest.approx(accuracy[row["run_b"]], abs=1e-6)


HALF = {"schedule": "scratch", "fraction": (0.5,), "start": (0,)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "pruned"),
    [
        ("resnet20", HALF | {"layers": (".*_conv2",)}),  # gates shut channels of the sums
        ("mlp64_64", {"method": "ste", "fraction": (0.9,)}),  # dead weights keep a value
    ],
)
def test_the_ends_are_the_networks_that_were_tested(
    model, pruned, tmp_path, quick_report, monkeypatch
):
    kind, fixed = models.MODELS["resnet20"]  # a block a stage has every kind of sum
    monkeypatch.setitem(models.MODELS, "resnet20", (kind, fixed | {"blocks": (1, 1, 1)}))
    made = tiny(a={"prune": pruned})
    made.model.name, made.model.width, made.epochs = model, 0.125, 1
    made.data.train_examples = 128
    made.connect.pairs, made.connect.points, made.report.baseline = ("a",), 3, "a"
    made.connect.batch_norm = "interpolate"
    go(made, tmp_path / "run")
    runs = {r["run"]: r for r in rows(tmp_path / "run", "runs")}
    (line,) = rows(tmp_path / "run", "barriers", split="test")
    for end in ("a", "b"):
        accuracy = float(runs[line[f"run_{end}"]]["final_test_accuracy"])
        assert 1 - float(line[f"error_{end}"]) == pytest.approx(accuracy, abs=1e-6)


def test_lines_of_a_regression_have_losses_and_no_errors(tmp_path, quick_report):
    config = tiny(**recipes.copies("c", {}))
    config.seeds, config.epochs, config.measures.names = 1, 1, ()
    config.data.name, config.loss = "diabetes", "mse"
    config.data.train_examples, config.data.test_examples = 64, 32
    config.model.name = "mlp64_64"
    config.connect.pairs, config.connect.points, config.report.baseline = ("c-a:c-b",), 3, "c-a"
    go(config, tmp_path)
    lines, points = rows(tmp_path, "barriers"), rows(tmp_path, "paths")
    for row in lines:
        for column in ("barrier_error", "error_a", "error_b", "peak", "disagreement"):
            assert row[column] == "", column
        own = [float(p["loss"]) for p in points if p["split"] == row["split"]]
        assert float(row["barrier_loss"]) == pytest.approx(max(own) - (own[0] + own[-1]) / 2)
        assert [p["error"] for p in points] == [""] * len(points)


@pytest.mark.parametrize(
    ("connect", "message"),
    [
        ({"examples": 91}, "examples = 91: there are 100 training and 90 test .* at most 90"),
        ({"examples": 90}, ""),
        ({"statistics_examples": 101}, "statistics_examples = 101: there are 100 training"),
        ({"statistics_examples": 100}, ""),
        ({"statistics_examples": 101, "batch_norm": "interpolate"}, ""),  # takes none
        ({}, ""),
    ],
)
def test_more_examples_than_there_are_are_refused_at_planning(connect, message):
    made = config(**connect)
    if not message:
        assert run.judged(made, default.get_config())
        return
    with pytest.raises(ConfigError, match=f"config.connect.{message}"):
        run.judged(made, default.get_config())


def test_seeds_with_data_of_their_own_have_no_line():
    """Both ends were tested on the data of the first."""
    made = config()
    made.data.by_seed = True
    with pytest.raises(ConfigError, match="'dense': each of its seeds has data of its own"):
        run.judged(made, default.get_config())
    made.connect.pairs = ("dense:on",)
    assert run.judged(made, default.get_config())


def test_barriers_follow_from_the_paths(study):
    for row in rows(study, "barriers"):
        keys = ("pair", "run_a", "run_b", "split", "matched")
        line = rows(study, "paths", **{k: row[k] for k in keys})
        errors = np.array([float(p["error"]) for p in line])
        assert len(errors) == 5
        expected = errors.max() - (errors[0] + errors[-1]) / 2
        assert float(row["barrier_error"]) == pytest.approx(expected, abs=1e-7)


def test_pairs_of_seeds_come_nearer_when_their_units_are_matched(study):
    plain, matched = (rows(study, "barriers", pair="dense", matched=m) for m in ("0", "1"))
    assert len(plain) == len(matched) == 2 * 3  # splits, pairs of three seeds
    for before, after in zip(plain, matched, strict=True):
        assert before["seed_a"] != before["seed_b"]
        assert float(after["distance"]) < float(before["distance"])
        assert float(after["error_b"]) == pytest.approx(float(before["error_b"]), abs=1e-6)


def test_the_page_shows_barriers_and_claims_may_be_about_them(study):
    loaded = load([study])
    figures_barriers.annotate(loaded)
    found = {r["run"]: r for r in loaded.runs}
    (line,) = rows(study, "barriers", pair="k4-a:k4-b", run_b="k4-b-1", split="test", matched="0")
    assert found["k4-b-1"]["barrier_error"] == line["barrier_error"]
    assert found["dense-1"]["barrier_error"] == ""
    text = (study / "report.html").read_text()
    for title in ("Instability", "Error along the lines", "Barriers between seeds", "Barriers"):
        assert title in text
    assert not list((study / "states").glob("*@end.npz"))  # nobody asked for them to stay


def test_pairs_in_order_of_config_and_seed():
    runs = [("a", 0, "a-0"), ("a", 1, "a-1"), ("b", 1, "b-1"), ("a", 2, "a-2")]
    found = [(p.a, p.b, p.seed_a, p.seed_b) for p in pairs(("a:b", "a"), runs)]
    assert found == [
        ("a-1", "b-1", 1, 1),
        *(("a-0", "a-1", 0, 1), ("a-0", "a-2", 0, 2), ("a-1", "a-2", 1, 2)),
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("dense:nobody",), "nobody"),
        (("dense:on:again",), "neither a variant nor two"),
        (("dense:dense",), "for pairs of seeds"),
        (("dense:wide",), "differ in 'model'"),
    ],
)
def test_pairs_that_cannot_be_are_refused(names, message):
    made = config(pairs=names)
    made.variants["wide"] = {"model": {"width": 0.5}}
    with pytest.raises(ConfigError, match=message):
        config_lib.variants(made, default.get_config())


def test_one_seed_makes_no_pair():
    made = config(pairs=("dense",))
    made.seeds = 1
    with pytest.raises(ConfigError, match="has one seed"):
        config_lib.variants(made, default.get_config())
