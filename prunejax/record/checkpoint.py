"""Checkpoints of a chunk of members: orbax, newest undamaged one wins, damage is reported."""

import dataclasses
import errno
import functools
import importlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from prunejax.cluster import distributed
from prunejax.errors import RecordError, WorkdirError
from prunejax.record import listing
from prunejax.system import files

Tree = Any
MANIFEST = "manifest.json"  # size and SHA-256 of every other file; written last


def load() -> Any:
    """`orbax.checkpoint`: late, for it takes long to import; studies do while they train."""
    return importlib.import_module("orbax.checkpoint")


@dataclasses.dataclass(frozen=True)
class Restored:
    """What was found: `states` is None if every checkpoint there was is damaged."""

    states: Tree
    facts: dict[str, Any]  # what `save` was given beside the states
    damaged: list[str]  # newer checkpoints that are damaged, with the reason


class Checkpoints:
    """The checkpoints of one chunk, in one directory, numbered by `save`'s order.

    With several processes, each of them makes every call; the directory is the same for all.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        """Args: directory: made by `save`, with the one above. keep: how many of the newest."""
        self.directory, self.keep = Path(directory).absolute(), keep

    def numbers(self) -> list[int]:
        """The numbers of complete (and perhaps damaged) checkpoints, ascending."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit())

    def save(self, states: Tree, facts: dict[str, Any]) -> None:
        """Writes states and facts under the next number, then drops the oldest ones.

        The directory appears under its number when it is complete and on disk (one rename), so
        that an end at any moment leaves the earlier ones as they were.

        Raises RecordError: it cannot be written; earlier checkpoints are intact.
        """
        number = distributed.on_main(self._begin)
        temporary = self.directory / f"tmp-{number}"
        if jax.process_count() == 1:  # of host arrays orbax makes half the work
            states = jax.device_get(states)
        try:
            with _silent(), load().StandardCheckpointer() as checkpointer:
                checkpointer.save(temporary / "states", states)
                checkpointer.wait_until_finished()
        except Exception as error:  # orbax raises many kinds, not all of them OSError
            if distributed.lost_peer(error):  # the next start may be writing here already
                raise
            if jax.process_count() == 1:  # others still write into it; the next `save` removes it
                shutil.rmtree(temporary, ignore_errors=True)
            raise RecordError(
                getattr(error, "errno", None) or errno.EIO,
                f"cannot write a checkpoint into {self.directory}: {_reason(error)}. Earlier "
                "checkpoints are intact; make room or repair the directory and give the same "
                "command again to continue",
            ) from error
        digests: dict[str, list[Any]] = {}
        # Each process flushes what it wrote before the manifest vouches for it.
        for found in distributed.on_all(lambda: _digests(temporary)):
            digests |= found
        distributed.on_main(lambda: self._complete(number, facts, digests))

    def _begin(self) -> int:
        with files.writing(self.directory):
            for path in (self.directory.parent, self.directory):
                path.mkdir(exist_ok=True)  # no parents: a removed run directory stays removed
            for leftover in self.directory.glob("tmp-*"):
                shutil.rmtree(leftover)
        return (self.numbers() or [0])[-1] + 1

    def _complete(self, number: int, facts: dict[str, Any], digests: dict[str, list[Any]]) -> None:
        """Args: digests: of the files of the states, see `_digests`."""
        temporary, final = self.directory / f"tmp-{number}", self.directory / str(number)
        with files.writing(final):
            text = json.dumps(facts)  # with NaN, which standard JSON has not
            files.replace(temporary / "facts.json", lambda file: file.write(text.encode()))
            digests["facts.json"] = _digest(temporary / "facts.json")
            files.save_json(temporary / MANIFEST, digests)
            temporary.rename(final)  # from here on it counts
            for old in self.numbers()[: -self.keep]:
                leaving = self.directory / f"tmp-{old}"  # half a removal must not look complete
                (self.directory / str(old)).rename(leaving)
                shutil.rmtree(leaving)

    def restore(self, like: Tree) -> Restored | None:
        """The newest undamaged checkpoint, None if there is none of any kind.

        Damaged ones are set aside as `damaged-N`, so that they count no longer.

        Args: like: tree of arrays or shapes (with shardings) as was saved.

        Raises RecordError: a checkpoint is as it was written and cannot be read here.
        """
        number, facts, damaged = self._newest()
        if number is None:
            return Restored(None, {}, damaged) if damaged else None
        abstract = jax.tree.map(load().utils.to_shape_dtype_struct, like)
        path = self.directory / str(number)
        try:
            with _silent(), load().StandardCheckpointer() as checkpointer:
                states = checkpointer.restore(path / "states", abstract)
        except Exception as error:
            if distributed.lost_peer(error):
                raise
            raise RecordError(
                errno.EIO,
                f"checkpoint {path} is as it was written, but cannot be read: {_reason(error)}. "
                "Continue with the version that wrote it, or remove the directory above it to "
                "train its runs anew",
            ) from error
        return Restored(states, facts, damaged)

    def facts(self) -> dict[str, Any]:
        """What the newest one was given beside its states; only the sizes of these are looked at.
        Raises WorkdirError: there is none, or it is damaged.
        """
        try:
            path = self.directory / str(self.numbers()[-1])
            written = json.loads((path / MANIFEST).read_text())
            whole = written["facts.json"] == listing.facts(path / "facts.json")
            if whole and all((path / n).stat().st_size == f[0] for n, f in written.items()):
                found: dict[str, Any] = json.loads((path / "facts.json").read_text())
                return found
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            pass  # refused below, as what is not whole
        raise WorkdirError(
            f"{self.directory} holds no whole states any more: lost or damaged since they were "
            "saved. Restore it, or start over in a new workdir"
        )

    def _newest(self) -> tuple[int | None, dict[str, Any], list[str]]:
        damaged: list[str] = []
        for number in reversed(distributed.on_main(self.numbers)):  # the newest first
            path = self.directory / str(number)
            reasons = distributed.on_all(functools.partial(_damage, path))
            reason = next((found for found in reasons if found is not None), None)
            if reason is None:
                text = distributed.on_main((path / "facts.json").read_text)
                return number, json.loads(text), damaged
            damaged.append(f"{path}: {reason}")
            distributed.on_main(functools.partial(self._set_aside, path))
        return None, {}, damaged

    def _set_aside(self, path: Path) -> None:
        aside = self.directory / f"damaged-{path.name}"
        shutil.rmtree(aside, ignore_errors=True)
        with files.writing(aside):
            path.rename(aside)

    def clear(self) -> None:
        """Removes them all (the chunk is finished)."""
        distributed.on_main(lambda: shutil.rmtree(self.directory, ignore_errors=True))


