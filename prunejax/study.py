"""A study: config -> programs -> chunks of runs -> records and report."""

import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from prunejax import config as config_lib
from prunejax import plan, population, record, report
from prunejax.checkpoint import Checkpoints
from prunejax.chunk import Chunk, Policy
from prunejax.config import ConfigError, Variant
from prunejax.data import Dataset
from prunejax.plan import Batch, Member
from prunejax.population import Population
from prunejax.progress import Progress
from prunejax.record import RunDirectory
from prunejax.step import Data

PACKAGES = ("prunejax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


@dataclasses.dataclass(frozen=True)
class Result:
    """Where a study's records are."""

    workdir: Path
    report: Path
    already_finished: bool


def environment() -> dict[str, Any]:
    """Versions, devices and the git commit: what a number may depend on."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "devices": [f"{d.platform}: {d.device_kind}" for d in devices],
        "processes": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "platform": platform.platform(),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def use_devices(config: ConfigDict) -> None:
    """Makes one host device per core (or `population.devices`) where the CPU is the backend.

    Has to come before JAX touches its backends; later it changes nothing.
    """
    count = config.get("population", {}).get("devices", 0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        jax.config.update("jax_num_cpu_devices", count or cores or 1)
    except RuntimeError:
        return


def device_data(dataset: Dataset) -> Data:
    """The arrays of a data set as the programs take them."""
    return Data(
        dataset.train_images,
        dataset.train_labels.astype(np.int32),
        dataset.test_images,
        dataset.test_labels.astype(np.int32),
        dataset.validation_images,
        dataset.validation_labels.astype(np.int32),
    )


def waves(members: Sequence[Member]) -> list[list[Member]]:
    """Members whose targets are their own, then the twins that replay them."""
    first = [m for m in members if not m.twin]
    second = [m for m in members if m.twin]
    return [wave for wave in (first, second) if wave]


def shard(members: Sequence[Member], index: int, count: int) -> list[Member]:
    """The members of shard `index` (from 0) of `count`; twins go with the run they replay."""
    keys = sorted({m.twin or m.run for m in members})
    mine = set(keys[index::count])
    return [m for m in members if (m.twin or m.run) in mine]


def _attributes(arms: Sequence[Variant], batches: Sequence[Batch]) -> dict[str, Any]:
    """What the report needs to know of each variant, beyond its overrides."""
    found = {}
    members = {m.variant: (m, b.program) for b in batches for m in b.members}
    for arm in arms:
        p, i = arm.settings.prune, arm.settings.intervention
        m, program = members[arm.label]
        counts = np.asarray(m.table.counts)
        used = [layer for layer in range(counts.shape[1]) if counts[:, layer].any()]
        rate = None
        if used:
            last = max(used, key=lambda layer: counts[:, layer].sum())
            units = program.groups[last].units
            rate = float(counts[:, last].sum() / units / np.count_nonzero(counts[:, last]))
        found[arm.label] = {
            "target": p.target[0].upper() if used else None,
            "score": p.score if used else None,
            "iterative_rate": rate,  # mean fraction of the most-pruned layer per event
            "events": int(np.count_nonzero(counts.sum(axis=1))),
            "kind": i.kind if used else "none",
            "duration": i.duration if used else None,
            "restore": i.restore,
            "twin": i.twin or None,
            "optimizer": arm.settings.optimizer.name,
            "weight_decay": arm.settings.optimizer.weight_decay,
            "dropout": arm.settings.model.dropout,
            "augment": arm.settings.data.augment,
            "model": arm.settings.model.name,
        }
    return found


def run(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    defaults: ConfigDict,
    *,
    shard_of: tuple[int, int] = (1, 1),
    stop_requested: Callable[[], bool] = lambda: False,
    quiet: bool = False,
) -> Result:
    """Runs a study to its end, or continues it, and writes its report.

    Args:
      config: what a config file gives (`get_config`), overrides applied.
      workdir: the run directory; with shards, `workdir/shards/i-of-n` is used.
      defaults: `configs/default.py`'s config.
      shard_of: (i, n), from 1: train only the i-th of n parts of the members.
      stop_requested: asked between calls; True saves a checkpoint and raises chunk.Interrupted.
      quiet: print nothing.

    Raises:
      ValueError (ConfigError, WorkdirError, ...): the request cannot be carried out; nothing was
        written over.
    """
    index, count = shard_of
    if not 1 <= index <= count:
        raise ConfigError(f"--shard={index}/{count}: the first number must be in 1..{count}")
    try:
        arms = config_lib.variants(config, defaults)
        batches = plan.build(arms)
    except ValueError as error:  # of data sets, models, registries: all are bad requests here
        raise ConfigError(str(error)) from error
    settings = arms[0].settings
    path = Path(workdir)
    path = path / "shards" / f"{index}-of-{count}" if count > 1 else path
    runs_table, epochs_table = _tables(settings)
    with RunDirectory.open(
        path,
        config_lib.to_dict(_resolved(arms, config, defaults)),
        environment(),
        {"epochs": epochs_table, "events": record.EVENTS, "runs": runs_table},
        ignore=("checkpoint", "population.memory_gib"),
    ) as directory:
        if directory.finished:
            return Result(path, path / "report.html", True)
        directory.save_json(
            "study.json",
            {
                "variants": _attributes(arms, batches),
                "shard": f"{index}/{count}",
                "runs": [m.run for b in batches for m in b.members],
            },
        )
        _train(batches, settings, directory, shard_of, stop_requested, quiet)
        directory.tensorboard()
        page = report.build([path])
        directory.finish(report=page.name)
    return Result(path, page, False)


def _resolved(arms: Sequence[Variant], config: ConfigDict, defaults: ConfigDict) -> dict[str, Any]:
    """The study as one nested dict: defaults, the file's values, and the overrides per variant."""
    resolved = config_lib.to_dict(defaults)

    def merge(into: dict[str, Any], values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, dict) and key != "variants":
                merge(into.setdefault(key, {}), value)
            else:
                into[key] = value

    merge(resolved, config_lib.to_dict(config))
    resolved["variants"] = resolved["variants"] or {arms[0].label: {}}
    return resolved


def _tables(settings: ConfigDict) -> tuple[tuple[str, ...], tuple[str, ...]]:
    epochs: tuple[str, ...] = record.EPOCHS
    runs: tuple[str, ...] = record.RUNS
    if settings.data.validation_examples:
        epochs += ("validation_loss", "validation_accuracy")
        runs += ("selected_epoch", "selected_test_accuracy")
    return runs, epochs


def _train(
    batches: Sequence[Batch],
    settings: ConfigDict,
    directory: RunDirectory,
    shard_of: tuple[int, int],
    stop_requested: Callable[[], bool],
    quiet: bool,
) -> None:
    """Trains every chunk that has no rows in runs.csv yet."""
    index, count = shard_of
    mine = [shard(b.members, index - 1, count) for b in batches]
    total = sum(
        len(members) * b.program.steps_per_epoch * b.program.epochs
        for b, members in zip(batches, mine, strict=True)
    )
    finished = {row["run"] for row in directory.rows("runs")}
    progress = Progress(total, quiet=quiet)
    c = settings.checkpoint
    policy = Policy(c.every_epochs, c.every_minutes, c.at_events, c.keep, stop_requested)
    number = 0
    for b, members in zip(batches, mine, strict=True):
        if not members:
            continue
        data = device_data(b.dataset)
        people, size = _layout(b, data, members, settings, directory, number, progress)
        for wave in waves(members):
            for start in range(0, len(wave), size):
                part = wave[start : start + size]
                chunk = Chunk(
                    index=number,
                    members=part,
                    size=max(size if size <= len(wave) else len(part), 1),
                    population=people,
                    directory=directory,
                    checkpoints=Checkpoints(
                        directory.path / "checkpoints" / f"chunk-{number}", c.keep
                    ),
                    policy=policy,
                    progress=progress,
                )
                number += 1
                if all(m.run in finished for m in part):
                    steps = b.program.steps_per_epoch * b.program.epochs
                    progress.advance(steps * len(part), "finished before")
                    continue
                if (directory.load_json("progress.json") or {}).get("chunk") != chunk.index:
                    directory.save_json(
                        "progress.json", {"chunk": chunk.index, "sizes": directory.sizes()}
                    )
                chunk.run()
                chunk.checkpoints.clear()
    progress.close("done")


def _layout(
    batch: Batch,
    data: Data,
    members: Sequence[Member],
    settings: ConfigDict,
    directory: RunDirectory,
    number: int,
    progress: Progress,
) -> tuple[Population, int]:
    """The layout of a program's members: as asked for, as decided before, or as measured."""
    devices = jax.devices()[: settings.population.devices or None]
    decided = directory.load_json("layout.json") or {}
    name = decided.get(str(number), settings.population.layout)
    if name == "auto":
        with progress.excluded("choosing a layout"):
            name, why = choose_layout(batch, data, members, devices)
        progress.message(why)
        directory.save_json("layout.json", decided | {str(number): name})
    people = Population(batch.program, data, name, devices)
    widest = max(len(w) for w in waves(members))
    return people, population.chunk_size(name, widest, people.multiple, widest)


def choose_layout(
    batch: Batch, data: Data, members: Sequence[Member], devices: Sequence[jax.Device]
) -> tuple[str, str]:
    """Measures a few steps of each candidate layout; returns the fastest and the reason."""
    cpu = devices[0].platform == "cpu"
    if len(members) == 1:
        return "sequential", "layout: sequential (a single run)"
    candidates = ["sequential"] if cpu else ["sequential", "vectorized"]
    if len(devices) > 1:
        candidates.append("sharded")
    if len(candidates) == 1:
        return candidates[0], "layout: sequential (one CPU device)"
    seconds = {}
    for layout in candidates:
        size = 1 if layout == "sequential" else len(members) // len(devices) * len(devices)
        few = [members[i % len(members)] for i in range(max(size, len(devices)))]
        if layout == "sequential":
            few = few[:1]
        seconds[layout], _ = population.measure_layout(
            batch.program, data, layout, devices, few, steps=min(4, batch.program.steps_per_epoch)
        )
    best = min(seconds, key=lambda layout: seconds[layout])
    text = ", ".join(f"{k} {1e3 * v:.3g} ms" for k, v in seconds.items())
    return best, f"layout: {best} (per run and step: {text})"


def load_config_json(path: Path) -> dict[str, Any]:
    """`config.json` of a run directory."""
    return json.loads((path / "config.json").read_text())
