"""How a field of a study is declared: its default, and what it may be instead.

`configs/default.py` declares every field of the package once: checks, error texts, types of
overrides and the page of all fields come from there. A measure or schedule that is not of the
package declares its own with `declare`. Nothing is imported: names that stand in a table of the
package are given as "module:TABLE" and read when a study is checked.
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


OWN: dict[str, Field] = {}  # what code outside of the package has declared, by dotted name


def declare(name: str, field: Field) -> None:
    """Adds a field to a group of every study: the place for it is beside the code that reads it.

        fields.declare("measures.bins", fields.number(10, 1, None, "bins"))

    A measure finds it in `context.options["bins"]`, a schedule as its keyword argument `bins`.

    Args:
      name: "GROUP.FIELD", the group one of `configs/default.py`.
      field: made by `number`, `word` or `many`. Of a field that is declared again (a config file
        that is read twice) the new declaration counts.

    Raises:
      ValueError: no such form of a name, or `field` is none. That a group does not exist, or that
        the package has a field of that name, is told when a study is read.
    """
    group, _, leaf = name.partition(".")
    if not (group.isidentifier() and leaf.isidentifier()) or not isinstance(field, Field):
        raise ValueError(
            f"declare({name!r}, {field!r}): give 'GROUP.FIELD' and what number, word or many make"
        )
    OWN[name] = field


def whole(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with the fields of `OWN` in their groups.

    Raises:
      ValueError: a group that `tree` has not, or a field that it has.
    """
    found = dict(tree)
    for name, field in OWN.items():
        group, _, leaf = name.partition(".")
        groups = [k for k, v in tree.items() if isinstance(v, Mapping)]
        if group not in groups:
            raise ValueError(f"field {name!r}: no group {group!r}; there are: {', '.join(groups)}")
        if leaf in tree[group]:
            raise ValueError(f"field {name!r} is one of the package; declare another name")
        found[group] = {**found[group], leaf: field}
    return found


def flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of declarations, of a config (`ConfigDict`), or of overrides.

    The group `variants`, whose content is the study's, is one value.
    """
    for name, value in tree.items():
        if hasattr(value, "items") and name != "variants":
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
