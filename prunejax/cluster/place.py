"""Which of several processes this one is: by the command line or the scheduler's variables."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from prunejax.cluster import rendezvous


class Place(NamedTuple):
    """A process among its peers."""

    # `HOST:PORT` at which process 0 listens, None: JAX finds this and the rest.
    coordinator: str | None
    process_id: int  # 0 .. process_count - 1
    process_count: int  # number of processes
    # Accelerators of this machine that the process takes, None: all.
    local_devices: list[int] | None = None


def from_flags(
    coordinator: str | None, process_id: int | None, process_count: int | None
) -> Place | None:
    """The place that the command line names, None if it names none.

    `coordinator="auto"` leaves everything to `jax.distributed.initialize` and must stand alone.

    Raises ValueError: some of the three are missing, or their values do not fit together.
    """
    flags = {
        "--coordinator": coordinator,
        "--process_id": process_id,
        "--process_count": process_count,
    }
    given = [name for name, value in flags.items() if value is not None]
    if not given:
        return None
    if coordinator == "auto":
        if len(given) > 1:
            raise ValueError(f"--coordinator=auto finds the rest by itself: drop {given[1]}")
        return Place(None, 0, 0)
    if coordinator is None or process_id is None or process_count is None:
        missing = ", ".join(name for name in flags if name not in given)
        raise ValueError(
            f"{', '.join(given)} without {missing}: give --coordinator=HOST:PORT, --process_id=I "
            "and --process_count=N together, or none of them for one process"
        )
    rendezvous.split(coordinator)
    if process_count < 1 or not 0 <= process_id < process_count:
        raise ValueError(
            f"--process_id={process_id} of --process_count={process_count}: "
            "the count is at least 1 and ids run from 0 to count - 1"
        )
    return Place(coordinator, process_id, process_count)


def from_environment(environment: Mapping[str, str]) -> Place | None:
    """The place that the scheduler's variables describe, None for a process on its own.

    - SLURM: a step (`srun`) of several tasks. Port as in JAX: from the job id, or
      `JAX_COORDINATOR_PORT`. Tasks that share a node take one accelerator each.
    - Kubernetes: an Indexed Job whose manifest sets `JAX_COORDINATOR_ADDRESS` and
      `JAX_PROCESS_COUNT`; the index comes from `JOB_COMPLETION_INDEX`. Needs no cluster rights.
    - Cloud TPU slices (`TPU_WORKER_HOSTNAMES`, several) and Open MPI: JAX finds the rest.
    """
    env = environment
    if "SLURM_STEP_NODELIST" in env and "SLURM_PROCID" in env and "SLURM_JOB_ID" in env:
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
        count = _number(env, tasks)
        if count > 1:
            port = env.get("JAX_COORDINATOR_PORT") or 61440 + _number(env, "SLURM_JOB_ID") % 4096
            host = _first_host(env["SLURM_STEP_NODELIST"])
            return Place(f"{host}:{port}", _number(env, "SLURM_PROCID"), count, _slurm_devices(env))
        return None
    if "JAX_COORDINATOR_ADDRESS" in env and "JOB_COMPLETION_INDEX" in env:
        if "JAX_PROCESS_COUNT" not in env:
            raise ValueError(
                "JAX_COORDINATOR_ADDRESS and JOB_COMPLETION_INDEX are set but JAX_PROCESS_COUNT "
                "is not: set it to the Job's number of pods"
            )
        return from_flags(
            env["JAX_COORDINATOR_ADDRESS"],
            _number(env, "JOB_COMPLETION_INDEX"),
            _number(env, "JAX_PROCESS_COUNT"),
        )
    workers = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES", "")
    parts = [_number(env, name) for name in ("MEGASCALE_NUM_SLICES", "OMPI_COMM_WORLD_SIZE")]
    return Place(None, 0, 0) if len(workers.split(",")) > 1 or max(parts) > 1 else None


def _number(env: Mapping[str, str], name: str) -> int:
    """A variable that holds a whole number; 1 where it is not set."""
    value = env.get(name) or "1"
    if not value.isdecimal():
        raise ValueError(f"{name}={value!r} in the environment: not a whole number")
    return int(value)


def _first_host(nodes: str) -> str:
    """The first host of a SLURM list such as "node[001-003,7],other"."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", nodes)
    if match is None:
        raise ValueError(f"SLURM_STEP_NODELIST={nodes!r} names no host")
    return match.group(1) + (match.group(2) or "")


def _slurm_devices(env: Mapping[str, str]) -> list[int] | None:
    """One accelerator per task where tasks share a node and SLURM itself bound none to them."""
    alone = re.fullmatch(r"1(\(x\d+\))?", env.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    visible = env.get("CUDA_VISIBLE_DEVICES", "")
    bound = visible != "" and "," not in visible
    if alone or bound or "JAX_LOCAL_DEVICE_IDS" in env:
        return None
    return [int(env.get("SLURM_LOCALID", "0"))]
