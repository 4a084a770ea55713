"""How a field of a study is declared: its default, and what it may be instead.

`configs/default.py` declares every field once: checks, error texts, types of overrides and the
page of all fields come from there. Nothing is imported: names that stand in a table of the package
are given as "module:TABLE" and read when a study is checked.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
      default: its type is that of all values.
      low, high: bounds of a number; None: none.
      unit: what a number is.
      names: the words to choose from, or "module:TABLE" for the keys of a table.
      kind: of a tuple's entries.
      entries: what they are, in words.
    """

    default: Any
    low: float | None = None
    high: float | None = None
    unit: str = ""
    names: tuple[str, ...] = ()
    kind: type | tuple[type, ...] = object
    entries: str = ""


def number(default: float, low: float, high: float | None, unit: str) -> Field:
    """A whole or broken number, as its default is."""
    return Field(default, low, high, unit)


def word(default: str, *names: str) -> Field:
    """One of some names."""
    return Field(default, names=names)


def many(default: tuple, kind: type | tuple[type, ...], entries: str) -> Field:
    """A tuple of any length."""
    return Field(default, kind=kind, entries=entries)


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, field or plain default) of all declarations."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same tree with the default of every field."""
    return {
        name: defaults(value)
        if isinstance(value, Mapping)
        else value.default
        if isinstance(value, Field)
        else value
        for name, value in tree.items()
    }
