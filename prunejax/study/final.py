"""The programs of a study that is on disk, and the states in which its runs ended."""

import errno
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prunejax.errors import ConfigError, RecordError
from prunejax.measures.columns import is_completed
from prunejax.record.checkpoint import Checkpoints
from prunejax.report import tables
from prunejax.study.devices import arrangement
from prunejax.study.planning import plan
from prunejax.study.planning.plan import Batch, Member
from prunejax.study.settings.saved import arms as arms
from prunejax.train.step import TrainState


def programs(path: Path) -> list[Batch]:
    """The programs and members of the study in a run directory (reads its data set)."""
    return plan.build(arms(path))


def states(
    path: Path, batches: Sequence[Batch], wanted: re.Pattern[str] | None = None
) -> list[tuple[Batch, Member, Callable[[], TrainState]]]:
    """Program, member and what reads its final state, for every run that trained to the end.

    Of a shard without runs, or whose runs all stopped, there is none.

    Args: path: the run directory. batches: of the study. wanted: runs of which it has to be there.

    Raises ConfigError: it is not.
    """
    members = {m.run: (b, m) for b in batches for m in b.members}
    completed = [row["run"] for row in tables.read_csv(path / "runs.csv") if is_completed(row)]
    folders = sorted((path / "checkpoints").glob("final-*"), key=lambda p: int(p.name[6:]))
    found: list[Any] = []
    held: dict[Path, TrainState] = {}  # one at most: all would fill the memory; read in order

    def state(folder: Path, size: int, run: str, index: int) -> TrainState:
        if folder not in held:
            held.clear()
            held[folder] = _stack(Checkpoints(folder, keep=1), size, *members[run])
        one: TrainState = jax.tree.map(lambda leaf: leaf[index], held[folder])
        return one

    for folder in folders:
        for number in Checkpoints(folder, keep=1).numbers()[-1:]:
            facts = tables.read_json(folder / str(number) / "facts.json")
            of = functools.partial(state, folder, facts["size"], facts["runs"][0])
            places = facts.get("places", range(len(facts["runs"])))
            found += [
                (*members[run], functools.partial(of, index))
                for index, run in zip(places, facts["runs"], strict=True)
                if run in completed
            ]
    there = {member.run for _, member, _ in found}
    lost = [run for run in completed if wanted and wanted.fullmatch(run) and run not in there]
    if lost:
        raise ConfigError(
            f"{path} has no final states (checkpoints/final-*) of {', '.join(lost)}: restore them, "
            "or choose other runs (--run)"
        )
    return found


def _stack(checkpoints: Checkpoints, size: int, batch: Batch, member: Member) -> TrainState:
    """The final states of a chunk's stack, on the host, whatever devices they were saved from."""
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype, sharding=host),
        arrangement.shapes(batch.program, member),
    )
    found = checkpoints.restore(like)
    if found is None or found.states is None:
        raise RecordError(
            errno.EIO,
            f"no whole final states in {checkpoints.directory}: "
            + "; ".join(found.damaged if found else ["nothing is there"]),
        )
    whole: TrainState = jax.tree.map(np.asarray, found.states)
    return whole
