"""`--sweep prune.period=1,4,18`: variants from the command line."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from prunejax.configs import default, variants
from prunejax.errors import ConfigError
from prunejax.record.arms import NAMING
from prunejax.study.settings.overrides import declared, typed

FLAG = "--sweep"
NAMED = ("report.claims", "report.tests", "report.correlate", "connect.pairs")  # arms in words


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without `--sweep=FIELD=VALUES` (or `--sweep FIELD=VALUES`), and these.
    Raises ConfigError: the flag without anything.
    """
    rest, found, words = [], [], iter(argv)
    for word in words:
        if word.startswith(f"{FLAG}="):
            found.append(word.removeprefix(f"{FLAG}="))
        elif word == FLAG:
            found.append(next(words, ""))
        else:
            rest.append(word)
    if "" in found:
        raise ConfigError(f"{FLAG} needs a field and values, e.g. {FLAG} prune.period=1,4,18")
    return rest, found


def apply(config: ConfigDict, sweeps: Sequence[str]) -> None:
    """Puts every variant at every combination of the swept values.

    The labels are those of `default.product`, "period=4", behind that of the variant if the config
    has any: "S-period=4". A variant that starts from another, or replays its targets, takes the one
    with the same values.

    Args:
      config: is changed.
      sweeps: "FIELD=V1,V2,...", of the field's own type; a tuple's entries are joined by "+":
        "prune.fraction=0.25+0.5,0.5".

    Raises ConfigError: no such field, one that is of the whole study, or a value of another type.
    """
    if not sweeps:
        return
    axes = dict(_axis(text) for text in sweeps)
    if len(axes) < len(sweeps):
        raise ConfigError(f"{FLAG}: a field is swept twice; give all of its values at once")
    before = config.get("variants") or {}
    before = before.to_dict() if isinstance(before, ConfigDict) else dict(before)
    try:
        cells = default.product(axes).to_dict()
    except ValueError as error:
        raise ConfigError(f"{FLAG}: {error}") from None
    swept: dict[str, Any] = {}
    for label, changes in (before or {"": {}}).items():
        for cell, values in cells.items():
            merged: dict[str, Any] = {}
            for tree in (changes or {}, values):
                variants.merge(merged, tree)
            for group, field in NAMING:
                inside = merged.get(group)
                if isinstance(inside, Mapping) and inside.get(field) in before:
                    variants.merge(merged, {group: {field: f"{inside[field]}-{cell}"}})
            swept[f"{label}-{cell}" if label else cell] = merged
    with config.unlocked(), config.ignore_type():
        config.variants = default.arms(swept)
        for name in NAMED if before else ():
            group, _, field = name.partition(".")
            texts = (_at(text, cell, before) for text in config[group][field] for cell in cells)
            config[group][field] = tuple(dict.fromkeys(texts))


def _at(text: str, cell: str, labels: Mapping[str, Any]) -> str:
    """A claim "a > b in COLUMN", a pair "a:b" or a variant "a", of the variants at `cell`."""
    arms, of, column = text.partition(" in ")
    words = (f"{w}-{cell}" if w in labels else w for w in re.split(r"([\s:]+)", arms))
    return "".join([*words, of, column])


def _axis(text: str) -> tuple[str, tuple[Any, ...]]:
    name, equals, values = text.partition("=")
    node = declared(name, f"{FLAG} {text}")
    if not equals or not values:
        raise ConfigError(f"{FLAG} {text}: no values, e.g. {FLAG} prune.period=1,4,18")
    try:
        return name, tuple(_typed(value, node) for value in values.split(","))
    except (ValueError, KeyError):
        raise ConfigError(
            f"{FLAG} {text}: the values of {name} are of type {type(node).__name__}, as {node!r}"
        ) from None


def _typed(text: str, like: Any) -> Any:
    if isinstance(like, tuple):
        return tuple(typed(part, None) for part in text.split("+")) if text != "none" else ()
    return typed(text, like)
