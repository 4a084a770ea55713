"""Entries of the registries that cannot be are refused in a line, before anything is trained."""

import importlib
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prunejax import allocate, data, interventions, losses, models, schedules, scores
from prunejax.configs import default
from prunejax.configs.fields import Field, flat, whole
from prunejax.data import dataset
from prunejax.errors import ConfigError
from prunejax.main import main
from prunejax.measures import suite
from prunejax.methods import evidence, growth, table, timetable
from prunejax.record import sinks
from prunejax.report import gallery
from prunejax.report.drawing import Drawing
from prunejax.sparsify import sparsify
from prunejax.study import run
from prunejax.study.settings import entries, presets, probing
from prunejax.train import optim, probes, trackers
from prunejax.wiring import Link
from tests.studies import go, rows, small

ROOT = Path(__file__).resolve().parent.parent
ONCE = {"schedule": "scratch", "layers": ("dense.*",), "fraction": (0.5,)}
REGISTRIES = {
    "score": scores.SCORES,
    "evidence": evidence.EVIDENCE,
    "measure": suite.MEASURES,
    "probe": probes.PROBES,
    "tracker": trackers.TRACKERS,
    "method": presets.METHODS,
    "schedule": schedules.SCHEDULES,
    "data": data.DATASETS,
    "loss": losses.LOSSES,
    "model": models.MODELS,
    "sink": sinks.SINKS,
    "allocation": allocate.ALLOCATIONS,
    "optimizer": optim.OPTIMIZERS,
    "figure": gallery.FIGURES,
    "decay": growth.DECAYS,
}

pytestmark = pytest.mark.usefixtures("quick_report")


def study(kind):
    """A study that uses the entry `mine` of a registry."""
    prune = ONCE | {
        "score": {"score": "mine"},
        "evidence": {"score": "mine", "granularity": "weight"},
        "method": {"method": "mine"},
        "schedule": {"schedule": "mine"},
        "allocation": {"allocation": "mine", "granularity": "weight", "score": "magnitude"},
        "decay": {"method": "set", "update_every": 2, "update_schedule": "mine"},
    }.get(kind, {})
    config = small(a={"prune": prune})
    config.epochs = 2
    if kind == "measure":
        config.measures.names, config.measures.examples = ("mine",), 20
    if kind == "probe":
        config.probes.names = ("loss", "accuracy", "mine")
    if kind == "tracker":
        config.trackers = ("mine",)
    if kind == "model":
        config.model.name = "mine"
    if kind == "loss":
        config.loss = "mine"
    if kind == "data":
        config.data.name = "mine"
    if kind == "optimizer":
        config.optimizer.name = "mine"
    return config


def probe(**changes):
    known = {"table": "t", "columns": ("x",), "rows": lambda total, n: [{"x": total}]}
    return probes.Probe(lambda seen: jnp.sum(seen.weight), **(known | changes))


def points(labels=2, wrong=None):
    def load(data_dir=None):
        x = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
        if wrong is not None:
            x[3] = wrong
        y = (np.arange(200) % labels).astype(np.int32)
        prepare = dataset.Standardize.of(x)
        return dataset.make("mine", (x[:128], y[:128]), (x[128:], y[128:]), 2, prepare=prepare)

    return load


class Silent(models.Model):
    """Names no layers."""

    @nn.compact
    def __call__(self, x, train=False):
        return self.logits(x.reshape(len(x), -1))


class Tokens(Silent):
    """Takes integers, where every network is given floats."""

    @nn.compact
    def __call__(self, x, train=False):
        return self.logits(nn.Embed(17, 4)(x).reshape(len(x), -1))


class Unrecorded(Silent):
    """A layer to prune, whose activations nobody records."""

    def prunable(self):
        return ("hidden",)

    @nn.compact
    def __call__(self, x, train=False):
        return self.logits(nn.relu(nn.Dense(8, name="hidden")(x.reshape(len(x), -1))))


