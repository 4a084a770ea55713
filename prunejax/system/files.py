"""Files that survive crashes: whole-or-nothing writes, an exclusive lock, cells of a CSV table."""

import errno
import fcntl
import json
import math
import os
import re
import socket
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from prunejax.errors import ConfigError, RecordError, WorkdirError

# A path that cannot be used as it was asked for; any other OSError is a failure.
OF_PATHS = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST, errno.EINVAL),
}


def expand(path: str | os.PathLike[str]) -> str:
    """A path with a leading `~` or `~user` as the home directory it stands for.
    Raises ValueError: there is no such user.
    """
    found = os.path.expanduser(os.fspath(path))
    if found.startswith("~"):
        raise ValueError(f"{found}: no such user; write ./{found} for a directory of that name")
    return found


def cache(
    variable: str, folder: str = "", environment: Mapping[str, str] | None = None
) -> Path | None:
    """Where files of a kind are kept between starts: what a variable names, else `~/.cache/...`.

    Args:
      variable: of ours; names another folder.
      folder: of `~/.cache/prunejax`; `XDG_CACHE_HOME`, if it is a whole path, is that `.cache`.
      environment: those of this process by default.

    Returns: None where there is no home.

    Raises ConfigError: the variable names a user who is not there.
    """
    known = os.environ if environment is None else environment
    if asked := known.get(variable):
        try:
            return Path(expand(asked)).absolute()
        except ValueError as error:
            raise ConfigError(f"{variable}: {error}") from None
    caches = known.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(caches):
        home = os.path.expanduser("~") if environment is None else known.get("HOME", "")
        if not os.path.isabs(home):
            return None
        caches = os.path.join(home, ".cache")
    return Path(caches) / "prunejax" / folder


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.
    Raises ValueError: it is no JSON, or JSON of another type; the text names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object but {json.dumps(content)[:40]}")
    return content


# What NumPy and zipfile raise of archives with a flipped bit or cut short; RuntimeError where the
# bit says "encrypted" or names another way of compression.
_DAMAGED = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@contextmanager
def arrays(path: Path, told: Callable[[str], Exception] | None = None) -> Iterator[Any]:
    """The arrays of an `.npz` file by name, each read when it is asked for, inside.

    Args:
      path: the file.
      told: the error to raise, of what is wrong. None: that of a file of a study.

    Raises WorkdirError: the file is missing or damaged.
    """
    import numpy as np  # late: the command line answers without it

    try:
        with path.open("rb") as file:  # by path NumPy leaves it open
            saved = np.load(file)
            if not isinstance(saved, np.lib.npyio.NpzFile):
                raise ValueError("one array of np.save, no archive of np.savez")
            yield saved
    except _DAMAGED as error:
        what = " ".join(str(error).split())
        if told is not None:
            raise told(what) from error
        raise WorkdirError(
            f"{path} cannot be read ({what}): it was changed or damaged. Restore it, or repeat "
            "the study in a new workdir"
        ) from error


def cell(value: object) -> str:
    """One value as CSV text: floats in their shortest exact form, NaN and None empty.
    Raises ValueError: the value is an array of more than one element.
    """
    kind = ""  # of a number of NumPy or JAX
    shape = getattr(value, "shape", None)
    if shape is not None:
        if math.prod(shape) != 1:
            raise ValueError(f"a table cell is one number, not an array of shape {shape}")
        import numpy as np  # late: the command line answers without it

        value = np.asarray(value).reshape(())[()]
        kind = value.dtype.kind
    if value is None:
        return ""
    if isinstance(value, bool) or kind == "b":
        return "true" if value else "false"
    if isinstance(value, int) or kind in ("i", "u"):
        return str(int(value))  # type: ignore[call-overload]
    if isinstance(value, float) or kind == "f":
        return "" if value != value else str(value)
    return " ".join(str(value).split())


def save_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes a whole CSV table, atomically; its columns are those of the first row."""
    lines = [",".join(rows[0])] + [",".join(map(cell, row.values())) for row in rows]
    content = ("\n".join(lines) + "\n").encode()
    replace(path, lambda file: file.write(content))


def plain_name(text: str) -> str:
    """`text` as a file name: anything but letters, digits and `._+=-` becomes "_"."""
    return re.sub(r"^\.|[^\w.+=-]", "_", text) or "_"


def target(output: str | os.PathLike[str]) -> Path:
    """The file that a command is to write, judged before its work.

    Raises:
      ConfigError: it is a directory, or there is none to write it into.
      ValueError: there is no such user (a path that begins with "~").
    """
    path = Path(expand(output))
    if path.is_dir():
        raise ConfigError(f"--output={path}: a directory; name a file")
    if not path.parent.is_dir():
        raise ConfigError(f"--output={path}: there is no folder {path.parent}")
    return path


def folder(path: Path) -> None:
    """Makes a directory and those above it.
    Raises OSError: it cannot be made; where a file or a broken link is in the way, that is named.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        for part in (path, *path.parents):
            if part.is_symlink() and not part.exists():
                error.filename, error.strerror = str(part), "a link that leads nowhere"
            elif part.exists() and not part.is_dir():
                error.filename, error.strerror = str(part), "a file, not a directory"
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError into a RecordError that names the file and the way out."""
    try:
        yield
    except OSError as error:
        raise RecordError(
            error.errno or errno.EIO,
            f"cannot write {path}: {error.strerror or error}. Earlier records are intact; make "
            "room or repair the directory and give the same command again to continue",
        ) from error


def replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file beside `path` and moves it there, so that `path` is never half written.

    Args:
      path: the file; its directory is made, unless the one above is not there, either.
      write: puts the content into the open binary file it is given.

    Raises RecordError: the file cannot be written.
    """
    with writing(path):
        path.parent.mkdir(exist_ok=True)  # no parents: a removed run directory stays removed
        handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                # before the move: a crash leaves the old file or the whole new one
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # `mkstemp` lets the owner alone read
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def append(path: Path, content: bytes) -> None:
    """Adds bytes to an existing file and waits until they are on disk: all of them or none.
    Raises RecordError: the file cannot be written; it is as long as before.
    """
    with writing(path):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND)
        before = os.fstat(handle).st_size  # what a failed write is cut back to
        try:
            written = 0
            while written < len(content):
                # a write may take fewer bytes than it is given
                written += os.write(handle, content[written:])
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, before)
            raise
        finally:
            os.close(handle)


def save_json(path: Path, content: object) -> None:
    """Writes standard JSON (no NaN: give None) with the keys in the order they have."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    replace(path, lambda file: file.write(text.encode()))


class LockedError(RuntimeError):
    """Another process holds the lock; the text names it."""


def acquire(path: Path) -> IO[str]:
    """Opens a lock file and holds it until the file is closed or the process ends, however.
    Raises LockedError: it is held already; the text is what the holder wrote into it.
    """
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            warnings.warn(
                f"this file system has no locks ({error.strerror}): nothing keeps a second "
                f"process out of {path.parent}",
                stacklevel=2,
            )
            return lock
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise LockedError(holder) from None
    lock.truncate(0)  # held now: the name of the last holder may go
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    return lock


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the run directory `path`; ConfigError if a study does."""
    try:
        lock = acquire(path / ".lock")
    except LockedError as holder:
        raise ConfigError(f"{path} is in use by {holder}; wait for it") from None
    with lock:
        yield
