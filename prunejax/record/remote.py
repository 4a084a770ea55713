"""Run directories that are named by a URL: what commands do with them besides `record.mirror`."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from prunejax.errors import ConfigError, ReportError
from prunejax.record.listing import SHARDS
from prunejax.record.mirror import Mirror
from prunejax.record.workdir import undivided
from prunejax.system import files


def is_remote(workdir: str | os.PathLike[str]) -> bool:
    """Whether a run directory is named by a URL."""
    return "://" in os.fspath(workdir)


def part(index: int, count: int) -> str:
    """Where below its workdir shard `index` (from 1) of `count` has its run directory.
    Raises ConfigError: there is no such shard.
    """
    if not 1 <= index <= count:
        raise ConfigError(f"--shard={index}/{count}: write i/n with i from 1 to n")
    return f"{SHARDS}/{index}-of-{count}" if count > 1 else ""


def mirror(
    workdir: str | os.PathLike[str], index: int, count: int, processes: int
) -> Mirror | None:
    """What sends a study's run directory to the URL that is its workdir; None: it is a path.

    Args:
      workdir: of the study.
      index, count: of the shard, from 1.
      processes: of the one study, or shard.

    Raises:
      ConfigError: as of `Mirror`, or there are several processes.
      WorkdirError: as of `undivided`.
      RecordError: it cannot be read.
    """
    if not is_remote(workdir):
        return None
    if processes > 1:
        raise ConfigError(
            f"workdir {os.fspath(workdir)}: {processes} processes of one study write into one "
            "directory; mount the bucket and name that path, or split the study by --shard"
        )
    whole = Mirror(workdir)
    # The copy here knows of no part that another machine has begun.
    undivided(whole.url, part(index, count), ["", *whole.shards()], whole.has)
    return Mirror(workdir, part(index, count))


def fetched(workdir: str | os.PathLike[str]) -> Path:
    """A run directory to read: of a URL the copy here, brought up to date, with its shards.

    Raises:
      ReportError: nothing is there, or no such user (`~user`).
      ConfigError, RecordError: as of `Mirror`.
    """
    if not is_remote(workdir):
        try:
            return Path(files.expand(workdir))
        except ValueError as error:
            raise ReportError(str(error)) from None
    whole = Mirror(workdir)
    for mirror in (whole, *(Mirror(workdir, name) for name in whole.shards())):
        mirror.fetch()
    if not whole.path.is_dir():
        raise ReportError(f"{whole.url}: nothing is there; name the --workdir of a study")
    return whole.path


def find(directories: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The run directories named or held in `shards/` of those named, each once, in order.

    Raises:
      ReportError: no run directory is there.
      ConfigError, RecordError: as of `fetched`.
    """
    found: dict[Path, Path] = {}
    for directory in map(fetched, directories):
        parts = sorted((directory / SHARDS).glob("*/config.json"), key=_shard_order)
        here = [directory] if (directory / "config.json").exists() else []
        if not here and not parts:
            what = "no run directory (no config.json)" if directory.is_dir() else "no directory"
            raise ReportError(f"{directory} is {what}; name the --workdir of a study")
        for path in [*here, *(shard.parent for shard in parts)]:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _shard_order(path: Path) -> tuple[int, str]:
    """Sorts `shards/I-of-N/config.json` by I; other names first."""
    index = re.match(r"\d+", path.parent.name)
    return (int(index[0]) if index else -1, path.parent.name)


def publish(workdir: str | os.PathLike[str]) -> None:
    """Sends what was added to the copy of a finished study: a page, measures.

    Nothing of one that runs: what it sends next would no longer follow what is there.
    """
    if not is_remote(workdir):
        return
    whole = Mirror(workdir)
    parts = sorted(p.relative_to(whole.path) for p in whole.path.glob(f"{SHARDS}/*"))
    for mirror in (whole, *(Mirror(workdir, name.as_posix()) for name in parts)):
        unfinished = (mirror.path / "config.json").exists() and not mirror.is_finished
        if not unfinished and mirror.path.is_dir():
            mirror.push()
