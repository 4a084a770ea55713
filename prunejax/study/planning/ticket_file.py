"""Tickets as files: masks, the state they are trained from, and where both come from.

    prunejax export --ticket=ticket9-400 --workdir=runs/tickets --output=ticket.npz
    config.start.ticket = "ticket.npz"              # a run of another study begins with it

The file is a NumPy archive: "masks/PATH" (bool, True = live) of each kernel, "weights/PATH" and
"statistics/PATH" of the start state, and "about", a JSON text: source data and model, the run, its
level and seed, counts, how its last level was pruned (granularity, layers, allocation, scope,
score), the SHA-256 of the study's config.json. A mask that another tool made will do where its
tree matches: arrays named "masks/PATH", or PATH alone, of 0 and 1, in the layout of Flax ([in,
out], [height, width, in, out]).
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from prunejax import trees
from prunejax.errors import ConfigError
from prunejax.record import remote
from prunejax.study.planning.live import Live
from prunejax.study.planning.outline import Outline
from prunejax.study.settings.resolved import to_dict
from prunejax.study.settings.saved import arms
from prunejax.system import files

Arrays = dict[str, np.ndarray]
PARTS = ("masks", "weights", "statistics")
_RULES = ("granularity", "layers", "allocation", "scope", "score")


def read(path: str | Path) -> Arrays:
    """The arrays of a ticket file, all with their part in front of the path.

    Raises:
      ConfigError: no such file, not a NumPy archive, or masks that are not of 0 and 1.
      ValueError: there is no such user (a path that begins with "~").
    """

    def told(what: str) -> ConfigError:
        return ConfigError(
            f"config.start.ticket: cannot read {path} ({what}); give a file of prunejax export "
            "--ticket, or masks that np.savez wrote"
        )

    with files.arrays(Path(files.expand(path)), told) as saved:
        found = dict(saved)
    named = {
        name if name.split("/")[0] in PARTS or name == "about" else f"masks/{name}": value
        for name, value in found.items()
    }
    for name, value in named.items():
        if name.startswith("masks/") and value.dtype != bool:
            if not np.isin(value, (0, 1)).all():
                raise ConfigError(f"config.start.ticket: {name} in {path} is not of 0 and 1")
            named[name] = value.astype(bool)
    return named


def about(path: str | Path) -> dict[str, Any]:
    """What a ticket file says of itself; empty for masks of other tools."""
    found = read(path).get("about")
    return {} if found is None else dict(json.loads(str(found)))


def check(settings: ConfigDict, label: str, of: Outline) -> Live | None:
    """What is live in the tickets of an arm; refuses files that do not fit the model.

    Every seed's file is read: none may be missing when its run begins.

    Raises:
      ConfigError: names the file, the leaf, and what the model has there.
    """
    live: Live | None = None
    kernels = {g.kernel: g for g in of.groups}
    first = settings.first_seed
    for seed in range(first, first + settings.seeds):
        path = settings.start.ticket.replace("{seed}", str(seed))
        saved, where = read(path), f"{path} (config.start.ticket, variant {label!r})"
        for part in settings.start.take:
            if part != "statistics" and not any(n.startswith(f"{part}/") for n in saved):
                raise ConfigError(f"{where} holds no {part}; leave them out of config.start.take")
        masks = {n.removeprefix("masks/"): m for n, m in saved.items() if n.startswith("masks/")}
        shapes = {p: leaf.shape for p, leaf in trees.leaves_with_paths(of.params)}
        for name, mask in masks.items():
            if name not in kernels:
                known = trees.shown(list(kernels))
                raise ConfigError(f"{where} has a mask of {name!r}; prunable are: {known}")
            if settings.prune.granularity == "weight" and mask.shape != shapes[name]:
                raise ConfigError(
                    f"{where}: the mask of {name!r} is of shape {mask.shape}, the leaf of "
                    f"{shapes[name]}"
                )
            if settings.prune.granularity == "filter" and mask.size != kernels[name].units:
                raise ConfigError(
                    f"{where}: the mask of {name!r} is of shape {mask.shape}, and one entry for "
                    f"each of {kernels[name].units} filters is needed; of single weights it goes "
                    "with config.prune.granularity = 'weight'"
                )
        if "weights" in settings.start.take:
            for name, shape in shapes.items():
                value = saved.get(f"weights/{name}")
                if value is None or value.shape != shape:
                    there = "no such leaf" if value is None else f"shape {value.shape}"
                    raise ConfigError(f"{where}: {there} where weights/{name} is of shape {shape}")
        # Of the first seed: arms with a ticket have no events, which would need those of each.
        if live is None and "masks" in settings.start.take:
            counts = {kernels[n].name: int(np.count_nonzero(m)) for n, m in masks.items()}
            live = Live(tuple(counts), counts, ())
    return live


def export(workdir: str | Path, run: str, output: str | Path) -> dict[str, Any]:
    """Writes the ticket that a run of a study is; returns what the file says of itself.

    The study must keep the states: `config.keep = ("end",)` for the run, and for the one it is
    rewound to the state that it is rewound to ("start", "step:N").

    Raises:
      ReportError: no such study.
      ConfigError: no such run, a state that was not kept, or a file that cannot be.
      RecordError: the file cannot be written.
    """
    target = files.target(output)
    found = remote.find([workdir])
    name = f"{files.plain_name(run)}@end.npz"  # of whichever shard has that run
    folder = next((path for path in found if (path / "states" / name).is_file()), found[0])
    content = (folder / "config.json").read_bytes()
    settings = {arm.label: arm.settings for arm in arms(folder)}  # methods' fields, too
    label, _, seed = run.rpartition("-")
    if label not in settings:
        raise ConfigError(f"--ticket={run}: no such run; variants are: {', '.join(settings)}")

    def of(arm: str, group: str) -> dict[str, Any]:
        return dict(to_dict(settings[arm][group]))

    start = of(label, "start")
    end = _state(folder, f"{run}@end", "'end'")
    back, at = start["rewind_run"], start["rewind_at"]
    begun = f"{back}-{seed}" if back else run
    step = _step(folder, begun, at) if back else 0
    begin = _state(folder, f"{begun}@step{step}", repr(at if back else "start"))
    masks = {n: m for n, m in end.items() if n.startswith("masks/")}
    live = {n.removeprefix("masks/"): int(np.count_nonzero(m)) for n, m in masks.items()}
    level, chain = 0, label
    while above := of(chain, "start")["run"]:
        level, chain = level + 1, above
    told = {
        "run": run, "seed": int(seed), "level": level, "rewound_to": f"{begun}@step{step}",
        **{name: of(label, "prune")[name] for name in _RULES},
        "data": of(label, "data"), "model": of(label, "model"),
        "live": live, "size": {n.removeprefix("masks/"): int(m.size) for n, m in masks.items()},
        "live_total": sum(live.values()), "config_sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    kept = {n: v for n, v in begin.items() if n.split("/")[0] in ("weights", "statistics")}
    arrays: dict[str, Any] = {**masks, **kept, "about": np.array(json.dumps(told, sort_keys=True))}
    files.replace(target, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    return told


def _state(folder: Path, name: str, ask: str) -> Arrays:
    path = folder / "states" / f"{files.plain_name(name.split('@')[0])}@{name.split('@')[1]}.npz"
    if not path.is_file():
        raise ConfigError(
            f"{path.name} was not kept: give its arm config.keep = ({ask},) and train it again"
        )
    with files.arrays(path) as saved:
        return dict(saved)


def _step(folder: Path, run: str, at: str) -> int:
    """The training steps of a state as the config names it: start, step:N or epoch:N."""
    found = re.fullmatch(r"(step|epoch):(\d+)", at)
    if found is None:
        return 0
    if found[1] == "step" or found[2] == "0":
        return int(found[2])
    for row in (folder / "epochs.csv").read_text().splitlines()[1:]:
        cells = row.split(",")
        if cells[0] == run and int(cells[3]) == int(found[2]) - 1:
            return int(cells[4])
    raise ConfigError(f"{at} of {run!r}: epochs.csv has no such epoch")
