"""Which layout a study's members get: as asked for, as decided before, or as measured."""

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from prunejax import distributed, mesh, population
from prunejax.config import ConfigError
from prunejax.data import StreamedSet
from prunejax.plan import Member
from prunejax.population import Population
from prunejax.step import Data, Program
from prunejax.streamed_population import StreamedPopulation

GIB = 2**30
HEADROOM = 0.9  # of the memory that is free is planned for
SECONDS = 0.2  # of measured steps, at least, per candidate
# A layout that is first in its list has to lose by this factor: noise should not decide, because
# the layouts differ in the last bits of a result.
PREFERENCE = 1.15


@dataclasses.dataclass(frozen=True)
class Decision:
    """What is remembered (`layout.json`), so that a study continues as it began."""

    layout: str
    devices: int  # that are used
    platform: str
    fits: int  # members that train at once, at most
    why: str
    processes: int = 1


def available(settings: ConfigDict, decided: Decision | None = None) -> list[jax.Device]:
    """The devices a study may use; those of an earlier decision must still be there.

    A layout's results depend on its number of devices in their last bits (one device more or less
    changes what is computed together), so that a study continues on exactly as many: on one
    wherever it used one, and on the first ones of a larger machine.

    Raises:
      ConfigError: there are fewer devices than asked for or used before, or of another platform;
        devices that share a member are divided over another number of processes.
    """
    devices = jax.devices()
    wanted = settings.population.devices
    if wanted > len(devices):
        raise ConfigError(
            f"config.population.devices = {wanted} is more than the {len(devices)} devices of "
            f"platform {devices[0].platform!r} there are"
        )
    if decided is None:
        return devices[: wanted or None]
    if decided.platform != devices[0].platform:
        raise ConfigError(
            f"this study began on platform {decided.platform!r} and the devices here are "
            f"{devices[0].platform!r}: its runs would differ from those that are done. Continue "
            "there, or start it in a new workdir"
        )
    if decided.devices > len(devices):
        raise ConfigError(
            f"this study began in layout {decided.layout!r} on {decided.devices} devices and here "
            f"are {len(devices)}: what is computed together would change, and with it the last "
            f"bits of its results. Continue on {decided.devices} devices, or start it in a new "
            "workdir"
        )
    processes = jax.process_count()
    if settings.population.data_parallel > 1 and decided.processes != processes:
        raise ConfigError(
            f"this study began in {decided.processes} processes and here are {processes}: devices "
            "that share a member (config.population.data_parallel = "
            f"{settings.population.data_parallel}) would add in another order, which changes the "
            f"last bits of its results. Continue in {decided.processes} processes, or start it in "
            "a new workdir"
        )
    return devices[: decided.devices]


def memory_limit(settings: ConfigDict, device: jax.Device) -> float:
    """Bytes that may be used per device (on a CPU: by this process)."""
    if settings.population.memory_gib:
        return settings.population.memory_gib * GIB
    if device.platform == "cpu":
        return HEADROOM * free_host_memory()
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return float("inf")
    return HEADROOM * (stats["bytes_limit"] - stats.get("bytes_in_use", 0))


def free_host_memory() -> float:
    """Bytes that this process may still take: what the system has left, or its group's limit."""
    free = [float("inf")]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free.append(1024 * float(line.split()[1]))
        group = Path("/sys/fs/cgroup")
        used = float((group / "memory.current").read_text())
        free.append(float((group / "memory.max").read_text()) - used)
    except (OSError, ValueError):  # not Linux, no such group, or "max": no limit
        pass
    if len(free) == 1 and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        free.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    return min(free)


