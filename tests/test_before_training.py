"""Pruning before training: data, network, trackers, and what studies of it need of the loop."""

import csv
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import data as data_lib
from prunejax import models, report, rng
from prunejax.configs import before_training, default
from prunejax.data import signal_noise
from prunejax.data.constants import read
from prunejax.errors import ConfigError, Interrupted, ReportError
from prunejax.report import figures_before
from prunejax.report import tables as report_tables
from prunejax.report import words as report_words
from prunejax.study import arrangement, plan, run
from prunejax.study import config as config_lib
from prunejax.study.population import Population
from prunejax.train import step, trackers
from tests.studies import tiny

# -- the network and its data ---------------------------------------------------------------------


@pytest.mark.parametrize("power", [1, 2, 3])
def test_the_network_is_the_sum_of_its_formula(power):
    module = models.create("two_patch", num_classes=3, neurons=4, power=power)
    x = np.asarray(jax.random.normal(rng.at(0, "x"), (5, 2, 6)))
    variables = models.init(module, rng.at(0, "init"), (2, 6))
    w = np.asarray(variables["params"]["neurons"]["kernel"], np.float64).reshape(6, 3, 4)
    found = module.apply(variables, x)
    expected = np.zeros((5, 3))
    for i in range(5):
        for j in range(3):
            for r in range(4):
                for patch in x[i]:
                    expected[i, j] += max(0.0, float(w[:, j, r] @ patch)) ** power
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    gradient = jax.grad(lambda v: module.apply(v, jnp.zeros_like(x)).sum())(variables)
    assert np.all(np.asarray(gradient["params"]["neurons"]["kernel"]) == 0)


def test_images_are_one_patch_and_bad_powers_are_refused():
    module = models.create("two_patch", neurons=2, init_std=0.5)
    variables = models.init(module, rng.at(0, "init"), (8, 8, 1))
    kernel = variables["params"]["neurons"]["kernel"]
    assert kernel.shape == (64, 20)
    assert float(kernel.std()) == pytest.approx(0.5, rel=0.05)
    with pytest.raises(ValueError, match="power is 4"):
        models.init(models.create("two_patch", power=4), rng.at(0, "init"), (4,))


def test_signal_noise_is_drawn_as_stated():
    name = "signal_noise:classes=3,dimension=40,train=600,test=20,signal=2,noise=0.5"
    data = data_lib.load(name, seed=1)
    assert data.train_images.shape == (600, 2, 40)
    assert data.num_classes == 3
    signal, noise = map(np.asarray, data.prepare.parts(jnp.asarray(data.train_images)))
    np.testing.assert_array_equal(signal, 2 * np.eye(40)[data.train_labels])
    np.testing.assert_array_equal(signal + noise, data.train_images.sum(1))
    assert noise.std() == pytest.approx(0.5, rel=0.02)
    first = (np.count_nonzero(data.train_images[:, 0], axis=-1) == 1).mean()
    assert 0.4 < first < 0.6
    assert np.all(np.bincount(data.train_labels) > 150)
    other = data_lib.load(name, seed=2)
    assert not np.array_equal(other.train_images, data.train_images)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("signal_noise:mu=1", "'mu=1' is none of classes=int"),
        ("signal_noise:train=x", "'train=x'"),
        ("signal_noise:classes=9,dimension=4", "as many dimensions"),
        ("signal_noise:noise=-1", "noise of at least 0"),
    ],
)
def test_bad_constants_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        data_lib.load(name)


def test_gaussian_classes_are_drawn_as_stated():
    data = data_lib.load("gaussian:classes=3,dimension=5,train=6000,test=60,std=0.5", seed=2)
    means = np.stack([data.train_images[data.train_labels == c].mean(0) for c in range(3)])
    inside = data.train_images - means[data.train_labels]
    assert inside.std() == pytest.approx(0.5, rel=0.02)
    expected = np.asarray(jax.random.normal(rng.at(2, "gaussian", "means"), (3, 5)))
    np.testing.assert_allclose(means, expected, atol=0.06)
    np.testing.assert_array_equal(data.prepare(data.train_images), data.train_images)
    with pytest.raises(ValueError, match="at least 2 classes"):
        data_lib.load("gaussian:classes=1")


def test_noise_is_added_once_and_padding_holds_no_signal():
    plain = data_lib.load("digits", train_examples=50, test_examples=30, seed=3)
    noisy = data_lib.load("digits", train_examples=50, test_examples=30, pad=7, noise=0.7, seed=3)
    assert noisy.image_shape == (71,)
    signal, noise = map(np.asarray, noisy.prepare.parts(noisy.train_images))
    clean = np.asarray(data_lib.normalize(plain.train_images, plain.mean, plain.std))
    np.testing.assert_allclose(signal[:, :64], clean.reshape(50, 64))
    assert not signal[:, 64:].any()
    np.testing.assert_allclose(noisy.prepare(noisy.train_images), signal + noise)
    assert noise.std() == pytest.approx(0.7, rel=0.03)
    assert abs(np.corrcoef(noise[:30].ravel(), noisy.test_images[:, 1].ravel())[0, 1]) < 0.1
    with pytest.raises(ValueError, match="no images to add noise to"):
        data_lib.load("diabetes", noise=1.0)


