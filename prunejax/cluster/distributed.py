"""Several processes as one program: how they meet, and how they stay in step.

A single process needs nothing from here: every function then does nothing, or answers for itself.
"""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from prunejax.cluster import place as place_lib
from prunejax.cluster import rendezvous, wire

T = TypeVar("T")

TIMEOUT_SECONDS = 300.0  # how long processes wait for each other at the start
LAST_SECONDS = 2.0  # how long a process 0 that failed stays, so that others can end by themselves


def initialize(
    coordinator: str | None = None,
    process_id: int | None = None,
    process_count: int | None = None,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> int:
    """Joins the processes named by the flags or by the environment; one process: does nothing.

    Call it before anything asks JAX for a device. On CPU the processes exchange data with gloo.
    JAX's own SIGTERM handler stays off, so that one handler (the study's) serves one process
    and many; see `any_process`.

    Args:
      coordinator: `HOST:PORT` of process 0, or "auto": JAX detects all three.
      process_id: 0 .. process_count - 1.
      process_count: number of processes.
      timeout_seconds: how long the processes wait for each other.

    Returns: The number of processes; 1 where JAX found it by itself.

    Raises:
      ValueError: flags that are incomplete or do not fit together, or processes that disagree.
      ConnectionError: the coordinator or other processes are missing at the time limit.
    """
    place = place_lib.from_flags(
        coordinator, process_id, process_count
    ) or place_lib.from_environment(os.environ)
    if place is None or place.process_count == 1:
        return 1
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)
    if place.coordinator is None:
        _mute_libraries()
        try:
            jax.distributed.initialize(initialization_timeout=int(timeout_seconds))
        except ValueError as error:
            raise ValueError(
                f"JAX finds no processes in this environment ({error}): give --coordinator="
                "HOST:PORT, --process_id=I and --process_count=N, or none of them for one process"
            ) from error
        return 1
    # JAX ends the whole process with a stack trace when a peer is missing, so they meet here first.
    deadline = time.monotonic() + timeout_seconds
    host, port = rendezvous.split(place.coordinator)
    own = rendezvous.interface(host) if place.process_id == 0 else None
    own = f"[{own}]" if own and ":" in own else own
    rendezvous.meet(
        host, port, place.process_id, place.process_count, timeout_seconds, secret(os.environ)
    )
    _mute_libraries()
    jax.distributed.initialize(
        place.coordinator, place.process_count, place.process_id,
        local_device_ids=place.local_devices, cluster_detection_method="deactivate",
        initialization_timeout=max(30, int(deadline - time.monotonic())),
        coordinator_bind_address=own and f"{own}:{port}",
    )  # fmt: skip
    return place.process_count


def secret(environment: Mapping[str, str]) -> str:
    """By which processes of one program know each other: PRUNEJAX_SECRET, else the job's id.

    The launchers draw PRUNEJAX_SECRET anew for every start or submission.
    """
    env = environment
    return env.get("PRUNEJAX_SECRET") or env.get("SLURM_JOB_ID", "")


def follow_parent(environment: Mapping[str, str]) -> None:
    """Stops this process (SIGTERM) when the launcher that started it is gone, however it ended.

    The launcher names itself in PRUNEJAX_PARENT; without it nothing is watched.
    """
    parent = environment.get("PRUNEJAX_PARENT", "")
    if not parent.isdecimal():
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _mute_libraries() -> None:
    """Keeps to Python what is printed: gloo tells standard output of every connection it makes."""
    sys.stdout.flush()
    ours = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    sys.stdout = os.fdopen(ours, "w", buffering=1, encoding=sys.stdout.encoding)


def is_main() -> bool:
    """Whether this process is the one that writes (process 0)."""
    return jax.process_index() == 0


def sync(name: str) -> None:
    """Waits until every process has called `sync` with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """True in every process if `flag` is true in at least one; every process must call it.

    This is how a signal that reached one process stops all of them at the same step.
    """
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def on_main(fn: Callable[[], T]) -> T:
    """`fn()` of process 0 in every process, its result or its exception; all must call it.

    This is how files are read and written once, and how all processes learn of what went wrong.
    """
    if jax.process_count() == 1:
        return fn()
    outcome: tuple[bool, Any] = (True, None)
    if is_main():
        try:
            outcome = (True, fn())
        except Exception as error:  # told to all, and raised by all: none is left waiting
            outcome = (False, error)
    try:
        content = wire.encode(outcome) if is_main() else b""
    except (TypeError, ValueError) as error:  # the others must learn of this, too
        outcome = (False, error)
        content = wire.encode(outcome)
    done, value = wire.decode(_broadcast(content))
    if done:
        return outcome[1] if is_main() else value
    raise outcome[1] if is_main() else value


def on_all(fn: Callable[[], T]) -> list[T]:
    """`fn()` of every process, in their order, in every process; all must call it.

    What the first process that failed raised, all raise.
    """
    if jax.process_count() == 1:
        return [fn()]
    own: Exception | None = None
    try:
        content = wire.encode((True, fn()))
    except Exception as error:
        own = error
        content = wire.encode((False, error))
    lengths = multihost_utils.process_allgather(np.int32(len(content)))
    # Padded to a power of two, as in `_broadcast`: few sizes are compiled.
    buffer = np.zeros(1 << int(max(lengths)).bit_length(), np.uint8)
    buffer[: len(content)] = np.frombuffer(content, np.uint8)
    every = multihost_utils.process_allgather(buffer)
    told: list[tuple[bool, Any]] = [
        wire.decode(row[:n].tobytes()) for row, n in zip(every, lengths, strict=True)
    ]
    for i, (done, value) in enumerate(told):
        if not done:
            raise own if own is not None and i == jax.process_index() else value
    return [value for _, value in told]


def same(value: T) -> bool:
    """Whether `value` is the same in every process; all must call it."""
    return not any_process(on_main(lambda: value) != value)  # of process 0, compared by everyone


def _broadcast(content: bytes) -> bytes:
    """The bytes of process 0."""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    # Every size is compiled once: of sizes that are powers of two there are few.
    buffer = np.zeros(1 << length.bit_length(), np.uint8)
    buffer[: len(content)] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes()[:length]


def lost_peer(error: Exception) -> bool:
    """Whether `error` is what a computation of several processes raises when one has gone.

    Only where the collectives notice first (gloo on CPU, NCCL on GPU). If JAX's coordination
    service does, it aborts the process (code 134) and Python has no say in it.
    """
    words = r"Gloo|NCCL|UNAVAILABLE|coordination service|heartbeat|Connection (reset|closed)"
    return jax.distributed.is_initialized() and bool(re.search(words, str(error)))


def leave(exit_code: int) -> None:
    """Ends a failed process of several at once; alone, it returns.

    A normal exit would wait minutes for peers that will never come to the same point; when this
    process is gone they fail, too, and the launcher ends them. Process 0 goes a little later than
    others that fail as it does: without it JAX aborts them before they can say why.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(LAST_SECONDS if is_main() else 0.0)
        os._exit(exit_code)