IN = Link("input", "hidden", "hidden/kernel", (), ("hidden/bias",))
OUT = Link("hidden", "output", "classifier/kernel", (), ("classifier/bias",))


def wired(*links):
    """A model with these links."""
    own = {"wiring": lambda self: links or None, "__module__": __name__}
    return type("Wired", (Unrecorded,), own), {}


class Wide(Silent):
    """One output too many."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.num_classes + 1)(x.reshape(len(x), -1))


class Untrained(Silent):
    """Knows of no `train`."""

    def prunable(self):
        return ()

    @nn.compact
    def __call__(self, x):
        return self.logits(x.reshape(len(x), -1))


class Several(Silent):
    """Outputs, and more."""

    @nn.compact
    def __call__(self, x, train=False):
        return self.logits(x.reshape(len(x), -1)), x


class Counting(Silent):
    """Outputs that are no numbers with a slope."""

    @nn.compact
    def __call__(self, x, train=False):
        return self.logits(x.reshape(len(x), -1)).astype(jnp.int32)


def lists(alone=False, dtype=None):
    pair = ([[0.0]], [0]) if dtype is None else (np.zeros((1, 1), dtype), np.zeros(1, np.int32))
    return dataset.make("mine", pair[:1] if alone else pair, pair, 2, prepare=abs)


def untyped():
    x, y = np.zeros((20, 5), np.float32), np.arange(20) % 2 + 2**32  # int64, and not int32
    return dataset.make("mine", (x, y), (x, y), 2, prepare=dataset.Standardize.of(x))


def stateless(update):
    """An optimizer whose updates are `update` of each gradient."""
    made = optax.stateless(lambda u, _: jax.tree.map(update, u))
    return lambda momentum, nesterov: made


REFUSED = [
    ("score", lambda i: i.kernel, r"SCORES\['mine'\] is a function; it must be a Score"),
    ("score", scores.Score(abs, frozenset({"gradients"})), "'gradients', which is none of: activ"),
    ("score", scores.Score(lambda i: jnp.zeros(3)), r"float32 \(3,\) for layer 'dense1'.*\(16,\)"),
    ("score", scores.Score(lambda i: i.kernel[0] > 0), "gives bool"),
    ("score", scores.Score(lambda i: jnp.abs(i.gradient)), "have no .*gradient.*asked for by"),
    ("score", scores.of_network("mine"), "EVIDENCE has no entry of that name"),
    ("evidence", lambda e: e, "it must be a NetworkScore"),
    ("measure", lambda context: ({}, {}), "it must be a Measure"),
    ("measure", suite.Measure(lambda c: ({}, {}), "x"), "has columns 'x'; give a tuple"),
    ("measure", suite.Measure(lambda c: ({}, {}), ("seed",)), "'seed', which is one of runs.csv"),
    ("probe", lambda seen: 0, "it must be a Probe"),
    ("probe", probe(rows=None), "has `table` and no `rows`"),
    ("probe", probe(table="../t"), "give letters, digits"),
    (
        "probe",
        probe()._replace(sums=lambda seen: seen.losses),
        r"\(2,\) for a batch of 2 ex.*\(3,\)",
    ),
    ("tracker", lambda *_: 0, "it must be a Tracker"),
    ("tracker", trackers.Tracker(lambda *_: 0, ("x",), None), "check is no function"),
    ("method", [("score", "l1")], "it must be a dict"),
    ("method", {"fraction": 0.25}, r"sets prune.fraction = 0.25; it must be a tuple"),
    ("schedule", 3, "it must be a function"),
    ("schedule", lambda *, units, fraction, start, end, period: [(0, -1)], "none below 0"),
    ("schedule", lambda *, units, fraction, start, end, period: [(0, 4.0)], "whole numbers"),
    ("schedule", lambda *, units, fraction, start, end, period: 4, "a list of"),
    ("schedule", lambda units, fraction: [], "not there: period, start, end"),
    ("schedule", lambda *, units, fraction, start, end, period, zork: [], "not there: zork"),
    ("data", lambda data_dir=None: (1, 2), "gives tuple; a Dataset is needed"),
    ("data", points(labels=3), "train_labels go from 0 to 2; classes are 0 to 1"),
    ("data", points(wrong=np.nan), "of the train split not all are finite"),
    ("model", Silent, r"it must be \(subclass of models.base.Model, \{fixed attributes\}\)"),
    ("model", (Silent, {"depth": 3}), "'depth', which is no attribute of Silent"),
    ("model", (Wide, {}), r"gives \(2, 11\) for 2 examples of 'digits'; \(2, 10\) is needed"),
    ("model", (Silent, {}), "give it a method `prunable`"),
    ("sink", "wandb", "it must be a function"),
    ("optimizer", "lion", "it must be a function"),
    ("figure", "dynamics", r"FIGURES\['mine'\] is 'dynamics'; it must be a function"),
    *(
        ("measure", suite.Measure(lambda c: ({}, {}), columns), "is one of runs.csv already")
        for columns in (("split",), ("final_test_loss",), ("hessian_trace",), ("x", "x"))
    ),
    *(
        ("tracker", trackers.Tracker(lambda *_: 0, columns), "is one of trackers.csv already")
        for columns in (("run",), ("step",), trackers.TRACKERS["signal_noise"].columns[:1])
    ),
    ("probe", probe(columns=("x", "when")), "'when', which is one of t.csv already"),
    *(
        ("probe", probe(table=table), f"writes {table}.csv, which has other columns")
        for table in ("costs", "trackers", "barriers", "paths", "tickets", "overlaps", "predictors")
    ),
    ("allocation", lambda shapes, keep: None, "gives None where .* stay; a whole number for each"),
    ("allocation", lambda shapes, keep: {}, "gives {} where"),
    ("allocation", lambda shapes, keep: dict.fromkeys(shapes, 0.5), "a whole number for each leaf"),
    ("allocation", lambda shapes, keep: dict.fromkeys(shapes, keep), "of at most its units"),
    ("allocation", lambda shapes, keep: dict.fromkeys(shapes, 1), "in all: "),
    (
        "allocation",
        lambda shapes, keep: dict.fromkeys([*shapes, "b"], 1),
        "a whole number for each",
    ),
    # called otherwise than they can be
    ("data", lambda: None, r"DATASETS\['mine'\] takes \(\), and is called with \(data_dir\)"),
    ("data", lambda data_dir, *, size: None, "missing a required argument: 'size'"),
    ("loss", lambda outputs: outputs, "is called with .outputs, targets."),
    ("sink", lambda: None, "is called with .run."),
    ("score", scores.Score(lambda kernel, bias: kernel), r"\.fn takes .kernel, bias., and is"),
    ("score", scores.Score(3), r"SCORES\['mine'\].fn is no function: 3"),
    ("evidence", evidence.NetworkScore(lambda: None, "loss"), "is called with .evidence."),
    ("measure", suite.Measure(lambda: ({}, {}), ("x",)), r"\.run takes \(\), and is called"),
    ("probe", probe()._replace(sums=lambda a, b: a), r"\.sums takes \(a, b\)"),
    ("probe", probe(rows=lambda total: []), r"\.rows takes \(total\)"),
    ("tracker", trackers.Tracker(lambda state: 0, ("x",)), r"\.run takes \(state\)"),
    (
        "model",
        (Untrained, {}),
        r"MODELS\['mine'\].__call__ takes \(self, x\).* \(self, x, train=\)",
    ),
    ("allocation", lambda shapes: {}, r"takes .shapes., and is called with .shapes, keep."),
    ("decay", lambda: 1, r"DECAYS\['mine'\] takes \(\), and is called with .part."),
    ("optimizer", lambda momentum: optax.identity(), "is called with .momentum, nesterov."),
    # what they give
    ("decay", lambda part: -1, "decay 'mine' gives -1 at step 2 of "),
    ("optimizer", lambda m, n: None, r"OPTIMIZERS\['mine'\] gives NoneType; an optax"),
    ("optimizer", lambda m, n: optax.scale_by_adam, "gives function; an optax"),
    ("optimizer", lambda m, n: optax.adam(1e-3), r"its updates add up to -\d.* no rate and s"),
    ("optimizer", lambda m, n: optax.scale(np.nan), "ones its updates add up to nan"),
    ("optimizer", lambda m, n: optax.stateless(lambda u, _: 1.0), "dtypes of its updates are not"),
    ("optimizer", stateless(jnp.sum), "dtypes of its updates are not"),
    (
        "optimizer",
        lambda m, n: optax.GradientTransformation(lambda p: 0, lambda u, s, p=None: (u, (s, s))),
        "dtypes of its state are not those that it had before",
    ),
    ("optimizer", lambda m, n: optax.scale_by_polyak(), r"cannot train this network: .*'value'"),
    ("score", scores.Score(lambda i: i.kernel[0] + 1j), "gives complex64"),
    ("score", scores.Score(lambda i: i.kernel[0, 0, 0]), "cannot score layer 'dense1' .*Too many"),
    ("score", scores.Score(lambda i: i.kernel, ["gradient"]), r"needs is \['gradient'\]; a frozen"),
    *(
        ("evidence", evidence.NetworkScore(lambda e: e, needs), "is not one of: .*mean 'loss")
        for needs in ("lossy", "seed lossy")
    ),
    ("probe", probe()._replace(sums=lambda seen: "much"), "'mine' gives no sums of a batch: "),
    ("probe", probe()._replace(sums=lambda seen: seen.logits), "no attribute 'logits'"),
    ("measure", suite.Measure(lambda c: ({}, {}), ("",)), "has columns .*; give a tuple of names"),
    ("method", {3: (0.25,)}, "'mine' sets 3, which is no field"),
    ("data", lambda data_dir: lists(dtype=object), "train examples are object; numbers are needed"),
    ("model", wired(), "Wired.wiring is none of this network: .*NoneType"),
    ("model", wired(("input", "hidden")), "Wired.wiring is none of this network"),
    ("model", wired(OUT, IN), "network: link hidden -> output: no earlier link leads to 'hidden'"),
    ("model", wired(IN, OUT._replace(kernel="out/kernel")), "network: .*no leaf 'out/kernel'"),
    ("model", wired(IN), r"wiring: no links lead .* 8 of the 8 units of 'hidden' to 'output'"),
    (
        "model",
        (type("Twice", (Unrecorded,), {"prunable": lambda self: ("hidden", "hidden")}), {}),
        "Twice.prunable names 'hidden' twice",
    ),
    ("model", (Several, {}), "gives a tuple for 2 examples"),
    ("model", (Counting, {}), r"gives int32 \(2, 10\) for"),
    ("loss", lambda z, y: (z[:, 0], y), "it gives a tuple for 2 examples"),
    ("loss", lambda z, y: y, "it gives int32, which has no gradient"),
    ("loss", lambda z, y: z.mean(), r"it gives \(\) for 2 examples"),
    ("data", lambda data_dir: lists(), "train examples are list; a NumPy array is needed"),
    ("data", lambda data_dir: lists(alone=True), r"train must be a pair of \(examples, targets\)"),
    ("data", lambda data_dir: untyped(), "train_labels are int64"),
    (
        "evidence",
        evidence.NetworkScore(lambda e: e.map(lambda _, w: w[0]), "loss"),
        r"gives float32 \(16,\) for layer 'dense1'; .* \(64, 16\)",
    ),
    ("evidence", evidence.NetworkScore(lambda e: (1, 2), "loss"), "cannot score this network"),
    ("evidence", evidence.NetworkScore(lambda e: e.slope, "loss"), "no attribute 'slope'"),
]


def name(case):
    if inspect.isfunction(case):
        return "function"
    return re.sub(r"\W+", "_", case)[:30] if isinstance(case, str) else type(case).__name__


@pytest.mark.parametrize(("kind", "entry", "message"), REFUSED, ids=name)
def test_refused_before_training(monkeypatch, kind, entry, message):
    monkeypatch.setitem(REGISTRIES[kind], "mine", entry)
    if kind == "evidence":
        monkeypatch.setitem(scores.SCORES, "mine", scores.of_network("mine"))
    study_of = small(a={"prune": {"method": "mine"}}) if kind == "method" else study(kind)
    with pytest.raises(ConfigError, match=message) as error:
        run.judged(study_of, default.get_config())
    assert "\n" not in str(error.value)


def test_a_model_that_takes_integers_is_told_what_it_is_given(monkeypatch):
    monkeypatch.setitem(models.MODELS, "mine", (Tokens, {}))
    monkeypatch.setitem(data.DATASETS, "mine", points())
    config = study("model")
    config.data.name, config.data.train_examples, config.data.test_examples = "mine", 0, 0
    with pytest.raises(ConfigError, match=r"floats of shape \(5,\): .*an integer.*x\.astype"):
        run.judged(config, default.get_config())


def test_links_of_others_are_taken_where_they_are_those_of_the_network(monkeypatch):
    monkeypatch.setitem(models.MODELS, "mine", wired(IN, OUT))
    config = study("model")
    for arm in config.variants.values():
        arm.prune.layers = ("hidden",)
    run.judged(config, default.get_config())


def test_a_score_of_activations_wants_a_model_that_records_them(monkeypatch):
    """It was a KeyError of the first training step."""
    monkeypatch.setitem(models.MODELS, "mine", (Unrecorded, {}))
    late = ONCE | {"schedule": "one_shot", "start": (2,), "score": "activations"}
    config = small(a={"prune": late | {"layers": ("hidden",)}})
    config.model.name, config.epochs, config.batch_size = "mine", 4, 16
    with pytest.raises(ConfigError, match="Unrecorded records no activations of layer 'hidden'"):
        run.judged(config, default.get_config())
    own = small(a={"prune": late})
    own.epochs, own.batch_size = 4, 16
    run.judged(own, default.get_config())


def test_tables_that_settings_name_are_checked_or_closed():
    """A name that passes as a setting is found again by `measure`, and something acts on it."""
    fields = [f for _, f in flat(whole(default.FIELDS)) if isinstance(f, Field)]
    named = {text.removeprefix("prunejax.") for f in fields for text in f.names if ":" in text}
    closed = set()
    for text in named - {where.replace(".", ":") for where in entries.REGISTRIES}:
        module, table = text.split(":")
        if f"{module}.{table}" not in entries.REGISTRIES:
            held = getattr(importlib.import_module(f"prunejax.{module}"), table)
            with pytest.raises((TypeError, AttributeError)):
                held["mine"] = 0
            closed.add(table)
    assert closed == {"SCHEDULES", "TARGETS", "FORWARDS", "KINDS", "SCOPES", "RESTORES"}
    assert interventions.KINDS["zero"] == interventions.ZERO


def test_registries_of_the_documents_are_checked():
    table = (ROOT / "docs" / "plugins.md").read_text().split("\n\n")[1:]
    documented = set(re.findall(r"`([a-z_.]+\.[A-Z]+)`", "".join(table)))
    assert documented - {"methods.METHODS"} == set(entries.REGISTRIES)  # that one: of the library


def test_probes_know_every_table_of_a_study():
    """Those of the README, which tests of the records hold to what studies write."""
    written = set(re.findall(r"`(\w+)\.csv`", (ROOT / "README.md").read_text()))
    assert written - {p.table for p in probes.PROBES.values()} <= set(probes.TAKEN)


@pytest.mark.parametrize(
    ("kind", "entry", "message"),
    [
        ("measure", suite.Measure(lambda c: ({}, {"live_dim": np.ones(3)}), ()), "arrays live_dim"),
        ("measure", suite.Measure(lambda c: ({"y": 1.0}, {}), ("x",)), "gives y.*columns: x"),
        ("measure", suite.Measure(lambda c: {"x": 1.0}, ("x",)), "gives dict; give two dicts"),
        ("measure", suite.Measure(lambda c: ({"x": np.ones(3)}, {}), ("x",)), r"shape \(3,\)"),
        ("measure", suite.Measure(lambda c: ({"x": "much"}, {}), ("x",)), "'x' is 'much'"),
        ("measure", suite.Measure(lambda c: ({"x": 1}, [1]), ("x",)), "gives tuple; give two di"),
        ("probe", probe(rows=lambda total, n: [{"y": 1}]), "have y; .* is needed: x"),
        ("probe", probe(rows=lambda total, n: {"x": 1}), "have 'x'; a list of dicts"),
        (
            "tracker",
            trackers.Tracker(lambda *_: jnp.zeros(3), ("u", "v")),
            r"gives \(3,\); one arr",
        ),
    ],
    ids=name,
)
def test_what_entries_give_is_told_in_a_line(monkeypatch, tmp_path, kind, entry, message):
    monkeypatch.setitem(REGISTRIES[kind], "mine", entry)
    with pytest.raises(ConfigError, match=message):
        go(study(kind), tmp_path)


def test_a_score_of_the_network_from_outside(monkeypatch, tmp_path):
    """|w g|^2 ranks as |w g| does: the same weights go as by the package's own."""
    squared = evidence.NetworkScore(
        lambda e: e.map(lambda _, w, g: (w * g) ** 2, e.gradient), "loss"
    )
    monkeypatch.setitem(evidence.EVIDENCE, "mine", squared)
    monkeypatch.setitem(scores.SCORES, "mine", scores.of_network("mine"))
    prune = ONCE | {"granularity": "weight", "scope": "global"}
    go(small(**{s: {"prune": prune | {"score": s}} for s in ("mine", "snip")}), tmp_path)
    found = {(e["variant"], e["layer"]): e["live"] for e in rows(tmp_path, "events")}
    for layer in ("dense1", "dense2"):
        assert found["mine", layer] == found["snip", layer]
    with (
        np.load(tmp_path / "targets" / "mine-0.npz") as a,
        np.load(tmp_path / "targets" / "snip-0.npz") as b,
    ):
        for key in a.files:
            np.testing.assert_array_equal(a[key], b[key])


