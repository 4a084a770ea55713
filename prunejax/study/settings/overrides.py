"""`--config.variants.LABEL.FIELD=VALUE`: any field of a variant, whatever its label looks like.

ml_collections reads labels as names of Python and overrides only fields that the file mentions.
"""

import ast
import re
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from prunejax import registry
from prunejax.configs import default
from prunejax.errors import ConfigError


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without the overrides of variants, and these as `LABEL.FIELD=VALUE`.

    As of all flags the value may be the next word; a truth value needs none.

    Raises ConfigError: no value, or no such field.
    """
    rest, found = [], []
    words = iter(argv)
    for word in words:
        match = re.fullmatch(r"--?config\.variants\.(.+)", word, re.DOTALL)
        field = match and re.fullmatch(r"[^.]+\.([a-zA-Z_][\w.]*)", match[1])  # "=" is of labels
        if match is None:
            rest.append(word)
        elif field is None:
            found.append(match[1])
        else:
            is_bool = isinstance(declared(field[1], word), bool)
            value = "true" if is_bool else next(words, None)
            if value is None:
                raise ConfigError(f"Missing value for flag {word}")
            found.append(f"{match[1]}={value}")
    return rest, found


def apply(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Writes overrides of variants into the config.
    Raises ConfigError: no such variant or field, or a value of another type.
    """
    if not overrides:
        return
    labels = config.get("variants") or {}
    for text in overrides:
        label = max((k for k in labels if text.startswith(f"{k}.")), key=len, default=None)
        if label is None:
            name = text.partition("=")[0].split(".")[0]
            told = f"--config.variants.{text}: no variant {name!r}; there are"
            registry.one_of(name, labels, told)
            raise ConfigError(
                f"--config.variants.{text}: name a field inside of {name!r}, like "
                f"--config.variants.{name}.prune.period=2"
            )
        path, _, value = text[len(label) + 1 :].partition("=")
        like = declared(path, f"--config.variants.{text}")
        *parents, leaf = path.split(".")
        changed = labels[label]
        changed = changed.to_dict() if isinstance(changed, ConfigDict) else dict(changed or {})
        node = changed
        for part in parents:
            node = node.setdefault(part, {})
        try:
            node[leaf] = typed(value, like)
        except (ValueError, KeyError):
            kinds = {bool: "neither true nor false", int: "not a whole number"}
            what = kinds.get(type(like), "not a number")
            raise ConfigError(f"--config.variants.{text}: {what}") from None
        with config.unlocked(), config.ignore_type():
            labels[label] = ConfigDict(changed)


def declared(path: str, argument: str) -> Any:
    """The default of a field, by its dotted name; None of a field of a model that may have any.
    Raises ConfigError: there is no such field, or it is a group of them; begins with the argument.
    """
    node: Any = default.get_config()
    for part in path.split("."):
        inside = list(node.keys()) if isinstance(node, ConfigDict) else []
        if part not in inside and not path.startswith("model."):
            raise ConfigError(
                f"{argument}: unknown config field {path!r}." + registry.suggestion(part, inside)
            )
        node = node[part] if part in inside else None
    if isinstance(node, ConfigDict):
        raise ConfigError(f"{argument}: name a field inside of {path}")
    return node


def typed(text: str, like: Any) -> Any:
    """A value of the type of `like`; of any type where that is None."""
    if isinstance(like, bool):
        return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
    if isinstance(like, int | float):
        return type(like)(text)
    if isinstance(like, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
        if isinstance(like, tuple):
            value = tuple(text.split(",")) if text else ()
    return value
