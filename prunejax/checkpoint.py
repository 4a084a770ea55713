"""Checkpoints of a chunk of members: orbax, newest valid one wins, damage is reported."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

Tree = Any


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read."""

    states: Tree
    facts: dict[str, Any]  # what `save` was given beside the states
    damaged: list[str]  # newer checkpoints that could not be read, with the reason


class Checkpoints:
    """The checkpoints of one chunk, in one directory, numbered by `save`'s order."""

    def __init__(self, directory: Path, keep: int) -> None:
        """Args: directory: made if missing. keep: how many of the newest are kept."""
        self.directory, self.keep = Path(directory).absolute(), keep

    def numbers(self) -> list[int]:
        """The numbers of complete checkpoints, ascending."""
        if not self.directory.is_dir():
            return []
        return sorted(
            int(p.name) for p in self.directory.iterdir() if p.name.isdigit() and p.is_dir()
        )

    def save(self, states: Tree, facts: dict[str, Any]) -> None:
        """Writes states and facts under the next number, then drops the oldest ones.

        The directory appears under its number only when it is complete (one rename).
        """
        number = (self.numbers() or [0])[-1] + 1
        temporary = self.directory / f"tmp-{number}"
        shutil.rmtree(temporary, ignore_errors=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(temporary / "states", states)
            checkpointer.wait_until_finished()
        (temporary / "facts.json").write_text(json.dumps(facts))
        temporary.rename(self.directory / str(number))
        for old in self.numbers()[: -self.keep]:
            shutil.rmtree(self.directory / str(old), ignore_errors=True)

    def restore(self, like: Tree) -> Restored | None:
        """The newest checkpoint that can be read, None if there is none.

        Args:
          like: tree of arrays or shapes (with shardings) as was saved.
        """
        damaged = []
        for number in reversed(self.numbers()):
            path = self.directory / str(number)
            try:
                facts = json.loads((path / "facts.json").read_text())
                abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
                with ocp.StandardCheckpointer() as checkpointer:
                    states = checkpointer.restore(path / "states", abstract)
                return Restored(states, facts, damaged)
            except Exception as error:  # orbax raises many kinds for damaged files
                reason = str(error).split("\n")[0][:200]
                damaged.append(f"{path}: {type(error).__name__}: {reason}")
        return Restored(None, {}, damaged) if damaged else None

    def clear(self) -> None:
        """Removes them all (the chunk is finished)."""
        shutil.rmtree(self.directory, ignore_errors=True)