def test_an_optimizer_from_outside_trains_as_the_package_s_own(monkeypatch, tmp_path):
    monkeypatch.setitem(optim.OPTIMIZERS, "mine", lambda m, nesterov: optax.trace(m, nesterov))
    config = small(**{name: {"optimizer": {"name": name}} for name in ("mine", "sgd")})
    config.epochs = 2
    go(config, tmp_path)
    losses_of = {arm: [e["train_loss"] for e in rows(tmp_path, "epochs") if e["variant"] == arm]
                 for arm in ("mine", "sgd")}  # fmt: skip
    assert losses_of["mine"] == losses_of["sgd"]
    assert len(set(losses_of["sgd"])) == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"model": {"width": 1.0}, "prune": {"score": "mode_leverage"}}, "Hessian is for 5000"),
        ({"prune": {"score": "mode_leverage"}}, ""),
    ],
)
def test_the_exact_hessian_s_limit_is_told_before_training(setting, message):
    prune = ONCE | {"granularity": "weight"} | setting["prune"]
    config = small(a=setting | {"prune": prune})
    if not message:
        run.judged(config, default.get_config())
        return
    with pytest.raises(ConfigError, match=message):
        run.judged(config, default.get_config())


OF_A_USER = """
from prunejax import losses
from prunejax.configs import default

def broken(outputs, targets):
    return undefined

losses.LOSSES["broken"] = broken

def get_config(arg=""):
    config = default.get_config()
    config.loss = "broken"
    return config
"""


