"""Measures of a study: each against a closed form, the numbers of a study against dense oracles."""

import csv
import dataclasses
import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from prunejax import data, measure, models, trees
from prunejax.configs import default
from prunejax.curvature import splits
from prunejax.errors import ConfigError, Interrupted, ReportError, WorkdirError
from prunejax.measures import context as context_lib
from prunejax.measures import suite
from prunejax.measures.columns import CONTEXT, number
from prunejax.models.resnet import ResNet
from prunejax.record.checkpoint import Checkpoints
from prunejax.report import remeasured, tables
from prunejax.study import run as study
from prunejax.study.loop import measuring
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib
from prunejax.train import evaluation, step
from tests.studies import PRUNE, tiny

NAMES = (
    *("hessian_trace", "gradient_second_moment", "tic", "tic_leading"),
    *("top_eigenvalues", "epsilon_flatness"),
)

# Those that need no classifier and no kernels; for the others see test_predictors.py,
# test_predictors_page.py and test_robustness.py.
OF_NETWORKS = (
    *("predictions", "prunability", "prunability_forms", "ticket"),
    *("rivals", "robustness", "smoothing"),
)
OF_LOSSES = tuple(n for n in suite.MEASURES if n not in OF_NETWORKS)

FIGURES = ("flatness", "tic", "eigenvalues", "perturbation", "forecast")


# -- every measure on a quadratic ------------------------------------------------------------


