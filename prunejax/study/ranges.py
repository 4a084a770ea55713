"""Which values a field of a config may have, read from where each is declared.

Data sets and models check their own names.
"""

import importlib
from collections.abc import Collection

from prunejax.configs.default import FIELDS
from prunejax.configs.fields import Field, flat

_DECLARED = {name: f for name, f in flat(FIELDS) if isinstance(f, Field)}


def _names(entries: tuple[str, ...]) -> Collection[str]:
    """The names meant; a single table itself, to which a plug-in may add."""
    found: list[Collection[str]] = []
    for entry in entries:
        module, colon, table = entry.partition(":")
        found.append(getattr(importlib.import_module(module), table) if colon else (entry,))
    return found[0] if len(found) == 1 else [name for table in found for name in table]


CHOICES: dict[str, Collection[str]] = {n: _names(f.names) for n, f in _DECLARED.items() if f.names}
# Lowest and highest value allowed (None: no bound), and what the number is.
RANGES = {n: (f.low, f.high, f.unit) for n, f in _DECLARED.items() if f.unit}
# What the entries of a tuple have to be.
ENTRIES = {n: (f.kind, f.entries) for n, f in _DECLARED.items() if f.entries}
