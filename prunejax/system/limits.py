"""What this process may take of its host: cores, and memory by the system, groups and ulimit.

Every function of memory reads below a `root`, `/` by default, so that a made-up tree can stand for
another machine.
"""

import os
import re
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

from prunejax.errors import ConfigError

ROOT = Path("/")
# Addresses that JAX takes on two cores until it has compiled its first program. With less, threads
# of its compiler cannot start, and the process is killed without a word that says why.
LEAST_ADDRESSES = 1.5e9
# Of the two versions of control groups: the limits, what is used, and what of it is cache that
# goes when there is need.
_FILES = {
    "cgroup2": (("memory.max", "memory.high"), "memory.current", "inactive_file"),
    "cgroup": (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_host_memory(root: Path = ROOT, rlimits: Mapping[str, int] | None = None) -> float:
    """Bytes that this process may still take: the smallest of all limits less what is used.

    Args:
      root: of the file system.
      rlimits: "AS" and "DATA" in bytes, those of this process by default; -1: none.
    """
    available = _fields(root / "proc/meminfo").get("MemAvailable")
    free = [] if available is None else [available]
    free += [*_groups(root), *_process(root, rlimits)]
    if not free and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        free.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    return max(0.0, min(free, default=float("inf")))


def check_addresses(limit: int | None = None) -> None:
    """Refuses a `ulimit -v` under which JAX cannot start.

    Args: limit: in bytes, that of this process by default; -1: none.

    Raises ConfigError: it is below `LEAST_ADDRESSES`.
    """
    if limit is None:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if 0 <= limit < LEAST_ADDRESSES:
        raise ConfigError(
            f"ulimit -v {limit // 1024}: JAX needs {LEAST_ADDRESSES / 1024:,.0f} kB of addresses "
            "before any study; raise it, or limit memory by a control group instead"
        )


def resident(root: Path = ROOT) -> float:
    """Bytes of memory that this process holds now; 0 where the system does not tell."""
    return _fields(root / "proc/self/status").get("VmRSS", 0.0)


def mapped(root: Path = ROOT) -> float:
    """The share of the memory mappings it may have (65,530 by Linux's default) that this process
    has; 0 where the system does not tell.
    """
    most = _number(root / "proc/sys/vm/max_map_count")
    return len(_lines(root / "proc/self/maps")) / most if most else 0.0


def _process(root: Path, rlimits: Mapping[str, int] | None) -> Iterator[float]:
    """What `ulimit -v` and `ulimit -d` leave."""
    if rlimits is None:
        kinds = {"AS": resource.RLIMIT_AS, "DATA": resource.RLIMIT_DATA}
        rlimits = {name: resource.getrlimit(kind)[0] for name, kind in kinds.items()}
    used = _fields(root / "proc/self/status")
    for name, field in (("AS", "VmSize"), ("DATA", "VmData")):
        if rlimits.get(name, -1) >= 0:  # RLIM_INFINITY is -1
            yield float(rlimits[name]) - used.get(field, 0.0)


def _groups(root: Path) -> Iterator[float]:
    """What each control group that the process is in leaves, from its own to the outermost."""
    paths = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            paths["cgroup2"] = path
        elif "memory" in controllers.split(","):
            paths["cgroup"] = path
    for kind, within, mount, options in _mounts(root):
        if kind in paths and (kind == "cgroup2" or "memory" in options):
            yield from _ancestors(kind, root / mount.lstrip("/"), _below(paths[kind], within))


def _mounts(root: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """Kind, root, mount point and options of each mounted hierarchy of groups (proc(5))."""
    for line in _lines(root / "proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        mount, after = left.split(), right.split()
        if after and after[0] in _FILES:
            options = after[2].split(",") if len(after) > 2 else []
            yield after[0], _plain(mount[3]), _plain(mount[4]), options


def _plain(path: str) -> str:
    """A path without the octal escapes of mountinfo."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _below(path: str, within: str) -> str:
    """A group's path below the group that is mounted; "" if it lies elsewhere (a container)."""
    if within == "/":
        inside = path
    elif path == within or path.startswith(within + "/"):
        inside = path[len(within) :]
    else:
        inside = ""
    return "" if ".." in inside.split("/") else inside.strip("/")


def _ancestors(kind: str, mount: Path, below: str) -> Iterator[float]:
    limits, usage, cache = _FILES[kind]
    group = mount / below
    while True:
        bounds = [b for b in map(_number, (group / name for name in limits)) if b is not None]
        used = _number(group / usage)
        if bounds and used is not None:
            reclaimable = _fields(group / "memory.stat", unit=1).get(cache, 0.0)
            yield min(bounds) - max(0.0, used - reclaimable)
        if group == mount:
            return
        group = group.parent


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _number(file: Path) -> float | None:
    """The number in a file; None for "max", or without the file."""
    text = " ".join(_lines(file))
    return float(text) if text.strip().isdecimal() else None


def _fields(file: Path, unit: int = 1024) -> dict[str, float]:
    """`Name: 12 kB` or `name 12` of every line, in bytes."""
    found = {}
    for line in _lines(file):
        words = line.replace(":", " ").split()
        if len(words) > 1 and words[1].isdecimal():
            found[words[0]] = float(words[1]) * unit
    return found