def test_the_place_in_a_config_file_that_raised_is_told(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(OF_A_USER)
    try:
        assert main(["main", f"--config={file}", f"--workdir={tmp_path / 'run'}", "--quiet"]) == 1
    finally:
        losses.LOSSES.pop("broken", None)
    told = capsys.readouterr().err
    assert "NameError" in told
    assert told.splitlines()[-1].endswith(f"raised by code of the config file: {file}, line 6")


@pytest.mark.parametrize("first", ["mine", "hessian_trace"])
def test_arrays_of_one_name_are_refused_in_either_order(monkeypatch, first):
    """Where the package's came second, they took the place of the others, untold."""

    def shipped(_):
        return {}, {"hessian_trace_samples": np.zeros(2)}

    def mine(_):
        return {}, {"other": np.ones(1), "hessian_trace_samples": np.ones(2)}

    packaged = {name: suite.Measure(shipped, ()) for name in ("hessian_trace", "tic")}
    for name, entry in packaged.items():
        monkeypatch.setitem(suite.MEASURES, name, entry)
        monkeypatch.setitem(suite.SHIPPED, name, entry)
    monkeypatch.setitem(suite.MEASURES, "mine", suite.Measure(mine, ()))
    names = sorted(["mine", "hessian_trace"], key=lambda name: name != first)
    with pytest.raises(ConfigError, match="measure 'mine' gives arrays hessian_trace_samples, wh"):
        suite.measure(None, names)
    _, arrays, _ = suite.measure(None, ["hessian_trace", "tic"])  # of the package: on purpose
    assert arrays["hessian_trace_samples"].tolist() == [0, 0]


@pytest.mark.parametrize("figure", [lambda study: None, lambda study, look, more: None])
def test_a_figure_with_other_arguments_is_told_at_planning(monkeypatch, figure):
    monkeypatch.setitem(gallery.FIGURES, "mine", figure)
    with pytest.raises(
        ConfigError, match=r"FIGURES\['mine'\] takes .* called with \(study, look\)"
    ):
        run.judged(small(a={"prune": ONCE}), default.get_config())


def test_a_decay_from_outside_serves_sparsify_as_well(monkeypatch):
    """Its updates are those of the package's linear one, of which it is a copy."""
    monkeypatch.setitem(growth.DECAYS, "mine", lambda part: 1 - part)
    settings = {"sparsity": 0.5, "end": 8, "every": 2, "allocation": "uniform"}
    swaps = {
        decay: timetable.plan(table.resolve("set", decay=decay, **settings), {"w": (8, 8)}).swap
        for decay in ("mine", "linear")
    }
    # of 32 live weights three tenths, times 1 - t / 8
    assert swaps["mine"].ravel().tolist() == swaps["linear"].ravel().tolist() == [7, 4, 2]
    with pytest.raises(ValueError, match=r"decay 'yours' is not one of: cosine, .*, mine"):
        sparsify(optax.sgd(0.1), "set", decay="yours", seed=0, **settings)
    sparsify(optax.sgd(0.1), "set", decay="mine", seed=0, **settings)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "uint64", "int32"])