def _own(name: str) -> bool:
    """Whether this process hashes a file: those that it wrote, process 0 what is of nobody.

    Orbax keeps what process i writes in `ocdbt.process_i` and `array_metadatas/process_i`. Fewer
    processes than wrote share the files in turn.
    """
    writer = re.search(r"\bprocess_(\d+)(?:/|$)", name)
    return (int(writer[1]) if writer else 0) % jax.process_count() == jax.process_index()


def _digests(directory: Path) -> dict[str, list[Any]]:
    """Relative path -> [size in bytes, SHA-256] of this process's files, once they are on disk."""
    found = {}
    with files.writing(directory):
        for path in sorted(directory.rglob("*")):
            name = path.relative_to(directory).as_posix()
            if _own(name) and path.is_file():
                found[name] = _digest(path)
    return found


def _digest(path: Path) -> list[Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())  # flushes what others wrote into the file, too
    return listing.facts(path)


def _damage(directory: Path) -> str | None:
    """What is wrong with this process's files of a checkpoint, None: they are as written."""
    try:
        written = json.loads((directory / MANIFEST).read_text())
        if "facts.json" not in written:  # the file that is added last
            return f"{MANIFEST} is not whole"
        for name, (size, digest) in written.items():
            path = directory / name
            if not _own(name):
                continue
            if not path.is_file():
                return f"{name} is missing"
            there, found = listing.facts(path)
            if there != size:
                return f"{name} has {there} bytes instead of {size}"
            if found != digest:  # size alone would not see a flipped bit
                return f"{name} was changed"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {_reason(error)}"
    return None


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps orbax from printing stack traces of the errors that it raises as well.

    After a failure it stays silent: other arrays are still being written, fail in their threads,
    and call back into a loop that has ended.
    """
    logger, show = logging.getLogger("absl"), sys.unraisablehook
    before = logger.level
    logger.setLevel(logging.CRITICAL)

    def hook(found: Any) -> None:
        if str(found.exc_value) != "Event loop is closed":
            show(found)

    sys.unraisablehook = hook
    yield
    sys.unraisablehook = show
    logger.setLevel(before)


def _reason(error: BaseException) -> str:
    code = re.search(r"os_error_code='(\d+)'", str(error))  # what orbax's writer ends its text with
    if code:
        return os.strerror(int(code[1]))
    text = str(error).strip().split("\n")[0][:200].rstrip(".: ")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
