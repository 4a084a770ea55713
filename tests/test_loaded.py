"""A study read back: `prunejax.load`, and its networks in files for other programs."""

import csv
import json
import shutil
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

import prunejax
from prunejax import __main__ as cli
from prunejax import masks, registry, trees
from prunejax.errors import ConfigError, RecordError, ReportError, WorkdirError
from prunejax.study import export
from prunejax.study import run as study
from tests.studies import PRUNE, tiny


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    config = tiny(none={}, S={"prune": PRUNE}, half={"prune": PRUNE | {"fraction": 0.5}})
    config.seeds, config.measures.names, config.report.figures = 1, (), ()
    config.data.train_examples = 128  # whole batches: one program less
    path = tmp_path_factory.mktemp("loaded") / "run"
    prunejax.run(config, path, quiet=True)
    return path


def test_tables_hold_numbers_as_numbers_and_the_settings_that_differ(path):
    found = prunejax.load(path)
    with (path / "epochs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = found.columns("epochs")
    assert [str(x) for x in epochs["epoch"]] == [r["epoch"] for r in rows]
    assert epochs["epoch"].dtype == np.int64
    assert epochs["test_accuracy"].dtype == np.float64
    assert epochs["test_accuracy"].tolist() == [float(r["test_accuracy"]) for r in rows]
    assert epochs["variant"].tolist() == [r["variant"] for r in rows]
    by_variant = dict(zip(epochs["variant"], epochs["prune.fraction"], strict=True))
    assert by_variant["S"] == str(list(PRUNE["fraction"]))
    assert by_variant["half"] == "[0.5]"
    assert not any(name.startswith("optimizer.") for name in epochs)  # the same everywhere
    assert "prune.fraction" not in found.columns("epochs", settings=False)
    assert set(found.columns("runs")["run"]) == set(found.names) == {"none-0", "S-0", "half-0"}
    assert repr(found).startswith("<study 'tiny' in ")


def test_frames_are_of_pandas_and_only_when_asked_for(path, monkeypatch):
    found = prunejax.load(path)
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert set(found.columns("events")["run"]) == {"S-0", "half-0"}
    with pytest.raises(ConfigError, match=r"needs pandas, .*pip install 'prunejax\[notebook\]'"):
        _ = found.events
    monkeypatch.undo()
    frame = pytest.importorskip("pandas").DataFrame
    assert isinstance(found.epochs, frame)
    assert found.epochs["test_accuracy"].dtype == np.float64
    assert found.runs.set_index("run").loc["S-0", "variant"] == "S"


def test_networks_are_those_that_were_trained(path):
    found = prunejax.load(path)
    for run in ("none-0", "S-0"):
        dataset = found.dataset(run)
        x = (np.asarray(dataset.test_images) / 255.0 - np.array(dataset.mean)) / np.array(
            dataset.std
        )
        x = x.reshape(-1, *found.program(run).image_shape).astype(np.float32)
        outputs = found.model(run).apply(found.variables(run), x, train=False)
        accuracy = np.mean(np.argmax(outputs, -1) == np.asarray(dataset.test_labels))
        rows = found.columns("runs", settings=False)
        told = dict(zip(rows["run"], rows["final_test_accuracy"], strict=True))[run]
        assert accuracy == pytest.approx(told, abs=1e-6)
        live = found.masks(run)
        weights = found.weights(run)
        again = masks.apply(live, weights)
        jax.tree.map(np.testing.assert_array_equal, again, weights)
    dead = sum(int(np.sum(~np.asarray(m))) for m in jax.tree.leaves(live))
    targets = found.targets("S-0")
    assert {layer for _, layer in targets} == {"dense2", "dense3"}
    assert all(isinstance(event, int) for event, _ in targets)
    targeted = sum(int(np.sum(t)) for t in targets.values())
    units = sum(
        int(np.sum(~np.asarray(trees.get(live, f"{layer}/kernel"))))
        for layer in ("dense2", "dense3")
    )
    assert 0 < units == targeted <= dead  # norms and biases go with their units
    small, variables = found.shrunk("S-0")
    assert sum(x.size for x in jax.tree.leaves(variables)) < sum(
        x.size for x in jax.tree.leaves(found.variables("S-0"))
    )
    np.testing.assert_allclose(small.apply(variables, x, train=False), outputs, atol=1e-5)


def test_runs_have_what_was_measured_later_and_keep_what_was_not(tmp_path):
    """An empty cell of measures.csv, of a run that was not measured so, took a number's place."""
    (tmp_path / "config.json").write_text("{}")
    rows = [f"{arm}-0,{arm},0,done,1,0,{i + 1}\n" for i, arm in enumerate("abc")]
    head = "run,variant,seed,status,mean_stability,events,tic\n"
    (tmp_path / "runs.csv").write_text(head + "".join(rows))
    (tmp_path / "measures.csv").write_text(
        "run,split,examples,tic,sharpness\na-0,test,8,,4\nb-0,test,8,5,\n"
    )
    found = prunejax.load(tmp_path).columns("runs", settings=False)
    assert found["tic"].tolist() == [1, 5, 3]
    assert found["sharpness"][0] == 4
    assert np.isnan(found["sharpness"][1:]).all()
    assert found["split"].tolist() == ["test", "test", ""]


def test_what_is_not_there(path, tmp_path):
    found = prunejax.load(path)
    with pytest.raises(ConfigError, match=r"no table 'epoch' .*there are: .*Did you mean 'epochs'"):
        found.columns("epoch")
    with pytest.raises(ConfigError, match=r"no run 'S-1' has ended .*S-0"):
        found.weights("S-1")
    assert found.arrays("S-0") == {}
    with pytest.raises(ReportError, match="no directory"):
        prunejax.load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config.json has no 'measures': it was changed"):
        _ = prunejax.load(tmp_path).settings


def test_damaged_arrays_are_told(path, tmp_path):
    shutil.copytree(path, tmp_path / "run")
    next((tmp_path / "run" / "targets").glob("S-0*.npz")).write_bytes(b"PK")
    with pytest.raises(WorkdirError, match=r"S-0.*npz cannot be read"):
        prunejax.load(tmp_path / "run").targets("S-0")


def read_safetensors(content):
    """By the format's own words, not by our code."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    types = {"F32": np.float32, "BOOL": np.bool_}
    facts = header.pop("__metadata__")
    found = {}
    for name, of in header.items():
        a, b = of["data_offsets"]
        flat = np.frombuffer(content[8 + size + a : 8 + size + b], types[of["dtype"]])
        found[name] = flat.reshape(of["shape"])
    assert len(content) == 8 + size + max(of["data_offsets"][1] for of in header.values())
    return found, facts


def test_files_of_a_network(path, tmp_path):
    found = prunejax.load(path)
    network = export.Network.of(found, "S-0")
    expected = network.arrays()
    assert {name.partition("/")[0] for name in expected} >= {"weights", "masks"}
    assert cli.main(["export", f"--workdir={path}", "--run=S-0", f"--output={tmp_path}/a.npz"]) == 0
    with np.load(tmp_path / "a.npz") as saved:
        facts = json.loads(str(saved["metadata"]))
        assert set(saved.files) == {*expected, "metadata"}
        for name, value in expected.items():
            np.testing.assert_array_equal(saved[name], value)
    assert facts["run"] == "S-0"
    masked = {
        f"{layer}/kernel": expected[f"weights/{layer}/kernel"] for layer in ("dense2", "dense3")
    }
    dead = sum(np.sum(~np.broadcast_to(expected[f"masks/{k}"], x.shape)) for k, x in masked.items())
    assert 0 < facts["sparsity"] == pytest.approx(dead / sum(x.size for x in masked.values()))
    assert facts["settings"]["prune"]["layers"] == ["dense2", "dense3"]
    export.export(path, "S-0", tmp_path / "a.safetensors")
    arrays, told = read_safetensors((tmp_path / "a.safetensors").read_bytes())
    assert json.loads(told["sparsity"]) == facts["sparsity"]
    assert arrays.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value)
    by_others = pytest.importorskip("safetensors.numpy").load_file(tmp_path / "a.safetensors")
    for name, value in expected.items():
        np.testing.assert_array_equal(by_others[name], value)


def test_smaller_forms_of_others_models_are_compared(path, monkeypatch):
    """One that keeps other units was handed out, and exported, without a word."""
    found = prunejax.load(path)
    kind = type(found.model("S-0"))
    own, (small, _) = kind.shrunk, found.shrunk("S-0")
    monkeypatch.setattr(registry, "is_shipped", lambda code: False)
    assert found.shrunk("S-0")[0] == small
    wrong = lambda self, gone: own(self, {name: ~units for name, units in gone.items()})  # noqa: E731
    monkeypatch.setattr(kind, "shrunk", wrong)
    with pytest.raises(ValueError, match=r"the smaller network's outputs differ by .* `shrunk`"):
        found.shrunk("S-0")


def test_a_file_of_a_shrunken_network_says_how_to_build_it(path, tmp_path):
    words = ["export", f"--workdir={path}", "--run=half-0", f"--output={tmp_path}/a.npz"]
    assert cli.main([*words, "--shrink"]) == 0
    with np.load(tmp_path / "a.npz") as saved:
        facts = json.loads(str(saved["metadata"]))
        model = dict(facts["model"])
        units = [saved[f"weights/dense{i}/kernel"].shape[-1] for i in (1, 2, 3)]
        assert not any(name.startswith("masks/") for name in saved.files)
    assert facts["shrunk"]
    assert model["class"] == "MLP"
    assert model["hidden"] == units
    assert cli.main([*words, "--fold"]) == 2


def test_a_program_for_other_platforms(path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ConfigError, match=r"a .stablehlo file needs flatbuffers"):
        export.export(path, "S-0", tmp_path / "a.stablehlo")
    monkeypatch.undo()
    pytest.importorskip("flatbuffers", reason="what JAX writes programs with")
    found = prunejax.load(path)
    export.export(path, "S-0", tmp_path / "a.stablehlo", shrunk=True)
    read = jax_export.deserialize(bytearray((tmp_path / "a.stablehlo").read_bytes()))
    assert set(read.platforms) == set(export.PLATFORMS)
    x = jax.random.normal(jax.random.key(0), (5, *found.program("S-0").image_shape))
    outputs = found.model("S-0").apply(jax.tree.map(jnp.asarray, found.variables("S-0")), x)
    np.testing.assert_allclose(read.call(x), outputs, rtol=1e-4, atol=1e-5)


class Scaled:
    """A network whose outputs are small."""

    def apply(self, variables, x, train):
        return 1e-6 * x.sum((1, 2, 3))[:, None] * variables["w"]


class Sized(Scaled):
    """A network that asks for the size of its batch as a number."""

    def apply(self, variables, x, train):
        return x.reshape(len(x), -1) @ variables["w"]


def test_a_network_of_batches_of_a_known_size_is_told():
    pytest.importorskip("flatbuffers", reason="what JAX writes programs with")
    network = SimpleNamespace(module=Sized(), variables={"w": np.ones((4, 2), np.float32)})
    with pytest.raises(ConfigError, match=r"any size, and Sized does not .*x.shape\[0\] for len"):
        export.stablehlo(network, (2, 2, 1))


def test_a_program_with_other_outputs_is_refused_however_small_they_are(monkeypatch):
    pytest.importorskip("flatbuffers", reason="what JAX writes programs with")
    network = SimpleNamespace(module=Scaled(), variables={"w": np.ones((1, 2), np.float32)})
    assert export.stablehlo(network, (2, 2, 1))
    read = jax_export.deserialize
    wrong = lambda content: SimpleNamespace(call=lambda x: 1.001 * read(content).call(x))  # noqa: E731
    monkeypatch.setattr(jax_export, "deserialize", wrong)
    with pytest.raises(RecordError, match="gives other outputs"):
        export.stablehlo(network, (2, 2, 1))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run=S-0"], "needs --workdir=DIR --output=FILE, and --run=RUN"),
        (["--run=S-0", "--output={}/a.bin"], r"the ending must be one of: .npz, .safetensors, .pt"),
        (["--run=S-0", "--output={}/none/a.npz"], "there is no folder"),
        (["--run=Q-0", "--output={}/a.npz"], "no run 'Q-0' has ended"),
    ],
)
def test_requests_that_cannot_be(path, tmp_path, capsys, words, message):
    given = [f"--workdir={path}", *(word.format(tmp_path) for word in words)]
    assert cli.main(["export", *given]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_the_face_offers_it():
    assert {"load", "run"} <= set(dir(prunejax))
    assert callable(prunejax.load)
    assert prunejax.run is study.run
