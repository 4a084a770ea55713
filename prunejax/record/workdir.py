"""Whether a path may be, or is, the run directory of a study: looks, and writes nothing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any

from prunejax.errors import WorkdirError
from prunejax.record import listing
from prunejax.system.files import read_object

# What may stand in a directory that is not yet a run directory: traces of a start that was
# interrupted before `config.json` was written, shards, and what launch scripts put there.
_HARMLESS = {".lock", listing.KNOWN, "environment.json", "logs", "shards"}

# What parts of a run directory's JSON files have to be.
_PARTS: dict[str, dict[str, type]] = {
    "config.json": {"variants": dict, "report": dict, "measures": dict, "prune": dict},
    "study.json": {"variants": dict, "runs": list, "here": list},
    "environment.json": {"packages": dict, "devices": list, "continued": list},
    "times.json": dict.fromkeys(("wall_seconds", "devices", "device_seconds"), Number)
    | {"begun": str, "ended": str},
}


def read_record(path: Path) -> dict[str, Any]:
    """A JSON file of a run directory.
    Raises ValueError: it is no JSON object, or a part of it of another type; names the file.
    """
    content = read_object(path)
    for name, kind in _PARTS.get(path.name, {}).items():
        if name in content and not isinstance(content[name], kind):
            raise ValueError(f"{path}: {name!r} is {content[name]!r:.40}, not a {kind.__name__}")
    return content


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The fields in which two nested configs differ, as "field: theirs -> ours"."""
    found = []
    for key in sorted(set(theirs) | set(ours)):
        name = prefix + str(key)
        a, b = theirs.get(key, "(absent)"), ours.get(key, "(absent)")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, name + ".")
        elif a != b or isinstance(a, bool) != isinstance(b, bool):  # True == 1
            found.append(f"{name}: {a!r} -> {b!r}")
    return found


def check(
    path: Path,
    config: Mapping[str, Any],
    tables: Mapping[str, Sequence[str]],
    ignore: Sequence[str],
) -> None:
    """Refuses a path that must not be written to; writes nothing itself.

    Args: as of `RunDirectory.open`.

    Raises WorkdirError: it is a file, or holds something else or another config, or its runs are
    there already in parts of another size.
    """
    if path.exists() and not path.is_dir():
        raise WorkdirError(f"workdir {path} is a file; name a directory")
    if not (path / "config.json").exists():
        whole, own, parts = _parts(path)
        undivided(whole, own, parts, lambda name: (whole / name / "config.json").exists())
        if not path.is_dir():
            return
        known = _HARMLESS | {f"{name}.csv" for name in tables if _has_no_rows(path, name)}
        names = sorted(entry.name for entry in path.iterdir())
        foreign = [name for name in names if name not in known and not name.startswith(".tmp-")]
        if foreign:
            raise WorkdirError(
                f"workdir {path} is not empty and no run directory (it holds {foreign[0]!r}"
                f"{', ...' if len(foreign) > 1 else ''}); name an empty or new directory"
            )
        return
    try:
        theirs = read_object(path / "config.json")
    except ValueError as error:
        raise WorkdirError(f"{error}; restore it, or name another workdir") from error
    differing = [
        line
        for line in differences(theirs, config)
        if not line.startswith(tuple(f"{name}{end}" for name in ignore for end in ":."))
    ]
    if differing:
        more = [f"... and {len(differing) - 20} more"] if len(differing) > 20 else []
        raise WorkdirError(
            f"workdir {path} holds another config (field: there -> here): "
            + "; ".join(differing[:20] + more)
            + ". Name another workdir, or give the config it was made with"
        )


def undivided(whole: object, own: str, parts: Iterable[str], begun: Callable[[str], bool]) -> None:
    """A workdir holds one study whole, or all of its shards: each run once, for one page.

    Args:
      whole: the workdir, as it is told.
      own: the part that is to begin: "", or "shards/1-of-2".
      parts: those that may be there.
      begun: whether a part is.

    Raises WorkdirError: a part of another size is there.
    """
    if begun(own):
        return
    for name in parts:
        if name.partition("-of-")[2] != own.partition("-of-")[2] and begun(name):
            shard = name.rpartition("/")[2].replace("-of-", "/")
            raise WorkdirError(
                f"workdir {whole} holds {f'shard {shard}' if name else 'the whole study'}, and its "
                "runs would be there twice; give the --shard that it was begun with, or name "
                "another workdir"
            )


def _parts(path: Path) -> tuple[Path, str, list[str]]:
    """Of a run directory the workdir, which part of it that is, and the parts beside it."""
    index, of, _ = path.name.partition("-of-")
    is_shard = path.parent.name == listing.SHARDS and index.isdigit() and bool(of)
    whole = path.parents[1] if is_shard else path
    shards = sorted(f"{listing.SHARDS}/{p.name}" for p in (whole / listing.SHARDS).glob("*-of-*"))
    return whole, f"{listing.SHARDS}/{path.name}" if is_shard else "", ["", *shards]


def _has_no_rows(path: Path, table: str) -> bool:
    file = path / f"{table}.csv"
    return file.is_file() and file.read_bytes().count(b"\n") <= 1
