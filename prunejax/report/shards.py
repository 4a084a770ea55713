"""Run directories of one study: their names on a page, their order, and which are missing."""

import os
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunejax.report.results import Row

# Fields of a config that may differ between directories without making them different studies.
_SAME_STUDY = ("seeds", "first_seed", "name", "report", "population", "checkpoint")


def shown(paths: Sequence[Path]) -> dict[Path, str]:
    """What directories are called on a page: by their place below what they have in common."""
    common = top(paths)
    places = {path: path.resolve() for path in paths}
    return {p: str(q.relative_to(common)) if q != common else q.name for p, q in places.items()}


def top(paths: Sequence[Path]) -> Path:
    """The folder that all directories lie in."""
    whole = [path.resolve() for path in paths]
    return Path(os.path.commonpath(whole)) if len(whole) > 1 else whole[0].parent


def missing_shards(directories: Sequence[Path], studies: Sequence[Hashable]) -> list[str]:
    """The shards "i-of-n", i from 1, that the directories' names promise and that are not there.

    Args:
      directories: shards, and others.
      studies: of each directory, equal for the shards of one study, which may lie anywhere.
    """
    groups: dict[tuple[Hashable, int], dict[int, Path]] = {}
    for path, study in zip(directories, studies, strict=True):
        name = re.fullmatch(r"(\d+)-of-(\d+)", path.name)
        if name:
            groups.setdefault((study, int(name[2])), {})[int(name[1])] = path.parent
    missing = []
    for (_, count), there in groups.items():
        parents = set(there.values())
        where = parents.pop() if len(parents) == 1 else Path()
        names = (f"{index}-of-{count}" for index in range(1, count + 1) if index not in there)
        missing += [str(where / name) for name in names]
    return missing


def distinct(configs: Sequence[Mapping[str, Any]]) -> list[int]:
    """For each config the number of the first one that is the same study."""
    stripped = [{k: v for k, v in config.items() if k not in _SAME_STUDY} for config in configs]
    return [next(i for i, other in enumerate(stripped) if other == own) for own in stripped]


def collide(
    paths: Sequence[Path], tables: Mapping[Path, Mapping[str, list[Row]]], kinds: Sequence[int]
) -> bool:
    """True if a label means different things in two directories (the same run id twice)."""
    owner: dict[str, int] = {}
    for path, kind in zip(paths, kinds, strict=True):
        for row in [*tables[path]["runs"], *tables[path]["epochs"]]:
            if owner.setdefault(row["run"], kind) != kind:
                return True
    return False
