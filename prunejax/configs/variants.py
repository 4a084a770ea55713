"""Arms of a study: by hand, or as the product of some fields' values."""

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict


def arms(variants: dict[str, dict]) -> ConfigDict:
    """Variants (label -> overrides) in the order given; a plain dict would be sorted by label."""
    return ConfigDict(variants, sort_keys=False, allow_dotted_keys=True)


def product(
    axes: Mapping[str, Iterable[Any] | Mapping[str, Any]], base: Mapping[str, Any] | None = None
) -> ConfigDict:
    """Variants for every combination of the values of some fields, the last axis fastest.

        config.variants = default.product({"model.width": (0.5, 1), "batch_size": (32, 64)})

    gives width=0_5-batch_size=32, width=0_5-batch_size=64, width=1-batch_size=32, ... A label has
    the last part of each field's name (the whole name where two end alike) and its value, in which
    "_" stands for what labels may not hold and "+" between the entries of a tuple. What can share
    a compiled program does, wherever it stands in the product. Add further arms by
    `arms({"none": {}, **product(...)})`.

    Args:
      axes: field or group of fields, dotted ("prune.fraction", "optimizer") -> its values, or a
        mapping from a word for the label to a value, as in {"optimizer": {"sgd": {"name": "sgd",
        "learning_rate": 0.1}, "adam": {"name": "adam"}}}. A dict sets the fields that it names.
      base: overrides of every arm, as in `arms`; the axes come on top.

    Raises:
      ValueError: no axis, an axis without values, or two arms of one label.
    """
    if not axes:
        raise ValueError("product: no axes; give {field: values}, e.g. {'batch_size': (32, 64)}")
    ends = [name.rpartition(".")[2] for name in axes]
    columns = []
    for (name, values), end in zip(axes.items(), ends, strict=True):
        if isinstance(values, Iterable) and not isinstance(values, str | Mapping):
            values = tuple(values)
        if isinstance(values, str) or not isinstance(values, Iterable) or not values:
            raise ValueError(f"product: axis {name!r} = {values!r}: give a tuple of its values")
        word = end if ends.count(end) == 1 else name
        named = values.items() if isinstance(values, Mapping) else ((_word(v), v) for v in values)
        columns.append([(f"{word}={_word(label)}", name, value) for label, value in named])
    variants: dict[str, dict] = {}
    for cells in itertools.product(*columns):
        label = re.sub(r"[^\w+=-]", "_", "-".join(cell[0] for cell in cells))
        if label in variants:
            raise ValueError(
                f"product: two arms are called {label!r}; name the values by a mapping, as in "
                "{'batch_size': {'small': 32, 'large': 64}}"
            )
        changes: dict[str, Any] = {}
        for tree in (base or {}, *(_nested(name, value) for _, name, value in cells)):
            merge(changes, tree)
        variants[label] = changes
    return arms(variants)


def _word(value: Any) -> str:
    """A value as part of a label."""
    if isinstance(value, tuple | list):
        return "+".join(map(_word, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _nested(name: str, value: Any) -> dict[str, Any]:
    """The value inside dicts: "a.b" and 1 give {"a": {"b": 1}}."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)


def merge(into: dict[str, Any], tree: Mapping[str, Any]) -> None:
    """Writes a nested mapping over another; neither `tree` nor what is inside it is changed."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            node = into.get(key)
            into[key] = dict(node) if isinstance(node, Mapping) else {}
            merge(into[key], value)
        else:
            into[key] = value