def test_labels_of_other_dtypes_are_cast_where_they_keep_their_values(dtype):
    x, y = np.zeros((20, 5), np.float32), (np.arange(20) % 3).astype(dtype)
    made = dataset.make("mine", (x, y), (x, y), 3, prepare=dataset.Standardize.of(x))
    for labels in (made.train_labels, made.test_labels, made.validation_labels):
        assert labels.dtype == np.int32
    np.testing.assert_array_equal(made.train_labels, y)


def test_targets_of_other_dtypes_are_cast_where_they_keep_their_values():
    x, y = np.zeros((4, 5), np.float32), np.array([[0.5], [-2.0], [3.0], [0.25]])
    prepare = dataset.Standardize.of(x)
    made = dataset.make("mine", (x, y), (x, y.astype(np.float16)), 1, prepare=prepare)
    assert made.train_labels.dtype == made.test_labels.dtype == np.float32
    np.testing.assert_array_equal(made.train_labels, y)
    several = np.array([[1, 0], [1, 1], [0, 0], [0, 1]])  # int64 of several labels: numbers
    for labels in (several, several.astype(bool)):
        made = dataset.make("mine", (x, labels), (x, labels), 2, prepare=prepare)
        assert made.train_labels.dtype == np.float32
        np.testing.assert_array_equal(made.train_labels, several)
    for more in (0.1, 1e300):
        with pytest.raises(ValueError, match="train_labels are float64"):
            dataset.make("mine", (x, y + more), (x, y), 1, prepare=prepare)


