"""What a run directory should hold: digests of its files, so that no change passes in silence."""

import hashlib
import json
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from prunejax.errors import WorkdirError
from prunejax.record import listing

JSON_FILES = ("config.json", "study.json", "layout.json", "environment.json")
MEASURES = "measures"
PAGE, SUMMARY = "report.html", "summary.json"
# How whole files end that the report writes and that can be built anew.
_ENDINGS = {".html": b"</html>", ".svg": b"</svg>", ".png": b"IEND\xaeB`\x82", ".json": b"}"}


class Running:
    """Length and SHA-256 of a table that grows; what is appended is not read again."""

    def __init__(self, file: Path, size: int | None = None) -> None:
        """Reads the first `size` bytes of a table, all of them by default."""
        content = file.read_bytes()[:size]
        self.size, self._hash = len(content), hashlib.sha256(content)

    def add(self, content: bytes) -> None:
        """Bytes that were appended."""
        self.size += len(content)
        self._hash.update(content)

    @property
    def digest(self) -> str:
        """SHA-256 as hexadecimal text."""
        return self._hash.hexdigest()


class Tables:
    """The tables of a study as this process wrote them, or found them at first."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """Args: files: of the tables, by name; read when first needed."""
        self._files = files
        self._written: dict[str, Running] = {}

    def known(self, table: str) -> Running:
        """Length and digest of a table."""
        if table not in self._written:
            self._written[table] = Running(self._files[table])
        return self._written[table]

    def stands(self, table: str, size: int, digest: str | None) -> bool:
        """Whether this process wrote a table up to just this state; it is not read again."""
        known = self._written.get(table)
        as_marked = known is not None and known.size == size and digest in (None, known.digest)
        # Others may have written since.
        return as_marked and self._files[table].stat().st_size == size

    def forget(self, tables: Iterable[str]) -> None:
        """These files were changed by other means than appending."""
        for table in tables:
            self._written.pop(table, None)

    def marks(self) -> dict[str, dict[str, Any]]:
        """Length in bytes and digest of each table: what a checkpoint remembers."""
        known = {table: self.known(table) for table in self._files}
        return {
            "sizes": {table: k.size for table, k in known.items()},
            "digests": {table: k.digest for table, k in known.items()},
        }

    def verify(self, sizes: Mapping[str, int], digests: Mapping[str, str]) -> None:
        """Checks that the tables begin as they did at an earlier moment.

        Args:
          sizes, digests: of `marks`; a table without a digest (earlier versions kept none) is
            only checked for its length.

        Raises WorkdirError: a table is shorter than it was, or something in it was changed.
        """
        for table, size in sizes.items():
            file = self._files[table]
            start = Running(file, size)
            if start.size < size:
                what = f"has {start.size} bytes, the checkpoint saw {size}"
            elif start.digest != digests.get(table, start.digest):
                what = f"differs from what the checkpoint saw in its first {size} bytes"
            else:
                continue
            raise WorkdirError(
                f"{file} {what}: the table was changed. Restore it or start over in a new workdir"
            )


class Arrays:
    """Files of arrays that the runs which train now have left, in `measures/` and `states/`.

    Checkpoints hold their names, so that none is lost in silence while a study is interrupted.
    """

    def __init__(self, path: Path) -> None:
        """None yet. Args: path: the run directory."""
        self._path = path
        self._names: set[str] = set()

    def add(self, name: str) -> None:
        """A file was written: its path in the run directory."""
        self._names.add(name)

    def names(self) -> list[str]:
        """Of all files that were added."""
        return sorted(self._names)

    def go_on(self, names: Iterable[str] = ()) -> None:
        """Other runs begin, or go on where these files were there.
        Raises WorkdirError: as of `check`.
        """
        self._names = set(names)
        self.check(dict.fromkeys(self._names))

    def ended(self, more: Iterable[str]) -> dict[str, list[Any]]:
        """[size, SHA-256] of the files of runs that have ended, and of `more`."""
        return {name: listing.facts(self._path / name) for name in sorted({*self._names, *more})}

    def check(self, files: Mapping[str, list[Any] | None]) -> None:
        """Checks files of runs that were saved.

        Args:
          files: as of `ended`. None: only the check sums of its own, for a start that ended before
            its next checkpoint may have written it anew, with the last bits of another machine.

        Raises WorkdirError: one is missing or was changed.
        """
        reason = damage(self._path, {"files": files}, since="its run was saved")
        if reason:
            raise WorkdirError(reason)


def is_marks(known: Mapping[str, Any], tables: Collection[str]) -> bool:
    """Whether this is what `progress.json` holds: a chunk's number, and `Tables.marks`."""
    sizes, digests = known.get("sizes"), known.get("digests", {})
    return (
        type(known.get("chunk", 0)) is int
        and isinstance(sizes, dict)
        and isinstance(digests, dict)
        and all(type(size) is int and size >= 0 for size in sizes.values())
        and all(isinstance(digest, str) for digest in digests.values())
        and {*sizes, *digests} <= {*tables}
    )


