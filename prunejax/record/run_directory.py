"""The run directory: the one module that writes a study's tables, arrays and status.

CSV tables are the record; TensorBoard files are a view of them, rebuilt at will. Rows are
appended whole (one write, then fsync), everything else is written beside its place and moved
there, so that a reader never meets half a file. A study that is continued first cuts the tables
back to the sizes its checkpoint remembers (`RunDirectory.truncate`).
"""

import csv
import errno
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from prunejax.errors import RecordError, WorkdirError
from prunejax.record import ledger
from prunejax.record.tensorboard_view import TensorBoardView
from prunejax.record.workdir import check, read_record
from prunejax.system import files


class RunDirectory:
    """A study's directory, held exclusively by this process until `close`."""

    def __init__(
        self, path: Path, tables: Mapping[str, Sequence[str]], lock: IO[str] | None
    ) -> None:
        """Use `RunDirectory.open`."""
        self.path = path
        self.tables = {name: tuple(columns) for name, columns in tables.items()}
        self._lock = lock
        self._ledger = ledger.Tables({name: self._file(name) for name in self.tables})
        self.arrays = ledger.Arrays(path)
        self._view = TensorBoardView(path / "tb")

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        tables: Mapping[str, Sequence[str]],
        ignore: Sequence[str] = (),
    ) -> "RunDirectory":
        """Creates the directory, or continues one that holds the same config.

        Args:
          path: the directory; parents are made.
          config: the resolved config, nested and JSON-able.
          environment: versions, devices, commit. If a study is continued elsewhere, the newer
            environments are added to `environment.json` under "continued".
          tables: table name -> columns, e.g. `{"epochs": EPOCHS}` for `epochs.csv`.
          ignore: dotted config fields in which the directory's config may differ.

        Raises:
          WorkdirError: the path is no usable directory, holds something else or another config
            (the differing fields are listed), another process holds it, or the study in it is
            finished and a file is not as it was then.
          RecordError: nothing can be written there: the disk is full, say.
        """
        if "://" in str(path):
            raise WorkdirError(f"workdir {path} is no local path; mount the bucket and name that")
        path = Path(files.expand(path))
        config = json.loads(json.dumps(config))  # as it reads back: tuples are lists there
        try:
            check(path, config, tables, ignore)
            files.folder(path)
            lock = files.acquire(path / ".lock")
        except files.LockedError as holder:
            raise WorkdirError(
                f"workdir {path} is in use by {holder}; wait for it or name another workdir"
            ) from None
        except OSError as error:
            finished = cls(path, tables, None)
            if error.errno == errno.EROFS and finished.finished:
                finished._inspect()
                return finished  # it can be told where nothing can be written
            why = error.strerror or error
            if error.filename and str(error.filename) != str(path):
                why = f"{error.filename}: {why}"
            told = f"cannot use workdir {path}: {why}"
            if error.errno not in files.OF_PATHS:  # no room, say
                raise RecordError(error.errno or errno.EIO, told) from error
            raise WorkdirError(told) from error
        directory = cls(path, tables, lock)
        try:
            # Again, for another process may have begun, and ended, since it was looked at.
            check(path, config, tables, ignore)
            if directory.finished:
                directory._inspect()
            else:
                directory._prepare(config, json.loads(json.dumps(environment)))
        except BaseException:
            lock.close()
            raise
        return directory

    def _inspect(self) -> None:
        """WorkdirError if a file of the finished study is missing or was changed."""
        reason = ledger.damage(self.path, self.status)
        if reason:
            raise WorkdirError(reason)

    def _prepare(self, config: Mapping[str, Any], environment: dict[str, Any]) -> None:
        """Writes what a new directory needs; mends the tables of an interrupted one."""
        for pattern in (".tmp-*", "*/.tmp-*"):
            for leftover in self.path.glob(pattern):
                leftover.unlink(missing_ok=True)
        for name, columns in self.tables.items():
            file, header = self._file(name), (",".join(columns) + "\n").encode()
            content = file.read_bytes() if file.exists() else b""
            if not content.startswith(header):
                found, newline, _ = content.partition(b"\n")
                if newline:
                    raise WorkdirError(
                        f"{file} has the columns {found.decode()}, this study writes "
                        f"{','.join(columns)}; name another workdir"
                    )
                files.replace(file, lambda f, header=header: f.write(header))  # type: ignore[misc]
            elif not content.endswith(b"\n"):  # the start of a row that never became whole
                os.truncate(file, content.rindex(b"\n") + 1)
        if not (self.path / "config.json").exists():
            self.save_json("environment.json", environment)
            self.save_json("config.json", config)  # last: from here on it is a run directory
            return
        first = self.load_json("environment.json") or {}
        continued = first.pop("continued", [])
        if not isinstance(continued, list):
            raise WorkdirError(
                f"{self.path / 'environment.json'}: 'continued' is {continued!r:.40}, not a list: "
                "it was changed or damaged. Restore it, or start over in a new workdir"
            )
        if environment not in [first, *continued]:
            first["continued"] = [*continued, environment]
            self.save_json("environment.json", first)

    def _file(self, table: str) -> Path:
        if table not in self.tables:
            raise KeyError(f"no table {table!r}; there are: {', '.join(self.tables)}")
        return self.path / f"{table}.csv"

    def append(self, table: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Adds rows to a table: all of them or, on failure, none.

        Raises:
          ValueError: a row's keys are not exactly the table's columns.
          RecordError: the file cannot be written.
        """
        columns = self.tables[table]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for row in rows:
            if row.keys() != set(columns):
                raise ValueError(
                    f"row for {table}.csv: unknown columns {sorted(set(row) - set(columns))}, "
                    f"missing columns {sorted(set(columns) - set(row))}"
                )
            writer.writerow([files.cell(row[column]) for column in columns])
        if rows:
            content = text.getvalue().encode()
            with files.writing(self._file(table)):
                known = self._ledger.known(table)  # of what stands, before anything is added
            files.append(self._file(table), content)
            known.add(content)  # once it is written: a failure leaves digest and file as they were

    def marks(self) -> dict[str, dict[str, Any]]:
        """As `ledger.Tables.marks`."""
        return self._ledger.marks()

    def verify(self, sizes: Mapping[str, int], digests: Mapping[str, str]) -> None:
        """As `ledger.Tables.verify`."""
        self._ledger.verify(sizes, digests)

    def truncate(self, sizes: Mapping[str, int], digests: Mapping[str, str] | None = None) -> None:
        """Cuts the tables back to `sizes`; a table that is not named keeps its header only.

        Tables that this process left just so are not read again: `finish` reads them all.

        Raises WorkdirError: as of `verify`: rows that the checkpoint saw are gone or others.
        """
        wanted = {
            table: sizes.get(table, len(",".join(columns)) + 1)
            for table, columns in self.tables.items()
        }
        known = digests or {}
        wanted = {t: n for t, n in wanted.items() if not self._ledger.stands(t, n, known.get(t))}
        if not wanted:
            return
        # Before anything is cut: rows that the checkpoint saw must be as they were.
        self.verify(wanted, known)
        for table, size in wanted.items():
            if self._file(table).stat().st_size > size:
                with files.writing(self._file(table)):
                    os.truncate(self._file(table), size)
        self._ledger.forget(wanted)
        self._view.reset()

    def rows(self, table: str, since: int = 0) -> list[dict[str, str]]:
        """The rows of a table as text; of those that begin at byte `since` or later, if given."""
        columns = self.tables[table]
        with self._file(table).open("rb") as file:
            file.seek(max(since, len(",".join(columns)) + 1))
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            return list(csv.DictReader(text, fieldnames=columns))

    def save_arrays(self, name: str, **arrays: Any) -> None:
        """Writes `measures/NAME.npz`; characters unfit for a file name become "_"."""
        saved = {key: np.asarray(value) for key, value in arrays.items()}
        file = f"{ledger.MEASURES}/{files.plain_name(name)}.npz"
        files.replace(self.path / file, lambda opened: np.savez_compressed(opened, **saved))  # type: ignore[arg-type]
        self.arrays.add(file)

    def save_json(self, name: str, content: object) -> None:
        """Writes a JSON file of the run directory, e.g. `study.json`."""
        files.save_json(self.path / name, content)

    def load_json(self, name: str) -> Any:
        """The content of a JSON file of the run directory, None if there is none.
        Raises WorkdirError: it is no JSON object, or parts of it are of other types.
        """
        file = self.path / name
        try:
            return read_record(file) if file.exists() else None
        except ValueError as error:
            raise WorkdirError(
                f"{error}: it was changed or damaged. Restore it, or start over in a new workdir"
            ) from error

    @property
    def begun(self) -> bool:
        """True once something was trained: a row or a checkpoint is there."""
        return (self.path / "checkpoints").exists() or any(self.rows(t) for t in self.tables)

    def discard(self) -> None:
        """Takes back what `open` and a study that was refused made, unless something was trained.

        The directory is then as free for another config as before.
        """
        if self.begun:
            return
        made = ["config", "study", "layout", "progress", "environment"]
        for name in [*(f"{m}.json" for m in made), *(f"{t}.csv" for t in self.tables)]:
            (self.path / name).unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        """True once `finish` was called, by this process or an earlier one."""
        return bool(self.status.get("finished"))

    @property
    def status(self) -> dict[str, Any]:
        """The content of `status.json`, empty before the study finished; errors of `load_json`."""
        return self.load_json("status.json") or {}

    def finish(self, **facts: object) -> None:
        """Marks the study as finished; `facts` are kept beside it in `status.json`.
        Raises WorkdirError: a table is not as this process wrote it.
        """
        self.verify(**self.marks())
        kept = {"files": ledger.entries(self.path, self.tables), "views": ledger.views(self.path)}
        # Last: it says that all else is there.
        self.save_json("status.json", {"finished": True, **facts, **kept})

    def tensorboard(self) -> None:
        """Brings `tb/` up to date with the tables: call after appending, as often as you like.

        The first call of a process (and the first after `truncate`) writes `tb/` anew from the
        tables, so that rows of an interrupted stretch never appear twice.
        """
        with files.writing(self.path / "tb"):
            config = (self.path / "config.json").read_text()
            about = (self.load_json("study.json") or {}).get("variants")
            self._view.update({table: self._file(table) for table in self.tables}, config, about)

    def close(self) -> None:
        """Lets go of the directory; closing twice is harmless."""
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
