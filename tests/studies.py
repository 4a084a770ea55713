"""Tiny studies on the embedded digits: seconds on one core."""

import csv
import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from prunejax import losses, report
from prunejax.configs import default
from prunejax.data import StreamedSet
from prunejax.models.base import Model
from prunejax.models.mlp import MLP
from prunejax.record import arms, checkpoint
from prunejax.record.run_directory import RunDirectory
from prunejax.study import run
from prunejax.study.devices import layout, shared
from prunejax.study.devices.arrangement import device_data
from prunejax.study.devices.population import Population
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib
from prunejax.train import probes, prune, step, trackers

PRUNE = {
    "schedule": "linear",
    "layers": ("dense2", "dense3"),
    "fraction": (0.25, 0.5),
    "start": (0, 1),
    "end": (2, 3),
    "period": 1,
    "score": "ebn",
}


# As "mlp" with fewer hidden layers, for `few_layers` of the fixtures.
FEW: dict[str, tuple[type[Model], dict[str, Any]]] = {
    "few1": (MLP, {"hidden": (128,)}),
    "few2": (MLP, {"hidden": (128, 128)}),
}


def tiny(**variants: dict) -> ConfigDict:
    """4 epochs of 4 steps (the last one partial); 2 seeds; the given variants (None: a few)."""
    config = default.get_config()
    config.name = "tiny"
    config.seeds, config.epochs, config.batch_size, config.eval_batch_size = 2, 4, 32, 40
    config.data.train_examples, config.data.test_examples = 100, 90
    config.model.width = 0.125
    config.population.layout = "sequential"
    some = {"none": {}, "S": {"prune": PRUNE}, "L": {"prune": PRUNE | {"target": "largest"}}}
    config.variants = default.arms(variants or some)
    return config


def turned(path: Path, to: Path, arm: str) -> Path:
    """A copy of a run directory: the study sets what `arm` did, all others what differs from it.

    The arms are what they were, so a report must draw the same of both.
    """
    shutil.copytree(path, to)
    config = json.loads((to / "config.json").read_text())
    whole = {label: arms.flat(arms.settings(config, label)) for label in config["variants"]}

    def nested(flat: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, value in flat.items():
            *above, leaf = name.split(".")
            functools.reduce(lambda node, part: node.setdefault(part, {}), above, made)[leaf] = (
                value
            )
        return made

    of_study = {name: value for name, value in config.items() if name in arms.OF_STUDY}
    own = {label: nested({k: v for k, v in flat.items() if v != whole[arm][k]})
           for label, flat in whole.items()}  # fmt: skip
    turned = {**nested(whole[arm]), **of_study, "variants": own}
    (to / "config.json").write_text(json.dumps(turned))
    assert own[arm] == {}
    assert {k: arms.flat(arms.settings(turned, k)) for k in own} == whole
    return to


def small(**variants: dict) -> ConfigDict:
    """`tiny` with one seed, an MLP 64-128-64-10, and whole batches: one program less."""
    config = tiny(**variants)
    config.seeds, config.model.name = 1, "mlp128_64"
    config.data.train_examples = 128
    return config


def planned(config: ConfigDict) -> list[plan.Batch]:
    """The programs of a study and their runs."""
    return list(plan.build(config_lib.variants(config, default.get_config())))


def begun(config: ConfigDict) -> tuple[plan.Batch, step.Data, step.TrainState]:
    """Program, data and state (on the device) of a study's first run, before its events."""
    (batch,) = planned(config)
    member = batch.members[0]
    state = step.initial_state(batch.program, jnp.uint32(0), member.table, member.hyper)
    # (`jnp.asarray` compiles a program for each shape of a NumPy array)
    return batch, *jax.device_put((device_data(batch.dataset), state))


class Functions:
    """What a program does to one run, each compiled once."""

    def __init__(self, program: step.Program) -> None:
        """Nothing is compiled yet."""
        self.event = jax.jit(
            lambda s, data, row: prune.apply_event(program, s, data, row, s.windows.targeted)
        )
        self.train = jax.jit(lambda s, data, steps: step.train_steps(program, s, data, steps))


_FUNCTIONS: dict[int, tuple[step.Program, Functions]] = {}


def functions(program: step.Program) -> Functions:
    """Of this very program."""
    return _FUNCTIONS.setdefault(id(program), (program, Functions(program)))[1]


def rows(path: Path, table: str) -> list[dict[str, str]]:
    """Of a run directory."""
    with open(path / f"{table}.csv", newline="") as file:
        return list(csv.DictReader(file))


def tables(path: Path) -> dict[str, bytes]:
    """Every table of a run directory, as it lies there."""
    return {file.name: file.read_bytes() for file in sorted(path.glob("*.csv"))}


def in_layouts(config: ConfigDict, root: Path) -> dict[str, Path]:
    """Directories of one study, its members vectorized and one after another; no page is drawn.

    Who reads their states asks for `plain_checkpoints`.
    """
    found = {}
    for name in ("vectorized", "sequential"):
        config.population.layout = name
        found[name] = root / name
        go(config, found[name], page=False)
    return found


def assert_alike(paths: dict[str, Path], table: str) -> None:
    """All cells are equal, but for the last digits of losses (products of several members)."""
    one, other = (
        sorted(rows(path, table), key=lambda row: (row["run"], *row.values()))
        for path in paths.values()
    )
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        for key in a:
            if a[key] != b[key]:
                assert key.endswith("loss"), (a["run"], key)
                assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-5)


