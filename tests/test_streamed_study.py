"""Streamed studies: against sets in memory, resume, layouts, devices, bad requests."""

import csv
import json
import sys

import jax
import numpy as np
import pytest

from prunejax import data, main
from prunejax.configs import default
from prunejax.data import StreamedSet, dataset
from prunejax.errors import ConfigError, Interrupted
from prunejax.study import run as study
from prunejax.study.devices import streamed_population
from prunejax.study.devices.streamed_population import StreamedPopulation
from prunejax.study.devices.windows import part
from prunejax.study.loop import pacing
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib
from tests import streamed_case
from tests.children import Child
from tests.streamed_case import BATCH, EXAMPLES, TESTS
from tests.studies import go
from tests.test_rendezvous import free_port

pytestmark = pytest.mark.usefixtures("few_layers")
TABLES = ("epochs", "events", "runs")
EVENT = ("pre_loss", "post_loss", "predicted_first", "predicted_second")


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr(study.report, "build", streamed_case.no_report)


def rows(path, table):
    with (path / f"{table}.csv").open() as file:
        return list(csv.DictReader(file))


def content(path):
    return {t: (path / f"{t}.csv").read_bytes() for t in (*TABLES, "classes")}


RUNS = ("S-0", "S-1", "L-0", "L-1")


def assert_close(path, other, table, columns, runs=RUNS, rel=2e-4):
    """The same rows of these runs, in any order, and nearly the same numbers."""
    exact = [
        k
        for k in ("run", "epoch", "step", "layer", "targeted", "live")
        if k in rows(path, table)[0]
    ]
    found, wanted = (
        sorted(
            ([r[k] for k in exact], [float(r[k]) for k in columns])
            for r in rows(p, table)
            if r["run"] in runs
        )
        for p in (path, other)
    )
    assert [labels for labels, _ in found] == [labels for labels, _ in wanted]
    for (labels, ours), (_, theirs) in zip(found, wanted, strict=True):
        assert ours == pytest.approx(theirs, rel=rel, abs=1e-5), (labels, columns)


def assert_same_targets(path, other):
    files = sorted((path / "targets").glob("*.npz"))
    assert files
    for file in files:
        a, b = np.load(file), np.load(other / "targets" / file.name)
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])


def batches_of(config):
    return plan.build(config_lib.variants(config, default.get_config()))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    directory = tmp_path_factory.mktemp("streamed")
    streamed_case.write(directory)
    return directory


