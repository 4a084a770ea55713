"""How many members of a study train at once: the memory there is, and what programs need."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from prunejax.errors import ConfigError
from prunejax.study.devices import ahead
from prunejax.study.devices.population import Population
from prunejax.system import limits

GIB = 2**30
HEADROOM = 0.9  # of the memory that is free is planned for
# What the process takes beside states and data from then on: compilation (100 MiB measured), the
# machinery of checkpoints (50) and of the report (30), and as much again.
RESERVE = 360 * 2**20
CROWDED = 0.5  # of the mappings that a process may have: one network's programs take 0.02 to 0.06


class Memory(NamedTuple):
    """Bytes on one device (on a CPU: of all its devices in this process together)."""

    states: int
    data: int
    work: int  # what the largest program needs beside them
    saving: int  # on a CPU: the copies that writing a checkpoint makes

    @property
    def total(self) -> int:
        """The estimated peak."""
        return sum(self)


def bound(settings: ConfigDict, device: jax.Device) -> float:
    """Bytes that members may take per device (on a CPU: in this process, beside the rest of it)."""
    if settings.population.memory_gib:
        return settings.population.memory_gib * GIB
    if device.platform == "cpu":
        # What the process holds already is part of the share that it may plan.
        own = limits.resident()
        return max(0.0, HEADROOM * (limits.free_host_memory() + own) - own - RESERVE)
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return float("inf")
    return HEADROOM * (stats["bytes_limit"] - stats.get("bytes_in_use", 0))


def make_room() -> None:
    """Drops all compiled programs where the process comes near the mappings that it may have.

    Each loop that XLA compiles for a CPU takes some, and JAX keeps programs of all shapes that it
    met. Past the limit XLA fails ("Failed to materialize symbols") or ends the process.
    """
    if limits.mapped() > CROWDED:
        jax.clear_caches()


def most(people: Population, members: int) -> int:
    """The size of the stack in which all `members` train at once, as far as the layout does so."""
    step = people.multiple
    return 1 if people.layout == "sequential" else -(-members // step) * step


def fitting(
    people: Sequence[Population], members: int, limit: float, evaluation: bool = True
) -> list[tuple[int, Memory]]:
    """How many of `members` train at once within `limit` bytes, and what they need.

    The estimate is that of the compiled programs, for the size that is returned; `evaluation`
    says whether that of evaluation counts as well. Programs are traced in turn and compiled side
    by side.

    Args: people: of several layouts.

    Returns:
      Of each: 0, and what the fewest members that the layout takes need, if these do not fit.
    """
    counts = []
    for p in people:  # a first guess: states alone; without a limit all of them
        whole = most(p, members) // p.multiple
        fit = max(0.0, limit - p.data_bytes(0)) / max(1, p.state_bytes(p.multiple))
        counts.append(p.multiple * max(1, int(min(fit, whole))))
    found: dict[int, tuple[int, Memory]] = {}
    while left := [i for i in range(len(people)) if i not in found]:
        lowered: list[tuple[int, Any]] = []
        for i in left:
            for fn, arguments in people[i].counted(counts[i], evaluation):
                lowered.append((i, fn.lower(*arguments)))
        compiled = ahead.together([program.compile for _, program in lowered])
        for i in left:
            own = [program for (j, _), program in zip(lowered, compiled, strict=True) if j == i]
            memory, count, step = needed(people[i], counts[i], own), counts[i], people[i].multiple
            if memory.total <= limit or count == step:
                found[i] = (count if memory.total <= limit else 0), memory
            else:
                each = (memory.total - memory.data) / count
                fewer = min(count - step, int((limit - memory.data) / each) // step * step)
                counts[i] = max(step, fewer)
    return [found[i] for i in range(len(people))]


def needed(people: Population, size: int, compiled: Sequence[Any]) -> Memory:
    """Estimated peak while `size` members train: when the largest of their programs runs."""
    used = [program.memory_analysis() for program in compiled]
    work = max(
        # What lies in a donated argument's place takes none of its own.
        m.temp_size_in_bytes + max(0, m.output_size_in_bytes - m.alias_size_in_bytes)
        for m in used
        if m is not None
    )
    devices = len(people.mesh.local_devices) if people.cpu else 0  # of a CPU share its memory
    states, data, count = people.state_bytes(size), people.data_bytes(size), devices or 1
    return Memory(count * states, count * data, count * work, devices * states)


def refused(people: Population, memory: Memory, limit: float) -> ConfigError:
    """What is told where not even the fewest members that a layout takes fit."""
    count = people.multiple
    return ConfigError(
        f"config.population.layout = {people.layout!r} cannot hold even "
        f"{count} member{'s' * (count > 1)}: {text(memory)} of {size(limit)} allowed. "
        "Lower config.batch_size or config.eval_batch_size, split a member over devices "
        "with config.population.data_parallel and shard_params, or raise "
        "config.population.memory_gib"
    )


def text(memory: Memory) -> str:
    """The estimated peak and its parts, for reading."""
    parts = ", ".join(f"{name} {size(getattr(memory, name))}" for name in memory._fields)
    return f"estimated peak {size(memory.total)} ({parts})"


def size(count: float) -> str:
    """Bytes for reading: 3 digits and a unit."""
    unit, name = (GIB, "GiB") if count >= GIB else (2**20, "MiB")
    return f"{count / unit:.3g} {name}"