def test_projections_against_loops():
    generator = np.random.default_rng(0)
    kernel, live = generator.normal(size=(5, 3, 2)), generator.random((5, 3, 2)) < 0.6
    signal, noise = generator.normal(size=(9, 5)), generator.normal(size=(9, 5))
    labels = np.array([0, 1, 2] * 3)
    found = trackers.projections(*map(jnp.asarray, (kernel, live, signal, noise, labels)))
    means = [signal[labels == j].mean(0) for j in range(3)]
    own = [kernel[:, j, r] @ noise[i] for i in range(9) for j in [labels[i]] for r in range(2)]
    rest = [
        kernel[:, j, r] @ noise[i]
        for i in range(9) for j in range(3) if j != labels[i] for r in range(2)
    ]  # fmt: skip
    kept = [
        sum(live[:, j, r] @ means[j] ** 2 for r in range(2)) / sum(means[j] ** 2) for j in (0, 1, 2)
    ]
    expected = [
        np.mean([max(kernel[:, j, r] @ means[j] for r in range(2)) for j in range(3)]),
        np.mean(own), max(own), np.mean(rest), max(rest), np.mean(kept), min(kept),
    ]  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# -- in a study -----------------------------------------------------------------------------------

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


def go(config, path, **options):
    return run.run(config, path, default.get_config(), quiet=True, **options)


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


# -- the study's own arms and figures -------------------------------------------------------------


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


def test_figures_sort_arms_by_label(study):
    plain = report_tables.load([study])  # its labels name no start
    assert figures_before.before_training(plain, None) is None
    assert figures_before.trackers(plain, None) is None
    rows_of = [
        {"run": f"{v}-{s}", "variant": v, "seed": str(s), "status": "done",
         "final_test_accuracy": str(a), "final_train_accuracy": str(t)}
        for v, a, t in (("std=0_1-keep=1", 0.4, 1), ("std=0_1-keep=0_2", 0.5, 1),
                        ("std=0_1-scaled=0_2", 0.6, 1), ("std=0_1-keep=0_01", 0.2, 0.5))
        for s in range(4)
    ]  # fmt: skip

    class Fake:
        good, guides = rows_of, ()

        def report_option(self, name, default):
            return self.guides if name == "guides" else default

    found = figures_before.arms(Fake())
    assert set(found[0.1]) == {"keep", "scaled"}
    assert sorted(found[0.1]["scaled"]) == [0.2, 1.0]
    drawing = figures_before.before_training(Fake(), None)
    assert "+10.0" in drawing.alt
    assert not figures_before._fits(found[0.1]["keep"][0.01])
    for words in ("only hurts", "does more than pruning"):  # .2 gains, and .01 has no control
        assert words not in drawing.alt
    rows_of += [
        {"run": f"{v}-{s}", "variant": v, "seed": str(s), "status": "done",
         "final_test_accuracy": str(a), "final_train_accuracy": "1"}
        for v, a in (("std=0_01-keep=1", 0.64), ("std=0_01-keep=0_5", 0.6),
                     ("std=0_01-keep=0_2", 0.5), ("std=0_01-scaled=0_5", 0.65),
                     ("std=0_01-scaled=0_2", 0.66))
        for s in range(4)
    ]  # fmt: skip
    text = figures_before.before_training(Fake(), None).alt
    assert "at this start of 0.01 random pruning only hurts" in text
    assert "scaling the start of 0.01 does more than pruning, at every p" in text

    def dashed(guides):
        Fake.guides = guides
        drawing = figures_before.before_training(Fake(), None)
        lines = [line for line in drawing.panels[0].axes[0].lines if line.get_color() == "0.6"]
        return [line.get_xdata()[0] for line in lines], "remembered" in drawing.caption

    assert dashed(()) == ([], False)
    assert dashed((0.155, 0.001)) == ([pytest.approx(15.5), pytest.approx(0.1)], True)


def test_guides_are_drawn_only_where_asked_for():
    assert before_training.get_config("synthetic").report.guides == ()
    config = before_training.get_config("synthetic,guides")
    log = np.log(500)
    assert config.report.guides == pytest.approx((log / 40, 1 / (4 * 40 * log)))
    assert before_training.get_config("guides").report.guides[0] == pytest.approx(np.log(264) / 10)
    labels = list(config.variants)
    report.check(config.report, labels)
    config.report.guides = (0.0,)
    with pytest.raises(
        ConfigError, match=r"config.report.guides: 0.0 is no share above 0, up to 1"
    ):
        report.check(config.report, labels)


@pytest.mark.parametrize(
    ("targeted", "words"), [(500, "50 %"), (985, "98 %"), (995, "99.5 %"), (1000, "all")]
)
def test_nearly_all_is_not_all(targeted, words):
    event = {"run": "a-0", "epoch": "-1", "layer": "neurons"}
    event |= {"targeted": str(targeted), "live": str(1000 - targeted)}
    assert report_words._rhythm({}, [event]) == [f"{words} of neurons at once", "before training"]