@pytest.fixture(scope="module")
def finished(sets, tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "run"
    config = streamed_case.study(sets)
    config.measures.names, config.measures.examples = ("hessian_trace",), 10
    config.measures.probes = 2
    go(config, path)
    return path


# -- a study -------------------------------------------------------------------------------------


def test_records_are_complete(sets, finished):
    epochs, events, runs = (rows(finished, table) for table in TABLES)
    assert len(epochs) == 2 * 2 * 2
    assert [(e["epoch"], e["step"]) for e in epochs[:2]] == [("0", "12"), ("1", "24")]
    for e in epochs:  # each of the examples once, whatever fills up the last batch
        assert float(e["test_accuracy"]) * TESTS == pytest.approx(
            round(float(e["test_accuracy"]) * TESTS), abs=1e-4
        )
    assert len(events) == 2 * 2 * 2 * 2
    assert all(np.isfinite(float(e["predicted_second"])) for e in events)
    assert [r["status"] for r in runs] == ["done"] * 4
    counted = rows(finished, "classes")
    labels = batches_of(streamed_case.study(sets))[0].dataset.first("test", TESTS)[1]
    for e in epochs:
        mine = [
            r for r in counted if (r["run"], r["step"], r["when"]) == (e["run"], e["step"], "epoch")
        ]
        assert [int(r["count"]) for r in mine] == [TESTS // 3] * 3
        right = sum(int(r["correct"]) for r in mine)
        assert float(e["test_accuracy"]) == pytest.approx(right / TESTS)
        with np.load(finished / "measures" / f"{e['run']}-epoch-step{e['step']}.npz") as file:
            np.testing.assert_array_equal(file["labels"], labels)
            assert np.sum(file["predicted"] == file["labels"]) == right
    assert {r["when"] for r in counted} == {"epoch", "before", "after"}
    assert all(np.isfinite(float(r["hessian_trace"])) for r in runs)
    assert (finished / "report.html").exists()
    assert (finished / "checkpoints" / "final-0").exists()


@pytest.mark.usefixtures("no_report")
def test_interrupted_within_an_epoch_continues_to_the_same_bytes(
    sets, finished, tmp_path, monkeypatch
):
    monkeypatch.setattr(pacing, "CALL_SECONDS", 0.0)  # 8 steps, then one a call: 12 an epoch
    left, path = [9], tmp_path / "run"  # step 17

    def stop():
        left[0] -= 1
        return left[0] < 0

    with pytest.raises(Interrupted):
        go(streamed_case.study(sets), path, stop_requested=stop)
    (saved,) = (path / "checkpoints").glob("chunk-*")
    (facts,) = saved.glob("*/facts.json")
    assert json.loads(facts.read_text())["epoch"] == 1 == len(rows(path, "epochs"))
    go(streamed_case.study(sets), path)
    for table in ("epochs", "events", "classes"):
        assert content(path)[table] == content(finished)[table]
    assert_same_targets(path, finished)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("batches", [2, 5])  # of the 12 of an epoch, 3 of an evaluation
def test_how_many_batches_a_window_has_changes_no_byte(
    sets, finished, tmp_path, monkeypatch, batches
):
    pixels = BATCH * 14 * 14 * 3
    monkeypatch.setattr(streamed_population, "WINDOW_BYTES", batches * pixels)
    config = streamed_case.study(sets)
    (batch,) = batches_of(config)
    people = StreamedPopulation(
        batch.program, batch.dataset, "sequential", jax.devices()[:1], batch.members[0]
    )
    assert (people._window, people._test_window) == (batches, min(batches, 3))
    go(config, tmp_path / "run")
    for table in ("epochs", "events", "classes"):
        assert content(tmp_path / "run")[table] == content(finished)[table]
    assert_same_targets(tmp_path / "run", finished)


@pytest.mark.usefixtures("no_report")
def test_stacked_members_agree_with_single_ones(sets, finished, tmp_path):
    config = streamed_case.study(sets)
    config.population.layout = "vectorized"
    go(config, tmp_path / "run")
    columns = ("train_loss", "test_loss", "test_accuracy")
    assert_close(tmp_path / "run", finished, "epochs", columns)
    assert_close(tmp_path / "run", finished, "events", EVENT)
    assert_same_targets(tmp_path / "run", finished)


@pytest.mark.usefixtures("no_report")
def test_the_same_views_in_memory_train_the_same(sets, finished, tmp_path, monkeypatch):
    config = streamed_case.study(sets)
    (streamed,) = (batch.dataset for batch in batches_of(config))
    splits = [streamed.first(split, 1000) for split in ("train", "test")]
    assert [len(labels) for _, labels in splits] == [EXAMPLES, TESTS]
    held = dataset.make("held", *splits, 3, streamed.mean, streamed.std)
    monkeypatch.setitem(data.DATASETS, "held", lambda _: held)
    config.data.name, config.seeds = "held", 1
    (batch,) = batches_of(config)
    assert not isinstance(batch.dataset, StreamedSet)
    go(config, tmp_path / "run")
    columns = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "sparsity")
    assert_close(tmp_path / "run", finished, "epochs", columns, ("S-0", "L-0"), rel=1e-6)
    assert_close(tmp_path / "run", finished, "events", EVENT, ("S-0", "L-0"))
    assert_same_targets(tmp_path / "run", finished)


def test_full_batches_only(sets):
    config = streamed_case.study(sets)
    config.batch_size = 10
    (batch,) = batches_of(config)
    assert batch.program.train_examples == 90  # 6 are left out
    assert (batch.program.steps_per_epoch, batch.program.last_batch) == (9, 10)
    assert batch.dataset.training(0, 10, augment=True).steps_per_epoch == 9


def test_batches_are_a_pure_function_of_seed_and_step(sets):
    config = streamed_case.study(sets)
    config.data.augment = True
    (batch,) = batches_of(config)
    people = StreamedPopulation(
        batch.program, batch.dataset, "vectorized", jax.devices()[:1], batch.members[0]
    )
    streams = {
        seed: batch.dataset.training(seed, BATCH, augment=True) for seed in (0, 1, 2**32 - 1)
    }
    for seeds, first in (((0, 1, 0), 3), ((0, 1, 0), 5), ((0, 1, 0), 14), ((1, 2**32 - 1), 3)):
        images, labels, begins = people._read(seeds, first, 2)
        assert begins.tolist() == [first] * len(seeds)
        for i, seed in enumerate(seeds):
            for j in range(2):
                batch = streams[seed][first + j]
                np.testing.assert_array_equal(images[i, j], batch["image"])
                np.testing.assert_array_equal(labels[i, j], batch["label"])


def test_parts_of_a_batch_cover_what_the_devices_hold():
    assert part([(0, 8)], 8) == (0, 1)
    assert part([(4, 6), (6, 8)], 8) == (1, 2)
    assert part([(2, 4)], 8) == (1, 4)
    assert part([(2, 8)], 8) == (0, 1)  # no equal part has just these rows


# -- devices and processes -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "processes"), [(2, 1), (1, 2)])
def test_data_parallel_agrees_with_one_device(sets, finished, tmp_path, devices, processes):
    """Two devices, each with half of every batch: of one process, and of two."""
    path, port = tmp_path / "run", free_port()
    changes = {"population.data_parallel": 2, "measures.forecast": processes == 1}
    started = [
        Child(
            *(streamed_case.main, str(sets), str(path), json.dumps(changes), str(devices)),
            *((str(port), str(i), str(processes)) if processes > 1 else ()),
        )
        for i in range(processes)
    ]
    for process in started:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    assert_close(path, finished, "epochs", ("train_loss", "test_loss"), ("S-0",))
    assert_close(path, finished, "events", EVENT if processes == 1 else EVENT[:2], ("S-0",))
    assert_same_targets(path, finished)


# -- bad requests --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.train_examples": 50}, r"config\.data\.train_examples = 50: 'imagenet2012' is str"),
        ({"data.label_noise": 0.1}, r"config\.data\.label_noise = 0\.1"),
        ({"data.validation_examples": 5}, "validation_examples = 5"),
        ({"measures.examples": 0, "measures.names": ("tic",)}, r"measures\.examples = 0 \(all\)"),
        ({"batch_size": 100}, "batch_size = 100 is more than the 96"),
        ({"data.image_size": 0}, r"image_size = 0 .* must be at least 1 \(pixels\)"),
        ({"data.image_size": 40, "model.name": "vit_s16"}, "40x40 pixels .* multiple of 16"),
        ({"data.name": "tfds:nothing"}, "'nothing' is not prepared"),
        ({"data.name": "digits", "data.stream": True}, "unknown streamed data set 'digits'"),
    ],
)
def test_bad_requests_fail_before_anything_is_written(sets, tmp_path, change, message):
    config = streamed_case.study(sets, none={})
    config.measures.forecast = False
    config.update_from_flattened_dict(change)
    with pytest.raises(ConfigError, match=message):
        go(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ebn_is_refused_without_batch_norm(sets, tmp_path):
    config = streamed_case.study(sets)
    config.model.name, config.data.image_size = "vit_s16", 16
    for arm in ("S", "L"):
        config.variants[arm].prune.layers = ("block.*",)
    with pytest.raises(ConfigError, match=r"'ebn' .* needs a BatchNorm .*'block1_dense1' has none"):
        go(config, tmp_path / "run")


def test_the_command_says_what_is_missing_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("prunejax.cluster.distributed.leave", lambda code: None)
    words = ["prunejax", "--config=configs/imagenet.py", f"--config.data.data_dir={tmp_path}"]
    words.append(f"--workdir={tmp_path / 'run'}")
    assert main.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'imagenet2012' is not prepared" in line
    monkeypatch.setitem(sys.modules, "grain", None)
    assert main.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("prunejax: streaming needs grain, which is not installed: pip install")
    assert not (tmp_path / "run").exists()
