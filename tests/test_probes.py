"""Probes: counts against the tables and stored predictions, own ones, resume, bad requests."""

import csv
import dataclasses
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax.configs import default
from prunejax.errors import ConfigError, Interrupted
from prunejax.study import run as study
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib
from prunejax.study.settings import entries, probing
from prunejax.train import evaluation, probes, step
from prunejax.train.probes import PROBES, Probe
from tests.studies import PRUNE, tiny

OWN = Probe(
    sums=lambda seen: jnp.sum(seen.weight * jax.nn.softmax(seen.outputs).max(-1)),
    table="confidence",
    columns=("confidence",),
    rows=lambda total, examples: [{"confidence": total / examples}],
)
SCRATCH = {"prune": {"schedule": "scratch", "fraction": (0.5,), "score": "l2"}}


def config():
    c = tiny(S={"prune": PRUNE | {"end": (2, 2)}}, before=SCRATCH)
    c.seeds, c.epochs, c.data.train_examples = 1, 3, 128  # whole batches: one program less
    c.probes.names = ("loss", "accuracy", "classes", "predictions", "confidence")
    c.probes.at = ("epochs", "events", "end")
    return c


def go(c, path, **options):
    return study.run(c, path, default.get_config(), quiet=True, **options)


def rows(path, table):
    with (path / f"{table}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True, scope="module")
def registered():
    PROBES["confidence"] = OWN
    yield
    del PROBES["confidence"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.report, "build", lambda paths: paths[0] / "report.html")
        path = tmp_path_factory.mktemp("probes") / "run"
        go(config(), path)
    return path


def test_counts_agree_with_the_tables(finished):
    """Right answers over examples are the accuracies, at each moment; test sizes never change."""
    found = {}
    for row in rows(finished, "classes"):
        key = row["run"], row["epoch"], row["when"]
        found.setdefault(key, []).append((int(row["count"]), int(row["correct"])))
    share = {k: sum(c for _, c in v) / sum(n for n, _ in v) for k, v in found.items()}
    assert {tuple(n for n, _ in v) for v in found.values()} == {
        tuple(n for n, _ in found["S-0", "0", "epoch"])
    }
    assert sum(n for n, _ in found["S-0", "0", "epoch"]) == 90
    for row in rows(finished, "epochs"):
        key = row["run"], row["epoch"], "epoch"
        assert float(row["test_accuracy"]) == pytest.approx(share.pop(key))
        if row["epoch"] == "2":
            assert found[(*key[:2], "end")] == found[key]
            del share[(*key[:2], "end")]
    events = rows(finished, "events")
    assert {e["epoch"] for e in events} == {"-1", "0", "1", "2"}
    for e in events:
        for when, column in (("before", "pre_accuracy"), ("after", "post_accuracy")):
            assert float(e[column]) == pytest.approx(share[e["run"], e["epoch"], when])
    assert set(share) == {(e["run"], e["epoch"], w) for e in events for w in ("before", "after")}


def test_predictions_are_those_that_were_counted(finished):
    labels = None
    for row, when in itertools.product(rows(finished, "epochs"), ("epoch", "end")):
        place = "end" if when == "end" else f"epoch-step{row['step']}"
        if when == "end" and row["epoch"] != "2":
            continue
        with np.load(finished / "measures" / f"{row['run']}-{place}.npz") as file:
            predicted, of = file["predicted"], file["labels"]
        labels = of if labels is None else labels
        np.testing.assert_array_equal(of, labels)
        mine = [
            r
            for r in rows(finished, "classes")
            if (r["run"], r["epoch"], r["when"]) == (row["run"], row["epoch"], when)
        ]
        for r in mine:
            its = labels == int(r["class"])
            assert (its.sum(), (its & (predicted == labels)).sum()) == (
                int(r["count"]),
                int(r["correct"]),
            )
    (batch, *_) = plan.build(config_lib.variants(config(), default.get_config()))
    np.testing.assert_array_equal(labels, batch.dataset.test_labels)


def test_a_probe_of_ones_own(finished):
    found = rows(finished, "confidence")
    assert tuple(found[0]) == (*probes.KEYS, "confidence")
    assert len(found) == len({(r["run"], r["epoch"], r["when"]) for r in found})
    assert all(0.1 <= float(r["confidence"]) <= 1 for r in found)
    assert "confidence" in entries.registered()


def test_numbers_of_other_tables_do_not_change(finished, tmp_path, monkeypatch):
    """Nor does what a stopped study leaves: it continues to the same bytes."""
    monkeypatch.setattr(study.report, "build", lambda paths: paths[0] / "report.html")
    calls = [3]

    def stop():
        calls[0] -= 1
        return calls[0] < 0

    with pytest.raises(Interrupted):
        go(config(), tmp_path / "again", stop_requested=stop)
    go(config(), tmp_path / "again")
    for file in sorted(finished.glob("*.csv")):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name
    for file in finished.glob("measures/*.npz"):
        with np.load(file) as a, np.load(tmp_path / "again" / "measures" / file.name) as b:
            for name in a.files:
                np.testing.assert_array_equal(a[name], b[name])
    plain = config()
    plain.probes.names, plain.probes.at = ("loss", "accuracy"), ()
    go(plain, tmp_path / "plain")
    assert not (tmp_path / "plain" / "classes.csv").exists()
    for table in ("epochs", "events"):
        for row, other in zip(rows(finished, table), rows(tmp_path / "plain", table), strict=True):
            for column, cell in row.items():
                if column.endswith(("loss", "accuracy", "instability")) and cell:
                    assert float(cell) == pytest.approx(float(other[column]), rel=1e-5)
                else:
                    assert cell == other[column]


def test_sums_by_hand_whatever_the_batches():
    """Against one pass over the whole split; batches of 7 leave a part."""
    (batch, *_) = plan.build(config_lib.variants(config(), default.get_config()))
    program, member = batch.program, batch.members[0]
    state = step.initial_state(program, jnp.uint32(3), member.table, member.hyper)
    images, labels = batch.dataset.test_images[:25], batch.dataset.test_labels[:25]
    whole = step.logits(program, state, jnp.asarray(images))
    right = np.asarray(whole.argmax(-1)) == labels
    for size in (7, 25):
        small = dataclasses.replace(program, eval_batch_size=size)
        look = jax.jit(lambda s, p=small: evaluation.evaluate(p, s, images, labels))
        found = look(state)
        counted = found.probed["classes"]
        np.testing.assert_array_equal(counted["count"], np.bincount(labels, minlength=10))
        np.testing.assert_array_equal(counted["correct"], np.bincount(labels[right], minlength=10))
        np.testing.assert_array_equal(found.probed["predictions"]["predicted"], whole.argmax(-1))
        np.testing.assert_array_equal(found.probed["predictions"]["labels"], labels)
        confidence = jax.nn.softmax(whole).max(-1).sum()
        assert float(found.probed["confidence"]) == pytest.approx(float(confidence), rel=1e-5)
        assert float(found.accuracy) == pytest.approx(right.mean())


def test_bad_requests():
    def refused(message, **changes):
        c = config()
        c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        with pytest.raises(ConfigError, match=message):
            config_lib.variants(c, default.get_config())

    refused("'clases' is not one of: loss, accuracy.*Did you mean", probes__names=("clases",))
    refused("'always' is not one of: epochs, events, end", probes__at=("always",))
    refused("names something twice", probes__names=("loss", "loss"))
    refused("does not go with config.intervention.as_released", intervention__as_released=True)
    c = config()
    with pytest.raises(ConfigError, match=r"'classes' counts classes.*leave it out"):
        probing.named(c, SimpleNamespace(has_classes=False))
    PROBES["other"] = OWN._replace(columns=("x",))
    PROBES["mine"] = OWN._replace(table="runs")
    try:
        with pytest.raises(ValueError, match=r"'other' writes confidence\.csv"):
            probes.tables(("confidence", "other"))
        with pytest.raises(ValueError, match=r"'mine' writes runs\.csv"):
            probes.tables(("mine",))
    finally:
        del PROBES["other"], PROBES["mine"]
