"""What every event of every run targeted, kept for analysis and replayed by twins."""

import errno
import itertools
import zipfile
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from prunejax.cluster import distributed
from prunejax.errors import RecordError
from prunejax.study.planning.programs import Member
from prunejax.system import files


class _Packed(NamedTuple):
    """Booleans as bits: eight times as many fit into the memory of the host."""

    bits: np.ndarray
    shape: tuple[int, ...]

    @classmethod
    def of(cls, flags: Any) -> "_Packed":
        flags = np.asarray(flags, bool)
        return cls(np.packbits(flags), flags.shape)

    @property
    def flags(self) -> np.ndarray:
        size = int(np.prod(self.shape, dtype=np.int64))
        return np.unpackbits(self.bits, count=size).astype(bool).reshape(self.shape)


def _unreadable(file: Path, what: str) -> RecordError:
    return RecordError(
        errno.EIO, f"cannot read {file} ({what}); restore it, or start over in a new workdir"
    )


class Targets:
    """What every event of every run targeted: `targets/RUN.npz`; twins replay it.

    Until a run has ended, each checkpoint adds a part, `targets/RUN.npz+N`, with what is new: an
    event is written twice in all, however many checkpoints there are.
    """

    def __init__(self, path: Path, members: Sequence[Member]) -> None:
        """Reads the files of these members and of those that they are twins of, if there are any.
        Raises RecordError: a file is damaged, or that of a run to be replayed is missing.
        """
        self._path, self._members = path, members
        replayed = {m.twin for m in members if m.twin}
        self.twins = bool(replayed)
        runs = {m.run for m in members} | replayed

        def read() -> dict[str, dict[str, tuple[Any, ...]]]:
            events = {run: self._read(run, required=run in replayed) for run in runs}
            return {run: {n: tuple(p) for n, p in known.items()} for run, known in events.items()}

        self._events = {
            run: {name: _Packed(*packed) for name, packed in events.items()}
            for run, events in distributed.on_main(read).items()
        }
        # What no file has yet, in order: each save looks at that alone.
        self._new: dict[str, dict[str, None]] = {run: {} for run in runs}
        self._added: dict[str, int] = {}  # parts of a run that are there: not looked up every time

    def require(self) -> None:
        """Checks that the members' files are there, as they are beside every checkpoint.
        Raises RecordError: a file is missing.
        """

        def read() -> None:
            for m in self._members:
                if len(m.events):
                    self._read(m.run, required=True)

        distributed.on_main(read)

    def names(self) -> list[str]:
        """Paths in the run directory of the files of all members with events."""
        files = [self._file(m.run) for m in self._members if len(m.events)]
        return [f"{file.parent.name}/{file.name}" for file in files]

    def _file(self, run: str) -> Path:
        return self._path / f"{files.plain_name(run)}.npz"

    def _part(self, run: str, number: int) -> Path:
        file = self._file(run)
        return file.with_name(f"{file.name}+{number}")

    def _parts(self, run: str) -> list[Path]:
        """What was added since the file was written, oldest first."""
        numbered = (self._part(run, n) for n in itertools.count(1))
        return list(itertools.takewhile(Path.exists, numbered))

    def _read(self, run: str, required: bool) -> dict[str, _Packed]:
        whole = self._file(run)
        if not whole.exists() and not required:
            return {}
        events: dict[str, _Packed] = {}
        for file in (whole, *self._parts(run)):
            with files.arrays(file, partial(_unreadable, file)) as saved:
                events |= {name: _Packed.of(saved[name]) for name in saved.files}
        return events

    def add(self, row: int, selected: Mapping[str, Any]) -> None:
        """Remembers the targets of the members' events in `row`, by the event's own number less 1.

        For events at epochs that is the epoch.
        """
        for i, m in enumerate(self._members):
            if row in m.events:
                for layer, chosen in selected.items():
                    if chosen[i].any():
                        # By the run's own count of events: a twin's rows may lie elsewhere.
                        name = f"{m.table.ids[row] - 1}/{layer}"
                        new, known = _Packed.of(chosen[i]), self._events[m.run].get(name)
                        if known is None or not np.array_equal(new.bits, known.bits):
                            self._new[m.run][name] = None  # maybe done anew, in another layout
                        self._events[m.run][name] = new

    def replay(self, members: Sequence[Member], row: int, like: dict[str, Any]) -> Any:
        """Per layer bool [members, ...]: the targets that twins have to take."""

        def of(twin: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
            known = self._events.get(twin, {}).get(name)
            return np.zeros(shape, bool) if known is None else known.flags

        return {
            layer: np.stack(
                [of(m.twin, f"{m.table.ids[row] - 1}/{layer}", leaf.shape[1:]) for m in members]
            )
            for layer, leaf in like.items()
        }

    def save(self, whole: bool = False) -> None:
        """Writes what is new of runs with events, also where none of them has targeted anything.

        Args: whole: the runs have ended: one file a run, no parts.

        Raises RecordError: a file cannot be written.
        """
        distributed.on_main(lambda: self._save(whole))

    def _save(self, whole: bool) -> None:
        for run in [m.run for m in self._members if len(m.events)]:
            events, file = self._events[run], self._file(run)
            if run not in self._added:
                self._added[run] = len(self._parts(run))
            new = list(self._new[run])
            if not file.exists() or (whole and (self._added[run] or new)):
                self._write(file, events, events)
                while self._added[run]:  # the last first: those that are left are still found
                    self._part(run, self._added[run]).unlink(missing_ok=True)
                    self._added[run] -= 1
            elif new:
                self._write(self._part(run, self._added[run] + 1), events, new)
                self._added[run] += 1
            self._new[run].clear()

    @staticmethod
    def _write(file: Path, events: Mapping[str, _Packed], names: Collection[str]) -> None:
        """An npz file of booleans, unpacked one by one."""

        def write(target: IO[bytes]) -> None:
            with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in names:
                    # By name, so dated 1980: the same bytes whenever it is written.
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, events[name].flags, allow_pickle=False)

        files.replace(file, write)
