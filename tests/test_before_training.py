"""Pruning before training: what its studies need of the training loop, and its arms."""

import csv
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax.configs import before_training, default
from prunejax.data import signal_noise
from prunejax.data.constants import read
from prunejax.errors import ConfigError, Interrupted, ReportError
from prunejax.report import figures_before
from prunejax.report import tables as report_tables
from prunejax.study import run
from prunejax.study.devices import arrangement
from prunejax.study.devices.population import Population
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib
from prunejax.train import step
from tests.studies import go, tiny

KEEP = {"schedule": "scratch", "target": "random", "score": "magnitude"}
NOISY = "signal_noise:classes=3,dimension=30,train=24,test=40,noise=0.2"


def small(**changes):
    """24 full-batch steps of four arms, evaluated every 6; some stop, each seed has its data."""
    config = tiny(
        dense={},
        p5={"prune": KEEP | {"fraction": (0.5,)}},
        p2={"prune": KEEP | {"fraction": (0.8,)}},
        scaled={"start": {"scale": 0.5}},
    )
    config.epochs, config.batch_size, config.evaluate_every = 24, 24, 6
    config.data.train_examples = config.data.test_examples = 0
    config.data.name, config.data.by_seed = NOISY, True
    config.model.name, config.model.neurons, config.model.width = "two_patch", 6, 1.0
    config.optimizer.name, config.optimizer.momentum = "sgd", 0.0
    config.optimizer.learning_rate, config.optimizer.schedule = 0.3, "constant"
    config.prune.granularity, config.prune.score = "weight", "magnitude"
    config.stop_loss, config.trackers = 0.5, ("signal_noise",)
    config.update(changes)
    return config


def planned(config):
    return plan.build(config_lib.variants(config, default.get_config()))


def rows(path, table):
    with open(path / f"{table}.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def quick_report(monkeypatch):
    monkeypatch.setattr(run.report, "build", lambda paths: paths[0] / "report.html")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("before") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.report, "build", lambda paths: paths[0] / "report.html")
        go(small(), path)
    return path


def test_runs_stop_at_an_evaluation_and_stay_as_they_are(study):
    found = {row["run"]: row for row in rows(study, "runs")}
    epochs = rows(study, "epochs")
    stopped = [row for row in found.values() if row["stopped_step"]]
    assert len(stopped) > 0
    for name, row in found.items():
        own = [e for e in epochs if e["run"] == name]
        last = int(row["stopped_step"] or 24)
        assert [int(e["step"]) for e in own] == list(range(6, last + 1, 6))
        assert row["status"] == "done"
        loss = float(row["final_train_loss"])
        assert (loss <= 0.5) == bool(row["stopped_step"])
        assert float(row["final_test_accuracy"]) == float(own[-1]["test_accuracy"])


def test_an_event_on_the_last_step_of_an_epoch_is_behind_it(tmp_path):
    """Of 16 steps in 4 epochs; the training loss is low enough from the first evaluation on."""
    rule = {"schedule": "one_shot", "unit": "step", "granularity": "weight", "score": "magnitude"}
    arms = {f"at{step}": {"prune": rule | {"start": (step,)}} for step in (7, 8, 9)}
    config = tiny(**arms)
    config.seeds, config.stop_loss = 1, 100.0
    go(config, tmp_path / "run")
    events = {row["variant"]: row["step"] for row in rows(tmp_path / "run", "events")}
    assert events == {"at7": "7", "at8": "8", "at9": "9"}
    stopped = {row["variant"]: row["stopped_step"] for row in rows(tmp_path / "run", "runs")}
    assert stopped == {"at7": "8", "at8": "8", "at9": "12"}


def test_the_report_misses_rows_that_have_to_be_there(study, tmp_path):
    shutil.copytree(study, tmp_path / "copy")
    report_tables.load([tmp_path / "copy"])
    table = tmp_path / "copy" / "epochs.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:1] + lines[2:]))
    with pytest.raises(ReportError, match="epoch 5 is missing"):
        report_tables.load([tmp_path / "copy"])


def test_stopping_is_exact(study):
    """The weights of a stopped run are those of a run that ends at that step."""
    config = small(stop_loss=0.0, evaluate_train=True)
    row = next(r for r in rows(study, "runs") if r["stopped_step"] and r["variant"] == "dense")
    batch = next(b for b in planned(config) if b.members[0].seed == int(row["seed"]))
    member = next(m for m in batch.members if m.run == row["run"])
    data = jax.tree.map(jnp.asarray, arrangement.device_data(batch.dataset))
    state = step.initial_state(batch.program, np.uint32(member.seed), member.table, member.hyper)
    x, y = data.train_images, jax.nn.one_hot(data.train_labels, 3)
    kernel = np.asarray(state.params["neurons"]["kernel"], np.float64)
    flat, own = np.asarray(x, np.float64), np.asarray(y, np.float64)
    for _ in range(int(row["stopped_step"])):  # gradient descent by hand
        before = flat @ kernel
        logits = np.maximum(before, 0).reshape(24, 2, 3, 6).sum((1, 3))
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        back = np.repeat((p - own) / 24, 6, axis=1)[:, None] * (before > 0)
        kernel -= 0.3 * np.einsum("npd,npk->dk", flat, back)
    logits = np.maximum(flat @ kernel, 0).reshape(24, 2, 3, 6).sum((1, 3))
    top = logits.max(1)
    values = top + np.log(np.exp(logits - top[:, None]).sum(1)) - (logits * own).sum(1)
    assert float(row["final_train_loss"]) == pytest.approx(values.mean(), rel=1e-4)


