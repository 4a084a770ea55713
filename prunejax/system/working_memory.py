"""Memory that programs work in, kept by the process instead of given back after each call.

On a CPU XLA asks glibc for a program's working memory at each call and frees it at its end. glibc
maps large blocks anew each time, and the system hands them out page by page, zeroed: a quarter of
the gradient of a transformer. What is kept is never given back, but used again.
"""

import ctypes
import os
import sys
from collections.abc import Mapping

_ASYNC = "jax_cpu_enable_async_dispatch"
# mallopt(3)
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_kept = False  # for good: neither setting is ever taken back


def keep(environment: Mapping[str, str] = os.environ) -> bool:
    """Lets the process keep what calls of JAX work in, for loops over large programs on a CPU.

    Two settings of glibc: no block is mapped by itself, and the heap never shrinks. That heap is
    the one of the main thread, so programs run in the thread that calls them (JAX's
    `jax_cpu_enable_async_dispatch` is off: a call returns when it is done). To be called there,
    before JAX has computed anything: afterwards nothing is changed. Numbers are the same bits.
    Loops of small programs, whose next call begins while the host reads the last, get slower.

    Args:
      environment: where the user has settings of glibc (`MALLOC_...`, `GLIBC_TUNABLES` with
        `glibc.malloc`) or JAX's of that name, these go first: nothing is done.

    Returns: Whether it is so now, by this call or one before; False, too, without glibc. It raises
    nothing.
    """
    global _kept
    if _kept:
        return True
    if of_user(environment) or _begun() or not _glibc():
        return False
    import jax

    try:
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(_MMAP_MAX, 0) == mallopt(_TRIM_THRESHOLD, -1) == 1:
            jax.config.update(_ASYNC, False)
            _kept = True
        return _kept
    except (AttributeError, OSError, TypeError):  # another library of C, or another JAX
        return False


def of_user(environment: Mapping[str, str]) -> bool:
    """Whether the environment has settings of malloc, or of the thread that programs run in."""
    return (
        any(name.startswith("MALLOC_") for name in environment)
        or "glibc.malloc" in environment.get("GLIBC_TUNABLES", "")
        or _ASYNC.upper() in environment
    )


def _begun() -> bool:
    """Whether JAX's backends run: the thread that programs run in is decided then."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bool(bridge and getattr(bridge, "backends_are_initialized", bool)())


def _glibc() -> bool:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") is not None
    except (AttributeError, OSError, ValueError):
        return False
