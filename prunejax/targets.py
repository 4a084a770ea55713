"""What every event of every run targeted, kept for analysis and replayed by twins."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunejax.plan import Member


class Targets:
    """What every event of every run targeted: `targets/RUN.npz`; twins replay it."""

    def __init__(self, path: Path, members: Sequence[Member]) -> None:
        self._path, self._members = path, members
        self._events: dict[str, dict[str, np.ndarray]] = {m.run: {} for m in members}
        for run in [m.run for m in members] + [m.twin for m in members if m.twin]:
            file = path / f"{run}.npz"
            if file.exists():
                with np.load(file) as saved:
                    self._events[run] = dict(saved)

    def add(self, row: int, selected: dict[str, np.ndarray]) -> None:
        """Remembers the targets of the members' events in `row` (epoch `row - 1`)."""
        for i, m in enumerate(self._members):
            if row in m.events:
                for layer, chosen in selected.items():
                    if chosen[i].any():
                        self._events[m.run][f"{row - 1}/{layer}"] = chosen[i]

    def replay(self, members: Sequence[Member], row: int, like: dict[str, Any]) -> Any:
        """Per layer bool [members, ...]: the targets that twins have to take."""
        return {
            layer: np.stack(
                [
                    self._events.get(m.twin, {}).get(
                        f"{row - 1}/{layer}", np.zeros(leaf.shape[1:], bool)
                    )
                    for m in members
                ]
            )
            for layer, leaf in like.items()
        }

    def save(self) -> None:
        """Writes the files of runs with events."""
        self._path.mkdir(exist_ok=True)
        for m in self._members:
            if self._events[m.run]:
                temporary = self._path / f".tmp-{m.run}.npz"
                np.savez_compressed(temporary, **self._events[m.run])  # type: ignore[arg-type]
                temporary.rename(self._path / f"{m.run}.npz")
