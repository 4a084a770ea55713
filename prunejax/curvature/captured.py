"""Losses as dictionary keys: equal only while everything they refer to is the same.

Compiled kernels are kept per loss. A loss is usually a closure, and what it closes over may change
between two calls (`x` rebound in a notebook, a buffer refilled): as with `jax.jit`, the old values
would then be used without a word. A `Captured` function therefore compares by the function *and*
by what its closure, defaults and the globals it names hold now.
"""

import functools
import types
import zlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np

_DEPTH = 4  # functions called by functions called by ... the loss


class Captured:
    """A callable with value semantics: see the module's docstring."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        # The objects are kept alive with their ids, so that an id can not come to mean another.
        found = list(references(fn))
        self._token = tuple(_token(value) for value in found)
        self._held = found

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function."""
        return self.fn(*arguments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Captured) and self._token == other._token

    def __hash__(self) -> int:
        return hash(self._token)


def _token(value: Any) -> Hashable:
    """What identifies a captured value: small constants by value, NumPy arrays by content."""
    if isinstance(value, bool | int | float | complex | str | bytes | type(None)):
        return type(value).__name__, repr(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return id(value), value.shape, value.dtype.str, zlib.crc32(value.tobytes())
    return id(value)


def references(fn: Any) -> Iterator[Any]:
    """What a function refers to: its closure, defaults and globals, and those of what it calls."""
    yield from _references(fn, _DEPTH)


def _references(fn: Any, depth: int) -> Iterator[Any]:
    """The function, then what it refers to; containers leaf by leaf, functions recursively."""
    if isinstance(fn, functools.partial):
        yield from _values([fn.func, fn.args, fn.keywords], depth)
        return
    if isinstance(fn, types.MethodType):
        yield from _values([fn.__func__, fn.__self__], depth)
        return
    if not isinstance(fn, types.FunctionType):
        yield fn
        return
    yield fn.__code__
    for cell in fn.__closure__ or ():
        try:
            yield from _values([cell.cell_contents], depth)
        except ValueError:  # a cell that is not filled yet
            yield cell
    yield from _values([fn.__defaults__, fn.__kwdefaults__], depth)
    for name in sorted(_names(fn.__code__)):
        if name in fn.__globals__:
            yield from _values([fn.__globals__[name]], depth)


def _values(values: list[Any], depth: int) -> Iterator[Any]:
    for value in values:
        if depth and isinstance(value, types.FunctionType | types.MethodType | functools.partial):
            yield from _references(value, depth - 1)
        elif isinstance(value, list | tuple | dict):
            leaves, structure = jax.tree.flatten(value, is_leaf=lambda x: x is None)
            yield str(structure)
            for leaf in leaves:
                if depth and callable(leaf):
                    yield from _references(leaf, depth - 1)
                else:
                    yield leaf
        else:
            yield value


def _names(code: types.CodeType) -> set[str]:
    """Global names used by a function and by the functions defined inside it."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found