def test_the_sum_of_training_losses_is_of_every_epoch_not_of_those_evaluated(study, tmp_path):
    go(small(stop_loss=0.0, evaluate_train=True, evaluate_every=1), tmp_path / "whole")
    epochs = rows(tmp_path / "whole", "epochs")
    for path in (study, tmp_path / "whole"):
        for row in rows(path, "runs"):
            own = [float(e["train_loss"]) for e in epochs if e["run"] == row["run"]]
            last = int(row.get("stopped_step") or 24)  # an epoch is a step here
            assert float(row["training_loss_sum"]) == pytest.approx(sum(own[:last]), rel=1e-5)


def test_another_layout_stops_at_the_same_steps(study, tmp_path):
    config = small()
    config.population.layout = "vectorized"
    go(config, tmp_path / "v")
    for a, b in zip(rows(study, "runs"), rows(tmp_path / "v", "runs"), strict=True):
        assert (a["run"], a["stopped_step"]) == (b["run"], b["stopped_step"])
        assert float(a["final_train_loss"]) == pytest.approx(float(b["final_train_loss"]), rel=1e-4)


def test_an_interrupted_study_ends_with_the_same_bytes(study, tmp_path):
    class Stop:
        """Asked for the tenth time, it says yes."""

        asked = 0

        def __call__(self):
            self.asked += 1
            return self.asked == 10

    with pytest.raises(Interrupted):
        go(small(), tmp_path / "i", stop_requested=Stop())
    go(small(), tmp_path / "i")
    for table in ("runs", "epochs", "trackers", "events"):
        assert (tmp_path / "i" / f"{table}.csv").read_bytes() == (
            study / f"{table}.csv"
        ).read_bytes()


def test_trackers_begin_before_training_and_follow_every_evaluation(study):
    found = rows(study, "trackers")
    assert [int(r["step"]) for r in found if r["run"] == "dense-0"][:2] == [0, 6]
    dense = next(r for r in found if r["run"] == "dense-0")
    assert float(dense["signal_neurons"]) == 6
    halved = [float(r["signal_neurons"]) for r in found if r["run"] == "p2-0"]
    assert 0 <= halved[0] < 4  # a fifth of the weights
    assert len(set(halved)) == 1
    scaled = next(r for r in found if r["run"] == "scaled-0")
    for name in ("signal", "noise_own_max"):
        assert float(scaled[name]) == pytest.approx(0.5 * float(dense[name]), rel=1e-5)


def test_seeds_have_data_of_their_own_and_share_the_compiled_program():
    one, two = planned(small())
    assert {m.seed for m in one.members} == {0}
    assert one.program is two.program
    assert not np.array_equal(one.dataset.train_images, two.dataset.train_images)
    config = small()
    config.data.by_seed = False
    (both,) = planned(config)
    assert {m.seed for m in both.members} == {0, 1}
    like, (first, second) = one.members[0], (arrangement.device_data(b.dataset) for b in (one, two))
    people = Population(one.program, first, "sequential", jax.devices()[:1], like)
    other = people.on(second)
    assert other.train is people.train
    np.testing.assert_array_equal(other.data.train_images, two.dataset.train_images)


def test_labels_that_name_no_start_have_no_figure(study):
    plain = report_tables.load([study])
    assert figures_before.before_training(plain, None) is None
    assert figures_before.trackers(plain, None) is None


def test_masks_of_a_seed_are_nested_over_p(study):
    chosen = {name: dict(np.load(study / "targets" / f"{name}.npz")) for name in ("p5-0", "p2-0")}
    few, many = (next(iter(chosen[name].values())) for name in ("p5-0", "p2-0"))
    few, many = few.astype(bool), many.astype(bool)
    assert few.sum() < many.sum()
    assert not np.any(few & ~many)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ConfigError, match="unknown tracker 'signal'"):
        planned(small(trackers=("signal",)))
    config = small()
    config.model = default.get_config().model
    with pytest.raises(ConfigError, match=r"needs config\.model\.name = 'two_patch'"):
        planned(config)
    config = small(evaluate_every=2)
    config.intervention.as_released = True
    with pytest.raises(ConfigError, match="set it to 1"):
        planned(config)


def test_the_study_has_every_arm_beside_its_control():
    config = before_training.get_config()
    labels = list(config.variants)
    for std in ("0_1", "0_05", "0_01"):
        for p in ("0_5", "0_2", "0_01"):
            assert {f"std={std}-keep={p}", f"std={std}-scaled={p}"} <= set(labels)
    scaled = config.variants["std=0_1-scaled=0_2"]["start"]["scale"]
    assert scaled == pytest.approx(0.2**0.5)
    assert config.variants["std=0_1-rescaled=0_2"]["start"]["scale"] == pytest.approx(5**0.5)
    batches = planned(config)
    assert len({id(b.program) for b in batches}) == 1
    assert len(batches) == 8
    constants = read(signal_noise.Constants, before_training.SYNTHETIC)
    assert (constants.dimension, constants.train) == (500, 40)
