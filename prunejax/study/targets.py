"""What every event of every run targeted, kept for analysis and replayed by twins."""

import errno
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunejax.cluster import distributed
from prunejax.errors import RecordError
from prunejax.study.programs import Member
from prunejax.system import files


class Targets:
    """What every event of every run targeted: `targets/RUN.npz`; twins replay it."""

    def __init__(self, path: Path, members: Sequence[Member]) -> None:
        """Reads the files of these members and of those that they are twins of, if there are any.

        Raises:
          RecordError: a file is damaged, or that of a run to be replayed is missing.
        """
        self._path, self._members = path, members
        replayed = {m.twin for m in members if m.twin}
        self.twins = bool(replayed)
        runs = {m.run for m in members} | replayed
        self._events = distributed.on_main(
            lambda: {run: self._read(run, required=run in replayed) for run in runs}
        )

    def require(self) -> None:
        """Checks that the members' files are there, as they are beside every checkpoint.

        Raises:
          RecordError: a file is missing.
        """
        runs = [m.run for m in self._members if len(m.events)]
        distributed.on_main(lambda: [self._read(run, required=True) for run in runs])

    def _file(self, run: str) -> Path:
        return self._path / f"{files.plain_name(run)}.npz"

    def _read(self, run: str, required: bool) -> dict[str, np.ndarray]:
        file = self._file(run)
        if not file.exists() and not required:
            return {}
        try:
            with np.load(file) as saved:
                return dict(saved)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise RecordError(
                errno.EIO,
                f"cannot read {file} ({error}); restore it, or start over in a new workdir",
            ) from error

    def add(self, row: int, selected: Mapping[str, Any]) -> None:
        """Remembers the targets of the members' events in `row`, by the event's own number less 1.

        For events at epochs that is the epoch.
        """
        for i, m in enumerate(self._members):
            if row in m.events:
                for layer, chosen in selected.items():
                    if chosen[i].any():
                        self._events[m.run][f"{m.table.ids[row] - 1}/{layer}"] = chosen[i]

    def replay(self, members: Sequence[Member], row: int, like: dict[str, Any]) -> Any:
        """Per layer bool [members, ...]: the targets that twins have to take."""
        return {
            layer: np.stack(
                [
                    self._events.get(m.twin, {}).get(
                        f"{m.table.ids[row] - 1}/{layer}", np.zeros(leaf.shape[1:], bool)
                    )
                    for m in members
                ]
            )
            for layer, leaf in like.items()
        }

    def save(self) -> None:
        """Writes the files of runs with events, also where none of them has targeted anything.

        Raises:
          RecordError: a file cannot be written.
        """
        distributed.on_main(self._save)

    def _save(self) -> None:
        for m in self._members:
            events: dict[str, Any] = self._events[m.run]
            if len(m.events):
                files.replace(
                    self._file(m.run),
                    lambda file, events=events: np.savez_compressed(file, **events),  # type: ignore[misc]
                )
