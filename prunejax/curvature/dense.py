"""Small dense algebra between products: on one thread of NumPy's BLAS.

OpenBLAS keeps its threads spinning for some milliseconds after each call, which on matrices of this
size gain nothing: between the products of a search they took a third of all CPU time.
"""

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import threadpoolctl

P = ParamSpec("P")
T = TypeVar("T")
# The number of threads is one of the process: who sets it must not meet another who restores it.
_LOCK = threading.Lock()


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController().select(user_api="blas")


def one_thread(fn: Callable[P, T]) -> Callable[P, T]:
    """`fn` with one thread of BLAS; not recursive, and one call at a time in a process."""

    @functools.wraps(fn)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with _LOCK, _blas().limit(limits=1):
            return fn(*args, **kwargs)

    return run
