"""What a loss refers to, so that kernels compiled for it are used while that is the same.

A loss is usually a closure, and what it reads may change between two calls: `x` rebound in a
notebook, a buffer refilled, `self.statistics` of a trainer or the variables of an NNX module after
an epoch. As with `jax.jit`, the old values would then be used without a word. A `Captured` function
therefore compares by the function *and* by what its closure, defaults and the globals it names hold
now, and what the attributes that its code names hold, of the objects among them.
"""

import dis
import functools
import sysconfig
import types
import zlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np

_DEPTH = 4  # functions called by functions called by ... the loss
_INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))
_FUNCTIONS = types.FunctionType | types.MethodType | functools.partial
_PLAIN = np.ndarray | np.generic | jax.Array | bool | int | float | complex | str | bytes
_KNOWN = _PLAIN | _FUNCTIONS | list | tuple | dict | None  # no objects with attributes of interest


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
        return type(value).__name__, repr(value)  # 1, 1.0 and True are equal, and other programs
    if isinstance(value, np.ndarray) and value.dtype != object:
        # an array may be filled anew in its place
        return id(value), value.shape, value.dtype.str, zlib.crc32(value.tobytes())
    return id(value)


def references(fn: Any) -> Iterator[Any]:
    """A function, then its closure, defaults and globals, and those of what it calls.

    Trees leaf by leaf, functions recursively, of other objects what is read of them.
    """
    walk = _Walk()
    yield from walk.values([fn], _DEPTH)
    yield from walk.attributes()


class _Walk:
    """What code refers to, and the objects whose attributes it may read."""

    def __init__(self) -> None:
        self.names: set[str] = {"__call__"}  # that code of the caller uses
        self.written: set[str] = set()  # attributes that it sets itself, as counters of calls
        self.objects: dict[int, tuple[Any, int]] = {}

    def function(self, fn: Any, depth: int) -> Iterator[Any]:
        if isinstance(fn, functools.partial):
            yield from self.values([fn.func, fn.args, fn.keywords], depth)
            return
        if isinstance(fn, types.MethodType):
            yield from self.values([fn.__func__, fn.__self__], depth)
            return
        code = fn.__code__
        yield code
        if not _installed(code):
            self.names |= _names(code)
            self.written |= _written(code)
        for cell in fn.__closure__ or ():
            try:
                yield from self.values([cell.cell_contents], depth)
            except ValueError:  # a cell that is not filled yet
                yield cell
        yield from self.values([fn.__defaults__, fn.__kwdefaults__], depth)
        for name in sorted(_names(code)):
            if name in fn.__globals__:
                yield from self.values([fn.__globals__[name]], depth)

    def values(self, values: list[Any], depth: int) -> Iterator[Any]:
        for value in values:
            if depth and isinstance(value, _FUNCTIONS):
                yield from self.function(value, depth - 1)
                continue
            if isinstance(value, dict) or not (value is None or jax.tree_util.all_leaves([value])):
                yield from self.tree(value, depth)
            else:
                yield value
            if depth and not isinstance(value, _KNOWN):
                self.objects.setdefault(id(value), (value, depth - 1))

    def tree(self, value: Any, depth: int) -> Iterator[Any]:
        try:
            leaves, structure = jax.tree.flatten(value, is_leaf=lambda x: x is None)
        except ValueError:  # keys that have no order: no tree, as in globals of libraries
            leaves, structure = [value], None
        if leaves and leaves[0] is value:  # nor is what a class makes of a dict
            structure = f"{type(value).__name__} of {len(value)}"
            leaves = [*value, *value.values()] if isinstance(value, dict) else [*value]
        yield str(structure)
        yield from self.values(leaves, depth)

    def attributes(self) -> Iterator[Any]:
        """Of the objects what the names in the caller's code are, and what these lead to."""
        seen: set[tuple[int, str]] = set()
        while True:
            pairs = [
                (key, name) for key in self.objects for name in sorted(self.names - self.written)
            ]
            new = [pair for pair in pairs if pair not in seen]
            if not new:
                return
            seen.update(new)
            for key, name in new:
                value, depth = self.objects[key]
                found = _attribute(value, name)
                if found is not None:
                    yield from self.attribute(value, name, found, depth)

    def attribute(self, value: Any, name: str, found: Any, depth: int) -> Iterator[Any]:
        """One of them: data, or the code of a method."""
        if isinstance(found, types.MemberDescriptorType):  # of a class with slots
            found = getattr(value, name, None)
        found = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
        if isinstance(value, types.ModuleType | type):
            yield from [found] if isinstance(found, _PLAIN) else []  # constants
        elif not (isinstance(found, types.FunctionType) and _installed(found.__code__)):
            yield from self.values([found], depth)


def _attribute(value: Any, name: str) -> Any:
    """What `value.name` is, a method or property as it was written; None where there is none."""
    kinds = value.__mro__ if isinstance(value, type) else (value, *type(value).__mro__)
    for kind in kinds:
        known: Any = getattr(kind, "__dict__", {})
        if name in known:
            return known[name]
    if not hasattr(type(value), "__getattr__"):
        return None
    try:
        return getattr(value, name)  # settings often keep what they hold elsewhere
    except (AttributeError, KeyError):
        return None


def _installed(code: types.CodeType) -> bool:
    """Whether code is of Python or an installed package, whose objects change by calls alone."""
    return code.co_filename.startswith(_INSTALLED)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of the functions defined inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


@functools.lru_cache(1024)  # each call of an estimator asks again
def _names(code: types.CodeType) -> set[str]:
    """Names of globals and attributes in code."""
    return {name for part in _codes(code) for name in part.co_names}


@functools.lru_cache(1024)
def _written(code: types.CodeType) -> set[str]:
    """Names of attributes that code sets."""
    steps = (step for part in _codes(code) for step in dis.get_instructions(part))
    return {step.argval for step in steps if step.opname == "STORE_ATTR"}
