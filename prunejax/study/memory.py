"""How many members of a study train at once: the memory there is, and what programs need."""

import jax
from ml_collections import ConfigDict

from prunejax.errors import ConfigError
from prunejax.study.population import Memory, Population
from prunejax.system import limits

GIB = 2**30
HEADROOM = 0.9  # of the memory that is free is planned for
# What the process takes beside states and data from then on: compilation (100 MiB measured), the
# machinery of checkpoints (50) and of the report (30), and as much again.
RESERVE = 360 * 2**20


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


def most(people: Population, members: int) -> int:
    """The size of the stack in which all `members` train at once, as far as the layout does so."""
    step = people.multiple
    return 1 if people.layout == "sequential" else -(-members // step) * step


def fitting(
    people: Population, members: int, limit: float, evaluation: bool = True
) -> tuple[int, Memory]:
    """How many of `members` train at once within `limit` bytes, and what they need.

    The estimate is that of the compiled programs, for the size that is returned; `evaluation`
    says whether that of evaluation counts as well.

    Raises:
      ConfigError: not even the fewest members that the layout takes fit.
    """
    step = people.multiple
    one = people.state_bytes(step)
    rest = max(0.0, limit - sum(leaf.nbytes for leaf in people.data))
    count = max(
        step, min(most(people, members), int(rest // max(1, one)) * step)
    )  # a first guess: states alone
    while True:
        memory = people.memory(count, evaluation)
        if memory.total <= limit:
            return count, memory
        if count == step:
            raise ConfigError(
                f"config.population.layout = {people.layout!r} cannot hold even "
                f"{count} member{'s' * (count > 1)}: {text(memory)} of {size(limit)} allowed. "
                "Lower config.batch_size or config.eval_batch_size, split a member over devices "
                "with config.population.data_parallel and shard_params, or raise "
                "config.population.memory_gib"
            )
        each = (memory.total - memory.data) / count
        count = max(step, min(count - step, int((limit - memory.data) / each) // step * step))


def text(memory: Memory) -> str:
    """The estimated peak and its parts, for reading."""
    parts = ", ".join(f"{name} {size(getattr(memory, name))}" for name in memory._fields)
    return f"estimated peak {size(memory.total)} ({parts})"


def size(count: float) -> str:
    """Bytes for reading: 3 digits and a unit."""
    unit, name = (GIB, "GiB") if count >= GIB else (2**20, "MiB")
    return f"{count / unit:.3g} {name}"