def entries(path: Path, tables: Iterable[str]) -> dict[str, list[Any] | None]:
    """What `status.json` remembers of a finished study: file -> [size, SHA-256].

    Arrays of measures have None: `prunejax.measure` may write them again, and a check sum of
    their own is in them.
    """
    fixed = [path / f"{name}.csv" for name in tables] + [path / name for name in JSON_FILES]
    fixed += sorted((path / "targets").glob("*.npz"))
    found: dict[str, list[Any] | None] = {}
    for file in fixed:
        if file.exists():
            found[str(file.relative_to(path))] = listing.facts(file)
    arrays = sorted((path / MEASURES).glob("*.npz"))
    return found | {str(file.relative_to(path)): None for file in arrays}


def damage(
    path: Path,
    status: Mapping[str, Any],
    shown: Path | None = None,
    only: Collection[str] | None = None,
    since: str = "the study finished",
) -> str | None:
    """What is wrong with the files of a finished study, None if they are as they were left.

    Args:
      path: the run directory.
      status: of `status.json`; one without digests, of an earlier version, is taken at its word.
      shown: how the text calls the directory, `path` by default.
      only: names of the files to look at, all by default.
      since: when they were as `status` says.
    """
    shown = path if shown is None else shown
    remedy = "Restore it, or start over in a new workdir"
    try:
        for name, known in dict(status.get("files") or {}).items():
            file = path / name
            if only is not None and name not in only:
                continue
            if not file.is_file():
                return f"{shown / name} is missing since {since}. {remedy}"
            if known is None:
                with zipfile.ZipFile(file) as arrays:  # by the check sums in it
                    intact = arrays.testzip() is None
            else:
                content = Running(file)
                if content.size != known[0]:
                    return (
                        f"{shown / name} has {content.size} bytes and had {known[0]} when {since}: "
                        f"it was changed. {remedy}"
                    )
                intact = content.digest == known[1]
            if not intact:
                return f"{shown / name} was changed since {since}. {remedy}"
    except zipfile.BadZipFile:
        return f"{shown / name} was damaged since {since}. {remedy}"
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        return (
            f"{shown / 'status.json'} is not what this program writes ({error}): it was changed. "
            f"{remedy}"
        )
    return None


def views(path: Path) -> list[str]:
    """The files that the report wrote, and the folder of TensorBoard: to be built anew if lost."""
    found = [path / PAGE, path / SUMMARY, *sorted((path / "figures").glob("*.*")), path / "tb"]
    return [str(file.relative_to(path)) for file in found if file.exists()]


def lost_views(path: Path, status: Mapping[str, Any]) -> list[str]:
    """Those of a finished study's views that are missing or not whole."""
    names = dict.fromkeys([PAGE, SUMMARY, *(status.get("views") or [])])
    return [name for name in names if "report" in status and not _whole(path / str(name))]


def _whole(file: Path) -> bool:
    ending = _ENDINGS.get(file.suffix, b"")
    try:
        if not file.is_dir() and not file.read_bytes().rstrip().endswith(ending):
            return False
        return file.suffix != ".json" or isinstance(json.loads(file.read_text()), dict)
    except (OSError, ValueError):
        return False
