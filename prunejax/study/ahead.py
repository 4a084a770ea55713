"""Programs compiled side by side: while one runs, threads compile those that come next.

XLA compiles without Python's lock. What comes out is the same program, whoever compiles it.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from prunejax.system import limits

MOST = 4  # threads
T = TypeVar("T")


class Compiled:
    """A jitted function that another thread may be compiling: a call waits for it."""

    def __init__(self, fn: Any) -> None:
        self._fn = fn
        self._seen: set[Any] = set()  # shapes of arguments that it was compiled for in advance
        self._pending: list[Future[Any]] = []

    def __getattr__(self, name: str) -> Any:
        """`lower` and what else the jitted function has."""
        return getattr(self._fn, name)

    def compile(self, pool: ThreadPoolExecutor, *args: Any) -> None:
        """Compiles for arguments like these, unless some thread does already.

        Arguments have to lie where those of the call will: JAX then finds the program.
        """
        leaves, structure = jax.tree.flatten(args)
        shapes = structure, *((jnp.shape(x), jnp.result_type(x)) for x in leaves)
        if shapes not in self._seen:
            self._seen.add(shapes)
            self._pending.append(pool.submit(lambda: self._fn.lower(*args).compile()))

    def __call__(self, *args: Any) -> Any:
        """As the jitted function."""
        if self._pending:
            wait(self._pending)  # an error is met again, and told, in the call itself
            self._pending.clear()
        return self._fn(*args)


def threads() -> int:
    """How many compile beside the one that trains; 0 where several processes go in step."""
    return 0 if jax.process_count() > 1 else min(MOST, limits.cores() - 1)


Task = tuple[Any, tuple[Any, ...]]  # a `Compiled`, or one in a `shared.Bare`, and its arguments


def prepare(tasks: Iterable[Task]) -> None:
    """Has functions compiled for arguments in other threads; their calls wait where they must."""
    if threads():
        pool = ThreadPoolExecutor(threads())
        for fn, args in tasks:
            fn.compile(pool, *args)
        pool.shutdown(wait=False)


def apart(task: Callable[[], T]) -> Future[T]:
    """The result of a task that another thread works on."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(task)
    pool.shutdown(wait=False)
    return future


def together(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of `tasks` in their order, run side by side; the first error is raised."""
    if not threads() or len(tasks) < 2:
        return [task() for task in tasks]
    with ThreadPoolExecutor(threads() + 1) as pool:
        return list(pool.map(lambda task: task(), tasks))


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


def memory_needed(lowered: Sequence[Any], *, states: int, data: int, devices: int) -> Memory:
    """Memory while the largest of some programs runs; compiles them side by side.

    Args:
      lowered: the programs.
      states, data: bytes on one device.
      devices: of a CPU, which share its memory; 0: elsewhere.
    """
    used = together([functools.partial(_memory, program) for program in lowered])
    work = max(
        # What lies in a donated argument's place takes none of its own.
        m.temp_size_in_bytes + max(0, m.output_size_in_bytes - m.alias_size_in_bytes)
        for m in used
        if m is not None
    )
    count = devices or 1
    return Memory(count * states, count * data, count * work, devices * states)


def _memory(program: Any) -> Any:
    return program.compile().memory_analysis()