def fitting(
    people: Population, members: int, limit: float, evaluation: bool = True
) -> tuple[int, population.Memory]:
    """How many of `members` train at once within `limit` bytes, and what they need.

    The estimate is that of the compiled programs, for the size that is returned; `evaluation`
    says whether that of evaluation counts as well.

    Raises:
      ConfigError: not even the fewest members that the layout takes fit.
    """
    step = people.multiple
    most = 1 if people.layout == "sequential" else -(-members // step) * step
    one = people.state_bytes(step)
    rest = max(0.0, limit - sum(leaf.nbytes for leaf in people.data))
    count = max(step, min(most, int(rest // max(1, one)) * step))  # a first guess: states alone
    while True:
        memory = people.memory(count, evaluation)
        if memory.total <= limit:
            return count, memory
        if count == step:
            raise ConfigError(
                f"config.population.layout = {people.layout!r} cannot hold even "
                f"{count} member{'s' * (count > 1)}: {_text(memory)} of {size(limit)} allowed. "
                "Lower config.batch_size or config.eval_batch_size, split a member over devices "
                "with config.population.data_parallel and shard_params, or raise "
                "config.population.memory_gib"
            )
        each = (memory.total - memory.data) / count
        count = max(step, min(count - step, int((limit - memory.data) / each) // step * step))


def _text(memory: population.Memory) -> str:
    parts = ", ".join(f"{name} {size(getattr(memory, name))}" for name in memory._fields)
    return f"estimated peak {size(memory.total)} ({parts})"


def size(count: float) -> str:
    """Bytes for reading: 3 digits and a unit."""
    unit, name = (GIB, "GiB") if count >= GIB else (2**20, "MiB")
    return f"{count / unit:.3g} {name}"


def check(settings: ConfigDict) -> None:
    """Refuses what the devices cannot do, before anything is written or compiled.

    Raises:
      ConfigError: see `available`, `prunejax.mesh.make` and `prunejax.population.Population`.
    """
    p = settings.population
    if settings.batch_size % p.data_parallel:
        raise ConfigError(
            f"config.population.data_parallel = {p.data_parallel} does not divide "
            f"config.batch_size = {settings.batch_size}; choose multiples"
        )
    mesh.used_by(p.layout, available(settings), p.data_parallel, p.shard_params)


def build(
    program: Program,
    data: Data | StreamedSet,
    like: Member,
    settings: ConfigDict,
    decided: Decision,
) -> Population:
    """The compiled functions of an earlier decision.

    Raises:
      ConfigError: the devices of that decision are not there.
    """
    return _population(program, data, decided.layout, available(settings, decided), like, settings)


def _population(
    program: Program,
    data: Data | StreamedSet,
    name: str,
    devices: Sequence[jax.Device],
    like: Member,
    settings: ConfigDict,
) -> Population:
    """The compiled functions in the layout `name`, of data in memory or streamed."""
    split = settings.population.shard_params
    if isinstance(data, StreamedSet):
        return StreamedPopulation(program, data, name, devices, like, shard_params=split)
    return Population(program, data, name, devices, like, shard_params=split)


def decide(
    program: Program,
    data: Data | StreamedSet,
    members: Sequence[Member],
    settings: ConfigDict,
) -> tuple[Decision, Population]:
    """The layout for members that may all train together, and its compiled functions.

    Raises:
      ConfigError: the layout, or every candidate of "auto", cannot hold the members or does not
        fit the devices.
    """
    devices = available(settings)
    asked = settings.population.layout
    names = candidates(devices, program.data_parallel, len(members)) if asked == "auto" else [asked]
    limit = distributed.on_main(lambda: memory_limit(settings, devices[0]))
    found: dict[str, tuple[Population, int]] = {}
    for name in names:
        people = _population(program, data, name, devices, members[0], settings)
        try:
            count, _ = fitting(people, len(members), limit, evaluation=False)
            found[name] = people, count
        except ConfigError:
            if name == names[-1] and not found:
                raise
    chosen, why = next(iter(found)), "as configured" if asked != "auto" else "the only candidate"
    if len(found) > 1:
        seconds: dict[str, float] = {}
        for name in reversed(found):  # "sequential" first: it tells how long a step takes
            people, count = found[name]
            rounds = count // people.multiple
            long = not people.vectorized and rounds * seconds.get("sequential", 0) > SECONDS
            seconds[name] = _measure(people, people.multiple if long else count)
        chosen, why = fastest({name: seconds[name] for name in found})
    people = found[chosen][0]
    del found  # the others' data
    fits, memory = fitting(people, len(members), limit)
    many = f"{min(fits, len(members))} at once" if fits > 1 else "one at a time"
    why = f"layout: {chosen} ({why}); {many}, {_text(memory)} of {size(limit)}"
    decision = Decision(
        chosen, people.mesh.size, devices[0].platform, fits, why, jax.process_count()
    )
    return decision, people


def candidates(devices: Sequence[jax.Device], share: int, members: int) -> list[str]:
    """What `auto` measures, the preferred one first.

    On a CPU `vmap` gains nothing over one after another, and devices (one per core) do; on
    accelerators a small network leaves most of a device idle unless members are vectorized.
    """
    several = len(devices) > share
    if jax.process_count() > 1:
        return ["sharded"]
    if members == 1:
        return ["sequential"]
    if devices[0].platform == "cpu":
        return ["sharded", "sequential"] if several else ["sequential"]
    return ["sharded", "vectorized", "sequential"] if several else ["vectorized", "sequential"]


def fastest(seconds: Mapping[str, float]) -> tuple[str, str]:
    """The layout with the fewest seconds per member and step, and the reason."""
    first = next(iter(seconds))
    best = min(seconds, key=lambda name: seconds[name] * (1 if name == first else PREFERENCE))
    text = ", ".join(f"{name} {1e3 * value:.3g} ms" for name, value in seconds.items())
    close = seconds[best] > min(seconds.values())
    return best, f"measured per run and step: {text}" + "; too close to call" * close


def _measure(people: Population, members: int) -> float:
    """Seconds per member and step; the first call compiles and does not count."""
    states = people.train(people.zeros(members), people.data, np.int32(1))
    steps, per_epoch = 1, max(1, people.program.steps_per_epoch - 1)
    while True:
        jax.block_until_ready(states)
        begin = time.perf_counter()
        states = jax.block_until_ready(people.train(states, people.data, np.int32(steps)))
        seconds = time.perf_counter() - begin
        if seconds >= SECONDS or steps >= per_epoch:
            return seconds / (steps * members)
        steps = min(per_epoch, max(2 * steps, int(1.2 * steps * SECONDS / max(seconds, 1e-6))))