@pytest.mark.parametrize(
    "prepare",
    [
        lambda x: x[:1],
        lambda x: x.mean(0),
        lambda x: (x, x),
        lambda x: None,
        lambda x: np.asarray(x),
        lambda: None,
        dataset.Standardize((0.0,) * 4, (1.0,) * 4),
        type("Unhashable", (), {"__hash__": None, "__call__": lambda self, x: x})(),
        "abs",
    ],
)
def test_what_makes_inputs_is_judged_with_the_data(prepare):
    """`x[:1]` trained on one example a batch, where the loss broadcast; most others were traces."""
    x, y = np.zeros((20, 5), np.float32), np.arange(20, dtype=np.int32) % 3
    with pytest.raises(
        ValueError, match=r"'mine': prepare makes no inputs of .*32 \(5,\): "
    ) as told:
        dataset.make("mine", (x, y), (x, y), 3, prepare=prepare)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("classes", "rows", "message"),
    [
        *((classes, 20, "classes .or outputs.; a whole number") for classes in (3.0, "3", True, 0)),
        (3, 0, "the test split has no examples"),
    ],
)
def test_classes_are_a_count_and_splits_have_examples(classes, rows, message):
    x, y = np.zeros((20, 5), np.float32), np.arange(20, dtype=np.int32) % 3
    made = {"train": (x, y), "test": (x[:rows], y[:rows]), "prepare": dataset.Standardize.of(x)}
    with pytest.raises(ValueError, match=message):
        dataset.make("mine", num_classes=classes, **made)
    assert dataset.make("mine", num_classes=np.int64(3), **made | {"test": (x, y)}).num_classes == 3


