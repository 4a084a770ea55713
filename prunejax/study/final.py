"""The programs of a study that is on disk, and the states in which its runs ended."""

import errno
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prunejax.errors import ConfigError, RecordError
from prunejax.measures.columns import is_completed
from prunejax.record.checkpoint import Checkpoints
from prunejax.report import tables
from prunejax.study import arrangement, plan
from prunejax.study.plan import Batch, Member
from prunejax.study.saved import arms as arms
from prunejax.train.step import TrainState


def programs(path: Path) -> list[Batch]:
    """The programs and members of the study in a run directory (reads its data set)."""
    return plan.build(arms(path))


def states(
    path: Path, batches: Sequence[Batch]
) -> list[tuple[Batch, Member, Callable[[], TrainState]]]:
    """Program, member and what reads its final state, for every run that trained to the end.

    Raises:
      ConfigError: no final states.
    """
    members = {m.run: (b, m) for b in batches for m in b.members}
    completed = {row["run"] for row in tables.read_csv(path / "runs.csv") if is_completed(row)}
    folders = sorted((path / "checkpoints").glob("final-*"), key=lambda p: int(p.name[6:]))
    found: list[Any] = []
    for folder in folders:
        checkpoints = Checkpoints(folder, keep=1)
        for number in checkpoints.numbers()[-1:]:
            facts = tables.read_json(folder / str(number) / "facts.json")
            stack = _stack(checkpoints, facts["size"], *members[facts["runs"][0]])
            places = facts.get("places", range(len(facts["runs"])))
            found += [
                (*members[run], functools.partial(stack, index))
                for index, run in zip(places, facts["runs"], strict=True)
                if run in completed
            ]
    if not found:
        raise ConfigError(f"{path} has no final states (checkpoints/final-*) to measure")
    return found


def _stack(
    checkpoints: Checkpoints, size: int, batch: Batch, member: Member
) -> Callable[[int], TrainState]:
    """Reads the final state at a place of a chunk's stack, on the host; the stack is read once."""

    @functools.cache
    def states() -> TrainState:
        # On the host, whatever devices the states were saved from.
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
        return found.states

    return lambda index: jax.tree.map(lambda leaf: np.asarray(leaf)[index], states())