@pytest.fixture(scope="module")
def quadratic():
    """Loss w'Aw/2 + x_i'w with w and A known: 40 examples, 6 coordinates, 5 of them live."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a = (q * [9.0, 5.0, 2.0, 1.0, 0.5, -3.0]) @ q.T
    x = rng.normal(size=(40, 6))
    x -= x.mean(0)
    live = np.array([True, True, False, True, True, True])
    w = np.where(live, rng.normal(size=6), 0.0)
    matrix = jnp.asarray(a, jnp.float32)

    def per_example(params, batch):
        return params["w"] @ matrix @ params["w"] / 2 + batch @ params["w"]

    def evaluate(params, batch):
        loss = jnp.mean(per_example(params, batch))
        return {"loss": loss, "accuracy": 1 - loss}

    parts = [jnp.asarray(x[:30], jnp.float32), jnp.asarray(x[30:], jnp.float32)]
    batches = splits.batch_list(iter(parts))  # batches that are arrays themselves
    context = suite.Context(
        loss=lambda params, batch: jnp.mean(per_example(params, batch)),
        per_example=per_example,
        evaluate=evaluate,
        params={"w": jnp.asarray(w, jnp.float32)},
        masks={"w": jnp.asarray(live)},
        batches=batches,
        test=batches,
        key=jax.random.key(1),
        probes=200,
        eigenpairs=10,
        radius=0.1,
        activations=lambda trained: {"bn": rng.normal(size=2000) * (1 if trained else 2)},
    )
    found = suite.measure(context, OF_LOSSES)
    return context, found, a * np.outer(live, live), (a @ w + x)[:, live], w


@pytest.mark.parametrize(("most", "rows"), [(2**33, 14), (9 * 6 * 4, 9)])
def test_pairs_are_searched_in_the_memory_that_there_is(quadratic, monkeypatch, most, rows):
    """In 2 k + 12 vectors, but of a large network in 8 GiB: of 25 million weights 112 took 11."""
    asked = {}

    def search(operator, k, *, basis_size=None, memory_bytes=None, **_):
        size = sum(x.size for x in jax.tree.leaves(operator.like)) * operator.dtype.itemsize
        asked["rows"] = basis_size or memory_bytes // size
        return SimpleNamespace(values=np.zeros(k), at=lambda places: None)

    monkeypatch.setattr(context_lib, "eigenpairs", search)
    monkeypatch.setattr(context_lib, "MEMORY", most)
    _ = dataclasses.replace(quadratic[0], eigenpairs=1).pairs
    assert asked["rows"] == rows


def test_every_measure_fills_its_columns_and_no_others(quadratic):
    context, (columns, arrays, failed), *_ = quadratic
    assert failed == {}
    assert tuple(columns) == suite.columns(OF_LOSSES)
    assert all(np.isfinite(v) for v in columns.values())
    for name, entry in ((name, suite.MEASURES[name]) for name in OF_LOSSES):
        alone, _ = entry.run(context)
        assert tuple(alone) == entry.columns, name
        assert all(np.isfinite(a).all() for a in arrays.values() if a.dtype.kind == "f")


def test_traces_moments_and_ratios_of_the_quadratic(quadratic):
    context, (columns, arrays, _), hessian, gradients, _ = quadratic
    assert (context.live_dim, context.examples) == (5, 40)
    error = columns["hessian_trace_stderr"]
    assert abs(columns["hessian_trace"] - np.trace(hessian)) < 4 * error
    assert error == pytest.approx(arrays["hessian_trace_samples"].std(ddof=1) / 200**0.5)
    moment = (gradients**2).sum(1)
    assert columns["gradient_second_moment"] == pytest.approx(moment.mean(), rel=1e-5)
    assert columns["gradient_second_moment_stderr"] == pytest.approx(
        moment.std(ddof=1) / 40**0.5, rel=1e-4
    )
    ratio = columns["gradient_second_moment"] / columns["hessian_trace"]
    assert columns["tic"] == pytest.approx(ratio, rel=1e-5)
    assert columns["tic_leading"] == pytest.approx(moment.mean() / np.trace(hessian), rel=1e-4)
    assert columns["tic_stderr"] > 0
    mean = gradients.mean(0)
    total = ((gradients - mean) ** 2).sum() / 39
    noise = total / (mean @ mean - total / 40)
    assert columns["gradient_noise_scale"] == pytest.approx(noise, rel=1e-4)
    assert columns["gradient_noise"] == pytest.approx(total, rel=1e-4)
    low, high = arrays["gradient_noise_scale_interval"]
    assert low < noise < high


def test_spectrum_and_steps_along_it_on_the_quadratic(quadratic):
    _, (columns, arrays, _), hessian, gradients, _ = quadratic
    live = np.flatnonzero(np.abs(hessian).sum(0))
    values, vectors = np.linalg.eigh(hessian[np.ix_(live, live)])
    np.testing.assert_allclose(arrays["eigenvalues"], values[::-1], atol=1e-4)
    assert columns["top_eigenvalue"] == pytest.approx(values[-1], rel=1e-5)
    assert columns["hessian_trace_top"] == pytest.approx(values.sum(), rel=1e-4)
    assert columns["eigen_residual"] == arrays["eigenvalue_residuals"].max() < 1e-2
    slopes = np.abs(vectors.T @ gradients.mean(0))[::-1]
    grid = arrays["epsilons"]
    rises = slopes[:, None] * np.abs(grid) + values[::-1, None] * grid**2 / 2
    reached = np.abs(grid)[(rises >= 0.1).any(0)]
    assert columns["epsilon_flatness"] == pytest.approx(reached.min())
    assert arrays["loss_increase"].shape == (5, 81)


def test_sharpness_of_the_quadratic(quadratic):
    _, (columns, _, _), hessian, gradients, _ = quadratic
    slope = np.linalg.norm(gradients.mean(0))
    top = np.abs(np.linalg.eigvalsh(hessian)).max()
    # Nothing in the ball rises further than slope and largest curvature allow.
    assert 0.9 * 0.1 * slope < columns["sharpness_worst"] <= 0.1 * slope + 0.01 * top / 2 + 1e-5
    exact = 0.1**2 / 5 * np.trace(hessian) / 2
    assert abs(columns["sharpness_average"] - exact) < 4 * columns["sharpness_average_stderr"]


def test_a_measure_that_fails_leaves_the_others_alone(quadratic):
    context, (columns, _, _), *_ = quadratic
    broken = dataclasses.replace(context, activations=None)
    found, _, failed = suite.measure(broken, ("normality", "gradient_second_moment"))
    assert list(failed) == ["normality"]
    assert np.isnan(found["normality_ks"])
    assert found["gradient_second_moment"] == columns["gradient_second_moment"]
    with pytest.raises(ValueError, match="Did you mean 'tic'"):
        suite.columns(("tick",))


@pytest.mark.parametrize(("error", "stops"), [(ZeroDivisionError, False), (KeyError, True)])
def test_a_fault_of_a_measure_is_told_from_one_that_cannot_be_taken(monkeypatch, error, stops):
    def run(context):
        raise error("of the number")

    monkeypatch.setitem(suite.MEASURES, "own", suite.Measure(run, ("own",)))
    if stops:
        with pytest.raises(error):
            suite.measure(None, ("own",))
        return
    found, _, failed = suite.measure(None, ("own",))
    assert failed == {"own": "of the number"}
    assert np.isnan(found["own"])


# -- a study with measures -------------------------------------------------------------------


def config():
    """Two runs of two epochs: 8 units a layer, 768 parameters."""
    found = tiny(none={}, S={"prune": PRUNE | {"end": (1, 1)}})
    found.seeds, found.epochs, found.model.width = 1, 2, 0.0625
    found.data.train_examples, found.data.test_examples = 64, 40  # whole batches
    found.eval_batch_size = 30
    m = found.measures
    m.names, m.examples, m.probes, m.eigenpairs = NAMES, 35, 16, 4
    m.epochs, m.forecast = (0, 1), True
    found.report.figures = FIGURES
    return found


def go(config, path, **options):
    return study.run(config, path, default.get_config(), quiet=True, **options)


def rows(path, table):
    with (path / f"{table}.csv").open() as file:
        return {r["run"]: r for r in csv.DictReader(file)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("measured") / "run"
    go(config(), path)
    return path


def planned(settings=None):
    arms = config_lib.variants(settings or config(), default.get_config())
    return plan.build(arms)[0], arms[0].settings


def final_state(path, run):
    entries = measure.final_states(path, [planned()[0]])
    return next(state() for _, member, state in entries if member.run == run)


@functools.cache
def oracle(path, run):
    """Dense Hessian and per-example gradients in float64 [d, d], [n, d], and the live vector."""
    state = final_state(path, run)
    batch = planned()[0]
    program, dataset = batch.program, batch.dataset
    with jax.enable_x64(True):
        x = np.asarray(dataset.test_images[:35], np.float64) / 255
        x = ((x - np.array(program.mean)) / np.array(program.std)).reshape(35, -1)
        labels = np.asarray(dataset.test_labels[:35])
        wide = functools.partial(jax.tree.map, lambda leaf: jnp.asarray(leaf, jnp.float64))
        params, stats = wide(state.params), wide(state.batch_stats)
        masks = step.masks(program, state)
        vector, unravel = ravel_pytree(jax.tree.map(lambda m, p: jnp.where(m, p, 0), masks, params))

        def losses(vector):
            p, h = unravel(vector), jnp.asarray(x)
            for i in (1, 2, 3):
                h = h @ p[f"dense{i}"]["kernel"]
                mean, var = stats[f"bn{i}"]["mean"], stats[f"bn{i}"]["var"]
                h = (h - mean) / jnp.sqrt(var + 1e-5)
                h = jnp.maximum(h * p[f"bn{i}"]["scale"] + p[f"bn{i}"]["bias"], 0)
            z = h @ p["classifier"]["kernel"] + p["classifier"]["bias"]
            return jax.nn.logsumexp(z, axis=1) - z[np.arange(35), labels]

        full = jax.tree.map(lambda m, p: jnp.broadcast_to(m, p.shape), masks, params)
        live = np.asarray(ravel_pytree(full)[0], bool)
        with jax.numpy_rank_promotion("allow"):
            hessian = jax.jit(jax.hessian(lambda v: losses(v).mean()))(vector)
            gradients = jax.jit(jax.jacobian(losses))(vector)
        return np.asarray(hessian) * np.outer(live, live), np.asarray(gradients) * live, live


@pytest.mark.slow
@pytest.mark.parametrize("run", ["none-0", "S-0"])
def test_columns_of_runs_agree_with_dense_oracles(finished, run):
    hessian, gradients, live = oracle(finished, run)
    assert (live.sum() < live.size) == (run == "S-0")
    row = {k: number(v) for k, v in rows(finished, "runs")[run].items()}
    moment = (gradients**2).sum(1)
    assert row["gradient_second_moment"] == pytest.approx(moment.mean(), rel=1e-4)
    error = row["hessian_trace_stderr"]
    assert 0 < abs(row["hessian_trace"] - np.trace(hessian)) < 4 * error
    values = np.linalg.eigvalsh(hessian)
    leading = sorted(values, key=abs)[-4:]
    assert row["top_eigenvalue"] == pytest.approx(max(leading), rel=1e-3)
    assert row["hessian_trace_top"] == pytest.approx(sum(leading), rel=1e-3)
    assert row["tic"] == pytest.approx(moment.mean() / row["hessian_trace"], rel=1e-4)
    assert row["tic_leading"] == pytest.approx(moment.mean() / sum(leading), rel=2e-3)
    with np.load(finished / "measures" / f"{run}.npz") as saved:
        np.testing.assert_allclose(saved["eigenvalues"], sorted(leading)[::-1], rtol=2e-3)
        assert saved["loss_increase"].shape == (4, 81)
        assert (int(saved["examples"]), int(saved["live_dim"])) == (35, live.sum())
        assert (str(saved["split"]), str(saved["batch_norm"])) == ("test", "eval")
        assert float(saved["tic"]) == row["tic"]


def test_measured_between_epochs_too_and_drawn(finished):
    names = {p.stem for p in (finished / "measures").glob("*.npz")}
    assert names == {"none-0", "S-0", "none-0-epoch0", "S-0-epoch0"}
    with np.load(finished / "measures" / "S-0-epoch0.npz") as early:
        assert int(early["step"]) == 2  # after the epoch, before its event
        assert int(early["live_dim"]) == oracle(finished, "none-0")[2].size
    figures = {p.stem for p in (finished / "figures").glob("*.svg")}
    assert set(FIGURES) <= figures


def test_interrupted_while_measuring_continues_to_the_same_bytes(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(study.report, "build", lambda paths: paths[0] / "report.html")
    path = tmp_path / "run"
    measured = []

    def stop():
        measured[:] = [p.stem for p in path.glob("measures/*-0.npz")]
        return bool(measured)

    with pytest.raises(Interrupted):
        go(config(), path, stop_requested=stop)
    assert measured == ["none-0"]
    file = path / "measures" / "none-0.npz"  # not written anew: its numbers are in the checkpoint
    before = file.stat()
    with pytest.raises(WorkdirError, match=r"none-0\.npz is missing since its run was saved"):
        go(config(), Path(shutil.copytree(path, tmp_path / "lost", ignore=lambda *_: {file.name})))
    go(config(), path)
    assert file.stat().st_ino == before.st_ino
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    for table in ("runs", "events", "epochs"):
        name = f"{table}.csv"
        assert (path / name).read_bytes() == (finished / name).read_bytes()


# -- forecasts -------------------------------------------------------------------------------


def test_forecast_columns_are_of_the_event(finished):
    with (finished / "events.csv").open() as file:
        events = list(csv.DictReader(file))
    assert events
    for epoch in {e["epoch"] for e in events}:
        layers = [e for e in events if e["epoch"] == epoch]
        assert len({(e["predicted_first"], e["predicted_second"]) for e in layers}) == 1
        assert all(np.isfinite(float(e["predicted_second"])) for e in layers)


def test_forecast_is_the_expansion_of_the_test_loss(finished):
    hessian, gradients, vector = oracle(finished, "none-0")[:3]
    batch, state = planned()[0], final_state(finished, "none-0")
    images, labels = batch.dataset.test_images[:35], batch.dataset.test_labels[:35]
    with jax.enable_x64(True):
        wide = functools.partial(jax.tree.map, lambda leaf: jnp.asarray(leaf, jnp.float64))
        state = state._replace(params=wide(state.params), batch_stats=wide(state.batch_stats))
        d = 1e-2 * np.random.default_rng(3).normal(size=len(vector))
        flat, unravel = ravel_pytree(state.params)
        after = state._replace(params=unravel(flat + d))
        found = evaluation.forecast(
            batch.program, state, after, images, np.asarray(labels, np.int32)
        )
    first = gradients.mean(0) @ d
    np.testing.assert_allclose(found, [first, first + d @ hessian @ d / 2], rtol=1e-6)


def test_gates_as_numbers_are_gates():
    """So that the removal of a residual channel, which also cuts its shortcut, can be expanded."""
    module = ResNet(stages=(4,), blocks=(2,), projection=False, kaiming=True)  # as ResNet-20
    r = np.random.default_rng(0)

    def draw(path, leaf):
        kernel = path.endswith("kernel")
        values = r.normal(size=leaf.shape) / 3 if kernel else r.uniform(0.5, 2, leaf.shape)
        return jax.device_put(values.astype(leaf.dtype))

    variables = trees.map_with_path(draw, models.shapes(module, (8, 8, 3)))
    name = next(iter(variables["gates"]))
    cut = jax.tree.map(lambda gate: gate, variables["gates"])
    cut[name] = cut[name].at[0].set(False)
    x = jnp.asarray(r.normal(size=(2, 8, 8, 3)), jnp.float32)
    as_bools = module.apply(variables | {"gates": cut}, x)
    floats = jax.tree.map(lambda gate: gate.astype(jnp.float32), cut)
    np.testing.assert_array_equal(module.apply(variables | {"gates": floats}, x), as_bools)
    assert not np.allclose(module.apply(variables, x), as_bools)


# -- BatchNorm and the live subspace -----------------------------------------------------------


def measurer(**changes):
    settings = config()
    settings.measures.update(changes)
    batch, settings = planned(settings)
    return measuring.Measurer(batch, settings, print)


def test_batch_norm_uses_running_statistics_unless_asked(finished):
    state = final_state(finished, "S-0")
    batch = planned()[0]
    context = measurer().context(state)
    images, labels = batch.dataset.test_images[:30], batch.dataset.test_labels[:30]
    expected = evaluation.evaluate(batch.program, state, images, labels).loss
    loss = jax.jit(context.loss)
    assert float(loss(context.params, context.batches[0])) == pytest.approx(float(expected))
    one = jax.tree.map(lambda leaf: leaf[:1], context.batches[0])  # examples do not see each other
    each = jax.jit(context.per_example)
    first = np.asarray(each(context.params, context.batches[0]))[0]
    assert np.asarray(each(context.params, one))[0] == pytest.approx(float(first))

    train = measurer(batch_norm="train", names=("hessian_trace",)).context(state)
    assert train.per_example is None
    assert [len(labels) for _, labels in train.batches] == [35]
    by_batch = float(jax.jit(train.loss)(train.params, train.batches[0]))
    assert abs(by_batch - float(loss(context.params, train.batches[0]))) > 1e-3
    shifted = state._replace(
        batch_stats=jax.tree.map(lambda s: np.asarray(s) + 1, state.batch_stats)
    )
    again = measurer(batch_norm="train", names=("hessian_trace",)).context(shifted)
    assert float(jax.jit(again.loss)(again.params, again.batches[0])) == by_batch


def test_live_only_is_a_choice(finished):
    state = final_state(finished, "S-0")
    assert measurer().context(state).live_dim == oracle(finished, "S-0")[2].sum()
    assert measurer(live_only=False).context(state).live_dim == oracle(finished, "S-0")[2].size


# -- requests ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ("hesian_trace",)}, "Did you mean 'hessian_trace'"),
        ({"names": ("tic", "tic")}, "twice"),
        ({"epochs": (2,)}, "0..1"),
        ({"eigenpairs": 10**6}, "parameters"),
        ({"batch_norm": "train"}, "no loss of its own"),
        ({"batch_norm": "none"}, "eval, train"),
        ({"probes": 1}, "probes = 1 must be between 2 and"),
        ({"radius": 0.0}, "at least"),
    ],
)
def test_bad_requests_fail_before_anything_is_written(tmp_path, changes, message):
    settings = config()
    settings.measures.update(changes)
    with pytest.raises(ConfigError, match=message):
        go(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_measures_are_of_the_whole_study(tmp_path):
    settings = config()
    settings.variants.S.measures = {"examples": 10}
    with pytest.raises(ConfigError, match="of the whole study"):
        go(settings, tmp_path / "run")


def test_normality_needs_batch_norm(tmp_path):
    settings = tiny(none={})
    settings.model.name, settings.measures.names = "lenet300", ("normality",)
    settings.measures.examples = 0
    with pytest.raises(ConfigError, match="BatchNorm"):
        go(settings, tmp_path / "run")


# -- the command line --------------------------------------------------------------------------


def command(*arguments):
    return measure.main(["measure", *arguments])


def test_command_measures_what_the_study_measured(finished, capsys, monkeypatch):
    monkeypatch.setattr(measure.report, "build", lambda *_: None)  # not asked for here
    before = (finished / "runs.csv").read_bytes()
    with np.load(finished / "measures" / "S-0.npz") as saved:
        old = dict(saved)
    assert command(f"--workdir={finished}", "--run=S.*", "--names=gradient_second_moment,tic") == 0
    assert "S-0: gradient_second_moment" in capsys.readouterr().out
    found, there = rows(finished, "measures"), rows(finished, "runs")
    assert list(found) == ["S-0"]
    for name in ("gradient_second_moment", "gradient_second_moment_stderr", "tic", "tic_stderr"):
        assert found["S-0"][name] == there["S-0"][name]
    assert (finished / "runs.csv").read_bytes() == before
    with np.load(finished / "measures" / "S-0.npz") as saved:
        taken = {f"settings:{name}" for name in ("gradient_second_moment", "tic")}
        assert set(saved.files) == set(old) | taken
        np.testing.assert_array_equal(saved["eigenvalues"], old["eigenvalues"])


def test_settings_of_a_repeated_measure_are_kept_beside_it(finished, monkeypatch):
    """Of `--probes=8` and the like nothing was told anywhere; each measure has its own."""
    monkeypatch.setattr(measure.report, "build", lambda *_: None)
    of = f"--workdir={finished}", "--run=S-0"
    assert command(*of, "--names=gradient_second_moment", "--probes=8") == 0
    assert command(*of, "--names=tic", "--radius=0.5") == 0
    with np.load(finished / "measures" / "S-0.npz") as saved:
        first, second = (
            json.loads(str(saved[f"settings:{name}"])) for name in ("gradient_second_moment", "tic")
        )
    asked = json.loads((finished / "config.json").read_text())["measures"]
    for name in ("names", "epochs", "forecast"):  # of the study alone
        del asked[name]
    assert first == asked | {"probes": 8}
    assert second == asked | {"radius": 0.5}


def test_examples_are_read_once_for_the_runs_of_a_program(finished, monkeypatch):
    made, measured = [], []

    class Measurer:
        def __init__(self, *given):
            made.append(given)

        def measure(self, state):
            measured.append(state)
            return {}, {}, {}

    monkeypatch.setattr(measuring, "Measurer", Measurer)
    monkeypatch.setattr(measure.Results, "add", lambda *_: False)
    monkeypatch.setattr(measure.report, "build", lambda *_: None)
    assert measure.measure(finished) == 0
    assert (len(made), len(measured) > 1) == (1, True)


def test_command_on_other_examples_reaches_the_report(finished, capsys):
    assert command(f"--workdir={finished}", "--names=gradient_second_moment", "--split=train") == 0
    assert "replaced" in capsys.readouterr().out
    found, there = rows(finished, "measures"), rows(finished, "runs")
    name = "gradient_second_moment"
    assert found["none-0"]["split"] == "train"
    assert found["none-0"][name] != there["none-0"][name]
    reported = {row["run"]: row for row in tables.load([finished]).runs}
    assert reported["none-0"][name] == found["none-0"][name]
    assert reported["none-0"]["tic"] == there["none-0"]["tic"]
    summary = json.loads((finished / "summary.json").read_text())
    mean = summary["variants"]["none"]["columns"][name]["mean"]
    assert mean == pytest.approx(float(found["none-0"][name]))


def test_a_row_that_was_never_whole_is_not_gone_on_with(tmp_path):
    """The next row was glued to it: no page could be made of the study any more."""
    results, arrays = measure.Results(tmp_path), dict.fromkeys(CONTEXT, np.array(1))
    (tmp_path / "measures").mkdir()

    def add(run):
        member = SimpleNamespace(run=run, variant="a", seed=run[-1])
        results.add(member, {"tic": 2.0}, {**arrays, "tic": np.array(2.0)})

    add("a-0")
    whole = (tmp_path / "measures.csv").read_bytes()
    (tmp_path / "measures.csv").write_bytes(whole + b"a-1,a,1,1")
    add("a-1")
    assert (tmp_path / "measures.csv").read_bytes() == whole + whole.splitlines(True)[1].replace(
        b"a-0,a,0", b"a-1,a,1"
    )
    (tmp_path / "measures.csv").write_bytes(b"tic\n3\n")
    with pytest.raises(ReportError, match=r"measures\.csv has no column run"):
        add("a-2")


def test_pages_say_where_runs_were_measured_on_other_examples(tmp_path):
    config = {"measures": {"split": "test", "batch_norm": "eval", "examples": 40}}
    runs = [{"run": name, "tic": "1", "sharpness": ""} for name in ("a-0", "a-1", "b-0")]
    row = {"run": "a-1", "split": "test", "batch_norm": "eval", "live_dim": "9"}

    def notes(config, **changes):
        found = {}
        remeasured.taken(found, config, runs, [row | changes], tmp_path)
        return remeasured.notes(found)

    (note,) = notes(config, examples="8", tic="2", tic_stderr="1")
    assert note == (
        "Taken on other examples in some runs than in others: tic. Examples: 40 of test, BatchNorm "
        "as in eval (2 runs: a-0, b-0); 8 of test, BatchNorm as in eval (1 run: a-1)."
    )
    assert notes(config, examples="40", tic="2") == []  # on the study's own
    assert notes(config, examples="8", sharpness="2") == []  # what no other run has
    assert notes(config, examples="8", tic="") == []  # it could not be taken
    config["measures"]["examples"] = 0  # all, however many that is
    assert notes(config, examples="90", tic="2") == []
    (tmp_path / "measures").mkdir()
    np.savez(tmp_path / "measures" / "a-0.npz", examples=np.array(90))
    assert notes(config, examples="90", tic="2") == []
    assert "90 of test, BatchNorm as in eval (2 runs" in notes(config, examples="8", tic="2")[0]
    assert notes(config, examples="90", tic="2", split="train") != []


def test_where_all_runs_stopped_there_is_none_to_measure(tmp_path, monkeypatch):
    """It said that '.*' matches no run, and listed none."""
    monkeypatch.setattr(measure, "read_study", lambda *_: ([], None))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"no run of .* trained to its end: there is none to"):
        measure.measure(tmp_path)


def test_command_puts_the_report_elsewhere(finished, tmp_path, capsys):
    page = (finished / "report.html").read_bytes()
    there = tmp_path / "new" / "place"
    given = f"--workdir={finished}", "--run=none.*", "--names=tic"
    assert command(*given, f"--output={there}") == 0
    assert (finished / "report.html").read_bytes() == page
    assert rows(finished, "measures")["none-0"]["tic"]  # the measures go to the study
    assert sorted(p.name for p in there.iterdir()) == ["figures", "report.html", "summary.json"]
    capsys.readouterr()
    (tmp_path / "file").write_text("")
    assert command(*given, f"--output={tmp_path / 'file'}") in (1, 2)
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [("runs.csv", "was changed"), ("config.json", "was changed"), ("", "runs.csv is missing")],
)
def test_command_refuses_records_that_were_changed(name, said, finished, tmp_path, capsys):
    copy = tmp_path / "run"
    copy.mkdir()
    for file in ("config.json", "status.json", "runs.csv"):
        (copy / file).write_bytes((finished / file).read_bytes())
    if name:
        text = (copy / name).read_text()
        (copy / name).write_text(text.replace("0", "1", 1))
    else:
        (copy / "runs.csv").unlink()
    assert command(f"--workdir={copy}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_command_refuses_what_cannot_be(finished, tmp_path, capsys):
    def told(*arguments):
        assert command(*arguments) == 2
        return capsys.readouterr().err

    assert "none-0, S-0" in told(f"--workdir={finished}", "--run=L.*")
    assert "regular expression" in told(f"--workdir={finished}", "--run=(")
    assert "Did you mean 'tic'" in told(f"--workdir={finished}", "--names=tick")
    assert "no directory" in told(f"--workdir={tmp_path / 'nowhere'}")
    assert "--workdir is missing" in told()
    assert "eval, train" in told(f"--workdir={finished}", "--batch_norm=off")
    (file := tmp_path / "file").write_text("")
    assert command(f"--workdir={finished}", f"--output={file}") == 2
    said = capsys.readouterr()
    assert "a file, not a directory" in said.err
    assert not said.out  # told before anything is measured
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.json").write_text((finished / "config.json").read_text())
    assert "not finished" in told(f"--workdir={unfinished}")


def test_command_tells_damaged_states(finished, tmp_path, capsys):
    copy = tmp_path / "run"
    study_files = ("config.json", "status.json", "runs.csv")
    copy.mkdir()
    for name in study_files:
        (copy / name).write_bytes((finished / name).read_bytes())
    assert command(f"--workdir={copy}") == 2
    assert "no final states" in capsys.readouterr().err
    folder = copy / "checkpoints" / "final-0"
    shutil.copytree(finished / "checkpoints" / "final-0", folder)
    assert command(f"--workdir={copy}") == 2  # of the others there is none
    assert "no final states (checkpoints/final-*) of " in capsys.readouterr().err
    shutil.copytree(finished / "checkpoints", copy / "checkpoints", dirs_exist_ok=True)
    victim = next(p for p in (folder / "1" / "states").rglob("*") if p.is_file())
    victim.write_bytes(b"damaged")
    assert command(f"--workdir={copy}") == 1
    assert "damaged" in capsys.readouterr().err or Checkpoints(folder, 1).numbers() == []


def test_normalized_images_are_the_programs(finished):
    """The oracle's normalization is that of the package."""
    batch = planned()[0]
    found = data.normalize(batch.dataset.test_images[:2], batch.program.mean, batch.program.std)
    x = np.asarray(batch.dataset.test_images[:2], np.float64) / 255
    x = (x - np.array(batch.program.mean)) / np.array(batch.program.std)
    np.testing.assert_allclose(found, x, atol=1e-6)
    assert (finished / "report.html").exists()
