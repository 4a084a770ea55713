"""Which values a field of a config may have, read from where each is declared.

Data sets and models check their own names.
"""

import importlib
from collections.abc import Collection

from prunejax.configs.default import FIELDS
from prunejax.configs.fields import Field, flat, whole


def declared() -> dict[str, Field]:
    """Every declared field by its dotted name, those of plug-ins as well."""
    return {name: f for name, f in flat(whole(FIELDS)) if isinstance(f, Field)}


def choices() -> dict[str, Collection[str]]:
    """The words that a field may be; a single table itself, to which a plug-in may add."""
    return {name: _names(f.names) for name, f in declared().items() if f.names}


def bounds() -> dict[str, tuple[float | None, float | None, str]]:
    """Lowest and highest value allowed (None: no bound), and what the number is."""
    return {name: (f.low, f.high, f.unit) for name, f in declared().items() if f.unit}


def entries() -> dict[str, tuple[type | tuple[type, ...], str]]:
    """What the entries of a tuple have to be."""
    return {name: (f.kind, f.entries) for name, f in declared().items() if f.entries}


def _names(given: tuple[str, ...]) -> Collection[str]:
    found: list[Collection[str]] = []
    for entry in given:
        module, colon, table = entry.partition(":")
        found.append(getattr(importlib.import_module(module), table) if colon else (entry,))
    return found[0] if len(found) == 1 else [name for table in found for name in table]
