"""Programs compiled side by side: while one runs, threads compile those that come next.

XLA compiles without Python's lock. What comes out is the same program, whoever compiles it.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from prunejax.system import limits

MOST = 4  # threads
T = TypeVar("T")


class Compiled:
    """A jitted function that another thread may be compiling: a call waits for it."""

    def __init__(
        self,
        fn: Any,
        given: Callable[..., tuple[Any, ...]] = lambda *args: args,
        back: Callable[[Any, Any], Any] = lambda found, first: found,
    ) -> None:
        """Compiles nothing yet.

        Args:
          fn: the jitted function.
          given: of the arguments of a call, those of `fn`.
          back: of what `fn` gives and the first argument of the call, what the call gives.
        """
        self._fn, self._given, self._back = fn, given, back
        self._seen: set[Any] = set()  # shapes of arguments that it was compiled for in advance
        self.pending: list[Future[Any]] = []

    def __getattr__(self, name: str) -> Any:
        """What else the jitted function has."""
        return getattr(self._fn, name)

    def task(self, *args: Any) -> "Task":
        """The jitted function, and what it is given of such arguments."""
        return self._fn, self._given(*args)

    def lower(self, *args: Any) -> Any:
        """As that of the jitted function."""
        return self._fn.lower(*self._given(*args))

    def compile(self, pool: ThreadPoolExecutor, *args: Any) -> None:
        """Compiles for arguments like these, unless some thread does already.

        Arguments have to lie where those of the call will: JAX then finds the program.
        """
        leaves, structure = jax.tree.flatten(self._given(*args))
        shapes = structure, *((jnp.shape(x), jnp.result_type(x)) for x in leaves)
        if shapes not in self._seen:
            self._seen.add(shapes)
            self.pending.append(pool.submit(lambda: self.lower(*args).compile()))

    def __call__(self, *args: Any) -> Any:
        """As the jitted function."""
        if self.pending:
            wait(self.pending)  # an error is met again, and told, in the call itself
            self.pending.clear()
        return self._back(self._fn(*self._given(*args)), args[0])


def threads() -> int:
    """How many compile beside the one that trains; 0 where several processes go in step."""
    return 0 if jax.process_count() > 1 else min(MOST, limits.cores() - 1)


Task = tuple[Any, tuple[Any, ...]]  # a function, compiled or to be, and its arguments


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
