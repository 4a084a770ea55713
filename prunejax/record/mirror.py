"""A run directory whose home is a URL (`gs://`, `s3://`, ...): a copy on this machine, sent there.

Stores cannot append, and nothing there can be locked: a study works in its copy, `Mirror.push`
sends what stands, `Mirror.fetch` brings what was sent. What is there is what `mirror.json` lists,
with digests. It is written between the files that it lists and their predecessors' end:

    1. files of new names, and those that replace others as `.staged/DIGEST`
    2. `mirror.json`, in one piece: from here on the new state is the one that is there
    3. what was staged goes to its name, `status.json` last; what is listed no longer goes

An end at any moment leaves the state before or the one after: a file that is not yet as listed
under its name is still staged.
"""

import errno
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from prunejax.errors import ConfigError, RecordError, WorkdirError
from prunejax.record import listing
from prunejax.system import files, optional

VARIABLE = "PRUNEJAX_WORKDIRS"
LIST, STAGED, STATUS = "mirror.json", ".staged", "status.json"
_TRIES = 3  # to read a state while others are being written


class Mirror:
    """A run directory behind a URL and its copy, `path`; one machine at a time may write."""

    def __init__(self, url: str | os.PathLike[str], part: str = "") -> None:
        """Reaches nothing yet.

        Args:
          url: of the workdir, as fsspec knows them.
          part: the run directory of a shard below it.

        Raises:
          ConfigError: fsspec, or what it needs for this scheme, is missing; no place for copies.
        """
        base = os.fspath(url).rstrip("/")
        self.url = f"{base}/{part}" if part else base
        fsspec = optional.need(f"workdir {base}", "fsspec")
        self._is_local = fsspec.utils.get_protocol(base) in ("file", "local")
        if fsspec.core.split_protocol(base)[0] is None:  # else it is taken for a path
            raise ConfigError(f"workdir {base}: no scheme stands before '://', as in gs://bucket/x")
        options = {"auto_mkdir": True} if self._is_local else {}
        with self._reaching("reach"):
            try:
                self._fs, self._root = fsspec.core.url_to_fs(self.url, **options)
            except (ImportError, ValueError) as error:
                raise ConfigError(f"workdir {base}: {error}; or mount it and name a path") from None
        home = files.cache(VARIABLE, "workdirs")
        if home is None:
            raise ConfigError(f"no home for copies of remote workdirs; name one by {VARIABLE}")
        home /= hashlib.sha256(base.encode()).hexdigest()[:12]
        self.root = home / files.plain_name(base.rpartition("/")[2])
        self.path = self.root / part
        self._memory = self.path / listing.KNOWN
        self._here = listing.Listing(self.path)

    @property
    def is_finished(self) -> bool:
        """Whether the study in the copy is."""
        return (self.path / STATUS).exists()

    def shards(self) -> list[str]:
        """The parts that are there."""
        with self._reaching("read"):
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(f"{self._root}/{listing.SHARDS}", detail=False)
            except FileNotFoundError:
                return []
            return [
                f"{listing.SHARDS}/{name.rstrip('/').rpartition('/')[2]}" for name in sorted(found)
            ]

    def has(self, part: str) -> bool:
        """Whether a study was begun there in a part; "": the whole workdir."""
        with self._reaching("read"):
            return bool(self._fs.exists("/".join(filter(None, (self._root, part, "config.json")))))

    # -- from there ---------------------------------------------------------------------------

    def begun(self) -> Path:
        """The copy of the whole workdir, with this part as it was left."""
        self.fetch()
        return self.root

    def fetch(self) -> Path:
        """Brings the copy to the state that is there, unless it is from here that this was sent.

        The copy may then be ahead, by what could not be sent; so it stays. A copy that a study
        here is working on is left alone, too.

        Returns: The copy, which is not there if nothing is at the URL.

        Raises:
          RecordError: it cannot be read.
          WorkdirError: what was there is gone, or was changed by others.
        """
        with self._reaching("read"):
            for _ in range(_TRIES):
                there, known = self._there(), self._known()
                if there == known is not None:
                    return self.path
                if there is None and known is not None:
                    raise WorkdirError(
                        f"workdir {self.url}: what was sent there is gone; remove the copy "
                        f"{self.path} to start over, or name another workdir"
                    )
                listed = self._plain() if there is None else there["files"]
                if not listed and not self.path.exists():
                    return self.path
                if self._bring(listed, there):
                    return self.path
        raise WorkdirError(
            f"workdir {self.url}: files are not as {LIST} lists them: another process is writing "
            "there, or they were changed. Try again, restore them, or name another workdir"
        )

    def _bring(self, listed: listing.Listed, there: dict[str, Any] | None) -> bool:
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            lock = files.acquire(self.path / ".lock")
        except files.LockedError:
            return True
        with lock:
            self._memory.unlink(missing_ok=True)  # until all is here, it is a copy of no state
            here = self._here.read()
            for name, facts in listed.items():
                if here.get(name) != facts and not self._get(name, facts):
                    return False
            if there is None:
                return True
            for name in here.keys() - listed.keys():
                (self.path / name).unlink()
            for folder in sorted(self.path.glob("checkpoints/**/"), reverse=True):
                if not any(folder.iterdir()):  # one left over would look like a damaged checkpoint
                    folder.rmdir()
            self._remember(there)
        return True

    def _get(self, name: str, facts: list[Any]) -> bool:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(".tmp-fetched")
        for source in (name, f"{STAGED}/{facts[1]}"):
            with suppress(FileNotFoundError):
                self._fs.get_file(f"{self._root}/{source}", str(temporary))
                # [-1, ""]: copied there by other means, of which nothing is known.
                if facts == [-1, ""] or listing.facts(temporary) == facts:
                    os.replace(temporary, target)
                    return True
        temporary.unlink(missing_ok=True)
        return False

    def _plain(self) -> listing.Listed:
        """The files of a run directory that was copied there by other means."""
        if not self._fs.exists(f"{self._root}/config.json"):
            return {}
        names = [name[len(self._root) :].strip("/") for name in self._fs.find(self._root)]
        return {name: [-1, ""] for name in names if name.split("/")[0] not in listing.OWN}

    # -- to there -----------------------------------------------------------------------------

    def claim(self) -> None:
        """Makes sure, before anything is trained, that this can be written; completes a `push`.
        Raises RecordError: it cannot.
        """
        with self._reaching("write to"):
            there = self._there()
            if there is None:
                there = self._put_list(self._here.read() if self._plain() else {})
            listed = there["files"]
            with suppress(FileNotFoundError):
                staged = self._fs.ls(f"{self._root}/{STAGED}", detail=False)
                self._settle(listed, {name.rpartition("/")[2] for name in staged})
            with suppress(FileNotFoundError):  # of a push that did not come to its end
                for name in self._fs.find(f"{self._root}/checkpoints"):
                    if name[len(self._root) :].strip("/") not in listed:
                        self._fs.rm_file(name)

    def push(self) -> None:
        """Sends what stands in the copy: all of it or, to whoever reads there, nothing.

        Raises:
          RecordError: it cannot be written; the copy here is whole. Or somebody else wrote there.
        """
        with self._reaching("write to"):
            there = self._there()
            if there != self._known():
                raise RecordError(
                    errno.EBUSY,
                    f"workdir {self.url} was written to by {(there or {}).get('by', 'others')} "
                    "while this process used it: only one may. End the other one; the same "
                    "command then continues from what is there",
                )
            before, listed = (there or {"files": {}})["files"], self._here.read()
            if there is not None and before == listed:
                return
            staged = set()
            for name, facts in listed.items():
                if before.get(name) != facts:
                    # The status last, also where it is new: it says that all else is there.
                    replaces = name in before or name == STATUS
                    target = f"{STAGED}/{facts[1]}" if replaces else name
                    self._fs.put_file(str(self.path / name), f"{self._root}/{target}")
                    staged |= {facts[1]} if replaces else set()
            self._put_list(listed)
            self._settle(listed, staged)
            # After the list: until then these are the state there.
            for name in before.keys() - listed.keys():
                self._remove(name)

    def _put_list(self, listed: listing.Listed) -> dict[str, Any]:
        number = (self._known() or {}).get("number", 0) + 1
        by = f"process {os.getpid()} on {socket.gethostname()}"
        there = {"number": number, "by": by, "files": listed}
        name = f"{self._root}/{LIST}"
        whole = f"{name}.new" if self._is_local else name  # stores write nothing by halves
        self._fs.pipe_file(whole, json.dumps(there, indent=1).encode())
        if whole != name:
            self._fs.mv(whole, name)
        self._remember(there)
        return there

    def _settle(self, listed: listing.Listed, staged: set[str]) -> None:
        for name in sorted(listed, key=lambda name: name == STATUS):
            if listed[name][1] in staged:
                self._fs.cp_file(f"{self._root}/{STAGED}/{listed[name][1]}", f"{self._root}/{name}")
        for digest in staged:
            self._remove(f"{STAGED}/{digest}")

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}")

    # -- what is where ------------------------------------------------------------------------

    def _there(self) -> dict[str, Any] | None:
        """The content of `mirror.json`, None if there is none."""
        self._fs.invalidate_cache()
        try:
            found = json.loads(self._fs.cat_file(f"{self._root}/{LIST}"))
            names = [PurePosixPath(name) for name in found["files"]]
            if any(name.is_absolute() or ".." in name.parts for name in names):
                raise ValueError
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, LookupError):
            raise WorkdirError(
                f"{self.url}/{LIST} is not what this program writes: it was changed. Restore it, "
                "or start over in a new workdir"
            ) from None
        return found

    def _known(self) -> dict[str, Any] | None:
        """The last state there that the copy was brought to, or that was sent from it."""
        with suppress(OSError, ValueError):
            return files.read_object(self._memory)
        return None

    def _remember(self, there: dict[str, Any]) -> None:
        files.save_json(self._memory, there)

    @contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        """Each store raises errors of its own kinds: one line of ours instead."""
        try:
            yield
        except (ConfigError, RecordError, WorkdirError):
            raise
        except Exception as error:
            text = str(error).strip().split("\n")[0][:200]
            copy = getattr(self, "path", None)
            rest = f". The copy in {copy} is whole: the same command continues" if copy else ""
            raise RecordError(
                errno.EIO, f"cannot {what} {self.url}: {type(error).__name__}: {text}{rest}"
            ) from error