class PickledCheckpointer:
    """In place of orbax where hundreds of checkpoints are written."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_):
        pass

    def save(self, path, tree):
        path.mkdir(parents=True)
        leaves = jax.device_get(jax.tree.leaves(tree))
        with (path / "leaves.npz").open("wb") as file:
            np.savez(file, *leaves)

    def wait_until_finished(self):
        pass

    def restore(self, path, abstract):
        with np.load(path / "leaves.npz") as saved:
            leaves = [saved[name] for name in saved.files]
        structure = jax.tree.structure(abstract)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        return jax.device_put(jax.tree.unflatten(structure, leaves), shardings)


def plain_checkpoints(patch: pytest.MonkeyPatch) -> None:
    """Checkpoints are plain files."""
    patch.setattr(checkpoint.load(), "StandardCheckpointer", PickledCheckpointer)


def go(config: ConfigDict, path: Path, page: bool = True, **options: Any) -> run.Result:
    """Runs a study; those of one process with the same program share its compiled functions.

    Its checkpoints are plain files, and it leaves no TensorBoard events. Fixtures of a module come
    before `quick_report`: they say whether they want a `page`.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not page:
            patch.setattr(report, "build", lambda paths: paths[0] / "report.html")
        patch.setattr(layout, "_population", _shared)
        patch.setattr(shared, "functions", _functions)
        plain_checkpoints(patch)
        patch.setattr(RunDirectory, "tensorboard", lambda self: None)
        return run.run(config, path, default.get_config(), quiet=True, **options)


_make = layout._population
_OF_STREAMED = ("_steps", "_sums", "_forecast", "_copied", "_event", "_twin_event")
_POPULATIONS: dict[Any, Population] = {}


@functools.wraps(_make)
def _shared(program: Any, data: Any, way: Any, devices: Any, like: Any, settings: Any) -> Any:
    if isinstance(data, StreamedSet):
        people = _make(program, data, way, devices, like, settings)
        own = data.test_examples, way, devices, settings.population
        first = _POPULATIONS.setdefault((_told(program), repr(own)), people)
        for name in _OF_STREAMED:  # all that it compiles; its windows and readers are its own
            setattr(people, name, getattr(first, name))
        return people
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (data, like.table, like.hyper))
    key = _told(program), repr((shapes, way, devices, settings.population))
    if key not in _POPULATIONS:  # (keeps the program, so that no address in `key` is used again)
        _POPULATIONS[key] = _make(program, data, way, devices, like, settings)
    return _POPULATIONS[key].on(data)


_BESIDE_EVENTS: dict[Any, shared.Functions] = {}


def _functions(program: Any, mesh: Any, vectorized: bool, states: Any) -> shared.Functions:
    """As `shared.functions`, of all studies."""
    program, states = program.beside_events(), shared.bare(states)
    key = _told(program), mesh, vectorized, jax.tree.structure(states)
    if key not in _BESIDE_EVENTS:
        _BESIDE_EVENTS[key] = shared.Functions(program, mesh, vectorized, states)
    return _BESIDE_EVENTS[key]


def _told(program: step.Program) -> tuple[Any, ...]:
    """A program in words, optimizers being equal to none but themselves; what names stand for."""
    transform = program.optimizer.transform
    update = jax.make_jaxpr(lambda g: transform.update(g, transform.init(g), g))(1.0)
    bare = dataclasses.replace(program, optimizer=program.optimizer._replace(transform=None))
    named = losses.LOSSES[program.loss], *(trackers.TRACKERS[name] for name in program.trackers)
    return repr((bare, update)), named, tuple(probes.PROBES[name] for name in program.probes)
