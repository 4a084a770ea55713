"""The files of a run directory that are sent to where its URL says, with their digests."""

import hashlib
from pathlib import Path
from typing import Any

SHARDS = "shards"
KNOWN = ".mirror.json"  # which state at the URL the directory is a copy of
# Never sent: what belongs to this machine, shards (run directories of their own), and what trackers
# write while a study goes on; they have places of their own to send it to.
OWN = (".lock", KNOWN, SHARDS, "wandb", "mlruns")
Listed = dict[str, list[Any]]  # name -> [size in bytes, SHA-256]


class Listing:
    """What a directory holds, temporary files left out."""

    def __init__(self, path: Path) -> None:
        """Reads nothing yet."""
        self._path = path
        self._seen: dict[str, tuple[Any, list[Any]]] = {}

    def read(self) -> Listed:
        """All files; those that have not changed since are not read again."""
        found: Listed = {}
        for file in sorted(self._path.rglob("*")):
            name = file.relative_to(self._path)
            is_kept = name.parts[0] not in OWN and not any(
                word.startswith((".tmp-", "tmp-")) for word in name.parts
            )
            if is_kept and file.is_file() and not file.is_symlink():
                stat = file.stat()
                # The inode: what replaced it within a tick of the clock may have its size and time.
                key = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
                known = self._seen.get(name.as_posix())
                if known is None or known[0] != key:
                    known = self._seen[name.as_posix()] = key, facts(file)
                found[name.as_posix()] = known[1]
        return found


def facts(file: Path) -> list[Any]:
    """[size in bytes, SHA-256] of a file."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return [file.stat().st_size, digest]
