"""Values from amid a computation, also of what is traced inside of it (`scan`, `remat`, `vmap`)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

Note = Callable[[str, jax.Array], None]
Noted = list[tuple[str, np.ndarray]]


def noted(fn: Callable[..., Any]) -> Callable[..., Noted]:
    """Compiles `fn(note, *args)`, which calls `note(name, value)` for what is asked for.

    Returns:
      `(*args) -> [(name, value), ...]` in the order in which the computation comes by: what is
      noted in a loop comes again with every round, under `vmap` with every entry.
    """
    names: list[str] = []
    found: Noted = []

    def given(*args: Any) -> list[jax.Array]:
        kept: list[tuple[str, jax.Array]] = []
        fn(lambda name, value: kept.append((name, value)), *args)
        names[:] = [name for name, _ in kept]
        return [value for _, value in kept]

    def take(name: str, value: jax.Array) -> None:
        found.append((name, np.asarray(value)))

    def told(*args: Any) -> Any:
        return fn(
            lambda name, value: jax.debug.callback(partial(take, name), value, ordered=True), *args
        )

    outer, inner = jax.jit(given), jax.jit(told)
    leaks = False

    def run(*args: Any) -> Noted:
        nonlocal leaks
        if not leaks:
            try:  # what is returned is compiled once for all processes, calls of the host are not
                return list(zip(names, map(np.asarray, outer(*args)), strict=True))
            except jax.errors.UnexpectedTracerError:  # a value of an inner trace
                leaks = True
        found.clear()
        jax.block_until_ready(inner(*args))
        jax.effects_barrier()
        return list(found)

    return run