@pytest.mark.parametrize("panels", [None, [], [3]])
@pytest.mark.parametrize("words", [("a", "b", "c"), ("a", 3, None)])
def test_a_drawing_that_is_none_costs_no_page(monkeypatch, panels, words):
    """It was a trace in place of the page."""
    monkeypatch.setitem(gallery.FIGURES, "mine", lambda study, look: Drawing(panels, *words))
    told = gallery.make("mine", SimpleNamespace(in_nats=True), None)
    assert told.startswith("Figure 'mine' could not be drawn: TypeError: its Drawing needs")
    good = Drawing([SimpleNamespace(savefig=print)], "a", "b", "c")
    monkeypatch.setitem(gallery.FIGURES, "mine", lambda study, look: good)
    assert gallery.make("mine", SimpleNamespace(in_nats=True), None) is good


def test_what_could_be_no_cell_of_a_table_is_told_where_it_is_given(monkeypatch):
    monkeypatch.setitem(probes.PROBES, "mine", probe())
    for given in (None, [{"x": np.ones(2)}], [{"x": [1]}]):
        with pytest.raises(ConfigError, match="a list of dicts with its columns, a number each"):
            probing._rows("mine", given)
    assert probing._rows("mine", [{"x": 1}, {"x": None}]) == [{"x": 1}, {"x": None}]
    many = trackers.Tracker(lambda *_: 1j * jnp.ones(1), ("u",))
    monkeypatch.setitem(trackers.TRACKERS, "mine", many)
    with pytest.raises(ConfigError, match=r"gives \(1,\); one array \[1\] is needed, of real numb"):
        trackers.track(SimpleNamespace(trackers=("mine",)), None, None, None)
    objects = suite.Measure(lambda c: ({}, {"z": [object()]}), ())
    monkeypatch.setitem(suite.MEASURES, "mine", objects)
    with pytest.raises(ConfigError, match="'mine': array 'z' holds objects, not numbers"):
        suite.measure(None, ["mine"])
